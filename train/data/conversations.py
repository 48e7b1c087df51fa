"""What the language model learns from: conversations whose turns may be spoken, as makers leave them on disk.

A conversation lies in shards of speech (shards.py) as neighbouring rows, one for each stretch: its id is that of the
conversation, turn and stretch ("world-train-12/00000/00017/0/1/0"), its task the role, and its sound is empty where it
is only written. A turn that was interrupted has the task "assistant-cut".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from train.data.shards import ShardedSpeech
from train.data.utterance import Utterance

Role = Literal["system", "user", "assistant"]
CUT = "assistant-cut"


@dataclass(frozen=True)
class Stretch:
    """A part of a turn: its words and its sound, float32 at 16 kHz, or units that others made. Or neither.

    A user's sound without words is one in which nothing can be understood; of units without words nobody knows them.
    """

    text: str
    wave: np.ndarray | None = None
    units: np.ndarray | None = None


@dataclass(frozen=True)
class Turn:
    """What one side says: a user in one stretch, the assistant sentence by sentence.

    `cut`: somebody broke in; the text is whole and the sound of the last stretch ends where it was heard last.
    """

    role: Role
    stretches: tuple[Stretch, ...]
    speaker: str = ""
    cut: bool = False

    @property
    def text(self) -> str:
        return " ".join(stretch.text for stretch in self.stretches)


@dataclass(frozen=True)
class Conversation:
    id: str
    source: str
    licence: str
    split: str
    turns: tuple[Turn, ...]


def rows_of(conversation: Conversation) -> Iterator[Utterance]:
    """A conversation as rows of a shard. Units have no place in shards: ValueError."""
    for number, turn in enumerate(conversation.turns):
        for place, stretch in enumerate(turn.stretches):
            if stretch.units is not None:
                raise ValueError(f"{conversation.id} is made of units: shards keep sound")
            yield Utterance(
                id=f"{conversation.id}/{number}/{place}",
                speaker=turn.speaker,
                text=stretch.text,
                wave=np.zeros(0, np.float32) if stretch.wave is None else stretch.wave,
                source=conversation.source,
                licence=conversation.licence,
                split=conversation.split,
                task=CUT if turn.cut else turn.role,
            )


def conversations_of(rows: Iterable[Utterance]) -> Iterator[Conversation]:
    """Inverse of `rows_of`, of one conversation after the other."""
    for name, group in groupby(rows, key=lambda row: row.id.rsplit("/", 2)[0]):
        turns, first = [], None
        for _, same in groupby(group, key=lambda row: row.id.rsplit("/", 1)[0]):
            stretches = list(same)
            first = first or stretches[0]
            role = "assistant" if stretches[0].task == CUT else stretches[0].task
            if role not in get_args(Role):
                raise ValueError(f"{name} has a row of task {role!r}: this is no folder of conversations")
            turns.append(
                Turn(
                    role,
                    tuple(Stretch(row.text or "", row.wave if len(row.wave) else None) for row in stretches),
                    stretches[0].speaker,
                    cut=stretches[0].task == CUT,
                )
            )
        yield Conversation(name, first.source, first.licence, first.split, tuple(turns))


def starts_of(speech: ShardedSpeech) -> list[int]:
    """The rows at which conversations begin, and the number of rows: `rows[starts[i] : starts[i + 1]]` is one."""
    stems = [name.rsplit("/", 2)[0] for name in speech.column("id")]
    return [row for row in range(len(stems)) if row == 0 or stems[row] != stems[row - 1]] + [len(stems)]


def is_conversations(folder: Path) -> bool:
    """Whether a folder of shards holds conversations rather than single utterances."""
    speech = ShardedSpeech(folder)
    return len(speech) > 0 and speech[0].task in (*get_args(Role), CUT)
