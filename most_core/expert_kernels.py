"""The chosen experts of a few tokens on a GPU, read where they lie.

A gather in front of a batched product writes and reads every chosen matrix once more, three times the traffic; these
two Triton kernels read each once. They hold no state and synchronise nothing, so a CUDA graph can capture them.

Shapes: B tokens, K experts per token, S = B*K pairs, E experts, H hidden, I expert width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU-only builds of torch come without it
    triton = None

if triton is not None:

    @triton.jit
    def _gate_up(
        x_ptr,
        weight_ptr,
        choice_ptr,
        scale_ptr,
        out_ptr,
        K: tl.constexpr,
        SIZE: tl.constexpr,
        WIDTH: tl.constexpr,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
    ):
        pair, block = tl.program_id(0), tl.program_id(1)
        rows = block * ROWS + tl.arange(0, ROWS)
        expert = tl.load(choice_ptr + pair).to(tl.int64)
        gate_ptr = weight_ptr + expert * 2 * WIDTH * SIZE + rows[:, None] * SIZE
        gate, up = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
        for start in range(0, SIZE, COLUMNS):
            columns = start + tl.arange(0, COLUMNS)
            inside = (rows[:, None] < WIDTH) & (columns[None, :] < SIZE)
            x = tl.load(x_ptr + (pair // K) * SIZE + columns, mask=columns < SIZE, other=0.0).to(tl.float32)
            w = tl.load(gate_ptr + columns[None, :], mask=inside, other=0.0).to(tl.float32)
            gate += tl.sum(w * x[None, :], axis=1)
            w = tl.load(gate_ptr + WIDTH * SIZE + columns[None, :], mask=inside, other=0.0).to(tl.float32)
            up += tl.sum(w * x[None, :], axis=1)
        scale = tl.load(scale_ptr + pair).to(tl.float32)
        tl.store(out_ptr + pair * WIDTH + rows, gate * tl.sigmoid(gate) * up * scale, mask=rows < WIDTH)

    @triton.jit
    def _down(
        hidden_ptr,
        weight_ptr,
        choice_ptr,
        out_ptr,
        K: tl.constexpr,
        SIZE: tl.constexpr,
        WIDTH: tl.constexpr,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
    ):
        token, block = tl.program_id(0), tl.program_id(1)
        rows = block * ROWS + tl.arange(0, ROWS)
        total = tl.zeros([ROWS], tl.float32)
        for k in range(K):
            pair = token * K + k
            expert = tl.load(choice_ptr + pair).to(tl.int64)
            down_ptr = weight_ptr + expert * SIZE * WIDTH + rows[:, None] * WIDTH
            for start in range(0, WIDTH, COLUMNS):
                columns = start + tl.arange(0, COLUMNS)
                inside = (rows[:, None] < SIZE) & (columns[None, :] < WIDTH)
                hidden = tl.load(hidden_ptr + pair * WIDTH + columns, mask=columns < WIDTH, other=0.0)
                w = tl.load(down_ptr + columns[None, :], mask=inside, other=0.0).to(tl.float32)
                total += tl.sum(w * hidden[None, :], axis=1)
        tl.store(out_ptr + token * SIZE + rows, total, mask=rows < SIZE)


def mix_with_kernels(
    hidden_BH: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    choice_BK: torch.Tensor,
    weights_BK: torch.Tensor,
) -> torch.Tensor:
    """Weighted sum over each token's experts (SiLU-gated), by the Triton kernels."""
    (batch, size), k, width = hidden_BH.shape, choice_BK.shape[1], down.shape[2]
    made = torch.empty(batch * k, width, dtype=torch.float32, device=hidden_BH.device)
    output = torch.empty_like(hidden_BH)
    rows, columns = 8, 512
    _gate_up[(batch * k, triton.cdiv(width, rows))](
        hidden_BH, gate_up, choice_BK, weights_BK, made, k, size, width, ROWS=rows, COLUMNS=columns
    )
    _down[(batch, triton.cdiv(size, rows))](made, down, choice_BK, output, k, size, width, ROWS=rows, COLUMNS=columns)
    return output


def mix_with_gather(
    hidden_BH: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    choice_BK: torch.Tensor,
    weights_BK: torch.Tensor,
) -> torch.Tensor:
    """The same in plain PyTorch: for machines without Triton, and the kernels' reference."""
    gate, up = torch.einsum("bkih,bh->bki", gate_up[choice_BK], hidden_BH).chunk(2, dim=-1)
    made = F.silu(gate) * up * weights_BK[..., None].to(gate.dtype)
    return torch.einsum("bkhi,bki->bh", down[choice_BK], made)
