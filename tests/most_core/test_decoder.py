"""The lean decoder and the module decoder say what the model says, for every shape of model and batch."""

import threading

import pytest
import torch

from most_core import MostConfig
from most_core.decoder import PREFILL_CHUNK, LeanDecoder, ModuleDecoder
from most_core.loading import make_decoder
from most_core.router import MostRouter, modality_of

TOKENS = MostConfig.tiny().tokens
UNIT, FRAME = TOKENS.first_unit, TOKENS.frame
TEXT_ROW = [1, 40, 41, 42, 43, 44, 45]
MIXED_ROW = [1, 50, TOKENS.audio_start, UNIT, UNIT + 9, UNIT + 31, TOKENS.audio_end, 60, 61]
AUDIO_ROW = [UNIT + 3, UNIT + 4, UNIT + 5]
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 16.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
    "original_max_position_embeddings": 64,
}
LIMITED = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
PER_LAYER = {"text_expert_indices": [[0, 1], [2, 3, 4]], "audio_expert_indices": [[4, 5, 6], [7, 6, 3]]}
VARIANTS = {
    "tiny": {},
    "query rank": {"q_lora_rank": 8},
    "yarn": {"rope_parameters": YARN},
    "unfolded": {"kv_lora_rank": 64},
    "attention bias": {"attention_bias": True},
    "plain router": {"use_modality_aware_routing": False},
    "normalised": {"norm_topk_prob": True},
    "scaled": {"routed_scaling_factor": 2.0},
    "group limited": LIMITED,
    "no shared": {"n_shared_experts": 0},
    "three shared": {"n_shared_experts": 3},
    "dense": {"feed_forward": "dense"},
    "all moe": {"first_k_dense_replace": 0},
    "per layer": PER_LAYER,
    "tied": {"tie_word_embeddings": True},
    "no table": {"token_table": None},
}
DECODERS = [LeanDecoder, ModuleDecoder]


@torch.no_grad()
def expected(model, ids, features=None):
    """The model's own logits [T, V] of a whole row."""
    features = None if features is None else features[None]
    return model(input_ids=torch.tensor([ids]), input_features=features).logits[0]


def own_routing(model, ids):
    """(probabilities [L, T, E], sorted choices [L, T, K]) of the model's own routers, read by hooks."""
    seen = []
    routers = [m for m in model.modules() if isinstance(m, MostRouter)]
    hooks = [r.register_forward_hook(lambda _, __, out: seen.append((out[0].softmax(-1), out[2]))) for r in routers]
    expected(model, ids)
    for hook in hooks:
        hook.remove()
    return torch.stack([p for p, _ in seen]), torch.stack([c for _, c in seen]).sort(-1).values


def feed(decoder, slot, ids, first):
    """Prefill `first` ids, then step through the others; logits after each of them [T - first + 1, V]."""
    logits = [decoder.prefill(slot, ids[:first])]
    logits += [decoder.step([slot], [token])[0] for token in ids[first:]]
    return torch.stack(logits)


@pytest.fixture(scope="module")
def lean(model):
    return LeanDecoder(model, slots=3, context=64)


@pytest.fixture
def decoder(lean):
    for slot in range(3):
        lean.reset(slot)
    return lean


# -- the same logits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_variant_prefills_and_steps_as_the_model(make_model, settings, kind):
    model = make_model(**settings)
    if settings.get("attention_bias"):
        for name, parameter in model.named_parameters():
            if "self_attn" in name and name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.3)
    decoder = kind(model, slots=1, context=32)
    torch.testing.assert_close(feed(decoder, 0, MIXED_ROW, 4), expected(model, MIXED_ROW)[3:], **CLOSE)


