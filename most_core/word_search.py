"""Words from letter probabilities with the help of a dictionary and a trigram.

A CTC head decoded greedily spells what it hears ("cronic mony problems"); whoever knows English hears words.
`WordModel` is a dictionary with what usually follows what, `WordSearch` a beam search over the letters of its words.
For captions: a language model that listens to the encoder's features brings its own knowledge of English.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from most_core.checkpoint_files import read_tensors

ROOT, STRANGE = 0, -1  # places in the tree of words: before a word, and inside one that is not in it
NEVER = -math.inf


@dataclass(frozen=True)
class WordModel:
    """A trigram with back-off, in natural logarithms. Word i is `words[i]`; three more are `start`, `end`, `unknown`.

    `pairs` are sorted numbers first * size + second, `triples` are place of the pair * size + third. Each has a
    probability, and a `rest` by which what follows it must be multiplied where no longer sequence is known.
    """

    words: tuple[str, ...]
    singles: np.ndarray
    singles_rest: np.ndarray
    pairs: np.ndarray
    pairs_log_prob: np.ndarray
    pairs_rest: np.ndarray
    triples: np.ndarray
    triples_log_prob: np.ndarray

    @property
    def start(self) -> int:
        return len(self.words)

    @property
    def end(self) -> int:
        return len(self.words) + 1

    @property
    def unknown(self) -> int:
        return len(self.words) + 2

    @property
    def size(self) -> int:
        return len(self.words) + 3

    def log_prob(self, word: int, before: tuple[int, int]) -> float:
        """log P(word | two words before), which may be `start` twice."""
        if word == self.unknown:
            return NEVER
        rest = 0.0
        pair = _place(self.pairs, before[0] * self.size + before[1])
        if pair is not None:
            triple = _place(self.triples, pair * self.size + word)
            if triple is not None:
                return float(self.triples_log_prob[triple])
            rest = float(self.pairs_rest[pair])
        pair = _place(self.pairs, before[1] * self.size + word)
        if pair is not None:
            return rest + float(self.pairs_log_prob[pair])
        return rest + float(self.singles_rest[before[1]]) + float(self.singles[word])

    def save(self, path: Path) -> None:
        """Write it, numbers in half precision."""
        tensors = {"words": torch.from_numpy(np.frombuffer("\n".join(self.words).encode(), np.uint8).copy())}
        for name, value in vars(self).items():
            if name != "words":
                floating = value.dtype.kind == "f"
                small = np.float16 if floating else np.int32 if value.max(initial=0) < 2**31 else np.int64
                tensors[name] = torch.from_numpy(value.astype(small))
        save_file(tensors, path)

    @classmethod
    def load(cls, path: Path) -> WordModel:
        tensors = read_tensors(path)[0]
        try:
            words = tuple(bytes(tensors.pop("words").numpy()).decode().split("\n"))
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            model = cls(
                words, **{n: a.astype(np.float32 if a.dtype.kind == "f" else np.int64) for n, a in arrays.items()}
            )
        except (KeyError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no model of words ({error}): make it again") from error
        if len(model.singles) != model.size or len(model.singles_rest) != model.size:
            raise ValueError(f"{path} has {len(words)} words but {len(model.singles)} probabilities: make it again")
        return model


def _place(numbers: np.ndarray, number: int) -> int | None:
    place = int(np.searchsorted(numbers, number))
    return place if place < len(numbers) and numbers[place] == number else None


@dataclass(frozen=True)
class Weights:
    """How sound is traded against language; chosen on held-out texts that no evaluation uses.

    `language` multiplies the trigram's logarithms and `word` is added for every word; `joined` if no space was heard
    before it. A strange word costs `strange`, and `letter` for each of its letters, instead of a place in the tree.
    """

    language: float = 0.5
    word: float = 1.0
    joined: float = -3.0
    strange: float = -6.0
    letter: float = -2.0
    beam: int = 40
    least: float = -7.0  # letters less likely than this, as a logarithm, are not tried
    silent: float = -0.02  # where a blank is likelier than this, nothing else is


class Found(NamedTuple):
    """A word: its first step, the one after its last, and the mean probability of its letters."""

    text: str
    first: int
    end: int
    confidence: float


class _Place(NamedTuple):
    """Where a hearing of the sound stands. Two that stand in the same place can only go on in the same way."""

    node: int
    letter: int  # the last one: to be heard again it needs a blank between
    before: tuple[int, int]
    begun: str = ""  # the letters of a strange word


class _Trail(NamedTuple):
    """The best way to a place: whole words, and of the unfinished one the first and last step and its letters' sum."""

    words: tuple[Found, ...] = ()
    first: int = 0
    last: int = 0
    letters: int = 0
    sure: float = 0.0


@dataclass
class _Hearing:
    """How likely a place is with a blank or a letter heard last."""

    trail: _Trail
    blank: float = NEVER
    letter: float = NEVER

    @property
    def total(self) -> float:
        return _sum(self.blank, self.letter)


