import json

import numpy as np
import pytest

from train.scoreboard import Scoreboard, machine


@pytest.fixture
def board():
    board = Scoreboard("ears", notes=["mind the gap"])
    board.figures["n_seen"] = 4
    board.add_rate("ctc_wer_seen", np.array([0, 1, 0, 1]), np.array([9, 10, 11, 10]))
    board.add_rate("ctc_wer_unseen", np.array([0, 1]), np.array([10, 10]))
    board.figures["encoder_rtf_1t"] = 0.0123456
    return board


def test_a_rate_has_its_interval_and_four_digits(board):
    told = board.as_json()
    assert (told["bench"], told["machine"], told["notes"]) == ("ears", machine(), ["mind the gap"])
    figures = told["figures"]
    assert figures["ctc_wer_seen"] == 0.05
    assert figures["ctc_wer_seen_low"] == 0
    assert 0.05 < figures["ctc_wer_seen_high"] <= 0.1
    assert figures["encoder_rtf_1t"] == 0.01235
    json.dumps(told, allow_nan=False)


def test_no_words_give_no_figure(board):
    board.add_rate("ctc_wer_human", np.array([3]), np.array([0]))
    assert not [name for name in board.figures if "human" in name]


def test_a_mean_has_its_interval_and_is_no_share(board, capsys):
    board.add_mean("mel_distance", np.array([0.5, 0.7, np.nan, 0.6]))
    board.add_mean("f0_correlation", np.array([np.nan]))
    assert board.figures["mel_distance"] == pytest.approx(0.6)
    assert 0.5 <= board.figures["mel_distance_low"] < 0.6 < board.figures["mel_distance_high"] <= 0.7
    assert "f0_correlation" not in board.figures
    board.show("the mouth of x")
    [row] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("mel_distance")]
    assert "%" not in row
    assert "0.6 " in row
    json.dumps(board.as_json(), allow_nan=False)


def test_people_see_bars_and_whether_they_are_met(board, capsys):
    board.show("the ears of x")
    lines = capsys.readouterr().out.splitlines()
    [seen] = [line for line in lines if line.startswith("ctc_wer_seen")]
    [unseen] = [line for line in lines if line.startswith("ctc_wer_unseen")]
    [speed] = [line for line in lines if line.startswith("encoder_rtf_1t")]
    assert "5.00 %" in seen
    assert seen.endswith("at most 4 %: MISS")
    assert unseen.endswith("at most 15 %: pass")
    assert speed.endswith("at most 0.05: pass")
    assert lines[-2:] == ["utterances: seen 4", "note: mind the gap"]


def test_saving_keeps_the_other_evaluations(board, tmp_path):
    path = tmp_path / "figures.json"
    path.write_text('{"mouth": {"bench": "mouth"}, "ears": "old"}')
    board.save(path)
    assert json.loads(path.read_text()) == {"mouth": {"bench": "mouth"}, "ears": board.as_json()}
    assert list(tmp_path.iterdir()) == [path]
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"figures\.json holds a list"):
        board.save(path)
    assert path.read_text() == "[1]"