def test_norm_weights_are_folded_in_rightly(make_model):
    """A fresh model's norms are all ones, which hides a forgotten one."""
    model = make_model()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    decoder = LeanDecoder(model, slots=2, context=32)
    wanted = expected(model, MIXED_ROW)
    torch.testing.assert_close(feed(decoder, 0, MIXED_ROW, 4), wanted[3:], **CLOSE)
    decoder.prefill(1, MIXED_ROW[:-1])
    decoder.reset(0)
    decoder.prefill(0, MIXED_ROW[:-1])
    torch.testing.assert_close(decoder.step([0, 1], [MIXED_ROW[-1]] * 2), wanted[-1:].expand(2, -1), **CLOSE)


@pytest.mark.parametrize("kind", DECODERS)
def test_prefill_longer_than_one_chunk_equals_the_model(model, kind):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, UNIT + 32, (PREFILL_CHUNK + 77,), generator=generator).tolist()
    decoder = kind(model, slots=1, context=1024)
    torch.testing.assert_close(decoder.prefill(0, ids), expected(model, ids)[-1], **CLOSE)
    probs, choice = decoder.routing()
    own_probs, own_choice = own_routing(model, ids)
    torch.testing.assert_close(probs, own_probs, **CLOSE)
    assert torch.equal(choice.sort(-1).values, own_choice)


@pytest.mark.parametrize("kind", DECODERS)
def test_second_prefill_continues_the_conversation(model, kind):
    decoder = kind(model, slots=1, context=32)
    decoder.prefill(0, MIXED_ROW[:5])
    torch.testing.assert_close(decoder.prefill(0, MIXED_ROW[5:]), expected(model, MIXED_ROW)[-1], **CLOSE)
    assert decoder.length(0) == len(MIXED_ROW)


@pytest.mark.parametrize("kind", DECODERS)
def test_speech_features_enter_as_in_the_model(model, kind):
    features = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    ids = [1, TOKENS.wave_start, FRAME, FRAME, FRAME, TOKENS.wave_end, 9]
    decoder = kind(model, slots=1, context=32)
    torch.testing.assert_close(decoder.prefill(0, ids, features), expected(model, ids, features)[-1], **CLOSE)


def test_frames_on_both_sides_of_a_chunk_border_keep_their_features(model):
    features = torch.randn(20, 24, generator=torch.Generator().manual_seed(0))
    ids = [9] * (PREFILL_CHUNK - 10) + [FRAME] * 20 + [9]
    decoder = LeanDecoder(model, slots=1, context=1024)
    torch.testing.assert_close(decoder.prefill(0, ids, features), expected(model, ids, features)[-1], **CLOSE)


# -- several conversations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DECODERS)
def test_slots_of_other_lengths_and_modalities_step_in_one_batch(model, kind):
    rows = [TEXT_ROW, MIXED_ROW, AUDIO_ROW]
    nexts = [[46, UNIT, 47], [UNIT + 1, 62, UNIT + 2], [UNIT + 6, TOKENS.audio_end, 70]]
    decoder = kind(model, slots=3, context=32)
    for slot, row in enumerate(rows):
        torch.testing.assert_close(decoder.prefill(slot, row), expected(model, row)[-1], **CLOSE)
    for step in range(3):
        logits = decoder.step([0, 1, 2], [ids[step] for ids in nexts])
        for slot, row in enumerate(rows):
            wanted = expected(model, row + nexts[slot][: step + 1])[-1]
            torch.testing.assert_close(logits[slot], wanted, **CLOSE)


@pytest.mark.parametrize("kind", DECODERS)
def test_conversations_join_and_leave_a_running_batch(model, kind):
    decoder = kind(model, slots=3, context=32)
    decoder.prefill(2, TEXT_ROW)
    decoder.step([2], [46])
    decoder.prefill(0, AUDIO_ROW)  # joins
    both = decoder.step([0, 2], [UNIT, 47])
    torch.testing.assert_close(both[0], expected(model, [*AUDIO_ROW, UNIT])[-1], **CLOSE)
    torch.testing.assert_close(both[1], expected(model, [*TEXT_ROW, 46, 47])[-1], **CLOSE)
    decoder.reset(2)  # leaves, and another takes its place
    decoder.prefill(2, MIXED_ROW)
    both = decoder.step([2, 0], [62, UNIT + 1])
    torch.testing.assert_close(both[0], expected(model, [*MIXED_ROW, 62])[-1], **CLOSE)
    torch.testing.assert_close(both[1], expected(model, [*AUDIO_ROW, UNIT, UNIT + 1])[-1], **CLOSE)


