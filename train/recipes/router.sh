#!/usr/bin/env bash
# Does routing by modality help? A small model (4 layers, 128 wide, 16 experts, 4 a token) goes through both stages with its
# experts divided by index ("index": 8 for text, 8 for audio) and with all of them open to every token ("plain"), with three
# seeds each, which see the same lessons in the same order. Prints check losses and tokens a second of both. Into
# runs/router; stopped anywhere, the same command continues.
#
#   train/recipes/router.sh [LESSONS [CHECK-LESSONS [ROUTER...]]]
#
# Default: runs/nano/lessons runs/nano/check-lessons index plain. Other routers, the paper's further ablations:
# dense (one block as wide as a token's experts together) and unshared (divided by index, without the shared expert).
# SEEDS, STEPS ("500 300" of stage 1 and 2) and RUN in the environment make it larger or smaller.
set -euo pipefail
lessons=${1:-runs/nano/lessons}
check=${2:-runs/nano/check-lessons}
routers=("${@:3}")
[ ${#routers[@]} -gt 0 ] || routers=(index plain)
run=${RUN:-runs/router}
read -r -a seeds <<<"${SEEDS:-0 1 2}"
read -r steps1 steps2 <<<"${STEPS:-500 300}"
python=${PYTHON:-.venv/bin/python}

size="hidden_size: 128, intermediate_size: 384, moe_intermediate_size: 48, num_hidden_layers: 4"
declare -A shapes=(
  [index]="{$size}"
  # DeepSeek's own router with its own balance loss: all tokens and all experts in one pot
  [plain]="{$size, use_modality_aware_routing: false, aux_loss_form: upstream}"
  [dense]="{$size, feed_forward: dense}"
  [unshared]="{$size, n_shared_experts: 0}"
)
for router in "${routers[@]}"; do
  [ -n "${shapes[$router]:-}" ] || { echo "router $router is unknown: choose from ${!shapes[*]}" >&2; exit 2; }
done

learn() {  # STAGE OUT SETTING...: as nano does, but for less
  local stage=$1 out=$2
  shift 2
  "$python" -m train "$stage" --config "$stage-nano" --out "$out" --set "lessons=$lessons" "check=$check" micro_batches=2 \
    micro_batch_tokens=2048 check_every=10000 check_batches=12 checkpoint_every=250 "$@"
}
for seed in "${seeds[@]}"; do
  for router in "${routers[@]}"; do
    out=$run/$router/seed-$seed
    learn stage1 "$out/stage1" start=nano "shape=${shapes[$router]}" "seed=$seed" "steps=$steps1" warmup=50
    learn stage2 "$out/stage2" "start=$out/stage1/model" "seed=$((100 + seed))" "steps=$steps2" warmup=30
  done
done
"$python" -m train.compare_runs "$run" "${routers[@]}"
