#!/usr/bin/env bash
# The ears from nothing, into runs/SIZE/ears. Stopped anywhere, the same command continues.
#
#   train/recipes/ears.sh [nano | nano-gpu | debug] [FOLDER with barista/ and keywords/]
#
# Needs Debian's espeak-ng, flite, festival and three of festival's voices, and two corpora of human speech: README.md
# says where both are to be had.
set -euo pipefail
size=${1:-nano}
people=${2:-../shared/speech}
speech=runs/$size/speech
train() { "${PYTHON:-.venv/bin/python}" -m train "$@"; }

train synthesize --config "english-$size" --out "$speech/english"
train synthesize --config "world-$size" --out "$speech/world"
train synthesize --config check-seen --out "$speech/check-seen"
train synthesize --config check-unseen --out "$speech/check-unseen"
for kind in barista keywords; do
  [ -d "$people/$kind" ] || { echo "error: $people/$kind is not there: give the folder of human speech" >&2; exit 2; }
done
transcripts=pocketsphinx
[ ! -f "$people/orders.json" ] || transcripts=$people/orders.json
[ -d "$speech/keywords" ] || train prepare --set kind=keywords location="$people/keywords" --out "$speech/keywords"
[ -d "$speech/orders" ] ||
  train prepare --set kind=barista location="$people/barista" transcripts="$transcripts" --out "$speech/orders"
[ -d "$speech/human-test" ] ||
  train prepare --set kind=barista location="$people/barista" split=test transcripts="$transcripts" --out "$speech/human-test"

train encoder --config "ears-$size" --out "runs/$size/encoder"
train units --config "units-$size" --out "runs/$size/ears"
train evaluate ears --model "runs/$size/ears" --human "$people/barista" --out "runs/$size/ears/figures.json"
