import numpy as np
import pytest
import torch

from most_core.vocoder import NOTHING
from tests.train.conftest import write_folder
from train.data.shards import ShardedSpeech
from train.data.unit_speech import UnitCrops, best_shift, wave_of
from train.data.utterance import Utterance

SIZE = 640
TONES = 300 * 1.19 ** np.arange(16)


def tonal(index, count, delay):
    """Units, and a tone for each of them that begins `delay` samples after its frame does."""
    units = np.random.default_rng(index).integers(0, len(TONES), count)
    time = np.arange(SIZE) / 16_000
    sound = [0.3 * np.sin(2 * np.pi * TONES[unit] * time) for unit in units]
    wave = np.concatenate([np.zeros(delay), *sound, np.zeros(1184 - delay)]).astype(np.float32)
    return units, Utterance(f"u{index}", "tone", "la", wave, "a test", "CC0-1.0")


def speech_of(folder, delay, counts=(40, 30, 50, 35)):
    pairs = [tonal(index, count, delay) for index, count in enumerate(counts)]
    return ShardedSpeech(write_folder(folder, [item for _, item in pairs])), [units for units, _ in pairs]


@pytest.mark.parametrize("delay", [64, 576, 1088])
def test_the_shift_is_where_units_tell_the_sound(tmp_path, delay):
    speech, units = speech_of(tmp_path, delay)
    shift, told = best_shift([wave_of(speech, row) for row in range(len(speech))], units, len(TONES), SIZE, 1184)
    assert abs(shift - delay) <= 64
    assert told > 0.5


@pytest.fixture
def crops(tmp_path):
    speech, units = speech_of(tmp_path, 592, (40, 12, 9, 30))
    return UnitCrops(speech, units, 592, SIZE, 10, 6, 4 * SIZE, seed=3)


def test_units_lie_beside_their_sound(crops):
    batch = crops[7]
    assert batch.units.shape == (6, 10)
    assert batch.waves.shape == (6, 10 * SIZE)
    for units, wave in zip(batch.units, batch.waves):
        for unit, sound in zip(units, wave.reshape(10, SIZE)):
            strongest = torch.fft.rfft(sound, 16_000).abs().argmax()
            assert abs(float(strongest) / TONES[unit] - 1) < 0.08


def test_a_batch_depends_on_its_number_alone(crops):
    first = [crops[index] for index in range(6)]
    again = [crops[index] for index in reversed(range(6))][::-1]
    assert all(torch.equal(a.waves, b.waves) and a.window == b.window for a, b in zip(first, again))
    assert len({batch.waves.numpy().tobytes() for batch in first}) == 6
    assert {batch.window % SIZE for batch in first} == {0}
    assert all(0 <= crops[index].window <= 6 * SIZE for index in range(40))


def test_what_is_shorter_than_a_crop_is_left_out(crops, tmp_path):
    assert (len(crops.rows), crops.dropped) == (3, 1)
    with pytest.raises(ValueError, match="lower crop_units"):
        UnitCrops(crops.speech, crops.units, 0, SIZE, 60, 1, SIZE, 0)


def test_beginnings_and_ends_are_heard_too(crops):
    drawn = [row for index in range(60) for row in crops[index].units.tolist()]
    assert any(row == crops.units[0][:10].tolist() for row in drawn)
    assert any(row == crops.units[0][-10:].tolist() for row in drawn)


def test_crops_come_with_their_surroundings(crops):
    wider = UnitCrops(crops.speech, crops.units, 592, SIZE, 10, 6, 4 * SIZE, 3, surroundings=(7, 2))
    outside = 0
    for index in range(30):
        batch, bare = wider[index], crops[index]
        assert torch.equal(batch.units[:, 7:-2], bare.units)
        assert torch.equal(batch.waves, bare.waves)
        for row in batch.units.tolist():
            known = [unit for unit in row if unit != NOTHING]
            assert any(str(known)[1:-1] in str(units.tolist()) for units in crops.units)
            assert NOTHING not in row[row.index(known[0]) : row.index(known[0]) + len(known)]
            outside += len(row) - len(known)
    assert outside
