"""`python -m train replies`: conversations around sounds that no engine speaks for a known text, as shards.

Recorded coffee orders, which are confirmed, and sounds in which nothing can be understood (unheard.py), of which the
assistant says so. They are written as `dialogues` writes its own (conversations.py). Conversation r of shard s depends
on the settings, on the speech they name, s and r alone, so a command that was stopped, or killed, continues with the
shards that are not there.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from train.config import RunOptions
from train.data.conversations import Conversation, Stretch, Turn, rows_of
from train.data.dialogue_json import sentences
from train.data.shard_workers import Job, fill, shard_name
from train.data.shards import MANIFEST, SAMPLE_RATE, Shard, ShardedSpeech, ShardInfo, describe_shard, write_shard
from train.data.unheard import ENGINE, LANGUAGES, Talkers, open_speech, unheard
from train.data.utterance import Utterance
from train.data.voices import Synthesizer, check_engine
from train.data.world.coffee import Order, confirmation, parse_order
from train.data.world.grammar import sentence
from train.files import sha256_of

VERSION = 1  # of conversations, sounds and their order: raise it when the same settings would give others
UNHEARD = "Sorry, I did not catch that."
ASKED = ("can", "could", "may", "would")  # what an order begins with that is a question


@dataclass(frozen=True)
class Config:
    """How many conversations of which kind, and the speech that they are made of.

    `orders`: a folder of recorded coffee orders with their texts, as `corpus` makes one; each that is an order of the
    world's grammar is confirmed, `times` times. `unheard`: how many sounds nobody can understand. `talkers`: folders of
    speech, for what is made of other people's speech (babble, two at once, backwards); none: synthetic voices.
    """

    seed: int = 0
    split: Literal["train", "test"] = "train"
    orders: Path | None = None
    times: int = 1
    unheard: int = 1000
    talkers: tuple[Path, ...] = ()
    conversations_per_shard: int = 500
    workers: int = 2

    def __post_init__(self) -> None:
        for name, low in (("seed", 0), ("times", 1), ("unheard", 0), ("conversations_per_shard", 1), ("workers", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; expected {low} or more")
        if self.orders is None and not self.unheard:
            raise ValueError("orders is null and unheard 0: give one of them")

    @property
    def generator(self) -> dict[str, Any]:
        """What decides every conversation; more workers make the same ones."""
        settings = {name: value for name, value in asdict(self).items() if name != "workers"}
        settings |= {"orders": self.orders and str(self.orders), "talkers": [str(path) for path in self.talkers]}
        speech = [*([self.orders] if self.orders else []), *self.talkers]
        digests = {str(path): sha256_of(path / MANIFEST) for path in speech}
        facts = {"speech_sha256": digests, "languages_sha256": sha256_of(LANGUAGES)}
        return {"command": "replies", "version": VERSION, **settings, **facts}


@dataclass(frozen=True)
class Recorded:
    """The recordings of a folder that are orders, by row."""

    speech: ShardedSpeech | None
    rows: tuple[tuple[int, Order], ...]


def recorded_orders(config: Config) -> Recorded:
    """The recordings that `config.orders` names; ValueError if none is an order."""
    if config.orders is None:
        return Recorded(None, ())
    speech = open_speech(config.orders, config.split)
    parsed = ((row, parse_order(text or "")) for row, text in enumerate(speech.texts))
    rows = tuple((row, order) for row, order in parsed if order is not None and speech.seconds[row] > 0)
    if not rows:
        raise ValueError(f"{config.orders} holds no recorded order with its text: make them with `corpus`")
    return Recorded(speech, rows)


def written(text: str) -> str:
    """An order's transcript as the world writes it: "can i have a latte" -> "Can I have a latte?" """
    plain = sentence(re.sub(r"\bi\b", "I", text.strip().rstrip(".?!")))
    return f"{plain}{'?' if plain.split()[0].lower() in ASKED else '.'}"


def count(config: Config, recorded: Recorded) -> int:
    """How many conversations there are in all."""
    return len(recorded.rows) * config.times + config.unheard


