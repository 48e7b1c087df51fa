#!/usr/bin/env bash
# Which units a vocoder speaks best with: the same short training of a mouth for each candidate, into runs/tries/mouth.
# Half an hour each on two cores; stopped anywhere, the same command continues.
#
#   train/recipes/mouth_tries.sh [LAYER-CLUSTERS...]      default: 4-500 6-500
#
# Needs what train/recipes/ears.sh nano leaves behind, and runs/nano/speech/voice (train/recipes/mouth.sh).
set -euo pipefail
tries=runs/tries/mouth
train() { "${PYTHON:-.venv/bin/python}" -m train "$@"; }
[ $# -gt 0 ] || set -- 4-500 6-500

for units in "$@"; do
  layer=${units%-*} clusters=${units#*-}
  train units --config units-nano --out "$tries/ears-$units" \
    --set "layers=[$layer]" "clusters=[$clusters]" "choice.layer=$layer" "choice.clusters=$clusters"
  train vocoder --config vocoder-nano --out "$tries/$units" \
    --set "encoder=$tries/ears-$units" "shape.num_units=$clusters" steps=4000 sound_from=2000 adversarial_from=4000
  train evaluate mouth --model "$tries/$units" --out "$tries/$units/figures.json"
done
