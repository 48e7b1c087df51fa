"""The step that a GPU captures, run as it is on the CPU: same logits and routing as the lean decoder."""

import pytest
import torch

from most_core.config import MostConfig
from most_core.decoder import LeanDecoder
from most_core.graph_decoder import LENGTH_STEP, GraphDecoder
from most_core.model import MostForCausalLM, MostPerExpertForCausalLM

SHAPES = {
    "folded attention": {},
    "absorbed attention": {"kv_lora_rank": 64},
    "low-rank queries": {"q_lora_rank": 24},
    "plain router": {"use_modality_aware_routing": False},
    "no shared experts": {"n_shared_experts": 0},
    "dense": {"feed_forward": "dense"},
}


def pair(**overrides):
    torch.manual_seed(0)
    model = MostForCausalLM(MostConfig.tiny(**overrides)).eval()
    return [kind(model, slots=3, context=LENGTH_STEP + 200) for kind in (LeanDecoder, GraphDecoder)]


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_of_mixed_slots_equal_the_lean_decoder(shape):
    lean, graph = pair(**SHAPES[shape])
    unit = lean.config.tokens.first_unit
    for decoder in (lean, graph):
        for slot, length in enumerate((40, LENGTH_STEP - 4, 7)):
            decoder.prefill(slot, [(7 * i) % 200 + 3 for i in range(length)])
    for k in range(8):  # slot 1 crosses into the next rounded length
        ids = [5 + k, unit + k, 9]
        torch.testing.assert_close(graph.step([0, 1, 2], ids), lean.step([0, 1, 2], ids), atol=1e-4, rtol=0)
        if lean.config.uses_experts:
            assert torch.equal(graph.routing()[1].sort(-1).values, lean.routing()[1].sort(-1).values)
            torch.testing.assert_close(graph.routing()[0], lean.routing()[0])


def test_a_row_may_sit_in_any_slot():
    lean, graph = pair()
    for decoder in (lean, graph):
        decoder.prefill(2, [5, 6, 7])
    torch.testing.assert_close(graph.step([2], [8]), lean.step([2], [8]), atol=1e-5, rtol=0)
    assert graph.length(2) == 4
    assert graph.length(0) == 0


@pytest.mark.parametrize("mode", ["next", "zero"])
def test_knocked_out_experts_stay_off_until_reset(mode):
    lean, graph = pair()
    for decoder in (lean, graph):
        decoder.prefill(0, [5, 6, 7])
        decoder.knock_out(0, [(1, 0), (1, 1)], mode)
    torch.testing.assert_close(graph.step([0], [8]), lean.step([0], [8]), atol=1e-5, rtol=0)
    assert not set(graph.routing()[1][0].flatten().tolist()) & {0, 1}
    graph.reset(0)
    lean.reset(0)
    for decoder in (lean, graph):
        decoder.prefill(0, [5, 6, 7])
    torch.testing.assert_close(graph.step([0], [8]), lean.step([0], [8]), atol=1e-5, rtol=0)


def test_a_full_context_is_refused():
    _, graph = pair()
    graph.prefill(0, [3] * graph.context)
    with pytest.raises(ValueError, match="context"):
        graph.step([0], [3])


def test_only_fused_experts_can_be_captured():
    model = MostPerExpertForCausalLM(MostConfig.tiny())
    assert not GraphDecoder.suits(model)
    with pytest.raises(ValueError, match="LeanDecoder"):
        GraphDecoder(model)
