import re
from pathlib import Path

import pytest

from train.data import english
from train.data.utterance import spoken_letters


def draws(text, split, count, seed=0):
    return [text(split, seed, index) for index in range(count)]


def letters_of(texts):
    return {spoken_letters(text) for text in texts}


@pytest.fixture(scope="module")
def train_sentences():
    return draws(english.sentence, "train", 20_000)


def test_no_test_text_is_ever_a_training_text(train_sentences):
    train = letters_of(train_sentences) | letters_of(english.all_sentences("train"))
    train |= letters_of(draws(english.word_list, "train", 5_000))
    test = letters_of(draws(english.sentence, "test", 3_000)) | letters_of(english.all_sentences("test"))
    test |= {letters for letters in letters_of(draws(english.word_list, "test", 2_000)) if " " in letters}
    assert len(test) > 3_000
    assert not train & test


def test_part_of_the_real_sentences_is_held_out():
    train, test = english.all_sentences("train"), english.all_sentences("test")
    assert len(train) > 19_000
    assert len(test) > 1500  # a tenth by their letters, less those with words that training does not have
    known = english.vocabulary()
    assert all(word in known for text in test for word in spoken_letters(text).split())


def test_about_two_sentences_in_three_are_real(train_sentences):
    real = set(english.all_sentences("train"))
    assert sum(text in real for text in train_sentences) / len(train_sentences) == pytest.approx(0.65, abs=0.02)


def test_the_vocabulary_is_large_and_holds_every_word_of_training(train_sentences):
    vocabulary = english.vocabulary()
    assert len(vocabulary) > 9_000
    assert all(re.fullmatch(r"[a-z]+('[a-z]+)*", word) for word in vocabulary)
    assert {word for letters in letters_of(train_sentences) for word in letters.split()} <= vocabulary


def test_a_text_depends_on_split_seed_and_index_alone():
    for text in (english.sentence, english.word_list):
        backwards = [text("train", 3, index) for index in reversed(range(50))]
        assert backwards[::-1] == draws(text, "train", 50, seed=3)
        assert draws(text, "train", 50, seed=3) != draws(text, "train", 50, seed=4)
        assert draws(text, "train", 50) != draws(text, "test", 50)


def test_sentences_are_spoken_form_of_3_to_16_words(train_sentences):
    for text in train_sentences:
        assert re.fullmatch(r"[A-Z][A-Za-z', ]*[.?!]", text), text
        assert not re.search(r"  | ,", text), text
        assert 3 <= len(spoken_letters(text).split()) <= 16, text


def test_word_lists_have_one_to_eight_known_words():
    known = english.vocabulary() | set(english.LETTERS.lower())
    for text in draws(english.word_list, "train", 3_000):
        words = spoken_letters(text).split()
        assert 1 <= len(words) <= 8
        assert known.issuperset(words), text


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'dev'"):
        english.sentence("dev", 0, 0)


@pytest.mark.parametrize(
    ("phrase", "form", "inflected"),
    [
        ("bring a bag home", "past", "brought a bag home"),
        ("carry it", "now", "carries it"),
        ("carry it", "past", "carried it"),
        ("play chess", "past", "played chess"),
        ("stop", "ing", "stopping"),
        ("visit her", "ing", "visiting her"),
        ("make tea", "ing", "making tea"),
        ("agree with him", "ing", "agreeing with him"),
        ("agree with him", "past", "agreed with him"),
        ("eat", "part", "eaten"),
        ("have time", "now", "has time"),
        ("wash up", "now", "washes up"),
        ("go", "", "go"),
    ],
)
def test_verbs_take_their_forms(phrase, form, inflected):
    assert english._in_form(phrase, form) == inflected


@pytest.mark.parametrize(
    ("noun", "plural"),
    [
        ("box", "boxes"),
        ("cherry", "cherries"),
        ("toy", "toys"),
        ("night knife", "night knives"),
        ("cup of tea", "cups of tea"),
    ],
)
def test_nouns_take_their_plural(noun, plural):
    assert english._plural(noun) == plural


def test_every_pattern_can_be_said():
    grammar = english._grammar()
    slots = {slot for entries in grammar.values() for entry in entries for slot in re.findall(r"\{([\w']+)", entry)}
    unknown = slots - set(grammar) - set(english._AGREEMENT["I"]) - {"S", "P"}
    assert not unknown
    assert len(grammar["pattern"]) >= 30


def test_the_licence_travels_with_the_sentences():
    readme = (Path(english.__file__).with_name("text") / "README.md").read_text(encoding="utf-8")
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in readme
