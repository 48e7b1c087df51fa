import numpy as np
import pytest

from train.data.noise import active_level, cafe, coloured, kitchen, mix

RATE = 16_000


def tone(seconds, level=0.3, hz=300):
    return (level * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def rng():
    return np.random.default_rng(5)


def test_pauses_do_not_lower_the_level_of_speech():
    speech = tone(1)
    with_pauses = np.concatenate([np.zeros(RATE, np.float32), speech, np.zeros(2 * RATE, np.float32)])
    assert active_level(with_pauses) == pytest.approx(active_level(speech), rel=1e-3)
    assert active_level(speech) == pytest.approx(0.3 / np.sqrt(2), rel=1e-2)
    assert active_level(np.zeros(100, np.float32)) == 0


@pytest.mark.parametrize("snr", [20, 5, -3])
def test_noise_is_mixed_at_the_ratio_asked_for(snr):
    speech = np.concatenate([tone(1), np.zeros(RATE, np.float32)])
    mixed = mix(speech, coloured(3 * RATE, 1.0, rng()), snr)
    added = mixed - speech
    reached = 20 * np.log10(active_level(speech) / np.sqrt(np.mean(added**2)))
    assert reached == pytest.approx(snr, abs=0.1)
    assert mixed.dtype == np.float32


def test_silence_stays_silence():
    silence = np.zeros(RATE, np.float32)
    assert not mix(silence, kitchen(RATE, rng()), 5).any()


def test_noises_are_repeatable_bounded_and_differ():
    voices = [tone(0.5, hz=100 + 50 * i) for i in range(9)]
    for make in (lambda r: coloured(RATE, 2, r), lambda r: kitchen(RATE, r), lambda r: cafe(voices, RATE, r)):
        first, again, other = make(rng()), make(rng()), make(np.random.default_rng(6))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)
        assert first.shape == (RATE,)
        assert np.abs(first).max() == pytest.approx(1, abs=1e-3)


def test_brown_noise_is_darker_than_white():
    def bright(noise):
        power = np.abs(np.fft.rfft(noise)) ** 2
        return power[len(power) // 2 :].sum() / power.sum()

    assert bright(coloured(RATE, 2, rng())) < 0.05 < 0.4 < bright(coloured(RATE, 0, rng()))


def test_few_voices_are_no_cafe():
    with pytest.raises(ValueError, match="babble of 7 voices"):
        cafe([tone(1)] * 7, RATE, rng())
