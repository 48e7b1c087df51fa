"""Recordings nobody wrote down: the stretches of them that a recognizer is sure of, with its words as transcripts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import NamedTuple

import numpy as np

from most_core.speech import SAMPLE_RATE
from train.data.utterance import Utterance

SILENCES = ("<s>", "</s>", "<sil>", "[SPEECH]", "[NOISE]")
SURE = 0.9  # least probability of a word on either side of which the recognizer may not hesitate
FEWEST_WORDS, LONGEST_PAUSE_S = 3, 0.5
FRAMES_PER_SECOND = 100


class HeardWord(NamedTuple):
    """A word with its times, and how probable the recognizer holds it."""

    text: str
    start_s: float
    end_s: float
    probability: float


def sure_stretches(words: Iterable[HeardWord]) -> Iterator[list[HeardWord]]:
    """Runs of at least three sure words without a long pause; the sure word at each end is given up where its
    neighbour was not sure, for then its own boundary is not."""
    stretch: list[HeardWord] = []
    for word in [*words, HeardWord("", 0.0, 0.0, 0.0)]:
        silent = word.text in SILENCES
        if word.probability >= SURE and not silent:
            stretch.append(word)
        elif not (silent and word.end_s - word.start_s <= LONGEST_PAUSE_S):
            kept = stretch if silent else stretch[:-1]
            if len(kept) >= FEWEST_WORDS:
                yield kept
            stretch = []


def pseudo_labelled(utterances: Iterable[Utterance]) -> Iterator[Utterance]:
    """The sure stretches of each recording, as utterances of their own, by PocketSphinx and its US English model."""
    try:
        from pocketsphinx import Decoder
    except ImportError:
        raise ModuleNotFoundError("recordings are transcribed with PocketSphinx: pip install pocketsphinx") from None
    decoder = Decoder(loglevel="FATAL", maxhmmpf=5000)
    for utterance in utterances:
        peak = max(float(np.abs(utterance.wave).max()), 1e-3)
        decoder.start_utt()
        decoder.process_raw((utterance.wave * (0.8 * 32767 / peak)).astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        if decoder.hyp() is None:
            continue
        heard = [
            HeardWord(s.word.partition("(")[0], s.start_frame / 100, (s.end_frame + 1) / 100, s.prob)
            for s in decoder.seg()
        ]
        for number, stretch in enumerate(sure_stretches(heard)):
            first, last = int(stretch[0].start_s * SAMPLE_RATE), int(stretch[-1].end_s * SAMPLE_RATE)
            plain = {field.name: getattr(utterance, field.name) for field in fields(Utterance)}
            plain |= {"id": f"{utterance.id}/{number}", "wave": utterance.wave[first:last]}
            yield Utterance(**{**plain, "text": " ".join(word.text for word in stretch)})
