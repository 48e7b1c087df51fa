"""Users who break into what the assistant says, or murmur along with it: two voices on one clock.

The assistant does not stop at once. Its sound goes on for a reaction time after the user's first sound and ends after
a whole unit of speech, so what was really played can be told in units.
"""

from __future__ import annotations

import io
import json
import re
import wave
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from train.data.conversations import Conversation, Stretch
from train.data.shards import SAMPLE_RATE, to_pcm
from train.files import write_whole

FOLDER = "interrupted"
UNIT = 640  # samples
FRAME = 160  # samples: loudness is looked at, and moments are chosen, every 10 ms
REACTION = (10, 36)  # frames; rounding up to a whole unit makes them 100 to 400 ms
HEARD_BEFORE = 20  # frames of the answer that are heard before anybody breaks into it
PAUSE_S = (0.2, 0.7)  # between a turn and its answer
CHANNELS = ("user", "assistant")


@dataclass(frozen=True)
class Event:
    """A sentence or a user's turn as it was played: in seconds, on channel 0 (user, left) or 1 (assistant, right).

    `overlap_ms`: for how long somebody who interrupts or murmurs is heard together with the assistant. `cut_unit`: how
    many units were played of the sentence that was interrupted, of which `text` is the whole.
    """

    start: float
    end: float
    channel: int
    role: str
    text: str
    kind: Literal["main", "interrupt", "backchannel"] = "main"
    overlap_ms: int = 0
    cut_unit: int | None = None


@dataclass(frozen=True)
class Scene:
    """What was heard: sound, float32 [samples, 2], and its events in the order in which they begin."""

    sound: np.ndarray
    events: tuple[Event, ...]


def whole_units(sound: np.ndarray) -> np.ndarray:
    """The sound with silence after it, up to a whole unit: as a vocoder would make it."""
    return np.pad(sound, (0, -len(sound) % UNIT))


def break_into(
    conversation: Conversation, broken: int, murmur: Stretch | None, rng: np.random.Generator
) -> tuple[Conversation, Scene] | None:
    """The user breaks into assistant turn number `broken` with the next turn, or says `murmur` while it goes on.

    The user's turn before it and the one after it have sound, and so have the first sentences of the assistant's turn
    and of the reply, in whole units. The turn broken into comes back `cut`, its last stretch's sound ending where it
    was heard last, though its text is whole; sentences that never began are gone. A murmur asks for no reply: it is in
    the scene, not in the conversation. None if the answer is too short to be broken into.
    """
    turns = list(conversation.turns)
    answer = _spoken(turns[broken].stretches)
    reaction = int(rng.integers(REACTION[0], REACTION[1], endpoint=True))
    onset = _moment(np.concatenate([stretch.wave for stretch in answer]), reaction, rng) if answer else None
    if onset is None:
        return None
    stage = _Stage()
    begin = stage.play(0, "user", turns[broken - 1].stretches) + _pause(rng)
    if murmur is not None:
        end = stage.play(begin, "assistant", answer)
        murmur = _from_first_sound(murmur)
        overlap = min(len(murmur.wave), end - begin - onset)
        stage.play(begin + onset, "user", [murmur], kind="backchannel", overlap_ms=_milliseconds(overlap))
        return conversation, stage.scene()

    heard, cut_unit = _cut(answer, onset + reaction * FRAME)
    stop = stage.play(begin, "assistant", heard[:-1])
    stop = stage.play(stop, "assistant", heard[-1:], cut_unit=cut_unit)
    turns[broken] = replace(turns[broken], stretches=tuple(heard), cut=True)
    words = _from_first_sound(turns[broken + 1].stretches[0])
    turns[broken + 1] = replace(turns[broken + 1], stretches=(words,))
    overlap = _milliseconds(min(len(words.wave), stop - begin - onset))
    end = stage.play(begin + onset, "user", [words], kind="interrupt", overlap_ms=overlap)
    stage.play(max(end, stop) + _pause(rng), "assistant", _spoken(turns[broken + 2].stretches))
    return replace(conversation, turns=tuple(turns)), stage.scene()


