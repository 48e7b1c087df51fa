"""`python app.py --ask`: one question from the command line, answered without opening the page."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from app.audio import read_sound
from most_core import Most, Reply

SOUND_SUFFIXES = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".webm", ".mp4", ".aif", ".aiff"}


@dataclass(frozen=True)
class Question:
    """Typed, or spoken: `sound` is then its samples and their rate."""

    text: str = ""
    sound: tuple[np.ndarray, int] | None = None


def read_question(given: str) -> Question:
    """The recording of that name, or what was typed. ValueError or OSError where a recording cannot be had."""
    if not given.strip():
        raise ValueError("--ask is empty: give a recording or a question in quotes")
    if os.path.isdir(given):
        raise ValueError(f"--ask {given}: this is a folder; give a recording or a question in quotes")
    if os.path.exists(given):  # not pathlib's, which fails on long questions
        samples, rate = read_sound(given)
        if not len(samples):
            raise ValueError(f"{given} holds no sound: it is empty")
        return Question(sound=(samples, rate))
    if Path(given).suffix.lower() in SOUND_SUFFIXES:
        raise FileNotFoundError(f"there is no recording {given}: correct the path after --ask")
    return Question(text=given)


def check_out(path: Path, flag: str = "--out") -> None:
    """OSError if nothing could be written there: better known before the model is loaded."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{flag} {path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise IsADirectoryError(f"{flag} {path}: this is a folder; name a file in it")


def answer(most: Most, question: Question, trace: bool = False) -> Reply:
    """The model's reply; with `trace` it knows which expert took which token."""
    if trace and not most.config.moe_layers:
        raise ValueError("--trace: this model has no experts to trace")
    if question.sound is None:
        return most.answer(question.text, record_routing=trace)
    samples, rate = question.sound
    return most.answer(samples, sampling_rate=rate, record_routing=trace)


def told(reply: Reply, spoken: bool) -> str:
    """A reply in a few lines for people."""
    length = len(reply.waveform) / reply.sample_rate
    took = [f"{name.replace('_', ' ')} {ms:.0f}" for name, ms in reply.timings.items()]
    return "\n".join(
        [
            f"{'heard' if spoken else 'asked':10}  {reply.heard}",
            f"{'answer':10}  {reply.text}",
            f"{'confidence':10}  {reply.confidence:.2f}",
            f"{'sound':10}  " + (f"{length:.1f} s" if length else "none"),
            f"{'took, ms':10}  " + ", ".join(took),
        ]
    )


def write_sound(reply: Reply, path: Path) -> None:
    """16 bit WAV, whatever the name ends with."""
    if not len(reply.waveform):
        raise ValueError(f"the answer has no sound: {path} was not written")
    with open(path, "wb") as file:
        soundfile.write(file, reply.waveform, reply.sample_rate, subtype="PCM_16", format="WAV")
