"""`python -m train.compare_runs FOLDER NAME OTHER...`: do runs of one kind end lower than runs of another kind?

A run is `FOLDER/NAME/seed-N/STAGE` with the `log.jsonl` that a stage leaves. Of each check loss at a run's end: mean
and range over the seeds, and how far the others lie above the first NAME: the mean of the differences between runs of
one seed, which saw the same lessons in the same order, with its standard error.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Runs = Mapping[int, Mapping[str, float]]  # seed -> figure -> value
SPEED = "tokens_per_s/all"


@dataclass(frozen=True)
class Difference:
    """How far a figure of the other runs lies above that of the first; `error` is nan where only one seed has both."""

    mean: float
    error: float
    seeds: int
    spread: float  # the wider range over seeds of the two

    @property
    def clear(self) -> bool:
        """Whether it is larger than what a seed alone changes."""
        return self.seeds > 1 and abs(self.mean) > self.spread


def last_figures(log: Path) -> dict[str, float]:
    """The check losses that a run ended with, and its median speed. ValueError where it has not come to its end."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    checks = [line for line in lines if any(name.startswith("check_") for name in line)]
    speeds = [line[SPEED] for line in lines if SPEED in line]
    if not checks or not speeds or checks[-1]["step"] < max(line["step"] for line in lines):
        raise ValueError(f"{log} ends without check losses: let the run come to its end, with check=FOLDER")
    figures = {name: value for name, value in checks[-1].items() if name.startswith("check_")}
    # the first line is of a cold start, unless there is no other
    return figures | {SPEED: statistics.median(speeds[1:] or speeds)}


def read_runs(folder: Path, name: str) -> dict[str, dict[int, dict[str, float]]]:
    """Stage -> seed -> figures, of all runs of one kind."""
    stages: dict[str, dict[int, dict[str, float]]] = {}
    for log in sorted(folder.glob(f"{name}/seed-*/*/log.jsonl")):
        stage, seed = log.parent.name, int(log.parent.parent.name.removeprefix("seed-"))
        stages.setdefault(stage, {})[seed] = last_figures(log)
    if not stages:
        raise FileNotFoundError(f"{folder / name} holds no seed-*/*/log.jsonl: there is no run to compare")
    return stages


def difference(first: Runs, other: Runs, figure: str) -> Difference:
    """Of one figure, other less first, by the seeds that both have."""
    seeds = sorted(set(first) & set(other))
    if not seeds:
        raise ValueError(f"no seed is in both: {sorted(first)} and {sorted(other)}; train the same seeds")
    apart = [other[seed][figure] - first[seed][figure] for seed in seeds]
    error = statistics.stdev(apart) / math.sqrt(len(apart)) if len(apart) > 1 else math.nan
    ranges = [max(values) - min(values) for values in (_values(runs, figure) for runs in (first, other))]
    return Difference(statistics.fmean(apart), error, len(seeds), max(ranges))


def table(stage: str, kinds: Mapping[str, Runs]) -> str:
    """Markdown of one stage: a row for each figure, all kinds in it, compared with the first of them."""
    first, *others = kinds
    heads = [f"{name} ({len(runs)} seeds)" for name, runs in kinds.items()] + [f"{n} - {first}" for n in others]
    rows = [f"| {stage} | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for figure in _figures(kinds):
        cells = [_spread(_values(runs, figure), figure) for runs in kinds.values()]
        cells += [_told(difference(kinds[first], kinds[name], figure), figure) for name in others]
        rows.append(f"| {figure.removeprefix('check_loss_')} | {' | '.join(cells)} |")
    return "\n".join(rows)


def verdict(stage: str, kinds: Mapping[str, Runs]) -> list[str]:
    """A sentence for each other kind: which of the two is better, in how much, and whether seeds alone may do that."""
    first, *others = kinds
    told = []
    for name in others:
        found = {f: difference(kinds[first], kinds[name], f) for f in _figures(kinds) if f != SPEED}
        better = {which: [f for f, d in found.items() if sign * d.mean < 0] for which, sign in ((name, 1), (first, -1))}
        winner = max(better, key=lambda which: len(better[which]))
        loser = first if winner == name else name
        clear = {which: sum(found[figure].clear for figure in better[which]) for which in better}
        told.append(
            f"{stage}: {winner} has the lower loss in {len(better[winner])} of {len(found)} check losses; by more than "
            f"the spread over seeds in {clear[winner]}, and {loser} is lower by more than that in {clear[loser]}"
        )
        if not any(clear.values()):
            told[-1] += ": no difference that exceeds the spread over seeds"
    return told


def _figures(kinds: Mapping[str, Runs]) -> list[str]:
    """Those that every run has, speed last."""
    everything = [set(figures) for runs in kinds.values() for figures in runs.values()]
    return [*sorted(set.intersection(*everything) - {SPEED}), SPEED]


def _values(runs: Runs, figure: str) -> list[float]:
    return [figures[figure] for figures in runs.values()]


def _spread(values: Sequence[float], figure: str) -> str:
    digits = 0 if figure == SPEED else 3
    low, high, mean = min(values), max(values), statistics.fmean(values)
    return f"{mean:.{digits}f} ({low:.{digits}f} .. {high:.{digits}f})"


def _told(found: Difference, figure: str) -> str:
    digits = 0 if figure == SPEED else 3
    error = "one seed" if math.isnan(found.error) else f"± {found.error:.{digits}f}"
    return f"{found.mean:+.{digits}f} {error}" + (", more than the spread" if found.clear else "")


def main(argv: Sequence[str]) -> int:
    """Print the tables and what follows from them; 2 with one line on stderr where runs are missing."""
    if len(argv) < 3:
        print("usage: python -m train.compare_runs FOLDER NAME OTHER...", file=sys.stderr)
        return 2
    try:
        folder, names = Path(argv[0]), argv[1:]
        found = {name: read_runs(folder, name) for name in names}
        for stage in sorted(set.intersection(*(set(stages) for stages in found.values()))):
            kinds = {name: found[name][stage] for name in names}
            print(table(stage, kinds), end="\n\n")
            print("\n".join(verdict(stage, kinds)), end="\n\n")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        "± is the standard error of the difference between runs of one seed; the spread is the wider range over seeds."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