def test_single_row_path_equals_the_batched_path(model):
    single = LeanDecoder(model, slots=2, context=32)
    batched = LeanDecoder(model, slots=2, context=32)
    batched._one = None
    assert single._one is not None
    for decoder in (single, batched):
        decoder.prefill(1, MIXED_ROW)
    for token in (62, UNIT + 4, TOKENS.audio_end, UNIT + 5, 63):
        torch.testing.assert_close(single.step([1], [token]), batched.step([1], [token]), **CLOSE)
        for one, many in zip(single.routing(), batched.routing()):
            torch.testing.assert_close(one.sort(-1).values, many.sort(-1).values, **CLOSE)
    torch.testing.assert_close(single.cache[:, 1], batched.cache[:, 1], **CLOSE)


def test_single_row_and_batched_steps_alternate_in_one_conversation(model, decoder):
    decoder.prefill(0, TEXT_ROW)
    decoder.prefill(1, AUDIO_ROW)
    row = list(TEXT_ROW)
    for i, token in enumerate((50, UNIT + 1, 51, 52)):
        slots, ids = ([0], [token]) if i % 2 else ([0, 1], [token, UNIT])
        row.append(token)
        torch.testing.assert_close(decoder.step(slots, ids)[0], expected(model, row)[-1], **CLOSE)


@pytest.mark.parametrize("settings", [{}, {"kv_lora_rank": 64}, {"q_lora_rank": 8}], ids=["folded", "unfolded", "rank"])
def test_bfloat16_runs_near_the_model(make_model, settings):
    model = make_model(**settings).bfloat16()
    decoder = LeanDecoder(model, slots=2, context=32)
    wanted = expected(model, MIXED_ROW).float()
    got = feed(decoder, 0, MIXED_ROW, 4)
    assert got.dtype == torch.float32
    assert decoder.cache.dtype == torch.bfloat16
    similar = torch.nn.functional.cosine_similarity(got, wanted[3:], dim=-1)
    assert similar.min() > 0.99


# -- routing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("settings", [{}, PER_LAYER, {"use_modality_aware_routing": False}, LIMITED])
def test_routing_is_the_models_own(make_model, settings, kind):
    model = make_model(**settings)
    own_probs, own_choice = own_routing(model, MIXED_ROW)
    decoder = kind(model, slots=1, context=32)
    decoder.prefill(0, MIXED_ROW[:-2])
    parts = [tuple(x.clone() for x in decoder.routing())]
    for token in MIXED_ROW[-2:]:
        decoder.step([0], [token])
        parts.append(tuple(x.clone() for x in decoder.routing()))
    probs, choice = (torch.cat(x, 1) for x in zip(*parts))
    torch.testing.assert_close(probs, own_probs, **CLOSE)
    assert torch.equal(choice.sort(-1).values, own_choice)


@pytest.mark.parametrize("kind", DECODERS)
def test_routing_of_a_batched_step_has_a_row_for_each_slot_in_order(model, kind):
    decoder = kind(model, slots=3, context=32)
    decoder.prefill(0, TEXT_ROW)
    decoder.prefill(1, AUDIO_ROW)
    decoder.step([1, 0], [UNIT, 46])
    probs, choice = decoder.routing()
    for row, ids in enumerate(([*AUDIO_ROW, UNIT], [*TEXT_ROW, 46])):
        own_probs, own_choice = own_routing(model, ids)
        torch.testing.assert_close(probs[:, row], own_probs[:, -1], **CLOSE)
        assert torch.equal(choice[:, row].sort(-1).values, own_choice[:, -1])


