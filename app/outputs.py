"""What a conversation is made of, and what comes out of it in the order in which it is to be shown and played."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from app.turn import State, Why
from app.vad import SAMPLE_RATE
from most_core import Message, Reply
from most_core.trace_rows import RoutingRows

Role = Literal["system", "user", "assistant"]
Status = Literal["completed", "incomplete", "cancelled", "failed"]


@dataclass(eq=False)
class Item:
    """One thing that was said or written. `transcript` is what was heard in its sound, or how a reply's sound reads."""

    id: str
    role: Role
    text: str = ""
    sound: np.ndarray | None = None  # 16 kHz
    transcript: str = ""

    def message(self) -> Message:
        """As the model reads it. What was heard already is read, not heard again: nano understands that better."""
        parts: list[dict[str, Any]] = [{"type": "text", "text": t} for t in (self.text, self.transcript) if t]
        if self.sound is not None and not self.transcript:
            parts.append({"type": "audio", "audio": self.sound, "sampling_rate": SAMPLE_RATE})
        return {"role": self.role, "content": parts}


@dataclass(frozen=True)
class StateChanged:
    state: State


@dataclass(frozen=True)
class Level:
    """The microphone's, a few times a second: what the detector sees."""

    level_db: float
    threshold_db: float
    speech: bool


@dataclass(frozen=True)
class SpeechStarted:
    """Somebody has the floor; their sound counts from `at_ms` on, and will be the item of this name."""

    at_ms: float
    item_id: str


@dataclass(frozen=True)
class SpeechStopped:
    at_ms: float
    item_id: str


@dataclass(frozen=True)
class Dropped:
    """Nothing comes of what was heard."""

    why: Why


@dataclass(frozen=True)
class Committed:
    """What was said is the user's turn now, and `item` part of the conversation."""

    turn: int
    item: Item


@dataclass(frozen=True)
class ReplyStarted:
    turn: int
    item: Item


@dataclass(frozen=True)
class Heard:
    """More of what was heard. A provisional text replaces all that was shown so far, and has no turn yet."""

    turn: int | None
    text: str
    provisional: bool = False


@dataclass(frozen=True)
class HeardAll:
    turn: int
    item: Item


@dataclass(frozen=True)
class Text:
    turn: int
    text: str


@dataclass(frozen=True)
class Sound:
    turn: int
    pcm: np.ndarray  # float32
    sample_rate: int


@dataclass(frozen=True)
class Playback:
    """What the speaker shall do with the turn's sound: `stop` throws away what was not played. `skipped_ms` of silence
    before its first sound are left out, which the reply's units tell of, too."""

    turn: int
    action: Literal["play", "pause", "resume", "stop"]
    skipped_ms: float = 0.0  # where it begins to play


@dataclass(frozen=True)
class Routed:
    turn: int | None
    rows: RoutingRows
    provisional: bool


@dataclass(frozen=True)
class ReplyEnded:
    """No more of the reply is generated. Its playback may go on. `tables`: its trace as files, where it is recorded."""

    turn: int
    item: Item
    status: Status
    reply: Reply | None
    error: str = ""
    tables: dict[str, bytes] | None = None


@dataclass(frozen=True)
class Timed:
    """Where the time went from the end of the user's speech (or text) to the reply's first sound: stages one after the
    other, in milliseconds, and their sum."""

    turn: int
    stages: dict[str, float]
    total_ms: float


@dataclass(frozen=True)
class Removed:
    """The item is out of the conversation: its speech comes again as part of a longer one."""

    item: Item


@dataclass(frozen=True)
class Shortened:
    """Only this much of the reply was heard; the rest is out of the conversation."""

    turn: int
    item: Item
    played_ms: float


Output = (
    StateChanged
    | Level
    | SpeechStarted
    | SpeechStopped
    | Dropped
    | Committed
    | ReplyStarted
    | Heard
    | HeardAll
    | Text
    | Sound
    | Playback
    | Routed
    | ReplyEnded
    | Timed
    | Removed
    | Shortened
)
