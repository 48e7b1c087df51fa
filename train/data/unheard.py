"""Sounds in which nothing can be understood: silence, noise, tones, melodies, knocks, backward or foreign speech.

Each is a function of the split, the seed and its number alone, given the recordings of `Talkers`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.signal import chirp

from train.data.english import sentence
from train.data.noise import CAFE_VOICES, SAMPLE_RATE, active_level, cafe, coloured, kitchen
from train.data.shards import ShardedSpeech
from train.data.utterance import Utterance
from train.data.voices import LICENCES, SynthesisError, Synthesizer, Voice, training_voices

Split = Literal["train", "test"]
SECONDS = (0.6, 6.0)
SPOKEN_S = (1.0, 15.0)  # of recordings that are talked with: long enough to be cut, short enough to be read quickly
PEAK_DB = (-36.0, -0.5)  # how loud it is, of full scale
SILENCE_DB = (-85.0, -50.0)
FLOOR_DB = (25.0, 55.0)  # how far below a sound the noise of a room is
ATTEMPTS = 8  # voices tried for a sentence
LANGUAGES = Path(__file__).with_name("text") / "other_languages.txt"
ENGINE = "espeak-ng"  # which has voices of other languages
OURS = "the project's"
SCALES = ((0, 2, 4, 5, 7, 9, 11, 12), (0, 2, 3, 5, 7, 8, 10, 12), (0, 2, 4, 7, 9, 12))  # major, minor, pentatonic


@dataclass(frozen=True)
class Sound:
    """float32 at 16 kHz, what it is, whose voice is in it if anybody's, and under which licence."""

    wave: np.ndarray
    kind: str
    licence: str = OURS
    speaker: str = ""


class Talkers:
    """People who say something: of folders of speech, or synthetic voices if there are none."""

    def __init__(self, folders: Sequence[Path], split: Split, synthesizer: Synthesizer) -> None:
        self.split, self.synthesizer = split, synthesizer
        self.speech = [open_speech(folder, split) for folder in folders]
        self.rows = [
            np.flatnonzero((speech.seconds >= SPOKEN_S[0]) & (speech.seconds <= SPOKEN_S[1])) for speech in self.speech
        ]
        for folder, rows in zip(folders, self.rows):
            if not len(rows):
                raise ValueError(f"{folder} holds no speech of {SPOKEN_S[0]:g} to {SPOKEN_S[1]:g} s: give another")

    def one(self, rng: np.random.Generator) -> Utterance:
        """Somebody who says something of at least a second."""
        if self.speech:
            folder = int(rng.integers(len(self.speech)))
            return self.speech[folder][int(rng.choice(self.rows[folder]))]
        for _ in range(ATTEMPTS):
            seed = int(rng.integers(1 << 31))
            text, voice = sentence(self.split, seed, 0), training_voices(seed, 0, {ENGINE: 1.0})
            try:
                wave = self.synthesizer.speak(text, voice)
            except SynthesisError as error:
                failure = error
                continue
            if len(wave) >= SPOKEN_S[0] * SAMPLE_RATE:
                return Utterance("", voice.speaker, text, wave, f"{ENGINE} {voice.name}", LICENCES[ENGINE])
            failure = ValueError(f"{text!r} takes less than a second")
        raise failure

    def some(self, count: int, rng: np.random.Generator) -> list[Utterance]:
        return [self.one(rng) for _ in range(count)]


def open_speech(folder: Path, split: Split) -> ShardedSpeech:
    """A folder of shards of speech, which must not be of the test split where one trains."""
    speech = ShardedSpeech(folder)
    if not len(speech):
        raise ValueError(f"{folder} holds no speech: make some with `synthesize` or `corpus`")
    if split == "train" and speech[0].split == "test":
        raise ValueError(f"{folder} is of the test split, which nothing is trained on: give speech of split train")
    return speech


def unheard(talkers: Talkers, seed: int, number: int) -> Sound:
    """Sound number `number`: of any kind, length and loudness."""
    rng = np.random.default_rng((seed, number, talkers.split == "test", 0x0DEAF))
    names = list(KINDS)
    weights = np.array([KINDS[name][0] for name in names])
    name = names[int(rng.choice(len(names), p=weights / weights.sum()))]
    samples = round(rng.uniform(*SECONDS) * SAMPLE_RATE)
    sound = replace(KINDS[name][1](talkers, samples, rng), kind=name)
    return sound if name == "silence" else replace(sound, wave=_as_recorded(sound.wave, rng))


