"""What the routing of some tokens says: evenness, habits, what the mask removed, what experts are for.

`report` is all of it for traces, ready for JSON; the functions before it take the arrays of `most_core.trace_rows`.
Every figure has its n and its chance: what a fair draw of k of the |G| experts of a group would give. FORMULAS says
what each figure is.

Shapes: T tokens, L MoE layers, E routed experts, K experts per token, G experts of a group, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from most_core.config import AUDIO, MODALITY_NAMES, TEXT
from most_core.trace_files import NO_EXPERT
from most_core.trace_rows import RoutingTrace, allowed_experts, concatenate, inside_group

BLOCK = 100  # tokens that are moved together: 4 s of sound, several sentences of text
PERMUTATIONS, BLOCKS = 200, 10  # of fewer blocks too many orders are nearly the one that there was
UNKNOWN = -1  # class of a token that is not judged
FEWEST, LIFT = 20, 1.2  # tokens of a class that a specialist must lead in, and how much more often than elsewhere
DIGITS = 6  # significant ones in a report

FREQUENCY = "frequency is not importance"
FORMULAS = {
    "load": "f_e = choices of e / (k T), T tokens of the modality; weighted: the raw weights of e over those of all. "
    "cv = std / mean over the group G, chance sqrt((|G| - k) / (k T)): " + FREQUENCY,
    "max_vio": "max / mean - 1; chance: the expected largest of |G| loads that differ by chance",
    "dead": "experts of the group never chosen; chance of each (1 - k / |G|)^T",
    "effective": "exp(H(f)): as many experts, used evenly; chance |G| exp(-cv_chance^2 / 2)",
    "entropy": "H(q) / ln |G|, q the probabilities renormalised on the group; 1 is even",
    "confidence": "q_1 - q_2; 0 where probabilities are even",
    "cut_margin": "q_k - q_{k+1}: how clear the choice was; 0 where probabilities are even",
    "locality": "|S_t and S_{t-1}| / k, of neighbours of one modality; chance k / |G|",
    "coactivation": "share N_ij / N_i, chance (k - 1) / (|G| - 1); lift N_ij T / (N_i N_j), "
    "chance ((k - 1) |G|) / (k (|G| - 1)); rows are i",
    "specialisation": "D(e, c) = N_ec / N_c: share of the tokens of class c that e is chosen for; chance k / |G|; "
    "lift: D over chance",
    "mutual_information": "of the strongest expert and the class, nats, less its bias (|C| - 1)(|E| - 1) / 2N; "
    f"null: 95 % of orders of blocks of {BLOCK} tokens lie below",
    "leakage": "choices outside the token's group, counted",
    "suppressed": "probability outside the group, which the mask removed; chance 1 - |G| / E",
    "unmasked": "share of the k strongest of all experts (and of the strongest) that are in the group; chance |G| / E. "
    "Exact for one layer with all else as it is; a plain mixture, trained without a mask, is another model",
    "norms": "mean norms of the shared and of the routed experts' output; routed_share = routed / (shared + routed)",
    "agreement": "|S_A and S_B| / k, of the same tokens; chance k |G_A and G_B| / (|G_A| |G_B|)",
}


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


def load(chosen_TLK: np.ndarray, experts: int, weights_TLK: np.ndarray | None = None) -> np.ndarray:
    """[L, E]: how often each expert was chosen, or the sum of its weights."""
    rows = []
    for layer in range(chosen_TLK.shape[1]):
        weights = None if weights_TLK is None else weights_TLK[:, layer].ravel().astype(float)
        rows.append(np.bincount(chosen_TLK[:, layer].ravel(), weights, NO_EXPERT + 1)[:experts])
    return np.array(rows)


def load_cv_chance(tokens: int, k: int, group: int) -> float:
    """The coefficient of variation of a fair draw's loads: short clips look uneven by chance."""
    return math.sqrt((group - k) / (k * tokens)) if tokens else math.nan


