"""Is somebody speaking now? Decisions for every 20 ms of sound, from webrtcvad and an energy gate that must agree.

webrtcvad alone takes white noise, fans and tones for speech. The gate listens to 100-1000 Hz only, where voices are
loud and clattering dishes are not, and asks for more than the background: its least level of the last seconds, or
what has sounded for a second without the ups and downs that speech has.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from numbers import Real

import numpy as np
import webrtcvad
from scipy.signal import butter, sosfilt

from app.audio import to_pcm16

SAMPLE_RATE = 16_000  # what webrtcvad and the speech encoder both take
FRAME = 320  # samples
FRAME_MS = 20.0
VOICE_BAND = butter(2, (100, 1000), "bandpass", fs=SAMPLE_RATE, output="sos")
SILENCE_DB = -120.0  # what digital silence counts as
SMOOTH_FRAMES = 15  # shorter averages would find the background in the stops of one word
STEADY_FRAMES = 50
STEADY_DB = 9.0  # a second of fan, hum or hiss stays within this; a second of speech ranges over 20 dB and more
UNKNOWN_FRAMES = 50  # a stream that begins within a word is not to take the word for its background
CLEAR_DB, DROWNED_DB = 40.0, 20.0  # speech this far above the background loses nothing to it; much, if only so far
RESUME_DB = 12.0  # so much fainter than the loudest of it may be what goes on after a pause that lasts only in noise
ONSET_FRAMES = 15  # how far back an onset is looked for: a long "sh" before the first vowel


@dataclass(frozen=True)
class VadSettings:
    """What counts as speech. Levels are in dBFS of 100-1000 Hz."""

    aggressiveness: int = 2  # of webrtcvad, 0..3
    margin_db: float = 6.0  # above the background, to begin speech
    release_db: float = 3.0  # by so much speech may fall below what it needed to begin
    least_level_db: float = -65.0  # nothing quieter is speech, however quiet the background
    start_frames: int = 3  # so many ...
    start_window: int = 4  # ... of the last so many frames begin speech
    hangover_ms: float = 100.0  # speech lasts through pauses up to this, such as the closure of a "t"
    noisy_hangover_ms: float = 200.0  # and up to this in noise, which hides the weak ends of words
    background_s: float = 4.0  # for how long a quiet moment tells the background

    def __post_init__(self) -> None:
        for name, low, high, whole in (
            ("aggressiveness", 0, 3, True),
            ("margin_db", 0, 40, False),
            ("release_db", 0, 40, False),
            ("least_level_db", -100, 0, False),
            ("start_frames", 1, 50, True),
            ("start_window", 1, 50, True),
            ("hangover_ms", 0, 2000, False),
            ("noisy_hangover_ms", 0, 2000, False),
            ("background_s", 1, 60, False),
        ):
            value = getattr(self, name)
            number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not low <= value <= high or (whole and value != int(value)):
                raise ValueError(f"{name} is {value!r}: give a {'whole ' if whole else ''}number in {low}..{high}")
        if self.start_frames > self.start_window:
            raise ValueError(
                f"start_frames {self.start_frames} exceeds start_window {self.start_window}: speech would never begin"
            )
        if self.release_db > self.margin_db:
            raise ValueError(
                f"release_db {self.release_db:g} exceeds margin_db {self.margin_db:g}: speech would not end"
            )


@dataclass(frozen=True)
class VadFrame:
    """One 20 ms frame. Times are milliseconds of sound since the start or the last reset."""

    end_ms: float
    level_db: float  # dBFS of its 100-1000 Hz
    threshold_db: float  # what the gate asks for now, to begin speech or to go on with it
    voiced: bool  # webrtcvad alone
    speech: bool  # the decision, smoothed
    onset_ms: float | None  # while speech: the estimated true onset of this stretch of it


class VoiceActivity:
    """Decides for one stream of 16 kHz mono sound. Not to be shared between threads."""

    def __init__(self, settings: VadSettings = VadSettings()) -> None:
        self.settings = settings
        self.reset()

    def reset(self) -> None:
        """Forget the sound so far, and with it the background: the next sample is the first of a stream."""
        background_frames = round(self.settings.background_s * 1000 / FRAME_MS)
        self._webrtc = webrtcvad.Vad(int(self.settings.aggressiveness))
        self._rest = np.zeros(0)
        self._filter_state = np.zeros((len(VOICE_BAND), 2))
        self._frames = 0
        self._powers: deque[float] = deque(maxlen=SMOOTH_FRAMES)
        self._levels: deque[float] = deque([SILENCE_DB] * STEADY_FRAMES, maxlen=STEADY_FRAMES)
        # The oldest leave first, so the quiet that stands for the unknown past is gone after UNKNOWN_FRAMES.
        unknown = [SILENCE_DB] * UNKNOWN_FRAMES + [math.inf] * (background_frames - UNKNOWN_FRAMES)
        self._backgrounds: deque[float] = deque(unknown, maxlen=background_frames)
        self._candidates: deque[bool] = deque(maxlen=int(self.settings.start_window))
        self._onset_ms: float | None = None
        self._pause_ms = self._spoken_ms = 0.0
        self._loudest = SILENCE_DB

    def push(self, samples: np.ndarray) -> list[VadFrame]:
        """The frames that `samples` complete: float in [-1, 1] (what exceeds it is clipped) or int16, any number.

        What is left over waits for the next push, so the frames do not depend on the blocks that sound comes in.
        """
        sound = np.concatenate([self._rest, _as_float(samples)])
        whole = len(sound) // FRAME * FRAME
        self._rest = sound[whole:]
        if not whole:
            return []
        pcm = to_pcm16(sound[:whole])
        voice, self._filter_state = sosfilt(VOICE_BAND, sound[:whole], zi=self._filter_state)
        powers = np.square(voice).reshape(-1, FRAME).mean(axis=1).tolist()
        frame_bytes = 2 * FRAME
        return [
            self._decide(power, self._webrtc.is_speech(pcm[i * frame_bytes : (i + 1) * frame_bytes], SAMPLE_RATE))
            for i, power in enumerate(powers)
        ]

    def _decide(self, power: float, voiced: bool) -> VadFrame:
        settings = self.settings
        self._frames += 1
        level = _decibels(power)
        self._levels.append(level)
        background = self._background(power)
        threshold = max(background + settings.margin_db, settings.least_level_db)
        release = max(threshold - settings.release_db, settings.least_level_db)
        if self._onset_ms is None:
            self._candidates.append(voiced and level > threshold)
            if sum(self._candidates) >= settings.start_frames:
                self._onset_ms = self._onset(release)
                self._pause_ms, self._spoken_ms = 0.0, settings.start_frames * FRAME_MS
                self._loudest = max(list(self._levels)[-int(settings.start_window) :])
        else:
            threshold = release
            if self._pause_ms > settings.hangover_ms:  # so in noise: fainter voices of others are not to make it last
                threshold = max(threshold, self._loudest - RESUME_DB)
            if voiced and level > threshold:
                self._pause_ms, self._loudest = 0.0, max(self._loudest, level)
                self._spoken_ms += FRAME_MS
            else:
                self._pause_ms += FRAME_MS
            if self._pause_ms > self._hangover_ms(background):
                self._onset_ms = None
                self._candidates.clear()
        return VadFrame(self._frames * FRAME_MS, level, threshold, voiced, self._onset_ms is not None, self._onset_ms)

    def _background(self, power: float) -> float:
        """Level of what sounds when nobody speaks, by what was heard up to and with a frame of this power."""
        self._powers.append(power)
        smoothed = _decibels(sum(self._powers) / len(self._powers))
        if max(self._levels) - min(self._levels) < STEADY_DB:
            self._backgrounds.clear()  # what was quieter before, such as a room without the fan, is over
        self._backgrounds.append(smoothed)
        return min(self._backgrounds)

    def _hangover_ms(self, background: float) -> float:
        """How long a pause speech lasts through: the longer, the less it stands out, but no longer than it has lasted,
        so that a clatter is over soon even in noise."""
        settings = self.settings
        drowned = (CLEAR_DB - (self._loudest - background)) / (CLEAR_DB - DROWNED_DB)
        more = min(max(drowned, 0), 1) * (settings.noisy_hangover_ms - settings.hangover_ms)
        return max(settings.hangover_ms, min(settings.hangover_ms + more, self._spoken_ms))

    def _onset(self, release: float) -> float:
        """Start of the run of frames above `release` that the newest candidate ends."""
        run = 0
        for level in reversed(self._levels):
            if level <= release or run == ONSET_FRAMES:
                break
            run += 1
        return (self._frames - run) * FRAME_MS


def _decibels(power: float) -> float:
    return max(10 * math.log10(power), SILENCE_DB) if power > 0 else SILENCE_DB


def _as_float(samples: np.ndarray) -> np.ndarray:
    samples = np.asarray(samples)
    if samples.ndim != 1:
        raise ValueError(f"the sound has shape {samples.shape}: give one channel, [samples]")
    if samples.dtype == np.int16:
        return samples / 32768
    if samples.dtype.kind != "f":
        raise ValueError(f"sound of type {samples.dtype} has no agreed full scale: give float32 in [-1, 1] or int16")
    if not np.isfinite(samples).all():
        where = int(np.flatnonzero(~np.isfinite(samples))[0])
        raise ValueError(f"the sound holds {samples[where]} at sample {where}: replace it with a finite number")
    return np.clip(samples.astype(np.float64), -1, 1)
