import pytest
import torch

from train.data.mixture import LETTERS
from train.trigram import Trigram
from train.word_search import Weights, WordSearch

LINES = [
    "a chronic money problem",
    "the money is here",
    "he is here",
    "the knight is here",
    "good night",
    "is it night",
]
WORDS = {word for line in LINES for word in line.split()}


@pytest.fixture(scope="module")
def trigram():
    return Trigram([line.split() for line in LINES], WORDS)


def spelling(text, sure=0.9, doubts=None, pause=1):
    """Letter probabilities that spell `text`, a blank between letters; `doubts` are what else some places may be."""
    silence = torch.eye(len(LETTERS))[0] + 1e-4
    rows = []
    for place, letter in enumerate(text):
        row = torch.full((len(LETTERS),), (1 - sure) / len(LETTERS))
        row[LETTERS["|" if letter == " " else letter]] = sure
        for other, share in (doubts or {}).get(place, {}).items():
            row[LETTERS[other]] = share
        rows += [row, *[silence] * pause]
    probabilities = torch.stack(rows)
    return (probabilities / probabilities.sum(-1, keepdim=True)).log()


def test_what_is_spelled_right_is_read(trigram):
    search = WordSearch(trigram, LETTERS)
    for line in LINES:
        assert search.read(spelling(line)) == line


def test_a_known_word_is_found_in_a_wrong_spelling(trigram):
    search = WordSearch(trigram, LETTERS)
    heard = spelling("the monay is here", 0.8, {7: {"a": 0.5, "e": 0.2}})
    assert search.read(heard) == "the money is here"


def test_the_words_before_decide_between_words_that_sound_alike(trigram):
    search = WordSearch(trigram, LETTERS)
    either = {"k": 0.3, "<pad>": 0.7}
    knight = torch.cat([spelling("k", 0.3, {0: either}), spelling("night")])
    assert search.read(torch.cat([spelling("good "), knight])) == "good night"
    assert search.read(torch.cat([spelling("the "), knight, spelling(" is here")])) == "the knight is here"


def test_a_space_that_was_not_heard_is_found(trigram):
    assert WordSearch(trigram, LETTERS).read(spelling("themoney ishere")) == "the money is here"


def test_a_word_of_no_dictionary_is_spelled(trigram):
    assert WordSearch(trigram, LETTERS).read(spelling("the zebra is here", 0.999)) == "the zebra is here"


def test_a_letter_heard_twice_needs_a_blank_between(trigram):
    search = WordSearch(Trigram([["to"], ["too"]], {"to", "too"}), LETTERS)
    assert search.read(spelling("too")) == "too"
    assert search.read(spelling("too", pause=0)) == "to"


def test_nothing_is_heard_in_silence(trigram):
    search = WordSearch(trigram, LETTERS)
    assert search.read(torch.empty(0, len(LETTERS))) == ""
    assert search.read(torch.eye(len(LETTERS))[[0] * 20].clamp(min=1e-4).log()) == ""


def test_a_narrow_beam_still_reads(trigram):
    assert WordSearch(trigram, LETTERS, Weights(beam=2)).read(spelling("he is here")) == "he is here"
