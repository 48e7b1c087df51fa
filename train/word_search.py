"""Words from letter probabilities with the help of a dictionary and a trigram: what the ears hold beyond spelling.

A CTC head decoded greedily spells what it hears ("cronic mony problems"); whoever knows English hears words. This beam
search over the letters of known words, weighed by what usually follows what, measures how much the ears can tell
somebody who does. It is no part of the model, which brings a language model of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch

from most_core.speech import BLANK, WORD_SEPARATOR
from train.trigram import END, START, Trigram

ROOT, STRANGE = 0, -1  # places in the tree of words: before a word, and inside one that is not in it
NEVER = -math.inf


@dataclass(frozen=True)
class Weights:
    """How sound is traded against language; `python -m train evaluate ears` says what they were chosen on.

    `language` multiplies the trigram's logarithms and `word` is added for every word; `joined` if no space was heard
    before it. A strange word costs `strange`, and `letter` for each of its letters, instead of a place in the tree.
    """

    language: float = 0.7
    word: float = 1.0
    joined: float = -3.0
    strange: float = -6.0
    letter: float = -1.0
    beam: int = 40
    least: float = -7.0  # letters less likely than this, as a logarithm, are not tried
    silent: float = -0.02  # where a blank is likelier than this, nothing else is


class _Place(NamedTuple):
    """Where a hearing of the sound stands. Two that stand in the same place can only go on in the same way."""

    node: int
    letter: int  # the last one: to be heard again it needs a blank between
    history: tuple[str, str]
    begun: str = ""  # the letters of a strange word


@dataclass
class _Hearing:
    """The best words that lead to a place, and how likely the place is with a blank or a letter heard last."""

    words: tuple[str, ...]
    blank: float = NEVER
    letter: float = NEVER

    @property
    def total(self) -> float:
        return _sum(self.blank, self.letter)


class WordSearch:
    """Reads letter probabilities as words of the trigram's vocabulary, or as strange ones where none of them fits."""

    def __init__(self, trigram: Trigram, letters: dict[str, int], weights: Weights | None = None) -> None:
        self.weights = weights or Weights()
        self._letters, self._names = letters, {index: letter for letter, index in letters.items()}
        self._cost = lru_cache(1 << 18)(
            lambda word, history: self.weights.language * math.log(trigram.probability(word, history))
        )
        self._next: list[dict[int, int]] = [{}]
        self._word: list[str | None] = [None]
        self._best: list[float] = [0.0]  # of the words through a node, to compare it with words that have ended
        self._known = set(trigram.words)
        for word in trigram.words:
            self._plant(word)

    def _plant(self, word: str) -> None:
        node, cost = ROOT, self._cost(word, ()) + self.weights.word
        for letter in word:
            following = self._next[node].setdefault(self._letters[letter], len(self._next))
            if following == len(self._next):
                self._next.append({})
                self._word.append(None)
                self._best.append(NEVER)
            node = following
            self._best[node] = max(self._best[node], cost)
        self._word[node] = word

    def read(self, log_probs: torch.Tensor) -> str:
        """The likeliest words of [T, letters], as one line."""
        blank, space = self._letters[BLANK], self._letters[WORD_SEPARATOR]
        hearings = {_Place(ROOT, space, (START, START)): _Hearing((), blank=0.0)}
        for row in log_probs.tolist():
            if row[blank] > self.weights.silent:
                for hearing in hearings.values():
                    hearing.blank, hearing.letter = hearing.total + row[blank], NEVER
                continue
            likely = [
                letter
                for letter, value in enumerate(row)
                if value > self.weights.least and letter not in (blank, space)
            ]
            found: dict[_Place, _Hearing] = {}
            for place, hearing in hearings.items():
                heard = hearing.total
                stays = _meet(found, place, hearing.words, heard)
                stays.blank = _sum(stays.blank, heard + row[blank])
                stays.letter = _sum(stays.letter, hearing.letter + row[place.letter])
                self._spell(found, place, hearing, row, likely)
                if ended := self._ended(place, hearing):
                    place, hearing = ended
                    heard = hearing.total
                    apart = _meet(found, place._replace(letter=space), hearing.words, heard)
                    apart.letter = _sum(apart.letter, heard + row[space])
                    joined = self.weights.joined
                    together = _Hearing(hearing.words, hearing.blank + joined, hearing.letter + joined)
                    self._spell(found, place, together, row, likely)
            best = sorted(found.items(), key=self._promise, reverse=True)
            hearings = dict(best[: self.weights.beam])
        return max(self._whole(hearings), default=(NEVER, ""))[1]

    def _spell(
        self, found: dict[_Place, _Hearing], place: _Place, hearing: _Hearing, row: list[float], likely: list[int]
    ) -> None:
        """Add what is heard with one more letter, of a known word or of a strange one."""
        total = hearing.total
        for letter in likely:
            heard = row[letter] + (hearing.blank if letter == place.letter else total)
            if heard == NEVER:
                continue
            if place.node != STRANGE and (node := self._next[place.node].get(letter)):
                longer = _meet(found, _Place(node, letter, place.history), hearing.words, heard)
                longer.letter = _sum(longer.letter, heard)
            if place.node in (ROOT, STRANGE):
                heard += self.weights.letter + (self.weights.strange if place.node == ROOT else 0)
                begun = place.begun + self._names[letter]
                longer = _meet(found, _Place(STRANGE, letter, place.history, begun), hearing.words, heard)
                longer.letter = _sum(longer.letter, heard)

    def _ended(self, place: _Place, hearing: _Hearing) -> tuple[_Place, _Hearing] | None:
        """The place before the next word, if a word can end here."""
        if place.node == STRANGE:
            word, cost = place.begun, 0.0
            if word in self._known:
                return None
        elif word := self._word[place.node]:
            cost = self._cost(word, place.history) + self.weights.word
        else:
            return None
        ended = _Hearing((*hearing.words, word), hearing.blank + cost, hearing.letter + cost)
        return _Place(ROOT, place.letter, (place.history[1], word)), ended

    def _promise(self, item: tuple[_Place, _Hearing]) -> float:
        """How likely a hearing is, its unfinished word counted as the commonest that it may become."""
        place, hearing = item
        return hearing.total + (self._best[place.node] if place.node > ROOT else 0.0)

    def _whole(self, hearings: dict[_Place, _Hearing]) -> Iterator[tuple[float, str]]:
        """Likelihood and text of those that may end here, as sentences."""
        for place, hearing in hearings.items():
            if place.node != ROOT:
                if not (ended := self._ended(place, hearing)):
                    continue
                place, hearing = ended
            yield hearing.total + self._cost(END, place.history), " ".join(hearing.words)


def _meet(found: dict[_Place, _Hearing], place: _Place, words: tuple[str, ...], heard: float) -> _Hearing:
    """The hearing at a place, which keeps the likelier of the words that lead there."""
    known = found.get(place)
    if known is None:
        known = found[place] = _Hearing(words)
    elif heard > known.total:
        known.words = words
    return known


def _sum(a: float, b: float) -> float:
    """log(exp(a) + exp(b))"""
    if a < b:
        a, b = b, a
    return a if b == NEVER else a + math.log1p(math.exp(b - a))
