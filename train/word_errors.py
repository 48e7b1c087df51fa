"""The text measure: words wrong after Whisper's English normalizer, and how far a figure of so few utterances reaches.

The normalizer makes one spelling of "colour" and "color", "isn't" and "is not", and writes numbers as digits. It does
so by gluing: "three, six, one" becomes "361" and "plus six" "+6", so that one digit misheard in a list is an error in a
list of one word, and three are one error, too; "ten o'clock" even becomes "100 clock". As both sides go through it,
nothing right counts as wrong, but numbers weigh otherwise than they were spoken: `verbatim_errors` counts words as they
are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import jiwer
import numpy as np
from whisper_normalizer.english import EnglishTextNormalizer

RESAMPLES = 1000


def word_errors(said: Sequence[str], heard: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(errors, words) of each utterance: words substituted, inserted or deleted, and words said, normalized.

    Where nothing is left of what was said ("Um."), there are no words, and whatever was heard is an error.
    """
    normalize = _normalizer()
    return verbatim_errors([normalize(text) for text in said], [normalize(text) for text in heard])


def verbatim_errors(said: Sequence[str], heard: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The same of the words between the spaces, as they are spelled."""
    if len(said) != len(heard):
        raise ValueError(f"{len(said)} utterances were said, but {len(heard)} heard: give one text for each")
    found = jiwer.process_words(list(said), list(heard))
    return _counted(found, said), np.array([len(text.split()) for text in said], dtype=int)


def character_errors(said: Sequence[str], heard: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(errors, characters) of each utterance, normalized as words are; the spaces between words count."""
    normalize = _normalizer()
    said, heard = [normalize(text) for text in said], [normalize(text) for text in heard]
    return _counted(jiwer.process_characters(said, heard), said), np.array([len(text) for text in said], dtype=int)


def same_words(said: Sequence[str], heard: Sequence[str]) -> np.ndarray:
    """Whether each was heard without an error: equal after normalization."""
    normalize = _normalizer()
    return np.array([normalize(a) == normalize(b) for a, b in zip(said, heard, strict=True)], dtype=bool)


def _counted(found: jiwer.WordOutput | jiwer.CharacterOutput, said: Sequence[str]) -> np.ndarray:
    errors = [
        sum(
            max(part.ref_end_idx - part.ref_start_idx, part.hyp_end_idx - part.hyp_start_idx)
            for part in utterance
            if part.type != "equal"
        )
        for utterance in found.alignments
    ]
    return np.array(errors[: len(said)], dtype=int)


@cache
def _normalizer() -> EnglishTextNormalizer:
    return EnglishTextNormalizer()  # reads a table of spellings


def rate(errors: np.ndarray, words: np.ndarray) -> float:
    """Errors a word, over all utterances together; nan where there are no words."""
    return float(errors.sum() / words.sum()) if words.sum() else float("nan")


def interval(errors: np.ndarray, words: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of `rate`, by drawing as many utterances again and again with replacement."""
    if not words.sum():
        return float("nan"), float("nan")
    rows = np.random.default_rng(seed).integers(len(words), size=(RESAMPLES, len(words)))
    totals = words[rows].sum(1)
    rates = errors[rows].sum(1)[totals > 0] / totals[totals > 0]
    low, high = np.quantile(rates, (0.025, 0.975))
    return float(low), float(high)
