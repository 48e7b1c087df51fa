"""The recipes, as `make` runs them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import most_core
from train.config import find_config, load_config
from train.stage_config import Config
from train.start import shape_of

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


STUB = """#!{python}
import json, pathlib, subprocess, sys
if sys.argv[2] == "train.compare_runs":
    sys.exit(subprocess.run([{python!r}, *sys.argv[1:]]).returncode)
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir(parents=True)
(out / "command.json").write_text(json.dumps(sys.argv[3:]))
loss = 2 + ("plain" in str(out)) + ("seed-1" in str(out)) / 10
lines = [{{"step": 0, "tokens_per_s/all": 9.0}}, {{"step": 0, "check_loss_words/asr": loss}}]
(out / "log.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
"""


def compared(tmp_path, *arguments, seeds="0 1"):
    """The recipe `router.sh` with a stand-in for trainings; (process, its commands by folder)."""
    stub, run = tmp_path / "python", tmp_path / "run"
    stub.write_text(STUB.format(python=sys.executable))
    stub.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(stub), "PYTHONPATH": str(ROOT), "RUN": str(run), "SEEDS": seeds}
    done = subprocess.run(
        [ROOT / "train/recipes/router.sh", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    files = sorted(run.glob("*/*/*/command.json"))
    return done, {str(path.parent.relative_to(run)): json.loads(path.read_text()) for path in files}


def settings_of(command):
    start = command.index("--set") + 1
    return load_config(Config, find_config(command[command.index("--config") + 1]), command[start:])


def test_routers_are_compared_at_equal_steps_and_lessons(tmp_path):
    done, commands = compared(tmp_path, "lessons", "checks")
    assert done.returncode == 0, done.stderr
    assert len(commands) == 2 * 2 * 2
    for seed in (0, 1):
        index, plain = (settings_of(commands[f"{name}/seed-{seed}/stage1"]) for name in ("index", "plain"))
        assert {n for n in vars(index) if getattr(index, n) != getattr(plain, n)} == {"shape"}
        assert (index.seed, str(index.lessons), str(index.check)) == (seed, "lessons", "checks")
        index, plain = (settings_of(commands[f"{name}/seed-{seed}/stage2"]) for name in ("index", "plain"))
        assert {n for n in vars(index) if getattr(index, n) != getattr(plain, n)} == {"start"}
    assert "| words/asr | 2.050 (2.000 .. 2.100) | 3.050 (3.000 .. 3.100) | +1.000 ± 0.000" in done.stdout
    assert "stage2: index has the lower loss in 1 of 1" in done.stdout


def test_every_router_is_what_its_name_says(tmp_path):
    routers = ("index", "plain", "dense", "unshared")
    done, commands = compared(tmp_path, "lessons", "checks", *routers, seeds="7")
    assert done.returncode == 0, done.stderr
    index, plain, dense, unshared = (
        shape_of(config.start, config.shape)
        for config in (settings_of(commands[f"{r}/seed-7/stage1"]) for r in routers)
    )
    assert index.expert_groups()[0] == (list(range(8)), list(range(8, 16)))
    assert plain.expert_groups()[0] == (list(range(16)), list(range(16)))
    assert index.num_experts_per_tok == plain.num_experts_per_tok == 4
    assert not dense.moe_layers
    assert dense.dense_width == 5 * index.moe_intermediate_size
    assert (unshared.n_shared_experts, index.n_shared_experts) == (0, 1)
    assert len({(shape.hidden_size, shape.num_hidden_layers) for shape in (index, plain, dense, unshared)}) == 1


def test_an_unknown_router_is_one_line(tmp_path):
    done, commands = compared(tmp_path, "lessons", "checks", "fancy")
    assert (done.returncode, commands) == (2, {})
    assert done.stderr.startswith("router fancy is unknown: choose from ")
