from dataclasses import replace

import numpy as np
import pytest
import torch

from train.data.augment import NO_AUGMENTATION, Augmentation, Augmenter

RATE = 16_000


def tone(seconds=1.0, hz=440):
    return (12_000 * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE)) / RATE)).astype(np.int16)


def strongest_hz(wave):
    power = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    return np.argmax(power) * RATE / len(wave)


def batch(config, waves, real=False, seed=0, talkers=()):
    return Augmenter(config, talkers, rooms=5).batch(waves, [real] * len(waves), np.random.default_rng(seed))


def test_without_augmentation_a_wave_is_only_brought_to_its_peak():
    rows = batch(NO_AUGMENTATION, [tone(), tone(0.5)])
    assert rows.shape == (2, RATE)
    assert rows.dtype == torch.float32
    assert np.allclose(rows[0], tone() / 12_000, atol=2e-3)
    assert rows[1].count_nonzero() <= RATE // 2


def test_the_same_generator_gives_the_same_batch_and_another_one_another():
    talkers = [tone(1, 100 + 30 * i).astype(np.float32) / 32768 for i in range(8)]
    waves = [tone(), tone(0.7, 300)]
    first, again, other = (batch(Augmentation(), waves, True, seed, talkers) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)
    assert first.isfinite().all()


@pytest.mark.parametrize("rate", [0.87, 1.17])
def test_a_higher_rate_shortens_and_raises(rate):
    config = replace(NO_AUGMENTATION, rate=(rate, rate))
    row = batch(config, [tone(2)])[0].numpy()
    assert len(row) == pytest.approx(2 * RATE / rate, rel=0.01)
    assert strongest_hz(row) == pytest.approx(440 * rate, rel=0.02)


def test_stretching_keeps_the_pitch_and_is_for_recordings_of_people_only():
    config = replace(NO_AUGMENTATION, stretch=1.0, stretch_rate=(1.2, 1.2))
    human, machine = batch(config, [tone(2)], real=True)[0], batch(config, [tone(2)], real=False)[0]
    assert len(human) == pytest.approx(2 * RATE / 1.2, rel=0.02)
    assert strongest_hz(human.numpy()) == pytest.approx(440, rel=0.01)
    assert len(machine) == 2 * RATE


def test_a_telephone_has_no_high_tones_and_a_room_rings():
    high = replace(NO_AUGMENTATION, telephone=1.0)
    assert batch(high, [tone(1, 6000) + tone(1, 500)])[0].numpy().shape == (RATE,)
    power = np.abs(np.fft.rfft(batch(high, [tone(1, 6000) // 2 + tone(1, 500) // 2])[0].numpy())) ** 2
    assert power[4500:].sum() < 1e-3 * power.sum()

    click = np.zeros(RATE, np.int16)
    click[100] = 20_000
    dry, wet = batch(NO_AUGMENTATION, [click])[0], batch(replace(NO_AUGMENTATION, room=1.0), [click])[0]
    assert dry.abs().gt(1e-3).sum() < 5 < 200 < wet.abs().gt(1e-3).sum()


def test_noise_fills_the_whole_row():
    config = replace(NO_AUGMENTATION, noise=1.0, snr_db=(5, 5), silence_s=(0.4, 0.4))
    rows = batch(config, [tone(1), tone(0.5)])
    assert rows.shape[1] == int(1.4 * RATE)
    assert (rows.unfold(1, 320, 320).abs().amax(-1) > 0).all()


def test_silence_and_clicks_do_no_harm():
    talkers = [tone(1, 100 + 30 * i).astype(np.float32) / 32768 for i in range(8)]
    waves = [np.zeros(RATE, np.int16), tone(0.05), np.full(RATE, 32767, np.int16)]
    augmenter = Augmenter(Augmentation(), talkers, rooms=5)
    for seed in range(20):
        assert augmenter.batch(waves, [True] * 3, np.random.default_rng(seed)).isfinite().all()
