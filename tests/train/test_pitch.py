import numpy as np
import pytest

from train.pitch import contour_likeness, pitch


def buzz(hertz, level=0.3):
    """A voice-like sound of harmonics whose fundamental follows `hertz`, one value a sample."""
    phase = 2 * np.pi * np.cumsum(hertz) / 16_000
    return (level * sum(np.sin(n * phase) / n for n in range(1, 12))).astype(np.float32)


@pytest.mark.parametrize("hertz", [90, 172, 250])
def test_a_steady_voice(hertz):
    found = pitch(buzz(np.full(8000, hertz)))
    assert len(found) == 50
    assert np.nanmedian(found) == pytest.approx(hertz, rel=0.02)
    assert np.isnan(found).mean() < 0.2


def test_noise_and_silence_have_none():
    noise = np.random.default_rng(0).standard_normal(8000).astype(np.float32) / 10
    assert np.isnan(pitch(noise)).mean() > 0.9
    assert np.isnan(pitch(np.zeros(8000, np.float32))).all()
    assert len(pitch(np.zeros(0, np.float32))) == 0


def test_contours_are_alike_when_they_move_together():
    time = np.arange(16_000) / 16_000
    rising = pitch(buzz(150 + 60 * time))
    waving = pitch(buzz(180 + 20 * np.sin(8 * time)))
    assert contour_likeness(rising, rising) == (pytest.approx(1), 1)
    assert contour_likeness(rising, rising[::-1])[0] < -0.9
    assert contour_likeness(rising, waving)[0] < 0.9
    correlation, agreement = contour_likeness(rising, np.full(100, np.nan))
    assert np.isnan(correlation)
    assert agreement < 0.2
