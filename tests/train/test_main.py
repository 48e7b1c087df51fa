"""The command line: what reaches a command, what goes wrong in one line, what a newcomer reads."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from train import __main__ as cli
from train.config import RunOptions


@dataclass(frozen=True)
class Config:
    steps: int = 10
    rate: float = 1e-3


@pytest.fixture
def command(monkeypatch):
    """A stand-in for every command's module: keeps the arguments it ran with, and does what `.act` says."""
    fake = SimpleNamespace(Config=Config, ran=[], act=lambda: 0)
    fake.run = lambda *args, **more: fake.ran.append((*args, more) if more else args) or fake.act()
    for module, *_ in [*cli.COMMANDS.values(), *cli.EVALUATIONS.values()]:
        monkeypatch.setitem(sys.modules, module, fake)
    monkeypatch.delenv("MOST_DEBUG", raising=False)
    return fake


@pytest.mark.parametrize("name", ["synthesize", "encoder", "units", "vocoder"])
def test_a_command_runs_with_defaults(command, name):
    assert cli.main([name]) == 0
    assert command.ran == [(Config(), Path("runs/default") / name, RunOptions())]


def test_settings_and_options_reach_the_command(command, tmp_path, monkeypatch):
    (tmp_path / "big.yaml").write_text("steps: 20\nrate: 5e-4")
    counts = []
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    flags = ["--minutes", "1.5", "--fresh", "--threads", "2", "--device", "cpu"]
    assert (
        cli.main(["encoder", "--config", str(tmp_path / "big.yaml"), "--set", "steps=30", "--set", "rate=1", *flags])
        == 0
    )
    assert cli.main(["encoder", "--config", str(tmp_path / "big.yaml"), "--out", "a/b"]) == 0
    options = RunOptions(minutes=1.5, fresh=True, threads=2, device="cpu")
    assert command.ran == [
        (Config(30, 1.0), Path("runs/big/encoder"), options),
        (Config(20, 5e-4), Path("a/b"), RunOptions()),
    ]
    assert counts == [2]


def test_a_dry_run_shows_all_settings(command, capsys):
    assert cli.main(["units", "--dry-run", "--set", "steps=3"]) == 0
    assert capsys.readouterr().out.startswith("steps: 3\nrate: 0.001\n")
    assert command.ran[0][2] == RunOptions(dry_run=True)


def test_ears_are_evaluated(command):
    assert cli.main(["evaluate", "ears"]) == 0
    flags = ["--model", "m", "--json", "--data", "d", "--only", "seen", "human", "--threads", "1", "--device", "cuda"]
    assert cli.main(["evaluate", "ears", *flags, "--human", "h", "--out", "f.json"]) == 0
    options, out = RunOptions(threads=1, device="cuda"), Path("f.json")
    assert command.ran == [
        (Path("assets/nano"), False, RunOptions(), dict.fromkeys(("data", "only", "human", "out"))),
        (Path("m"), True, options, {"data": Path("d"), "only": ["seen", "human"], "human": Path("h"), "out": out}),
    ]


def test_the_mouth_is_evaluated_without_what_is_for_ears(command, capsys):
    assert cli.main(["evaluate", "mouth", "--model", "m", "--json", "--threads", "1", "--out", "f.json"]) == 0
    assert command.ran == [(Path("m"), True, RunOptions(threads=1), {"out": Path("f.json")})]
    assert cli.main(["evaluate", "mouth", "--only", "seen"]) == 2
    assert capsys.readouterr().err.startswith("error: --only is for `evaluate ears` and `evaluate nano`: leave it out")
    assert cli.main(["evaluate", "ears", "--count", "3"]) == 2
    assert (
        capsys.readouterr().err
        == "error: --count is for `evaluate nano` and `evaluate routing`: leave it out of `evaluate ears`\n"
    )
    assert cli.main(["evaluate", "ears", "--direct"]) == 2
    assert capsys.readouterr().err == "error: --direct is for `evaluate nano`: leave it out of `evaluate ears`\n"
    assert len(command.ran) == 1


