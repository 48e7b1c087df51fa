import numpy as np

from most_core.speech import Word
from tests.train.conftest import spoken
from train.data.pseudo_labels import pseudo_labelled, sure_stretches


def words(*marks):
    """A word a second: its confidence."""
    return [Word(f"w{i}", i, i + 0.9, sure) for i, sure in enumerate(marks)]


def texts(heard):
    return [" ".join(word.text for word in stretch) for stretch in sure_stretches(heard, 0.9)]


def test_runs_of_sure_words_are_kept():
    assert texts(words(0.95, 0.99, 0.97)) == ["w0 w1 w2"]
    assert texts(words(0.95, 0.99)) == []
    assert texts([]) == []


def test_a_word_beside_an_unsure_one_is_given_up():
    assert texts(words(1, 1, 1, 1, 0.2, 1, 1, 1)) == ["w0 w1 w2", "w5 w6 w7"]
    assert texts(words(1, 1, 1, 0.2)) == []


def test_a_long_pause_parts():
    heard = words(1, 1, 1, 1, 1, 1)
    later = [word._replace(start_s=word.start_s + 2, end_s=word.end_s + 2) for word in heard[3:]]
    assert texts(heard[:3] + later) == ["w0 w1 w2", "w3 w4 w5"]


def test_stretches_become_utterances_of_their_own():
    utterance = spoken(0, "x" * 200)
    heard = [word._replace(start_s=word.start_s + 1, end_s=word.end_s + 1) for word in words(1, 1, 1)]
    (found,) = pseudo_labelled([utterance], [heard], 0.9)
    assert found.text == "w0 w1 w2"
    assert found.id == "u0/0"
    assert np.array_equal(found.wave, utterance.wave[int(0.92 * 16_000) : int(3.98 * 16_000)])
    assert (found.speaker, found.licence) == (utterance.speaker, utterance.licence)
