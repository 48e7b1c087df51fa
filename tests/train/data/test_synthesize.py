import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from train.config import RunOptions, load_config
from train.data import synthesize
from train.data.shards import ShardedSpeech, read_manifest
from train.data.synthesize import Config, run, utterance
from train.data.voices import SynthesisError, Voice, unseen_voices

pytestmark = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")

SENTENCES = ["What is seven plus five?", "Good morning.", "Cat is spelled C, A, T.", "It is half past ten."]
QUICK = Config(shards=3, utterances_per_shard=4, engines={"espeak-ng": 1.0}, workers=2)


def sentence_of(config, index):
    return SENTENCES[index % len(SENTENCES)], "asr"


class FakeSynthesizer:
    """Speaks a constant, but for the calls that should fail."""

    def __init__(self, failures=()):
        self.failures, self.calls = set(failures), []

    def speak(self, text, voice):
        self.calls.append((text, voice))
        if len(self.calls) - 1 in self.failures:
            raise SynthesisError("no")
        return np.full(4000, 0.5, np.float32)


def test_an_utterance_depends_on_settings_shard_and_row_alone():
    def spoken(config, shard, row):
        synthesizer = FakeSynthesizer()
        made = utterance(synthesizer, config, shard, row, sentence_of)
        return made.id, synthesizer.calls

    assert spoken(QUICK, 2, 1) == spoken(replace(QUICK, shards=99, workers=7), 2, 1)
    seen = [spoken(QUICK, shard, row) for shard in range(3) for row in range(4)]
    assert len({name for name, _ in seen}) == 12
    assert len({str(calls) for _, calls in seen}) == 12


def test_a_voice_that_fails_gives_way_to_the_next_and_then_the_text_does():
    asked = []

    def text_of(config, index):
        asked.append(index)
        return sentence_of(config, index)

    synthesizer = FakeSynthesizer(failures=range(5))
    made = utterance(synthesizer, QUICK, 1, 2, text_of)
    assert made.id.endswith("/5")
    assert len({voice for _, voice in synthesizer.calls}) == 6
    assert asked[:4] == [6] * 4
    assert asked[4] == asked[5] != 6
    with pytest.raises(SynthesisError):
        utterance(FakeSynthesizer(failures=range(99)), QUICK, 1, 2, sentence_of)


def test_unseen_voices_are_only_the_two():
    synthesizer = FakeSynthesizer()
    for row in range(4):
        utterance(synthesizer, replace(QUICK, voices="unseen", split="test"), 0, row, sentence_of)
    assert {voice for _, voice in synthesizer.calls} == set(unseen_voices())


def test_one_voice_says_everything_but_a_voice_of_the_tests_nothing():
    fixed = Voice("flite", "slt", intonation=0.8)
    synthesizer = FakeSynthesizer(failures=[1])
    made = [utterance(synthesizer, replace(QUICK, voices=fixed), 0, row, sentence_of) for row in range(3)]
    assert {voice for _, voice in synthesizer.calls} == {fixed}
    assert made[0].id == "train-slt-0/00000/00000/0"
    loaded = load_config(Config, None, ["voices={engine: flite, name: slt, intonation: 0.8}"])
    assert loaded.voices == fixed
    assert json.loads(json.dumps(loaded.generator))["voices"]["intonation"] == 0.8
    with pytest.raises(ValueError, match="voices is flite rms, which is kept for tests"):
        load_config(Config, None, ["voices={engine: flite, name: rms}"])


def test_text_mixture_follows_its_weights(monkeypatch):
    pytest.importorskip("train.data.world")
    config = Config(texts={"world": 0.6, "english": 0.3, "words": 0.1}, answers=0.25)
    tasks = [synthesize.text(config, index)[1] for index in range(600)]
    assert tasks.count("asr") / 600 == pytest.approx(0.4, abs=0.07)
    assert tasks.count("answer") / 600 == pytest.approx(0.15, abs=0.05)
    assert synthesize.text(config, 5) == synthesize.text(config, 5)


