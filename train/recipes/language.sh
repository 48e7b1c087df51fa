#!/usr/bin/env bash
# The language model from ears, mouth and the speech they were made with, into runs/SIZE/export: a folder that the app and
# `most_core.load` open. Stopped anywhere, the same command continues.
#
#   train/recipes/language.sh [nano | nano-gpu] [FOLDER with barista/]
#
# Needs Debian's espeak-ng, flite and festival, and what train/recipes/ears.sh and mouth.sh left in runs/SIZE.
set -euo pipefail
size=${1:-nano}
people=${2:-../shared/speech}
run=runs/$size
speech=$run/speech
train() { "${PYTHON:-.venv/bin/python}" -m train "$@"; }

train dialogues --config "dialogues-$size" --out "$speech/dialogues"
train replies --config "replies-$size" --out "$speech/replies"
train prepare --config "lessons-$size" --out "$run/lessons"
if [ "$size" = nano ]; then
  train dialogues --config check-dialogues --out "$speech/check-dialogues"
  train replies --config check-replies --out "$speech/check-replies"
  train prepare --config check-lessons --out "$run/check-lessons"
fi
train stage1 --config "stage1-$size" --out "$run/stage1"
train stage2 --config "stage2-$size" --out "$run/stage2"
last=$run/stage2
if [ "$size" = nano ]; then
  last=$run/longer
  train stage2 --config stage2-nano-longer --out "$last"
fi
[ -d "$run/export" ] || train export --out "$run/export" \
  --set "model=$last/model" "ears=$run/ears" "mouth=$run/mouth" "lessons=[$run/lessons]" longest_reply=320
train evaluate nano --model "$run/export" --stage1 "$run/stage1/model" --human "$people/barista" --out "$run/export/figures.json"
