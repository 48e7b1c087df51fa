"""What traces say, on choices written by hand: experts 0 to 3 for text, 4 to 7 for audio, two a token."""

import numpy as np
import pytest

from most_core.metrics import (
    NO_EXPERT,
    UNKNOWN,
    allowed_experts,
    balance,
    inside_group,
    kept_from_before,
    leakage,
    moved_blocks,
    mutual_information,
    specialisation,
)

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
