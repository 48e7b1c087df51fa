"""Lessons of random tokens, as long as nano's are: to try a training, or time it, where there is no speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from most_core.config import MostConfig
from train.data.lessons import Lesson, describe_lessons, write_lessons
from train.data.shards import write_manifest

WORDS = (2, 16)  # of a sentence, and how long nano's voices take to say one
SECONDS_A_WORD, SILENCE_S, TOKENS_A_WORD = 0.33, 0.5, 1.4
ASK, SAY = 4, 5  # stand for the ids that begin a turn


def write_made_up(folder: Path, task: str, shape: MostConfig, rows: int) -> None:
    """Write a folder of lessons for a task, the same ones every time."""
    path = folder / "lessons-00000.arrow"
    rng = np.random.default_rng(0)
    write_lessons(path, [_lesson(task, shape, number, rng) for number in range(rows)])
    write_manifest(folder, [describe_lessons(path)], {"command": "made up"})


def _lesson(task: str, shape: MostConfig, number: int, rng: np.random.Generator) -> Lesson:
    table, words = shape.tokens, int(rng.integers(*WORDS, endpoint=True))
    text = rng.integers(10, table.first_unit, round(TOKENS_A_WORD * words)).tolist()
    frames = round(shape.audio_rate_hz * (SILENCE_S + SECONDS_A_WORD * words))
    start, end, heard = [shape.bos_token_id, ASK], shape.eos_token_id, [table.wave_start, table.wave_end]
    spoken = [table.audio_start, table.audio_end]
    asked, reply, listens, speaks = {
        "asr": ([*start, *heard, SAY], [*text, end], True, False),
        "tts": ([*start, *text, SAY], [*spoken, end], False, True),
        "text": ([shape.bos_token_id], [*text, end], False, False),
        "speech_instructions": ([*start, *heard, SAY], [*text, table.heard_end, *text, *spoken, end], True, True),
        "text_instructions": ([*start, *text, SAY], [*text, *spoken, end], False, True),
    }[task]
    clips = np.array([frames] * (listens + speaks), np.int32)
    return Lesson(
        id=f"{task}-{number}",
        task=task,
        source="made up",
        licence="none",
        split="train",
        text="",
        ids=np.array([*asked, *reply], np.int32),
        replies=np.array([[len(asked), len(asked) + len(reply)]], np.int32),
        clips=clips,
        units=rng.integers(0, table.num_units, int(clips.sum())).astype(np.int32),
        features=rng.standard_normal((frames * listens, shape.speech_feature_size)).astype(np.float16),
    )
