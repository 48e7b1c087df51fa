"""The command that makes lessons: the same bytes whatever happens to it, and one line for what cannot be."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from shutil import which

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from most_core import MostConfig
from most_core.processing import load_tokenizer, train_small_tokenizer
from most_core.speech import untrained_encoder
from tests.train.conftest import TEXTS, FakeSynthesizer, spoken, write_folder
from train import files, prepare
from train.__main__ import main
from train.data import lesson_maker
from train.data.conversations import Conversation, Stretch, Turn, rows_of
from train.data.lessons import Lessons
from train.data.shards import read_manifest
from train.data.voices import SynthesisError

TINY = MostConfig.tiny()
SIZE = TINY.speech_feature_size
UTTERANCES, TALKS, DOCUMENTS = 12, 6, 5


def talk(number):
    """A question, every other one spoken, and an answer of two sentences of which one has sound."""
    asked = spoken(0, "hi there").wave if number % 2 else None
    answer = Stretch(f"Answer {'abcdef'[number]}."), Stretch("It is so.", spoken(1, "so").wave)
    turns = Turn("user", (Stretch("hi there", asked),)), Turn("assistant", answer)
    return Conversation(f"talk/{number}", "here", "CC0", "train", turns)


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Ears, a folder of recordings, one of conversations, a file of texts, and settings that name them all."""
    folder = tmp_path_factory.mktemp("material")
    untrained_encoder(SIZE, TINY.tokens.num_units).save(folder / "ears")
    write_folder(folder / "speech", [spoken(i, TEXTS[i % len(TEXTS)]) for i in range(UTTERANCES)])
    write_folder(folder / "talks", [row for i in range(TALKS) for row in rows_of(talk(i))])
    (folder / "texts.txt").write_text("\n".join(f"Document {'abcde'[i]} says a little." for i in range(DOCUMENTS)))
    tasks = {
        "asr": ["speech"],
        "tts": ["speech"],
        "text": ["texts.txt", "talks"],
        "speech_instructions": ["talks"],
        "text_instructions": ["talks"],
    }
    settings = {
        "tasks": {task: [str(folder / place) for place in places] for task, places in tasks.items()},
        "ears": str(folder / "ears"),
        "start": "tiny",
        "voice": None,
        "lessons_per_shard": 4,
    }
    (folder / "settings.yaml").write_text(json.dumps(settings))  # which is YAML, too
    return folder


@pytest.fixture
def command(material, tmp_path):
    """`command(out, *options, threads=1, settings=[])`: what follows `python -m train`."""

    def command(out, *options, threads=1, settings=()):
        known = ["prepare", "--config", str(material / "settings.yaml"), "--out", str(tmp_path / out)]
        known += ["--device", "cpu", "--threads", str(threads), *options]
        return known + (["--set", *settings] if settings else [])

    return command


@pytest.fixture(scope="module")
def expected(material, tmp_path_factory):
    """What an undisturbed run makes: path -> bytes."""
    out = tmp_path_factory.mktemp("expected") / "out"
    settings = ["--config", str(material / "settings.yaml"), "--out", str(out)]
    assert main(["prepare", *settings, "--device", "cpu", "--threads", "1"]) == 0
    return contents(out)


def contents(out):
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def refusal(capsys, arguments):
    """The one line of an error, below what progress was shown."""
    capsys.readouterr()
    assert main(arguments) == 2
    *progress, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert not any(line.startswith("error: ") for line in progress)
    return error.removeprefix("error: ")


def test_a_folder_of_lessons_for_each_task_and_a_tokenizer(command, expected, material, tmp_path, capsys):
    assert main(command("out")) == 0
    out = tmp_path / "out"
    assert contents(out) == expected  # twice the same bytes
    rows = {task: len(Lessons(out / task, SIZE, verify=True)) for task in prepare.TASKS}
    assert rows == {
        "asr": UTTERANCES,
        "tts": UTTERANCES,
        "text": DOCUMENTS + TALKS,
        "speech_instructions": TALKS // 2,
        "text_instructions": TALKS,
    }
    infos, generator = read_manifest(out / "asr")
    assert [info.rows for info in infos] == [4, 4, 4]
    assert generator["sources"] == [str(material / "speech")]
    assert generator["units_sha256"] == files.sha256_of(material / "ears" / "units.safetensors")
    assert load_tokenizer(out / "tokenizer").convert_tokens_to_ids("[/Heard]") == TINY.tokens.heard_end
    assert "speech_instructions: 3 lessons" in capsys.readouterr().out
    assert Lessons(out / "text", SIZE)[DOCUMENTS].id == "talk/0/0"


