"""Comparison of runs whose logs are written by hand."""

import json
import math

import pytest

from train.compare_runs import SPEED, difference, last_figures, main, read_runs, table, verdict

ASR, TEXT = "check_loss_words/asr", "check_loss_words/text"


def run(folder, name, seed, stage="stage1", *, asr=1.0, text=2.0, speed=100.0):
    """The log of a finished run: two checks, three speeds."""
    out = folder / name / f"seed-{seed}" / stage
    out.mkdir(parents=True)
    lines = [
        {"step": 0, "time": 1.0, ASR: 9.0, TEXT: 9.0},
        {"step": 1, "time": 2.0, SPEED: 1.0, "norm": 3.0},
        {"step": 2, "time": 3.0, SPEED: speed - 10},
        {"step": 3, "time": 4.0, SPEED: speed + 10},
        {"step": 3, "time": 5.0, ASR: asr, TEXT: text},
    ]
    (out / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return out / "log.jsonl"


@pytest.fixture
def runs(tmp_path):
    """Three seeds of two routers: `plain` is worse in asr by .5 every time, and text is a matter of luck."""
    for seed, asr in enumerate((1.0, 1.1, 1.2)):
        run(tmp_path, "index", seed, asr=asr, text=2.0 + seed, speed=100)
        run(tmp_path, "plain", seed, asr=asr + 0.5, text=4.0 - seed, speed=80)
    return tmp_path


def kinds(folder, stage="stage1"):
    return {name: read_runs(folder, name)[stage] for name in ("index", "plain")}


def test_a_run_is_its_last_check_and_its_speed_once_warm(tmp_path):
    assert last_figures(run(tmp_path, "index", 0, asr=1.5)) == {ASR: 1.5, TEXT: 2.0, SPEED: 100.0}


def test_a_run_that_has_not_ended_is_refused(tmp_path, capsys):
    log = run(tmp_path, "index", 0)
    log.write_text("".join(line + "\n" for line in log.read_text().splitlines()[:-1]))
    with pytest.raises(ValueError, match=r"log\.jsonl ends without check losses"):
        last_figures(log)
    run(tmp_path, "plain", 0)
    assert main([str(tmp_path), "index", "plain"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_differences_are_between_runs_of_one_seed(runs):
    found = kinds(runs)
    asr = difference(found["index"], found["plain"], ASR)
    assert (asr.mean, asr.error, asr.seeds) == (pytest.approx(0.5), pytest.approx(0, abs=1e-9), 3)
    assert asr.spread == pytest.approx(0.2)
    assert asr.clear
    text = difference(found["index"], found["plain"], TEXT)  # 2, 0, -2
    assert text.mean == pytest.approx(0)
    assert text.error == pytest.approx(2 / math.sqrt(3))
    assert not text.clear


def test_a_difference_within_the_spread_is_not_clear(tmp_path):
    for seed, asr in enumerate((1.0, 1.6)):
        run(tmp_path, "index", seed, asr=asr)
        run(tmp_path, "plain", seed, asr=asr + 0.5)
    found = kinds(tmp_path)
    assert difference(found["index"], found["plain"], ASR).mean == pytest.approx(0.5)
    assert not difference(found["index"], found["plain"], ASR).clear
    assert "no difference that exceeds" in verdict("stage1", found)[0]


def test_one_seed_has_no_error_and_proves_nothing(tmp_path):
    run(tmp_path, "index", 0, asr=1.0)
    run(tmp_path, "plain", 0, asr=5.0)
    run(tmp_path, "plain", 1, asr=5.0)
    found = kinds(tmp_path)
    apart = difference(found["index"], found["plain"], ASR)
    assert (apart.mean, apart.seeds, apart.clear) == (4.0, 1, False)
    assert math.isnan(apart.error)
    assert "+4.000 one seed" in table("stage1", found)


def test_no_common_seed_is_an_error(tmp_path):
    run(tmp_path, "index", 0)
    run(tmp_path, "plain", 1)
    found = kinds(tmp_path)
    with pytest.raises(ValueError, match=r"no seed is in both: \[0\] and \[1\]"):
        difference(found["index"], found["plain"], ASR)


def test_the_table_and_the_verdict(runs):
    lines = table("stage1", kinds(runs)).splitlines()
    assert lines[0] == "| stage1 | index (3 seeds) | plain (3 seeds) | plain - index |"
    assert lines[1] == "|---|---|---|---|"
    assert (
        lines[2]
        == "| words/asr | 1.100 (1.000 .. 1.200) | 1.600 (1.500 .. 1.700) | +0.500 ± 0.000, more than the spread |"
    )
    assert lines[3] == "| words/text | 3.000 (2.000 .. 4.000) | 3.000 (2.000 .. 4.000) | +0.000 ± 1.155 |"
    assert lines[4].startswith("| tokens_per_s/all | 100 (100 .. 100) | 80 (80 .. 80) | -20 ± 0")
    [told] = verdict("stage1", kinds(runs))
    assert told.startswith(
        "stage1: index has the lower loss in 1 of 2 check losses; by more than the spread over seeds in 1"
    )


def test_the_better_one_is_named_wherever_it_stands(runs):
    found = kinds(runs)
    turned = {"plain": found["plain"], "index": found["index"]}
    assert verdict("stage1", turned)[0].startswith("stage1: index has the lower loss in 1 of 2")
    assert "-0.500" in table("stage1", turned)


def test_the_command_tells_every_stage_that_all_have(runs, capsys):
    for seed in range(3):
        run(runs, "index", seed, "stage2")
    assert main([str(runs), "index", "plain"]) == 0
    shown = capsys.readouterr().out
    assert "| stage1 |" in shown
    assert "| stage2 |" not in shown
    assert main([str(runs), "index", "dense"]) == 2
    assert "dense holds no" in capsys.readouterr().err
    assert main([str(runs)]) == 2
