"""What traces say, on choices written by hand: experts 0 to 3 for text, 4 to 7 for audio, two a token; and on any."""

import json
import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from most_core.config import MostConfig
from most_core.metrics import (
    UNKNOWN,
    agreement,
    balance,
    clustering_order,
    kept_from_before,
    leakage,
    max_vio_chance,
    moved_blocks,
    mutual_information,
    pair_counts,
    report,
    specialisation,
)
from most_core.trace import NO_EXPERT, RoutingRecorder, concatenate
from most_core.trace_rows import allowed_experts, inside_group

TEXT, AUDIO = 0, 1
ALLOWED = allowed_experts([([0, 1, 2, 3], [4, 5, 6, 7])], 8)


def chosen(*tokens):
    """[T, 1, 2]: one layer."""
    return np.array(tokens, np.uint8)[:, None]


def test_groups_become_masks():
    assert ALLOWED.shape == (2, 1, 8)
    assert np.flatnonzero(ALLOWED[AUDIO, 0]).tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("tokens", "modality", "outside"),
    [
        ([(0, 1), (4, 7)], [TEXT, AUDIO], 0),
        ([(0, 4), (4, 7)], [TEXT, AUDIO], 1),
        ([(0, 1), (4, 7)], [AUDIO, TEXT], 4),
    ],
)
def test_leakage_is_counted_choice_by_choice(tokens, modality, outside):
    assert leakage(chosen(*tokens), np.array(modality), ALLOWED) == (outside, 4)


def test_an_empty_slot_is_no_choice_and_no_leak():
    tokens = chosen((0, NO_EXPERT), (5, 6))
    assert leakage(tokens, np.array([TEXT, AUDIO]), ALLOWED) == (0, 3)
    assert inside_group(tokens, np.array([TEXT, AUDIO]), ALLOWED)[:, 0].tolist() == [[True, False], [True, True]]


def test_layers_have_groups_of_their_own():
    allowed = allowed_experts([([0, 1], [2, 3]), ([2, 3], [0, 1])], 4)
    both = np.array([[[0, 1], [0, 1]]], np.uint8)
    assert leakage(both, np.array([TEXT]), allowed) == (2, 4)


def test_even_use():
    used = balance(chosen((0, 1), (2, 3)), ALLOWED[TEXT])
    assert (used.cv[0], used.max_vio[0], used.dead[0], used.size[0]) == (0, 0, 0, 4)
    assert used.effective[0] == pytest.approx(4)
    assert used.chance[0] == pytest.approx(np.sqrt((4 - 2) / (2 * 2)))
    assert used.counts[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_uneven_use_by_hand():
    used = balance(chosen((0, 1), (0, 1), (0, 2), (0, 1)), ALLOWED[TEXT])  # 4, 3, 1, 0 of 8: mean 2
    assert used.cv[0] == pytest.approx(np.std([4, 3, 1, 0]) / 2)
    assert used.max_vio[0] == pytest.approx(1.0)
    assert used.dead[0] == 1
    share = np.array([4, 3, 1]) / 8
    assert used.effective[0] == pytest.approx(np.exp(-(share * np.log(share)).sum()))


def test_a_fair_draw_has_the_chance_of_a_fair_draw():
    rng = np.random.default_rng(0)
    drawn = [balance(chosen(*(rng.permutation(4)[:2] for _ in range(50))), ALLOWED[TEXT]) for _ in range(200)]
    assert np.sqrt(np.mean([used.cv[0] ** 2 for used in drawn])) == pytest.approx(drawn[0].chance[0], rel=0.1)


def test_locality_is_within_a_modality_and_in_any_order():
    tokens = chosen((0, 1), (1, 0), (4, 5), (4, 6), (0, 1), (2, 3))
    modality = np.array([TEXT, TEXT, AUDIO, AUDIO, TEXT, TEXT])
    assert kept_from_before(tokens, modality, TEXT) == (1.0, 2)  # all of the second, none of the last
    assert kept_from_before(tokens, modality, AUDIO) == (0.5, 1)
    empty = chosen((0, NO_EXPERT), (1, NO_EXPERT))
    assert kept_from_before(empty, np.array([TEXT, TEXT]), TEXT) == (0.0, 1)


def test_mutual_information_of_the_same_and_of_independent_numberings():
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 4, 4000)
    assert mutual_information(classes, classes) == pytest.approx(np.log(4) - 9 / 8000, abs=0.01)
    by_chance = [mutual_information(rng.integers(0, 8, 400), rng.integers(0, 4, 400)) for _ in range(100)]
    assert abs(np.mean(by_chance)) < 0.003  # 0.026 with its bias


