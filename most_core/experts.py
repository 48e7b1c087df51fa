"""The routed experts: two layouts of the same weights, and the ways to compute them.

`FusedExperts` keeps all experts of a layer in two 3-D parameters (fast, trainable); `PerExpertLinears` keeps
plain `nn.Linear` modules, the only layout that bitsandbytes can quantize. On disk both are DeepSeek's
per-expert names, so either layout loads either checkpoint.

Shapes: N tokens, K experts per token, S = N*K token-expert pairs, E experts, H hidden, I expert width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations.moe import (
    ALL_EXPERTS_FUNCTIONS,
    batched_mm_experts_forward,
    grouped_mm_experts_forward,
)
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Experts, DeepseekV2MLP

from most_core.config import MostConfig

ROWS_MULTIPLE = 64  # of the tokens that an expert gets, in a training in bfloat16 on CPUs


class FusedExperts(DeepseekV2Experts):
    """`gate_up_proj` [E, 2I, H] and `down_proj` [E, H, I]; forward goes to the configured backend."""


class PerExpertLinears(nn.ModuleList):
    """One small gated MLP per expert, as DeepSeek's checkpoints name them."""

    def __init__(self, config: MostConfig) -> None:
        width = config.moe_intermediate_size
        super().__init__(DeepseekV2MLP(config, intermediate_size=width) for _ in range(config.n_routed_experts))

    def forward(self, hidden_NH: torch.Tensor, indices_NK: torch.Tensor, weights_NK: torch.Tensor) -> torch.Tensor:
        return sum_over_experts(hidden_NH, indices_NK, weights_NK, len(self), lambda e, x: self[e](x))


