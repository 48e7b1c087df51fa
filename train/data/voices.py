"""Synthetic voices: which there are, how a random one is drawn, and `Synthesizer`, which speaks with any of them.

Engines are Debian's espeak-ng, flite and festival, each a process of its own that is started when first needed and
started again if it crashes or hangs. flite `rms` and festival `ked_diphone` are the unseen voices of every evaluation:
training never draws them.
"""

from __future__ import annotations

import math
import re
import time
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from shutil import which
from types import TracebackType
from typing import Literal

import numpy as np
from scipy.signal import resample_poly

from train.data.engine_processes import FESTIVAL_PITCH, Crashed, EngineProcess, Festival, Library
from train.data.utterance import spoken_letters

SAMPLE_RATE = 16_000
PEAK = 0.7  # room for augmentation and for int16
SECONDS = (0.15, 20.0)
LONGEST_SILENCE_S = 0.3  # before and after the words

Engine = Literal["espeak-ng", "flite", "festival"]
ENGINE_WEIGHTS: dict[str, float] = {"espeak-ng": 0.5, "flite": 0.42, "festival": 0.08}
# By Debian package: what to install when it is missing
PACKAGES = {
    "espeak-ng": "espeak-ng",
    "flite": "flite",
    "festival": "festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts",
}
LICENCES = {
    "espeak-ng": "output of a GPL-3.0 program, free to use",
    "flite": "output of CMU Flite voices (BSD-like)",
    "festival": "output of Festival voices (BSD-like)",
}

ESPEAK_ACCENTS = {
    "en-us": 0.4,
    "en-gb": 0.12,
    "en-gb-x-rp": 0.12,
    "en-us-nyc": 0.1,
    "en-gb-scotland": 0.08,
    "en-029": 0.06,
    "en-gb-x-gbclan": 0.06,
    "en-gb-x-gbcwmd": 0.06,
}
# Those of 1.51 but for what even a person would have to guess at: whisper, whisperf and croak, Demonic and UniRobot
# (echo), kaukovalta, Tweaky and AnxiousAndy (formants moved or missing), fast.
_VARIANTS = """
m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 klatt klatt2 klatt3 klatt4 klatt5 klatt6 Alex Alicia Andrea Andy Annie Denis
Diogo Gene Gene2 Henrique Hugo Jacky Lee Marco Mario Michael Mike Nguyen RicishayMax RicishayMax2 RicishayMax3 Storm
adam anika anikaRobot announcer antonio aunty belinda benjamin boris caleb david ed edward edward2 grandma grandpa
gustave iven iven2 iven3 iven4 john linda marcelo max michel miguel norbert pablo paul pedro quincy rob robert robosoft
robosoft2 robosoft3 robosoft4 robosoft5 robosoft6 robosoft7 robosoft8 sandro shelby steph steph2 steph3 travis victor
zac
"""
ESPEAK_VARIANTS = tuple(_VARIANTS.split())
FLITE_VOICES = {"slt": 0.42, "awb": 0.42, "kal16": 0.1, "kal": 0.06}
FESTIVAL_FOLDER = Path("/usr/share/festival/voices")
FESTIVAL_VOICES = {"kal_diphone": 0.4, "cmu_us_slt_arctic_hts": 0.6}

FORMANTS, STRETCH = (0.82, 1.22), (0.8, 1.35)


@dataclass(frozen=True)
class Voice:
    """An engine's voice and how it is changed; all numbers are factors, 1 is the voice as it comes.

    `formants` scales the vocal tract (above 1 is shorter: a smaller person) and leaves pitch and tempo as asked: the
    engine speaks lower and slower by that factor, and playing it faster brings both back. Festival's HTS voice has no
    pitch control, so there `pitch` is not heeded and moves with `formants`. `intonation` scales how far pitch moves.
    """

    engine: Engine
    name: str
    pitch: float = 1.0
    rate: float = 1.0
    formants: float = 1.0
    intonation: float = 1.0

    @property
    def speaker(self) -> str:
        """Who is heard: tempo and intonation do not make another person."""
        return f"{self.engine}/{self.name}/{self.pitch:.2f}/{self.formants:.2f}"


UNSEEN = (Voice("flite", "rms"), Voice("festival", "ked_diphone"))


def unseen_voices() -> tuple[Voice, ...]:
    """The voices that are kept out of all training."""
    return UNSEEN


def training_voices(seed: int, index: int, weights: Mapping[str, float] = ENGINE_WEIGHTS) -> Voice:
    """Voice number `index` of an endless random series; `weights` says how often each engine speaks."""
    rng = np.random.default_rng((seed, index, 0x501CE))
    engine = _pick(rng, weights)
    formants, rate = _between(rng, *FORMANTS), 1 / _between(rng, *STRETCH)
    if engine == "espeak-ng":
        name = _pick(rng, ESPEAK_ACCENTS)
        if rng.random() > 0.1:
            name += "+" + ESPEAK_VARIANTS[rng.integers(len(ESPEAK_VARIANTS))]
        pitch, intonation = _between(rng, 0.7, 1.45), rng.uniform(0.4, 1.6)
    elif engine == "flite":
        name = _pick(rng, FLITE_VOICES)
        pitch, intonation = _between(rng, 0.78, 1.35), rng.uniform(0.5, 1.5)
    elif engine == "festival":
        name = _pick(rng, FESTIVAL_VOICES)
        pitch, intonation = formants, 1.0
        if name in FESTIVAL_PITCH:
            pitch, intonation = _between(rng, 0.78, 1.35), rng.uniform(0.5, 1.5)
    else:
        raise ValueError(f"engine {engine!r} is unknown: weights may name {', '.join(ENGINE_WEIGHTS)}")
    voice = Voice(engine, name, *(round(float(x), 4) for x in (pitch, rate, formants, intonation)))
    assert not any((voice.engine, voice.name) == (unseen.engine, unseen.name) for unseen in UNSEEN)
    return voice


