"""Weights in gigabytes by precision: counted over the real layout, and checked on weights really quantized."""

from __future__ import annotations

import argparse
import tempfile

import torch

from bench.report import Report
from most_core.config import MostConfig
from most_core.generation import GenerationSettings
from most_core.loading import KEEP_PRECISE, load, untrained
from most_core.model import MostForCausalLM, MostPerExpertForCausalLM

BLOCK, NESTED_BLOCK = 64, 256  # bitsandbytes' block sizes, weights and (doubly quantized) scales


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", choices=("tiny", "nano", "lite"), default="lite")


def run(args: argparse.Namespace) -> Report:
    report = Report("memory")
    with torch.device("meta"):
        model = MostPerExpertForCausalLM(MostConfig.preset(args.preset))
    for precision in ("bf16", "int8", "nf4"):
        report.figures[f"{precision}_gb"] = weight_bytes(model, precision) / 1e9
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    report.figures["expert_share"] = experts / sum(p.numel() for p in model.parameters())
    report.figures["parameters_b"] = sum(p.numel() for p in model.parameters()) / 1e9

    real = untrained("nano")
    random = torch.Generator().manual_seed(0)
    text = torch.randint(3, real.tokens.first_unit, (4, 32), generator=random)
    units = torch.randint(0, real.tokens.num_units, (4, 32), generator=random) + real.tokens.first_unit
    ids = torch.cat([text, units], dim=1)  # both groups of experts
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        real.save(folder)
        bf16 = real.model.bfloat16()(ids).logits.float()
        for quantize in ("int8", "nf4"):
            small = load(folder, device="cpu", dtype=torch.bfloat16, quantize=quantize)
            logits = small.model(ids).logits.float()
            held = held_bytes(small.model)
            report.figures[f"nano_{quantize}_mb"] = held / 1e6
            report.figures[f"nano_{quantize}_plan_error"] = held / weight_bytes(small.model, quantize) - 1
            report.figures[f"nano_{quantize}_top1"] = (logits.argmax(-1) == bf16.argmax(-1)).float().mean().item()
            kl = (bf16.softmax(-1) * (bf16.log_softmax(-1) - logits.log_softmax(-1))).sum(-1).mean()
            report.figures[f"nano_{quantize}_kl"] = kl.item()
            if not small.answer("hello", settings=GenerationSettings(max_new_tokens=96)).units:
                raise ValueError(f"the {quantize} model generated nothing")
    report.notes.append(
        "nano: random weights, really quantized by load(); agreement with bfloat16 on 128 text and 128 unit tokens"
    )
    return report


def weight_bytes(model: MostForCausalLM, precision: str) -> int:
    """Bytes of the weights when every linear but the precious ones is held at `precision`, the rest in bfloat16."""
    total = 0
    quantized: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and not any(keep in name for keep in KEEP_PRECISE):
            if precision == "bf16":
                continue
            quantized.add(f"{name}.weight")
            total += _quantized_bytes(module.out_features, module.in_features, precision)
    return total + sum(2 * p.numel() for name, p in model.named_parameters() if name not in quantized)


def _quantized_bytes(rows: int, columns: int, precision: str) -> int:
    count = rows * columns
    if precision == "int8":
        return count + 4 * rows  # one float32 scale a row
    blocks = -(-count // BLOCK)
    return -(-count // 2) + blocks + 4 * (-(-blocks // NESTED_BLOCK))  # nibbles, uint8 scales, their float32 scales


def held_bytes(model: MostForCausalLM) -> int:
    """Bytes that a really quantized model holds, scales included."""
    total = 0
    for parameter in model.parameters():
        total += parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            total += state.absmax.numel() * state.absmax.element_size()
            if state.nested:
                total += state.state2.absmax.numel() * state.state2.absmax.element_size()
        scales = getattr(parameter, "SCB", None)
        if scales is not None:
            total += scales.numel() * scales.element_size()
    return total
