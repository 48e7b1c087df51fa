"""The gate: who may meet whom, how strongly, and the balance losses against slow references."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from most_core import MostConfig
from most_core.router import MostRouter, balance_loss, check_modality, choose_experts, group_mask, modality_of

CONFIG = MostConfig.tiny()
TOKENS = CONFIG.tokens
MARKERS = ["audio_start", "audio_end", "wave_start", "wave_end", "heard_end"]


def router(seed=0, **overrides):
    config = MostConfig.tiny(**overrides)
    gate = MostRouter(config, config.expert_groups()[0])
    with torch.no_grad():
        gate.weight.copy_(torch.randn(gate.weight.shape, generator=torch.Generator().manual_seed(seed)))
    return gate


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- modality ----------------------------------------------------------------------------------------------------------


def test_units_and_frames_are_audio():
    first, last = TOKENS.first_unit, TOKENS.first_unit + TOKENS.num_units - 1
    assert modality_of(torch.tensor([[first, last, TOKENS.frame]]), TOKENS).tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("marker", MARKERS)
def test_every_marker_is_text(marker):
    assert modality_of(torch.tensor([[getattr(TOKENS, marker)]]), TOKENS).tolist() == [[0]]


def test_plain_tokens_and_padding_ids_are_text():
    ids = torch.tensor([[0, TOKENS.first_unit - 1, CONFIG.vocab_size - 1]])
    assert modality_of(ids, TOKENS).tolist() == [[0, 0, 0]]


def test_modality_keeps_shape_and_type_of_the_ids():
    ids = torch.zeros(2, 3, dtype=torch.long)
    assert modality_of(ids, TOKENS).shape == (2, 3)
    assert modality_of(ids, TOKENS).dtype == torch.long


def test_without_a_table_everything_is_text():
    assert modality_of(torch.arange(CONFIG.vocab_size)[None], None).sum() == 0


def test_tensor_and_scalar_rule_agree_on_every_id():
    marks = modality_of(torch.arange(CONFIG.vocab_size), TOKENS).tolist()
    assert marks == [int(TOKENS.is_audio(i)) for i in range(CONFIG.vocab_size)]


@pytest.mark.parametrize(
    ("ids", "marks", "message"),
    [
        ([[1, 2]], [[0]], r"modality_ids have shape \(1, 1\), input_ids \(1, 2\)"),
        ([[1, 2]], [[0, 2]], "modality id 2 is unknown"),
        ([[1, 2]], [[0, -1]], "modality id -1 is unknown"),
        ([[1, 2], [3, 4]], [[0, 0], [0, 1]], "call token 4 at row 1, position 1 audio, but it is text"),
        ([[TOKENS.first_unit]], [[0]], f"call token {TOKENS.first_unit} at row 0, position 0 text, but it is audio"),
        ([[TOKENS.wave_start]], [[1]], "audio, but it is text"),
    ],
)
def test_wrong_modality_ids_are_named_in_one_line(ids, marks, message):
    with pytest.raises(ValueError, match=message) as error:
        check_modality(torch.tensor(ids), torch.tensor(marks), TOKENS)
    assert "\n" not in str(error.value)


def test_without_a_table_any_known_modality_is_accepted():
    check_modality(torch.tensor([[1, 2]]), torch.tensor([[1, 0]]), None)


# -- choice ------------------------------------------------------------------------------------------------------------


def test_softmax_comes_before_the_mask_and_is_not_renormalised():
    """By hand: logits ln(1, 2, 3, 4) on experts 0..3, of which 0 and 1 are text's: weights 1/10 and 2/10."""
    config = MostConfig.tiny(n_routed_experts=4, text_expert_indices=[0, 1], audio_expert_indices=[2, 3])
    gate = MostRouter(config, ([0, 1], [2, 3]))
    with torch.no_grad():
        gate.weight.zero_()
        gate.weight[:, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0]).log()
    hidden = torch.zeros(2, 32)
    hidden[:, 0] = 1
    logits, weights, indices = gate(hidden, torch.tensor([0, 1]))
    found = [dict(zip(i, w)) for i, w in zip(indices.tolist(), weights.tolist())]
    assert found[0] == pytest.approx({0: 0.1, 1: 0.2})
    assert found[1] == pytest.approx({2: 0.3, 3: 0.4})
    assert logits.exp()[0].tolist() == pytest.approx([1, 2, 3, 4])