def test_single_row_steps_stay_inside_the_group_even_when_its_probabilities_underflow(make_model):
    model = make_model()
    with torch.no_grad():
        for layer in model.model.layers[1:]:
            layer.mlp.gate.weight.mul_(1e4)
    decoder = LeanDecoder(model, slots=1, context=64)
    decoder.prefill(0, [1])
    for token in range(3, 40):
        decoder.step([0], [token])
        _, choice = decoder.routing()
        assert (choice < 4).all()


def test_dense_model_has_no_routing(make_model):
    decoder = LeanDecoder(make_model(feed_forward="dense"), slots=1, context=32)
    decoder.prefill(0, TEXT_ROW)
    assert decoder.routing()[0].numel() == 0


# -- knock-out ---------------------------------------------------------------------------------------------------------


def favourite(model, layer, ids):
    """An expert that the model chooses in this layer for at least one token of the row."""
    _, choice = own_routing(model, ids)
    return int(choice[model.config.moe_layers.index(layer)].flatten().mode().values)


@pytest.mark.parametrize("batched", [False, True])
def test_next_never_chooses_the_expert_and_lets_the_next_best_in(model, decoder, batched):
    row = [*TEXT_ROW, 46, 47, 48]
    off = favourite(model, 1, row)
    decoder.knock_out(0, [(1, off)], "next")
    own_probs, _ = own_routing(model, row)
    decoder.prefill(0, row[:7])
    choices = [decoder.routing()[1].clone()]
    decoder.prefill(1, [1])
    for token in row[7:]:
        decoder.step(*(([0, 1], [token, 5]) if batched else ([0], [token])))
        choices.append(decoder.routing()[1][:, :1].clone())
    chosen = torch.cat(choices, 1)[0].sort(-1).values  # of layer 1, whose input the knock-out does not touch
    left = own_probs[0][:, :4].clone()
    left[:, off] = -1
    assert not (chosen == off).any()
    assert torch.equal(chosen, left.topk(2).indices.sort(-1).values)


@pytest.mark.parametrize("batched", [False, True])
def test_zero_silences_the_expert_and_keeps_the_others_weights(make_model, batched):
    """As if the expert's own output matrix were zero."""
    model, silenced = make_model(), make_model()
    row = [*MIXED_ROW, 62, 63]
    off = favourite(model, 2, row)
    with torch.no_grad():
        silenced.model.layers[2].mlp.experts.down_proj[off].zero_()
    decoder = LeanDecoder(model, slots=2, context=32)
    decoder.knock_out(0, [(2, off)], "zero")
    decoder.prefill(1, TEXT_ROW)
    wanted = expected(silenced, row)
    torch.testing.assert_close(decoder.prefill(0, row[:-2]), wanted[-3], **CLOSE)
    for i, token in enumerate(row[-2:]):
        logits = decoder.step(*(([0, 1], [token, 5]) if batched else ([0], [token])))
        torch.testing.assert_close(logits[0], wanted[i - 2], **CLOSE)
    assert (wanted - expected(model, row)).abs().max() > 1e-3


@pytest.mark.parametrize("batched", [False, True])
def test_a_silenced_expert_is_not_among_the_chosen(model, decoder, batched):
    """Its place is empty, -1: it is not used, and nobody stands in."""
    row = [*TEXT_ROW, 46]
    off = favourite(model, 1, row)
    decoder.knock_out(0, [(1, off)], "zero")
    decoder.prefill(0, TEXT_ROW)
    choices = [decoder.routing()[1].clone()]
    decoder.prefill(1, [1])
    decoder.step(*(([0, 1], [46, 5]) if batched else ([0], [46])))
    choices.append(decoder.routing()[1][:, :1].clone())
    _, own = own_routing(model, row)
    assert torch.equal(torch.cat(choices, 1)[0].sort(-1).values, own[0].masked_fill(own[0] == off, -1).sort(-1).values)
    assert (own[0] == off).any()


