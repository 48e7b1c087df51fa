"""The page through its real door: a served Gradio app and Gradio's own client."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import soundfile
from gradio_client import Client, handle_file

import most_core
from app.engine import Engine
from app.page import blocks as page
from app.settings import Settings

# app.py shares its name with the package app/, so it is loaded by its path.
_spec = importlib.util.spec_from_file_location("start", Path(page.__file__).parents[2] / "app.py")
start = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(start)


@pytest.fixture(scope="module")
def client():
    short = most_core.GenerationSettings(max_sentence_units=75, max_sentence_tokens=12)
    engine = Engine(most_core.untrained("tiny"))
    blocks = page.build(engine, Settings(seconds=3, characters=200), short)
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", share=False)
    yield Client(url, verbose=False)
    blocks.close()
    engine.close()


def test_a_typed_question_is_answered_in_text_and_sound(client):
    heard, text, sound, facts = client.predict("what time is it", None, api_name="/ask")
    assert heard == "what time is it"
    assert text
    samples, rate = soundfile.read(sound)
    assert rate == 16000
    assert np.abs(samples).max() > 0
    assert facts["tokens routed outside their experts"].startswith("0 of ")


def test_a_recording_in_stereo_at_44_kilohertz_is_heard(client, tmp_path):
    path = tmp_path / "question.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal((44100, 2)), 44100)
    heard, text, _, _ = client.predict("", handle_file(path), api_name="/ask")
    assert heard
    assert text


def test_nothing_given_says_what_to_do(client):
    with pytest.raises(Exception, match="Type a question or give a recording"):
        client.predict("  ", None, api_name="/ask")


def test_what_is_too_long_is_refused_in_words(client, tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(4 * 16000), 16000)
    with pytest.raises(Exception, match=r"4\.0 s long, the limit is 3 s"):
        client.predict("", handle_file(path), api_name="/ask")
    with pytest.raises(Exception, match="1000000 characters, the limit is 200"):
        client.predict("a" * 1_000_000, None, api_name="/ask")


def test_eight_channels_are_refused_in_words(client, tmp_path):
    path = tmp_path / "surround.wav"
    soundfile.write(path, np.zeros((1600, 8)), 16000)
    with pytest.raises(Exception, match="channels"):
        client.predict("", handle_file(path), api_name="/ask")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(port=0), "there is no folder assets/nano"),
        (Settings(model="nowhere", port=0), "there is no folder nowhere"),
        (Settings(model="ears", port=0), "no config.json in ears"),
    ],
)
def test_what_cannot_be_opened_is_told_in_one_line(settings, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ears/speech_encoder").mkdir(parents=True)
    assert start.main(settings) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(quantize="int4", port=0), "int4"),
        (Settings(device="abacus", port=0), "unknown device 'abacus'"),
    ],
)
def test_impossible_settings_are_told_in_one_line(settings, message, capsys, tmp_path):
    most_core.untrained("tiny").save(tmp_path / "tiny")
    capsys.readouterr()  # saving draws a bar
    assert start.main(dataclasses.replace(settings, model=str(tmp_path / "tiny"))) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_an_upload_that_is_no_sound_is_refused_in_words(client, tmp_path):
    path = tmp_path / "fake.wav"
    path.write_bytes(b"this is no sound")
    with pytest.raises(Exception, match=r"fake\.wav (is not a sound|needs ffmpeg)"):
        client.predict("", handle_file(path), api_name="/ask")
