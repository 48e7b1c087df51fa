import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from most_core.word_search import Weights, WordModel, WordSearch
from train.data.mixture import LETTERS
from train.trigram import Trigram

LINES = [
    "a chronic money problem",
    "the money is here",
    "he is here",
    "the knight is here",
    "good night",
    "is it night",
]


@pytest.fixture(scope="module")
def search():
    return searching(LINES)


def searching(lines, **weights):
    words = [line.split() for line in lines]
    model = Trigram(words, {word for line in words for word in line}).word_model()
    return WordSearch(model, LETTERS, "<pad>", "|", Weights(**weights))


def text(found):
    return " ".join(word.text for word in found)


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


def test_what_is_spelled_right_is_read(search):
    for line in LINES:
        assert text(search.read(spelling(line))) == line


def test_a_known_word_is_found_in_a_wrong_spelling(search):
    heard = spelling("the monay is here", 0.8, {7: {"a": 0.5, "e": 0.2}})
    assert text(search.read(heard)) == "the money is here"


def test_the_words_before_decide_between_words_that_sound_alike(search):
    either = {"k": 0.3, "<pad>": 0.7}
    knight = torch.cat([spelling("k", 0.3, {0: either}), spelling("night")])
    assert text(search.read(torch.cat([spelling("good "), knight]))) == "good night"
    assert text(search.read(torch.cat([spelling("the "), knight, spelling(" is here")]))) == "the knight is here"


def test_a_space_that_was_not_heard_is_found(search):
    assert text(search.read(spelling("themoney ishere"))) == "the money is here"


def test_a_word_of_no_dictionary_is_spelled(search):
    assert text(search.read(spelling("the zebra is here", 0.999))) == "the zebra is here"


def test_a_letter_heard_twice_needs_a_blank_between():
    search = searching(["to", "too"])
    assert text(search.read(spelling("too"))) == "too"
    assert text(search.read(spelling("too", pause=0))) == "to"


def test_nothing_is_heard_in_silence(search):
    assert text(search.read(torch.empty(0, len(LETTERS)))) == ""
    assert text(search.read(torch.eye(len(LETTERS))[[0] * 20].clamp(min=1e-4).log())) == ""


def test_a_narrow_beam_still_reads():
    assert text(searching(LINES, beam=2).read(spelling("he is here"))) == "he is here"


def test_words_have_their_steps_and_confidence(search):
    sound = torch.cat([spelling("he ", 0.9), spelling("is", 0.6), spelling(" here", 0.9)])
    he, is_, here = search.read(sound)
    assert (he.text, is_.text, here.text) == ("he", "is", "here")
    assert (he.first, he.end) == (0, 3)
    assert (is_.first, is_.end) == (6, 9)
    assert is_.confidence < 0.65 < 0.85 < he.confidence <= 1


def test_the_model_is_the_trigram(tmp_path):
    words = [line.split() for line in LINES]
    trigram = Trigram(words, {word for line in words for word in line})
    model = trigram.word_model()
    ids = {word: place for place, word in enumerate(model.words)} | {"<s>": model.start, "</s>": model.end}
    for history in (("the", "money"), ("money", "the"), ("a", "chronic"), ("<s>", "the"), ("night", "night")):
        for word in ("is", "night", "problem", "</s>"):
            expected = math.log(trigram.probability(word, history))
            assert model.log_prob(ids[word], (ids[history[0]], ids[history[1]])) == pytest.approx(expected, abs=1e-5)
    assert model.log_prob(ids["he"], (model.start,) * 2) == pytest.approx(math.log(trigram.probability("he", ("<s>",))))
    after_unknown = model.log_prob(ids["is"], (ids["the"], model.unknown))
    assert after_unknown == pytest.approx(math.log(trigram.probability("is")), abs=1e-5)

    model.save(tmp_path / "words.safetensors")
    read = WordModel.load(tmp_path / "words.safetensors")
    assert read.words == model.words
    assert np.array_equal(read.triples, model.triples)
    assert np.allclose(read.pairs_log_prob, model.pairs_log_prob, atol=0.01)


def test_a_damaged_model_is_told_in_one_line(tmp_path):
    path = tmp_path / "words.safetensors"
    save_file({"words": torch.zeros(3, dtype=torch.uint8)}, path)
    with pytest.raises(ValueError, match="is no model of words"):
        WordModel.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged or not complete"):
        WordModel.load(path)
    with pytest.raises(FileNotFoundError, match="is missing"):
        WordModel.load(tmp_path / "none.safetensors")