def test_moved_blocks_keep_neighbours_and_lose_nothing():
    row = np.arange(25)
    moved = moved_blocks(row, np.random.default_rng(3), block=10)
    assert sorted(moved.tolist()) == row.tolist()
    assert moved.tolist() != row.tolist()
    assert sum(np.diff(moved) == 1) >= 22


def test_experts_that_know_classes_are_specialists():
    rng = np.random.default_rng(1)
    classes = rng.integers(0, 3, 2000)
    strongest = np.where(classes == 2, 5, rng.integers(0, 4, 2000)).astype(np.uint8)
    told = specialisation(np.stack([strongest, np.full(2000, 7)], 1), strongest, classes)
    share = (classes == 2).mean()
    expected = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    assert told.mi == pytest.approx(expected, abs=0.02)
    assert told.mi > 10 * told.null
    assert told.p == pytest.approx(1 / 201)
    best = told.specialists[0]
    assert (best.expert, best.label, best.count) == (5, 2, int((classes == 2).sum()))
    assert best.lift == pytest.approx(1 / share)
    assert best.chosen == 1.0


def test_what_is_alike_only_because_it_is_near_is_not_significant():
    rng = np.random.default_rng(2)
    strongest = np.repeat(rng.integers(0, 4, 20), 100).astype(np.uint8)
    classes = np.repeat(rng.integers(0, 2, 20), 100)
    told = specialisation(strongest[:, None], strongest, classes)
    assert mutual_information(strongest.astype(int), rng.permutation(classes)) < 0.01 < told.null
    assert told.p > 0.02


def test_a_rare_class_makes_no_specialist():
    strongest, classes = np.zeros(1000, np.uint8), np.zeros(1000, int)
    strongest[:19], classes[:19] = 3, 1
    assert specialisation(strongest[:, None], strongest, classes).specialists == []
    strongest[19], classes[19] = 3, 1
    assert [s.expert for s in specialisation(strongest[:, None], strongest, classes).specialists] == [3]


def test_unknown_classes_do_not_count_and_too_few_tokens_tell_nothing():
    strongest = np.tile([0, 1], 300).astype(np.uint8)
    classes = np.tile([0, 1], 300)
    classes[400:] = UNKNOWN
    assert specialisation(strongest[:, None], strongest, classes, block=40).tokens == 400
    assert specialisation(strongest[:399, None], strongest[:399], classes[:399], block=40) is None
    assert specialisation(strongest[:, None], strongest, np.zeros(600, int), block=40) is None


def trace_of(chosen_TLK, modality, config=None, probs=None, role=None):
    """A trace in which these experts were chosen; probabilities are even unless given as [T, L, E]."""
    config = config or MostConfig.tiny()
    chosen_TLK, count = np.asarray(chosen_TLK), len(modality)
    if probs is None:
        probs = np.full((count, len(config.moe_layers), config.n_routed_experts), 1 / config.n_routed_experts)
    recorder = RoutingRecorder(config)
    for who, start, stop in role or [("user", 0, count)]:
        recorder.record(
            torch.tensor(probs[start:stop], dtype=torch.float32).transpose(0, 1),
            list(range(start, stop)),
            list(modality[start:stop]),
            who,
            0,
            indices_LNK=torch.from_numpy(chosen_TLK[start:stop].astype(np.int64)).transpose(0, 1),
        )
    return recorder.finish(model_hash="abc", dtype="float32")