def test_shards_are_made_listed_and_not_made_again(tmp_path, capsys):
    assert run(QUICK, tmp_path, RunOptions(), sentence_of) == 0
    speech = ShardedSpeech(tmp_path, verify=True)
    assert len(speech) == 12
    assert speech.texts == SENTENCES * 3
    assert set(speech.column("licence")) != {""}
    shards, generator = read_manifest(tmp_path)
    assert [info.rows for info in shards] == [4, 4, 4]
    assert {info.notes["voices_failed"] for info in shards} == {0}
    assert generator["seed"] == 0
    assert "3 of 3 shards, 12 utterances" in capsys.readouterr().out

    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.arrow")}
    more = replace(QUICK, shards=4)
    assert run(more, tmp_path, RunOptions(), sentence_of) == 0
    assert len(ShardedSpeech(tmp_path)) == 16
    assert {path: path.stat().st_mtime_ns for path in before} == before

    with pytest.raises(ValueError, match="made with seed 0, not 5"):
        run(replace(QUICK, seed=5), tmp_path, RunOptions(), sentence_of)
    small = replace(QUICK, seed=5, shards=1)
    assert run(small, tmp_path, RunOptions(fresh=True), sentence_of) == 0
    assert len(ShardedSpeech(tmp_path)) == 4


def test_the_same_shards_whatever_was_lost(tmp_path):
    assert run(replace(QUICK, workers=1), tmp_path / "a", RunOptions(), sentence_of) == 0
    expected = read_manifest(tmp_path / "a")
    out = Path(shutil.copytree(tmp_path / "a", tmp_path / "b"))

    # One shard gone, one cut, one finished but not listed, one half written
    (out / "speech-00000.arrow").unlink()
    (out / "speech-00001.arrow").write_bytes((out / "speech-00001.arrow").read_bytes()[:-9])
    content = json.loads((out / "manifest.json").read_text())
    content["shards"] = [shard for shard in content["shards"] if shard["name"] != "speech-00002.arrow"]
    (out / "manifest.json").write_text(json.dumps(content))
    (out / "speech-00009.123.unfinished").write_bytes(b"half")
    kept = (out / "speech-00002.arrow").stat().st_mtime_ns
    assert run(QUICK, out, RunOptions(), sentence_of) == 0
    assert read_manifest(out) == expected
    assert (out / "speech-00002.arrow").stat().st_mtime_ns == kept
    assert not list(out.glob("*.unfinished"))
    ShardedSpeech(out, verify=True)


def test_killed_anywhere_the_same_command_continues(tmp_path):
    out = tmp_path / "out"
    settings = ["seed=3", "shards=3", "utterances_per_shard=60", "texts.english=1", "texts.world=0", "texts.words=0"]
    settings += ["engines.espeak-ng=1", "engines.flite=0", "engines.festival=0"]
    command = [sys.executable, "-m", "train", "synthesize", "--out", str(out), "--set", *settings]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(out.glob("speech-*.unfinished")) and time.monotonic() < deadline:
        time.sleep(0.02)
    half_written = [int(path.name.split(".")[1]) for path in out.glob("speech-*.unfinished")]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert half_written
    while any(alive(worker) for worker in half_written) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(alive(worker) for worker in half_written), "workers outlive the command"
    assert len(list(out.glob("*.arrow"))) < 3

    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
    speech = ShardedSpeech(out, verify=True)
    assert len(speech) == 180
    assert len(set(speech.column("id"))) == 180
    assert not list(out.glob("*.unfinished"))


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_minutes_stop_between_shards(tmp_path, capsys):
    assert run(QUICK, tmp_path, RunOptions(minutes=1e-9), sentence_of) == 1
    assert "the same command continues" in capsys.readouterr().out
    assert len(ShardedSpeech(tmp_path)) == 0


def digits(out, config, index):
    """A text with a digit for the first shard, once another worker is in the middle of the second."""
    if index >= config.utterances_per_shard:
        time.sleep(60)
    deadline = time.monotonic() + 30
    while not list(out.glob("speech-00001.*.unfinished")) and time.monotonic() < deadline:
        time.sleep(0.02)
    return "I have 7 apples", "asr"


def test_a_text_that_is_not_in_spoken_form_stops_the_command(tmp_path):
    with pytest.raises(ValueError, match="'7'"):
        run(QUICK, tmp_path, RunOptions(), partial(digits, tmp_path))
    assert not list(tmp_path.glob("*.arrow"))
    assert not list(tmp_path.glob("*.unfinished"))


def test_dry_run_leaves_nothing(tmp_path, capsys):
    assert run(QUICK, tmp_path / "out", RunOptions(dry_run=True), sentence_of) == 0
    assert not (tmp_path / "out").exists()
    assert "12 utterances: about" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("shards=0", "shards is 0"),
        ("texts={worlds: 1}", "texts.worlds is no setting"),
        ("engines={espeak-ng: 0, flite: 0, festival: 0}", "one of them above 0"),
        ("answers=2", "answers is 2"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        load_config(Config, None, [setting])
