"""What recognizers know of English when they judge ears and mouth: a trigram of the training texts."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from train.data import english
from train.data.utterance import spoken_letters
from train.data.world import exchange
from train.trigram import Trigram

SEED = 400_000  # no training uses it
ENGLISH_TEXTS, WORLD_TEXTS = 60_000, 30_000  # drawn, besides all real sentences


def vocabulary() -> frozenset[str]:
    """The words of the training split."""
    words = set(english.vocabulary())
    for text in _world_training():
        words.update(spoken_letters(text).split())
    return frozenset(words)


def language_model(known: Collection[str], excluded: Collection[str] = ()) -> Trigram:
    """A trigram of the training split's texts whose words are all known, without the excluded ones."""
    barred = {spoken_letters(text) for text in excluded}
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
