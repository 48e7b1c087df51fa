"""Comparisons: which of two numbers, animals, vehicles or lengths of time is more. Any two of one list may meet."""

from __future__ import annotations

from collections.abc import Sequence

from train.data.world.grammar import Family, Slots, with_article
from train.data.world.numbers import spelled
from train.data.world.tables import listed

# Each list from the least to the most.
BY_SIZE = listed("ant bee mouse frog cat dog sheep lion horse elephant whale")
BY_SPEED = ("snail", "turtle", "hen", "person", "bicycle", "horse", "car", "train", "plane", "rocket")
BY_WEIGHT = ("feather", "coin", "pencil", "apple", "book", "chair", "table", "piano", "car", "lorry", "house")
BY_LENGTH = ("second", "minute", "hour", "day", "week", "month", "year", "decade", "century")
BY_HEIGHT = ("flower", "child", "door", "house", "tree", "church", "tower", "mountain")
BY_HEAT = ("ice", "cold water", "warm water", "boiling water", "fire", "the sun")
NUMBERS = tuple(spelled(number) for number in range(1, 31))


def _meetings(ranked: Sequence[str], article: bool = True) -> list[Slots]:
    """Every two of the list in both orders; `more` and `less` say which is which."""
    names = [with_article(name) if article else name for name in ranked]
    return [
        {"a": a, "b": b, "more": names[max(i, k)], "less": names[min(i, k)]}
        for i, a in enumerate(names)
        for k, b in enumerate(names)
        if i != k
    ]


def _comparing(more: str, ranked: Sequence[str], article: bool = True) -> Family:
    """Which of two is bigger, faster and so on."""
    return Family(
        "comparisons",
        (
            f"which is {more}, {{a}} or {{b}}?",
            f"what is {more}, {{a}} or {{b}}?",
            f"what's {more}, {{a}} or {{b}}?",
            f"is {{a}} {more} than {{b}}?",
            f"which one is {more}, {{a}} or {{b}}?",
            f"{{a}} or {{b}}, which is {more}?",
            f"tell me which is {more}, {{a}} or {{b}}.",
            f"do you know which is {more}, {{a}} or {{b}}?",
        ),
        f"{{more}} is {more} than {{less}}.",
        _meetings(ranked, article),
        value=f"{more}: {{a}} or {{b}}",
    )


FAMILIES = (
    _comparing("bigger", BY_SIZE),
    _comparing("smaller", BY_SIZE[::-1]),
    _comparing("faster", BY_SPEED),
    _comparing("slower", BY_SPEED[::-1]),
    _comparing("heavier", BY_WEIGHT),
    _comparing("lighter", BY_WEIGHT[::-1]),
    _comparing("longer", BY_LENGTH),
    _comparing("shorter", BY_LENGTH[::-1]),
    _comparing("taller", BY_HEIGHT),
    _comparing("hotter", BY_HEAT, article=False),
    _comparing("colder", BY_HEAT[::-1], article=False),
    _comparing("more", NUMBERS, article=False),
    _comparing("less", NUMBERS[::-1], article=False),
)
