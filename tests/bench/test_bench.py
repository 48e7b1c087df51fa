"""Benches end in one JSON line with the agreed names; their comparisons are between equals."""

import json

import pytest
import torch

from bench import latency, quantized
from bench.__main__ import main
from bench.memory import held_bytes, weight_bytes
from bench.moe import public_loop
from bench.report import Report, median_ratio
from most_core import GenerationSettings, untrained
from most_core.config import MostConfig
from most_core.experts import PerExpertLinears
from most_core.model import MostPerExpertForCausalLM
from train.data import test_sets
from train.data.utterance import Utterance


def figures(capsys, *argv):
    assert main([*argv, "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(report) == {"bench", "machine", "figures", "notes"}
    assert set(report["machine"]) == {"cpu", "cores", "gpu", "torch"}
    return report["figures"]


def test_memory_of_the_real_size_meets_its_bars(capsys):
    found = figures(capsys, "memory", "--preset", "lite")
    assert found["nf4_gb"] <= 10
    assert found["int8_gb"] <= 17
    assert found["bf16_gb"] == pytest.approx(31.5, abs=0.3)
    assert abs(found["nano_nf4_plan_error"]) < 0.05
    assert abs(found["nano_int8_plan_error"]) < 0.05
    assert found["nano_int8_top1"] > 0.9


def test_an_unquantized_model_weighs_what_is_planned():
    model = MostPerExpertForCausalLM(MostConfig.tiny()).bfloat16()
    assert weight_bytes(model, "bf16") == held_bytes(model)


def test_the_gpu_bench_rehearses_on_a_cpu(capsys):
    found = figures(capsys, "gpu", "--rehearse", "--skip-nf4")
    expected = {"bf16_tokens_per_s_b1", "bf16_tokens_per_s_b8", "ratio_hf_b1", "prefill_tokens_per_s", "load_s"}
    assert expected <= set(found)
    assert found["top1_agreement"] > 0.9


def test_a_reply_of_ordinary_length_is_timed_stage_by_stage(capsys, monkeypatch, wave):
    monkeypatch.setattr(latency, "questions", lambda report: [wave, wave[:6400]])
    found = figures(capsys, "latency", "--untrained", "--rounds", "1")
    assert found["n"] == 2
    for threads in ("", "_1t"):
        assert found[f"reply_s{threads}"] == latency.UNITS / 25
        parts = sum(found[f"{part}_ms{threads}"] for part in ("encode", "prefill", "text", "first_chunk"))
        assert parts == pytest.approx(found[f"first_sound_ms_p50{threads}"], rel=0.2)
        assert found[f"first_sound_ms_p50{threads}"] <= found[f"first_sound_ms_p95{threads}"]
        assert found[f"rtf{threads}"] > 0


def test_latency_asks_the_samples_where_no_engine_is_installed(monkeypatch):
    monkeypatch.setenv("PATH", "")
    report = Report("latency")
    assert len(latency.questions(report)) == len(list(latency.SAMPLES.glob("*.wav")))
    assert "not (wholly) installed" in report.notes[0]


def test_latency_of_ears_and_mouth_alone_is_refused_in_one_line(capsys, tmp_path):
    assert main(["latency", "--model", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "has no decoder" in error
    assert error.count("\n") == 1


def clips(wave, count):
    return [
        Utterance(str(i), "a voice", "what time is it", wave, "made", "CC0", "test", ("question", "asr")[i // 2 % 2])
        for i in range(count)
    ]


def test_quantized_models_are_compared_with_bfloat16(capsys, monkeypatch, wave, tmp_path):
    untrained("tiny").save(tmp_path / "tiny")
    monkeypatch.setattr(quantized, "REPLY", GenerationSettings(max_new_tokens=30, max_heard_tokens=5, seed=0))
    monkeypatch.setattr(test_sets, "load", lambda name, folder: clips(wave, 8))
    found = figures(capsys, "quantized", "--model", str(tmp_path / "tiny"), "--clips", "2")
    assert (found["n_clips"], found["n_replies"]) == (2, 2)
    for name in ("int8_top1", "nf4_top1", "float32_top1"):
        assert 0 <= found[name] <= 1
    assert found["float32_top1"] > 0.9
    for name in ("int8", "nf4"):
        points = 100 * (found[f"{name}_asr_wer"] - found["bf16_asr_wer"])
        assert found[f"{name}_asr_wer_points"] == pytest.approx(points, abs=0.1)


def test_questions_and_sentences_are_drawn_alike(wave):
    drawn = quantized.spread(clips(wave, 8), 5)
    assert [clip.id for clip in drawn] == ["0", "1", "4", "2", "6"]
    assert len(quantized.spread(clips(wave, 8), 100)) == 8


def test_without_bitsandbytes_the_quantized_bench_says_so(capsys, monkeypatch):
    monkeypatch.setattr(quantized.importlib.util, "find_spec", lambda name: None)
    assert main(["quantized"]) == 2
    assert capsys.readouterr().err == "error: bench quantized needs bitsandbytes: pip install bitsandbytes\n"


def test_the_quantized_bench_of_ears_and_mouth_alone_is_refused(capsys, tmp_path):
    assert main(["quantized", "--model", str(tmp_path)]) == 2
    assert "has no decoder" in capsys.readouterr().err


def test_training_is_compared_with_a_plain_loop(capsys, tmp_path):
    (tmp_path / "tiny.yaml").write_text("start: tiny\nmicro_batch_tokens: 512\n")
    found = figures(capsys, "train", "--rounds", "2", "--config", str(tmp_path / "tiny.yaml"))
    assert found["ratio_plain"] > 0
    assert found["tokens_per_s"] > 0
    parts = {name: found[f"share_{name}"] for name in ("data", "forward", "backward", "update")}
    assert sum(parts.values()) == pytest.approx(1, abs=0.1)
    assert min(parts.values()) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_bench_says_in_one_line_that_there_is_none(capsys):
    assert main(["gpu"]) == 2
    assert "--rehearse" in capsys.readouterr().err


def test_the_public_loop_computes_the_mixture():
    torch.manual_seed(0)
    experts = PerExpertLinears(MostConfig.tiny())
    hidden, choice, weights = torch.randn(5, 32), torch.randint(0, 8, (5, 2)), torch.rand(5, 2)
    choice[:, 1] = (choice[:, 0] + 1) % 8
    torch.testing.assert_close(public_loop(experts, hidden, choice, weights), experts(hidden, choice, weights))


def test_ratios_are_of_pairs():
    assert median_ratio([1.0, 2.0, 4.0], [3.0, 6.0, 4.0]) == 3.0
