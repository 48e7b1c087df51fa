"""Background sounds, made from a seed, and their mixing at a signal-to-noise ratio over active speech."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.fft

SAMPLE_RATE = 16_000
FRAME = 320  # 20 ms
CAFE_VOICES = 8


def active_level(wave: np.ndarray) -> float:
    """Root mean square of the frames that hold speech: those within 26 dB of the loudest one. 0 for silence."""
    frames = wave[: len(wave) // FRAME * FRAME].reshape(-1, FRAME) if len(wave) >= FRAME else wave[None]
    power = np.einsum("ij,ij->i", frames, frames, dtype=np.float64) / max(1, frames.shape[1])
    loudest = power.max(initial=0.0)
    return float(np.sqrt(power[power >= loudest / 400].mean())) if loudest > 0 else 0.0


def mix(wave: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """`wave` plus as much of `noise` (as long or longer) as brings active speech `snr_db` above the noise's level."""
    noise = noise[: len(wave)]
    level = float(np.sqrt(np.mean(np.square(noise, dtype=np.float64))))
    if level == 0 or not wave.any():
        return wave
    return (wave + noise * (active_level(wave) / level * 10 ** (-snr_db / 20))).astype(np.float32)


def coloured(samples: int, slope: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise whose power falls as frequency ** -slope: 0 is white, 1 pink, 2 brown. Peak about 1."""
    spectrum = scipy.fft.rfft(rng.standard_normal(samples, dtype=np.float32))
    frequency = np.maximum(np.arange(len(spectrum), dtype=np.float32) * SAMPLE_RATE / samples, 20)
    return _unit_peak(scipy.fft.irfft(spectrum * frequency ** (-slope / 2), samples))


def cafe(voices: Sequence[np.ndarray], samples: int, rng: np.random.Generator) -> np.ndarray:
    """Babble: at least eight different talkers at once, each saying one thing after another from a random moment."""
    if len(voices) < CAFE_VOICES:
        raise ValueError(f"babble of {len(voices)} voices is no cafe: give at least {CAFE_VOICES} recordings")
    babble = np.zeros(samples, dtype=np.float32)
    for lane in np.array_split(rng.permutation(len(voices)), CAFE_VOICES):
        talk = np.concatenate([voices[i] / max(active_level(voices[i]), 1e-6) for i in lane])
        talk = np.tile(talk, -(-samples // len(talk)) + 1)
        start = int(rng.integers(len(talk) - samples))
        babble += rng.uniform(0.5, 1.0) * talk[start : start + samples]
    return _unit_peak(babble)


def kitchen(samples: int, rng: np.random.Generator) -> np.ndarray:
    """A mains hum with harmonics, a fan, and the clatter of dishes: short ringing strokes at random moments."""
    time = np.arange(samples, dtype=np.float32) / SAMPLE_RATE
    mains = rng.choice([50.0, 60.0])
    hum = sum(
        rng.uniform(0.2, 1) / n * np.sin(2 * np.pi * mains * n * time + rng.uniform(0, 2 * np.pi)) for n in range(1, 6)
    )
    sound = 0.1 * hum.astype(np.float32) + 0.15 * coloured(samples, 1.0, rng)
    for _ in range(rng.poisson(2.5 * samples / SAMPLE_RATE)):
        start, length = int(rng.integers(samples)), int(rng.uniform(0.03, 0.3) * SAMPLE_RATE)
        ring = time[: min(length, samples - start)]
        for _ in range(3):
            stroke = np.exp(-ring * rng.uniform(15, 90)) * np.sin(2 * np.pi * rng.uniform(900, 6500) * ring)
            sound[start : start + len(ring)] += rng.uniform(0.1, 0.6) * stroke
    return _unit_peak(sound)


def _unit_peak(sound: np.ndarray) -> np.ndarray:
    return (sound / max(float(np.abs(sound).max()), 1e-9)).astype(np.float32)
