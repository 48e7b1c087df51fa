"""A small trigram language model, for a recognizer that must not be better informed than it should be.

Interpolated Kneser-Ney smoothing: what follows a pair of words is a discounted count plus what follows the second of
them, and there words count by how many different ones they follow, not by how often. Written as ARPA, which
PocketSphinx reads.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from most_core.word_search import WordModel

START, END = "<s>", "</s>"
NEVER = -99.0  # ARPA's logarithm of 0

Gram = tuple[str, ...]


class Trigram:
    """Probabilities of words after up to two others. `vocabulary` are all words it can ever expect."""

    def __init__(self, sentences: Iterable[Sequence[str]], vocabulary: Collection[str]) -> None:
        """Learn from sentences as words. One with a word outside of the vocabulary is an error."""
        self.words = sorted(set(vocabulary) - {START, END})
        known = {START, END, *self.words}
        counts: tuple[Counter[Gram], Counter[Gram]] = (Counter(), Counter())  # of two and three words
        for sentence in sentences:
            line = (START, *sentence, END)
            if strange := [word for word in sentence if word not in known or word in (START, END)]:
                raise ValueError(f"{strange[0]!r} is not in the vocabulary: leave out its sentence, or add it")
            counts[0].update(pairwise(line))
            counts[1].update(zip(line, line[1:], line[2:]))
        if not counts[0]:
            raise ValueError("there are no sentences: a language model learns from some")
        # A pair counts as often as there are words before it; of those that begin a sentence there are none before
        pairs = Counter(gram[1:] for gram in counts[1])
        pairs.update({gram: count for gram, count in counts[0].items() if gram[0] == START})
        singles = Counter(gram[1:] for gram in pairs)
        self._levels = [_Level(singles), _Level(pairs), _Level(counts[1])]

    def probability(self, word: str, history: Sequence[str] = ()) -> float:
        """P(word | last two of history); `word` may be the end of the sentence."""
        history = tuple(history)[-2:]
        share = self.probability(word, history[1:]) if history else 1 / (len(self.words) + 1)
        return self._levels[len(history)].interpolated((*history, word), share)

    def perplexity(self, sentences: Iterable[Sequence[str]]) -> float:
        """Of the words of these sentences and their ends."""
        total = number = 0
        for sentence in sentences:
            line = (START, *sentence, END)
            for end in range(1, len(line)):
                total += math.log(self.probability(line[end], line[max(0, end - 2) : end]))
                number += 1
        return math.exp(-total / number)

    def write(self, path: Path) -> None:
        """Write it as an ARPA file."""
        grams = [[(word,) for word in (START, END, *self.words)], *(sorted(each.counts) for each in self._levels[1:])]
        with open(path, "w", encoding="utf-8") as file:
            file.write("\\data\\\n")
            file.writelines(f"ngram {order}={len(each)}\n" for order, each in enumerate(grams, 1))
            for order, each in enumerate(grams, 1):
                file.write(f"\n\\{order}-grams:\n")
                file.writelines(self._lines(each, order))
            file.write("\n\\end\\\n")

    def word_model(self) -> WordModel:
        """The same as the tables that `most_core` reads words with."""
        ids = {word: place for place, word in enumerate((*self.words, START, END))}
        size = len(ids) + 1
        singles, rest = np.full(size, NEVER, np.float32), np.zeros(size, np.float32)
        for word, place in ids.items():
            if word != START:
                singles[place] = math.log(self.probability(word))
            rest[place] = math.log(self._levels[1].left_over((word,)))
        pairs = sorted((ids[a] * size + ids[b], a, b) for a, b in self._levels[1].counts)
        numbers = {(a, b): place for place, (_, a, b) in enumerate(pairs)}
        triples = sorted((numbers[a, b] * size + ids[c], a, b, c) for a, b, c in self._levels[2].counts)
        return WordModel(
            words=tuple(self.words),
            singles=singles,
            singles_rest=rest,
            pairs=np.array([number for number, *_ in pairs], np.int64),
            pairs_log_prob=_logs(self.probability(b, (a,)) for _, a, b in pairs),
            pairs_rest=_logs(self._levels[2].left_over((a, b)) for _, a, b in pairs),
            triples=np.array([number for number, *_ in triples], np.int64),
            triples_log_prob=_logs(self.probability(c, (a, b)) for _, a, b, c in triples),
        )

    def _lines(self, grams: Iterable[Gram], order: int) -> Iterator[str]:
        for gram in grams:
            likely = NEVER if gram == (START,) else math.log10(self.probability(gram[-1], gram[:-1]))
            back_off = ""
            if order < 3 and gram[-1] != END:
                back_off = f" {math.log10(self._levels[order].left_over(gram)):.5f}"
            yield f"{likely:.5f} {' '.join(gram)}{back_off}\n"


def _logs(probabilities: Iterable[float]) -> np.ndarray:
    return np.log(np.fromiter(probabilities, np.float64)).astype(np.float32)


class _Level:
    """Counts of words after histories of one length, discounted."""

    def __init__(self, counts: Counter[Gram]) -> None:
        self.counts = counts
        self._totals: Counter[Gram] = Counter()
        self._kinds: Counter[Gram] = Counter()
        for gram, count in counts.items():
            self._totals[gram[:-1]] += count
            self._kinds[gram[:-1]] += 1
        once, twice = (sum(count == many for count in counts.values()) for many in (1, 2))
        # Ney's estimate, which a text of a few phrases said over and over leads astray
        self._discount = min(0.9, max(0.3, once / max(1, once + 2 * twice)))

    def interpolated(self, gram: Gram, share: float) -> float:
        """Probability of the last word after the others; `share` is the one after a shorter history."""
        total = self._totals[gram[:-1]]
        if not total:
            return share
        count = self.counts[gram]
        own = max(0.0, count - self._discount) / total
        return own + self.left_over(gram[:-1]) * share

    def left_over(self, history: Gram) -> float:
        """What the words seen after a history leave to all others."""
        total = self._totals[history]
        return self._discount * self._kinds[history] / total if total else 1.0
