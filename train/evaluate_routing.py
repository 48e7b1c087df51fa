"""`python -m train evaluate routing`: whether a trained router does what it should, and what its experts are for.

Spoken questions of the test set `seen` and typed ones are answered with routing recorded. Names end in `_text` or
`_audio`, the modality of the tokens; figures that layers have each are means over the MoE layers.

`leakage`: share of choices outside the token's group, counted. `load_cv`, `max_vio`, `dead_experts`,
`effective_experts`: how evenly a group is used (`_chance`: `load_cv` of a fair draw). `entropy`: of the probabilities
within the group, over its most. `locality`: share of a token's experts that the token before had, too.
`suppressed_mass`: probability that the mask took away. `unmasked_top1_inside`, `unmasked_outside`: how often the
strongest expert of all is one of the group, and which share of the choices would leave it, were one layer's mask gone.
`mi_MODALITY_CLASSES`: what the strongest expert tells of a token's class, in nats. `knock_out_MODALITY_words`,
`_units`: how much log-probability a token of the same reply loses on average with a layer's most used expert of that
modality off, the next best standing in; `_changed`: share of answers that then read otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from most_core.assistant import Most
from most_core.config import AUDIO, MODALITY_NAMES, TEXT
from most_core.generation import GenerationSettings
from most_core.loading import load
from most_core.replay import features_of, scored
from most_core.speech import SAMPLE_RATE
from most_core.trace import RoutingTrace
from most_core.trace_rows import concatenate
from train import token_classes
from train.config import RunOptions
from train.data import test_sets
from train.progress import Progress
from train.routing_figures import (
    UNKNOWN,
    Balance,
    Specialisation,
    allowed_experts,
    balance,
    inside_group,
    kept_from_before,
    leakage,
    specialisation,
)
from train.scoreboard import Scoreboard

SPOKEN, TYPED, KNOCKED = 100, 50, 20
SETTINGS = GenerationSettings(max_new_tokens=512)  # one that never ends must not take all the time
CLASSES = {  # by modality: set of classes -> their names
    TEXT: {"words": token_classes.WORD_CLASSES, "role": token_classes.ROLES},
    AUDIO: {
        "side": token_classes.SIDES,
        "loudness": token_classes.LOUDNESS,
        "sounds": token_classes.SOUNDS,
    },
}
WHAT = {
    "words": "words of text",
    "role": "who says the text",
    "side": "heard frames or spoken units",
    "loudness": "quiet or loud, both sides",
    "sounds": "sounds in heard frames, by the words that the ears caption",
}


@dataclass(frozen=True)
class Answered:
    """A question, how it was answered, and the classes of all its tokens (UNKNOWN where a set is not for a token)."""

    given: str | np.ndarray
    trace: RoutingTrace
    classes: dict[str, np.ndarray]


def run(
    model: Path,
    as_json: bool,
    options: RunOptions,
    data: Path | None = None,
    count: int | None = None,
    out: Path | None = None,
) -> int:
    """Measure the model in the folder `model` and print the figures; 0 once that is done.

    `data` keeps the synthesized test sets, `count` is how many spoken questions at most, `out` the `figures.json` to
    put the figures into.
    """
    if out and not out.parent.is_dir():
        raise FileNotFoundError(f"--out {out}: {out.parent} is no folder; make it first")
    most = load(model, device=options.device)
    if most.encoder is None:
        raise ValueError(f"{model} has no speech encoder: it cannot be asked spoken questions")
    if not most.config.moe_layers:
        raise ValueError(f"{model} has no mixture-of-experts layers: there is no routing to judge")
    utterances = test_sets.load("seen", data or test_sets.FOLDER, workers=options.threads or 2)
    questions = [utterance for utterance in utterances if utterance.task == "question"]
    spoken, typed = min(SPOKEN, count or SPOKEN), min(TYPED, count or TYPED)
    given: list[str | np.ndarray] = [question.wave for question in questions[:spoken]]
    given += [question.text for question in questions[spoken : spoken + typed]]
    board = Scoreboard("routing")
    board.figures["n_spoken"], board.figures["n_typed"] = spoken, len(given) - spoken
    measure(board, most, given)
    if not most.config.use_modality_aware_routing:
        board.notes.append("the plain router: every expert is in both groups, so that nothing can leak")
    board.report(f"the routing of {model}", as_json, out)
    return 0


def measure(board: Scoreboard, most: Most, given: Sequence[str | np.ndarray]) -> None:
    """Put all figures of the answers to these questions into `board`."""
    answered, missing = [], set()
    with Progress(None, len(given), title="answers", unit="question") as progress:
        for row, question in enumerate(given):
            answered.append(_answered(most, question, missing))
            progress.update(row)
    board.notes += sorted(missing)
    config = most.config
    whole = concatenate([each.trace for each in answered])
    classes = {name: np.concatenate([each.classes[name] for each in answered]) for name in WHAT}
    allowed = allowed_experts(config.expert_groups(), config.n_routed_experts)
    outside, board.figures["decisions"] = leakage(whole.chosen, whole.modality, allowed)
    board.figures["leakage"] = outside / max(1, board.figures["decisions"])
    used: dict[int, Balance] = {}
    for modality in (TEXT, AUDIO):
        rows = whole.modality == modality
        board.figures[f"tokens_{MODALITY_NAMES[modality]}"] = int(rows.sum())
        if rows.any():
            used[modality] = balance(whole.chosen[rows], allowed[modality])
            _add_balance(board, MODALITY_NAMES[modality], used[modality], config.num_experts_per_tok)
            _add_habits(board, modality, [each.trace for each in answered], allowed)
            for kind, names in CLASSES[modality].items():
                _add_specialisation(board, modality, kind, names, whole, classes[kind])
    board.notes += [
        "load is how often an expert is chosen, not how much depends on it; chance is of independent tokens, and "
        "tokens of one sentence are alike",
        "without the mask: what this router would choose, layer by layer, with all else as it is; a plain mixture, "
        "trained without a mask, is another model",
    ]
    _measure_knock_outs(board, most, answered, used)


def _answered(most: Most, given: str | np.ndarray, missing: set[str]) -> Answered:
    reply = most.answer(given, settings=SETTINGS, record_routing=True)
    trace, tokens = reply.trace, most.tokens
    special = np.isin(trace.id, most.processor.special_ids) | (trace.modality == AUDIO)
    heard, spoken = trace.id == tokens.frame, (trace.modality == AUDIO) & (trace.id != tokens.frame)
    text = trace.modality == TEXT
    sides = {name: np.full(trace.num_tokens, UNKNOWN) for name in WHAT}
    sides["words"][text] = token_classes.word_classes(trace.text.tolist(), special.tolist())[text]
    roles = np.array([token_classes.ROLES.index(r) if r in token_classes.ROLES else UNKNOWN for r in trace.role])
    sides["role"][text] = roles[text]
    sides["side"][heard], sides["side"][spoken] = 0, 1
    frames, units, per_frame = int(heard.sum()), int(spoken.sum()), SAMPLE_RATE // most.config.audio_rate_hz
    if frames:
        sides["loudness"][heard] = token_classes.loudness(np.asarray(given), frames, per_frame)
        if reply.words:
            try:
                sides["sounds"][heard] = token_classes.sounds(reply.words, frames, most.config.audio_rate_hz)
            except ModuleNotFoundError as error:
                missing.add(f"no mi_audio_sounds: {error}")
    if units and len(reply.waveform):
        # the last unit is not recorded where the reply ends with it
        per_unit = reply.sample_rate // most.config.audio_rate_hz
        sides["loudness"][spoken] = token_classes.loudness(reply.waveform, len(reply.units), per_unit)[:units]
    return Answered(given, trace, sides)


def _add_balance(board: Scoreboard, name: str, used: Balance, k: int) -> None:
    size = float(used.size.mean())
    board.figures |= {
        f"group_size_{name}": size,
        f"load_cv_{name}": float(used.cv.mean()),
        f"load_cv_{name}_chance": float(used.chance.mean()),
        f"max_vio_{name}": float(used.max_vio.mean()),
        f"max_vio_{name}_worst": float(used.max_vio.max()),
        f"dead_experts_{name}": int(used.dead.sum()),
        f"experts_{name}": int(used.size.sum()),
        f"effective_experts_{name}": float(used.effective.mean()),
        f"locality_{name}_chance": float((k / used.size).mean()),
    }


def _add_habits(board: Scoreboard, modality: int, traces: Sequence[RoutingTrace], allowed: np.ndarray) -> None:
    """Means over tokens and layers, whose intervals draw whole conversations."""
    name, most_of = MODALITY_NAMES[modality], np.log(np.maximum(2, allowed[modality].sum(-1)))
    sums: dict[str, list[tuple[float, int]]] = {}
    for trace in traces:
        rows = trace.modality == modality
        k, own = trace.chosen.shape[2], trace.modality[rows]
        inside = inside_group(trace.unmasked_experts[rows][..., :k], own, allowed)
        per_token = {
            "entropy": trace.entropy[rows] / most_of,
            "suppressed_mass": trace.removed_mass[rows],
            "unmasked_top1_inside": inside[..., 0],
            "unmasked_outside": ~inside,
        }
        for figure, values in per_token.items():
            sums.setdefault(figure, []).append((float(values.sum()), values.size))
        kept, pairs = kept_from_before(trace.chosen, trace.modality, modality)
        sums.setdefault("locality", []).append((kept, pairs))
    for figure, pairs in sums.items():
        board.add_rate(f"{figure}_{name}", *(np.array(column, dtype=float) for column in zip(*pairs)))


def _add_specialisation(
    board: Scoreboard, modality: int, kind: str, names: Sequence[str], whole: RoutingTrace, classes: np.ndarray
) -> None:
    """Mean over the layers as figures, the layers as a table among the notes."""
    rows, found = whole.modality == modality, {}
    for at, layer in enumerate(whole.layers.tolist()):
        told = specialisation(whole.chosen[rows, at], whole.experts[rows, at, 0], classes[rows])
        if told:
            found[layer] = told
    figure = f"mi_{MODALITY_NAMES[modality]}_{kind}"
    if not found:
        board.notes.append(f"no {figure}: too few tokens, or all of one class")
        return
    board.figures[figure] = float(np.mean([told.mi for told in found.values()]))
    board.figures[f"{figure}_null"] = float(np.mean([told.null for told in found.values()]))
    board.notes.append(specialists_table(f"{figure}: {WHAT[kind]}", found, names))


def specialists_table(title: str, found: dict[int, Specialisation], names: Sequence[str]) -> str:
    """Layer by layer, what the strongest expert tells and the experts that tell most."""
    told = next(iter(found.values()))
    lines = [
        f"{title} ({told.tokens} tokens, {told.entropy:.2f} nats to tell; null: 95 % of moved blocks lie below)",
        "  layer    MI  null      p  expert leads in class x as often as elsewhere (tokens; chosen for of the class)",
    ]
    for layer, row in found.items():
        who = ", ".join(
            f"{s.expert} {names[s.label]} x{s.lift:.1f} ({s.count}; {100 * s.chosen:.0f} %)" for s in row.specialists
        )
        lines.append(f"  {layer:5d} {row.mi:5.3f} {row.null:5.3f}  {row.p:5.3f}  {who or '-'}")
    return "\n".join(lines)


def _measure_knock_outs(board: Scoreboard, most: Most, answered: Sequence[Answered], used: dict[int, Balance]) -> None:
    """What the replies lose without the most used expert of one layer at a time: by the same words, and by new ones."""
    half = KNOCKED // 2
    spoken = [each for each in answered if not isinstance(each.given, str)]
    some = spoken[:half] + [each for each in answered if isinstance(each.given, str)][: KNOCKED - len(spoken[:half])]
    k, quiet = most.config.num_experts_per_tok, replace(SETTINGS, speak=False, max_new_tokens=128)
    off = [
        (modality, layer, int(group.counts[row].argmax()))
        for modality, group in used.items()
        for row, layer in enumerate(most.config.moe_layers)
        if group.size[row] > k
    ]
    if not off:
        board.notes.append(f"no knock_out_*: each group has only the {k} experts that every token takes")
        return
    # what each question loses: (modality, words or units) -> by layer -> sums and tokens of the questions
    lost: dict[tuple[int, str], dict[int, list[tuple[float, int]]]] = {}
    changed: dict[int, list[tuple[int, int]]] = {modality: [] for modality in used}
    with Progress(None, len(some), title="knock-outs", unit="question") as progress:
        for number, each in enumerate(some):
            features = None if isinstance(each.given, str) else features_of(most, each.given)
            plain = scored(most, each.trace, features, settings=SETTINGS)
            is_unit = each.trace.modality[plain.place] == AUDIO
            text = most.answer(each.given, settings=quiet).text
            differs = dict.fromkeys(changed, 0)
            for modality, layer, expert in off:
                without = scored(most, each.trace, features, knock_out=[(layer, expert)], like=plain)
                drop = plain.free - without.free
                for kind, which in (("words", ~is_unit), ("units", is_unit)):
                    by_layer = lost.setdefault((modality, kind), {}).setdefault(layer, [])
                    by_layer.append((float(drop[which].sum()), int(which.sum())))
                differs[modality] += most.answer(each.given, settings=quiet, knock_out=[(layer, expert)]).text != text
            for modality, several in differs.items():
                changed[modality].append((several, sum(which == modality for which, *_ in off)))
            progress.update(number)
    board.figures["n_knocked_out"] = len(some)
    for modality, pairs in changed.items():
        board.add_rate(f"knock_out_{MODALITY_NAMES[modality]}_changed", *(np.array(c) for c in zip(*pairs)))
    for (modality, kind), by_layer in lost.items():
        means = {layer: _mean(pairs) for layer, pairs in by_layer.items() if sum(n for _, n in pairs)}
        if means:
            figure = f"knock_out_{MODALITY_NAMES[modality]}_{kind}"
            board.figures[figure] = float(np.mean(list(means.values())))
            experts = {layer: expert for which, layer, expert in off if which == modality}
            told = ", ".join(f"layer {layer} expert {experts[layer]} {mean:+.3f}" for layer, mean in means.items())
            board.notes.append(f"{figure}, nats a token: {told}")


def _mean(pairs: Sequence[tuple[float, int]]) -> float:
    return sum(total for total, _ in pairs) / sum(count for _, count in pairs)