def drawn_trace(seed, tokens=40, config=None, modality=None):
    """A trace of random probabilities, routed as the model routes."""
    config = config or MostConfig.tiny()
    rng, recorder = np.random.default_rng(seed), RoutingRecorder(config)
    logits = rng.normal(0, 2, (len(config.moe_layers), tokens, config.n_routed_experts))
    modality = rng.integers(0, 2, tokens).tolist() if modality is None else modality
    half = tokens // 2
    probs = torch.tensor(logits, dtype=torch.float32).softmax(-1)
    for who, some in (("user", slice(0, half)), ("assistant", slice(half, tokens))):
        recorder.record(probs[:, some], list(range(tokens))[some], modality[some], who, 0)
    return recorder.finish(model_hash="abc", dtype="float32")


def both_layers(*tokens):
    """[T, 2, 2]: the same in both layers of the tiny model, whose text experts are 0 to 3, audio experts 4 to 7."""
    return np.repeat(np.array(tokens)[:, None], 2, 1)


def numbers(value, path=""):
    """All leaves of a report."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from numbers(each, f"{path}.{key}")
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield from numbers(each, f"{path}[{place}]")
    else:
        yield path, value


def first_layer(told, modality):
    return told["modalities"][modality]["layers"][0]


def test_an_even_router_by_hand():
    told = report(trace_of(both_layers((0, 1), (2, 3), (0, 2), (1, 3)), [TEXT] * 4))
    layer = first_layer(told, "text")
    assert (layer["layer"], layer["n"], layer["experts"]) == (1, 4, [0, 1, 2, 3])
    assert layer["load"] == {
        "counts": [2, 2, 2, 2],
        "share": [0.25] * 4,
        "weighted": [0.25] * 4,
        "cv": 0,
        "cv_chance": 0.5,  # sqrt((4 - 2) / (2 * 4))
        "cv_weighted": 0,
        "max_vio": 0,
        "max_vio_chance": pytest.approx(0.5 * math.sqrt(4 / 3) * NormalDist().inv_cdf(3.625 / 4.25), rel=1e-5),
        "dead": 0,
        "dead_share": 0,
        "dead_chance": 1 / 16,
        "effective": 4,
        "effective_chance": pytest.approx(4 * math.exp(-1 / 8), rel=1e-5),
    }
    assert layer["entropy"] == {"n": 4, "nats": pytest.approx(math.log(4), rel=1e-5), "mean": 1, "chance": 1}
    assert layer["confidence"] == layer["cut_margin"] == {"n": 4, "mean": 0, "chance": 0}
    assert layer["locality"] == {"n": 3, "mean": pytest.approx(1 / 6, rel=1e-5), "chance": 0.5}
    assert layer["suppressed"] == {"n": 4, "mean": 0.5, "chance": 0.5}
    assert layer["norms"] is None
    assert told["leakage"] == {"outside": 0, "decisions": 16, "share_of_tokens": 0}
    assert (told["model"]["hash"], told["model"]["experts"], told["model"]["per_token"]) == ("abc", 8, 2)


def test_pairs_by_hand():
    chosen_T = both_layers((0, 1), (0, 1), (0, 2), (1, 2))
    pairs = first_layer(report(trace_of(chosen_T, [TEXT] * 4)), "text")["coactivation"]
    assert pairs["share"][0] == pytest.approx([1, 2 / 3, 1 / 3, 0], rel=1e-5)
    assert pairs["share"][3] == [None] * 4  # never chosen
    assert pairs["lift"][0][:3] == [None, pytest.approx(2 * 4 / 9, rel=1e-5), pytest.approx(4 / 6, rel=1e-5)]
    assert pairs["lift"][3] == [None] * 4
    assert (pairs["share_chance"], pairs["lift_chance"]) == pytest.approx((1 / 3, 2 / 3), rel=1e-5)
    assert sorted(pairs["order"]) == [0, 1, 2, 3]


def test_a_fair_draw_meets_every_chance_line():
    rng = np.random.default_rng(0)
    chosen_T = np.stack([np.stack([rng.permutation(4)[:2] for _ in range(2)]) for _ in range(4000)])
    layer = first_layer(report(trace_of(chosen_T, [TEXT] * 4000)), "text")
    assert layer["locality"]["mean"] == pytest.approx(0.5, abs=0.02)
    for name in ("share", "lift"):
        found = np.array(layer["coactivation"][name], float)[~np.eye(4, dtype=bool)]
        assert found.tolist() == pytest.approx([layer["coactivation"][f"{name}_chance"]] * 12, rel=0.1)
    assert layer["specialisation"]["role"]["share"][0] == pytest.approx([0.5] * 4, abs=0.03)


@pytest.mark.parametrize(("tokens", "k", "group"), [(300, 2, 4), (50, 6, 32), (1, 2, 8), (40, 4, 4)])
def test_the_chances_of_max_vio_and_of_effective_experts(tokens, k, group):
    rng = np.random.default_rng(1)
    allowed = np.ones((1, group), bool)
    drawn = [
        balance(rng.random((tokens, 1, group)).argpartition(k - 1, -1)[..., :k].astype(np.uint8), allowed)
        for _ in range(200)
    ]
    assert np.mean([used.max_vio[0] for used in drawn]) == pytest.approx(max_vio_chance(tokens, k, group), rel=0.15)
    effective = max(k, group * math.exp(-(drawn[0].chance[0] ** 2) / 2))
    assert np.mean([used.effective[0] for used in drawn]) == pytest.approx(effective, rel=0.25)


def test_clustered_experts_are_neighbours():
    has = np.array([(0, 3), (0, 3), (1, 2), (1, 2), (0, 3), (4, 4)], np.uint8)
    counts = pair_counts(has, np.arange(5))
    assert counts[0].tolist() == [3, 0, 0, 3, 0]
    order = clustering_order(counts)
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert abs(order.index(0) - order.index(3)) == abs(order.index(1) - order.index(2)) == 1
    assert clustering_order(counts[:2, :2]) == [0, 1]


def test_compared_reports_share_one_order():
    one, other = report(drawn_trace(1)), report(drawn_trace(2), orders=report(drawn_trace(1)))
    for name in ("text", "audio"):
        for a, b in zip(one["modalities"][name]["layers"], other["modalities"][name]["layers"]):
            assert a["coactivation"]["order"] == b["coactivation"]["order"]
    with pytest.raises(ValueError, match="this is none"):
        report(drawn_trace(1), orders={"modalities": []})
    with pytest.raises(ValueError, match="5 layers, the traces have 2"):
        report(drawn_trace(1), orders=report(drawn_trace(1, config=MostConfig.nano())))
    first_layer(one, "text")["coactivation"]["order"] = [0, 1, 2, "x"]
    with pytest.raises(ValueError, match=r"is not one of the experts \[0, 1, 2, 3\]"):
        report(drawn_trace(1), orders=one)


def test_margins_by_hand():
    probs = np.tile([0.3, 0.1, 0.04, 0.06, 0.5, 0, 0, 0], (2, 2, 1))
    layer = first_layer(report(trace_of(both_layers((0, 1), (0, 1)), [TEXT] * 2, probs=probs)), "text")
    assert layer["confidence"]["mean"] == pytest.approx(0.4, abs=1e-3)
    assert layer["cut_margin"]["mean"] == pytest.approx(0.08, abs=1e-3)
    assert layer["suppressed"]["mean"] == pytest.approx(0.5)
    assert layer["load"]["weighted"] == pytest.approx([0.75, 0.25, 0, 0], abs=1e-3)
    assert layer["unmasked"] == {"n": 2, "inside": 0.5, "strongest_inside": 0, "chance": 0.5}  # 4 and 0 are strongest
    even = math.log(4)
    q = [0.6, 0.2, 0.08, 0.12]
    assert layer["entropy"]["mean"] == pytest.approx(-sum(x * math.log(x) for x in q) / even, rel=1e-4)


def test_specialisation_by_role():
    role = [("user", 0, 3), ("assistant", 3, 5)]
    trace = trace_of(both_layers((0, 1), (0, 2), (0, 1), (2, 3), (2, 3)), [TEXT] * 5, role=role)
    found = first_layer(report(trace), "text")["specialisation"]["role"]
    assert found["classes"] == [{"name": "user", "n": 3}, {"name": "assistant", "n": 2}]
    assert found["share"] == [pytest.approx([1, 2 / 3, 1 / 3, 0], rel=1e-5), [0, 0, 1, 1]]
    assert found["lift"][1] == [0, 0, 2, 2]
    assert found["chance"] == 0.5
    assert found["mutual_information"]["mi"] is None
    assert "corpus" in found["mutual_information"]["reason"]


def corpus(disjoint):
    """Two traces of 1,200 text tokens whose class alone, or nothing at all, says which expert is strongest."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 2400)
    strongest = labels * 2 if disjoint else rng.integers(0, 2, 2400) * 2
    probs = np.full((2400, 2, 8), 0.1)
    probs[np.arange(2400), :, strongest] = 0.3
    chosen = both_layers(*zip(strongest, strongest + 1))
    halves = [trace_of(chosen[s], [TEXT] * 1200, probs=probs[s]) for s in (slice(0, 1200), slice(1200, None))]
    return halves, labels