def test_a_finished_command_has_nothing_to_do(command, tmp_path):
    assert main(command("out")) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(command("out")) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_two_workers_make_the_same_files(command, expected, tmp_path):
    assert main(command("out", threads=2)) == 0
    assert contents(tmp_path / "out") == expected


def test_killed_at_any_moment_the_same_command_continues(command, tmp_path):
    """Killed while its voice speaks or nothing is there yet, then somewhere among the shards."""
    settings = ["lessons_per_shard=1"]
    if which("flite"):
        settings.append("voice={engine: flite, name: slt}")
    assert main(command("whole", settings=settings)) == 0
    whole, out = contents(tmp_path / "whole"), tmp_path / "out"
    arguments = [sys.executable, "-m", "train", *command("out", settings=settings)]
    shards = sum(name.endswith(".arrow") for name in whole)
    for wanted in (0, random.randrange(1, shards // 2)):
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (out / "config.yaml").is_file() or len(list(out.glob("*/*.arrow"))) < wanted:
            assert process.poll() in (None, 0)
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.02))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert main(command("out", settings=settings)) == 0
    assert contents(out) == whole


@pytest.mark.parametrize(
    "left", [".tokenizer.77.partial/tokenizer.json", "config.77.unfinished", "voice/voice-00000.77.unfinished"]
)
def test_what_a_killed_command_left_half_written_is_removed(command, expected, tmp_path, left):
    out = tmp_path / "out"
    for path in (out / left, out / "asr" / "lessons-00001.77.unfinished"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    assert main(command("out")) == 0
    assert contents(out) == expected


def test_out_of_time_it_stops_and_continues(command, expected, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert main(command("out", "--minutes", "1e-9")) == 1
    assert "the same command continues" in capsys.readouterr().err
    assert not list(out.rglob("*.arrow"))
    calls = iter(range(100))
    with monkeypatch.context() as patched:
        patched.setattr(prepare, "deadline", lambda minutes: lambda: next(calls) >= 5)
        assert main(command("out", "--minutes", "1")) == 1
    assert len(list(out.rglob("*.arrow"))) == 5
    assert not list(out.rglob("manifest.json"))
    assert main(command("out")) == 0
    assert contents(out) == expected


def test_other_settings_need_another_folder_or_a_fresh_start(command, expected, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command("out", settings=["lessons_per_shard=2"])) == 0
    found = refusal(capsys, command("out"))
    assert found == f"{out} was begun with lessons_per_shard 2, not 4: choose another --out, or --fresh to begin anew"
    (out / "notes.txt").write_text("mine")
    assert main(command("out", "--fresh")) == 0
    (out / "notes.txt").unlink()
    assert contents(out) == expected


class FullDisk(io.FileIO):
    """A file on a disk that has `room` for so many bytes."""

    room = 0

    def write(self, data):
        FullDisk.room -= len(memoryview(data).cast("B"))
        if FullDisk.room < 0:
            raise OSError(28, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("part", [0.01, 0.1, 0.5, 0.99])
def test_a_full_disk_leaves_nothing_half_written(command, expected, tmp_path, capsys, monkeypatch, part):
    needed = sum(len(content) for name, content in expected.items() if not name.startswith("tokenizer/"))
    monkeypatch.setattr(FullDisk, "room", int(part * needed))
    with monkeypatch.context() as patched:
        patched.setattr(files, "open", lambda path, mode, **_: FullDisk(path, mode), raising=False)
        assert refusal(capsys, command("out")) == "No space left on device"
    out = tmp_path / "out"
    made = contents(out)
    assert len(made) < len(expected)
    assert all(expected[name] == content for name, content in made.items())
    assert main(command("out")) == 0
    assert contents(out) == expected


def test_a_tokenizer_that_does_not_fit_on_the_disk_leaves_nothing(command, expected, tmp_path, capsys, monkeypatch):
    def fail(tokenizer, folder, **options):
        Path(folder).mkdir()
        (Path(folder) / "tokenizer.json").write_text("half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(PreTrainedTokenizerFast, "save_pretrained", fail)
        assert refusal(capsys, command("out")) == "No space left on device"
    assert list(contents(tmp_path / "out")) == ["config.yaml"]
    assert main(command("out")) == 0
    assert contents(tmp_path / "out") == expected


def test_damaged_lessons_are_refused_by_those_who_learn_from_them(command, tmp_path, capsys):
    assert main(command("out")) == 0
    out = tmp_path / "out"
    learn = ["stage1", "--out", str(tmp_path / "stage"), "--device", "cpu", "--threads", "1", "--set"]
    learn += ["start=tiny", f"lessons={out}", "mixture={asr: 0.5, tts: 0.5, text: 0}", "micro_batch_tokens=1024"]
    path = out / "tts" / "lessons-00001.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert refusal(capsys, learn).startswith(f"{path} is not what was written (SHA-256 differs)")
    assert not (tmp_path / "stage").exists()


class Mute(FakeSynthesizer):
    """Cannot say one of the sentences."""

    said = ()

    def speak(self, text, voice):
        Mute.said += (text,)
        if text == "Answer b.":
            raise SynthesisError("no")
        return super().speak(text, voice)


def test_a_voice_speaks_each_sentence_that_has_no_sound_once(command, tmp_path, monkeypatch):
    monkeypatch.setattr(lesson_maker, "Synthesizer", Mute)
    monkeypatch.setattr(prepare, "check_engine", lambda engine: None)
    monkeypatch.setattr(prepare, "VOICE_PIECE", 4)
    monkeypatch.setattr(Mute, "said", ())
    assert main(command("out", settings=["voice={engine: flite, name: slt}"])) == 0
    sentences = [f"Answer {letter}." for letter in "abcdef"]
    assert Mute.said == tuple(sentences)
    assert sorted(path.name for path in (tmp_path / "out" / "voice").iterdir()) == [
        "voice-00000.npz",
        "voice-00001.npz",
    ]
    ears = untrained_encoder(SIZE, TINY.tokens.num_units)
    lessons = Lessons(tmp_path / "out" / "text_instructions", SIZE)
    for number, sentence in enumerate(sentences):
        alone = (
            [] if sentence == "Answer b." else ears.units(FakeSynthesizer().speak(sentence, lesson_voice())).tolist()
        )
        recorded = ears.units(np.rint(spoken(1, "so").wave * 32768).astype(np.float32) / 32768).tolist()
        assert lessons[number].units.tolist() == alone + recorded
    assert [len(lessons[number].clips) for number in range(TALKS)] == [2, 1, 2, 2, 2, 2]


def lesson_voice():
    return prepare.Voice("flite", "slt")


def test_a_tokenizer_may_be_given(command, tmp_path):
    given = train_small_tokenizer(["Document and answer"], TINY)
    given.save_pretrained(tmp_path / "given")
    assert main(command("out", settings=[f"tokenizer={tmp_path / 'given'}"])) == 0
    made = load_tokenizer(tmp_path / "out" / "tokenizer")
    assert made.get_vocab() == given.get_vocab()


def test_a_dry_run_shows_a_lesson_of_each_task_and_leaves_nothing(command, tmp_path, capsys):
    assert main(command("out", "--dry-run")) == 0
    shown = capsys.readouterr().out
    assert f"asr: {UTTERANCES} items in " in shown
    assert "tokens, " in shown
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_passes_over_places_that_are_empty(command, material, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("")
    settings = [f"tasks={{text: [{tmp_path / 'empty.txt'}, {material / 'texts.txt'}]}}"]
    assert main(command("out", "--dry-run", settings=settings)) == 0
    assert f"text: {DOCUMENTS} items in " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("tasks.songs=[here]", "tasks.songs is no setting; there are asr, tts, text, "),
        ("tasks.asr=[]", "tasks.asr is empty: give it a folder, or leave it out"),
        ("tasks={}", "tasks is empty: give folders for some of asr, tts"),
        ("longest=0", "longest is 0; expected 2 or more"),
        ("lessons_per_shard=0", "lessons_per_shard is 0; expected 1 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(command, capsys, tmp_path, setting, message):
    assert message in refusal(capsys, command("out", settings=[setting]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("tasks.asr=[nowhere]", "tasks.asr: nowhere is not there"),
        ("ears=nowhere", "nowhere holds no complete speech encoder"),
        ("start=small", "start is 'small', shape {}: unknown preset 'small'"),
        ("tokenizer=nowhere", "no tokenizer.json in nowhere"),
    ],
)
def test_what_is_not_there_is_named_before_a_folder_is_claimed(command, capsys, tmp_path, setting, message):
    assert message in refusal(capsys, command("out", settings=[setting]))
    assert not (tmp_path / "out").exists()
