"""One question from the command line: a recording or a typed one, answered in lines and sound, or one line of error."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import app
import most_core
from app import ask
from app.settings import Settings, parse

# app.py shares its name with the package app/, so it is loaded by its path.
_spec = importlib.util.spec_from_file_location("start", Path(app.__file__).parent.parent / "app.py")
start = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(start)

TONE = (0.3 * np.sin(np.arange(13230) * 0.1)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole checkpoint."""
    path = tmp_path_factory.mktemp("ask") / "tiny"
    most_core.untrained("tiny").save(path)
    return str(path)


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def refused(capsys, settings):
    assert start.main(settings) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def lines(text):
    return dict(line.split("  ", 1) if "  " in line else (line, "") for line in text.splitlines())


def test_a_stereo_recording_at_another_rate_is_answered_in_lines_and_sound(folder, capsys, tmp_path):
    question, out = tmp_path / "question.flac", tmp_path / "reply.wav"
    soundfile.write(question, np.stack([TONE, TONE], 1), 22050)
    assert start.main(Settings(model=folder, ask=str(question), out=str(out))) == 0
    told = {name.strip(): value.strip() for name, value in lines(capsys.readouterr().out).items()}
    assert list(told) == ["heard", "answer", "confidence", "sound", "took, ms"]
    assert 0 <= float(told["confidence"]) <= 1
    assert {"encode", "first sound", "total"} <= {part.rsplit(" ", 1)[0] for part in told["took, ms"].split(", ")}
    written = soundfile.info(out)
    assert (written.format, written.subtype, written.channels, written.samplerate) == ("WAV", "PCM_16", 1, 16000)
    assert f"{written.duration:.1f} s" == told["sound"]


def test_a_typed_question_is_answered(folder, capsys):
    assert start.main(Settings(model=folder, ask="what time is it")) == 0
    assert capsys.readouterr().out.startswith("asked       what time is it\nanswer ")


@pytest.mark.parametrize("text", ["is 3.5 more than 2.9", "what does Mr. Brown do?", "why " * 2000, "a\0b"])
def test_what_is_no_path_is_typed(text):
    assert ask.read_question(text) == ask.Question(text=text)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere.wav", "there is no recording nowhere.wav"),
        ("a folder/x.OGG", "there is no recording"),
        ("  ", "empty"),
    ],
)
def test_no_question_is_told_before_anything_is_loaded(given, message, capsys):
    assert message in refused(capsys, Settings(model="not looked at", ask=given))


def test_files_without_sound_are_told_in_one_line(capsys, tmp_path):
    empty, text = tmp_path / "empty.wav", tmp_path / "notes.txt"
    soundfile.write(empty, np.zeros(0), 16000)
    text.write_text("no sound")
    assert "holds no sound" in refused(capsys, Settings(ask=str(empty)))
    assert "notes.txt" in refused(capsys, Settings(ask=str(text)))
    assert "this is a folder" in refused(capsys, Settings(ask=str(tmp_path)))


def test_the_routing_of_an_answer_is_written(folder, capsys, tmp_path):
    prefix = tmp_path / "turn"
    assert start.main(Settings(model=folder, ask="what time is it", trace=str(prefix))) == 0
    trace = most_core.RoutingTrace.load(prefix)
    assert trace.num_tokens > 4
    assert trace.leakage == 0
    assert "user" in trace.role


def test_a_place_that_cannot_be_written_is_told_first(capsys, tmp_path):
    missing = tmp_path / "missing" / "reply.wav"
    assert "there is no folder" in refused(capsys, Settings(model="not looked at", ask="hello", out=str(missing)))
    assert "this is a folder" in refused(capsys, Settings(model="not looked at", ask="hello", out=str(tmp_path)))
    assert "--ask" in refused(capsys, Settings(model="not looked at", out=str(tmp_path / "reply.wav")))
    assert "--trace" in refused(capsys, Settings(model="not looked at", ask="hello", trace=str(missing)))
    assert "--ask" in refused(capsys, Settings(model="not looked at", trace=str(tmp_path / "turn")))


def test_an_answer_without_sound_leaves_no_file(tmp_path):
    reply = most_core.untrained("tiny").answer("hello", settings=most_core.GenerationSettings(speak=False))
    with pytest.raises(ValueError, match="has no sound"):
        ask.write_sound(reply, tmp_path / "reply.wav")
    assert not (tmp_path / "reply.wav").exists()
    assert "sound       none" in ask.told(reply, spoken=False)


def test_a_small_model_computes_on_one_thread_unless_told_otherwise(folder, capsys):
    for asked_for, threads in ((0, 1), (3, 3)):
        torch.set_num_threads(2)
        assert start.main(Settings(model=folder, ask="hello", threads=asked_for)) == 0
        assert torch.get_num_threads() == threads


def test_the_flags_are_there():
    settings = parse(["--ask", "question.wav", "--out", "reply.wav"], {})
    assert (settings.ask, settings.out) == ("question.wav", "reply.wav")
