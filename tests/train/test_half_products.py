"""Products in bfloat16 change a loss and its gradient by rounding alone, and leave nothing switched on behind them."""

from __future__ import annotations

import pytest
import torch

from most_core.config import MostConfig
from most_core.model import MostForCausalLM
from train.half_products import half_products


def _gradients(half: bool) -> tuple[float, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    config = MostConfig.tiny()
    model = MostForCausalLM(config).float().train()
    ids = torch.randint(3, 200, (3, 40))
    ids[:, 5:12] = config.tokens.frame
    features = torch.randn(3, 7, config.speech_feature_size)
    context = half_products() if half else torch.enable_grad()
    with context:
        made = model(input_ids=ids, input_features=features, labels=ids.masked_fill(ids == config.tokens.frame, -100))
    made.loss.backward()
    return float(made.loss.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_loss_and_gradients_differ_by_rounding_alone() -> None:
    loss, exact = _gradients(half=False)
    other, rounded = _gradients(half=True)
    assert other == pytest.approx(loss, rel=2e-2)
    assert other != loss
    assert rounded.keys() == exact.keys()
    for name, gradient in exact.items():
        assert rounded[name].dtype == torch.float32
        alike = torch.cosine_similarity(rounded[name].flatten(), gradient.flatten(), dim=0)
        assert alike > 0.97 or gradient.abs().max() < 1e-6, name


def test_routers_choose_as_they_do_in_float32() -> None:
    torch.manual_seed(0)
    gate = MostForCausalLM(MostConfig.tiny()).float().model.layers[1].mlp.gate
    hidden, modality = torch.randn(50, 32), torch.randint(2, (50,))
    exact = gate(hidden, modality)
    with half_products():
        rounded = gate(hidden, modality)
    for mine, other in zip(rounded, exact):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


def test_nothing_stays_switched_on() -> None:
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    with half_products():
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")
    assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed() == before
