"""`python -m train synthesize`: sentences spoken by synthetic voices, as shards of speech to train on.

Row r of shard s depends on the settings, s and r alone, so shards are made in any order by several workers, and a
command that was stopped, or killed, continues with the shards that are not there yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from train.config import RunOptions
from train.data.shard_workers import Job, fill, shard_name
from train.data.shards import SAMPLE_RATE, Shard, ShardInfo, describe_shard, write_shard
from train.data.speakers import ATTEMPTS, SpeechSettings, voice
from train.data.utterance import Utterance
from train.data.voices import LICENCES, SynthesisError, Synthesizer, Voice, check_engine

VERSION = 1  # of texts, voices and their order: raise it when the same settings would give other speech
SPARE = 1 << 40  # how much further the text lies that takes the place of one which no voice could speak
TextOf = Callable[["Config", int], tuple[str, str]]


@dataclass(frozen=True)
class Config(SpeechSettings):
    """What to speak, by whom, how much. `texts` weighs nano's world, open English and lists of words."""

    utterances_per_shard: int = 1000
    texts: dict[str, float] = field(default_factory=lambda: {"world": 0.5, "english": 0.4, "words": 0.1})
    answers: float = 0.2  # how much of the world's share are answers rather than questions

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("utterances_per_shard", 1)
        self._weights("texts", {"world", "english", "words"})
        self._share("answers")

    @property
    def generator(self) -> dict[str, Any]:
        return {"command": "synthesize", "version": VERSION, **self.decisive}


def text(config: Config, index: int) -> tuple[str, str]:
    """Sentence number `index` of the mixture, and the task it is for."""
    from train.data import english

    rng = np.random.default_rng((config.seed, index, 0x7E87))
    weights = np.array(list(config.texts.values()))
    kind = list(config.texts)[int(rng.choice(len(weights), p=weights / weights.sum()))]
    if kind == "english":
        return english.sentence(config.split, config.seed, index), "asr"
    if kind == "words":
        return english.word_list(config.split, config.seed, index), "asr"
    from train.data.world import exchange

    item = exchange(config.split, config.seed, index)
    return (item.answer, "answer") if rng.random() < config.answers else (item.question, "question")


def utterance(synthesizer: Synthesizer, config: Config, shard: int, row: int, text_of: TextOf = text) -> Utterance:
    """Row `row` of shard `shard`. Its id ends with the number of voices that failed before one spoke it."""
    index = shard * config.utterances_per_shard + row
    for attempt in range(ATTEMPTS):
        # A text that no voice can speak, being too long perhaps, must not hold up the shard: another, far away
        words, task = text_of(config, index + (SPARE if attempt >= ATTEMPTS // 2 else 0))
        speaker = voice(config, index, attempt)
        try:
            wave = synthesizer.speak(words, speaker)
        except SynthesisError as error:
            failure = error
            continue
        return Utterance(
            id=f"{config.split}-{_called(config.voices)}-{config.seed}/{shard:05}/{row:05}/{attempt}",
            speaker=speaker.speaker,
            text=words,
            wave=wave,
            source=f"{speaker.engine} {speaker.name}",
            licence=LICENCES[speaker.engine],
            split=config.split,
            task=task,
        )
    raise failure


def _called(voices: str | Voice) -> str:
    return voices.name if isinstance(voices, Voice) else voices


def make_shard(config: Config, out: Path, shard: int, text_of: TextOf = text) -> ShardInfo:
    """Speak one shard."""
    path = out / shard_name(shard)
    with Synthesizer() as synthesizer:
        rows = range(config.utterances_per_shard)
        write_shard(path, (utterance(synthesizer, config, shard, row, text_of) for row in rows))
    return described(path)


def described(path: Path) -> ShardInfo:
    """A finished shard's line of the manifest, with what its ids tell of voices that failed."""
    failed = sum(int(name.rsplit("/", 1)[1]) for name in Shard(path).column("id"))
    return replace(describe_shard(path), notes={"voices_failed": failed})


def run(config: Config, out: Path, options: RunOptions, text_of: TextOf = text) -> int:
    """Fill `out` with shards until there are `config.shards`; 0 once they are all there, 1 if time ran out."""
    for engine in config.engines_needed:
        check_engine(engine)
    if options.dry_run:
        return _dry_run(config, text_of)
    job = Job(
        config.shards,
        options.threads or config.workers,
        config.generator,
        partial(make_shard, config, out, text_of=text_of),
        described,
        partial(_report, config.shards),
    )
    return fill(out, job, options)


def _report(shards: int, done: Iterable[ShardInfo], speed: float) -> str:
    done = list(done)
    hours = sum(info.seconds for info in done) / 3600
    rows = sum(info.rows for info in done)
    failed = sum(info.notes["voices_failed"] for info in done)
    return (
        f"{len(done)} of {shards} shards, {rows} utterances, {hours:.2f} hours, {speed:.0f}x real time, "
        f"{failed} voices failed"
    )


def _dry_run(config: Config, text_of: TextOf) -> int:
    """Speak a few utterances and tell from them what all will take."""
    count = min(8, config.utterances_per_shard)
    with Synthesizer() as synthesizer:
        utterance(synthesizer, config, 0, 0, text_of)
        started = time.monotonic()
        spoken = [utterance(synthesizer, config, 0, row, text_of) for row in range(count)]
    each = sum(len(item.wave) for item in spoken) / SAMPLE_RATE / count
    for item in spoken:
        print(f"{item.speaker:60} {item.text}")
    total = config.shards * config.utterances_per_shard
    minutes = (time.monotonic() - started) / count * total / config.workers / 60
    print(
        f"{total} utterances: about {total * each / 3600:.1f} hours, {total * each * 2 * SAMPLE_RATE / 1e9:.1f} GB, "
        f"{minutes:.0f} minutes with {config.workers} workers"
    )
    return 0
