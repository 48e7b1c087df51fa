import math

import pytest

from train.trigram import END, START, Trigram

TEXT = [line.split() for line in ("a cat sat", "a cat ran", "the cat sat", "a dog ran", "a cat sat here", "dog")]
WORDS = ("a", "the", "cat", "dog", "sat", "ran", "here", "never")


@pytest.fixture
def model():
    return Trigram(TEXT, WORDS)


@pytest.mark.parametrize("history", [(), (START,), ("a",), ("a", "cat"), (START, "a"), ("never", "ran"), ("here",)])
def test_what_can_follow_adds_up_to_one(model, history):
    assert sum(model.probability(word, history) for word in (*WORDS, END)) == pytest.approx(1)
    assert all(model.probability(word, history) > 0 for word in (*WORDS, END))


def test_what_was_read_is_likelier(model):
    assert model.probability("sat", ("a", "cat")) > model.probability("ran", ("a", "cat"))
    assert model.probability("ran", ("a", "cat")) > model.probability("here", ("a", "cat"))
    assert model.probability("never") == min(model.probability(word) for word in WORDS)
    # "cat" is said oftenest, but after fewer different words than those it would stand for elsewhere
    assert model.perplexity(TEXT) < len(WORDS) / 2 < model.perplexity([["here", "the", "never"]])


def test_the_file_says_the_same(model, tmp_path):
    path = tmp_path / "model.arpa"
    model.write(path)
    arpa = read(path)
    for history in [(), ("a",), ("a", "cat"), (START, "a"), ("never", "ran"), ("dog", "sat"), (START, "dog")]:
        for word in (*WORDS, END):
            assert back_off(arpa, (*history, word)) == pytest.approx(
                math.log10(model.probability(word, history)), abs=1e-4
            )


def read(path):
    """ARPA, checked as it is read: every section has as many lines as the head says."""
    head, *sections = path.read_text().split("\n\n")
    counts = [int(line.partition("=")[2]) for line in head.splitlines()[1:]]
    grams = {}
    for order, section in enumerate(sections[:-1], 1):
        title, *lines = section.strip().splitlines()
        assert title == f"\\{order}-grams:"
        assert len(lines) == counts[order - 1]
        for line in lines:
            likely, *rest = line.split()
            grams[tuple(rest[:order])] = float(likely), float(rest[order]) if len(rest) > order else 0.0
    assert sections[-1].strip() == "\\end\\"
    return grams


def back_off(arpa, gram):
    if gram in arpa:
        return arpa[gram][0]
    return arpa.get(gram[:-1], (0.0, 0.0))[1] + back_off(arpa, gram[1:])


def test_words_outside_of_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="'mouse' is not in the vocabulary"):
        Trigram([["a", "mouse"]], WORDS)
    with pytest.raises(ValueError, match="no sentences"):
        Trigram([], WORDS)
