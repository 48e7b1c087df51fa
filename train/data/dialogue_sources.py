"""Conversations to be spoken: of nano's world, or of a JSON file that others wrote; and where users break into them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from train.data.conversations import Conversation, Stretch, Turn
from train.data.dialogue_json import DialogueFile, read_places, sentences
from train.data.voices import speakable
from train.data.world import Exchange, exchange
from train.files import sha256_of

WORLD = "world"
NOT_SPOKEN = re.compile(r"```|https?://|www\.")
BREAKS = {"question": 0.4, "correction": 0.2, "stop": 0.2, "murmur": 0.2}
CORRECTIONS = (
    "No, I mean something else.", "Sorry, that is not what I meant.", "No, not that.", "Sorry, let me ask again.",
    "Wait, I asked the wrong thing.", "Oh, I wanted to ask something else.",
)  # fmt: skip
STOPS = (
    ("Stop.", "Okay."), ("Stop, please.", "Okay, I stop."), ("Okay, stop.", "Okay."), ("Be quiet, please.", "Okay."),
    ("Wait.", "Okay, I am waiting."), ("Wait a moment, please.", "Sure, take your time."),
    ("That is enough, thanks.", "You are welcome."), ("Thank you, that is all.", "You are welcome."),
)  # fmt: skip
MURMURS = ("Uh-huh.", "Right.", "Okay.", "Yes.", "I see.")  # not "mhm", which flite and festival spell out


@dataclass(frozen=True)
class Plan:
    """A conversation to be spoken, and the number of the assistant's turn that the user breaks into, if any.

    They do so with their next turn, unless they only say `murmur` and the assistant goes on.
    """

    conversation: Conversation
    broken: int | None = None
    murmur: str = ""


class Source(Protocol):
    """Where conversations come from. `facts` are for the manifest."""

    facts: dict[str, Any]

    def plan(self, index: int, attempt: int, interrupted: bool, rng: np.random.Generator) -> Plan:
        """Conversation number `index`, or another one when it is asked for again."""
        ...


class World:
    """Exchanges of nano's world."""

    def __init__(self, split: Literal["train", "test"], seed: int) -> None:
        self.split = split
        self.seed = seed
        self.facts: dict[str, Any] = {}

    def plan(self, index: int, attempt: int, interrupted: bool, rng: np.random.Generator) -> Plan:
        number = index + (attempt << 40)  # far away from what any other row is made of
        item = exchange(self.split, self.seed, number)
        turns = [*item.history, (item.question, item.answer)]
        if not interrupted:
            return Plan(self._conversation(turns))
        kind = str(rng.choice(list(BREAKS), p=list(BREAKS.values())))
        broken = 2 * len(turns) - 1
        if kind == "murmur":
            return Plan(self._conversation(turns), broken, _one_of(MURMURS, rng))
        if kind == "stop":
            turns.append(_one_of(STOPS, rng))
        else:
            next_item = self._another(item, number, same_topic=kind == "correction")
            opening = f"{_one_of(CORRECTIONS, rng)} " if kind == "correction" else ""
            turns.append((opening + next_item.question, next_item.answer))
        return Plan(self._conversation(turns), broken)

    def _another(self, first: Exchange, number: int, same_topic: bool) -> Exchange:
        """A question that needs nothing before it, of the same topic where that has such questions."""
        topics = [first.topic] if same_topic and not first.history else None
        items = (exchange(self.split, self.seed, (number << 8) + (1 << 60) + i, topics) for i in count())
        return next(item for item in items if not item.history and item.question != first.question)

    def _conversation(self, pairs: list[tuple[str, str]]) -> Conversation:
        turns = []
        for question, answer in pairs:
            turns.append(Turn("user", (Stretch(question),)))
            turns.append(Turn("assistant", tuple(map(Stretch, sentences(answer)))))
        return Conversation("", WORLD, "", self.split, tuple(turns))


class File:
    """Those conversations of a JSON file that can be spoken."""

    def __init__(self, path: Path, max_words: int) -> None:
        digest = sha256_of(path)
        chosen, skipped = [], 0
        for place, conversation in read_places(path):
            if can_be_spoken(conversation, max_words):
                chosen.append(place)
            else:
                skipped += 1
        if not chosen:
            raise ValueError(f"{path}: none of its {skipped} conversations can be spoken: give spoken English")
        self.file = DialogueFile(path, np.array(chosen, np.int64))
        self.facts = {"source_sha256": digest, "conversations": len(chosen), "skipped": skipped}

    def plan(self, index: int, attempt: int, interrupted: bool, rng: np.random.Generator) -> Plan:
        size = len(self.file)
        conversation = self.file[int(rng.integers(size)) if attempt else index % size]
        places = _breakable(conversation) if interrupted else []
        return Plan(conversation, int(rng.choice(places)) if places else None)


def can_be_spoken(conversation: Conversation, max_words: int) -> bool:
    """Whether its users say nothing but what people say: no code, no URL, no speech; at the end words alone."""
    texts = [turn.text for turn in conversation.turns if turn.role == "user"]
    if not texts or any(stretch.units is not None for turn in conversation.turns for stretch in turn.stretches):
        return False
    if any(NOT_SPOKEN.search(text) or len(text.split()) > max_words for text in texts):
        return False
    return is_speakable(texts[-1])


def is_speakable(text: str) -> bool:
    """Whether an engine can be asked to say it: words, written as they are spoken."""
    try:
        return bool(speakable(text))
    except ValueError:
        return False


def _breakable(conversation: Conversation) -> list[int]:
    """The assistant's turns that can be spoken, between two such user turns, the second of which has a reply."""
    turns = conversation.turns
    return [
        number
        for number in range(1, len(turns) - 2)
        if [turn.role for turn in turns[number - 1 : number + 3]] == ["user", "assistant", "user", "assistant"]
        and all(is_speakable(turns[near].stretches[0].text) for near in (number - 1, number, number + 1))
    ]


def _one_of(choices: tuple[Any, ...], rng: np.random.Generator) -> Any:
    return choices[int(rng.integers(len(choices)))]