def balance(chosen_TLK: np.ndarray, allowed_LE: np.ndarray) -> Balance:
    """Of the tokens of one modality, whose group is `allowed_LE`; nan where nothing was chosen."""
    tokens, _, k = chosen_TLK.shape
    counts = load(chosen_TLK, allowed_LE.shape[1])
    rows: list[tuple[float, ...]] = []
    for own in (count[allowed] for count, allowed in zip(counts, allowed_LE)):
        size = len(own)
        share = own / own.sum() if own.any() else np.full(size, np.nan)
        chance = load_cv_chance(tokens, k, size)
        rows.append(
            (share.std() * size, share.max() * size - 1, int((own == 0).sum()), _effective(share), chance, size)
        )
    return Balance(counts, *(np.array(column) for column in zip(*rows)))


def _effective(share: np.ndarray) -> float:
    used = share[share != 0]
    return float(np.exp(-(used * np.log(used)).sum()))


def max_vio_chance(tokens: int, k: int, group: int) -> float:
    """About the `max_vio` of a fair draw: the expected largest of |G| normal deviates that sum to 0 (Blom)."""
    if not tokens or group == k:
        return 0.0 if tokens else math.nan
    largest = NormalDist().inv_cdf((group - 0.375) / (group + 0.25)) * math.sqrt(group / (group - 1))
    return min(group / k - 1, largest * load_cv_chance(tokens, k, group))


def shares_from_before(chosen_TLK: np.ndarray, modality_T: np.ndarray, modality: int) -> np.ndarray:
    """[pairs, L]: of each token of one conversation that follows a token of its modality, the share of its experts
    that the token before had, too. Chance is K over the size of the group."""
    pairs = np.flatnonzero((modality_T[1:] == modality) & (modality_T[:-1] == modality))
    return overlap(chosen_TLK[pairs + 1], chosen_TLK[pairs])


def kept_from_before(chosen_TLK: np.ndarray, modality_T: np.ndarray, modality: int) -> tuple[float, int]:
    """(sum, pairs) of `shares_from_before`, mean over layers."""
    shares = shares_from_before(chosen_TLK, modality_T, modality)
    return float(shares.mean(1).sum()), len(shares)


def overlap(one_TLK: np.ndarray, other_TLK: np.ndarray) -> np.ndarray:
    """[T, L]: the share of one's K slots whose expert is among the other's. An empty slot is shared with none."""
    same = (one_TLK[..., :, None] == other_TLK[..., None, :]) & (one_TLK != NO_EXPERT)[..., None]
    return same.any(-1).mean(-1)


def pair_counts(chosen_TK: np.ndarray, group: np.ndarray) -> np.ndarray:
    """[G, G]: tokens that had both experts of the group, in one layer; on the diagonal those that had the one."""
    has = (chosen_TK[:, :, None] == group).any(1).astype(float)
    return np.rint(has.T @ has).astype(int)


def clustering_order(counts_GG: np.ndarray) -> list[int]:
    """Places of experts such that those often chosen together are near: leaves of average linkage by Jaccard distance.

    Runs that are compared should be drawn in the order of one of them."""
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering  # slow to import
    from scipy.spatial.distance import squareform

    alone = np.diag(counts_GG)
    either = alone[:, None] + alone[None, :] - counts_GG
    distance = 1 - counts_GG / np.maximum(either, 1)
    np.fill_diagonal(distance, 0)
    if len(counts_GG) < 3:
        return list(range(len(counts_GG)))
    flat = squareform(distance, checks=False)
    return leaves_list(optimal_leaf_ordering(linkage(flat, "average"), flat)).tolist()


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