@pytest.mark.parametrize("disjoint", [True, False])
def test_mutual_information_of_a_corpus(disjoint):
    traces, labels = corpus(disjoint)
    told = report(traces, classes={"kind": (labels, ("a", "b"))})
    found = first_layer(told, "text")["specialisation"]["kind"]["mutual_information"]
    assert found["n"] == 2400
    assert found["entropy"] == pytest.approx(math.log(2), abs=0.01)
    assert found["mi"] == pytest.approx(found["entropy"] if disjoint else 0, abs=0.005)
    assert (found["mi"] > found["null"]) == disjoint
    assert (found["p"] < 0.01) == disjoint
    if disjoint:
        assert {(s["expert"], s["label"]) for s in found["specialists"]} == {(0, "a"), (2, "b")}
    few = report([trace.slice(0, 100) for trace in traces], classes={"kind": (labels[:200], ("a", "b"))})
    assert "fewer than 1000" in first_layer(few, "text")["specialisation"]["kind"]["mutual_information"]["reason"]


def test_classes_must_fit():
    for labels in ([0], [0] * 40 + [1], [2] * 40, [-2] * 40):
        with pytest.raises(ValueError, match="classes 'kind'"):
            report(drawn_trace(0), classes={"kind": (np.array(labels), ("a", "b"))})
    unknown = report(drawn_trace(0), classes={"kind": (np.full(40, UNKNOWN), ("a", "b"))})
    assert first_layer(unknown, "text")["specialisation"]["kind"]["classes"] == []


