import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from train.config import RunOptions
from train.workers import run_workers

SCRIPT = """
import multiprocessing, os, sys, time
from train.workers import end_with_parent

def work(path):
    end_with_parent()
    open(path, "w").write(str(os.getpid()))
    time.sleep(60)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=work, args=(sys.argv[1],))
    process.start()
    process.join()
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z" if os.path.isdir("/proc") else True


def test_a_worker_ends_when_its_parent_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(textwrap.dedent(SCRIPT))
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py", tmp_path / "pid"], env=environment)
    until = time.monotonic() + 30
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    worker = int((tmp_path / "pid").read_text())
    assert alive(worker)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 10
    while alive(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(worker)


def refuse(rank, workers, device, config, out, options):
    if rank == 1:
        raise ValueError(f"{config} is not to be had")


def test_what_a_worker_refuses_is_told_in_its_own_words(tmp_path):
    with pytest.raises(ValueError, match=r"^this is not to be had$"):
        run_workers(refuse, 2, "this", tmp_path, RunOptions(threads=2, device="cpu"))
