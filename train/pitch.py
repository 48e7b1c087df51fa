"""The fundamental frequency of a voice, by normalized correlation of the sound with itself."""

from __future__ import annotations

import numpy as np

from most_core.speech import SAMPLE_RATE

HOP = 160  # 10 ms
WINDOW = 640
LOWEST_HZ, HIGHEST_HZ = 70, 400
VOICED = 0.6  # correlation of a period with the next from which a voice is heard
QUIET = 0.03  # of the loudest moment: below, nothing is called a voice


def pitch(wave: np.ndarray) -> np.ndarray:
    """Hertz of each 10 ms, nan where there is no voice."""
    shortest, longest = SAMPLE_RATE // HIGHEST_HZ, SAMPLE_RATE // LOWEST_HZ
    padded = np.pad(np.asarray(wave, np.float64), (WINDOW // 2, WINDOW // 2 + longest))
    count = max(0, -(-len(wave) // HOP))
    if not count:
        return np.zeros(0)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW + longest)[::HOP][:count]
    power = np.cumsum(np.pad(np.square(frames), ((0, 0), (1, 0))), axis=1)
    energy = power[:, WINDOW:] - power[:, : longest + 1]  # of the window, so many samples later
    lags = np.arange(shortest, longest + 1)
    products = np.stack([np.einsum("fn,fn->f", frames[:, :WINDOW], frames[:, lag : lag + WINDOW]) for lag in lags], 1)
    likeness = products / np.sqrt(energy[:, :1] * energy[:, shortest:] + 1e-9)
    best = likeness.max(1)
    # Two periods are as alike as one: take the shortest that is nearly as good, at its peak
    first = np.argmax(likeness >= 0.9 * best[:, None], axis=1)
    peak = np.array([_climb(row, start) for row, start in zip(likeness, first)])
    voiced = (best > VOICED) & (energy[:, 0] > QUIET**2 * energy[:, 0].max())
    return np.where(voiced, SAMPLE_RATE / lags[peak], np.nan)


def _climb(row: np.ndarray, place: int) -> int:
    while place + 1 < len(row) and row[place + 1] > row[place]:
        place += 1
    return place


def contour_likeness(made: np.ndarray, real: np.ndarray, fewest: int = 20) -> tuple[float, float]:
    """Of two pitch contours: correlation of the logarithms where both are voiced (nan if that is hardly anywhere, or
    either does not move), and how often they agree on whether there is a voice."""
    frames = min(len(made), len(real))
    made, real = made[:frames], real[:frames]
    agree = float(np.mean(np.isnan(made) == np.isnan(real))) if frames else float("nan")
    both = ~np.isnan(made) & ~np.isnan(real)
    if both.sum() < fewest or np.ptp(made[both]) == 0 or np.ptp(real[both]) == 0:
        return float("nan"), agree
    return float(np.corrcoef(np.log(made[both]), np.log(real[both]))[0, 1]), agree
