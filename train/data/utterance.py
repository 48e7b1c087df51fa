"""One spoken item, wherever it came from, and the letters by which the ears are taught and judged."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Utterance:
    """`wave` is float32 mono at 16 kHz in [-1, 1]; `text` is its spoken form, or None where nobody wrote it down."""

    id: str
    speaker: str
    text: str | None
    wave: np.ndarray
    source: str
    licence: str
    split: str = "train"
    task: str = "asr"


def spoken_letters(text: str) -> str:
    """The characters a CTC head spells: lower-case letters, apostrophes inside words, single spaces.

    Accents are dropped and hyphens part words; digits or another script are an error, for they have no one spelling.
    """
    plain = unicodedata.normalize("NFKD", text.lower().replace("’", "'"))
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    for character in plain:
        if character.isalnum() and not "a" <= character <= "z":
            raise ValueError(
                f"{text!r} holds {character!r}, which has no spelling in letters: write it as it is spoken"
            )
    return " ".join(word for part in re.split(r"[^a-z']+", plain) if (word := part.strip("'")))
