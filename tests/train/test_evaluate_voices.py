"""Comparison of voices on stand-ins for the synthesizer and the recognizer, and a small random encoder."""

import json

import numpy as np
import pytest

from most_core.speech import untrained_encoder
from tests.train.conftest import FakeSynthesizer, LanguageModel
from train import __main__ as cli
from train import evaluate_mouth, evaluate_voices
from train.data.mouth_texts import Sentence

SENTENCES = [Sentence("Birds sing in the morning.", "sentences"), Sentence("The sky is often blue.", "answers")]
HERTZ = {"slt": 200, "awb": 120, "kal16": 100, "cmu_us_slt_arctic_hts": 180}


def hertz(name, time):
    """Each voice has a pitch of its own, which wavers for awb alone."""
    return HERTZ[name] * (1 + 0.1 * np.sin(2 * np.pi * 2 * time) * (name == "awb"))


def test_voices_are_compared_by_the_command_line(capsys, tmp_path, monkeypatch):
    untrained_encoder(16, 12).save(tmp_path)
    answers = iter([["birds sing in the morning", "the sky is often blue"], *[["birds", "the sky"]] * 3])
    monkeypatch.setattr(evaluate_voices, "Synthesizer", lambda: FakeSynthesizer(hertz))
    monkeypatch.setattr(evaluate_voices, "held_out_sentences", lambda known: (SENTENCES, 0))
    for module in (evaluate_voices, evaluate_mouth):
        monkeypatch.setattr(module, "dictionary", frozenset)
        monkeypatch.setattr(module, "vocabulary", frozenset)
    monkeypatch.setattr(evaluate_mouth, "language_model", lambda known, excluded: LanguageModel())
    monkeypatch.setattr(evaluate_mouth, "hear_all", lambda path, waves, workers: next(answers))

    assert cli.main(["evaluate", "voices", "--model", str(tmp_path), "--device", "cpu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    figures = told["figures"]
    assert told["bench"] == "voices"
    assert figures["slt_wer"] == 0
    assert figures["awb_wer"] == pytest.approx(0.7)
    assert figures["pitch_hz_slt"] == pytest.approx(200, rel=0.03)
    assert figures["pitch_hz_kal16"] == pytest.approx(100, rel=0.03)
    assert figures["melody_semitones_awb"] > 0.8 > 0.2 > figures["melody_semitones_slt"]
    assert all(0 <= figures[f"units_tell_{name}"] <= 1 for name in evaluate_voices.VOICES)
    assert all(figures[f"x_real_time_{name}"] > 0 for name in evaluate_voices.VOICES)
