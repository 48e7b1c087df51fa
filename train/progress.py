"""What a long run shows and leaves behind: a progress bar, `log.jsonl`, TensorBoard events, a plot of the losses."""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

LOG, EVENTS, PLOT = "log.jsonl", "tensorboard", "losses.png"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # told apart by the colour-blind too


class Progress:
    """Shows how far a run is, and records its scalars. A context manager.

    On a terminal it is one line that changes; elsewhere one line every `every_seconds`. Steps are counted from 0:
    `update(9)` and `log(9, ...)` say that ten steps are done, as `save_checkpoint(folder, 10, ...)` does.
    """

    def __init__(
        self,
        folder: Path | None,
        total: int | None,
        *,
        step: int = 0,
        title: str = "",
        unit: str = "step",
        every_seconds: float = 10.0,
        stream: TextIO | None = None,
    ) -> None:
        """A run of `total` steps, `step` of them done. What an earlier, killed run logged from `step` on is dropped.

        Without a folder nothing is recorded.
        """
        self._folder, self._total, self._first = folder, total, step
        self._title, self._unit, self._every = title, unit, every_seconds
        self._stream = sys.stderr if stream is None else stream
        self._done = step
        self._log: TextIO | None = None
        self._events: Any = None

    def __enter__(self) -> Progress:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            _drop_from(self._folder / LOG, self._first)
            self._log = open(self._folder / LOG, "a", encoding="utf-8", buffering=1)
            self._events = _event_writer(self._folder / EVENTS, self._first)
        self._tty = self._stream.isatty()
        self._bar = tqdm(
            total=self._total,
            initial=self._first,
            desc=self._title or None,
            unit=f" {self._unit}s",
            file=self._stream,
            disable=not self._tty,
            dynamic_ncols=True,
            mininterval=0.2,
        )
        self._started = self._line_at = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._tty and self._done > self._first:
            self._print_line({})
        self._bar.close()
        if self._log is not None:
            self._log.close()
        if self._events is not None:
            self._events.close()

    def update(self, step: int, **shown: float) -> None:
        """Step `step` is done. `shown` stands beside the bar and is not recorded. Cheap: call it for every step."""
        self._done = step + 1
        if self._tty:
            if shown:
                self._bar.set_postfix_str(_spell(shown), refresh=False)
            self._bar.update(self._done - self._bar.n)
        elif time.monotonic() - self._line_at >= self._every:
            self._print_line(shown)

    def log(self, step: int, **scalars: float) -> None:
        """Step `step` is done: record its scalars, named `family/member` or `family`, and show them."""
        values = {name: float(value) for name, value in scalars.items()}
        if self._log is not None:
            self._log.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)
        self.update(step, **values)

    def note(self, text: str) -> None:
        """A line of text that stays, above the bar where there is one."""
        if self._tty:
            tqdm.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def _print_line(self, shown: dict[str, float]) -> None:
        self._line_at = time.monotonic()
        rate = (self._done - self._first) / max(self._line_at - self._started, 1e-9)
        done = f"{self._done} {self._unit}s"
        left = ""
        if self._total:
            done = f"{self._done} of {self._total} {self._unit}s ({100 * self._done / self._total:.0f} %)"
            left = f"{tqdm.format_interval((self._total - self._done) / rate)} left" if rate else ""
        parts = [done, f"{rate:.3g} a second", left, _spell(shown)]
        title = f"{self._title}: " if self._title else ""
        print(title + ", ".join(part for part in parts if part), file=self._stream, flush=True)


def plot_losses(folder: Path) -> Path:
    """Draw `folder/losses.png` from `folder/log.jsonl`: a panel for each family of scalars, smooth curves over raw."""
    from matplotlib.figure import Figure  # slow to import, and needed once

    families: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for line in _lines(folder / LOG):
        for name, value in line.items():
            if name not in ("step", "time") and math.isfinite(value):
                families.setdefault(name.split("/")[0], {}).setdefault(name, []).append((line["step"], value))
    if not families:
        raise ValueError(f"{folder / LOG}: no scalars to plot yet")
    columns = min(2, len(families))
    rows = math.ceil(len(families) / columns)
    figure = Figure(figsize=(6.4 * columns, 3.5 * rows), dpi=120, layout="constrained")  # no pyplot: no display
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for panel, (family, curves) in zip(panels, families.items()):
        _draw(panel, family, curves)
    for panel in panels:
        panel.set_visible(False)
    figure.savefig(folder / PLOT)
    return folder / PLOT


def _draw(panel: Any, family: str, curves: dict[str, list[tuple[int, float]]]) -> None:
    for color, (name, points) in zip(itertools.cycle(COLORS), curves.items()):
        steps, values = zip(*points)
        smooth = _smooth(values)
        few = "o" if len(points) < 20 else None
        label = f"{name.partition('/')[2] or name}  {smooth[-1]:.3g}"
        if not few:
            panel.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        panel.plot(steps, smooth, color=color, linewidth=1.8, marker=few, markersize=3.5, label=label)
    everything = [value for points in curves.values() for _, value in points]
    if "loss" in family and min(everything) > 0 and max(everything) > 20 * min(everything):
        panel.set_yscale("log")
    panel.set_title(family.replace("_", " "), loc="left", fontweight="bold", fontsize="medium")
    panel.set_xlabel("step", color="0.35")
    panel.tick_params(colors="0.35", which="both")
    panel.grid(alpha=0.25, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color("0.7")
    panel.margins(x=0.02)
    panel.legend(frameon=False, fontsize="small")


def _smooth(values: Sequence[float]) -> list[float]:
    """Running average over about a fortieth of the curve, without a bias towards its start."""
    decay = 1 - 2 / (max(1, len(values) / 40) + 1)
    smooth, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = decay * total + value, decay * weight + 1
        smooth.append(total / weight)
    return smooth


def _lines(path: Path) -> Iterator[dict[str, float]]:
    """Whole lines of a log; the last one may be torn if the run was killed while it wrote."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                continue


def _drop_from(path: Path, step: int) -> None:
    """Take lines of `step` and later out of a log: they will be written again."""
    if not path.exists():
        return
    kept = path.with_suffix(".kept")
    with open(kept, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in _lines(path) if line["step"] < step)
    os.replace(kept, path)


def _event_writer(folder: Path, step: int) -> Any:
    """A TensorBoard writer whose readers forget what was logged from `step` on; None without tensorboardX."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    # File names have a resolution of a second: the suffix keeps a quick restart from overwriting.
    return SummaryWriter(str(folder), purge_step=step, flush_secs=30, filename_suffix=f".{step}.{os.getpid()}")


def _spell(scalars: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in scalars.items())
