"""The sets that a trained model is judged by: what is said in them, by whom, and where their sound lies.

`seen` and `unseen` are the same 300 texts, half of them questions of nano's world with held-out templates or values,
half open English sentences that no training text equals, spoken by voices like those of training, and by the two voices
that training never hears. They are synthesized once; the same engines make the same sound for everyone. `human` are
coffee orders of people whom training never hears.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from train.config import RunOptions
from train.data import english, readers, synthesize
from train.data.shards import MANIFEST, ShardedSpeech, read_manifest
from train.data.utterance import Utterance, spoken_letters
from train.data.voices import MissingEngine
from train.data.world import exchange

SETS = ("seen", "unseen", "human")
FOLDER = Path("runs/evaluation")
UTTERANCES = 300
A_SHARD = 50  # what an interrupted synthesis has to repeat at most
SEED = 300_000  # no training uses it, so `seen` are voices of the kind heard in training, not the very same ones
HUMAN_VARIABLE = "MOST_HUMAN_SPEECH"
HUMAN_BESIDE_PROJECT = Path(__file__).parents[2] / ".." / "shared" / "speech" / "barista"
HUMAN_CLIPS = "https://github.com/Picovoice/speech-to-intent-benchmark"


class Unavailable(OSError):
    """A test set that needs what this machine does not have: the message says what, and how to get it."""


@dataclass(frozen=True)
class Config(synthesize.Config):
    """Settings of a synthesized set; `digest` is of its texts and voices, for the grammar they come from may change."""

    digest: str = ""


def load(name: str, folder: Path = FOLDER, human: Path | None = None, workers: int = 2) -> list[Utterance]:
    """The utterances of a set. `task` is "question" or "asr" in the synthesized ones; `human` are `OrderClip`s.

    A synthesized set is made in `folder/name`, unless it is there; progress goes to stderr.
    """
    if name not in SETS:
        raise ValueError(f"there is no test set {name!r}: choose from {', '.join(SETS)}")
    if name == "human":
        return list(readers.read("barista", human_folder(human), split="test"))
    config, folder = config_of(name, workers), folder / name
    outdated = _outdated(config, folder)
    if outdated or not _complete(folder):
        try:
            with contextlib.redirect_stdout(sys.stderr):
                print(f"speaking the test set {name!r} into {folder}")
                synthesize.run(config, folder, RunOptions(fresh=outdated, threads=workers), text_of)
        except MissingEngine as error:
            raise Unavailable(str(error)) from error
    return list(ShardedSpeech(folder))


def human_folder(given: Path | None) -> Path:
    """Where the coffee orders lie: as given, else as the environment says, else beside the project."""
    if given or (given := os.environ.get(HUMAN_VARIABLE)):
        return Path(given)
    if HUMAN_BESIDE_PROJECT.is_dir():
        return HUMAN_BESIDE_PROJECT
    raise Unavailable(
        f"no recorded coffee orders: put clips of {HUMAN_CLIPS} and a labels.json, which gives slots and voice of "
        f"each, into a folder and name it with --human or {HUMAN_VARIABLE}"
    )


def config_of(name: str, workers: int = 2) -> Config:
    """How the set "seen" or "unseen" is synthesized."""
    plain = synthesize.Config(
        seed=SEED,
        split="test",
        shards=-(-UTTERANCES // A_SHARD),
        utterances_per_shard=min(A_SHARD, UTTERANCES),
        texts={"world": 0.5, "english": 0.5},
        answers=0.0,
        voices="unseen" if name == "unseen" else "training",
        workers=workers,
    )
    content = [(*text_of(plain, row), synthesize.voice(plain, row, 0).speaker) for row in range(UTTERANCES)]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
    return Config(**vars(plain), digest=digest)


def text_of(config: synthesize.Config, index: int) -> tuple[str, str]:
    """Text number `index` of both sets, and its task.

    Questions and sentences take turns by twos, since the unseen voices take turns by ones.
    """
    pair, place = divmod(index, 4)
    number = 2 * pair + place % 2
    draw, task = (_question, "question") if place < 2 else (_sentence, "asr")
    if number < UTTERANCES:
        return _distinct(draw, config.seed, UTTERANCES)[number], task
    return draw(config.seed, number), task  # instead of a text that no voice could speak


def _question(seed: int, index: int) -> str:
    return exchange("test", seed, index).question


def _sentence(seed: int, index: int) -> str:
    return english.sentence("test", seed, index)


@cache
def _distinct(draw: Callable[[int, int], str], seed: int, many: int) -> tuple[str, ...]:
    """The first texts drawn that differ in their words."""
    found: dict[str, str] = {}
    index = 0
    while len(found) < many:
        text = draw(seed, index)
        found.setdefault(spoken_letters(text), text)
        index += 1
    return tuple(found.values())


def _outdated(config: Config, folder: Path) -> bool:
    """Whether the folder holds this set as an earlier version made it; ValueError if it holds anything else."""
    if not (folder / MANIFEST).exists():
        return False
    _, generator = read_manifest(folder)
    if not {"digest", "voices"} <= set(generator) or generator["voices"] != config.voices:
        raise ValueError(f"{folder} holds speech that is no such test set: choose another --data")
    return generator != json.loads(json.dumps(config.generator))


def _complete(folder: Path) -> bool:
    try:
        return len(ShardedSpeech(folder)) == UTTERANCES
    except (FileNotFoundError, ValueError):  # not made yet, or damaged: what is missing will be made
        return False
