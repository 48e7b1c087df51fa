"""Augmentation on the fly: rooms, equalizers, telephones, tempo, noise. One pair of Fourier transforms an utterance.

What a voice *is* (formants, pitch, accent) is varied where speech is synthesized; what happens to it on its way to
the microphone is varied here, anew each time it is heard. Real recordings, of which there are few, are also warped
(`stretch`): tempo apart from pitch and formants.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft
import soundfile
import torch
import torchaudio

from train.data.noise import SAMPLE_RATE, cafe, coloured, kitchen, mix

ROOM_SAMPLES = SAMPLE_RATE // 2
NOISE_SAMPLES = 12 * SAMPLE_RATE


@dataclass(frozen=True)
class Augmentation:
    """Each float is the share of utterances it happens to; pairs are the range of what then happens."""

    rate: tuple[float, float] = (0.87, 1.17)
    room: float = 0.5
    decay_s: tuple[float, float] = (0.08, 0.6)
    equalizer: float = 0.6
    equalizer_db: float = 9.0
    band_limit: float = 0.25
    telephone: float = 0.08
    noise: float = 0.6
    snr_db: tuple[float, float] = (0.0, 25.0)
    stretch: float = 0.4
    stretch_rate: tuple[float, float] = (0.85, 1.2)
    silence_s: tuple[float, float] = (0.0, 0.5)
    multiple: int = 4000  # samples: rows of few different lengths spare a CPU the planning of new convolutions


NO_AUGMENTATION = Augmentation(
    rate=(1, 1), room=0, equalizer=0, band_limit=0, telephone=0, noise=0, stretch=0, silence_s=(0, 0), multiple=1
)


class Augmenter:
    """Makes batches of what a microphone may have got. Same waves, same generator state: same batch."""

    def __init__(self, config: Augmentation, talkers: Sequence[np.ndarray], seed: int = 0, rooms: int = 200) -> None:
        """`talkers`: recordings of training voices, the babble in the background."""
        self.config = config
        rng = np.random.default_rng([seed, 7])
        self.rooms = [_room(rng, config.decay_s) for _ in range(rooms if config.room else 0)]
        self.noises: list[np.ndarray] = []
        if config.noise:
            self.noises += [coloured(NOISE_SAMPLES, rng.uniform(0, 2), rng) for _ in range(12)]
            self.noises += [kitchen(NOISE_SAMPLES, rng) for _ in range(8)]
            if len(talkers) >= 8:
                self.noises += [cafe(talkers, NOISE_SAMPLES, rng) for _ in range(12)]

    def batch(self, waves: Sequence[np.ndarray], real: Sequence[bool], rng: np.random.Generator) -> torch.Tensor:
        """int16 or float recordings -> [utterances, samples] float32, each somewhere in its row.

        What is left of a row is the room's own noise where there is noise, and silence elsewhere: an encoder that
        normalizes over the whole utterance must not be taught by padding that no microphone gives.
        """
        config = self.config
        rate = rng.uniform(*config.rate)  # of the whole batch, so that equal lengths stay nearly equal
        spoken = [self._transmitted(_as_float(w), r, rate, rng) for w, r in zip(waves, real)]
        silence = int(rng.uniform(*config.silence_s) * SAMPLE_RATE)
        length = -(-(max(map(len, spoken)) + silence) // self.config.multiple) * self.config.multiple
        rows = np.zeros((len(spoken), length), dtype=np.float32)
        for row, wave in zip(rows, spoken):
            start = int(rng.integers(len(row) - len(wave) + 1))
            row[start : start + len(wave)] = wave
            if self.noises and rng.random() < config.noise:
                noise = self.noises[rng.integers(len(self.noises))]
                noise = np.roll(noise, int(rng.integers(len(noise))))
                row[:] = mix(row, np.resize(noise, len(row)), rng.uniform(*config.snr_db))
        return torch.from_numpy(rows)

    def _transmitted(self, wave: np.ndarray, real: bool, rate: float, rng: np.random.Generator) -> np.ndarray:
        config = self.config
        if real and rng.random() < config.stretch:
            wave = _stretched(wave, rng.uniform(*config.stretch_rate))
        rate *= rng.uniform(0.97, 1.03) if config.rate[0] < config.rate[1] else 1
        room = self.rooms[rng.integers(len(self.rooms))] if self.rooms and rng.random() < config.room else None
        size = scipy.fft.next_fast_len(len(wave) + (len(room) if room is not None else 0), real=True)
        spectrum = scipy.fft.rfft(wave, size)
        if room is not None:
            spectrum *= scipy.fft.rfft(room, size)
        if rng.random() < config.equalizer:
            spectrum *= _equalizer(len(spectrum), config.equalizer_db, rng)
        telephone = rng.random() < config.telephone
        if telephone:
            spectrum *= _band(len(spectrum), rng.uniform(150, 350), rng.uniform(3000, 3600))
        elif rng.random() < config.band_limit:
            spectrum *= _band(len(spectrum), rng.uniform(20, 250), rng.uniform(3000, 7500))
        # a spectrum cut or continued with zeros is the same sound at another rate
        faster = scipy.fft.next_fast_len(round(size / rate), real=True)
        wave = scipy.fft.irfft(_resized(spectrum, faster // 2 + 1), faster)[: round(len(wave) / rate)]
        wave = (wave / max(float(np.abs(wave).max()), 1e-6)).astype(np.float32)
        return _through_telephone(wave, rng) if telephone else wave


def _as_float(wave: np.ndarray) -> np.ndarray:
    return wave.astype(np.float32) / 32768 if wave.dtype == np.int16 else wave


def _resized(spectrum: np.ndarray, bins: int) -> np.ndarray:
    return spectrum[:bins] if bins <= len(spectrum) else np.pad(spectrum, (0, bins - len(spectrum)))


def _room(rng: np.random.Generator, decay_s: tuple[float, float]) -> np.ndarray:
    """An impulse response: the direct sound, a few early echoes, then a decaying diffuse tail that darkens."""
    decay = rng.uniform(*decay_s)
    length = min(ROOM_SAMPLES, int(decay * SAMPLE_RATE))
    time = np.arange(length) / SAMPLE_RATE
    tail = rng.standard_normal(length) * np.exp(-6.9 * time / decay)
    tail[: int(rng.uniform(0.002, 0.02) * SAMPLE_RATE)] = 0
    dark = rng.uniform(0.0, 0.7)
    for i in range(1, length):  # one-pole low-pass: walls swallow the high frequencies
        tail[i] += dark * tail[i - 1]
    response = tail * rng.uniform(0.1, 0.7) / max(np.sqrt((tail**2).sum()), 1e-9)
    response[0] = 1
    for _ in range(rng.integers(2, 8)):
        response[min(length - 1, int(rng.uniform(0.001, 0.03) * SAMPLE_RATE))] += rng.uniform(-0.4, 0.4)
    return response.astype(np.float32)


def _equalizer(bins: int, strength_db: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth random curve over the ear's (warped) frequency axis: microphones, tables, pockets."""
    position = np.sqrt(np.linspace(0, 1, bins, dtype=np.float32))
    curve = sum(rng.normal() / n * np.cos(np.pi * n * position + rng.uniform(0, np.pi)) for n in range(1, 6))
    return (10 ** (strength_db / 20 * curve)).astype(np.float32)


