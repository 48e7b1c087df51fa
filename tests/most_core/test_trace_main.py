"""`python -m most_core.trace report`, in this process, and once as a command of its own."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
import torch

from most_core import MostConfig, RoutingTrace
from most_core.trace import RoutingRecorder
from most_core.trace.__main__ import main


def save(prefix, tokens=30, model_hash="abc", text_only=False, role="assistant", config=None, first_id=0):
    config = config or MostConfig.tiny()
    recorder = RoutingRecorder(config)
    generator = torch.Generator().manual_seed(0)
    shape = (len(config.moe_layers), tokens, config.n_routed_experts)
    probs = torch.randn(shape, generator=generator).mul(2).softmax(-1)
    modality = [0 if text_only else t // 5 % 2 for t in range(tokens)]
    recorder.record(probs, list(range(first_id, first_id + tokens)), modality, role, 0)
    recorder.finish(model_hash=model_hash, dtype="float32").save(prefix)
    return str(prefix)


def refusal(capsys, *argv):
    """The one line of an error."""
    assert main(["report", *map(str, argv)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("error: ")
    return said.err


def test_the_table_and_its_json(tmp_path, capsys):
    one = save(tmp_path / "one")
    assert main(["report", one]) == 0
    out = capsys.readouterr().out
    assert "1 trace, 30 tokens (model abc, float32)" in out
    assert "leakage: 0 of 120 choices" in out
    assert "text: 15 tokens, 12 pairs of neighbours; 2 of 4 experts a token" in out
    assert "frequency is not importance" in out
    assert "routed norm" not in out
    told = json.loads((tmp_path / "one.report.json").read_text())
    assert told["prefixes"] == [one]
    layer = told["modalities"]["text"]["layers"][0]
    line = next(line for line in out.splitlines() if line.startswith("    1  "))
    assert f"{layer['load']['cv']:.2f} ({layer['load']['cv_chance']:.2f})" in line
    assert f"{layer['locality']['mean']:.2f} (0.50)" in line
    assert out.count("\n mean  ") == 2
    assert out.endswith(f"written: {one}.report.json\n")


def test_json_alone_and_into_a_file(tmp_path, capsys):
    one = save(tmp_path / "one")
    assert main(["report", one, "--json", "-", "--plots", str(tmp_path / "plots")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tokens"] == 30
    assert not (tmp_path / "one.report.json").exists()
    assert main(["report", one, "--json", str(tmp_path / "x.json")]) == 0
    assert json.loads((tmp_path / "x.json").read_text()) == told


def test_several_prefixes_are_one_corpus_and_files_name_traces(tmp_path, capsys):
    one, two = save(tmp_path / "one", 600), save(tmp_path / "two", 1700, role="user")
    assert main(["report", f"{one}.tokens.parquet", f"{two}.layers.parquet", "--json", str(tmp_path / "j")]) == 0
    out = capsys.readouterr().out
    assert "2 traces, 2,300 tokens" in out
    assert "layer 1: of role the strongest expert tells" in out
    assert json.loads((tmp_path / "j").read_text())["prefixes"] == [one, two]


def test_against_another_run(tmp_path, capsys):
    one, two = save(tmp_path / "one"), save(tmp_path / "two", model_hash="xyz")
    assert main(["report", one, "--against", two]) == 0
    assert "agreement with xyz, float32" in capsys.readouterr().out
    told = json.loads((tmp_path / "one.report.json").read_text())["against"]
    assert told["modalities"]["audio"]["layers"][1]["mean"] == 1
    assert told["prefixes"] == [two]
    three = save(tmp_path / "three", first_id=1)
    assert "other tokens from token 0 on" in refusal(capsys, one, "--against", three)


def test_the_order_of_another_report(tmp_path, capsys):
    one = save(tmp_path / "one")
    main(["report", one])
    report = tmp_path / "one.report.json"
    told = json.loads(report.read_text())
    told["modalities"]["text"]["layers"][0]["coactivation"]["order"] = [3, 1, 0, 2]
    report.write_text(json.dumps(told))
    capsys.readouterr()
    assert main(["report", one, "--order", str(report), "--json", "-"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["modalities"]["text"]["layers"][0]["coactivation"]["order"] == [3, 1, 0, 2]
    report.write_text("{]")
    assert "this is no report" in refusal(capsys, one, "--order", report)
    report.write_text("[]")
    assert "this is none" in refusal(capsys, one, "--order", report)


def test_what_cannot_be_read_is_one_line(tmp_path, capsys):
    one, two = save(tmp_path / "one"), save(tmp_path / "two", model_hash="xyz")
    assert f"{tmp_path}/none.tokens.parquet is missing" in refusal(capsys, tmp_path / "none")
    assert "of 2 models" in refusal(capsys, one, two)
    assert "one.report" in refusal(capsys, one, "--json", tmp_path / "no" / "one.report")
    (tmp_path / "file").touch()
    assert "name a folder" in refusal(capsys, one, "--plots", tmp_path / "file")
    (tmp_path / "one.routing.parquet").write_bytes(b"PAR1")
    assert "one.routing.parquet is damaged" in refusal(capsys, one)
    for wrong in (["report"], ["reprot", one], []):
        with pytest.raises(SystemExit) as ended:
            main(wrong)
        assert ended.value.code == 2


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "usual"),
        ({"tokens": 0}, "empty"),
        ({"tokens": 1}, "one"),
        ({"text_only": True, "role": r"$\bad{$<b>&"}, "text"),
        ({"config": MostConfig.tiny(num_experts_per_tok=1)}, "single"),
        ({"config": MostConfig.nano(use_modality_aware_routing=False)}, "plain"),
        (
            {
                "config": MostConfig.tiny(
                    text_expert_indices=[[0, 1, 2], [3, 4, 5, 6, 7]], audio_expert_indices=[[3, 4], [0, 1]]
                )
            },
            "uneven",
        ),
    ],
)
def test_plots(options, name, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    folder = tmp_path / "made" / "here"
    assert main(["report", save(tmp_path / name, **options), "--plots", str(folder)]) == 0
    charts = ("load", "specialisation", "coactivation", "locality")
    assert {path.name for path in folder.iterdir()} == {f"{c}.{s}" for c in charts for s in ("svg", "png")}
    texts = {c: " ".join(ET.parse(folder / f"{c}.svg").getroot().itertext()) for c in charts}
    assert "Frequency is not importance" in texts["load"]
    count = RoutingTrace.load(tmp_path / name).num_tokens
    for text in texts.values():
        assert ("n = " in text) == bool(count)
        assert ("chance" in text) == bool(count)
    if "role" in options:
        assert options["role"] in texts["specialisation"]


def test_the_command_says_nothing_else_and_the_package_draws_nothing(tmp_path):
    one = save(tmp_path / "one")
    ran = subprocess.run(
        [sys.executable, "-m", "most_core.trace", "report", one, "--json", "-"], capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(ran.stdout)["tokens"] == 30
    code = "import sys, most_core; sys.exit('matplotlib' in sys.modules or 'scipy.cluster' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