def sum_over_experts(
    hidden_NH: torch.Tensor,
    indices_NK: torch.Tensor,
    weights_NK: torch.Tensor,
    num_experts: int,
    expert: Callable[[int, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Weighted sum of `expert(e, rows)` over each token's experts; only experts that got a token are called."""
    k = indices_NK.shape[1]
    if len(hidden_NH) == 0:
        return hidden_NH
    order, spans = sort_by_expert(indices_NK, num_experts)
    # split, not slices: the backward of a slice fills as much as all rows take with zeros, once for each expert
    parts = hidden_NH[order // k].split([stop - start for _, start, stop in spans])
    outputs = torch.cat([expert(e, rows) for (e, _, _), rows in zip(spans, parts)])
    weighted = outputs * weights_NK.reshape(-1)[order, None]  # float32, as the weights are
    back = torch.empty_like(weighted).index_copy_(0, order, weighted)
    return back.view(-1, k, weighted.shape[-1]).sum(1).to(hidden_NH.dtype)


def sort_by_expert(indices_NK: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, list[tuple[int, int, int]]]:
    """(order [S] of the pairs sorted by expert, [(expert, start, stop)] of the experts that were hit)."""
    flat = indices_NK.reshape(-1)
    order = flat.argsort(stable=True)
    return order, list(_spans(torch.bincount(flat, minlength=num_experts).tolist()))


def _spans(counts: list[int]) -> Iterator[tuple[int, int, int]]:
    start = 0
    for expert, count in enumerate(counts):
        if count:
            yield expert, start, start + count
            start += count


def most_experts_forward(
    self: FusedExperts, hidden_NH: torch.Tensor, indices_NK: torch.Tensor, weights_NK: torch.Tensor
) -> torch.Tensor:
    """Our backend: loop over the experts hit on CPU; on CUDA grouped products, or a gather for a few tokens.

    On CPU a gather copies every chosen matrix (30 times slower at full width) and grouped_mm gains nothing.
    """
    if hidden_NH.device.type == "cuda":
        few = indices_NK.numel() <= self.num_experts // 4
        forward = batched_mm_experts_forward if few else grouped_mm_experts_forward
        return forward(self, hidden_NH, indices_NK, weights_NK)
    # unbind, not indexing: its backward stacks all experts' gradients once (idle ones get zeros).
    gate_up, down = self.gate_up_proj.unbind(), self.down_proj.unbind()

    def gated(e: int, rows: torch.Tensor) -> torch.Tensor:
        gate, up = F.linear(rows, gate_up[e]).chunk(2, dim=-1)
        return self.act_fn(gate) * up

    given = (hidden_NH, indices_NK, weights_NK, self.num_experts)
    if torch.is_autocast_enabled("cpu"):
        return _sum_over_padded(*given, lambda e, rows, weights: F.linear(gated(e, rows) * weights, down[e]))
    return sum_over_experts(*given, lambda e, rows: F.linear(gated(e, rows), down[e]))


def _sum_over_padded(
    hidden_NH: torch.Tensor,
    indices_NK: torch.Tensor,
    weights_NK: torch.Tensor,
    num_experts: int,
    expert: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """`sum_over_experts` in bfloat16 for a training on CPUs: each expert's rows are filled up with zeros to a multiple.

    oneDNN plans a new product for every number of rows that it has not met, which takes longer than the product;
    `expert` weights its rows inside, where they are narrow.
    """
    dtype, count, k = torch.get_autocast_dtype("cpu"), len(hidden_NH), indices_NK.shape[1]
    if count == 0:
        return hidden_NH
    order, spans = sort_by_expert(indices_NK, num_experts)
    rows = torch.tensor([stop - start for _, start, stop in spans])
    padded = (rows + ROWS_MULTIPLE - 1) // ROWS_MULTIPLE * ROWS_MULTIPLE
    gaps = (padded - rows).cumsum(0) - (padded - rows)  # before each expert's rows
    places = torch.arange(len(order)) + gaps.repeat_interleave(rows)
    tokens = torch.full((int(padded.sum()),), count).index_copy_(0, places, order // k)
    weights = weights_NK.new_zeros(len(tokens), 1).index_copy(0, places, weights_NK.reshape(-1)[order, None])
    # embedding, not indexing: its backward adds rows up three times as fast
    with_zeros = torch.cat([hidden_NH.to(dtype), hidden_NH.new_zeros(1, hidden_NH.shape[1], dtype=dtype)])
    parts = zip(spans, F.embedding(tokens, with_zeros).split(padded.tolist()), weights.to(dtype).split(padded.tolist()))
    made = torch.cat([expert(e, part, weight) for (e, _, _), part, weight in parts])
    back = torch.empty_like(order).index_copy_(0, order, places)
    return F.embedding(back, made).view(count, k, -1).sum(1).to(hidden_NH.dtype)


ALL_EXPERTS_FUNCTIONS.register("most", most_experts_forward)


class PackedExperts:
    """A frozen bfloat16 copy of a layer's experts in oneDNN's blocked layout, for inference on CPUs.

    A plain linear packs its weights anew in every call; packed once, a layer reads them at memory speed: 1.3 to 2.2
    times as fast as the plain loop (`python -m bench moe`).
    """

    def __init__(self, experts: FusedExperts) -> None:
        pack = torch.ops.mkldnn._reorder_linear_weight
        rows = 24  # tokens per expert that the layout is tuned for
        width = experts.down_proj.shape[-1]
        self.num_experts = experts.num_experts
        self.gate = [pack(w[:width].detach().contiguous(), rows) for w in experts.gate_up_proj]
        self.up = [pack(w[width:].detach().contiguous(), rows) for w in experts.gate_up_proj]
        self.down = [pack(w.detach().contiguous(), rows) for w in experts.down_proj]

    def __call__(self, hidden_NH: torch.Tensor, indices_NK: torch.Tensor, weights_NK: torch.Tensor) -> torch.Tensor:
        linear = torch.ops.mkldnn._linear_pointwise
        order, spans = sort_by_expert(indices_NK, self.num_experts)
        token = order // indices_NK.shape[1]
        rows, weights = hidden_NH[token], weights_NK.reshape(-1)[order, None]
        output = torch.zeros(hidden_NH.shape, dtype=torch.float32)
        for e, start, stop in spans:
            gated = linear(rows[start:stop], self.gate[e], None, "swish", [], "")
            gated = linear.binary(rows[start:stop], gated, self.up[e], None, "mul")
            made = linear(gated, self.down[e], None, "none", [], "").float()
            output.index_add_(0, token[start:stop], made.mul_(weights[start:stop]))
        return output.to(hidden_NH.dtype)


def pack_experts(layers: list[nn.Module]) -> list[nn.Module | PackedExperts]:
    """Packed copies of all layers' experts where this machine has the instructions and the memory, else themselves."""
    return [PackedExperts(experts) for experts in layers] if _worth_packing(layers) else layers


def _worth_packing(layers: list[nn.Module]) -> bool:
    if not layers or not isinstance(layers[0], FusedExperts) or layers[0].config.hidden_act != "silu":
        return False
    weights = [p for experts in layers for p in experts.parameters()]
    if any(w.device.type != "cpu" or w.dtype != torch.bfloat16 for w in weights):
        return False
    copies = sum(2 * w.numel() for w in weights)
    fast = torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()
    return fast and copies < _available_memory() / 2


def _available_memory() -> int:
    """Bytes that new allocations may take, file caches included; 0 where the system does not say."""
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text().splitlines() if meminfo.is_file() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
