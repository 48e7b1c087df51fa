#!/usr/bin/env bash
# What each ingredient buys: the trained ears go on for a few minutes with one thing changed. Tables in docs/ears.md.
#
#   train/recipes/ears_tries.sh [FOLDER with barista/ and librispeech/]
#
# After train/recipes/ears.sh. Two at a time, one core each; runs/tries/NAME/log.jsonl ends with the word errors.
set -euo pipefail
people=${1:-../shared/speech}
tries=runs/tries ears=runs/nano/encoder
train() { "${PYTHON:-.venv/bin/python}" -m train "$@"; }

for voices in seen unseen; do  # larger than what a training is watched by, and of other texts
  train synthesize --config "check-$voices" --set seed=22 utterances_per_shard=300 --out "$tries/speech/$voices"
done
train synthesize --config english-nano --out "$tries/speech/few" --set seed=5 shards=3 \
  engines.espeak-ng=0 engines.flite=1 engines.festival=0 texts.world=0.5
read_aloud() {  # NAME PART SURE
  [ -d "$tries/speech/$1" ] || train corpus --out "$tries/speech/$1" \
    --set kind=librispeech_sample split="$2" sure="$3" location="$people/librispeech" transcripts=pocketsphinx
}
read_aloud read-test test 0.6
read_aloud read-sure train 0.6
read_aloud read-all train 0

goes_on() {  # NAME [settings]: the same training for 250 steps
  local name=$1
  shift
  train encoder --config ears-nano --threads 1 --out "$tries/$name" --set start=$ears steps=250 warmup=25 \
    learning_rate=5e-4 short_first=1 check_every=250 check.seen="$tries/speech/seen" \
    check.unseen="$tries/speech/unseen" check.read="$tries/speech/read-test" "$@"
}
both() { wait "$1" && wait "$2"; }
librispeech() { echo "speech.librispeech={path: $tries/speech/$1, weight: $2, real: true}"; }

goes_on control & first=$!
goes_on clean augmentation.room=0 augmentation.equalizer=0 augmentation.band_limit=0 \
  augmentation.telephone=0 augmentation.noise=0 augmentation.stretch=0 & both $first $!
goes_on librispeech "$(librispeech read-sure 0.08)" & first=$!
goes_on people "$(librispeech read-sure 0.16)" speech.orders.weight=0.28 speech.keywords.weight=0.08 & both $first $!
goes_on harsh augmentation.room=0.6 augmentation.equalizer=0.8 augmentation.equalizer_db=12 \
  augmentation.noise=0.8 augmentation.snr_db="[-3, 20]" & first=$!
goes_on masked masking.share=0.03 & both $first $!
goes_on few_voices speech.english="{path: $tries/speech/few, weight: 0.82}" speech.world.weight=0.0001 & first=$!
goes_on synthetic speech.orders.weight=0.0001 speech.keywords.weight=0.0001 & both $first $!
goes_on all_labels "$(librispeech read-all 0.25)" speech.orders.weight=0.2 speech.keywords.weight=0.06 & first=$!
goes_on all_labels_half "$(librispeech read-all 0.12)" masking.share=0.02 & both $first $!
