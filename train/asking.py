"""A model that is asked many things: by several processes where that is faster, through the verbs of `Most` alone."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

import most_core
from most_core import GenerationSettings, Message, Most
from most_core.speech import SAMPLE_RATE, check_waveform
from train.progress import Progress
from train.workers import end_with_parent

SILENT = GenerationSettings(speak=False, max_new_tokens=256)  # four times the longest answer with what was heard
ALOUD = GenerationSettings()


@dataclass(frozen=True)
class Answer:
    """What of a `Reply` is judged. `wave` is float32 at 16 kHz, empty where nothing was said."""

    text: str
    heard: str
    confidence: float
    finish_reason: str
    wave: np.ndarray


class Asking:
    """`with Asking(folder) as asking: asking.answers(...)`: results come in the order in which things were asked.

    On a CPU each worker is a process with one thread; one worker, or a GPU, is this process itself.
    """

    def __init__(self, model: Path, device: str = "cpu", workers: int = 1, direct: bool = False) -> None:
        self.most = most_core.load(model, device)
        self.direct = direct
        self._threads, self._pool = torch.get_num_threads(), None
        if device == "cpu" and workers > 1:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(model,))
        elif device == "cpu":
            torch.set_num_threads(1)

    def __enter__(self) -> Asking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._threads)

    def answers(self, asked: Sequence[Sequence[Message]], aloud: bool = False, title: str = "") -> list[Answer]:
        """The reply to each conversation, with sound if `aloud`; without the words that were heard if `direct`."""
        settings = replace(ALOUD if aloud else SILENT, say_heard=not self.direct)
        return self._each(partial(_answer, settings), asked, title)

    def transcripts(self, waves: Sequence[np.ndarray], title: str = "") -> list[str]:
        return self._each(_transcribe, waves, title)

    def sounds(self, texts: Sequence[str], title: str = "") -> list[np.ndarray]:
        """Each text read aloud, float32 at 16 kHz."""
        return self._each(_speak, texts, title)

    def _each(self, work: Callable[[Most, Any], Any], items: Sequence[Any], title: str) -> list[Any]:
        if self._pool is None:
            results = (work(self.most, item) for item in items)
        else:
            results = self._pool.map(_in_worker, [work] * len(items), items, chunksize=4)
        done = []
        with Progress(None, len(items), title=title, unit="item") as progress:
            for row, result in enumerate(results):
                done.append(result)
                progress.update(row)
        return done


def said(wave: np.ndarray, history: Sequence[tuple[str, str]] = ()) -> list[Message]:
    """A conversation that ends with a clip, float32 at 16 kHz, after (user, assistant) turns that are written."""
    part = {"type": "audio", "audio": wave, "sampling_rate": SAMPLE_RATE}
    return [*_turns(history), {"role": "user", "content": [part]}]


def typed(text: str, history: Sequence[tuple[str, str]] = ()) -> list[Message]:
    """The same that ends with a text."""
    return [*_turns(history), {"role": "user", "content": text}]


def _turns(history: Sequence[tuple[str, str]]) -> list[Message]:
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for turn in history for role, text in zip(roles, turn)]


_most: Most


def _start(model: Path) -> None:
    global _most
    end_with_parent()
    torch.set_num_threads(1)
    _most = most_core.load(model, "cpu")


def _in_worker(work: Callable[[Most, Any], Any], item: Any) -> Any:
    return work(_most, item)


def _answer(settings: GenerationSettings, most: Most, messages: Sequence[Message]) -> Answer:
    reply = most.answer(messages, settings=settings)
    wave = check_waveform(reply.waveform, reply.sample_rate) if len(reply.waveform) else reply.waveform
    return Answer(reply.text, reply.heard, reply.confidence, reply.finish_reason, wave)


def _transcribe(most: Most, wave: np.ndarray) -> str:
    return most.transcribe(wave)


def _speak(most: Most, text: str) -> np.ndarray:
    wave, rate = most.speak(text)
    return check_waveform(wave, rate) if len(wave) else wave
