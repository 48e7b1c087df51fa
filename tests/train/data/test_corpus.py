import json

import numpy as np
import pytest
import soundfile
import torch

from most_core.speech import CtcHead, SpeechEncoder, Word, untrained_encoder
from tests.train.conftest import spoken
from train.config import RunOptions
from train.data import corpus
from train.data.corpus import Config, run, transcribed
from train.data.mixture import LETTERS
from train.data.readers import OrderClip
from train.data.shards import ShardedSpeech, read_manifest

PLAIN = RunOptions()


@pytest.fixture
def recordings(tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    for name, text in (("a", "yes"), ("b", "one two"), ("c", "yes")):
        soundfile.write(folder / f"{name}.wav", spoken(0, text).wave, 16_000)
        (folder / f"{name}.txt").write_text(text)
    return folder


def order(name, wave):
    return OrderClip(name, "barista-2", None, wave, "a test", "CC0-1.0", slots={"coffeeDrink": "latte"})


def test_a_folder_becomes_shards(recordings, tmp_path, capsys):
    assert run(Config(location=str(recordings), utterances_per_shard=2), tmp_path / "out", PLAIN) == 0
    speech = ShardedSpeech(tmp_path / "out")
    assert speech.texts == ["yes", "one two", "yes"]
    assert np.abs(speech[1].wave - spoken(0, "one two").wave).max() < 1e-3
    shards, generator = read_manifest(tmp_path / "out")
    assert [shard.rows for shard in shards] == [2, 1]
    assert generator["location"] == str(recordings)
    assert "3 utterances" in capsys.readouterr().out


def test_shards_are_replaced_as_a_whole(recordings, tmp_path, monkeypatch):
    config = Config(location=str(recordings))
    run(config, tmp_path / "out", PLAIN)
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "describe_shard", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(config, tmp_path / "out", PLAIN)
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before
    run(config, tmp_path / "out", PLAIN)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "recordings"]


def test_a_dry_run_only_lists(recordings, tmp_path, capsys):
    run(Config(location=str(recordings)), tmp_path / "out", RunOptions(dry_run=True))
    assert "one two" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_texts_may_come_from_a_file(tmp_path):
    (tmp_path / "texts.json").write_text(json.dumps({"u1": "open the door"}))
    items = list(transcribed([spoken(i, "x") for i in range(3)], str(tmp_path / "texts.json")))
    assert [(item.id, item.text) for item in items] == [("u1", "open the door")]


def test_an_encoder_words_orders_and_labels_what_it_is_sure_of(tmp_path, monkeypatch):
    plain = untrained_encoder(24, 8)
    weight = np.random.default_rng(0).normal(size=(2 * len(LETTERS), 24)).astype(np.float32)
    head = CtcHead(*(torch.from_numpy(x) for x in (weight, np.zeros(len(weight), np.float32))), LETTERS, layer=2)
    SpeechEncoder(plain.model, plain.quantizer, head).save(tmp_path)
    clips = [order(f"o{i}", spoken(i, "can i get a latte please").wave) for i in range(2)]
    found = list(transcribed(clips, str(tmp_path)))
    assert [item.id for item in found] == ["o0", "o1"]
    assert all("latte" in item.text for item in found)
    assert type(found[0]).__name__ == "Utterance"

    heard = [Word(f"w{i}", i / 4, i / 4 + 0.2, 0.99) for i in range(4)]
    monkeypatch.setattr(SpeechEncoder, "words", lambda self, wave: heard)
    (labelled,) = transcribed([spoken(0, "something said for a second or two")], str(tmp_path))
    assert labelled.text == "w0 w1 w2 w3"


def test_unwritten_recordings_are_labelled_by_pocketsphinx_as_sure_as_is_asked_for(tmp_path, monkeypatch):
    heard = [Word(f"w{i}", i / 4, i / 4 + 0.2, 0.7 - i / 10) for i in range(6)]
    monkeypatch.setattr(corpus, "words_of_all", lambda waves: [heard for _ in waves])
    items = [spoken(0, "something said for a second or two")]
    assert list(transcribed(items, "pocketsphinx")) == []  # .7 and .6 are no three sure words
    assert [item.text for item in transcribed(items, "pocketsphinx", sure=0.25)] == ["w0 w1 w2 w3"]
    assert [item.text for item in transcribed(items, "pocketsphinx", sure=0)] == ["w0 w1 w2 w3 w4 w5"]


def test_an_empty_corpus_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError)):
        run(Config(location=str(tmp_path / "empty")), tmp_path / "out", PLAIN)
    assert not (tmp_path / "out").exists()