def reply(config: Config, recorded: Recorded, talkers: Talkers, index: int) -> Conversation:
    """Conversation number `index`: the recorded orders come first, all of them `times` times."""
    orders = len(recorded.rows) * config.times
    shard, row = divmod(index, config.conversations_per_shard)
    place = f"{config.split}-{config.seed}/{shard:05}/{row:05}/0"
    if index < orders:
        number, order = recorded.rows[index % len(recorded.rows)]
        spoken = recorded.speech[number]
        said = Turn("user", (Stretch(written(spoken.text), spoken.wave),), spoken.speaker)
        turns = (said, _answer(confirmation(order)))
        return Conversation(f"orders-{place}", spoken.source, spoken.licence, config.split, turns)
    sound = unheard(talkers, config.seed, index - orders)
    turns = (Turn("user", (Stretch("", sound.wave),), sound.speaker), _answer(UNHEARD))
    return Conversation(f"unheard-{place}", f"unheard, {sound.kind}", sound.licence, config.split, turns)


def _answer(text: str) -> Turn:
    return Turn("assistant", tuple(map(Stretch, sentences(text))))


def make_shard(config: Config, out: Path, shard: int) -> ShardInfo:
    """Make one shard."""
    path = out / shard_name(shard)
    with Synthesizer() as synthesizer:
        write_shard(path, _rows(config, synthesizer, shard))
    return described(path)


def _rows(config: Config, synthesizer: Synthesizer, shard: int) -> Iterator[Utterance]:
    recorded, talkers = recorded_orders(config), Talkers(config.talkers, config.split, synthesizer)
    start = shard * config.conversations_per_shard
    for index in range(start, min(start + config.conversations_per_shard, count(config, recorded))):
        yield from rows_of(reply(config, recorded, talkers, index))


def described(path: Path) -> ShardInfo:
    """A finished shard's line of the manifest, with how many conversations of each kind it holds."""
    names = {name.rsplit("/", 2)[0] for name in Shard(path).column("id")}
    kinds = Counter(name.partition("-")[0] for name in names)
    return replace(describe_shard(path), notes={"conversations": len(names), "unheard": kinds["unheard"]})


def run(config: Config, out: Path, options: RunOptions) -> int:
    """Fill `out` with shards until all conversations are there; 0 then, 1 if time ran out."""
    if config.unheard:
        check_engine(ENGINE)
    recorded = recorded_orders(config)
    total = count(config, recorded)
    if recorded.speech is not None:
        print(f"{config.orders}: {len(recorded.rows)} orders of {len(recorded.speech)} recordings", flush=True)
    if options.dry_run:
        return _dry_run(config, recorded, total)
    shards = -(-total // config.conversations_per_shard)
    job = Job(
        shards,
        options.threads or config.workers,
        config.generator,
        partial(make_shard, config, out),
        described,
        partial(_report, shards),
    )
    return fill(out, job, options)


def _report(shards: int, done: Iterable[ShardInfo], speed: float) -> str:
    done = list(done)
    hours = sum(info.seconds for info in done) / 3600
    conversations, nothing = (sum(info.notes[name] for info in done) for name in ("conversations", "unheard"))
    return (
        f"{len(done)} of {shards} shards, {conversations} conversations, {nothing} of them unheard, {hours:.2f} hours, "
        f"{speed:.0f}x real time"
    )


def _dry_run(config: Config, recorded: Recorded, total: int) -> int:
    """Make a few conversations of both kinds and tell from them what all will take."""
    orders = total - config.unheard
    chosen = [*range(min(4, orders)), *range(orders, min(orders + 16, total))]
    with Synthesizer() as synthesizer:
        talkers = Talkers(config.talkers, config.split, synthesizer)
        took, seconds = {True: 0.0, False: 0.0}, {True: 0.0, False: 0.0}
        for index in chosen:
            started = time.monotonic()
            conversation = reply(config, recorded, talkers, index)
            took[index < orders] += time.monotonic() - started
            asked, answered = conversation.turns
            length = len(asked.stretches[0].wave) / SAMPLE_RATE
            seconds[index < orders] += length
            print(f"{conversation.source:40} {length:4.1f} s  {asked.text or '(nothing)'} -> {answered.text}")
    many = {True: (orders, min(4, orders)), False: (config.unheard, min(16, config.unheard))}
    hours, work = (
        sum(of[kind] * every / tried for kind, (every, tried) in many.items() if tried) for of in (seconds, took)
    )
    print(
        f"{total} conversations: about {hours / 3600:.1f} hours, {hours * 2 * SAMPLE_RATE / 1e9:.1f} GB, "
        f"{work / config.workers / 60:.1f} minutes with {config.workers} workers"
    )
    return 0
