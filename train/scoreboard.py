"""What every evaluation prints and keeps: figures by the names of the scoreboard, with their intervals and bars."""

from __future__ import annotations

import json
import math
import operator
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from most_core.checkpoint_files import read_json
from train.files import write_whole
from train.word_errors import interval, rate

BARS = {  # at most
    **{"asr_wer_seen": 0.05, "asr_wer_unseen": 0.15},
    **{"ctc_wer_seen": 0.04, "ctc_wer_unseen": 0.15, "slot_wer_human": 0.12, "encoder_rtf_1t": 0.05},
    **{"resynth_wer": 0.2, "resynth_ratio": 1.5, "vocoder_rtf_1t": 0.1, "vocoder_first_chunk_ms_1t": 60.0},
}
FLOORS = {  # at least
    **{"qa_text_seen": 0.95, "qa_text_seen_lowest_topic": 0.7, "qa_text_unseen": 0.85},
    **{"qa_text_unseen_lowest_topic": 0.7, "qa_speech_seen": 0.85, "orders_human": 0.85},
}
LOW, HIGH = "_low", "_high"
Z = 1.959964  # standard errors of a 95 % interval


@dataclass
class Scoreboard:
    """Figures of one evaluation, and what a reader should know about them."""

    bench: str
    figures: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    bars: dict[str, float] = field(default_factory=lambda: dict(BARS))  # at most
    _shares: set[str] = field(default_factory=set)  # figures shown in percent

    def add_rate(self, name: str, errors: np.ndarray, words: np.ndarray) -> None:
        """Word errors of utterances as a rate with its 95 % interval; nothing where there are no words."""
        if words.sum():
            self.add_ratio(name, errors, words)
            self._shares.add(name)

    def add_ratio(self, name: str, totals: np.ndarray, counts: np.ndarray) -> None:
        """The sum of `totals` over that of `counts`, with the interval that resampling the rows gives."""
        if counts.sum():
            self.figures[name] = rate(totals, counts)
            self.figures[name + LOW], self.figures[name + HIGH] = interval(totals, counts)

    def add_share(self, name: str, hits: np.ndarray) -> None:
        """The share of rows that are true, with Wilson's interval, and `n_NAME`; nothing where there are no rows."""
        n = len(hits)
        if n:
            share, spread = float(np.mean(hits)), Z**2 / n
            middle = (share + spread / 2) / (1 + spread)
            half = Z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
            self.figures[name] = share
            self.figures[name + LOW], self.figures[name + HIGH] = max(0.0, middle - half), min(1.0, middle + half)
            self.figures[f"n_{name}"] = n
            self._shares.add(name)

    def add_mean(self, name: str, values: np.ndarray) -> None:
        """The mean of a figure that each utterance has, with its 95 % interval; those that are nan do not count."""
        values = np.asarray(values, dtype=float)
        values = values[np.isfinite(values)]
        if len(values):
            self.figures[name] = rate(values, np.ones(len(values)))
            self.figures[name + LOW], self.figures[name + HIGH] = interval(values, np.ones(len(values)))

    def report(
        self, title: str, as_json: bool, path: Path | None, parts: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """Print the figures, as one line of JSON or as a table, and put them into the `figures.json` at `path`.

        `parts`: names of figures by heading, for a table of Markdown each.
        """
        if path:
            self.save(path)
        if as_json:
            print(json.dumps(self.as_json()))
        elif parts is not None:
            print(self.markdown(title, parts))
        else:
            self.show(title)

    def markdown(self, title: str, parts: Mapping[str, Sequence[str]]) -> str:
        """A table for each part, with the number of rows that each figure is of."""
        lines = [f"# {title[0].upper()}{title[1:]}", "", self._told()]
        for part, names in parts.items():
            shown = [name for name in names if not name.endswith((LOW, HIGH)) and not name.startswith("n_")]
            if shown:
                lines += [
                    "",
                    f"## {part}",
                    "",
                    "| figure | measured | 95 % interval | n | bar |",
                    "|---|---|---|---|---|",
                ]
            for name in shown:
                measured, between, bar = (cell.strip() for cell in self._cells(name))
                n = self.figures.get(f"n_{name}", "")
                lines.append(f"| `{name}` | {measured} | {between} | {n} | {bar} |")
        lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines).rstrip()

    def _told(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in machine().items() if value)

    def as_json(self) -> dict[str, Any]:
        figures = {name: float(f"{value:.4g}") for name, value in self.figures.items()}
        return {"bench": self.bench, "machine": machine(), "figures": figures, "notes": self.notes}

    def show(self, title: str) -> None:
        """Print a table for people: shares of words in percent, the rest as it is."""
        print(f"{title}\n{self._told()}\n")
        names = [name for name in self.figures if not name.endswith((LOW, HIGH)) and not name.startswith("n_")]
        width = max(map(len, names), default=0)
        print(f"{'':{width}}  measured   95 % interval  bar")
        for name in names:
            print(f"{name:{width}}  {self._row(name)}".rstrip())
        counts = [f"{name.removeprefix('n_')} {n}" for name, n in self.figures.items() if name.startswith("n_")]
        print(f"\nutterances: {', '.join(counts)}")
        for note in self.notes:
            print(f"note: {note}")

    def _row(self, name: str) -> str:
        measured, between, bar = self._cells(name)
        return f"{measured}   {between:>13}  {bar}"

    def _cells(self, name: str) -> tuple[str, str, str]:
        value, between, bar = self.figures[name], "", ""
        share = name in self._shares
        if share:
            between = f"{100 * self.figures[name + LOW]:.1f} .. {100 * self.figures[name + HIGH]:.1f}"
        elif name + LOW in self.figures:
            between = f"{self.figures[name + LOW]:.3g} .. {self.figures[name + HIGH]:.3g}"
        measured = f"{100 * value:6.2f} %" if share else f"{value:8.4g}"
        for word, bars, met in (("most", self.bars, operator.le), ("least", FLOORS, operator.ge)):
            if name in bars:
                limit = f"{100 * bars[name]:.3g} %" if share else f"{bars[name]:g}"
                bar = f"at {word} {limit}: {'pass' if met(value, bars[name]) else 'MISS'}"
        return measured, between, bar

    def save(self, path: Path) -> None:
        """Put this evaluation into a `figures.json` beside the other ones, in place of an earlier one of its kind."""
        kept = read_json(path) if path.exists() else {}
        write_whole(path, (json.dumps(kept | {self.bench: self.as_json()}, indent=1) + "\n").encode())


def machine() -> dict[str, str | int | None]:
    """What the figures were measured on."""
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model n")]
        cpu = names[0] if names else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "cores": cores, "gpu": gpu, "torch": torch.__version__}
