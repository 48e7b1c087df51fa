"""Products of matrices in bfloat16 on CPUs that are fast at it, while weights and sums stay in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def half_products() -> Iterator[None]:
    """For the forward pass of a training on a CPU; routers choose in float32 all the same.

    Attention is computed as plain products: PyTorch's fused kernel has a slow backward pass in bfloat16.
    """
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()  # this name says cuda and means all devices
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(allowed)
