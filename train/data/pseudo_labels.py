"""Recordings nobody wrote down: the stretches of them that a recognizer is sure of, with its words as transcripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields

from most_core.speech import SAMPLE_RATE, Word
from train.data.readers import read
from train.data.utterance import Utterance
from train.recognizer import words_of_all

FEWEST_WORDS, LONGEST_PAUSE_S = 3, 0.6
MARGIN_S = 0.08  # kept on either side of a stretch


def sure_stretches(words: Iterable[Word], sure: float) -> Iterator[list[Word]]:
    """Runs of at least three words of confidence `sure` or more, without a long pause.

    A sure word beside an unsure one is given up, for where it ends is not sure either.
    """
    run: list[Word] = []
    for word in [*words, None]:
        broken = word is None or word.confidence < sure
        if run and (broken or word.start_s - run[-1].end_s > LONGEST_PAUSE_S):
            kept = run[:-1] if broken and word is not None else run
            if len(kept) >= FEWEST_WORDS:
                yield kept
            run = []
        if word is not None and not broken:
            run.append(word)


def pseudo_labelled(
    utterances: Iterable[Utterance], heard: Iterable[Iterable[Word]], sure: float
) -> Iterator[Utterance]:
    """The sure stretches of each recording, as utterances of their own. `heard` are a recognizer's words of each."""
    for utterance, words in zip(utterances, heard, strict=True):
        for number, stretch in enumerate(sure_stretches(words, sure)):
            first = max(0, int((stretch[0].start_s - MARGIN_S) * SAMPLE_RATE))
            last = int((stretch[-1].end_s + MARGIN_S) * SAMPLE_RATE)
            plain = {field.name: getattr(utterance, field.name) for field in fields(Utterance)}
            plain |= {"id": f"{utterance.id}/{number}", "wave": utterance.wave[first:last]}
            yield Utterance(**{**plain, "text": " ".join(word.text for word in stretch)})


def _main(folder: str) -> None:
    """Print what PocketSphinx hears in all recordings of a folder, as JSON for `corpus`'s `transcripts`."""
    recordings = list(read("folder", folder))
    heard = words_of_all([recording.wave for recording in recordings])
    texts = {item.id: " ".join(word.text for word in words) for item, words in zip(recordings, heard) if words}
    print(json.dumps(texts, indent=1))


if __name__ == "__main__":
    _main(sys.argv[1])