def test_nano_is_evaluated_in_parts(command):
    flags = ["--only", "qa,orders", "text", "--count", "5", "--stage1", "s", "--plot", "p.png"]
    assert cli.main(["evaluate", "nano", *flags]) == 0
    [(model, as_json, _, given)] = command.ran
    assert (model, as_json, given["only"], given["count"]) == (Path("assets/nano"), False, ["qa,orders", "text"], 5)
    assert (given["stage1"], given["stage2"], given["plot"]) == (Path("s"), None, Path("p.png"))


def test_routing_is_evaluated(command):
    assert cli.main(["evaluate", "routing", "--count", "5", "--data", "d"]) == 0
    given = {"data": Path("d"), "count": 5, "out": None}
    assert command.ran == [(Path("assets/nano"), False, RunOptions(), given)]


def test_the_status_of_a_command_is_the_status(command):
    command.act = lambda: 3
    assert cli.main(["units"]) == 3


def fail(error):
    def act():
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("rate is 7:\n  too much"), "error: rate is 7: too much"),
        (FileNotFoundError("runs/x: no shards"), "error: runs/x: no shards"),
        (FileNotFoundError(2, "No such file or directory", "runs/x"), "error: runs/x: No such file or directory"),
        (OSError(28, "No space left on device"), "error: No space left on device"),
        (ValueError(), "error: ValueError"),
    ],
)
def test_what_a_command_refuses_is_one_line(command, capsys, monkeypatch, error, line):
    command.act = fail(error)
    assert cli.main(["encoder"]) == 2
    assert capsys.readouterr().err == line + "\n"
    monkeypatch.setenv("MOST_DEBUG", "1")
    with pytest.raises(type(error)):
        cli.main(["encoder"])


def test_an_interrupted_command_says_how_to_go_on(command, capsys):
    command.act = fail(KeyboardInterrupt())
    assert cli.main(["encoder"]) == 1
    assert capsys.readouterr().err == "stopped; the same command continues\n"


def test_a_fault_of_ours_is_not_hidden(command, monkeypatch):
    command.act = fail(RuntimeError("shapes"))
    with pytest.raises(RuntimeError, match="shapes"):
        cli.main(["encoder"])
    for missing in ("train.encoder", "train.evaluate_ears"):
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"train\.encoder"):
        cli.main(["encoder"])
    with pytest.raises(ImportError, match=r"train\.evaluate_ears"):
        cli.main(["evaluate", "ears"])


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--set", "stpes=3"], "error: --set stpes=3: stpes is no setting; did you mean steps?"),
        (["--config", "no-such"], "error: no-such: neither a file nor a preset; presets are "),
    ],
)
def test_wrong_settings_are_one_line_and_nothing_runs(command, capsys, flags, line):
    assert cli.main(["encoder", *flags]) == 2
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith(line)
    assert command.ran == []


@pytest.mark.parametrize(
    "flag", ["--minutes=0", "--threads=-1", "--threads=1.5", "--minutes=soon", "--device=tpu", "--x"]
)
def test_impossible_options_are_refused_by_name(command, capsys, flag):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["encoder", flag])
    assert flag.partition("=")[0] in capsys.readouterr().err.splitlines()[-1]
    assert command.ran == []


def test_a_newcomer_is_told_every_command_with_an_example(capsys):
    assert cli.main([]) == 2
    shown = capsys.readouterr().out
    for name in [*cli.COMMANDS, "evaluate"]:
        assert f"\n  python -m train {name} " in shown
        with pytest.raises(SystemExit, match="0"):
            cli.main([name, "--help"])
        assert f"example:\n  python -m train {name} " in capsys.readouterr().out


def test_examples_are_commands(command, monkeypatch):
    for *_, example in [*cli.COMMANDS.values(), *cli.EVALUATIONS.values()]:
        assert cli.parser().parse_args(example.split()[3:]).command == example.split()[3]


def test_help_is_quick_and_the_network_is_off():
    code = (
        "import os, sys\n"
        "from train.__main__ import main\n"
        "main([])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
        "assert os.environ['HF_HUB_OFFLINE'] == '1'\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, stdout=subprocess.DEVNULL)