def test_knock_out_is_of_its_slot_alone(model, decoder):
    off = favourite(model, 1, TEXT_ROW)
    decoder.knock_out(0, [(1, off)])
    knocked, whole = decoder.prefill(0, TEXT_ROW), decoder.prefill(1, TEXT_ROW)
    torch.testing.assert_close(whole, expected(model, TEXT_ROW)[-1], **CLOSE)
    assert (knocked - whole).abs().max() > 1e-3
    both = decoder.step([0, 1], [46, 46])
    torch.testing.assert_close(both[1], expected(model, [*TEXT_ROW, 46])[-1], **CLOSE)
    assert (both[0] - both[1]).abs().max() > 1e-3


def test_next_and_zero_knock_outs_share_a_batch(model, decoder):
    off = favourite(model, 1, TEXT_ROW)
    alone = []
    for mode in ("next", "zero"):
        decoder.reset(0)
        decoder.knock_out(0, [(1, off)], mode)
        decoder.prefill(0, TEXT_ROW)
        alone.append(decoder.step([0], [46])[0])
    for slot, mode in enumerate(("next", "zero")):
        decoder.reset(slot)
        decoder.knock_out(slot, [(1, off)], mode)
        decoder.prefill(slot, TEXT_ROW)
    torch.testing.assert_close(decoder.step([0, 1], [46, 46]), torch.stack(alone), **CLOSE)


def test_reset_forgets_the_conversation_and_the_knock_out(model, decoder):
    decoder.knock_out(0, [(1, 0), (2, 1)])
    decoder.prefill(0, MIXED_ROW)
    decoder.reset(0)
    assert decoder.length(0) == 0
    torch.testing.assert_close(decoder.prefill(0, TEXT_ROW), expected(model, TEXT_ROW)[-1], **CLOSE)


def test_empty_knock_out_undoes_the_last(model, decoder):
    decoder.knock_out(0, [(1, 0)])
    decoder.knock_out(0, [])
    torch.testing.assert_close(decoder.prefill(0, TEXT_ROW), expected(model, TEXT_ROW)[-1], **CLOSE)


@pytest.mark.parametrize(
    ("experts", "mode", "message"),
    [
        ([(0, 1)], "next", r"no expert 1 in layer 0: layers 1..2 have experts 0..7"),
        ([(3, 1)], "next", "no expert 1 in layer 3"),
        ([(1, 8)], "next", "no expert 8 in layer 1"),
        ([(1, -1)], "zero", "no expert -1 in layer 1"),
        ([(1, 1)], "nxt", "unknown knock-out mode 'nxt': use 'next' or 'zero'"),
        ([(2, 0), (2, 1), (2, 3)], "next", "too many experts knocked out in layer 2: every token needs 2"),
        ([(2, 4), (2, 5), (2, 6)], "next", "too many experts knocked out in layer 2"),
    ],
)
def test_impossible_knock_outs_are_refused_in_one_line(decoder, experts, mode, message):
    with pytest.raises(ValueError, match=message) as error:
        decoder.knock_out(0, experts, mode)
    assert "\n" not in str(error.value)


def test_all_experts_of_a_group_may_be_silenced_with_zero(model, decoder):
    decoder.knock_out(0, [(2, e) for e in range(4)], "zero")
    assert torch.isfinite(decoder.prefill(0, TEXT_ROW)).all()


def test_dense_model_says_that_it_has_no_experts_to_knock_out(make_model):
    decoder = LeanDecoder(make_model(feed_forward="dense"), slots=1, context=32)
    with pytest.raises(ValueError, match="no expert") as error:
        decoder.knock_out(0, [(1, 0)])
    assert "\n" not in str(error.value)


def test_module_decoder_refuses_knock_outs_in_one_line(model):
    with pytest.raises(ValueError, match="offloaded model cannot be knocked out"):
        ModuleDecoder(model).knock_out(0, [(1, 0)])


