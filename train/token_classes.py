"""Classes of tokens by simple means, to see whether experts tell them apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from most_core.metrics import UNKNOWN
from most_core.speech import Word
from train.data.pronunciation import PHONES, phone_ids
from train.data.world.coffee import DRINKS, MILKS, ROASTS, SUGARS
from train.data.world.tables import listed

WORD_CLASSES = ("marker", "punctuation", "number", "coffee", "function", "content")
ROLES = ("user", "assistant")
SIDES = ("heard", "spoken")  # frames of the user, units of the reply
LOUDNESS = ("quiet", "loud")
SOUNDS = ("none", "vowel", "stop", "fricative", "nasal", "glide")

NUMBERS = frozenset(
    listed("""
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million half first second
    third fourth fifth sixth seventh eighth ninth tenth plus minus times
    """)
)
FUNCTION_WORDS = frozenset(
    listed("""
    a an the this that these those some any no not and or but if than then so as of to in on at by for with from into
    about after before between over under up down out off i you he she it we they me him her us them my your his its our
    their is am are was were be been being do does did have has had can could will would shall should may might must
    what which who whom whose when where why how there here let's i'm it's that's what's you're i'd please
    """)
)
COFFEE = frozenset(" ".join((*DRINKS, *MILKS, *SUGARS, *ROASTS)).split())
_KINDS = {
    "stop": listed("B D G K P T"),
    "fricative": listed("CH DH F HH JH S SH TH V Z ZH"),
    "nasal": listed("M N NG"),
    "glide": listed("L R W Y"),
}
_SOUND_OF = {phone: SOUNDS.index(kind) for kind, phones in _KINDS.items() for phone in phones}
SOUND_OF_PHONE = {number: _SOUND_OF.get(phone, SOUNDS.index("vowel")) for phone, number in PHONES.items()}
QUIET_DB = -35.0  # under the loudest frame


def word_class(word: str) -> int:
    """Index into WORD_CLASSES of a whole word."""
    word = word.strip().lower().replace("’", "'")
    if not any(character.isalnum() for character in word):
        kind = "punctuation"
    elif any(character.isdigit() for character in word) or word in NUMBERS:
        kind = "number"
    elif word in COFFEE:
        kind = "coffee"
    else:
        kind = "function" if word in FUNCTION_WORDS else "content"
    return WORD_CLASSES.index(kind)


def word_classes(pieces: Sequence[str], special: Sequence[bool]) -> np.ndarray:
    """Of each token the class of the word that it is a piece of. `special` tokens are markers and part words."""
    classes = np.full(len(pieces), WORD_CLASSES.index("marker"))
    word: list[int] = []

    def close() -> None:
        classes[word] = word_class("".join(pieces[place] for place in word))
        word.clear()

    for place, (piece, marker) in enumerate(zip(pieces, special)):
        goes_on = word and not marker and piece and _of_word(pieces[word[-1]][-1:]) and _of_word(piece[0])
        if word and not goes_on:
            close()
        if not marker:
            word.append(place)
    if word:
        close()
    return classes


def _of_word(character: str) -> bool:
    return character.isalnum() or character in ("'", "’")


def loudness(wave: np.ndarray, frames: int, samples: int) -> np.ndarray:
    """Index into LOUDNESS of each frame of so many samples: quiet is 35 dB below the loudest. What the wave is short
    of is silence."""
    padded = np.zeros(frames * samples)
    padded[: len(wave)] = wave[: len(padded)]
    power = np.square(padded).reshape(frames, samples).mean(1)
    return (power > power.max(initial=0) * 10 ** (QUIET_DB / 10)).astype(int)


def sounds(words: Sequence[Word], frames: int, frames_per_second: float) -> np.ndarray:
    """Index into SOUNDS of each frame: the phones of a word share its time evenly, which is roughly right. UNKNOWN in
    words that no dictionary has, "none" outside of words."""
    classes = np.full(frames, SOUNDS.index("none"))
    for word in words:
        start = max(0, round(word.start_s * frames_per_second))
        stop = min(frames, max(start + 1, round(word.end_s * frames_per_second)))
        phones = phone_ids(word.text)
        kinds = np.array([SOUND_OF_PHONE[phone] for phone in phones] or [UNKNOWN])
        classes[start:stop] = kinds[np.arange(stop - start) * len(kinds) // max(1, stop - start)]
    return classes
