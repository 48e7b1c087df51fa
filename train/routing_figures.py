"""What the arrays of a routing trace say: evenness, habits, what the mask removed, what experts are for.

Shapes: T tokens, L MoE layers, E routed experts, K experts per token, as in `most_core.trace_rows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from most_core.trace_files import NO_EXPERT

BLOCK = 100  # tokens that are moved together: 4 s of sound, several sentences of text
PERMUTATIONS, BLOCKS = 200, 10  # of fewer blocks too many orders are nearly the one that there was
UNKNOWN = -1  # class of a token that is not judged
FEWEST, LIFT = 20, 1.2  # tokens of a class that a specialist must lead in, and how much more often than elsewhere


def allowed_experts(groups: Sequence[tuple[list[int], list[int]]], experts: int) -> np.ndarray:
    """[2, L, E] bool: which experts tokens of each modality may meet, from `MostConfig.expert_groups()`."""
    allowed = np.zeros((2, len(groups), experts), bool)
    for layer, sides in enumerate(groups):
        for modality, group in enumerate(sides):
            allowed[modality, layer, group] = True
    return allowed


def inside_group(experts_TLK: np.ndarray, modality_T: np.ndarray, allowed_2LE: np.ndarray) -> np.ndarray:
    """[T, L, K] bool: which of these experts are in the token's own group. An empty slot is in none."""
    known = experts_TLK != NO_EXPERT
    layers = np.arange(experts_TLK.shape[1])[:, None]
    return known & allowed_2LE[modality_T[:, None, None], layers, np.where(known, experts_TLK, 0)]


def leakage(chosen_TLK: np.ndarray, modality_T: np.ndarray, allowed_2LE: np.ndarray) -> tuple[int, int]:
    """(choices outside the token's group, all choices): counted, not assumed."""
    made = int((chosen_TLK != NO_EXPERT).sum())
    return made - int(inside_group(chosen_TLK, modality_T, allowed_2LE).sum()), made


@dataclass(frozen=True)
class Balance:
    """How evenly a group is used, layer by layer. `chance` is the `cv` of a fair draw of as many independent tokens:
    tokens of one sentence are alike, so that a good router lies above it."""

    counts: np.ndarray  # [L, E]
    cv: np.ndarray  # [L] as all below: standard deviation of the experts' loads over their mean
    max_vio: np.ndarray  # the busiest expert's load over the mean, less one
    dead: np.ndarray  # experts never chosen at all
    effective: np.ndarray  # exp of the entropy of the loads: as many experts, used evenly
    chance: np.ndarray
    size: np.ndarray  # experts in the group


def balance(chosen_TLK: np.ndarray, allowed_LE: np.ndarray) -> Balance:
    """Of the tokens of one modality, whose group is `allowed_LE`."""
    tokens, layers, k = chosen_TLK.shape
    counts = np.stack([np.bincount(chosen_TLK[:, row].ravel(), minlength=NO_EXPERT + 1) for row in range(layers)])
    counts = counts[:, : allowed_LE.shape[1]]
    rows: list[tuple[float, ...]] = []
    for own in (count[allowed] for count, allowed in zip(counts, allowed_LE)):
        share, size = own / max(1, own.sum()), len(own)
        used = share[share > 0]
        effective = float(np.exp(-(used * np.log(used)).sum()))
        chance = float(np.sqrt((size - k) / (k * max(1, tokens))))
        rows.append((share.std() * size, share.max() * size - 1, int((own == 0).sum()), effective, chance, size))
    return Balance(counts, *(np.array(column) for column in zip(*rows)))


def kept_from_before(chosen_TLK: np.ndarray, modality_T: np.ndarray, modality: int) -> tuple[float, int]:
    """(sum, pairs): of each token of one conversation that follows a token of its modality, the share of its experts
    that the token before had, too, mean over layers. Chance is K over the size of the group."""
    pairs = np.flatnonzero((modality_T[1:] == modality) & (modality_T[:-1] == modality))
    now, before = chosen_TLK[pairs + 1], chosen_TLK[pairs]
    same = (now[..., :, None] == before[..., None, :]) & (now != NO_EXPERT)[..., None]
    shares = same.any(-1).mean((1, 2))
    return float(shares.sum()), len(pairs)