# -- errors and choice -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "the prompt is empty"),
        ([5] * 33, "the conversation is 33 tokens long, the context holds 32"),
        ([5, 296], "token id 296 is out of range"),
        ([5, FRAME, FRAME], "hold 2 .Frame. placeholders but no input_features"),
    ],
    ids=["empty", "too long", "unknown id", "no features"],
)
def test_impossible_prompts_are_refused_in_one_line_and_leave_the_slot_as_it_was(model, kind, ids, message):
    decoder = kind(model, slots=1, context=32)
    with pytest.raises(ValueError, match=message) as error:
        decoder.prefill(0, ids)
    assert "\n" not in str(error.value)
    assert decoder.length(0) == 0
    torch.testing.assert_close(decoder.prefill(0, TEXT_ROW), expected(model, TEXT_ROW)[-1], **CLOSE)


@pytest.mark.parametrize("batched", [False, True])
def test_stepping_past_the_context_is_refused_before_anything_changes(model, batched):
    decoder = LeanDecoder(model, slots=2, context=8)
    decoder.prefill(0, [5] * 8)
    decoder.prefill(1, [5] * 3)
    slots = [1, 0] if batched else [0]
    with pytest.raises(ValueError, match="slot 0 has reached the context of 8 tokens"):
        decoder.step(slots, [5] * len(slots))
    assert (decoder.length(0), decoder.length(1)) == (8, 3)


def test_context_can_be_filled_to_the_last_token(model):
    decoder = LeanDecoder(model, slots=1, context=len(MIXED_ROW))
    torch.testing.assert_close(feed(decoder, 0, MIXED_ROW, 4), expected(model, MIXED_ROW)[3:], **CLOSE)


def test_context_is_never_longer_than_the_models(make_model):
    assert LeanDecoder(make_model(max_position_embeddings=64), context=4096).context == 64


def test_resident_model_gets_the_lean_decoder(model):
    assert isinstance(make_decoder(model, 1, 16), LeanDecoder)


def test_model_spread_over_devices_gets_the_module_decoder(make_model):
    model = make_model()
    model.hf_device_map = {"model": "cpu", "lm_head": "disk"}
    assert isinstance(make_decoder(model, 1, 16), ModuleDecoder)


@pytest.mark.parametrize(("slots", "context"), [(0, 16), (-1, 16), (1, -5)])
def test_impossible_sizes_are_refused(model, slots, context):
    with pytest.raises(ValueError, match="at least 1"):
        make_decoder(model, slots, context)


def test_modality_of_the_prompt_follows_from_its_ids(model, decoder):
    decoder.prefill(0, MIXED_ROW)
    _, choice = decoder.routing()
    audio = modality_of(torch.tensor(MIXED_ROW), TOKENS).bool()
    assert (choice[:, audio] >= 4).all()
    assert (choice[:, ~audio] < 4).all()


def test_nothing_of_a_poisoned_conversation_is_left_after_reset(model):
    decoder = LeanDecoder(model, slots=2)
    decoder.prefill(0, list(range(3, 43)))
    decoder.cache[:, 0, 30] = float("nan")
    decoder.reset(0)
    decoder.prefill(0, [5, 6])
    decoder.prefill(1, list(range(3, 60)))
    logits = decoder.step([0, 1], [7, 8])
    assert torch.isfinite(logits).all()


def test_biases_of_the_blocks_are_obeyed(make_model):
    model = make_model(mlp_bias=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    decoder = LeanDecoder(model)
    decoder.prefill(0, [5, 6])
    expected = model(torch.tensor([[5, 6, 7]])).logits[0, -1]
    torch.testing.assert_close(decoder.step([0], [7])[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [LeanDecoder, ModuleDecoder])
def test_a_cancelled_prefill_stops_before_its_next_chunk(model, kind):
    decoder, cancel = kind(model), threading.Event()
    cancel.set()
    assert decoder.prefill(0, [5] * 20, None, cancel) is None
    assert decoder.length(0) == 0
