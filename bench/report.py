"""What every bench prints: a table for people, or one JSON object as the last line for scripts."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass
class Report:
    """Figures of one bench, by the names of the scoreboard, and what a reader should know about them."""

    bench: str
    figures: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def show(self, as_json: bool) -> None:
        figures = {name: float(f"{value:.4g}") for name, value in self.figures.items()}
        if as_json:
            print(json.dumps({"bench": self.bench, "machine": machine(), "figures": figures, "notes": self.notes}))
            return
        print(f"bench {self.bench} on {', '.join(f'{k} {v}' for k, v in machine().items() if v)}")
        width = max(map(len, figures), default=0)
        for name, value in figures.items():
            print(f"  {name:{width}s}  {value:g}")
        for note in self.notes:
            print(f"  note: {note}")


def machine() -> dict[str, str | int | None]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "cores": len(_usable_cores()), "gpu": gpu, "torch": torch.__version__}


def _usable_cores() -> Sequence[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def interleaved(runs: dict[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each run, `rounds` times in turn: machines are shared, so rivals must meet the same weather."""
    for _ in range(warmup):
        for run in runs.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(rounds):
        names = list(runs) if round_number % 2 == 0 else list(reversed(runs))
        for name in names:
            start = time.perf_counter()
            runs[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over the pairs of theirs / ours: above 1 means that ours is faster."""
    return statistics.median(t / o for o, t in zip(ours, theirs))
