"""What the mouth is judged by: held-out sentences to say, and the language model of the recognizer that listens."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Literal

from train.data import english
from train.data.utterance import spoken_letters
from train.data.world import exchange
from train.trigram import Trigram

SEED = 400_000  # no training uses it
SENTENCES = 200
WORDS = (3, 20)
ENGLISH_TEXTS, WORLD_TEXTS = 60_000, 30_000  # drawn of the training split for the language model


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


def vocabulary(pronounceable: Collection[str]) -> frozenset[str]:
    """The words of the training split that the recognizer can pronounce."""
    words = set(english.vocabulary())
    for text in _world_training():
        words.update(spoken_letters(text).split())
    return frozenset(words & set(pronounceable))


def language_model(known: Collection[str], excluded: Collection[Sentence]) -> Trigram:
    """A trigram of the training split's texts whose words are all known, without the excluded sentences."""
    barred = {spoken_letters(sentence.text) for sentence in excluded}
    known = frozenset(known)

    def lines() -> Iterator[list[str]]:
        # Each but once: drawn again and again, a sentence would look like a habit of the language
        for letters in sorted({spoken_letters(text) for text in _training()} - barred):
            words = letters.split()
            if words and known.issuperset(words):
                yield words

    return Trigram(lines(), known)


def _training() -> Iterator[str]:
    yield from english.all_sentences("train")
    yield from (english.sentence("train", SEED, index) for index in range(ENGLISH_TEXTS))
    yield from _world_training()


def _world_training() -> Iterator[str]:
    for index in range(WORLD_TEXTS):
        item = exchange("train", SEED, index)
        yield item.question
        yield item.answer


def _answers(split: Literal["train", "test"]) -> Iterator[str]:
    return (exchange(split, SEED, index).answer for index in count())


def _english(split: Literal["train", "test"]) -> Iterator[str]:
    return (english.sentence(split, SEED, index) for index in count())
