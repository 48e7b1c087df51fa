import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from tests.train.conftest import FakeSynthesizer, spoken, write_folder
from train.config import RunOptions, load_config
from train.data import replies
from train.data.conversations import conversations_of, is_conversations
from train.data.replies import UNHEARD, Config, recorded_orders, reply, run, written
from train.data.shards import ShardedSpeech, read_manifest
from train.data.unheard import ATTEMPTS, KINDS, Talkers, languages, unheard
from train.data.voices import SynthesisError

needs_engines = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")

ORDERS = ("can i have a large latte with some milk", "what time is it", "i'd like espresso")
SAYINGS = ("the cat sat on the mat", "my brother lives in a small town", "it rains", "we go to the sea tomorrow")


class Synthesizer(FakeSynthesizer):
    """Buzzes in other languages, too, and remembers what was asked of it."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def speak_as_written(self, text, voice):
        self.asked.append((text, voice.name))
        return self.speak(text, voice)


@pytest.fixture
def orders(tmp_path):
    return write_folder(tmp_path / "orders", [spoken(i, text, "anna") for i, text in enumerate(ORDERS)])


@pytest.fixture
def people(tmp_path):
    """Twelve people, one of whom says too little."""
    said = [spoken(i, SAYINGS[i % 4], f"person {i}") for i in range(12)]
    return write_folder(tmp_path / "people", said)


def made(config, indices, synthesizer=None):
    talkers = Talkers(config.talkers, config.split, synthesizer or Synthesizer())
    recorded = recorded_orders(config)
    return [reply(config, recorded, talkers, index) for index in indices]


def asked(conversation):
    (stretch,) = conversation.turns[0].stretches
    return stretch


def test_recorded_orders_are_confirmed_as_often_as_asked_for(orders):
    config = Config(orders=orders, times=2, unheard=0)
    first, second, again, last = made(config, range(4))
    assert first.turns[0].text == "Can I have a large latte with some milk?"
    assert first.turns[1].text == "One large latte with some milk, coming up."
    assert [turn.role for turn in first.turns] == ["user", "assistant"]
    assert [turn.text for turn in second.turns] == ["I'd like espresso.", "One espresso, coming up."]
    assert (again.turns[0].text, last.turns[0].text) == (first.turns[0].text, second.turns[0].text)
    assert (first.source, first.licence, first.turns[0].speaker) == ("a test", "CC0-1.0", "anna")
    assert first.id == "orders-train-0/00000/00000/0"
    recording = ShardedSpeech(orders)[0].wave
    np.testing.assert_array_equal(asked(first).wave, recording)
    np.testing.assert_array_equal(asked(again).wave, recording)


@pytest.mark.parametrize(
    ("transcript", "text"),
    [
        ("may i have a latte", "May I have a latte?"),
        ("i want an iced coffee.", "I want an iced coffee."),
        ("brew espresso", "Brew espresso."),
        ("Could I have a mocha?", "Could I have a mocha?"),
    ],
)
def test_a_transcript_is_written_as_the_world_writes_it(transcript, text):
    assert written(transcript) == text


def test_what_cannot_be_understood_is_said_to_be(people):
    config = Config(unheard=80, talkers=(people,), conversations_per_shard=7)
    kinds = set()
    for index, conversation in enumerate(made(config, range(80))):
        assert [turn.role for turn in conversation.turns] == ["user", "assistant"]
        assert asked(conversation).text == ""
        assert conversation.turns[1].text == UNHEARD
        assert conversation.id == f"unheard-train-0/{index // 7:05}/{index % 7:05}/0"
        kinds.add(conversation.source.removeprefix("unheard, "))
    assert kinds == set(KINDS)


def test_sounds_are_of_all_lengths_and_loudnesses(people):
    sounds = [unheard(Talkers((people,), "train", Synthesizer()), 3, number) for number in range(80)]
    for sound in sounds:
        assert sound.wave.dtype == np.float32
        assert np.isfinite(sound.wave).all()
        assert 9600 <= len(sound.wave) <= 96_000
        assert np.abs(sound.wave).max() <= 1
        assert sound.licence
        assert (np.abs(sound.wave).max() < 0.004) or sound.kind != "silence"
        assert sound.wave.any() or sound.kind == "silence"
    loud = [np.abs(sound.wave).max() for sound in sounds if sound.kind != "silence"]
    assert min(loud) < 0.05
    assert max(loud) > 0.5
    lengths = [len(sound.wave) for sound in sounds]
    assert min(lengths) < 24_000
    assert max(lengths) > 72_000


def test_a_conversation_depends_on_settings_and_number_alone(people, orders):
    config = Config(orders=orders, unheard=40, talkers=(people,))

    def of(config, indices):
        return [(one.id, one.source, asked(one).wave.tobytes()) for one in made(config, indices)]

    there, back = of(config, range(2, 22)), of(replace(config, workers=5), reversed(range(2, 22)))
    assert there == back[::-1]
    assert len({wave for _, source, wave in there if source != "unheard, silence"}) > 10
    assert of(replace(config, seed=1), range(2, 22)) != there
    # The orders before them do not change the sounds
    assert [each[2] for each in of(replace(config, orders=None), range(20))] == [each[2] for each in there]
    assert config.generator == replace(config, workers=5).generator


def test_the_test_split_has_languages_of_its_own():
    assert not set(languages("train")) & set(languages("test"))
    assert (len(languages("train")), len(languages("test"))) == (11, 2)
    for split in ("train", "test"):
        assert min(map(len, languages(split).values())) >= 10
        voice = Synthesizer()
        for number in range(60):
            unheard(Talkers((), split, voice), 0, number)
        heard = {name.partition("+")[0] for _, name in voice.asked}
        assert heard
        assert heard <= set(languages(split))


def test_speech_of_the_test_split_is_not_trained_on(tmp_path):
    kept = write_folder(tmp_path / "kept", [replace(spoken(0, "one small latte please"), split="test")])
    with pytest.raises(ValueError, match="kept is of the test split"):
        made(Config(talkers=(kept,)), [0])
    with pytest.raises(ValueError, match="kept is of the test split"):
        made(Config(orders=kept), [0])
    assert made(Config(talkers=(kept,), split="test"), [0])


def test_folders_without_what_is_asked_of_them_are_refused(people, tmp_path):
    with pytest.raises(ValueError, match="people holds no recorded order"):
        recorded_orders(Config(orders=people))
    short = write_folder(tmp_path / "short", [spoken(0, "yes")])
    with pytest.raises(ValueError, match="short holds no speech of 1 to 15 s"):
        made(Config(talkers=(short,)), [0])


def test_a_voice_that_always_fails_is_told():
    class Failing(Synthesizer):
        def speak(self, text, voice):
            self.asked.append(text)
            raise SynthesisError("no")

    voice = Failing()
    with pytest.raises(SynthesisError):
        Talkers((), "train", voice).one(np.random.default_rng(0))
    assert len(voice.asked) == ATTEMPTS


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@needs_engines
def test_shards_hold_conversations_and_are_the_same_whatever_was_lost(tmp_path, orders, people, capsys):
    config = Config(orders=orders, times=2, unheard=11, talkers=(people,), conversations_per_shard=6)
    out = tmp_path / "out"
    assert run(config, out, RunOptions()) == 0
    shown = capsys.readouterr().out
    assert "orders: 2 orders of 3 recordings" in shown
    assert "3 of 3 shards, 15 conversations, 11 of them unheard" in shown
    assert is_conversations(out)
    held = list(conversations_of(ShardedSpeech(out, verify=True)))
    assert [conversation.turns[1].text == UNHEARD for conversation in held] == [False] * 4 + [True] * 11
    infos, generator = read_manifest(out)
    assert [info.notes for info in infos] == [
        {"conversations": 6, "unheard": 2},
        {"conversations": 6, "unheard": 6},
        {"conversations": 3, "unheard": 3},
    ]
    assert generator == json.loads(json.dumps(config.generator))
    assert set(generator["speech_sha256"]) == {str(orders), str(people)}
    whole = contents(out)

    (out / "speech-00001.arrow").unlink()
    (out / "speech-00002.arrow.1.unfinished").write_bytes(b"half")
    assert run(config, out, RunOptions()) == 0
    assert contents(out) == whole

    with pytest.raises(ValueError, match="made with times 2, not 1"):
        run(replace(config, times=1), out, RunOptions())
    write_folder(people, [spoken(i, SAYINGS[0]) for i in range(8)])
    with pytest.raises(ValueError, match="made with speech_sha256"):
        run(config, out, RunOptions())


@needs_engines
def test_without_talkers_synthetic_voices_are_taken(tmp_path):
    assert run(load_config(Config, "train/configs/replies-debug.yaml"), tmp_path / "out", RunOptions()) == 0
    assert len(list(conversations_of(ShardedSpeech(tmp_path / "out")))) == 8


def test_dry_run_leaves_nothing(tmp_path, orders, capsys, monkeypatch):
    monkeypatch.setattr(replies, "Synthesizer", Synthesizer)
    monkeypatch.setattr(replies, "check_engine", lambda engine: None)
    assert run(Config(orders=orders, unheard=30), tmp_path / "out", RunOptions(dry_run=True)) == 0
    assert not (tmp_path / "out").exists()
    shown = capsys.readouterr().out
    assert "Can I have a large latte with some milk? -> One large latte with some milk, coming up." in shown
    assert f"(nothing) -> {UNHEARD}" in shown
    assert "32 conversations: about" in shown


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["times=0"], "times is 0; expected 1 or more"),
        (["unheard=-1"], "unheard is -1"),
        (["conversations_per_shard=0"], "conversations_per_shard is 0"),
        (["unheard=0"], "orders is null and unheard 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        load_config(Config, None, settings)
