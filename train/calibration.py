"""Whether a model is as often right as it is sure: bins of confidence, the expected error, and a plot of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

BINS = 10


class Bin(NamedTuple):
    """Answers about equally sure: how many, their mean confidence, and the share of them that is right."""

    n: int
    confidence: float
    accuracy: float


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> list[Bin]:
    """Bins of equal width over 0..1; confidence and accuracy of an empty one are nan."""
    place = np.minimum((np.asarray(confidence) * bins).astype(int), bins - 1)
    rows = [place == number for number in range(bins)]
    nothing = float("nan")
    return [
        Bin(int(mine.sum()), float(confidence[mine].mean()), float(right[mine].mean())) if mine.any()
        else Bin(0, nothing, nothing)
        for mine in rows
    ]  # fmt: skip


def calibration_error(bins: Sequence[Bin]) -> float:
    """How far confidence and accuracy lie apart, over all answers: the expected calibration error."""
    total = sum(each.n for each in bins)
    return sum(each.n * abs(each.confidence - each.accuracy) for each in bins if each.n) / total


def plot_reliability(bins: Sequence[Bin], title: str, path: Path) -> None:
    """Draw accuracy over confidence, and how many answers there are of each, as an image."""
    from matplotlib.figure import Figure  # slow to import, and rarely needed

    figure = Figure(figsize=(4.8, 5.2), dpi=120, layout="constrained")  # no pyplot: no display
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = 1 / len(bins)
    middles = [(number + 0.5) * width for number in range(len(bins))]
    filled = [each for each in bins if each.n]
    upper.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="as sure as right")
    upper.plot(*zip(*((b.confidence, b.accuracy) for b in filled)), "o-", color="#0072b2", label="measured")
    upper.set_ylabel("share that is right", color="0.35")
    upper.set_ylim(-0.02, 1.02)
    upper.legend(frameon=False, fontsize="small")
    upper.set_title(f"{title}: error {calibration_error(bins):.3f}", loc="left", fontweight="bold", fontsize="medium")
    lower.bar(middles, [each.n for each in bins], width=0.9 * width, color="#56b4e9")
    lower.set_xlabel("confidence", color="0.35")
    lower.set_ylabel("answers", color="0.35")
    for panel in (upper, lower):
        panel.set_xlim(0, 1)
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
