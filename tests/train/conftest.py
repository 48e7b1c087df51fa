import numpy as np
import pytest

from train.checkpoints import latest_checkpoint, load_checkpoint
from train.data.lessons import describe_lessons, write_lessons
from train.data.shards import describe_shard, write_manifest, write_shard
from train.data.utterance import Utterance

TEXTS = ("yes", "one two", "open the door", "a small latte, please", "what is seven plus five?")


def spoken(index, text, speaker="someone"):
    """Something that sounds different for every letter, 0.08 s each: learnable in a few steps."""
    time = np.arange(1280) / 16_000
    letters = [np.sin(2 * np.pi * (200 + 90 * (ord(c) % 32)) * time) for c in text.lower()]
    wave = (0.4 * np.concatenate(letters)).astype(np.float32)
    return Utterance(f"u{index}", speaker, text, wave, "a test", "CC0-1.0")


@pytest.fixture
def shards(tmp_path):
    """A folder of shards with 24 short utterances."""
    return write_folder(tmp_path / "speech", [spoken(i, TEXTS[i % len(TEXTS)]) for i in range(24)])


def write_folder(folder, utterances):
    path = folder / "speech-00000.arrow"
    write_shard(path, utterances)
    write_manifest(folder, [describe_shard(path)], {"command": "test"})
    return folder


def write_lesson_folder(folder, *shards):
    """A folder of shards of lessons; returns what its manifest says of each."""
    infos = []
    for number, rows in enumerate(shards):
        path = folder / f"lessons-{number:05}.arrow"
        write_lessons(path, rows)
        infos.append(describe_lessons(path))
    write_manifest(folder, infos, {"command": "test"})
    return infos


def weights(out):
    """What the latest checkpoint of a training in `out` holds."""
    return load_checkpoint(latest_checkpoint(out / "checkpoints"))


class LanguageModel:
    """Stands in for a trigram where the recognizer is a stand-in, too."""

    def perplexity(self, sentences):
        return 50.0

    def write(self, path):
        path.write_text("arpa")


class FakeSynthesizer:
    """Speaks a buzz, of a length that tells the sentence. `hertz` says of what pitch, for a voice's name and time."""

    def __init__(self, hertz=lambda name, time: 150.0):
        self.hertz = hertz

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def speak(self, text, voice):
        time = np.arange(4000 + 640 * len(text)) / 16_000
        phase = 2 * np.pi * np.cumsum(np.broadcast_to(self.hertz(voice.name, time), time.shape)) / 16_000
        return (0.1 * sum(np.sin(phase * n) for n in range(1, 8))).astype(np.float32)
