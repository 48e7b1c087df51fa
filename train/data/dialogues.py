"""`python -m train dialogues`: conversations whose users are heard, as shards of speech (conversations.py).

They are of nano's world, or of a JSON file that others wrote (dialogue_sources.py). Conversation r of shard s depends
on the settings, s and r alone, so a command that was stopped, or killed, continues with the shards that are not there.
The assistant's sentences have no sound, for `prepare` speaks each distinct one once, except where the user breaks into
them (interruptions.py): then what was heard also lies in `interrupted/` beside the shards, as two-channel sound and its
events.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from train.config import RunOptions
from train.data.conversations import Conversation, Stretch, Turn, rows_of
from train.data.dialogue_sources import WORLD, File, Plan, Source, World, is_speakable
from train.data.interruptions import FOLDER, Scene, break_into, safe_name, whole_units, write_scene
from train.data.shard_workers import Job, fill, shard_name
from train.data.shards import SAMPLE_RATE, Shard, ShardInfo, describe_shard, write_shard
from train.data.speakers import ATTEMPTS, SpeechSettings, voice
from train.data.utterance import Utterance
from train.data.voices import LICENCES, SynthesisError, Synthesizer, Voice, check_engine

VERSION = 1  # of conversations, voices and their order: raise it when the same settings would give others
LONGEST_ANSWER_S = 12.0  # no further sentence of an answer is spoken, where a user breaks into it or it follows


@dataclass(frozen=True)
class Config(SpeechSettings):
    """Which conversations, who speaks in them, how many.

    `source`: "world", or the path of a .json or .jsonl file, whose conversations are taken in their order, from the
    beginning again (by other voices) where there are fewer than asked for. `assistant` is heard only where the user
    breaks in. The last user turn of a conversation is spoken, and in a share `spoken_history` of the conversations the
    earlier ones are, too. In a share `interrupted` the user breaks in; of a file, only where there is a next user turn
    to break in with. What lasts longer than `max_seconds` stays text. Of a file, conversations with a user turn of more
    than `max_words` words are skipped, and those with code, a URL or (in the last user turn) digits or signs.
    """

    source: str = WORLD
    conversations_per_shard: int = 1000
    assistant: Voice = field(default=Voice("flite", "slt"))
    spoken_history: float = 0.1
    interrupted: float = 0.0
    max_seconds: float = 14.0
    max_words: int = 60

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("conversations_per_shard", 1)
        self._at_least("max_words", 1)
        self._share("spoken_history")
        self._share("interrupted")
        self._trainable("assistant", self.assistant)
        if not self.max_seconds > 0:
            raise ValueError(f"max_seconds is {self.max_seconds}; expected more than 0")

    @property
    def name(self) -> str:
        """What conversations are called by."""
        return WORLD if self.source == WORLD else safe_name(Path(self.source).stem)

    @property
    def generator(self) -> dict[str, Any]:
        return {"command": "dialogues", "version": VERSION, **self.decisive}


def open_source(config: Config) -> Source:
    """What `config.source` names; a file is read once, to see which of its conversations can be spoken."""
    if config.source == WORLD:
        return World(config.split, config.seed)
    return File(Path(config.source), config.max_words)


def dialogue(
    synthesizer: Synthesizer, config: Config, source: Source, shard: int, row: int
) -> tuple[Conversation, Scene | None]:
    """Conversation `row` of shard `shard`, and what is heard where the user breaks in.

    Its id ends with the number of conversations that were tried before it and could not be spoken.
    """
    index = shard * config.conversations_per_shard + row
    interrupted = np.random.default_rng((config.seed, index, 0x1B4EA)).random() < config.interrupted
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng((config.seed, index, attempt, 0xD1A106))
        plan = source.plan(index, attempt, interrupted, rng)
        made = spoken(synthesizer, config, plan, voice(config, index, attempt), rng)
        if made is not None:
            conversation, scene = made
            name = f"{config.name}-{config.split}-{config.seed}/{shard:05}/{row:05}/{attempt}"
            return replace(conversation, id=name), scene
    raise ValueError(
        f"{ATTEMPTS} conversations tried for row {row} of shard {shard} could not be spoken "
        f"within {config.max_seconds:g} s, the last asks {plan.conversation.turns[-2].text[:80]!r}: raise max_seconds"
    )


def spoken(
    synthesizer: Synthesizer, config: Config, plan: Plan, user: Voice, rng: np.random.Generator
) -> tuple[Conversation, Scene | None] | None:
    """The plan's conversation with sound, and its scene if the user breaks in; None if it must be another one."""
    turns = list(plan.conversation.turns)
    users = [number for number, turn in enumerate(turns) if turn.role == "user"]
    chosen = set(users) if rng.random() < config.spoken_history else {users[-1]}
    needed = set()
    if plan.broken is not None:
        needed = {plan.broken - 1} if plan.murmur else {plan.broken - 1, plan.broken + 1}
    for number in users:
        wave = None
        if number in chosen | needed:
            wave = _say(synthesizer, turns[number].text, user, config.max_seconds)
        if wave is None and number in needed:
            return None
        turns[number] = Turn("user", (Stretch(turns[number].text, wave),), user.speaker)
    if all(turns[number].stretches[0].wave is None for number in users):
        return None
    origin, engines = plan.conversation, dict.fromkeys([user.engine])
    if plan.broken is not None:
        engines[config.assistant.engine] = None
        for number in (plan.broken, plan.broken + 2):
            if number < len(turns):
                turns[number] = _spoken_answer(synthesizer, turns[number], config.assistant)
    conversation = replace(
        origin,
        source=f"{origin.source}, {user.engine} {user.name}",
        licence="; ".join([*filter(None, [origin.licence]), *(LICENCES[engine] for engine in engines)]),
        split=config.split,
        turns=tuple(turns),
    )
    if plan.broken is None:
        return conversation, None
    murmur = None
    if plan.murmur:
        wave = _say(synthesizer, plan.murmur, user, config.max_seconds)
        if wave is None:
            return None
        murmur = Stretch(plan.murmur, wave)
    return break_into(conversation, plan.broken, murmur, rng)


