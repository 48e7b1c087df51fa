"""Evaluation of the mouth on stand-ins for the synthesizer and the recognizer, and a small random vocoder."""

import json

import numpy as np
import pytest
import torch

from most_core.speech import untrained_encoder
from most_core.vocoder import Vocoder, VocoderStream, untrained_vocoder
from tests.train.conftest import FakeSynthesizer, LanguageModel
from train import __main__ as cli
from train import evaluate_mouth
from train.config import RunOptions
from train.data.mouth_texts import Sentence
from train.scoreboard import Scoreboard

SENTENCES = [
    *(Sentence(text, "answers") for text in ("The sky is often blue.", "It is noon.")),
    *(Sentence(text, "sentences") for text in ("We saw the sea today.", "Birds sing in the morning.")),
]
VOICE = {"engine": "flite", "name": "slt"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a random encoder and vocoder that belong together; read only."""
    folder = tmp_path_factory.mktemp("mouth")
    untrained_encoder(16, 12).save(folder)
    untrained_vocoder(12).save(folder)
    (folder / "vocoder" / "voice.json").write_text(json.dumps({"voice": VOICE, "shift": 592}))
    return folder


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """Four sentences; a recognizer that hears originals well, and drops the last word of what is made of them."""
    said = [" ".join(sentence.words) for sentence in SENTENCES]

    def hear_all(path, waves, workers):
        assert path.is_file()
        original = len(waves[0]) == 4000 + 640 * len(SENTENCES[0].text)
        return said if original else [text.rpartition(" ")[0] for text in said[:2]] + ["we saw a sea today", said[3]]

    monkeypatch.setattr(evaluate_mouth, "Synthesizer", FakeSynthesizer)
    monkeypatch.setattr(evaluate_mouth, "hear_all", hear_all)
    monkeypatch.setattr(evaluate_mouth, "dictionary", frozenset)
    monkeypatch.setattr(evaluate_mouth, "vocabulary", frozenset)
    monkeypatch.setattr(evaluate_mouth, "held_out_sentences", lambda known: (SENTENCES, 3))
    monkeypatch.setattr(evaluate_mouth, "language_model", lambda known, excluded: LanguageModel())
    monkeypatch.setattr(evaluate_mouth, "ROUNDS", 1)
    monkeypatch.setattr(evaluate_mouth, "LONG_UNITS", 600)
    monkeypatch.delenv("MOST_DEBUG", raising=False)


def test_figures_by_the_command_line(capsys, model, tmp_path):
    out = tmp_path / "figures.json"
    out.write_text('{"ears": {}}')
    command = ["evaluate", "mouth", "--model", str(model), "--device", "cpu", "--out", str(out)]
    assert cli.main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    figures = told["figures"]
    assert told["bench"] == "mouth"
    assert json.loads(out.read_text()) == {"ears": {}, "mouth": told}
    assert figures["original_wer"] == 0
    assert figures["resynth_wer"] == pytest.approx(3 / 18, abs=1e-3)
    assert figures["resynth_wer_answers"] == pytest.approx(2 / 8, abs=1e-3)
    assert figures["resynth_wer_low"] <= figures["resynth_wer"] <= figures["resynth_wer_high"]
    assert "resynth_ratio" not in figures  # nothing was misheard of the originals
    assert figures["n_sentences"] == 4
    assert figures["stream_difference"] < 1e-4
    assert figures["seam_roughness"] == pytest.approx(1, abs=1e-2)
    assert figures["clipping"] == 0
    assert figures["long_stream_growth_mb"] < 20
    assert figures["mel_distance_low"] <= figures["mel_distance"] <= figures["mel_distance_high"]
    assert figures["vocoder_rtf_1t"] > 0 < figures["vocoder_rtf_2t"]
    assert figures["vocoder_stream_rtf_1t"] > 0
    assert figures["vocoder_first_chunk_ms_1t"] > 0
    assert figures["vocoder_lookahead_ms"] == pytest.approx(339.6, abs=0.1)
    assert any("3 sentences with a word outside" in note for note in told["notes"])

    assert cli.main(command) == 0
    [row] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("resynth_wer ")]
    assert row.endswith("at most 20 %: pass")


def test_speed_is_taken_on_the_threads_that_it_names(monkeypatch, model):
    threads = []
    synthesize = Vocoder.synthesize
    monkeypatch.setattr(
        Vocoder, "synthesize", lambda self, units: threads.append(torch.get_num_threads()) or synthesize(self, units)
    )
    before = torch.get_num_threads()
    evaluate_mouth._measure_cost(Scoreboard("mouth"), model, [np.zeros(60, np.int64)])
    assert set(threads) == {1, 2}
    assert torch.get_num_threads() == before


def test_a_click_at_the_seams_is_seen(monkeypatch, model):
    vocoder, units = Vocoder.load(model), [np.arange(60) % 12]
    smooth, rough = Scoreboard("mouth"), Scoreboard("mouth")
    evaluate_mouth._measure_streams(smooth, vocoder, units)
    real = VocoderStream.push

    def clicking(self, units):
        sound = real(self, units)
        sound[-1:] += 0.5
        return sound

    monkeypatch.setattr(VocoderStream, "push", clicking)
    evaluate_mouth._measure_streams(rough, vocoder, units)
    assert rough.figures["seam_roughness"] > 3 * smooth.figures["seam_roughness"]
    assert rough.figures["stream_difference"] > 0.4


def test_parts_that_do_not_belong_together_are_refused(model, tmp_path):
    untrained_encoder(16, 20).save(tmp_path)
    untrained_vocoder(12).save(tmp_path)
    with pytest.raises(ValueError, match="the encoder has 20 units, the vocoder 12"):
        evaluate_mouth.run(tmp_path, True, RunOptions())
    with pytest.raises(FileNotFoundError, match="is no folder"):
        evaluate_mouth.run(model, True, RunOptions(), tmp_path / "none" / "figures.json")