def test_norms_where_they_are_known():
    trace = drawn_trace(0, tokens=4, modality=[TEXT, TEXT, TEXT, AUDIO])
    trace.shared_norm = np.array([[1, 1], [3, 1], [np.nan, 1], [0, 0]], np.float32)
    trace.routed_norm = np.array([[1, 1], [1, 1], [1, 1], [0, 0]], np.float32)
    told = report(trace)
    assert first_layer(told, "text")["norms"] == {"n": 2, "shared": 2, "routed": 1, "routed_share": 0.375}
    assert first_layer(told, "audio")["norms"] == {"n": 1, "shared": 0, "routed": 0, "routed_share": None}


def test_leaks_are_reported():
    trace = trace_of(both_layers((0, 4), (0, 1), (4, 5)), [TEXT, TEXT, AUDIO])
    told = report(trace)
    assert told["leakage"] == {"outside": 2, "decisions": 12, "share_of_tokens": pytest.approx(1 / 3, rel=1e-5)}
    assert trace.leakage == pytest.approx(1 / 3)


ODD = {
    "nothing": drawn_trace(0, tokens=0),
    "one token": drawn_trace(0, tokens=1),
    "no audio": drawn_trace(0, modality=[TEXT] * 40),
    "groups of k": drawn_trace(0, config=MostConfig.tiny(num_experts_per_tok=4)),
    "one expert a token": drawn_trace(0, config=MostConfig.tiny(num_experts_per_tok=1)),
    "plain": drawn_trace(0, config=MostConfig.tiny(use_modality_aware_routing=False)),
    "groups of one": drawn_trace(0, config=MostConfig.tiny(n_routed_experts=2, num_experts_per_tok=1)),
    "nobody chosen": trace_of(np.full((3, 2, 2), -1), [TEXT, AUDIO, AUDIO]),
    "slots left empty": trace_of(both_layers((0, -1), (1, 2)), [TEXT, TEXT]),
    "all mass outside": trace_of(both_layers((0, 1)), [TEXT], probs=np.eye(8)[7].reshape(1, 1, 8).repeat(2, 1)),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_traces_give_numbers_or_nothing(name):
    trace = ODD[name]
    told = json.loads(json.dumps(report(trace), allow_nan=False))
    assert told["tokens"] == trace.num_tokens
    for modality, side in told["modalities"].items():
        for layer in side["layers"]:
            if not side["n"]:
                n_of = ("entropy", "confidence", "cut_margin", "locality", "suppressed", "unmasked", "coactivation")
                assert {layer[kind]["n"] for kind in n_of} == {0}, modality
                assert layer["load"]["cv"] is layer["load"]["dead"] is layer["load"]["cv_chance"] is None


def test_odd_traces_by_hand():
    told = {name: first_layer(report(trace), "text") for name, trace in ODD.items()}
    exact = told["groups of k"]
    assert (exact["load"]["cv"], exact["load"]["cv_chance"], exact["load"]["max_vio_chance"]) == (0, 0, 0)
    assert exact["cut_margin"] == {"n": 0, "mean": None, "chance": 0}  # there is no next expert
    assert exact["locality"]["mean"] == exact["locality"]["chance"] == 1
    plain = told["plain"]
    assert len(plain["experts"]) == 8
    assert (plain["suppressed"]["mean"], plain["suppressed"]["chance"]) == (0, 0)
    assert (plain["unmasked"]["inside"], plain["unmasked"]["chance"]) == (1, 1)
    assert told["one expert a token"]["coactivation"]["lift_chance"] == 0
    assert told["groups of one"]["entropy"]["mean"] is None  # ln 1
    assert told["groups of one"]["confidence"]["mean"] is None
    assert told["nobody chosen"]["load"]["cv"] is None
    assert told["nobody chosen"]["load"]["dead_share"] == 1
    assert told["slots left empty"]["load"]["share"] == [0.25, 0.25, 0.25, 0]
    assert told["all mass outside"]["confidence"]["n"] == 0
    assert told["all mass outside"]["suppressed"]["mean"] == 1


def permuted(trace, order):
    """The same trace with experts renumbered."""
    renumber = np.append(order, np.full(256 - len(order), NO_EXPERT)).astype(np.uint8)
    columns = ("experts", "chosen", "unmasked_experts")
    return replace(trace, **{name: renumber[getattr(trace, name)] for name in columns})


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 1000),
    st.permutations(range(4)),
    st.permutations(range(4, 8)),
)
def test_renumbering_experts_within_groups_moves_only_their_figures(seed, text, audio):
    order = np.array([*text, *audio])
    trace = drawn_trace(seed, tokens=16, modality=[TEXT, AUDIO, AUDIO, TEXT] * 4)
    before, after = report(trace), report(permuted(trace, order))
    for modality in ("text", "audio"):
        for a, b in zip(before["modalities"][modality]["layers"], after["modalities"][modality]["layers"]):
            place = [b["experts"].index(order[expert]) for expert in a["experts"]]
            for name in ("counts", "share", "weighted"):
                moved = b["load"].pop(name)
                assert [moved[p] for p in place] == pytest.approx(a["load"].pop(name), rel=1e-5)
            lift = b["coactivation"]["lift"]
            assert [[lift[p][q] for q in place] for p in place] == a["coactivation"]["lift"]
            for kind in ("load", "entropy", "confidence", "cut_margin", "locality", "suppressed", "unmasked"):
                assert b[kind] == pytest.approx(a[kind], rel=1e-5), kind
    assert before["leakage"] == after["leakage"]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 30), st.sampled_from([1, 2, 4]), st.booleans())
