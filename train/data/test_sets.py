"""The sets that a trained model is judged by: what is said in them, by whom, and where their sound lies.

`seen` and `unseen` are the same 300 texts, half of them questions of nano's world with held-out templates or values,
half open English sentences that no training text equals, spoken by voices like those of training, and by the two voices
that training never hears. `questions-*` are 320 exchanges, ten of each topic, half with held-out templates, half with
held-out values; `orders-*` 150 coffee orders. They are synthesized once; the same engines make the same sound for
everyone. `human` are coffee orders of people whom training never hears.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import count
from pathlib import Path

from train.config import RunOptions
from train.data import english, readers, synthesize
from train.data.shards import MANIFEST, ShardedSpeech, read_manifest
from train.data.utterance import Utterance, spoken_letters
from train.data.voices import MissingEngine
from train.data.world import FAMILIES, TOPICS, Exchange, exchange

SETS = ("seen", "unseen", "human")  # for the ears
EXCHANGES = ("questions-seen", "questions-unseen", "orders-seen", "orders-unseen")  # which have answers, too
FOLDER = Path("runs/evaluation")
UTTERANCES = 300
A_TOPIC = 10  # questions
ORDERS = 150
A_SHARD = 50  # what an interrupted synthesis has to repeat at most
# No training uses it nor the next two: `seen` are voices of the kind heard in training, not the very same ones
SEED = 300_000
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
    if name not in (*SETS, *EXCHANGES):
        raise ValueError(f"there is no test set {name!r}: choose from {', '.join((*SETS, *EXCHANGES))}")
    if name == "human":
        return list(readers.read("barista", human_folder(human), split="test"))
    config, folder = config_of(name, workers), folder / name
    outdated = _outdated(config, folder)
    if outdated or not _complete(folder, size_of(name)):
        try:
            with contextlib.redirect_stdout(sys.stderr):
                print(f"speaking the test set {name!r} into {folder}")
                synthesize.run(config, folder, RunOptions(fresh=outdated, threads=workers), _texts_of(name))
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


def exchanges_of(name: str, utterances: Sequence[Utterance]) -> list[Exchange]:
    """What each utterance of a set of `EXCHANGES` asks, after which turns, and the answer that is right."""
    draw, found = _draws(name), []
    for row, utterance in enumerate(utterances):
        exchange = next(
            (each for each in map(draw, (row, row + synthesize.SPARE)) if each.question == utterance.text), None
        )
        if exchange is None:
            raise ValueError(f"utterance {row} of {name!r} is not what the grammar asks there: delete the set's folder")
        found.append(exchange)
    return found


def size_of(name: str) -> int:
    """How many utterances a synthesized set has."""
    if name in EXCHANGES:
        return A_TOPIC * len(TOPICS) if name.startswith("questions") else ORDERS
    return UTTERANCES


def config_of(name: str, workers: int = 2) -> Config:
    """How a synthesized set is made: any but "human"."""
    many, draw = size_of(name), _texts_of(name)
    a_shard = min(A_SHARD, many // 10 if name in EXCHANGES else many)
    plain = synthesize.Config(
        seed=SEED + 1 if name in EXCHANGES else SEED,
        split="test",
        shards=-(-many // a_shard),
        utterances_per_shard=a_shard,
        texts={"world": 1.0} if name in EXCHANGES else {"world": 0.5, "english": 0.5},
        answers=0.0,
        voices="unseen" if name.endswith("unseen") else "training",
        workers=workers,
    )
    content = [(*draw(plain, row), synthesize.voice(plain, row, 0).speaker) for row in range(many)]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
    return Config(**vars(plain), digest=digest)


def _texts_of(name: str) -> synthesize.TextOf:
    return partial(_asked, name) if name in EXCHANGES else text_of


def _asked(name: str, config: Config, index: int) -> tuple[str, str]:
    return _draws(name)(index).question, "question"


def _draws(name: str) -> Callable[[int], Exchange]:
    return question_of if name.startswith("questions") else order_of


def question_of(index: int) -> Exchange:
    """Exchange number `index` of the sets of questions; from `synthesize.SPARE` on another one of the same topic."""
    every = _questions()
    if index < len(every):
        return every[index]
    return exchange("test", SEED + 1, index, [every[(index - synthesize.SPARE) % len(every)].topic])


def order_of(index: int) -> Exchange:
    """The same of the sets of orders."""
    every = _orders()
    return every[index] if index < len(every) else exchange("test", SEED + 2, index, ["coffee"])


@cache
def _questions() -> tuple[Exchange, ...]:
    """Ten rounds of all topics. A topic's place moves on by one each round, so both unseen voices ask of it."""
    by_topic = [_of_topic(topic, number) for number, topic in enumerate(TOPICS)]
    return tuple(
        by_topic[(place + turn) % len(TOPICS)][turn] for turn in range(A_TOPIC) for place in range(len(TOPICS))
    )


def _of_topic(topic: str, number: int) -> list[Exchange]:
    """Ten that differ in question or history, held out in each way that the topic has, which alternate by twos."""
    kinds = sorted({kind for family in FAMILIES[topic] for kind in family.kinds()})
    wanted = [kinds[(turn // 2 + number) % len(kinds)] for turn in range(A_TOPIC)]
    found: dict[str, dict[tuple[str, object], Exchange]] = {kind: {} for kind in kinds}
    for index in count():
        item = exchange("test", SEED + 1, index, [topic])
        found[item.held_out].setdefault((spoken_letters(item.question), item.history), item)
        if all(len(found[kind]) >= wanted.count(kind) for kind in kinds):
            break
    lines = {kind: iter(items.values()) for kind, items in found.items()}
    return [next(lines[kind]) for kind in wanted]


@cache
def _orders() -> tuple[Exchange, ...]:
    found: dict[str, Exchange] = {}
    for index in count():
        item = exchange("test", SEED + 2, index, ["coffee"])
        found.setdefault(spoken_letters(item.question), item)
        if len(found) == ORDERS:
            break
    return tuple(found.values())


def text_of(config: synthesize.Config, index: int) -> tuple[str, str]:
    """Text number `index` of the sets "seen" and "unseen", and its task.

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


def _complete(folder: Path, utterances: int) -> bool:
    try:
        return len(ShardedSpeech(folder)) == utterances
    except (FileNotFoundError, ValueError):  # not made yet, or damaged: what is missing will be made
        return False
