#!/usr/bin/env bash
# Does a language model forget to read when it learns to hear and to speak? A small one learns text first, then goes through
# both stages twice: as usual, and without any text in stage 1. Prints the loss on held-out text before and after
# each stage. A quarter of an hour on two cores, into runs/forgetting; stopped anywhere, the same command continues.
#
#   train/recipes/forgetting.sh
#
# Needs Debian's espeak-ng, flite and festival.
set -euo pipefail
run=runs/forgetting
ears=assets/nano
train() { "${PYTHON:-.venv/bin/python}" -m train "$@"; }
common=("lessons=$run/lessons" "check=$run/check" micro_batch_tokens=1024 warmup=50 check_every=1000 check_batches=12)

speak() {  # WHERE SPLIT SHARDS
  train synthesize --config english-nano --out "$run/speech/$1/english" --set "split=$2" "shards=$3" utterances_per_shard=500
  train synthesize --config voice-nano --out "$run/speech/$1/voice" --set "split=$2" "shards=$3" utterances_per_shard=500
  train dialogues --config dialogues-nano --out "$run/speech/$1/dialogues" --set "split=$2" "shards=$3" \
    conversations_per_shard=500 interrupted=0
}
lessons() {  # WHERE OUT SETTING...
  local speech=$run/speech/$1 out=$2
  shift 2
  train prepare --out "$out" --set "ears=$ears" "tasks.asr=[$speech/english]" "tasks.tts=[$speech/voice]" \
    "tasks.text=[$speech/english, $speech/voice]" "tasks.speech_instructions=[$speech/dialogues]" \
    "tasks.text_instructions=[$speech/dialogues]" "$@"
}
speak learned train 4
speak held-out test 1
lessons learned "$run/lessons"
lessons held-out "$run/check" "tokenizer=$run/lessons/tokenizer"

train stage1 --out "$run/text" --set "${common[@]}" start=nano \
  "shape={hidden_size: 128, intermediate_size: 384, moe_intermediate_size: 48, num_hidden_layers: 4}" \
  "mixture={asr: 0, tts: 0, text: 1}" steps=600
for texts in with without; do
  mixture="{asr: 0.4, tts: 0.4, text: 0.2}"
  [ "$texts" = with ] || mixture="{asr: 0.5, tts: 0.5, text: 0}"
  train stage1 --out "$run/stage1-$texts" --set "${common[@]}" "start=$run/text/model" "mixture=$mixture" steps=400
  train stage2 --out "$run/stage2-$texts" --set "${common[@]}" "start=$run/stage1-$texts/model" steps=300 \
    "mixture={speech_instructions: 0.4, text_instructions: 0.4, asr: 0.1, tts: 0.1, text: 0}"
done

"${PYTHON:-.venv/bin/python}" - "$run" <<'TELL'
import json
import sys
from pathlib import Path

print("loss on held-out text     before   after")
for name in ("text", "stage1-with", "stage1-without", "stage2-with", "stage2-without"):
    lines = map(json.loads, (Path(sys.argv[1]) / name / "log.jsonl").read_text().splitlines())
    losses = [line["check_loss_words/text"] for line in lines if "check_loss_words/text" in line]
    print(f"{name:24s} {losses[0]:7.3f} {losses[-1]:7.3f}")
TELL