def _as_recorded(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The sound as loud as chance has it, without clicks at its ends, half of the time with the noise of a room."""
    wave = wave[: round(SECONDS[1] * SAMPLE_RATE)] / max(float(np.abs(wave).max()), 1e-9)
    ramp = np.linspace(0, 1, SAMPLE_RATE // 100)
    wave[: len(ramp)] *= ramp
    wave[-len(ramp) :] *= ramp[::-1]
    if rng.random() < 0.5:
        wave = wave + _gain(-rng.uniform(*FLOOR_DB)) * coloured(len(wave), rng.uniform(0, 2), rng)
    peak = max(1.0, float(np.abs(wave).max()))
    return (wave * (_gain(rng.uniform(*PEAK_DB)) / peak)).astype(np.float32)


def _gain(db: float) -> float:
    return 10 ** (db / 20)


def _silence(talkers: Talkers, samples: int, rng: np.random.Generator) -> Sound:
    """Nothing at all, or next to nothing."""
    if rng.random() < 0.4:
        return Sound(np.zeros(samples, np.float32), "")
    return Sound(_gain(rng.uniform(*SILENCE_DB)) * coloured(samples, rng.uniform(0, 2), rng), "")


def _noise(talkers: Talkers, samples: int, rng: np.random.Generator) -> Sound:
    """Noise of any colour, steady or swelling like wind and traffic."""
    noise = coloured(samples, rng.uniform(-0.5, 2.5), rng)
    if rng.random() < 0.5:
        swell = np.interp(np.arange(samples), np.linspace(0, samples, 8), rng.uniform(0.05, 1, 8))
        noise = noise * swell.astype(np.float32)
    return Sound(noise, "")


def _kitchen(talkers: Talkers, samples: int, rng: np.random.Generator) -> Sound:
    return Sound(kitchen(samples, rng), "")


def _babble(talkers: Talkers, samples: int, rng: np.random.Generator) -> Sound:
    """A cafe full of people."""
    people = talkers.some(CAFE_VOICES + int(rng.integers(4)), rng)
    return Sound(cafe([person.wave for person in people], samples, rng), "", _licences(people))


def _tones(talkers: Talkers, samples: int, rng: np.random.Generator) -> Sound:
    """One to three tones, held or beeping."""
    time = np.arange(samples) / SAMPLE_RATE
    tones = [
        np.sin(2 * np.pi * _between(rng, 80, 5000) * time + rng.uniform(0, 6.3)) for _ in range(rng.integers(1, 4))
    ]
    wave = np.sum(tones, axis=0)
    if rng.random() < 0.3:
        wave = np.tanh(rng.uniform(1, 8) * wave)  # nearer to a square wave: a buzzer
    if rng.random() < 0.6:
        period, share = rng.uniform(0.1, 1.2), rng.uniform(0.2, 0.8)
        wave = wave * (time % period < share * period)
    return Sound(wave, "")


def _chirps(talkers: Talkers, samples: int, rng: np.random.Generator) -> Sound:
    """Sweeps from one frequency to another, over and over: birds, sirens, toys."""
    parts, made = [], 0
    length = round(rng.uniform(0.05, 1.5) * SAMPLE_RATE)
    start, end = _between(rng, 150, 7000), _between(rng, 150, 7000)
    pause, back = round(rng.uniform(0, 0.4) * SAMPLE_RATE), rng.random() < 0.5
    while made < samples:
        time = np.arange(length) / SAMPLE_RATE
        wiggle = rng.uniform(0.9, 1.1)
        sweep = chirp(time, start * wiggle, time[-1], end * wiggle, method="logarithmic") * np.hanning(length)
        parts += [sweep, *([sweep[::-1]] if back else []), np.zeros(pause)]
        made += sum(map(len, parts[-3 if back else -2 :]))
    return Sound(np.concatenate(parts)[:samples], "")


def _melody(talkers: Talkers, samples: int, rng: np.random.Generator) -> Sound:
    """A tune, hummed, sung to one vowel or whistled: harmonics with vibrato that glide from note to note."""
    scale, place = SCALES[int(rng.integers(len(SCALES)))], int(rng.integers(8))
    way = rng.choice(["hummed", "sung", "whistled"])
    ground = _between(rng, 600, 1400) if way == "whistled" else _between(rng, 85, 350)
    beat = rng.uniform(0.18, 0.6)
    notes: list[np.ndarray] = []
    loud: list[np.ndarray] = []
    while sum(map(len, notes)) < samples:
        place = int(np.clip(place + rng.integers(-2, 3), 0, len(scale) - 1))
        length = round(beat * float(rng.choice([0.5, 1, 1, 2])) * SAMPLE_RATE)
        notes.append(np.full(length, ground * 2 ** (scale[place] / 12)))
        attack = np.minimum(np.arange(length) / (0.04 * SAMPLE_RATE), 1)
        loud.append(attack * attack[::-1] * (not loud or rng.random() > 0.08))  # now and then a rest
    glide = np.hanning(round(0.06 * SAMPLE_RATE))
    pitch = np.convolve(np.log2(np.concatenate(notes)), glide / glide.sum(), mode="same")[:samples]
    edge = len(glide) // 2
    pitch[:edge] = np.log2(notes[0][0])  # where the smoothing met nothing
    pitch[-edge:] = pitch[-edge - 1]
    time = np.arange(samples) / SAMPLE_RATE
    hertz = 2 ** (pitch + rng.uniform(0, 0.05) * np.sin(2 * np.pi * rng.uniform(4.5, 6.5) * time))
    phase = 2 * np.pi * np.cumsum(hertz) / SAMPLE_RATE
    if way == "whistled":
        wave = np.sin(phase) + 0.05 * coloured(samples, 0, rng)
    else:
        vowel = [_between(rng, 300, 900), _between(rng, 800, 2400)] if way == "sung" else [250.0]
        wave = sum(_resonance(n * ground, vowel) / n * np.sin(n * phase) for n in range(1, 21))
    return Sound(wave * np.concatenate(loud)[:samples], "")


def _resonance(hertz: float, formants: Sequence[float]) -> float:
    """How strongly a throat with these formants lets a frequency pass."""
    return 0.02 + sum(1 / (1 + ((hertz - formant) / (0.15 * formant + 40)) ** 2) for formant in formants)


def _knocks(talkers: Talkers, samples: int, rng: np.random.Generator) -> Sound:
    """Clicks, typing, footsteps, knocks on wood: short strokes, in groups or alone."""
    wave = np.zeros(samples)
    low, high = (60, 500) if rng.random() < 0.5 else (800, 6000)
    decay, gap = _between(rng, 15, 400), rng.uniform(0.06, 0.5)
    at = rng.uniform(0, 0.3)
    while at < samples / SAMPLE_RATE - 0.02 or not wave.any():
        for _ in range(rng.integers(1, 5)):
            start = min(round(at * SAMPLE_RATE), samples - 320)
            ring = np.arange(min(round(0.3 * SAMPLE_RATE), samples - start)) / SAMPLE_RATE
            stroke = sum(np.sin(2 * np.pi * _between(rng, low, high) * ring) for _ in range(3))
            stroke = stroke + rng.standard_normal(len(ring)) * np.exp(-ring * 800)
            wave[start : start + len(ring)] += rng.uniform(0.3, 1) * stroke * np.exp(-ring * decay)
            at += gap * rng.uniform(0.8, 1.2)
        at += rng.uniform(0.05, 1.2)
    return Sound(wave, "")


def _backwards(talkers: Talkers, samples: int, rng: np.random.Generator) -> Sound:
    """Speech played from its end."""
    person = talkers.one(rng)
    return Sound(_part(person.wave, samples, rng)[::-1].copy(), "", person.licence, person.speaker)


def _two_at_once(talkers: Talkers, samples: int, rng: np.random.Generator) -> Sound:
    """Two people who say different things equally loud, from the first to the last moment."""
    first = second = talkers.one(rng)
    for _ in range(ATTEMPTS):
        if (second := talkers.one(rng)).text != first.text:
            break
    samples = min(samples, len(first.wave), len(second.wave))
    parts = [_part(person.wave, samples, rng) for person in (first, second)]
    wave = np.sum([part / max(active_level(part), 1e-6) for part in parts], axis=0)
    return Sound(wave, "", _licences([first, second]), f"{first.speaker} and {second.speaker}")


def _other_language(talkers: Talkers, samples: int, rng: np.random.Generator) -> Sound:
    """A sentence or two of another language, by that language's voice."""
    known = languages(talkers.split)
    for _ in range(ATTEMPTS):
        code = list(known)[int(rng.integers(len(known)))]
        text = " ".join(rng.choice(known[code], size=rng.integers(1, 3), replace=False))
        drawn = training_voices(int(rng.integers(1 << 31)), 0, {ENGINE: 1.0})
        voice: Voice = replace(drawn, name="+".join([code, *drawn.name.split("+")[1:]]))
        try:
            wave = talkers.synthesizer.speak_as_written(text, voice)
        except SynthesisError as error:
            failure = error
            continue
        return Sound(wave, "", LICENCES[ENGINE], voice.speaker)
    raise failure


def _part(wave: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    start = int(rng.integers(max(1, len(wave) - samples)))
    return wave[start : start + samples]


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    """Evenly on a logarithmic scale, as frequencies are heard."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _licences(people: Sequence[Utterance]) -> str:
    return "; ".join(dict.fromkeys(person.licence for person in people))


@cache
def languages(split: Split) -> dict[str, tuple[str, ...]]:
    """Voice -> sentences of `other_languages.txt`, of the languages of one split."""
    found: dict[str, list[str]] = {}
    texts: list[str] = []
    for line in LANGUAGES.read_text(encoding="utf-8").splitlines():
        if section := re.fullmatch(r"\[(\w+)( test)?\]", line):
            texts = []
            if (split == "test") == bool(section[2]):
                found[section[1]] = texts
        elif line and not line.startswith("#"):
            texts.append(line)
    return {code: tuple(lines) for code, lines in found.items()}


Maker = Callable[[Talkers, int, np.random.Generator], Sound]
KINDS: dict[str, tuple[float, Maker]] = {  # and how often each is heard
    "silence": (0.12, _silence),
    "noise": (0.12, _noise),
    "kitchen": (0.08, _kitchen),
    "babble": (0.1, _babble),
    "tones": (0.06, _tones),
    "chirps": (0.05, _chirps),
    "melody": (0.1, _melody),
    "knocks": (0.09, _knocks),
    "backwards": (0.1, _backwards),
    "two at once": (0.06, _two_at_once),
    "other language": (0.12, _other_language),
}
