"""`python -m most_core.parity CONFIG.json WEIGHTS.safetensors IO.safetensors`: are we exactly the public model?

Compares our forward and backward pass with numbers recorded from the public MoST code (its layout is in
tests/data/golden/README.md) and prints the largest difference of each quantity. Exit 1 above 1e-4, or if any token
chose another expert.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from most_core.checkpoint_files import load_weights, read_json
from most_core.config import MostConfig
from most_core.convert import read_upstream_state
from most_core.model import MostForCausalLM, MostMoe
from most_core.router import balance_loss

TOLERANCE = 1e-4
IGNORED_LABELS = 8  # the recording ignored the first eight positions
RECORDED = ("input_ids", "modality_marks", "logits", "train.loss", "train.grad.embed_norm")
RECORDED_PER_LAYER = ("topk_index", "topk_weight", "moe_input", "moe_output", "aux_loss", "gate_grad")


def compare(config: MostConfig, state: Mapping[str, torch.Tensor], io: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Largest absolute difference of each recorded quantity; `expert choice` counts the tokens that differ."""
    config.aux_loss_form = "upstream"
    for name in (*RECORDED, *(f"layer{i}.{name}" for i in config.moe_layers for name in RECORDED_PER_LAYER)):
        if name not in io:
            raise ValueError(f"tensor {name} is missing from IO: give the recording that belongs to CONFIG")
    try:
        model = read_upstream_state(MostForCausalLM(config), state).float()
    except ValueError as error:
        raise ValueError(f"WEIGHTS do not belong to CONFIG: {error}") from None
    moes = {i: layer.mlp for i, layer in enumerate(model.model.layers) if isinstance(layer.mlp, MostMoe)}
    ids, modality = io["input_ids"], io["modality_marks"]
    labels = ids.clone()
    labels[:, :IGNORED_LABELS] = -100

    seen: dict[int, dict[str, torch.Tensor]] = {i: {} for i in moes}
    for i, moe in moes.items():
        moe.register_forward_hook(lambda _, args, out, i=i: seen[i].update(input=args[0], output=out[0]))
        moe.gate.register_forward_hook(
            lambda _, args, out, i=i: seen[i].update(logits=out[0], weights=out[1], indices=out[2])
        )

    differences: dict[str, float] = {}

    def record(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        gap = (ours.detach().double().reshape(-1) - theirs.double().reshape(-1)).abs().max().item()
        differences[name] = max(differences.get(name, 0.0), gap)

    model.eval()
    with torch.no_grad():
        record("logits", model(input_ids=ids, modality_ids=modality).logits, io["logits"])
    for i in moes:
        order = seen[i]["indices"].sort(-1)
        wrong = (order.values != io[f"layer{i}.topk_index"]).any(-1).sum().item()
        differences["expert choice"] = differences.get("expert choice", 0) + wrong
        record("expert weights", seen[i]["weights"].gather(-1, order.indices), io[f"layer{i}.topk_weight"])
        record("moe input", seen[i]["input"], io[f"layer{i}.moe_input"])
        record("moe output", seen[i]["output"], io[f"layer{i}.moe_output"])

    model.train()
    output = model(input_ids=ids, modality_ids=modality, labels=labels)
    output.loss.backward()
    balance = 0 if output.aux_loss is None else output.aux_loss
    record("cross entropy", output.loss - balance, io["train.loss"])
    for i, moe in moes.items():
        allowed = moe.gate.allowed(modality.reshape(-1))
        loss = balance_loss(seen[i]["logits"], seen[i]["indices"], allowed, modality, config)
        record("auxiliary loss", loss, io[f"layer{i}.aux_loss"])
        record("gate gradient", moe.gate.weight.grad, io[f"layer{i}.gate_grad"])
    record("embedding gradient norm", model.model.embed_tokens.weight.grad.norm(), io["train.grad.embed_norm"])
    return differences


def _read_config(path: Path) -> MostConfig:
    settings = read_json(path)
    try:
        return MostConfig(**settings)
    except Exception as error:  # strict fields, our checks and plain arithmetic each raise their own kind
        raise ValueError(f"{path} describes no model: {' '.join(str(error).split())}") from None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m most_core.parity", description=__doc__.split("\n")[0])
    for name in ("config", "weights", "io"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args(argv)
    try:
        differences = compare(_read_config(args.config), load_weights(args.weights), load_weights(args.io))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failed = [name for name, gap in differences.items() if not gap <= TOLERANCE]
    for name, gap in differences.items():
        print(f"{name:26s} {gap:9.2e}  {'FAIL' if name in failed else 'ok'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