class _Stage:
    """Clips as they are put on one clock, which counts samples."""

    def __init__(self) -> None:
        self._clips: list[tuple[int, int, np.ndarray]] = []
        self._events: list[Event] = []

    def play(
        self,
        start: int,
        role: str,
        stretches: Sequence[Stretch],
        kind: Literal["main", "interrupt", "backchannel"] = "main",
        overlap_ms: int = 0,
        cut_unit: int | None = None,
    ) -> int:
        """Play stretches one after the other; returns when the last of them has ended."""
        channel = CHANNELS.index(role)
        for stretch in stretches:
            end = start + len(stretch.wave)
            seconds = start / SAMPLE_RATE, end / SAMPLE_RATE
            self._clips.append((start, channel, stretch.wave))
            self._events.append(Event(*seconds, channel, role, stretch.text, kind, overlap_ms, cut_unit))
            start = end
        return start

    def scene(self) -> Scene:
        sound = np.zeros((max(start + len(clip) for start, _, clip in self._clips), 2), np.float32)
        for start, channel, clip in self._clips:
            sound[start : start + len(clip), channel] = clip
        return Scene(sound, tuple(sorted(self._events, key=lambda event: event.start)))


def _spoken(stretches: Sequence[Stretch]) -> list[Stretch]:
    return [stretch for stretch in stretches if stretch.wave is not None]


def _cut(answer: list[Stretch], stop: int) -> tuple[list[Stretch], int]:
    """What is heard of an answer that shall stop after `stop` samples, and how many units of its last sentence."""
    begins = np.cumsum([0, *(len(stretch.wave) for stretch in answer)])
    last = int(np.searchsorted(begins, stop)) - 1
    units = -int((begins[last] - stop) // UNIT)  # rounded up
    return [*answer[:last], replace(answer[last], wave=answer[last].wave[: units * UNIT])], units


def _moment(answer: np.ndarray, reaction: int, rng: np.random.Generator) -> int | None:
    """A random sample of the answer, a while after it began, from which it is heard during most of `reaction`."""
    loud = _loud(answer)
    first = int(np.argmax(loud)) + HEARD_BEFORE
    before = np.cumsum([0, *loud])
    moments = np.flatnonzero(before[reaction:] - before[:-reaction] > reaction / 2)
    moments = moments[moments >= first]
    return int(rng.choice(moments)) * FRAME if len(moments) else None


def _from_first_sound(stretch: Stretch) -> Stretch:
    return replace(stretch, wave=stretch.wave[int(np.argmax(_loud(stretch.wave))) * FRAME :])


def _loud(sound: np.ndarray) -> np.ndarray:
    """Which frames are within 30 dB of the loudest."""
    frames = sound[: len(sound) // FRAME * FRAME].reshape(-1, FRAME)
    levels = np.square(frames).mean(1)
    return levels > 1e-3 * levels.max()


def _pause(rng: np.random.Generator) -> int:
    return round(rng.uniform(*PAUSE_S) * SAMPLE_RATE)


def _milliseconds(samples: int) -> int:
    return round(1000 * samples / SAMPLE_RATE)


def write_scene(out: Path, name: str, scene: Scene) -> None:
    """Write `interrupted/NAME.wav` (16-bit, user left, assistant right) and its events as `.json`."""
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(len(CHANNELS))
        sound.setsampwidth(2)
        sound.setframerate(SAMPLE_RATE)
        sound.writeframes(to_pcm(scene.sound).tobytes())
    events = [asdict(event) for event in scene.events]
    content = {"id": name, "sample_rate": SAMPLE_RATE, "samples_a_unit": UNIT, "events": events}
    stem = safe_name(name)
    write_whole(folder / f"{stem}.wav", file.getvalue())
    write_whole(folder / f"{stem}.json", json.dumps(content, indent=1, ensure_ascii=False).encode())


def safe_name(name: str) -> str:
    """A conversation's id as the name of a file."""
    return re.sub(r"[^\w.-]", "_", name.replace("/", "-"))