def _pick(rng: np.random.Generator, weights: Mapping[str, float]) -> str:
    total = sum(weights.values())
    return list(weights)[int(np.searchsorted(np.cumsum(list(weights.values())), rng.random() * total, side="right"))]


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    """Evenly on a logarithmic scale, as voices differ."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


class SynthesisError(ChildProcessError):
    """An engine did not speak a text, twice."""


class MissingEngine(OSError):
    """An engine is not installed; no use in trying another voice of it."""


def speakable(text: str) -> str:
    """What an engine is given for a text in spoken form; ValueError where the sound might not match its letters."""
    if not spoken_letters(text):
        raise ValueError(f"{text!r} holds no words: give something to say")
    plain = unicodedata.normalize("NFKD", text.translate(str.maketrans("’‘“”–—", "''\"\",,")))
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    if strange := re.search(r"[^A-Za-z\s.,;:?!'\"()-]", plain):
        raise ValueError(f"{text!r} holds {strange.group()!r}, which engines read each in their way: write it in words")
    plain = plain.replace("MoST", "Most")  # the assistant's name, which espeak-ng would read as an abbreviation
    return " ".join(re.sub(r"[\"()-]", " ", plain).split())


def check_engine(engine: str) -> None:
    """MissingEngine unless the engine is installed, festival with its voices."""
    found = which(engine) is not None
    if found and engine == "festival" and FESTIVAL_FOLDER.is_dir():
        spoken = {*FESTIVAL_VOICES, *(voice.name for voice in UNSEEN if voice.engine == engine)}
        found = spoken <= {path.name for path in FESTIVAL_FOLDER.glob("*/*")}
    if not found:
        raise MissingEngine(f"{engine} is not (wholly) installed: run `apt install {PACKAGES[engine]}`")


class Synthesizer:
    """Speaks texts with any voice: `with Synthesizer() as s: wave = s.speak("Hello.", Voice("flite", "slt"))`.

    The same text and voice give the same samples whatever was said before. `timeout` is how many seconds an utterance
    may take before its engine counts as hung.
    """

    def __init__(self, timeout: float = 30.0) -> None:
        self.timeout = timeout
        self._processes: dict[str, EngineProcess] = {}

    def __enter__(self) -> Synthesizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for engine in list(self._processes):
            self._processes.pop(engine).close()

    def speak(self, text: str, voice: Voice) -> np.ndarray:
        """float32 mono at 16 kHz that peaks at 0.7, with at most 0.3 s of silence at either end.

        ValueError for a text that is not in spoken form, SynthesisError if the engine fails twice or the sound is not
        speech of a plausible length, MissingEngine if it is not installed.
        """
        return self.speak_as_written(speakable(text), voice)

    def speak_as_written(self, text: str, voice: Voice) -> np.ndarray:
        """The same of a text that is left as it is, for a voice that reads it: another language's, perhaps."""
        # Playing it `formants` times faster gives pitch and tempo back
        asked = replace(voice, pitch=voice.pitch / voice.formants, rate=voice.rate / voice.formants)
        for last in (False, True):
            try:
                rate, samples = self._process(voice.engine).speak(text, asked, time.monotonic() + self.timeout)
                return finish(samples, rate * voice.formants)
            except MissingEngine:
                raise
            except (Crashed, ValueError) as error:
                # A new process, for this one's pipe may still hold half a reply
                if voice.engine in self._processes:
                    self._processes.pop(voice.engine).close()
                if last:
                    raise SynthesisError(
                        f"{voice.engine} did not speak {text!r} as {voice.name} ({error}): try another voice or text"
                    ) from error
        raise AssertionError("unreachable")

    def _process(self, engine: Engine) -> EngineProcess:
        if engine not in self._processes:
            check_engine(engine)
            self._processes[engine] = Festival() if engine == "festival" else Library(engine)
        return self._processes[engine]


def finish(samples: np.ndarray, rate: float) -> np.ndarray:
    """int16 at any rate -> float32 at 16 kHz, silence at the ends cut short, peak at 0.7; ValueError if not speech."""
    sound = samples.astype(np.float32)
    ratio = Fraction(SAMPLE_RATE / rate).limit_denominator(100)
    if ratio != 1 and len(sound):
        sound = resample_poly(sound, ratio.numerator, ratio.denominator).astype(np.float32)
    frame = SAMPLE_RATE // 100
    levels = np.sqrt(np.square(sound[: len(sound) // frame * frame].reshape(-1, frame)).mean(1))
    if not len(levels) or levels.max() < 30:  # -60 dB of full scale
        raise ValueError("the sound is silent")
    loud = np.flatnonzero(levels > 0.01 * levels.max())
    kept = round(LONGEST_SILENCE_S * SAMPLE_RATE)
    sound = sound[max(0, loud[0] * frame - kept) : (loud[-1] + 1) * frame + kept]
    seconds = len(sound) / SAMPLE_RATE
    if not SECONDS[0] <= seconds <= SECONDS[1]:
        raise ValueError(f"the sound lasts {seconds:.2f} s, not {SECONDS[0]}..{SECONDS[1]}")
    return sound * np.float32(PEAK / np.abs(sound).max())
