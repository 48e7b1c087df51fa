#!/usr/bin/env bash
# The ears from nothing, into runs/SIZE/ears. Stopped anywhere, the same command continues.
#
#   train/recipes/ears.sh [nano | nano-gpu | debug] [FOLDER with barista/, keywords/ and librispeech/]
#
# Needs Debian's espeak-ng, flite, festival and three of festival's voices, and three corpora of human speech: README.md
# says where they are to be had.
set -euo pipefail
size=${1:-nano}
people=${2:-../shared/speech}
speech=runs/$size/speech
train() { "${PYTHON:-.venv/bin/python}" -m train "$@"; }

train synthesize --config "english-$size" --out "$speech/english"
train synthesize --config "world-$size" --out "$speech/world"
train synthesize --config "voice-$size" --out "$speech/voice"
train synthesize --config check-seen --out "$speech/check-seen"
train synthesize --config check-unseen --out "$speech/check-unseen"
for kind in barista keywords librispeech; do
  [ -d "$people/$kind" ] || { echo "error: $people/$kind is not there: give the folder of human speech" >&2; exit 2; }
done
transcripts=pocketsphinx
[ ! -f "$people/orders.json" ] || transcripts=$people/orders.json
[ -d "$speech/keywords" ] || train corpus --set kind=keywords location="$people/keywords" --out "$speech/keywords"
[ -d "$speech/orders" ] ||
  train corpus --set kind=barista location="$people/barista" transcripts="$transcripts" --out "$speech/orders"
[ -d "$speech/human-test" ] ||
  train corpus --set kind=barista location="$people/barista" split=test transcripts="$transcripts" --out "$speech/human-test"

understood=pocketsphinx
[ ! -f "$people/librispeech.json" ] || understood=$people/librispeech.json
read_aloud() {  # PART SURE OUT
  [ -d "$speech/$3" ] || train corpus --out "$speech/$3" --set kind=librispeech_sample split="$1" sure="$2" \
    location="$people/librispeech" transcripts="$understood"
}
read_aloud train 0 librispeech
read_aloud test 0.6 read-test

encoder=runs/$size/encoder
train encoder --config "ears-$size" --out "$encoder"
if [ "$size" = nano ]; then
  train encoder --config ears-nano-people --out "$encoder-people"
fi
train units --config "units-$size" --out "runs/$size/ears"
train evaluate ears --model "runs/$size/ears" --human "$people/barista" --out "runs/$size/ears/figures.json"