class Specialist(NamedTuple):
    """An expert that leads more often in tokens of a class than elsewhere."""

    expert: int
    label: int
    count: int  # tokens of the class in which it is the strongest
    lift: float  # P(it leads | class) / P(it leads)
    chosen: float  # share of the class's tokens that it is chosen for, strongest or not


@dataclass(frozen=True)
class Specialisation:
    """How much the strongest expert tells of a token's class, in nats, in one layer.

    `mi` is the mutual information less its bias; `null` the 95th percentile of the same where blocks of tokens have
    changed their places, `p` the share of those that reach `mi` (counting itself).
    """

    tokens: int
    mi: float
    null: float
    p: float
    entropy: float  # of the classes: the most that there is to tell
    specialists: list[Specialist]


def mutual_information(experts_T: np.ndarray, classes_T: np.ndarray) -> float:
    """Of two numberings of the same tokens, in nats, less its bias (|C| - 1)(|E| - 1) / 2N; it may be below 0."""
    joint = _joint(experts_T, classes_T)
    joint = joint[joint.sum(1) > 0][:, joint.sum(0) > 0]
    total = joint.sum()
    share = joint / total
    expected = share.sum(1, keepdims=True) * share.sum(0, keepdims=True)
    filled = share > 0
    found = float((share[filled] * np.log(share[filled] / expected[filled])).sum())
    return found - (joint.shape[0] - 1) * (joint.shape[1] - 1) / (2 * total)


def moved_blocks(classes_T: np.ndarray, rng: np.random.Generator, block: int = BLOCK) -> np.ndarray:
    """The same classes with blocks of neighbours in another order: what is alike only because it is near stays so."""
    blocks = [classes_T[start : start + block] for start in range(0, len(classes_T), block)]
    return np.concatenate([blocks[place] for place in rng.permutation(len(blocks))])


def specialisation(
    chosen_TK: np.ndarray, strongest_T: np.ndarray, classes_T: np.ndarray, few: int = 3, block: int = BLOCK
) -> Specialisation | None:
    """Of one layer; None where there is nothing to tell apart, or too few tokens to move blocks of them."""
    known = (classes_T != UNKNOWN) & (strongest_T != NO_EXPERT)
    experts, classes, chosen = strongest_T[known].astype(int), classes_T[known], chosen_TK[known]
    if len(classes) < BLOCKS * block or len(np.unique(classes)) < 2:
        return None
    mi, rng = mutual_information(experts, classes), np.random.default_rng(0)
    by_chance = [mutual_information(experts, moved_blocks(classes, rng, block)) for _ in range(PERMUTATIONS)]
    reached = sum(value >= mi for value in by_chance)
    share = np.bincount(classes) / len(classes)
    entropy = float(-(share[share > 0] * np.log(share[share > 0])).sum())
    null, p = float(np.quantile(by_chance, 0.95)), (1 + reached) / (1 + PERMUTATIONS)
    return Specialisation(len(classes), mi, null, p, entropy, _specialists(experts, classes, chosen, few))


def _specialists(experts: np.ndarray, classes: np.ndarray, chosen: np.ndarray, few: int) -> list[Specialist]:
    """Those that add most to the mutual information: a rare class alone makes no specialist."""
    joint = _joint(experts, classes).astype(float)
    lift = joint * joint.sum() / np.maximum(joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True), 1)
    weight = np.where((joint >= FEWEST) & (lift >= LIFT), joint * np.log(np.maximum(lift, 1)), 0)
    found = []
    for place in np.argsort(-weight, axis=None, kind="stable")[:few]:
        expert, label = np.unravel_index(place, joint.shape)
        if weight[expert, label] > 0:
            share = float((chosen[classes == label] == expert).any(1).mean())
            found.append(
                Specialist(int(expert), int(label), int(joint[expert, label]), float(lift[expert, label]), share)
            )
    return found


def _joint(experts: np.ndarray, classes: np.ndarray) -> np.ndarray:
    size = int(classes.max()) + 1
    return np.bincount(experts * size + classes, minlength=(int(experts.max()) + 1) * size).reshape(-1, size)
