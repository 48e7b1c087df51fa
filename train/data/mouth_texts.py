"""What the mouth is judged by: held-out sentences to say."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Literal

from train.data import english
from train.data.utterance import spoken_letters
from train.data.world import exchange

SEED = 400_000  # no training uses it
SENTENCES = 200
WORDS = (3, 20)


@dataclass(frozen=True)
class Sentence:
    """Something to say, and its words as a recognizer spells them."""

    text: str
    kind: Literal["answers", "sentences"]

    @property
    def words(self) -> list[str]:
        return spoken_letters(self.text).split()


def held_out_sentences(known: Collection[str], number: int = SENTENCES) -> tuple[list[Sentence], int]:
    """Half answers of nano's world, half open English, all of the test split, different and of known words.

    The second number is of those passed over because of a word that is not known.
    """
    chosen: dict[str, Sentence] = {}
    passed = 0
    for kind, drawn in (("answers", _answers("test")), ("sentences", _english("test"))):
        wanted = len(chosen) + (number + 1) // 2 if kind == "answers" else number
        for text in drawn:
            sentence = Sentence(text, kind)
            letters = spoken_letters(text)
            if not WORDS[0] <= len(sentence.words) <= WORDS[1] or letters in chosen:
                continue
            if not all(word in known for word in sentence.words):
                passed += 1
                continue
            chosen[letters] = sentence
            if len(chosen) == wanted:
                break
    return list(chosen.values()), passed


def _answers(split: Literal["train", "test"]) -> Iterator[str]:
    return (exchange(split, SEED, index).answer for index in count())


def _english(split: Literal["train", "test"]) -> Iterator[str]:
    return (english.sentence(split, SEED, index) for index in count())
