"""All ways to compute the experts give the same sums and gradients."""

import pytest
import torch

from most_core import MostConfig
from most_core.experts import FusedExperts, PerExpertLinears, sort_by_expert

CONFIG = MostConfig.tiny()
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2}
COUNTS = [0, 1, 7, 64]


def fused(backend, dtype=torch.float32):
    config = MostConfig.tiny()
    config._experts_implementation = backend
    experts = FusedExperts(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return experts.to(dtype)


def per_expert(source):
    experts = PerExpertLinears(CONFIG).to(source.gate_up_proj.dtype)
    with torch.no_grad():
        for e, mlp in enumerate(experts):
            gate, up = source.gate_up_proj[e].chunk(2)
            mlp.gate_proj.weight.copy_(gate)
            mlp.up_proj.weight.copy_(up)
            mlp.down_proj.weight.copy_(source.down_proj[e])
    return experts


def tokens(count, dtype=torch.float32, experts=8):
    generator = torch.Generator().manual_seed(count)
    hidden = torch.randn(count, 32, generator=generator).to(dtype)
    probs = torch.randn(count, 8, generator=generator).softmax(-1)
    weights, indices = probs[:, :experts].topk(2, sorted=False)
    return hidden, indices, weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("count", COUNTS)
def test_our_backend_equals_transformers_eager(count, dtype):
    hidden, indices, weights = tokens(count, dtype)
    ours = fused("most", dtype)(hidden, indices, weights)
    eager = fused("eager", dtype)(hidden, indices, weights)
    assert ours.dtype == dtype
    assert ours.shape == (count, 32)
    torch.testing.assert_close(ours, eager, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("count", COUNTS)
def test_per_expert_linears_equal_the_fused_layout(count, dtype):
    hidden, indices, weights = tokens(count, dtype)
    experts = fused("most", dtype)
    one_by_one = per_expert(experts)(hidden, indices, weights)
    assert one_by_one.dtype == dtype
    torch.testing.assert_close(
        one_by_one, experts(hidden, indices, weights), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
    )


def test_sum_equals_one_token_and_one_expert_at_a_time():
    hidden, indices, weights = tokens(7)
    experts = fused("most")
    expected = torch.zeros(7, 32)
    for n in range(7):
        for e, weight in zip(indices[n].tolist(), weights[n].tolist()):
            gate, up = (experts.gate_up_proj[e] @ hidden[n]).chunk(2)
            expected[n] += weight * (experts.down_proj[e] @ (torch.nn.functional.silu(gate) * up))
    torch.testing.assert_close(experts(hidden, indices, weights), expected, atol=1e-6, rtol=1e-5)


def test_our_backend_is_the_one_a_model_uses_by_default(model):
    assert model.config._experts_implementation == "most"


@pytest.mark.parametrize("count", [1, 7, 64])
def test_gradients_equal_eagers(count):
    results = []
    for backend in ("most", "eager"):
        experts = fused(backend)
        hidden, indices, weights = tokens(count)
        hidden.requires_grad_()
        weights.requires_grad_()
        experts(hidden, indices, weights).square().sum().backward()
        results.append([hidden.grad, weights.grad, experts.gate_up_proj.grad, experts.down_proj.grad])
    for ours, eager in zip(*results):
        torch.testing.assert_close(ours, eager, atol=1e-5, rtol=1e-4)


def test_experts_without_a_token_get_a_zero_gradient_and_not_none():
    """Or ranks of a distributed run would wait for each other for ever."""
    experts = fused("most")
    hidden, indices, weights = tokens(7, experts=4)
    experts(hidden, indices, weights).sum().backward()
    for parameter in experts.parameters():
        assert parameter.grad is not None
        assert not parameter.grad[4:].any()
        assert parameter.grad[:4].abs().sum() > 0


def test_only_experts_that_got_a_token_are_called():
    indices = torch.tensor([[5, 1], [1, 7]])
    order, spans = sort_by_expert(indices, 8)
    assert spans == [(1, 0, 2), (5, 2, 3), (7, 3, 4)]
    assert indices.flatten()[order].tolist() == [1, 1, 5, 7]
