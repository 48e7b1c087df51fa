"""The evaluation of routing on a small random model, and its knock-outs against a model without the expert."""

import json

import numpy as np
import pytest

from most_core import GenerationSettings
from train import __main__ as cli
from train import evaluate_routing
from train.data import test_sets
from train.data.utterance import Utterance
from train.evaluate_routing import measure, specialists_table
from train.routing_figures import Specialisation, Specialist
from train.scoreboard import Scoreboard

FEW = GenerationSettings(max_new_tokens=24, max_heard_tokens=6, max_sentence_tokens=5, max_sentence_units=8)


@pytest.fixture(autouse=True)
def short_replies(monkeypatch):
    monkeypatch.setattr(evaluate_routing, "SETTINGS", FEW)
    monkeypatch.setattr(evaluate_routing, "KNOCKED", 2)


@pytest.fixture
def board(most, wave):
    board = Scoreboard("routing")
    measure(board, most, [wave, "how are you?", "what is one plus one?"])
    return board


def test_figures_of_a_model_that_knows_nothing(board, most):
    figures, layers = board.figures, len(most.config.moe_layers)
    assert figures["leakage"] == 0
    tokens = figures["tokens_text"] + figures["tokens_audio"]
    assert figures["decisions"] == tokens * layers * most.config.num_experts_per_tok
    for name in ("text", "audio"):
        assert (figures[f"group_size_{name}"], figures[f"experts_{name}"]) == (4, 4 * layers)
        assert figures[f"locality_{name}_chance"] == 0.5
        assert 1 <= figures[f"effective_experts_{name}"] <= 4
        for share in ("entropy", "suppressed_mass", "unmasked_top1_inside", "unmasked_outside", "locality"):
            assert 0 <= figures[f"{share}_{name}_low"] <= figures[f"{share}_{name}"] <= 1
        assert figures[f"max_vio_{name}_worst"] >= figures[f"max_vio_{name}"] >= 0
        assert 0 <= figures[f"knock_out_{name}_changed"] <= 1
    assert figures["n_knocked_out"] == 2
    assert np.isfinite(figures["knock_out_text_words"])
    json.dumps(board.as_json(), allow_nan=False)


def test_the_mask_taken_away_is_counted_from_the_unmasked_choice(most, board):
    """Half of the experts are of the other group, and random routers do not know which."""
    assert 0.05 < board.figures["suppressed_mass_text"] < 0.95
    assert board.figures["unmasked_outside_text"] > 0
    assert any("another model" in note for note in board.notes)


def test_a_table_names_the_classes():
    row = Specialisation(900, 0.25, 0.01, 0.005, 1.5, [Specialist(3, 1, 120, 2.04, 0.93)])
    table = specialists_table("mi_text_words: words", {4: row}, ("marker", "number"))
    assert table.splitlines()[0].startswith("mi_text_words: words (900 tokens, 1.50 nats to tell")
    assert table.splitlines()[-1] == "      4 0.250 0.010  0.005  3 number x2.0 (120; 93 %)"


def test_the_command_asks_spoken_and_typed_questions(most, wave, monkeypatch, capsys, tmp_path):
    def load(name, folder, workers):
        assert (name, folder) == ("seen", tmp_path)
        tasks = ["question", "asr", "question", "question", "asr", "question"]
        return [Utterance(str(n), "v", f"question {n}?", wave, "", "", "test", task) for n, task in enumerate(tasks)]

    asked = []
    monkeypatch.setattr(test_sets, "load", load)
    monkeypatch.setattr(evaluate_routing, "load", lambda folder, device: most)
    monkeypatch.setattr(evaluate_routing, "measure", lambda board, most, given: asked.extend(given))
    flags = ["--data", str(tmp_path), "--count", "2", "--out", str(tmp_path / "figures.json")]
    assert cli.main(["evaluate", "routing", *flags, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["figures"]["n_spoken"], told["figures"]["n_typed"]) == (2, 2)
    assert [each if isinstance(each, str) else "sound" for each in asked] == [
        *["sound", "sound", "question 3?", "question 5?"]
    ]
    assert "routing" in json.loads((tmp_path / "figures.json").read_text())
