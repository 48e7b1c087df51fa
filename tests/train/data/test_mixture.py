from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.train.conftest import spoken, write_folder
from train.data.augment import NO_AUGMENTATION, Augmentation
from train.data.mixture import LETTERS, Masking, Speech, SpeechMixture, letter_ids, normalized

CONVOLUTIONS = [(32, 8), (10, 5), (8, 4), (4, 2), (4, 2)]


UNMASKED = Masking(0.0)


def mixture(sources, augmentation=NO_AUGMENTATION, masking=UNMASKED, **settings):
    given = {"seed": 1, "micro_batch_seconds": 4.0, "frames_of": CONVOLUTIONS} | settings
    return SpeechMixture(sources, augmentation, masking, **given)


def rows_of(targets):
    return targets.ids.split(targets.lengths.tolist())


def test_letters_are_numbered_from_the_blank():
    assert LETTERS["<pad>"] == 0
    assert letter_ids("It's a!") == [LETTERS[c] for c in ("i", "t", "'", "s", "|", "a")]
    assert len(LETTERS) == 29


def test_any_batch_is_the_same_at_any_time(shards):
    sources = {"a": Speech(shards, real=True)}
    first = mixture(sources, Augmentation(), Masking(0.05))
    wanted = first[7]
    _ = first[3], first[8]
    again, other_seed = mixture(sources, Augmentation(), Masking(0.05))[7], mixture(sources, Augmentation(), seed=2)[7]
    assert torch.equal(wanted.waves, again.waves)
    assert torch.equal(wanted.mask, again.mask)
    assert torch.equal(wanted.letters.ids, again.letters.ids)
    assert wanted.waves.shape != other_seed.waves.shape or not torch.equal(wanted.waves, other_seed.waves)
    assert wanted.mask.any()


def test_targets_belong_to_their_waves(shards):
    speech = mixture({"a": Speech(shards)})
    by_length = {len(spoken(0, text).wave): letter_ids(text) for text in speech.folders[0].texts}
    for index in range(5):
        batch = speech[index]
        assert len(batch.phones.lengths) == len(batch.waves)
        for wave, letters in zip(batch.waves, rows_of(batch.letters)):
            silence = wave[-1]  # what follows the voice in its row, or its own last sample
            end = int(torch.nonzero((wave - silence).abs() > 1e-3).max()) + 1
            nearest = min(by_length, key=lambda length: abs(length - end))
            assert letters.tolist() == by_length[nearest]


def test_frames_of_the_mask_are_the_encoders(shards):
    from train.encoder import Ears, Shape

    shape = Shape(conv_dim=(8, 8, 8, 8, 8), hidden=16, layers=1, heads=2, feed_forward=16, middle_layer=1)
    ears = Ears(shape)
    for index in range(4):
        batch = mixture({"a": Speech(shards)}, Augmentation(), Masking(0.1))[index]
        logits, _ = ears(batch.waves, batch.mask)
        assert logits.shape[1] == 2 * batch.mask.shape[1]


def test_hours_are_shared_by_weight(tmp_path):
    few = write_folder(tmp_path / "few", [spoken(i, "yes", "few") for i in range(3)])
    many = write_folder(tmp_path / "many", [spoken(i, "nope", "many") for i in range(60)])
    speech = mixture({"few": Speech(few, weight=3.0), "many": Speech(many, weight=1.0)})
    drawn = [letters.tolist() for i in range(60) for letters in rows_of(speech[i].letters)]
    seconds = {"few": sum(3 for d in drawn if len(d) == 3), "many": sum(4 for d in drawn if len(d) == 4)}
    assert seconds["few"] / sum(seconds.values()) == pytest.approx(0.75, abs=0.06)


def test_short_ones_come_first(shards):
    early = mixture({"a": Speech(shards)}, short_first=1000)
    assert {early[i].letters.lengths.max().item() for i in range(8)} == {3}
    assert {early[1000 + i].letters.lengths.max().item() for i in range(60)} == {3, 7, 13, 20, 23}


def test_what_cannot_be_spelled_in_time_is_left_out(tmp_path):
    hurried = replace(spoken(0, "seven seven"), wave=spoken(0, "x").wave)
    silent = replace(spoken(1, "yes"), text=None)
    folder = write_folder(tmp_path / "odd", [hurried, silent, spoken(2, "yes")])
    assert mixture({"a": Speech(folder)}).dropped == 2
    folder = write_folder(tmp_path / "none", [hurried, silent])
    with pytest.raises(ValueError, match="nothing to train on"):
        mixture({"a": Speech(folder)})


def test_rows_are_normalized():
    rows = normalized(torch.from_numpy(np.random.default_rng(0).normal(3, 5, (2, 1000)).astype(np.float32)))
    assert torch.allclose(rows.mean(1), torch.zeros(2), atol=1e-5)
    assert torch.allclose(rows.var(1, correction=0), torch.ones(2), atol=1e-4)
    assert normalized(torch.zeros(1, 100)).isfinite().all()
