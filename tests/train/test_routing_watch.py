"""Which experts a training model uses, counted by hand."""

import pytest
import torch
from torch import nn

from most_core import MostConfig
from most_core.config import AUDIO, TEXT
from most_core.router import MostRouter
from train.routing_watch import RoutingWatch

CONFIG = MostConfig.tiny()  # experts 0 to 3 for text, 4 to 7 for audio, two a token
GROUPS = ([0, 1, 2, 3], [4, 5, 6, 7])


class FixedRouter(MostRouter):
    """Chooses what it is told to."""

    def forward(self, choices, modality):
        return choices.float(), choices.float(), choices


class Layers(nn.Module):
    """Two routers, each of which is given its own choices."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.layers = nn.ModuleList(nn.ModuleDict({"gate": FixedRouter(CONFIG, GROUPS)}) for _ in range(2))

    def forward(self, modality, *choices):
        for layer, chosen in zip(self.layers, choices):
            layer["gate"](torch.tensor(chosen), torch.tensor(modality))


EVEN = [[0, 1], [2, 3], [4, 5], [6, 7]]
SAMPLE = [TEXT, TEXT, AUDIO, AUDIO]


@pytest.fixture
def layers():
    return Layers()


@pytest.fixture
def watch(layers):
    return RoutingWatch(layers)


def test_even_use_has_balance_one_and_no_leakage(layers, watch):
    with watch.watching(True):
        layers(SAMPLE, EVEN, EVEN)
    expected = {"balance/layer_0": 1.0, "leakage/layer_0": 0.0, "balance/layer_1": 1.0, "leakage/layer_1": 0.0}
    assert watch.figures() == expected


@pytest.mark.parametrize(
    ("choices", "balance", "leakage"),
    [
        ([[0, 1], [0, 1], [4, 5], [6, 7]], 2.0, 0.0),  # two of four text experts idle: 2 over a mean of 1
        ([[0, 1], [2, 3], [7, 4], [7, 4]], 2.0, 0.0),  # the same of audio, the worse group counts
        ([[0, 1], [0, 2], [7, 4], [7, 4]], 2.0, 0.0),  # 2 over 1 in both
        ([[0, 1], [2, 3], [4, 5], [4, 3]], 8 / 3, 1 / 8),  # an audio token meets a text expert: 2 over 3/4
        ([[4, 5], [6, 7], [0, 1], [2, 3]], 0.0, 1.0),  # everybody is in the wrong group
    ],
)
def test_balance_and_leakage_by_hand(layers, watch, choices, balance, leakage):
    with watch.watching(True):
        layers(SAMPLE, EVEN, choices)
    figures = watch.figures()
    assert (figures["balance/layer_0"], figures["leakage/layer_0"]) == (1.0, 0.0)
    assert figures["balance/layer_1"] == pytest.approx(balance)
    assert figures["leakage/layer_1"] == pytest.approx(leakage)


def test_batches_add_up_while_watching(layers, watch):
    with watch.watching(True):
        layers([TEXT, TEXT], [[0, 1], [0, 1]], [[0, 1], [0, 4]])
        layers([TEXT, TEXT], [[2, 3], [2, 3]], [[2, 3], [2, 3]])
    figures = watch.figures()
    assert figures["balance/layer_0"] == 1.0
    assert figures["balance/layer_1"] == pytest.approx(2 / (7 / 4))
    assert figures["leakage/layer_1"] == pytest.approx(1 / 8)


def test_nothing_is_counted_unless_asked_and_each_time_begins_anew(layers, watch):
    layers(SAMPLE, EVEN, EVEN)
    assert watch.figures() == {}
    with watch.watching(True):
        layers([TEXT], [[4, 5]], [[4, 5]])
    layers(SAMPLE, EVEN, EVEN)
    assert watch.figures()["leakage/layer_0"] == 1.0
    with watch.watching(False):
        layers(SAMPLE, EVEN, EVEN)
    assert watch.figures()["leakage/layer_0"] == 1.0
    with watch.watching(True):
        layers(SAMPLE, EVEN, EVEN)
    assert watch.figures()["leakage/layer_0"] == 0.0


def test_an_error_while_watching_ends_it(layers, watch):
    with pytest.raises(ValueError, match="no number"), watch.watching(True):
        raise ValueError("no number")
    layers(SAMPLE, EVEN, EVEN)
    assert watch.figures() == {}


def ids_of(config):
    """Words, units and frames."""
    table = config.tokens
    return torch.tensor([[1, 5, 9, table.first_unit, table.first_unit + 3, table.frame, 7, table.first_unit + 9]])


def test_every_moe_layer_of_a_model_is_watched_and_nothing_leaks(make_model):
    model = make_model()
    watch, table = RoutingWatch(model), model.config.tokens
    ids = ids_of(model.config)
    ids[ids == table.frame] = table.first_unit  # no features here
    with torch.no_grad(), watch.watching(True):
        model(input_ids=ids)
    figures = watch.figures()
    assert set(figures) == {f"{name}/layer_{n}" for name in ("balance", "leakage") for n in (1, 2)}
    assert [figures[f"leakage/layer_{n}"] for n in (1, 2)] == [0.0, 0.0]
    assert all(figures[f"balance/layer_{n}"] >= 1 for n in (1, 2))
    for layer in (1, 2):
        assert watch.counts[layer].sum(1).tolist() == [4 * CONFIG.num_experts_per_tok] * 2