def _band(bins: int, low_hz: float, high_hz: float) -> np.ndarray:
    frequency = np.linspace(0, SAMPLE_RATE / 2, bins, dtype=np.float32)
    return (1 / np.sqrt((1 + (low_hz / np.maximum(frequency, 1)) ** 6) * (1 + (frequency / high_hz) ** 16))).astype(
        np.float32
    )


def _through_telephone(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """8 kHz and a real telephone codec: GSM, or the quantization of mu-law or A-law."""
    memory = io.BytesIO()
    narrow = scipy.fft.irfft(_resized(scipy.fft.rfft(wave), len(wave) // 4 + 1), len(wave) // 2) / 2
    soundfile.write(memory, narrow, 8000, subtype=rng.choice(["GSM610", "ULAW", "ALAW"]), format="WAV")
    memory.seek(0)
    decoded = soundfile.read(memory, dtype="float32")[0]
    wide = scipy.fft.irfft(_resized(scipy.fft.rfft(decoded), len(decoded) + 1), 2 * len(decoded)) * 2
    return np.resize(wide, len(wave)).astype(np.float32) if len(wide) < len(wave) else wide[: len(wave)]


def _stretched(wave: np.ndarray, rate: float) -> np.ndarray:
    """Faster by `rate` with pitch and formants as they were (a phase vocoder)."""
    window, hop = 512, 128
    if len(wave) < 2 * window:
        return wave
    hann = torch.hann_window(window)
    spectrum = torch.stft(torch.from_numpy(wave), window, hop, window=hann, return_complex=True)
    advance = torch.linspace(0, np.pi * hop, spectrum.shape[0])[:, None]
    faster = torchaudio.functional.phase_vocoder(spectrum, rate, advance)
    return torch.istft(faster, window, hop, window=hann, length=int(len(wave) / rate)).numpy()
