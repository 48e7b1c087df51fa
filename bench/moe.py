"""One MoE layer at full width (2048; 64 experts of 1408; top-6): ours against the plain per-expert loop."""

from __future__ import annotations

import argparse
import statistics

import torch
import torch.nn.functional as F

from bench.report import Report, interleaved, median_ratio
from most_core.config import MostConfig
from most_core.experts import FusedExperts, PerExpertLinears, pack_experts

TOKENS = (1, 16, 256, 2048)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=None, help="torch threads (default: all cores)")
    parser.add_argument("--rounds", type=int, default=9)


def run(args: argparse.Namespace) -> Report:
    report = Report("moe")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, args.dtype)
    torch.manual_seed(0)
    config = MostConfig.lite(num_hidden_layers=2)
    config._experts_implementation = "most"
    with torch.device(device), torch.inference_mode():
        plain = PerExpertLinears(config).to(dtype)
        fused = FusedExperts(config).to(dtype)
        for e, expert in enumerate(plain):
            fused.gate_up_proj[e].copy_(torch.cat([expert.gate_proj.weight, expert.up_proj.weight]))
            fused.down_proj[e].copy_(expert.down_proj.weight)
        [ours] = pack_experts([fused])
        for tokens in TOKENS:
            hidden = torch.randn(tokens, config.hidden_size, dtype=dtype)
            probs = torch.randn(tokens, config.n_routed_experts).softmax(-1)
            weights, indices = probs.topk(config.num_experts_per_tok)
            gap = (ours(hidden, indices, weights) - public_loop(plain, hidden, indices, weights)).abs().max()
            if gap > 0.01:
                raise ValueError(f"outputs differ by {gap:.3g}: the comparison would be void")
            runs = {
                "ours": lambda h=hidden, i=indices, w=weights: ours(h, i, w),
                "loop": lambda h=hidden, i=indices, w=weights: public_loop(plain, h, i, w),
            }
            seconds = interleaved(runs, args.rounds)
            report.figures[f"ratio_loop_{tokens}"] = median_ratio(seconds["ours"], seconds["loop"])
            report.figures[f"ours_ms_{tokens}"] = statistics.median(seconds["ours"]) * 1e3
    report.notes.append(
        f"{args.dtype} on {device}, {torch.get_num_threads()} threads, packed weights: {ours is not fused}"
    )
    return report


def public_loop(
    experts: PerExpertLinears, hidden: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The way of the public code at inference: sort the pairs by expert, loop over the modules, scatter back."""
    counts = torch.zeros(len(hidden), len(experts), dtype=torch.long, device=hidden.device).scatter_(1, indices, 1)
    order = indices.view(-1).argsort()
    rows, outputs, start = hidden[order // indices.shape[1]], [], 0
    for expert, count in zip(experts, counts.sum(0).tolist()):
        if count:
            part = rows[start : start + count]
            gated = F.silu(expert.gate_proj(part)) * expert.up_proj(part)
            outputs.append(expert.down_proj(gated))
            start += count
    made = torch.cat(outputs)
    back = torch.empty_like(made)
    back[order] = made
    weighted = back.view(*indices.shape, -1).to(weights.dtype).mul_(weights[..., None])
    return weighted.sum(1).to(hidden.dtype)
