"""Checkpoints: all or nothing, also under SIGKILL; what is kept, what is refused."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import torch

from train.checkpoints import (
    latest_checkpoint,
    load_checkpoint,
    resume,
    save_checkpoint,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def save(folder, step, **options):
    return save_checkpoint(folder, step, {"value": torch.tensor([step])}, **options)


def test_a_trained_state_comes_back_exactly(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    path = save_checkpoint(tmp_path / "run", 7, {**state, "best": 0.25, "note": "a"}, config_hash="abc")
    assert path == tmp_path / "run" / "step-00000007"
    assert names(path) == ["meta.json", "state.pt"]
    loaded = load_checkpoint(path, "abc")
    assert (loaded["step"], loaded["best"], loaded["note"]) == (7, 0.25, "a")
    torch.testing.assert_close(loaded["model"], dict(model.state_dict()), rtol=0, atol=0)
    optimizer.load_state_dict(loaded["optimizer"])
    scheduler.load_state_dict(loaded["scheduler"])
    meta = json.loads((path / "meta.json").read_text())
    assert (meta["step"], meta["config_hash"]) == (7, "abc")
    assert abs(meta["time"] - time.time()) < 60


def test_the_last_ones_are_kept_and_leftovers_are_removed(tmp_path):
    (tmp_path / ".step-00000009.saving").mkdir()
    (tmp_path / "step-00000001").mkdir()  # torn
    (tmp_path / "losses").mkdir()
    for step in (10, 20, 30, 1_000_000):
        save(tmp_path, step)
    assert names(tmp_path) == ["losses", "step-00000030", "step-01000000"]
    save(tmp_path, 2_000_000, keep=1)
    assert names(tmp_path) == ["losses", "step-02000000"]
    with pytest.raises(ValueError, match="keep is 0"):
        save(tmp_path, 1, keep=0)


def test_a_torn_checkpoint_does_not_count_as_kept(tmp_path):
    save(tmp_path, 1)
    (save(tmp_path, 2) / "meta.json").unlink()
    save(tmp_path, 3)
    assert names(tmp_path) == ["step-00000001", "step-00000003"]


def test_the_same_step_may_be_saved_again(tmp_path):
    save(tmp_path, 5)
    save_checkpoint(tmp_path, 5, {"value": torch.tensor([-1])})
    assert load_checkpoint(latest_checkpoint(tmp_path))["value"].item() == -1
    assert names(tmp_path) == ["step-00000005"]


def truncate(path):
    os.truncate(path / "state.pt", 100)


def flip(path):
    data = bytearray((path / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "state.pt").write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "state.pt has 100 of"),
        (flip, "checksum differs"),
        (lambda path: (path / "state.pt").unlink(), "state.pt: No such file"),
        (lambda path: (path / "meta.json").unlink(), "meta.json: No such file"),
        (lambda path: (path / "meta.json").write_text('{"step": 2, "comp'), "meta.json is not complete"),
        (lambda path: (path / "meta.json").write_text('{"step": 2}'), "meta.json is not complete"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, caplog, damage, reason):
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    assert latest_checkpoint(tmp_path) == bad
    damage(bad)
    assert latest_checkpoint(tmp_path) == good
    [record] = caplog.records
    assert str(bad) in record.getMessage()
    assert reason in record.getMessage()


def test_nothing_is_found_where_nothing_is(tmp_path):
    assert latest_checkpoint(tmp_path) is latest_checkpoint(tmp_path / "absent") is resume(tmp_path, "a") is None


def test_other_settings_are_refused_with_both_and_a_way_out(tmp_path):
    path = save(tmp_path, 1, config_hash="aaa")
    with pytest.raises(ValueError, match=r"step-00000001 .*aaa.*bbb.*--fresh.*--out"):
        load_checkpoint(path, "bbb")
    with pytest.raises(ValueError, match="aaa"):
        resume(tmp_path, "bbb")
    assert resume(tmp_path, "aaa")["step"] == 1
    assert resume(tmp_path, "bbb", fresh=True) is None
    assert names(tmp_path) == []


@pytest.mark.parametrize("value", [np.float64(1), np.ones(2), Counter("a"), object()], ids=lambda value: type(value))
def test_what_could_not_be_loaded_is_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(ValueError, match=rf"state\['a'\]\[1\] is a {type(value).__name__}: checkpoints hold"):
        save_checkpoint(tmp_path, 1, {"a": [0, value]})
    assert names(tmp_path) == []


def killed_at(moment, folder, step):
    """Save in a forked process that kills itself before its `moment`-th change on disk; whether it came to that."""
    child = os.fork()
    if child == 0:
        count = 0

        def deadly(function):
            def call(*args, **kwargs):
                nonlocal count
                count += 1
                if count == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return call

        for name in ("fsync", "mkdir", "rename", "rmdir", "unlink"):
            setattr(os, name, deadly(getattr(os, name)))
        try:
            save(folder, step, keep=1)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("step", [7, 8], ids=["the same step again", "the next step"])
def test_killed_before_any_change_on_disk_there_is_always_one_that_loads(tmp_path, step):
    moment, killed = 0, True
    while killed:
        moment += 1
        folder = tmp_path / str(moment)
        save(folder, 7)
        killed = killed_at(moment, folder, step)
        assert load_checkpoint(latest_checkpoint(folder))["value"].item() in (7, step)
        save(folder, 9, keep=1)
        assert names(folder) == ["step-00000009"]
    assert moment > 8


SAVER = """
import sys, torch
from pathlib import Path
from train.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint
torch.set_num_threads(1)
folder = Path(sys.argv[1])
latest = latest_checkpoint(folder)
step = load_checkpoint(latest)["step"] if latest else 0
print("ready", flush=True)
while True:
    step += 1
    save_checkpoint(folder, step, {"value": torch.full((100_000,), float(step))})
    print(step, flush=True)
"""


def test_killed_at_any_moment_the_latest_checkpoint_loads(tmp_path):
    moments = random.Random(0)
    reached = 0
    for _ in range(2):
        with subprocess.Popen([sys.executable, "-c", SAVER, tmp_path], stdout=subprocess.PIPE, text=True) as saver:
            assert saver.stdout.readline() == "ready\n"
            for _ in range(moments.randint(1, 4)):
                reported = int(saver.stdout.readline())
            time.sleep(moments.uniform(0, 0.02))
            os.kill(saver.pid, signal.SIGKILL)
            reported = max([reported, *map(int, saver.stdout.read().split())])
        state = load_checkpoint(latest_checkpoint(tmp_path))
        assert state["step"] in (reported, reported + 1)  # killed between the rename and the report
        assert state["step"] > reached
        assert (state["value"] == state["step"]).all()
        reached = state["step"]
    save(tmp_path, reached + 1)
    assert names(tmp_path) == [f"step-{reached:08d}", f"step-{reached + 1:08d}"]
