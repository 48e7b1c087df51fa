"""What every evaluation prints and keeps: figures by the names of the scoreboard, with their intervals and bars."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from most_core.checkpoint_files import read_json
from train.files import write_whole
from train.word_errors import interval, rate

BARS = {  # at most
    **{"ctc_wer_seen": 0.04, "ctc_wer_unseen": 0.15, "slot_wer_human": 0.12, "encoder_rtf_1t": 0.05},
    **{"resynth_wer": 0.2, "resynth_ratio": 1.5, "vocoder_rtf_1t": 0.1, "vocoder_first_chunk_ms_1t": 60.0},
}
LOW, HIGH = "_low", "_high"


@dataclass
class Scoreboard:
    """Figures of one evaluation, and what a reader should know about them."""

    bench: str
    figures: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _shares: set[str] = field(default_factory=set)  # figures shown in percent

    def add_rate(self, name: str, errors: np.ndarray, words: np.ndarray) -> None:
        """Word errors of utterances as a rate with its 95 % interval; nothing where there are no words."""
        if words.sum():
            self.figures[name] = rate(errors, words)
            self.figures[name + LOW], self.figures[name + HIGH] = interval(errors, words)
            self._shares.add(name)

    def add_mean(self, name: str, values: np.ndarray) -> None:
        """The mean of a figure that each utterance has, with its 95 % interval; those that are nan do not count."""
        values = np.asarray(values, dtype=float)
        values = values[np.isfinite(values)]
        if len(values):
            self.figures[name] = rate(values, np.ones(len(values)))
            self.figures[name + LOW], self.figures[name + HIGH] = interval(values, np.ones(len(values)))

    def report(self, title: str, as_json: bool, path: Path | None) -> None:
        """Print the figures, as one line of JSON or as a table, and put them into the `figures.json` at `path`."""
        if path:
            self.save(path)
        if as_json:
            print(json.dumps(self.as_json()))
        else:
            self.show(title)

    def as_json(self) -> dict[str, Any]:
        figures = {name: float(f"{value:.4g}") for name, value in self.figures.items()}
        return {"bench": self.bench, "machine": machine(), "figures": figures, "notes": self.notes}

    def show(self, title: str) -> None:
        """Print a table for people: shares of words in percent, the rest as it is."""
        told = ", ".join(f"{name} {value}" for name, value in machine().items() if value)
        print(f"{title}\n{told}\n")
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
        value, between = self.figures[name], ""
        share = name in self._shares
        if share:
            between = f"{100 * self.figures[name + LOW]:.1f} .. {100 * self.figures[name + HIGH]:.1f}"
        elif name + LOW in self.figures:
            between = f"{self.figures[name + LOW]:.3g} .. {self.figures[name + HIGH]:.3g}"
        measured = f"{100 * value:6.2f} %" if share else f"{value:8.4g}"
        row = f"{measured}   {between:>13}"
        if name in BARS:
            bar = f"{100 * BARS[name]:g} %" if share else f"{BARS[name]:g}"
            row += f"  at most {bar}: {'pass' if value <= BARS[name] else 'MISS'}"
        return row

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
