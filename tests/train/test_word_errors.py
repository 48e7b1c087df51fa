import numpy as np
import pytest

from train.word_errors import interval, rate, verbatim_errors, word_errors


def test_each_kind_of_error_counts_once_for_its_utterance():
    said = ["the cat sat", "the cat sat", "the cat sat", "the cat sat", "the cat sat"]
    heard = ["the cat sat", "the dog sat", "the cat", "a the cat sat", "dogs run far away"]
    errors, words = word_errors(said, heard)
    assert errors.tolist() == [0, 1, 1, 1, 4]
    assert words.tolist() == [3] * 5


def test_spelling_and_punctuation_are_no_errors():
    said = ["What colour isn't it?", "It costs twenty-one dollars.", "Um, hello!"]
    heard = ["what color is not it", "it costs $21", "hello"]
    assert word_errors(said, heard)[0].tolist() == [0, 0, 0]
    assert verbatim_errors(["isn't"], ["is not"])[0].tolist() == [2]


def test_a_list_of_digits_is_one_word_unless_taken_verbatim():
    said, heard = ["three six one"], ["three nine one"]
    assert [part.tolist() for part in word_errors(said, heard)] == [[1], [1]]
    assert [part.tolist() for part in verbatim_errors(said, heard)] == [[1], [3]]


def test_nothing_said_is_no_word_and_what_is_heard_an_error():
    errors, words = word_errors(["Um.", "", "yes"], ["oh dear", "", ""])
    assert errors.tolist() == [2, 0, 1]
    assert words.tolist() == [0, 0, 1]
    assert rate(errors, words) == 3
    errors, words = word_errors(["Um."], ["yes"])
    assert np.isnan(rate(errors, words))
    assert np.isnan(interval(errors, words)).all()
    assert [part.shape for part in word_errors([], [])] == [(0,), (0,)]


def test_as_many_texts_must_be_heard_as_said():
    with pytest.raises(ValueError, match="2 utterances were said, but 1 heard"):
        word_errors(["a", "b"], ["a"])


def test_the_interval_is_that_of_a_share():
    rng = np.random.default_rng(0)
    words = np.full(300, 7)
    errors = rng.binomial(7, 0.1, size=300)
    low, high = interval(errors, words)
    expected = 1.96 * (0.1 * 0.9 / 2100) ** 0.5
    middle = rate(errors, words)
    assert middle - low == pytest.approx(expected, rel=0.25)
    assert high - middle == pytest.approx(expected, rel=0.25)
    assert interval(errors, words) == (low, high)
    assert interval(errors, words, seed=1) != (low, high)


def test_utterances_without_words_do_not_break_the_interval():
    assert interval(np.array([0, 1]), np.array([0, 4])) == (0.25, 0.25)
