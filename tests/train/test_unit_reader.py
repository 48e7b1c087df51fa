import numpy as np
import torch

from train.data.mixture import letter_ids
from train.unit_reader import UnitReader, learn_to_read

WORDS = ("one", "two", "a tea")


def spelled_in_units(text, clusters=40):
    """Units that follow the letters one for one, four frames each."""
    return np.repeat([ord(c) % clusters for c in text], 4)


def test_it_learns_to_read_and_is_the_same_after_saving(tmp_path):
    texts = [WORDS[i % 3] for i in range(24)]
    units = [spelled_in_units(text) for text in texts]
    reader = learn_to_read(units, [letter_ids(text) for text in texts], 40, steps=60, batch=12)
    assert [reader.read(spelled_in_units(text)) for text in WORDS] == list(WORDS)
    reader.save(tmp_path)
    loaded = UnitReader.load(tmp_path)
    assert loaded.clusters == 40
    assert [loaded.read(spelled_in_units(text)) for text in WORDS] == list(WORDS)


def test_learning_is_repeatable():
    units, letters = [spelled_in_units(text) for text in WORDS], [letter_ids(text) for text in WORDS]
    first, second = (learn_to_read(units, letters, 40, steps=3, batch=2).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_checkpoint_without_a_reader_has_none(tmp_path):
    assert UnitReader.load(tmp_path) is None


def test_any_number_of_units_can_be_read():
    reader = UnitReader(8).eval()
    for count in (1, 2, 100):
        assert isinstance(reader.read(np.zeros(count, dtype=np.int64)), str)
