"""Nano's world: questions, answers and paraphrases from a readable grammar, split so that a test asks new things.

    for item in exchanges("train", seed=0, count=10): print(item.question, item.answer)

To add a topic, write a list of `Family` in one of the files here (grammar.py says what one is) and name it below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Literal

from train.data.world import coffee, comparisons, facts, followups, living, numbers, social, time, words
from train.data.world.grammar import Exchange, Family

__all__ = ["FAMILIES", "TOPICS", "Exchange", "Family", "exchange", "exchanges"]

FAMILIES: dict[str, list[Family]] = {}
for module in (numbers, time, facts, living, comparisons, words, social, coffee, followups):
    for family in module.FAMILIES:
        FAMILIES.setdefault(family.topic, []).append(family)
TOPICS: tuple[str, ...] = tuple(FAMILIES)


def exchange(split: Literal["train", "test"], seed: int, index: int, topics: Sequence[str] | None = None) -> Exchange:
    """Item `index` of a split: a function of its arguments alone. Each len(topics) items hold every topic once."""
    if split not in ("train", "test"):
        raise ValueError(f"split {split!r} is unknown: give 'train' or 'test'")
    names = tuple(topics) if topics else TOPICS
    if unknown := [name for name in names if name not in FAMILIES]:
        raise ValueError(f"the world has no topic {unknown[0]!r}: choose from {', '.join(TOPICS)}")
    cycle, place = divmod(index, len(names))
    topic = Random(f"{split}/{seed}/{cycle}").sample(names, len(names))[place]
    rng = Random(f"{split}/{seed}/{index}/{topic}")
    families = FAMILIES[topic]
    if split == "train":
        return rng.choice(families).exchange(rng, "train")
    kind = rng.choice(sorted({kind for family in families for kind in family.kinds()}))
    return rng.choice([family for family in families if kind in family.kinds()]).exchange(rng, kind)


def exchanges(
    split: Literal["train", "test"], seed: int, count: int, topics: Sequence[str] | None = None
) -> Iterator[Exchange]:
    """The first `count` items of a split, balanced over the topics (all by default)."""
    return (exchange(split, seed, index, topics) for index in range(count))