def report(
    traces: RoutingTrace | Sequence[RoutingTrace],
    *,
    classes: Mapping[str, tuple[np.ndarray, Sequence[str]]] | None = None,
    orders: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All figures of the replies of one model, by modality and layer; what is undefined is None, never nan.

    `classes` are kinds of tokens besides who says them (`role`): by name, the class of every token of all traces
    (UNKNOWN where it is not judged) and the names of the classes. What experts tell of them (mutual information) is of
    a corpus: with one trace alone it is None, as with too few tokens. `orders` is another report whose orders of
    experts the co-activation shall have, so that both can be compared.
    """
    pieces = [traces] if isinstance(traces, RoutingTrace) else list(traces)
    whole = _joined(pieces)
    config, groups = whole.config, whole.config.expert_groups()
    allowed_2LE = allowed_experts(groups, config.n_routed_experts)
    outside, decisions = leakage(whole.chosen, whole.modality, allowed_2LE)
    names = list(dict.fromkeys(whole.role.tolist()))
    kinds = {"role": (np.array([names.index(role) for role in whole.role], int), names), **(classes or {})}
    for kind, (labels, known) in kinds.items():
        if len(labels) != whole.num_tokens or (len(labels) and not UNKNOWN <= min(labels) <= max(labels) < len(known)):
            raise ValueError(
                f"classes {kind!r}: {len(labels)} labels for {whole.num_tokens} tokens and {len(known)} names; "
                "give each token one, from -1 (not judged) on"
            )
    modalities = {}
    for modality in (TEXT, AUDIO):
        name = MODALITY_NAMES[modality]
        given = _orders(orders, name, len(whole.layers))
        layers = _layers(pieces, whole, modality, allowed_2LE, kinds, given)
        modalities[name] = {"n": int((whole.modality == modality).sum()), "layers": layers}
    return _plain(
        {
            "model": {
                "hash": whole.model_hash,
                "dtype": whole.dtype,
                "layers": whole.layers,
                "experts": config.n_routed_experts,
                "shared": config.n_shared_experts,
                "per_token": config.num_experts_per_tok,
                "apart": config.use_modality_aware_routing,
            },
            "traces": len(pieces),
            "tokens": whole.num_tokens,
            "leakage": {
                "outside": outside,
                "decisions": decisions,
                "share_of_tokens": whole.leakage if whole.num_tokens else None,
            },
            "modalities": modalities,
            "formulas": FORMULAS,
        }
    )


def _joined(pieces: Sequence[RoutingTrace]) -> RoutingTrace:
    kinds = {(piece.model_hash, piece.dtype, piece.config.to_json_string()) for piece in pieces}
    if len(kinds) > 1:
        raise ValueError(f"the traces are of {len(kinds)} models: report those of one model and dtype at a time")
    return concatenate(pieces)


def _orders(given: Mapping[str, Any] | None, name: str, layers: int) -> list[Any]:
    if given is None:
        return [None] * layers
    try:
        orders = [layer["coactivation"]["order"] for layer in given["modalities"][name]["layers"]]
    except (KeyError, TypeError) as error:
        raise ValueError("the orders of experts are to be taken from a report, and this is none") from error
    if len(orders) != layers:
        raise ValueError(f"orders are given for {len(orders)} layers, the traces have {layers}: use the same model")
    return orders


def _layers(
    pieces: Sequence[RoutingTrace],
    whole: RoutingTrace,
    modality: int,
    allowed_2LE: np.ndarray,
    kinds: Mapping[str, tuple[np.ndarray, Sequence[str]]],
    orders: Sequence[Sequence[int] | None],
) -> list[dict[str, Any]]:
    rows, k = whole.modality == modality, whole.chosen.shape[2]
    chosen, tokens, every = whole.chosen[rows], int(rows.sum()), allowed_2LE.shape[2]
    weights = load(chosen, every, whole.chosen_probs[rows])
    used = balance(chosen, allowed_2LE[modality])
    inside = inside_group(whole.unmasked_experts[rows][..., :k], whole.modality[rows], allowed_2LE)
    kept = np.concatenate([shares_from_before(p.chosen, p.modality, modality) for p in pieces])
    told = []
    for at, layer in enumerate(whole.layers.tolist()):
        group = np.flatnonzero(allowed_2LE[modality, at])
        size, removed = len(group), whole.removed_mass[rows, at]
        weighted = weights[at, group] / weights[at, group].sum() if weights[at, group].any() else np.full(size, np.nan)
        q = whole.probs[rows, at].astype(float)
        # half-precision probabilities may add up to a little more than what the mask left
        q /= np.maximum(np.where(removed < 1, 1 - removed, np.nan), q.sum(1))[:, None]
        told.append(
            {
                "layer": layer,
                "n": tokens,
                "experts": group,
                "load": {
                    "counts": used.counts[at, group],
                    "share": used.counts[at, group] / (k * tokens) if tokens else [None] * size,
                    "weighted": weighted,
                    "cv": used.cv[at],
                    "cv_chance": used.chance[at],
                    "cv_weighted": weighted.std() * size,
                    "max_vio": used.max_vio[at],
                    "max_vio_chance": max_vio_chance(tokens, k, size),
                    "dead": used.dead[at] if tokens else None,
                    "dead_share": used.dead[at] / size if tokens else None,
                    "dead_chance": (1 - k / size) ** tokens if tokens else None,
                    "effective": used.effective[at],
                    "effective_chance": max(k, size * math.exp(-(used.chance[at] ** 2) / 2)) if tokens else None,
                },
                "entropy": _entropy(whole.entropy[rows, at], size),
                "confidence": _mean(q[:, 0] - q[:, 1] if size > 1 < q.shape[1] else [], 0.0),
                "cut_margin": _mean(q[:, k - 1] - q[:, k] if size > k < q.shape[1] else [], 0.0),
                "locality": _mean(kept[:, at], k / size),
                "coactivation": _coactivation(chosen[:, at], group, orders[at]),
                "specialisation": {
                    kind: _classes(chosen[:, at], whole.experts[rows, at, 0], labels[rows], names, group, len(pieces))
                    for kind, (labels, names) in kinds.items()
                },
                "suppressed": _mean(removed, 1 - size / every),
                "unmasked": {
                    "n": tokens,
                    "inside": inside[:, at].mean() if tokens else None,
                    "strongest_inside": inside[:, at, 0].mean() if tokens else None,
                    "chance": size / every,
                },
                "norms": _norms(whole, rows, at),
            }
        )
    return told


def _mean(values: np.ndarray | Sequence[float], chance: float | None) -> dict[str, Any]:
    known = np.asarray(values, float)
    known = known[np.isfinite(known)]
    return {"n": len(known), "mean": known.mean() if len(known) else None, "chance": chance}


def _entropy(entropy_T: np.ndarray, size: int) -> dict[str, Any]:
    nats, even = _mean(entropy_T, None), math.log(size)
    over = nats["mean"] / even if nats["n"] and even else None
    return {"n": nats["n"], "nats": nats["mean"], "mean": over, "chance": 1.0}


def _coactivation(chosen_TK: np.ndarray, group: np.ndarray, like: Sequence[int] | None) -> dict[str, Any]:
    counts, (tokens, k), size = pair_counts(chosen_TK, group), chosen_TK.shape, len(group)
    order = group[clustering_order(counts)].tolist() if like is None else like
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(map(str, group.tolist())):
        raise ValueError(f"the order {order} is not one of the experts {group.tolist()}: use the same groups")
    alone = np.diag(counts).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = counts / alone[:, None]
        lift = counts * tokens / (alone[:, None] * alone[None, :])
    np.fill_diagonal(lift, np.nan)  # an expert with itself
    return {
        "n": tokens,
        "share": share,
        "share_chance": (k - 1) / (size - 1) if size > 1 else None,
        "lift": lift,
        "lift_chance": (k - 1) * size / (k * (size - 1)) if size > 1 else None,
        "order": order,
    }


def _classes(
    chosen_TK: np.ndarray,
    strongest_T: np.ndarray,
    labels_T: np.ndarray,
    names: Sequence[str],
    group: np.ndarray,
    traces: int,
) -> dict[str, Any]:
    """D(e, c) of the classes that occur, and what the strongest expert tells of them."""
    chance = chosen_TK.shape[1] / len(group)
    there = [label for label in range(len(names)) if (labels_T == label).any()]
    has = (chosen_TK[:, :, None] == group).any(1)
    share = np.array([has[labels_T == label].mean(0) for label in there]).reshape(len(there), len(group))
    tells = {"n": int((labels_T != UNKNOWN).sum()), "mi": None}
    found = specialisation(chosen_TK, strongest_T, labels_T) if traces > 1 else None
    if found:
        specialists = [{**s._asdict(), "label": names[s.label]} for s in found.specialists]
        tells = {"n": found.tokens, **{name: getattr(found, name) for name in ("mi", "null", "p", "entropy")}}
        tells["specialists"] = specialists
    elif traces > 1:
        tells["reason"] = f"fewer than {BLOCKS * BLOCK} tokens, or all of one class"
    else:
        tells["reason"] = "one trace: what experts tell of classes is a figure of a corpus"
    return {
        "classes": [{"name": names[label], "n": int((labels_T == label).sum())} for label in there],
        "share": share,
        "lift": share / chance,
        "chance": chance,
        "mutual_information": tells,
    }


def _norms(whole: RoutingTrace, rows: np.ndarray, at: int) -> dict[str, Any] | None:
    if whole.shared_norm is None or whole.routed_norm is None:
        return None
    shared, routed = whole.shared_norm[rows, at], whole.routed_norm[rows, at]
    known = np.isfinite(shared) & np.isfinite(routed)
    shared, routed = shared[known].astype(float), routed[known].astype(float)
    both = shared + routed
    means = [_mean(values, None)["mean"] for values in (shared, routed, routed[both > 0] / both[both > 0])]
    return {"n": len(shared), **dict(zip(("shared", "routed", "routed_share"), means))}


def agreement(
    one: RoutingTrace | Sequence[RoutingTrace], other: RoutingTrace | Sequence[RoutingTrace]
) -> dict[str, Any]:
    """How far two runs over the same tokens chose the same experts, by modality and layer. ValueError if they differ
    in tokens, layers or experts per token; checkpoint, dtype and groups may differ."""
    a, b = (_joined([side] if isinstance(side, RoutingTrace) else list(side)) for side in (one, other))
    if not (np.array_equal(a.id, b.id) and np.array_equal(a.modality, b.modality)):
        same = min(a.num_tokens, b.num_tokens)
        differs = np.flatnonzero((a.id[:same] != b.id[:same]) | (a.modality[:same] != b.modality[:same]))
        raise ValueError(
            f"the traces have other tokens from token {differs[0] if len(differs) else same} on "
            f"({a.num_tokens} and {b.num_tokens} tokens): compare runs over the same ones"
        )
    shapes = [(t.layers.tolist(), t.config.num_experts_per_tok, t.config.n_routed_experts) for t in (a, b)]
    if shapes[0] != shapes[1]:
        raise ValueError("the traces are of models with other layers or numbers of experts: nothing to compare")
    groups = [allowed_experts(t.config.expert_groups(), t.config.n_routed_experts) for t in (a, b)]
    share, k = overlap(a.chosen, b.chosen), a.chosen.shape[2]
    told = {}
    for modality in (TEXT, AUDIO):
        rows, layers = a.modality == modality, []
        for at, layer in enumerate(a.layers.tolist()):
            mine, theirs = groups[0][modality, at], groups[1][modality, at]
            chance = k * int((mine & theirs).sum()) / int(mine.sum() * theirs.sum())
            strongest = a.experts[rows, at, 0] == b.experts[rows, at, 0]
            found = _mean(share[rows, at], chance) | {"strongest": _mean(strongest, None)["mean"]}
            layers.append({"layer": layer, **found})
        told[MODALITY_NAMES[modality]] = {"n": int(rows.sum()), "layers": layers}
    hashes = [{"hash": t.model_hash, "dtype": t.dtype} for t in (a, b)]
    return _plain({"models": hashes, "tokens": a.num_tokens, "modalities": told, "formula": FORMULAS["agreement"]})


def _plain(value: Any) -> Any:
    """As JSON has it: lists, few digits, None for what is no number."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
