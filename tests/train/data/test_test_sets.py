import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from train.data import english, readers, synthesize, test_sets
from train.data.shards import describe_shard, read_manifest, write_manifest, write_shard
from train.data.utterance import Utterance, spoken_letters
from train.data.voices import MissingEngine, unseen_voices

UTTERANCES = 16


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small sets, and no engine to speak them."""

    def run(*_):
        raise MissingEngine("flite is not installed: run `apt install flite`")

    monkeypatch.setattr(test_sets, "UTTERANCES", UTTERANCES)
    monkeypatch.setattr(synthesize, "run", run)
    monkeypatch.delenv(test_sets.HUMAN_VARIABLE, raising=False)


def speak(config, folder, _=None, text_of=test_sets.text_of):
    """What `synthesize.run` does, with a hum for a voice."""

    def utterance(row):
        text, task = text_of(config, row)
        speaker = synthesize.voice(config, row, 0).speaker
        return Utterance(f"t/{row}/0", speaker, text, np.full(3200, 0.1, np.float32), "", "", "test", task)

    write_shard(folder / "speech-00000.arrow", map(utterance, range(config.shards * config.utterances_per_shard)))
    write_manifest(folder, [describe_shard(folder / "speech-00000.arrow")], config.generator)
    return 0


def test_half_are_new_questions_and_half_new_sentences():
    config = test_sets.config_of("seen")
    texts = [test_sets.text_of(config, row) for row in range(UTTERANCES)]
    assert Counter(task for _, task in texts) == {"question": UTTERANCES // 2, "asr": UTTERANCES // 2}
    assert len({spoken_letters(text) for text, _ in texts}) == UTTERANCES
    open_ones = [spoken_letters(text) for text, task in texts if task == "asr"]
    assert not {spoken_letters(text) for text in english.all_sentences("train")} & set(open_ones)
    assert texts == [test_sets.text_of(test_sets.config_of("unseen"), row) for row in range(UTTERANCES)]
    spare = test_sets.text_of(config, 5 + (1 << 40))
    assert spare not in texts
    assert spare[1] == texts[5][1]


def test_unseen_voices_say_as_much_of_each_kind():
    config = test_sets.config_of("unseen")
    said = Counter(
        (synthesize.voice(config, row, 0).name, test_sets.text_of(config, row)[1]) for row in range(UTTERANCES)
    )
    assert said == {(voice.name, task): UTTERANCES // 4 for voice in unseen_voices() for task in ("question", "asr")}
    assert test_sets.config_of("seen").voices == "training"


def test_a_set_is_spoken_once_and_needs_no_engine_then(tmp_path, monkeypatch, capsys):
    with pytest.raises(test_sets.Unavailable, match="apt install flite"):
        test_sets.load("seen", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(synthesize, "run", lambda *args: print("speaking") or speak(*args))
        first = test_sets.load("seen", tmp_path)
    assert capsys.readouterr().out == ""  # where figures are printed
    again = test_sets.load("seen", tmp_path)
    assert [item.text for item in again] == [item.text for item in first]
    assert len(again) == UTTERANCES
    assert {item.task for item in again} == {"question", "asr"}


def test_a_damaged_set_is_repaired(tmp_path, monkeypatch):
    speak(test_sets.config_of("unseen"), tmp_path / "unseen")
    shard = tmp_path / "unseen" / "speech-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-100])
    monkeypatch.setattr(synthesize, "run", speak)
    assert len(test_sets.load("unseen", tmp_path)) == UTTERANCES


def test_a_set_of_another_grammar_is_made_anew(tmp_path, monkeypatch):
    speak(test_sets.config_of("unseen"), tmp_path / "unseen")
    asked = []
    monkeypatch.setattr(
        synthesize, "run", lambda config, out, options, text_of: asked.append(options) or speak(config, out)
    )
    monkeypatch.setattr(test_sets, "_sentence", lambda seed, index: f"something else {'abcdefghij' * (index + 1)}")
    assert test_sets.load("unseen", tmp_path)[2].text.startswith("something else")
    assert [options.fresh for options in asked] == [True]
    test_sets.load("unseen", tmp_path)
    assert len(asked) == 1


def test_speech_of_another_kind_is_left_alone(tmp_path):
    speak(test_sets.config_of("unseen"), tmp_path / "seen")
    write_manifest(tmp_path / "seen", read_manifest(tmp_path / "seen")[0], synthesize.Config().generator)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "seen").iterdir())
    with pytest.raises(ValueError, match="no such test set"):
        test_sets.load("seen", tmp_path)
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "seen").iterdir()) == before


def test_an_unknown_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no test set 'noise': choose from seen, unseen, human"):
        test_sets.load("noise", tmp_path)


def test_human_orders_are_those_of_the_test_voices(tmp_path, monkeypatch):
    voice = min(readers.HUMAN_TEST_VOICES)
    slots = {"coffeeDrink": "latte", "size": "small"}
    labels = {f"{v}.wav": {"intent": "orderDrink", "slots": slots, "voice": v} for v in (voice, 1000)}
    for name in labels:
        soundfile.write(tmp_path / name, np.full(8000, 0.1), 16000)
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    [order] = test_sets.load("human", human=tmp_path)
    assert (order.speaker, order.slots) == (f"barista-{voice}", slots)
    monkeypatch.setenv(test_sets.HUMAN_VARIABLE, str(tmp_path))
    assert len(test_sets.load("human")) == 1


def test_without_human_clips_one_is_told_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(test_sets, "HUMAN_BESIDE_PROJECT", tmp_path / "no")
    with pytest.raises(test_sets.Unavailable, match="Picovoice/speech-to-intent-benchmark"):
        test_sets.load("human")
    monkeypatch.setattr(test_sets, "HUMAN_BESIDE_PROJECT", tmp_path)
    assert test_sets.human_folder(None) == tmp_path
    with pytest.raises(FileNotFoundError, match="no is no folder"):  # asked for by name: not to be passed over
        test_sets.load("human", human=tmp_path / "no")


@pytest.fixture
def spoken(tmp_path, monkeypatch):
    monkeypatch.setattr(synthesize, "run", speak)
    return tmp_path


def test_questions_are_of_all_topics_and_both_voices_ask_as_many_of_each(spoken):
    utterances = test_sets.load("questions-unseen", spoken)
    asked = test_sets.exchanges_of("questions-unseen", utterances)
    assert [item.question for item in asked] == [utterance.text for utterance in utterances]
    voices = [utterance.speaker.split("/")[1] for utterance in utterances]
    assert set(Counter(zip(voices, (item.topic for item in asked))).values()) == {5}
    assert set(Counter(item.topic for item in asked[:32]).values()) == {1}
    kinds = Counter(zip(voices, (item.held_out for item in asked)))
    assert kinds["rms", "value"] == kinds["ked_diphone", "value"] == 75  # two topics have held-out templates alone
    assert kinds["rms", "template"] == kinds["ked_diphone", "template"] == 85
    assert len({(spoken_letters(item.question), item.history) for item in asked}) == len(asked) == 320
    assert all(item.history for item in asked if item.topic == "follow-ups")
    assert asked == test_sets.exchanges_of("questions-seen", test_sets.load("questions-seen", spoken))


def test_orders_differ_and_have_their_confirmations(spoken):
    asked = test_sets.exchanges_of("orders-seen", test_sets.load("orders-seen", spoken))
    assert len({spoken_letters(item.question) for item in asked}) == len(asked) == 150
    assert all(item.answer.startswith("One ") and item.topic == "coffee" for item in asked)


def test_a_question_that_no_voice_could_speak_is_known_by_its_place(spoken):
    utterances = test_sets.load("questions-seen", spoken)
    spare = test_sets.question_of(7 + synthesize.SPARE)
    moved = [*utterances[:7], replace(utterances[7], text=spare.question), *utterances[8:]]
    assert spare.question != utterances[7].text
    assert test_sets.exchanges_of("questions-seen", moved)[7] == spare
    with pytest.raises(ValueError, match="utterance 7 of 'questions-seen' is not what the grammar asks"):
        test_sets.exchanges_of("questions-seen", [*utterances[:7], utterances[8]])
