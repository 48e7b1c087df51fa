import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from tests.train.conftest import FakeSynthesizer
from train.config import RunOptions, load_config
from train.data import dialogues
from train.data.conversations import conversations_of, is_conversations
from train.data.dialogues import Config, dialogue, make_shard, open_source, run
from train.data.shards import Shard, ShardedSpeech, read_manifest
from train.data.voices import SynthesisError, Voice
from train.data.world import exchange

needs_engines = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")

QUICK = Config(
    shards=2,
    conversations_per_shard=5,
    engines={"espeak-ng": 1.0},
    assistant=Voice("espeak-ng", "en-us"),
    spoken_history=0.0,
    workers=2,
)


def made(config, many, synthesizer=None):
    source = open_source(config)
    return [dialogue(synthesizer or FakeSynthesizer(), config, source, 0, row) for row in range(many)]


def waves(turn):
    return [stretch.wave for stretch in turn.stretches if stretch.wave is not None]


def plain(conversation):
    """What two equal conversations have in common."""
    turns = [(turn.role, turn.text, turn.speaker, turn.cut, waves(turn)) for turn in conversation.turns]
    return repr((conversation.id, conversation.source, turns))


def written(path, conversations):
    """ShareGPT's form of lists of turns, users first."""
    names = ("human", "gpt")
    records = [
        {"conversations": [{"from": names[place % 2], "value": text} for place, text in enumerate(texts)]}
        for texts in conversations
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def test_the_world_is_asked_aloud_and_answers_in_text():
    history = False
    for row, (conversation, scene) in enumerate(made(QUICK, 40)):
        item = exchange("train", 0, row)
        *earlier, question, answer = conversation.turns
        assert conversation.id == f"world-train-0/00000/{row:05}/0"
        assert (question.text, answer.text) == (item.question, item.answer)
        assert [turn.text for turn in earlier] == [text for pair in item.history for text in pair]
        assert len(waves(question)) == 1
        assert not any(waves(turn) for turn in (*earlier, answer))
        assert len({turn.speaker for turn in conversation.turns if turn.role == "user"}) == 1
        assert question.speaker.startswith("espeak-ng/")
        assert scene is None
        history = history or bool(earlier)
    assert history


def test_earlier_turns_are_spoken_too_by_the_same_speaker():
    conversations = [conversation for conversation, _ in made(replace(QUICK, spoken_history=1.0), 40)]
    longer = [conversation for conversation in conversations if len(conversation.turns) > 2]
    assert longer
    for conversation in longer:
        assert all(len(waves(turn)) == (turn.role == "user") for turn in conversation.turns)


def test_a_conversation_depends_on_settings_shard_and_row_alone():
    config = replace(QUICK, interrupted=0.5, spoken_history=0.5)
    other = replace(config, shards=9, workers=7)

    def of(config, shard, row):
        return plain(dialogue(FakeSynthesizer(), config, open_source(config), shard, row)[0])

    assert [of(config, 3, row) for row in (4, 1)] == [of(other, 3, row) for row in (4, 1)]
    seen = {of(config, shard, row) for shard in range(3) for row in range(5)}
    assert len(seen) == 15
    assert config.generator == other.generator
    assert config.generator != replace(config, interrupted=0.4).generator


def test_users_break_into_the_worlds_answers():
    kinds = set()
    for conversation, scene in made(replace(QUICK, interrupted=1.0), 40):
        events = scene.events
        kinds |= {event.kind for event in events}
        cut = [turn for turn in conversation.turns if turn.cut]
        assert conversation.turns[-1].role == "assistant"
        if "interrupt" in {event.kind for event in events}:
            *_, asked, broken, breaking, reply = conversation.turns
            assert cut == [broken]
            assert all(waves(turn) for turn in (asked, broken, breaking, reply))
            (told,) = [event for event in events if event.cut_unit is not None]
            assert told.cut_unit * 640 == len(broken.stretches[-1].wave)
            assert told.text == broken.stretches[-1].text
            assert broken.speaker == QUICK.assistant.speaker
            assert asked.speaker == breaking.speaker
        else:
            assert not cut
            assert all(waves(turn) for turn in conversation.turns[-2:])
        (over,) = [event for event in events if event.overlap_ms]
        start = round(over.start * 16_000)
        both = scene.sound[start : start + 16 * over.overlap_ms]
        assert np.sqrt(np.square(both).mean(0)).min() > 0.05
    assert kinds == {"main", "interrupt", "backchannel"}


def test_about_the_asked_share_is_interrupted():
    scenes = [scene for _, scene in made(replace(QUICK, interrupted=0.3), 100)]
    assert 15 < sum(scene is not None for scene in scenes) < 45


def test_any_dialogue_of_several_turns_can_be_interrupted(tmp_path):
    long = [
        "What is a cat?",
        "An animal. It has four legs. It says meow all day. 7!",
        "And a dog?",
        "Another one.",
    ]
    path = written(tmp_path / "some.jsonl", [["Who are you?", "A voice."], [*long, "Thanks.", "You are welcome."]])
    config = replace(QUICK, source=str(path), interrupted=1.0)
    (short, nothing), (longer, scene) = made(config, 2)
    assert nothing is None
    assert not any(turn.cut for turn in short.turns)
    (cut,) = [number for number, turn in enumerate(longer.turns) if turn.cut]
    assert cut in (1, 3)
    assert longer.turns[cut + 1].role == "user"
    assert waves(longer.turns[cut + 1])
    assert [event.kind for event in scene.events].count("interrupt") == 1
    assert longer.id == "some-train-0/00000/00001/0"
    assert longer.licence.startswith("unknown; output of")


def test_what_cannot_be_spoken_of_a_file_is_skipped(tmp_path):
    conversations = [
        ["Where is 7?", "Here.", "And where is eight?", "There."],
        ["Write code.", "```x```", "Thanks.", "Welcome."],
        ["What does ```x = y``` do?", "Nothing."],
        ["Open https://example.org please", "No.", "Why?", "So."],
        ["What is one plus 1?", "Two."],
        ["word " * 61, "Yes."],
        ["word " * 60, "Yes.", "Nobody answers this."],
    ]
    path = written(tmp_path / "some.jsonl", conversations)
    units = {"instruction": "Transcribe the following speech into text.", "input": "[Hu7]", "output": "Hi."}
    path.write_text(f"{path.read_text()}\n{json.dumps(units)}")
    source = open_source(replace(QUICK, source=str(path)))
    assert (source.facts["conversations"], source.facts["skipped"]) == (3, 5)
    first, second, third, again = [conversation for conversation, _ in made(replace(QUICK, source=str(path)), 4)]
    assert [len(waves(turn)) for turn in first.turns] == [0, 0, 1, 0]
    assert [turn.text for turn in second.turns] == ["Write code.", "```x```", "Thanks.", "Welcome."]
    assert len(third.turns) == 2
    assert [turn.text for turn in again.turns] == [turn.text for turn in first.turns]
    assert again.turns[0].speaker != first.turns[0].speaker

    # Spoken or not, a turn with a digit stays text
    (first, *_) = made(replace(QUICK, source=str(path), spoken_history=1.0), 1)[0]
    assert [len(waves(turn)) for turn in first.turns] == [0, 0, 1, 0]
    with pytest.raises(ValueError, match="none of its 1 conversations can be spoken"):
        open_source(replace(QUICK, source=str(written(tmp_path / "no.jsonl", [["7?", "Yes."]]))))


def test_too_long_a_turn_stays_text_and_a_silent_conversation_is_replaced(tmp_path):
    long = "word " * 50
    path = written(tmp_path / "some.jsonl", [[long, "Yes.", "Why?", "So."], [long, "No."]])
    config = replace(QUICK, source=str(path), max_seconds=1.0, spoken_history=1.0)
    (first, _), (second, _) = made(config, 2)
    assert [len(waves(turn)) for turn in first.turns] == [0, 0, 1, 0]
    assert [turn.text for turn in second.turns] == [turn.text for turn in first.turns]
    assert int(second.id.rsplit("/", 1)[1]) > 0
    with pytest.raises(ValueError, match=r"row 0 of shard 0 could not be spoken within 0\.1 s"):
        made(replace(config, max_seconds=0.1), 1)


def test_a_voice_that_fails_gives_way_to_another_conversation():
    class Failing(FakeSynthesizer):
        asked = 0

        def speak(self, text, voice):
            self.asked += 1
            if self.asked < 3:
                raise SynthesisError("no")
            return super().speak(text, voice)

    ((conversation, _),) = made(QUICK, 1, Failing())
    assert conversation.id.endswith("/00000/2")
    assert conversation.turns[-2].text != exchange("train", 0, 0).question


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@needs_engines
def test_shards_hold_conversations_and_are_the_same_whatever_was_lost(tmp_path, capsys):
    config = replace(QUICK, interrupted=0.5)
    out = tmp_path / "out"
    assert run(config, out, RunOptions()) == 0
    assert "2 of 2 shards, 10 conversations" in capsys.readouterr().out
    assert is_conversations(out)
    speech = ShardedSpeech(out, verify=True)
    assert len({conversation.id for conversation in conversations_of(speech)}) == 10
    assert [info.notes for info in read_manifest(out)[0]] == [{"conversations": 5, "replaced": 0}] * 2
    whole = contents(out)
    beside = [name for name in whole if name.startswith("interrupted/")]
    assert any("-00000-" in name for name in beside)
    assert any("-00001-" in name for name in beside)
    by_id = {conversation.id.replace("/", "-"): conversation for conversation in conversations_of(speech)}
    cut = {name for name, conversation in by_id.items() if any(turn.cut for turn in conversation.turns)}
    assert cut <= {name.split("/")[1].partition(".")[0] for name in beside}
    for name in cut:
        (turn,) = [turn for turn in by_id[name].turns if turn.cut]
        events = json.loads(whole[f"interrupted/{name}.json"])["events"]
        (units,) = [event["cut_unit"] for event in events if event["cut_unit"] is not None]
        assert units * 640 == len(turn.stretches[-1].wave)

    # One shard gone with half of what lay beside it; rubbish of a shard that never was
    (out / "speech-00000.arrow").unlink()
    next(path for path in (out / "interrupted").iterdir() if "-00000-" in path.name).unlink()
    for name in ("world-train-0-00007-00001-0.wav", "world-train-0-00001-00001-0.wav.123.unfinished"):
        (out / "interrupted" / name).write_bytes(b"half")
    assert run(config, out, RunOptions()) == 0
    assert contents(out) == whole

    with pytest.raises(ValueError, match=r"made with interrupted 0\.5, not 0\.0"):
        run(QUICK, out, RunOptions())
    assert run(replace(QUICK, shards=1, conversations_per_shard=1), out, RunOptions(fresh=True)) == 0
    assert sorted(contents(out)) == ["manifest.json", "speech-00000.arrow"]


@needs_engines
def test_killed_anywhere_the_same_command_continues(tmp_path):
    out, expected = tmp_path / "out", tmp_path / "expected"
    settings = ["shards=1", "conversations_per_shard=16", "interrupted=0.5", "workers=1"]
    settings += ["engines.espeak-ng=1", "engines.flite=0", "engines.festival=0"]
    settings += ["assistant={engine: espeak-ng, name: en}"]
    command = [sys.executable, "-m", "train", "dialogues", "--out", str(out), "--set", *settings]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(out.glob("interrupted/*.wav")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list(out.glob("interrupted/*.wav"))
    assert not list(out.glob("*.arrow"))

    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
    config = load_config(Config, None, settings)
    make_shard(config, expected, open_source(config), 0)
    left = contents(out)
    assert json.loads(left.pop("manifest.json"))["generator"] == json.loads(json.dumps(config.generator))
    assert left == contents(expected)


@needs_engines
def test_a_file_is_spoken(tmp_path, capsys):
    path = written(tmp_path / "some.jsonl", [["Who are you?", "A voice."], ["What is 7?", "A number."]])
    config = replace(QUICK, source=str(path), shards=1, conversations_per_shard=2)
    assert run(config, tmp_path / "out", RunOptions()) == 0
    assert "1 conversations, 1 more skipped" in capsys.readouterr().out
    assert Shard(tmp_path / "out" / "speech-00000.arrow").column("task") == ["user", "assistant"] * 2
    generator = read_manifest(tmp_path / "out")[1]
    assert (generator["conversations"], generator["skipped"]) == (1, 1)
    written(path, [["Who are you?", "A voice."], ["What is 8?", "A number."]])
    with pytest.raises(ValueError, match="made with source_sha256"):
        run(config, tmp_path / "out", RunOptions())


def test_dry_run_leaves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(dialogues, "Synthesizer", FakeSynthesizer)
    monkeypatch.setattr(dialogues, "check_engine", lambda engine: None)
    assert run(QUICK, tmp_path / "out", RunOptions(dry_run=True)) == 0
    assert not (tmp_path / "out").exists()
    shown = capsys.readouterr().out
    assert exchange("train", 0, 0).question in shown
    assert "10 conversations: about" in shown


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("shards=0", "shards is 0"),
        ("conversations_per_shard=0", "conversations_per_shard is 0"),
        ("interrupted=1.5", "interrupted is 1.5; expected a share"),
        ("spoken_history=-1", "spoken_history is -1"),
        ("max_seconds=0", "max_seconds is 0"),
        ("assistant={engine: flite, name: rms}", "assistant is flite rms, which is kept for tests"),
        ("engines={festivals: 1}", "engines.festivals is no setting"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        load_config(Config, None, [setting])