def test_normalised_weights_sum_to_one_when_asked_for():
    gate = router(norm_topk_prob=True)
    plain = router()
    hidden, modality = randn(9, 32), torch.arange(9) % 2
    _, weights, indices = gate(hidden, modality)
    _, raw, raw_indices = plain(hidden, modality)
    assert torch.equal(indices, raw_indices)
    assert weights.sum(-1).tolist() == pytest.approx([1] * 9)
    torch.testing.assert_close(weights, raw / raw.sum(-1, keepdim=True))


def test_weights_are_scaled_by_the_routed_scaling_factor():
    hidden, modality = randn(9, 32), torch.arange(9) % 2
    torch.testing.assert_close(
        router(routed_scaling_factor=2.5)(hidden, modality)[1], 2.5 * router()(hidden, modality)[1]
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.1, 1.0, 30.0, 300.0]), method=st.booleans())
def test_no_token_ever_meets_an_expert_outside_its_group(seed, scale, method):
    """At a scale of 300 whole groups underflow to probability 0: the choice must stay inside all the same."""
    groups = ([0, 2, 4, 5], [1, 3, 6, 7])
    limited = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 1} if method else {}
    config = MostConfig.tiny(text_expert_indices=groups[0], audio_expert_indices=groups[1], **limited)
    logits = randn(32, 8, seed=seed) * scale
    modality = (randn(32, seed=seed + 1) > 0).long()
    allowed = group_mask(groups, 8, torch.device("cpu"))[modality]
    for mask in (allowed, allowed.float()):
        _, indices = choose_experts(logits.softmax(-1), mask, config)
        assert allowed.gather(1, indices).all()
        assert all(len(set(row)) == 2 for row in indices.tolist())


def test_router_keeps_tokens_inside_their_group_in_every_layer():
    per_layer = {"text_expert_indices": [[0, 1, 6], [3, 4]], "audio_expert_indices": [[2, 3, 4], [5, 6, 7]]}
    config = MostConfig.tiny(**per_layer)
    for layer, groups in enumerate(config.expert_groups()):
        gate = MostRouter(config, groups)
        torch.nn.init.normal_(gate.weight, std=3)
        for modality in (0, 1):
            _, _, indices = gate(randn(64, 32, seed=layer), torch.full((64,), modality))
            assert set(indices.flatten().tolist()) <= set(groups[modality])


def test_strongest_allowed_experts_are_chosen():
    gate, hidden, modality = router(seed=4), randn(20, 32, seed=5), torch.arange(20) % 2
    logits, weights, indices = gate(hidden, modality)
    for n in range(20):
        exp = [math.exp(x) for x in logits[n].tolist()]
        own = range(4) if modality[n] == 0 else range(4, 8)
        best = sorted(own, key=lambda e: -exp[e])[:2]
        assert set(indices[n].tolist()) == set(best)
        for e, w in zip(indices[n].tolist(), weights[n].tolist()):
            assert w == pytest.approx(exp[e] / sum(exp), rel=1e-5)


def test_plain_router_lets_all_tokens_meet_all_experts():
    gate = router(use_modality_aware_routing=False)
    _, weights, indices = gate(randn(200, 32), torch.zeros(200, dtype=torch.long))
    assert set(indices.flatten().tolist()) == set(range(8))
    assert gate.allowed(torch.zeros(3, dtype=torch.long)) is None
    best = (randn(200, 32) @ gate.weight.T).softmax(-1).topk(2).values
    torch.testing.assert_close(weights.sort(-1, descending=True).values, best)


@pytest.mark.parametrize("masked", [False, True])
def test_group_limited_greedy_equals_a_slow_reference(masked):
    limited = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "n_routed_experts": 16}
    config = MostConfig.tiny(**limited, num_experts_per_tok=3)
    probs = randn(40, 16, seed=7).softmax(-1)
    modality = torch.arange(40) % 2
    allowed = group_mask(config.expert_groups()[0], 16, torch.device("cpu"))[modality] if masked else None
    weights, indices = choose_experts(probs, allowed, config)
    for n in range(40):
        row = [p if allowed is None or allowed[n, e] else 0.0 for e, p in enumerate(probs[n].tolist())]
        groups = sorted(range(4), key=lambda g: -max(row[4 * g : 4 * g + 4]))[:2]
        best = sorted((e for g in groups for e in range(4 * g, 4 * g + 4)), key=lambda e: -row[e])[:3]
        assert set(indices[n].tolist()) == set(best)
        assert sorted(weights[n].tolist()) == pytest.approx(sorted(row[e] for e in best))