def test_every_report_is_finite_and_its_shares_are_shares(seed, tokens, k, apart):
    config = MostConfig.tiny(num_experts_per_tok=k, use_modality_aware_routing=apart)
    told = report(drawn_trace(seed, tokens, config))
    json.dumps(told, allow_nan=False)
    for path, value in numbers(told):
        if path.endswith(".mean") or "share" in path or path.endswith("inside"):
            assert value is None or 0 <= value <= 1, path
    assert told["leakage"]["outside"] == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.permutations(range(8)), st.integers(0, 1)), min_size=1, max_size=6))
def test_nothing_leaks_if_and_only_if_all_is_inside(tokens):
    trace = trace_of(both_layers(*(order[:2] for order, _ in tokens)), [modality for _, modality in tokens])
    inside = all(expert // 4 == modality for order, modality in tokens for expert in order[:2])
    told = report(trace)["leakage"]
    assert (told["outside"] == 0) == (told["share_of_tokens"] == 0) == (trace.leakage == 0) == inside


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 20))
def test_pieces_are_told_as_the_whole(seed, cut):
    trace = drawn_trace(seed, tokens=20)
    whole, pieces = report(trace), report([trace.slice(0, cut), trace.slice(cut, None)])
    joined = report(concatenate([trace.slice(0, cut), trace.slice(cut, None)]))
    assert joined == whole
    assert (pieces["traces"], whole["traces"]) == (2, 1)
    for modality in ("text", "audio"):
        for a, b in zip(whole["modalities"][modality]["layers"], pieces["modalities"][modality]["layers"]):
            pairs = a.pop("locality")["n"] - b.pop("locality")["n"]  # neighbours across the cut are none
            assert 0 <= pairs <= 1
            a["specialisation"].clear(), b["specialisation"].clear()  # the reason without MI is another
            assert a == b


