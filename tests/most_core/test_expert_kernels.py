"""The Triton kernels, run by Triton's interpreter in a process of its own, and their plain twin."""

import os
import subprocess
import sys

import pytest
import torch

from most_core import expert_kernels
from most_core.config import MostConfig
from most_core.experts import FusedExperts


def test_gather_equals_the_experts_module():
    torch.manual_seed(0)
    config = MostConfig.tiny()
    config._experts_implementation = "most"
    experts = FusedExperts(config)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    hidden, weights = torch.randn(5, 32), torch.rand(5, 2)
    choice = torch.randint(0, 8, (5, 2))
    made = expert_kernels.mix_with_gather(hidden, experts.gate_up_proj, experts.down_proj, choice, weights)
    torch.testing.assert_close(made, experts(hidden, choice, weights), atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(expert_kernels.triton is None, reason="this build of torch comes without Triton")
def test_kernels_equal_gather_for_widths_that_fill_no_block():
    script = """
import torch
from most_core.expert_kernels import mix_with_gather, mix_with_kernels
torch.manual_seed(0)
for experts, width, size, k, batch in ((8, 40, 48, 3, 2), (4, 7, 9, 1, 1), (4, 16, 600, 2, 3)):
    gate_up, down = torch.randn(experts, 2 * width, size), torch.randn(experts, size, width)
    x, choice, weights = torch.randn(batch, size), torch.randint(0, experts, (batch, k)), torch.rand(batch, k)
    ours = mix_with_kernels(x, gate_up, down, choice, weights)
    plain = mix_with_gather(x, gate_up, down, choice, weights)
    torch.testing.assert_close(ours, plain, atol=1e-3, rtol=1e-4)
print("equal")
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]
