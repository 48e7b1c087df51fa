"""`python -m train synthesize`: sentences spoken by synthetic voices, as shards of speech to train on.

Row r of shard s depends on the settings, s and r alone, so shards are made in any order by several workers, and a
command that was stopped, or killed, continues with the shards that are not there yet.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from train.config import RunOptions, deadline
from train.data.shards import (
    MANIFEST,
    SAMPLE_RATE,
    Shard,
    ShardInfo,
    describe_shard,
    read_manifest,
    write_manifest,
    write_shard,
)
from train.data.utterance import Utterance
from train.data.voices import (
    ENGINE_WEIGHTS,
    LICENCES,
    UNSEEN,
    SynthesisError,
    Synthesizer,
    Voice,
    check_engine,
    training_voices,
    unseen_voices,
)
from train.workers import end_with_parent

VERSION = 1  # of texts, voices and their order: raise it when the same settings would give other speech
ATTEMPTS = 8  # voices tried for one utterance; the second half of them with another text
TextOf = Callable[["Config", int], tuple[str, str]]


@dataclass(frozen=True)
class Config:
    """What to speak, by whom, how much. `texts` weighs nano's world, open English and lists of words.

    `voices` are many, or the one described.
    """

    seed: int = 0
    split: Literal["train", "test"] = "train"
    shards: int = 40
    utterances_per_shard: int = 1000
    texts: dict[str, float] = field(default_factory=lambda: {"world": 0.5, "english": 0.4, "words": 0.1})
    answers: float = 0.2  # how much of the world's share are answers rather than questions
    voices: Literal["training", "unseen"] | Voice = "training"
    engines: dict[str, float] = field(default_factory=lambda: dict(ENGINE_WEIGHTS))
    workers: int = 2

    def __post_init__(self) -> None:
        for name, low in (("shards", 1), ("utterances_per_shard", 1), ("workers", 1), ("seed", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; expected {low} or more")
        for name, known in (("texts", {"world", "english", "words"}), ("engines", set(ENGINE_WEIGHTS))):
            weights = getattr(self, name)
            if strange := sorted(set(weights) - known):
                raise ValueError(f"{name}.{strange[0]} is no setting; there are {', '.join(sorted(known))}")
            if min(weights.values(), default=0) < 0 or sum(weights.values()) <= 0:
                raise ValueError(f"{name} is {weights}; expected weights of 0 or more, one of them above 0")
        if not 0 <= self.answers <= 1:
            raise ValueError(f"answers is {self.answers}; expected a share, 0..1")
        if isinstance(self.voices, Voice) and any(
            (self.voices.engine, self.voices.name) == (unseen.engine, unseen.name) for unseen in UNSEEN
        ):
            raise ValueError(
                f"voices is {self.voices.engine} {self.voices.name}, which is kept for tests: choose another"
            )

    @property
    def generator(self) -> dict[str, Any]:
        """What decides an utterance; more shards or more workers make the same ones."""
        decisive = {name: value for name, value in asdict(self).items() if name not in ("shards", "workers")}
        return {"command": "synthesize", "version": VERSION, **decisive}


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


def voice(config: Config, index: int, attempt: int) -> Voice:
    """Who says sentence number `index`, the `attempt`-th time that a voice is looked for."""
    if isinstance(config.voices, Voice):
        return config.voices
    if config.voices == "unseen":
        return unseen_voices()[(index + attempt) % len(unseen_voices())]
    return training_voices(config.seed, index * ATTEMPTS + attempt, config.engines)


def utterance(synthesizer: Synthesizer, config: Config, shard: int, row: int, text_of: TextOf = text) -> Utterance:
    """Row `row` of shard `shard`. Its id ends with the number of voices that failed before one spoke it."""
    index = shard * config.utterances_per_shard + row
    for attempt in range(ATTEMPTS):
        # A text that no voice can speak, being too long perhaps, must not hold up the shard: another, far away
        words, task = text_of(config, index + (1 << 40 if attempt >= ATTEMPTS // 2 else 0))
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


def shard_name(shard: int) -> str:
    return f"speech-{shard:05}.arrow"


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
    workers = options.threads or config.workers
    for engine in _engines(config):
        check_engine(engine)
    if options.dry_run:
        return _dry_run(config, text_of)
    if options.fresh:
        _discard(out)
    done = _finished(config, out)
    left = [shard for shard in range(config.shards) if shard_name(shard) not in done]
    write_manifest(out, done.values(), config.generator)
    over, started, made = deadline(options.minutes), time.monotonic(), 0.0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(left)) or 1, context, initializer=end_with_parent) as pool:
        running: set[Future[ShardInfo]] = set()
        try:
            while left or running:
                while left and len(running) < workers and not over():
                    running.add(pool.submit(make_shard, config, out, left.pop(0), text_of))
                if not running:
                    break
                ready, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ready:
                    info = future.result()
                    done[info.name] = info
                    made += info.seconds
                write_manifest(out, done.values(), config.generator)
                _report(done, config.shards, made / (time.monotonic() - started))
        except BrokenProcessPool as error:
            raise ChildProcessError("a worker was killed (too little memory?): the same command continues") from error
        except BaseException:
            for process in multiprocessing.active_children():  # rather than wait for shards that take minutes
                process.terminate()
                process.join()
            _sweep(out)
            raise
    if left:
        print(f"stopped after {options.minutes:g} minutes; the same command continues", flush=True)
        return 1
    return 0


def _engines(config: Config) -> list[str]:
    if isinstance(config.voices, Voice):
        return [config.voices.engine]
    if config.voices == "unseen":
        return [voice.engine for voice in unseen_voices()]
    return [engine for engine, weight in config.engines.items() if weight > 0]


def _finished(config: Config, out: Path) -> dict[str, ShardInfo]:
    """Shards that need not be made: listed ones, and whole ones that a killed run had no time to list."""
    out.mkdir(parents=True, exist_ok=True)
    listed: dict[str, ShardInfo] = {}
    if (out / MANIFEST).exists():
        shards, generator = read_manifest(out)
        if different := [name for name, value in config.generator.items() if generator.get(name) != value]:
            name = different[0]
            raise ValueError(
                f"{out} holds speech made with {name} {generator.get(name)!r}, not {config.generator[name]!r}: "
                "choose another --out, or --fresh to discard it"
            )
        listed = {shard.name: shard for shard in shards}
    elif any(out.glob("*.arrow")):
        raise ValueError(f"{out} holds shards but no {MANIFEST}: choose another --out, or --fresh to discard them")
    _sweep(out)
    done = {}
    for path in sorted(out.glob("speech-*.arrow")):
        info = listed.get(path.name) or described(path)
        if path.stat().st_size == info.bytes:
            done[path.name] = info
    return done


def _discard(out: Path) -> None:
    _sweep(out)
    for path in [*out.glob("speech-*.arrow"), out / MANIFEST]:
        path.unlink(missing_ok=True)


def _sweep(out: Path) -> None:
    """Remove what workers that were stopped or killed have left half-written."""
    for path in out.glob("*.unfinished"):
        path.unlink(missing_ok=True)


def _report(done: dict[str, ShardInfo], shards: int, speed: float) -> None:
    hours = sum(info.seconds for info in done.values()) / 3600
    rows = sum(info.rows for info in done.values())
    failed = sum(info.notes["voices_failed"] for info in done.values())
    print(
        f"{len(done)} of {shards} shards, {rows} utterances, {hours:.2f} hours, {speed:.0f}x real time, "
        f"{failed} voices failed",
        flush=True,
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
