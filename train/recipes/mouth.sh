#!/usr/bin/env bash
# The mouth from the ears, into runs/SIZE/mouth. Stopped anywhere, the same command continues.
#
#   train/recipes/mouth.sh [nano | nano-gpu | debug]
#
# Needs Debian's flite, PocketSphinx for the measurements, and runs/SIZE/ears, which train/recipes/ears.sh makes; without
# them it takes the shipped ones.
set -euo pipefail
size=${1:-nano}
speech=runs/$size/speech
ears=runs/$size/ears
train() { "${PYTHON:-.venv/bin/python}" -m train "$@"; }

[ -f "$ears/units.safetensors" ] || ears=assets/nano
train synthesize --config "voice-$size" --out "$speech/voice"
train synthesize --config check-voice --out "$speech/check-voice"
train vocoder --config "vocoder-$size" --out "runs/$size/mouth" --set "encoder=$ears"
train evaluate mouth --model "runs/$size/mouth" --out "runs/$size/mouth/figures.json"