def test_gate_computes_in_float32_for_bfloat16_hidden_states():
    gate = router().bfloat16()
    logits, weights, _ = gate(randn(5, 32).bfloat16(), torch.zeros(5, dtype=torch.long))
    assert logits.dtype == weights.dtype == torch.float32


# -- balance loss ------------------------------------------------------------------------------------------------------


def losses_of(logits, indices, modality, config, valid=None):
    groups = config.expert_groups()[0]
    mask = group_mask(groups, config.n_routed_experts, torch.device("cpu"))
    allowed = mask[modality.reshape(-1)] if config.use_modality_aware_routing else None
    return balance_loss(logits, indices, allowed, modality, config, valid)


def even_routing(modality):
    """Indices that use each group of four experts perfectly evenly, two at a time, with equal probabilities."""
    pairs = {0: [[0, 1], [2, 3]], 1: [[4, 5], [6, 7]]}
    seen = {0: 0, 1: 0}
    indices = []
    for kind in modality.reshape(-1).tolist():
        indices.append(pairs[kind][seen[kind] % 2])
        seen[kind] += 1
    return torch.zeros(modality.numel(), 8), torch.tensor(indices)


@pytest.mark.parametrize(
    "modality",
    [[[0] * 8], [[1] * 8], [[0, 0, 1, 1]], [[0, 0, 0, 0, 1, 1]], [[0] * 4, [1] * 4]],
    ids=["text", "audio", "mixed", "uneven mixture", "two rows"],
)
def test_balance_loss_is_alpha_when_every_group_is_used_evenly(modality):
    """So a sequence of only speech is not punished for idle text experts."""
    modality = torch.tensor(modality)
    logits, indices = even_routing(modality)
    assert losses_of(logits, indices, modality, CONFIG).item() == pytest.approx(CONFIG.aux_loss_alpha, rel=1e-5)


def test_balance_loss_of_a_collapsed_group_is_higher():
    modality = torch.tensor([[1] * 8])
    logits = torch.full((8, 8), -4.0)
    logits[:, [4, 5]] = 4.0
    collapsed = losses_of(logits, torch.tensor([[4, 5]] * 8), modality, CONFIG)
    assert collapsed.item() == pytest.approx(2 * CONFIG.aux_loss_alpha, rel=1e-2)


def slow_balance(logits, indices, modality, groups, alpha, k, valid):
    total = 0.0
    for b in range(len(modality)):
        length = len(modality[b])
        counted = sum(valid[b])
        for kind, group in enumerate(groups):
            tokens = [t for t in range(length) if valid[b][t] and modality[b][t] == kind]
            if not tokens:
                continue
            value = 0.0
            for e in group:
                load = sum(e in indices[b * length + t] for t in tokens) / (k * len(tokens))
                share = 0.0
                for t in tokens:
                    exp = {x: math.exp(logits[b * length + t][x]) for x in group}
                    share += exp[e] / sum(exp.values()) / len(tokens)
                value += load * share
            total += len(group) * value * len(tokens) / counted
    return alpha * total / len(modality)


@pytest.mark.parametrize("groups", [([0, 1, 2, 3], [4, 5, 6, 7]), ([0, 1, 2, 3, 4], [4, 5, 6, 7]), ([1, 2], [0, 6, 7])])
@pytest.mark.parametrize("padded", [False, True])
def test_balance_loss_of_mixed_sequences_equals_a_slow_reference(groups, padded):
    config = MostConfig.tiny(text_expert_indices=groups[0], audio_expert_indices=groups[1])
    modality = (randn(3, 10, seed=1) > 0.2).long()
    logits = randn(30, 8, seed=2)
    mask = group_mask(groups, 8, torch.device("cpu"))[modality.reshape(-1)]
    _, indices = choose_experts(logits.softmax(-1), mask, config)
    valid = torch.ones(3, 10, dtype=torch.long)
    if padded:
        valid[0, :4] = 0
        valid[2, 7:] = 0
    ours = losses_of(logits, indices, modality, config, valid if padded else None)
    slow = slow_balance(
        logits.tolist(), indices.tolist(), modality.tolist(), groups, config.aux_loss_alpha, 2, valid.tolist()
    )
    assert ours.item() == pytest.approx(slow, rel=1e-5)


