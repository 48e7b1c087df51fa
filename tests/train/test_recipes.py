"""The recipes, as `make` runs them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import most_core

ROOT = Path(__file__).parents[2]

needs_engines = pytest.mark.skipif(
    not all(shutil.which(engine) for engine in ("espeak-ng", "flite", "festival")),
    reason="not all engines are installed",
)


@needs_engines
def test_the_whole_chain_runs_from_speech_to_an_answer(tmp_path):
    """`make train-debug`, elsewhere: synthesize, encoder, units, vocoder, dialogues, prepare, both stages, export."""
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [ROOT / "train/recipes/debug.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "asked nothing, it answers" in done.stdout
    made = tmp_path / "runs" / "debug"
    reply = most_core.load(made / "model", device="cpu").answer("what is seven plus five?")
    assert len(reply.waveform) == 640 * len(reply.units) > 0
    card = (made / "model" / "README.md").read_text()
    assert "| speech instructions | world, " in card
    assert "output of CMU Flite voices" in card
    for log in ("encoder", "mouth", "stage1", "stage2"):
        assert (made / log / "losses.png").is_file()
