"""Recorded replies once more: equal to what was recorded, and what is lost without experts or without the mask."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

import most_core
from most_core import GenerationSettings
from most_core.config import AUDIO, TEXT
from most_core.decoder import LeanDecoder, ModuleDecoder
from most_core.model import MostMoe
from most_core.replay import features_of, importance, prompt_of, scored
from most_core.trace_files import NO_EXPERT

FEW = GenerationSettings(max_new_tokens=24, max_heard_tokens=6, max_sentence_tokens=5, max_sentence_units=8)
QUESTION = "how are you?"


@pytest.fixture(scope="module")
def spoken(most, wave):
    """(trace, features) of a reply to a sound."""
    return most.answer(wave, settings=FEW, record_routing=True).trace, features_of(most, wave)


@pytest.fixture(scope="module")
def typed(most):
    return most.answer(QUESTION, settings=FEW, record_routing=True).trace, None


@pytest.fixture(params=["spoken", "typed"])
def recorded(request):
    return request.getfixturevalue(request.param)


def used(trace, row, modality):
    """Experts of a layer, the most used first."""
    chosen = trace.chosen[trace.modality == modality, row].ravel()
    return np.argsort(-np.bincount(chosen[chosen != NO_EXPERT], minlength=8), kind="stable").tolist()


def test_a_reply_scored_again_is_as_it_was_recorded(most, recorded):
    trace, features = recorded
    replay = scored(most, trace, features, settings=FEW)
    assert replay.place.tolist() == np.flatnonzero(np.isfinite(trace.logprob)).tolist()
    assert len(replay.place) > 10
    np.testing.assert_allclose(replay.logprob, trace.logprob[replay.place], atol=1e-3)
    assert (replay.free <= replay.logprob + 1e-6).all()  # the grammar left fewer tokens to share with
    assert (replay.free < replay.logprob - 0.1).any()


def test_its_routing_is_told_again_with_the_norms(most, recorded):
    trace, features = recorded
    again = scored(most, trace, features, settings=FEW).trace
    for name in ("token", "turn", "role", "modality", "id", "text", "layers", "chosen", "experts", "unmasked_experts"):
        np.testing.assert_array_equal(getattr(again, name), getattr(trace, name), name)
    for name in ("start_s", "end_s", "removed_mass", "entropy", "probs", "logprob"):
        np.testing.assert_allclose(getattr(again, name), getattr(trace, name), atol=2e-3, err_msg=name)
    assert again.leakage == 0
    assert trace.shared_norm is None
    for norm in (again.shared_norm, again.routed_norm):
        assert norm.shape == (trace.num_tokens, len(trace.layers))
        assert norm.dtype == np.float32
        assert (norm > 0).all()
    assert most_core.RoutingTrace.from_bytes(again.to_bytes()).model_hash == most.model_hash


def test_the_norms_are_those_of_the_blocks(most, typed):
    trace, _ = typed
    seen = {}
    moe = next(layer.mlp for layer in most.model.model.layers if isinstance(layer.mlp, MostMoe))
    hooks = [
        moe.experts.register_forward_hook(lambda _, given, made: seen.update(routed=made)),
        moe.shared_experts.register_forward_hook(lambda _, given, made: seen.update(shared=made[0])),
    ]
    try:
        with torch.inference_mode():
            most.model(input_ids=torch.from_numpy(trace.id.astype(np.int64))[None])
    finally:
        for hook in hooks:
            hook.remove()
    again = scored(most, trace, settings=FEW).trace
    np.testing.assert_allclose(again.routed_norm[:, 0], seen["routed"].norm(dim=-1), rtol=1e-4)
    np.testing.assert_allclose(again.shared_norm[:, 0], seen["shared"].norm(dim=-1), rtol=1e-4)


@pytest.mark.parametrize("mode", ["next", "zero"])
def test_what_is_answered_without_experts_is_scored_as_it_was_recorded(most, wave, mode):
    """The decoder and the replay leave the same experts out, prompt included, in the same way."""
    features, settings = features_of(most, wave), replace(FEW, knock_out_mode=mode)
    for off in ([(1, 1)], [(1, 0), (2, 3), (2, 6)]):
        trace = most.answer(wave, settings=settings, record_routing=True, knock_out=off).trace
        replay = scored(most, trace, features, knock_out=off, mode=mode, settings=FEW)
        np.testing.assert_allclose(replay.logprob, trace.logprob[replay.place], atol=1e-3)
        np.testing.assert_array_equal(replay.trace.chosen, trace.chosen)
        for layer, expert in off:
            assert not (replay.trace.chosen[:, most.config.moe_layers.index(layer)] == expert).any()


def test_the_next_best_stands_in_or_nobody(most, typed):
    trace, _ = typed
    expert = used(trace, 0, TEXT)[0]
    met = (trace.chosen[:, 0] == expert).any(-1)
    plain = scored(most, trace, settings=FEW)
    stood_in = scored(most, trace, knock_out=[(1, expert)], mode="next", like=plain).trace.chosen[:, 0]
    silent = scored(most, trace, knock_out=[(1, expert)], mode="zero", like=plain).trace.chosen[:, 0]
    assert (stood_in != NO_EXPERT).all()
    assert not (stood_in == expert).any()
    assert ((silent == NO_EXPERT).sum(-1) == met).all()
    for token in np.flatnonzero(met):  # the first layer with experts is given the same either way
        others = set(trace.chosen[token, 0]) - {expert}
        assert set(silent[token]) - {NO_EXPERT} == others
        assert others < set(stood_in[token])
        third = trace.experts[token, 0, most.config.num_experts_per_tok]
        assert set(stood_in[token]) == others | {third}


def test_without_the_mask_tokens_leave_their_groups(most, recorded):
    trace, features = recorded
    plain = scored(most, trace, features, settings=FEW)
    free = scored(most, trace, features, masked=False, like=plain)
    assert free.trace.leakage > 0.5
    k = most.config.num_experts_per_tok
    strongest = np.sort(trace.unmasked_experts[:, 0, :k], -1)  # of the first such layer, before all goes its own way
    np.testing.assert_array_equal(np.sort(free.trace.chosen[:, 0], -1), strongest)
    assert np.abs(free.logprob - plain.logprob).max() > 1e-3


def test_importance_is_exact_where_little_depends_on_an_expert():
    """With small experts the loss is linear in each of them."""
    most = most_core.untrained("tiny")
    with torch.no_grad():
        for layer in most.model.model.layers:
            if isinstance(layer.mlp, MostMoe):
                layer.mlp.experts.down_proj.mul_(0.01)
    most = most_core.Most(most.model, LeanDecoder(most.model), most.processor)  # which folds weights in
    trace = most.answer(QUESTION, settings=FEW, record_routing=True).trace
    effects = list(importance(most, trace, count=100, mode="zero", settings=FEW))
    estimates = np.array([effect.estimate for effect in effects])
    exact = np.array([effect.exact for effect in effects])
    assert np.abs(estimates).max() > 1e-4
    np.testing.assert_allclose(estimates, exact, atol=0.05 * np.abs(exact).max())
    ranks = np.argsort(np.argsort(-np.abs(exact)))
    assert np.corrcoef(np.arange(len(exact)), ranks)[0, 1] > 0.5  # those that matter come first


def test_importance_ranks_all_that_were_met_and_is_exact_of_the_first(most, recorded):
    trace, features = recorded
    effects = list(importance(most, trace, features, count=3, settings=FEW))
    met = {
        (int(layer), int(expert))
        for row, layer in enumerate(trace.layers)
        for expert in np.unique(trace.chosen[:, row])
    }
    assert {(effect.layer, effect.expert) for effect in effects} == met
    assert [effect.exact is None for effect in effects] == [False] * 3 + [True] * (len(effects) - 3)
    plain = scored(most, trace, features, settings=FEW)
    for effect in effects[:3]:
        without = scored(most, trace, features, knock_out=[(effect.layer, effect.expert)], like=plain)
        assert effect.exact == pytest.approx(float((plain.logprob - without.logprob).sum()), abs=1e-4)
        assert effect.modality == (AUDIO if effect.expert >= 4 else TEXT)


def test_nothing_is_left_behind(most, spoken):
    trace, features = spoken
    before = {name: weight.detach().clone() for name, weight in most.model.state_dict().items()}
    plain = scored(most, trace, features, settings=FEW)
    with pytest.raises(ValueError, match="no expert 99"):
        scored(most, trace, features, knock_out=[(1, 99)], like=plain)
    with torch.inference_mode():  # as a caller may be
        list(importance(most, trace, features, count=1, settings=FEW))
    for name, weight in most.model.state_dict().items():
        assert torch.equal(weight, before[name]), name
    assert all(weight.grad is None for weight in most.model.parameters())
    assert not any(module._forward_hooks for module in most.model.modules())
    np.testing.assert_array_equal(scored(most, trace, features, settings=FEW).logprob, plain.logprob)


def test_replays_and_replies_do_not_disturb_each_other(most, spoken, typed):
    """Knocked-out passes beside each other and beside a conversation on the same model."""
    expected = [scored(most, *turn, knock_out=[(1, 1)], settings=FEW).logprob for turn in (spoken, typed)]
    wrong = []

    def replayed(turn, scores):
        for _ in range(5):
            if not np.array_equal(scored(most, *turn, knock_out=[(1, 1)], settings=FEW).logprob, scores):
                wrong.append("a replay")

    threads = [threading.Thread(target=replayed, args=pair) for pair in zip((spoken, typed), expected)]
    for thread in threads:
        thread.start()
    text = most.answer(QUESTION, settings=FEW).text
    for _ in range(5):
        if most.answer(QUESTION, settings=FEW).text != text:
            wrong.append("a reply")
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_prompt_is_found_exactly(most, wave, spoken, typed):
    for (trace, features), given in ((spoken, wave), (typed, QUESTION)):
        found, expected = (
            prompt_of(most, trace, features),
            most.processor.prompt(most_core.processing.as_messages(given)),
        )
        assert found.ids == expected.ids
        assert found.spans == expected.spans
        assert found.has_speech == expected.has_speech
        *_, done = most.stream_prompt(found, settings=FEW, record_routing=True)
        again = done.reply.trace
        np.testing.assert_array_equal(again.id, trace.id)
        np.testing.assert_array_equal(again.role, trace.role)
        np.testing.assert_array_equal(again.turn, trace.turn)


def test_a_prompt_with_earlier_turns_is_found(most, wave):
    history = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    reply = most.answer(wave, history, settings=FEW, record_routing=True)
    features = features_of(most, wave)
    assert prompt_of(most, reply.trace, features).has_speech
    replay = scored(most, reply.trace, features, settings=FEW)
    np.testing.assert_allclose(replay.logprob, reply.trace.logprob[replay.place], atol=1e-3)
    assert set(reply.trace.turn[replay.place]) == {3}


@pytest.mark.parametrize("options", [{"speak": False}, {"say_heard": False}, {"max_new_tokens": 3}])
def test_how_it_was_decoded_is_seen_by_what_was_recorded(most, wave, options):
    settings = replace(FEW, **options)
    trace = most.answer(wave, settings=settings, record_routing=True).trace
    replay = scored(most, trace, features_of(most, wave), settings=FEW)
    np.testing.assert_allclose(replay.logprob, trace.logprob[replay.place], atol=1e-3)


def test_sampled_replies_are_scored_before_temperature(most):
    trace = most.answer(QUESTION, settings=replace(FEW, temperature=1.5, seed=3), record_routing=True).trace
    replay = scored(most, trace, settings=FEW)
    np.testing.assert_allclose(replay.logprob, trace.logprob[replay.place], atol=1e-3)


def test_what_cannot_be_replayed_is_refused_in_one_line(most, spoken, typed):
    trace, features = spoken
    with pytest.raises(ValueError, match="give the sound that was heard"):
        scored(most, trace)
    with pytest.raises(ValueError, match=r"heard \d+ frames of sound, but \d+ are given"):
        scored(most, trace, features[1:])
    with pytest.raises(ValueError, match="give the sound of this turn"):
        scored(most, typed[0], features)
    with pytest.raises(ValueError, match="does not end with a reply"):
        scored(most, trace.slice(0, 10), features)
    with pytest.raises(ValueError, match="begins with its reply"):
        scored(most, typed[0].slice(-5, None))
    with pytest.raises(ValueError, match="another trace"):
        scored(most, trace, features, like=scored(most, *typed, settings=FEW))
    with pytest.raises(ValueError, match="unknown knock-out mode 'other'"):
        scored(most, trace, features, knock_out=[(1, 1)], mode="other")
    with pytest.raises(ValueError, match="too many experts knocked out in layer 1"):
        scored(most, trace, features, knock_out=[(1, 0), (1, 1), (1, 2)])
    with pytest.raises(ValueError, match="a model with other layers"):
        scored(most, replace(typed[0], layers=np.array([2, 1], np.int16)))
    with pytest.raises(ValueError, match="not text and speech in turns"):
        scored(most, replace(typed[0], id=np.full_like(typed[0].id, most.config.bos_token_id)))


def test_an_offloaded_model_is_refused_in_one_line(typed):
    most = most_core.untrained("tiny")
    offloaded = most_core.Most(most.model, ModuleDecoder(most.model), most.processor)
    with pytest.raises(ValueError, match="load it whole on one device"):
        scored(offloaded, *typed)


def test_half_precision_is_scored_in_full(most, typed):
    half = most_core.untrained("tiny")
    half.model.to(torch.bfloat16)
    replay = scored(half, *typed, settings=FEW)
    assert replay.logprob.dtype == np.float32
    np.testing.assert_allclose(replay.logprob, scored(most, *typed, settings=FEW).logprob, atol=0.3)
    assert np.isfinite([effect.estimate for effect in importance(half, *typed, count=1, settings=FEW)]).all()