def test_traces_of_several_models_are_refused():
    other = drawn_trace(0)
    other.model_hash = "xyz"
    with pytest.raises(ValueError, match="of 2 models"):
        report([drawn_trace(0), other])
    with pytest.raises(ValueError, match="of 2 models"):
        report([drawn_trace(0), drawn_trace(0, config=MostConfig.nano())])
    with pytest.raises(ValueError, match="no traces"):
        report([])


def test_agreement_by_hand():
    one = trace_of(both_layers((0, 1), (2, 3), (4, 5)), [TEXT, TEXT, AUDIO])
    other = trace_of(both_layers((1, 0), (3, 0), (6, 7)), [TEXT, TEXT, AUDIO])
    told = agreement(one, other)
    assert first_layer(told, "text") == {"layer": 1, "n": 2, "mean": 0.75, "chance": 0.5, "strongest": 1}
    assert first_layer(told, "audio")["mean"] == 0
    assert agreement([one, one], [one, one])["modalities"]["audio"]["layers"][1]["mean"] == 1
    quantized = drawn_trace(0)
    quantized.dtype, quantized.model_hash = "int8", "q"
    assert agreement(drawn_trace(0), quantized)["models"][1] == {"hash": "q", "dtype": "int8"}
    assert agreement(ODD["nothing"], ODD["nothing"])["modalities"]["text"]["layers"][0]["mean"] is None


def test_agreement_by_chance_where_groups_differ():
    groups = {"text_expert_indices": [0, 1, 2, 4], "audio_expert_indices": [3, 5, 6, 7]}
    told = agreement(drawn_trace(0), drawn_trace(0, config=MostConfig.tiny(**groups)))
    assert first_layer(told, "text")["chance"] == 2 * 3 / 16


def test_agreement_needs_the_same_tokens_and_shape():
    with pytest.raises(ValueError, match=r"from token 39 on \(40 and 39 tokens\)"):
        agreement(drawn_trace(0), drawn_trace(0).slice(0, 39))
    changed = drawn_trace(0)
    changed.id[7] += 1
    with pytest.raises(ValueError, match="from token 7 on"):
        agreement(drawn_trace(0), changed)
    with pytest.raises(ValueError, match="other layers or numbers"):
        agreement(drawn_trace(0), drawn_trace(0, config=MostConfig.tiny(num_experts_per_tok=1)))
