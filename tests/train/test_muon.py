"""Muon: AdamW where it says so, orthogonal steps elsewhere, and a state that goes on where it was saved."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from train.muon import Muon, orthogonal, shared


@pytest.mark.parametrize("shape", [(24, 64), (64, 24), (5, 24, 64)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    given = torch.randn(shape) * 7
    made = orthogonal(given).float()
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.6
    assert values.max() < 1.3
    u, _, vh = torch.linalg.svd(given, full_matrices=False)
    assert torch.cosine_similarity(made.flatten(), (u @ vh).flatten(), dim=0) > 0.95


def test_stacked_matrices_are_each_made_orthogonal() -> None:
    torch.manual_seed(0)
    pair = torch.randn(3, 32, 40)
    (together,) = shared([pair], stacked=2)
    upper, lower = (shared([half.contiguous()])[0] for half in pair.chunk(2, dim=1))
    torch.testing.assert_close(together, torch.cat([upper, lower], dim=1), rtol=0.05, atol=0.02)
    assert not torch.allclose(together, shared([pair])[0], atol=0.05)


def test_other_groups_learn_as_with_adamw() -> None:
    torch.manual_seed(0)
    mine, theirs = nn.Linear(8, 4), nn.Linear(8, 4)
    theirs.load_state_dict(mine.state_dict())
    ours = Muon([{"params": list(mine.parameters()), "weight_decay": 0.1}], lr=0.01)
    adamw = torch.optim.AdamW(theirs.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for _ in range(5):
        given = torch.randn(16, 8)
        for model, optimizer in ((mine, ours), (theirs, adamw)):
            model(given).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(mine.weight, theirs.weight)
    torch.testing.assert_close(mine.bias, theirs.bias)


def test_a_matrix_moves_by_steps_of_one_size_whatever_its_gradient() -> None:
    moved = []
    for scale in (1e-4, 1e4):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.zeros(48, 48))
        optimizer = Muon([{"params": [weight], "weight_decay": 0.0, "orthogonal": True}], lr=0.01)
        weight.grad = torch.randn(48, 48) * scale
        optimizer.step()
        moved.append(weight.detach().clone())
    assert torch.cosine_similarity(moved[0].flatten(), moved[1].flatten(), dim=0) > 0.99
    assert moved[0].square().mean().sqrt() == pytest.approx(0.2 * 0.01, rel=0.2)


def test_a_saved_state_goes_on_to_the_same_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12, bias=False), nn.Tanh(), nn.Linear(12, 3))
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    rest = [parameter for parameter in model.parameters() if parameter.ndim < 2]

    def optimizer_of(matrices: list, rest: list) -> Muon:
        groups = [{"params": matrices, "weight_decay": 0.1, "orthogonal": True}, {"params": rest, "weight_decay": 0.0}]
        return Muon(groups, lr=0.02)

    optimizer = optimizer_of(matrices, rest)
    data = torch.randn(6, 10, 6)
    for number in range(3):
        model(data[number]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    other = copy.deepcopy(model)
    again = optimizer_of(
        [parameter for parameter in other.parameters() if parameter.ndim == 2],
        [parameter for parameter in other.parameters() if parameter.ndim < 2],
    )
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for number in range(3, 6):
        for learner, steps in ((model, optimizer), (other, again)):
            learner(data[number]).square().mean().backward()
            steps.step()
            steps.zero_grad()
    for mine, theirs in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