class WordSearch:
    """Reads letter probabilities as words of a model, or as strange ones where none of them fits.

    `letters` numbers the symbols: letters, `blank` and `space`.
    """

    def __init__(
        self, model: WordModel, letters: dict[str, int], blank: str, space: str, weights: Weights | None = None
    ) -> None:
        self.model, self.weights = model, weights or Weights()
        self._letters, self._names = letters, {index: letter for letter, index in letters.items()}
        self._blank, self._space = letters[blank], letters[space]
        self._cost = lru_cache(1 << 18)(lambda word, before: self.weights.language * model.log_prob(word, before))
        self._next: list[dict[int, int]] = [{}]
        self._word: list[int | None] = [None]
        self._best: list[float] = [0.0]  # of the words through a node, to compare it with words that have ended
        self._known = {word: index for index, word in enumerate(model.words)}
        for index, word in enumerate(model.words):
            self._plant(index, word)

    def _plant(self, index: int, word: str) -> None:
        if not set(word) <= set(self._letters):
            return  # an alphabet without its letters cannot spell it
        node, cost = ROOT, self.weights.language * float(self.model.singles[index]) + self.weights.word
        for letter in word:
            following = self._next[node].setdefault(self._letters[letter], len(self._next))
            if following == len(self._next):
                self._next.append({})
                self._word.append(None)
                self._best.append(NEVER)
            node = following
            self._best[node] = max(self._best[node], cost)
        self._word[node] = index

    def read(self, log_probs: torch.Tensor) -> list[Found]:
        """The likeliest words of [T, letters]."""
        hearings = {_Place(ROOT, self._space, (self.model.start, self.model.start)): _Hearing(_Trail(), blank=0.0)}
        for step, row in enumerate(log_probs.tolist()):
            if row[self._blank] > self.weights.silent:
                for hearing in hearings.values():
                    hearing.blank, hearing.letter = hearing.total + row[self._blank], NEVER
                continue
            likely = [
                (letter, value)
                for letter, value in enumerate(row)
                if value > self.weights.least and letter not in (self._blank, self._space)
            ]
            found: dict[_Place, _Hearing] = {}
            for place, hearing in hearings.items():
                heard = hearing.total
                stays = _meet(found, place, hearing.trail, heard)
                stays.blank = _sum(stays.blank, heard + row[self._blank])
                stays.letter = _sum(stays.letter, hearing.letter + row[place.letter])
                self._spell(found, place, hearing, step, likely)
                if ended := self._ended(place, hearing):
                    place, hearing = ended
                    heard = hearing.total
                    apart = _meet(found, place._replace(letter=self._space), hearing.trail, heard)
                    apart.letter = _sum(apart.letter, heard + row[self._space])
                    joined = self.weights.joined
                    together = _Hearing(hearing.trail, hearing.blank + joined, hearing.letter + joined)
                    self._spell(found, place, together, step, likely)
            best = sorted(found.items(), key=self._promise, reverse=True)
            hearings = dict(best[: self.weights.beam])
        whole = max(self._whole(hearings), default=(NEVER, ()), key=lambda item: item[0])
        return list(whole[1])

    def _spell(
        self,
        found: dict[_Place, _Hearing],
        place: _Place,
        hearing: _Hearing,
        step: int,
        likely: list[tuple[int, float]],
    ) -> None:
        """Add what is heard with one more letter, of a known word or of a strange one."""
        total, trail = hearing.total, hearing.trail
        first = step if place.node == ROOT else trail.first
        for letter, value in likely:
            heard = value + (hearing.blank if letter == place.letter else total)
            if heard == NEVER:
                continue
            longer = _Trail(trail.words, first, step, trail.letters + 1, trail.sure + math.exp(value))
            if place.node != STRANGE and (node := self._next[place.node].get(letter)):
                known = _meet(found, _Place(node, letter, place.before), longer, heard)
                known.letter = _sum(known.letter, heard)
            if place.node in (ROOT, STRANGE):
                heard += self.weights.letter + (self.weights.strange if place.node == ROOT else 0)
                begun = place.begun + self._names[letter]
                strange = _meet(found, _Place(STRANGE, letter, place.before, begun), longer, heard)
                strange.letter = _sum(strange.letter, heard)

    def _ended(self, place: _Place, hearing: _Hearing) -> tuple[_Place, _Hearing] | None:
        """The place before the next word, if a word can end here."""
        if place.node == STRANGE:
            if place.begun in self._known:
                return None
            word, text, cost = self.model.unknown, place.begun, 0.0
        elif (word := self._word[place.node]) is not None:
            text, cost = self.model.words[word], self._cost(word, place.before) + self.weights.word
        else:
            return None
        trail = hearing.trail
        found = Found(text, trail.first, trail.last + 1, trail.sure / trail.letters)
        ended = _Hearing(_Trail((*trail.words, found)), hearing.blank + cost, hearing.letter + cost)
        return _Place(ROOT, place.letter, (place.before[1], word)), ended

    def _promise(self, item: tuple[_Place, _Hearing]) -> float:
        """How likely a hearing is, its unfinished word counted as the commonest that it may become."""
        place, hearing = item
        return hearing.total + (self._best[place.node] if place.node > ROOT else 0.0)

    def _whole(self, hearings: dict[_Place, _Hearing]) -> Iterator[tuple[float, tuple[Found, ...]]]:
        """Likelihood and words of those that may end here, as sentences."""
        for place, hearing in hearings.items():
            if place.node != ROOT:
                if not (ended := self._ended(place, hearing)):
                    continue
                place, hearing = ended
            yield hearing.total + self._cost(self.model.end, place.before), hearing.trail.words


def _meet(found: dict[_Place, _Hearing], place: _Place, trail: _Trail, heard: float) -> _Hearing:
    """The hearing at a place, which keeps the likelier of the ways that lead there."""
    known = found.get(place)
    if known is None:
        known = found[place] = _Hearing(trail)
    elif heard > known.total:
        known.trail = trail
    return known


def _sum(a: float, b: float) -> float:
    """log(exp(a) + exp(b))"""
    if a < b:
        a, b = b, a
    return a if b == NEVER else a + math.log1p(math.exp(b - a))