def _spoken_answer(synthesizer: Synthesizer, turn: Turn, assistant: Voice) -> Turn:
    """The turn with sound for its sentences in their order, until one cannot be spoken or it has been long enough."""
    stretches, seconds = [], 0.0
    for stretch in turn.stretches:
        if seconds < LONGEST_ANSWER_S:
            wave = _say(synthesizer, stretch.text, assistant, LONGEST_ANSWER_S)
            stretch = replace(stretch, wave=None if wave is None else whole_units(wave))
            seconds += LONGEST_ANSWER_S if wave is None else len(wave) / SAMPLE_RATE
        stretches.append(stretch)
    return replace(turn, stretches=tuple(stretches), speaker=assistant.speaker)


def _say(synthesizer: Synthesizer, text: str, speaker: Voice, max_seconds: float) -> np.ndarray | None:
    """The sound of a text; None if it has no spoken form, no engine speaks it, or it takes too long."""
    if not is_speakable(text):
        return None
    try:
        wave = synthesizer.speak(text, speaker)
    except SynthesisError:
        return None
    return wave if len(wave) <= max_seconds * SAMPLE_RATE else None


def make_shard(config: Config, out: Path, source: Source, shard: int) -> ShardInfo:
    """Make one shard and, before it gets its name, what lies beside it."""
    path = out / shard_name(shard)
    with Synthesizer() as synthesizer:
        write_shard(path, _rows(synthesizer, config, out, source, shard))
    return described(path)


def _rows(synthesizer: Synthesizer, config: Config, out: Path, source: Source, shard: int) -> Iterator[Utterance]:
    for row in range(config.conversations_per_shard):
        conversation, scene = dialogue(synthesizer, config, source, shard, row)
        if scene is not None:
            write_scene(out, conversation.id, scene)
        yield from rows_of(conversation)


def described(path: Path) -> ShardInfo:
    """A finished shard's line of the manifest, with how many conversations it holds and how many had to be others."""
    names = {name.rsplit("/", 2)[0] for name in Shard(path).column("id")}
    replaced = sum(not name.endswith("/0") for name in names)
    return replace(describe_shard(path), notes={"conversations": len(names), "replaced": replaced})


def tidy(out: Path) -> None:
    """Remove from beside the shards what is half-written, or belongs to no shard that is there."""
    for path in (out / FOLDER).glob("*"):
        shard = path.name.rsplit("-", 3)[1] if path.name.count("-") >= 3 else ""
        if path.suffix == ".unfinished" or not (shard.isdigit() and (out / shard_name(int(shard))).exists()):
            path.unlink(missing_ok=True)


def run(config: Config, out: Path, options: RunOptions) -> int:
    """Fill `out` with shards until there are `config.shards`; 0 once they are all there, 1 if time ran out."""
    for engine in {*config.engines_needed, *([config.assistant.engine] if config.interrupted else [])}:
        check_engine(engine)
    source = open_source(config)
    if source.facts:
        print(
            f"{config.source}: {source.facts['conversations']} conversations, {source.facts['skipped']} more skipped "
            f"for code, URLs, digits or signs, or more than {config.max_words} words of a user",
            flush=True,
        )
    if options.dry_run:
        return _dry_run(config, source)
    job = Job(
        config.shards,
        options.threads or config.workers,
        config.generator | source.facts,
        partial(make_shard, config, out, source),
        described,
        partial(_report, config.shards),
        tidy,
    )
    return fill(out, job, options)


def _report(shards: int, done: Iterable[ShardInfo], speed: float) -> str:
    done = list(done)
    hours = sum(info.seconds for info in done) / 3600
    conversations, replaced = (sum(info.notes[name] for info in done) for name in ("conversations", "replaced"))
    return (
        f"{len(done)} of {shards} shards, {conversations} conversations, {hours:.2f} hours, {speed:.0f}x real time, "
        f"{replaced} replaced by others"
    )


def _dry_run(config: Config, source: Source) -> int:
    """Make a few conversations and tell from them what all will take."""
    many = min(8, config.conversations_per_shard)
    with Synthesizer() as synthesizer:
        dialogue(synthesizer, config, source, 0, 0)
        started = time.monotonic()
        made = [dialogue(synthesizer, config, source, 0, row)[0] for row in range(many)]
    took = time.monotonic() - started
    for conversation in made:
        print(f"{conversation.id}, {conversation.source}")
        for turn in conversation.turns:
            seconds = sum(len(stretch.wave) for stretch in turn.stretches if stretch.wave is not None) / SAMPLE_RATE
            print(f"  {turn.role:9} {f'{seconds:.1f} s' if seconds else 'text':>6}  {turn.text}")
    each = sum(len(row.wave) for conversation in made for row in rows_of(conversation)) / SAMPLE_RATE / many
    total = config.shards * config.conversations_per_shard
    print(
        f"{total} conversations: about {total * each / 3600:.1f} hours, {total * each * 2 * SAMPLE_RATE / 1e9:.1f} GB, "
        f"{took / many * total / config.workers / 60:.0f} minutes with {config.workers} workers"
    )
    return 0
