#!/usr/bin/env bash
# Everything once in a few minutes, into runs/debug: speech, ears, mouth, lessons, both stages, and an answer. What comes
# out knows nothing; it shows that every step runs and that the parts fit together.
#
#   train/recipes/debug.sh
#
# Needs Debian's espeak-ng, flite and festival.
set -euo pipefail
run=runs/debug
speech=$run/speech
train() { "${PYTHON:-.venv/bin/python}" -m train "$@"; }

for texts in english world voice; do train synthesize --config "$texts-debug" --out "$speech/$texts"; done
for check in seen voice; do train synthesize --config "check-$check" --out "$speech/check-$check"; done
train encoder --config ears-debug --out "$run/encoder"
train units --config units-debug --out "$run/ears"
train vocoder --config vocoder-debug --out "$run/mouth"
train dialogues --config dialogues-debug --out "$speech/dialogues"
train prepare --config lessons-debug --out "$run/lessons"
train stage1 --config stage1-debug --out "$run/stage1"
train stage2 --config stage2-debug --out "$run/stage2"
train export --fresh --set "model=$run/stage2/model" "ears=$run/ears" "mouth=$run/mouth" "lessons=[$run/lessons]" --out "$run/model"
"${PYTHON:-.venv/bin/python}" - "$run/model" <<'ASK'
import sys

import numpy as np

import most_core

reply = most_core.load(sys.argv[1]).answer(np.zeros(16_000, np.float32))
print(f"asked nothing, it answers {len(reply.text)} letters and {len(reply.waveform) / reply.sample_rate:.1f} s of sound")
ASK