def test_padding_does_not_change_the_balance_loss():
    modality = (randn(2, 6, seed=3) > 0).long()
    logits = randn(12, 8, seed=4)
    mask = group_mask(CONFIG.expert_groups()[0], 8, torch.device("cpu"))
    _, indices = choose_experts(logits.softmax(-1), mask[modality.reshape(-1)], CONFIG)
    alone = losses_of(logits, indices, modality, CONFIG)

    def padded(x, value):
        return torch.cat([torch.full_like(x[:, :3], value), x], 1)

    wide = padded(modality, 0)
    wide_logits = padded(logits.view(2, 6, 8), 5.0).reshape(-1, 8)
    wide_indices = padded(indices.view(2, 6, 2), 1).reshape(-1, 2)
    valid = padded(torch.ones(2, 6), 0)
    assert losses_of(wide_logits, wide_indices, wide, CONFIG, valid).item() == pytest.approx(alone.item(), rel=1e-6)


@pytest.mark.parametrize("seq_aux", [True, False])
@pytest.mark.parametrize("aware", [True, False])
def test_upstreams_loss_equals_a_slow_reference(seq_aux, aware):
    config = MostConfig.tiny(aux_loss_form="upstream", seq_aux=seq_aux, use_modality_aware_routing=aware)
    modality = (randn(3, 10, seed=1) > 0).long()
    logits = randn(30, 8, seed=2)
    mask = group_mask(config.expert_groups()[0], 8, torch.device("cpu"))[modality.reshape(-1)]
    _, indices = choose_experts(logits.softmax(-1), mask if aware else None, config)
    ours = losses_of(logits, indices, modality, config)
    probs = [[p * float(m) for p, m in zip(*pair)] for pair in zip(logits.softmax(-1).tolist(), mask.tolist())]
    pots = [range(10 * b, 10 * b + 10) for b in range(3)] if seq_aux else [range(30)]
    total = 0.0
    for pot in pots:
        for e in range(8):
            load = sum(e in indices[n].tolist() for n in pot) / (2 * len(pot)) * 8
            total += load * sum(probs[n][e] for n in pot) / len(pot)
    assert ours.item() == pytest.approx(config.aux_loss_alpha * total / len(pots), rel=1e-5)


def test_upstreams_loss_punishes_speech_for_idle_text_experts_and_ours_does_not():
    modality = torch.tensor([[1] * 8])
    logits, indices = even_routing(modality)
    upstream = MostConfig.tiny(aux_loss_form="upstream", aux_loss_alpha=1.0)
    ours = MostConfig.tiny(aux_loss_alpha=1.0)
    assert losses_of(logits + torch.tensor([9.0] * 4 + [0.0] * 4), indices, modality, ours).item() == pytest.approx(1)
    assert losses_of(logits, indices, modality, upstream).item() == pytest.approx(0.5 * 2)


@pytest.mark.parametrize("scale", [1.0, 300.0])
@pytest.mark.parametrize("form", ["per_modality", "upstream"])
def test_balance_loss_gives_the_gate_a_finite_gradient(form, scale):
    gate = router(aux_loss_form=form, aux_loss_alpha=1.0)
    modality = torch.tensor([[0, 1, 0, 1, 1]])
    logits, _, indices = gate(randn(5, 32) * scale, modality.reshape(-1))
    loss = balance_loss(logits, indices, gate.allowed(modality.reshape(-1)), modality, gate.config)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(gate.weight.grad).all()
    if scale == 1.0:
        assert gate.weight.grad.abs().sum() > 0


def test_chosen_weights_give_the_gate_a_gradient():
    gate = router()
    gate(randn(5, 32), torch.tensor([0, 1, 0, 1, 1]))[1].sum().backward()
    assert (gate.weight.grad.abs().sum(-1) > 0).all()  # of all experts: the softmax sees them all
