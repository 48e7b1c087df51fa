"""Progress: what is shown on a terminal and elsewhere, what is recorded, once, and that it can be drawn."""

import io
import json
import math
import sys

import pytest
import torch

from train import progress as progress_module
from train.progress import Progress, plot_losses


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """`clock(seconds)` lets time pass; nothing else does."""
    now = 1000.0

    def advance(seconds):
        nonlocal now
        now += seconds

    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    return advance


def log_lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_without_a_terminal_a_line_comes_every_few_seconds(tmp_path, clock):
    stream = io.StringIO()
    with Progress(tmp_path, 40, step=10, title="encoder", every_seconds=10, stream=stream) as progress:
        for step in range(10, 35):
            clock(1)
            progress.log(step, **{"loss/ctc": 1 / 3, "rate": 2e-4})
        progress.note("saved")
    assert stream.getvalue().splitlines() == [
        "encoder: 20 of 40 steps (50 %), 1 a second, 00:20 left, loss/ctc 0.333, rate 0.0002",
        "encoder: 30 of 40 steps (75 %), 1 a second, 00:10 left, loss/ctc 0.333, rate 0.0002",
        "saved",
        "encoder: 35 of 40 steps (88 %), 1 a second, 00:05 left",
    ]


def test_without_a_total_or_a_folder_it_only_counts(tmp_path, clock, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stream = io.StringIO()
    with Progress(None, None, unit="utterance", stream=stream) as progress:
        clock(20)
        progress.log(99, loss=1.0)
    assert stream.getvalue().splitlines()[0] == "100 utterances, 5 a second, loss 1"
    assert not list(tmp_path.iterdir())


def test_on_a_terminal_it_is_one_line(tmp_path):
    stream = Terminal()
    with Progress(tmp_path, 4, step=1, title="units", stream=stream) as progress:
        progress.update(1)
        progress.note("a line that stays")
        progress.update(2, loss=0.25)
        progress.update(3, loss=0.125)
    shown = stream.getvalue()
    assert "a line that stays\n" in shown
    last = shown.split("\r")[-1]
    assert "units: 100%" in last
    assert "4/4" in last
    assert "loss 0.125" in last
    assert shown.count("\n") == 2


def test_scalars_are_recorded_as_numbers(tmp_path):
    with Progress(tmp_path / "run", 2, stream=io.StringIO()) as progress:
        progress.log(0, **{"loss/ctc": torch.tensor(0.5), "count": 3})
        progress.update(1, unseen=1.0)
        [line] = log_lines(tmp_path / "run")  # there already, should the run be killed now
    assert line.pop("time") > 1.7e9
    assert line == {"step": 0, "loss/ctc": 0.5, "count": 3.0}


def test_a_killed_and_resumed_run_has_each_step_once(tmp_path):
    with Progress(tmp_path, 9, stream=io.StringIO()) as progress:
        for step in range(6):
            progress.log(step, loss=1.0)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 6, "lo')
    with Progress(tmp_path, 9, step=4, stream=io.StringIO()) as progress:
        for step in range(4, 9):
            progress.log(step, loss=2.0)
    assert [(line["step"], line["loss"]) for line in log_lines(tmp_path)] == [
        *((step, 1.0) for step in range(4)),
        *((step, 2.0) for step in range(4, 9)),
    ]
    with Progress(tmp_path, 9, stream=io.StringIO()):
        assert log_lines(tmp_path) == []
    assert sorted(path.name for path in tmp_path.glob("log*")) == ["log.jsonl"]


def test_tensorboard_can_read_along(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    for first in (0, 3):
        with Progress(tmp_path, 5, step=first, stream=io.StringIO()) as progress:
            progress.log(first, **{"loss/ctc": 0.5})
    files = sorted((tmp_path / "tensorboard").iterdir())
    assert len(files) == 2
    restarts, scalars = [], []
    for file in files:
        data = file.read_bytes()
        while data:  # a record: length (8 bytes), its checksum (4), an event, its checksum (4)
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.session_log.status == SessionLog.START:
                restarts.append(event.step)
            scalars += [(value.tag, value.simple_value, event.step) for value in event.summary.value]
    assert sorted(restarts) == [0, 3]
    assert sorted(scalars) == [("loss/ctc", 0.5, 0), ("loss/ctc", 0.5, 3)]


def test_tensorboard_is_not_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with Progress(tmp_path, 1, stream=io.StringIO()) as progress:
        progress.log(0, loss=1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_losses_are_drawn_by_family(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    with Progress(tmp_path, 200, stream=io.StringIO()) as progress:
        for step in range(200):
            progress.log(step, **{"loss/ctc": 20 * math.exp(-step / 30) + 0.1, "loss/masked": 3.0, "rate": step * 1e-5})
            if step % 50 == 0:
                progress.log(step, **{"wer/seen": 1 / (step + 1), "wer/unseen": math.nan})
    path = plot_losses(tmp_path)
    assert path == tmp_path / "losses.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 20_000


def test_a_plot_of_nothing_says_so(tmp_path):
    for prepare in (lambda: None, (tmp_path / "log.jsonl").touch):
        prepare()
        with pytest.raises(ValueError, match=r"log.jsonl: no scalars to plot yet"):
            plot_losses(tmp_path)


def test_curves_are_smoothed_without_a_bias_to_their_start():
    assert progress_module._smooth([5.0] * 100) == pytest.approx([5.0] * 100)
    assert progress_module._smooth([1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]
    noisy = progress_module._smooth([(-1.0) ** step for step in range(400)])
    assert max(map(abs, noisy[20:])) < 0.3
