"""How long a spoken question waits for its answer: from its last sample to the answer's first, stage by stage."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch

from bench.report import Report
from most_core.assistant import Done, Most, Reply, SpeechDelta
from most_core.generation import GenerationSettings
from most_core.loading import load, untrained
from most_core.processing import MostProcessor
from most_core.speech import SpeechEncoder
from most_core.vocoder import Vocoder
from train.data.voices import MissingEngine, SynthesisError, Synthesizer, training_voices
from train.data.world import exchanges

QUESTIONS, SEED = 24, 61
SAMPLES = Path("assets/samples")
# An untrained model never stops by itself. Questions of nano's world have a median of 7 words, answers of 5, said in
# two seconds; a token is a little less than a word.
HEARD, WORDS, UNITS = 9, 7, 50
ORDINARY = GenerationSettings(
    max_heard_tokens=HEARD,
    max_sentence_tokens=WORDS,
    max_sentence_units=UNITS,
    max_new_tokens=HEARD + WORDS + UNITS + 3,  # and the ends of each
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=Path("assets/nano"), help="checkpoint folder")
    parser.add_argument("--untrained", action="store_true", help="random weights in place of the folder's decoder")
    parser.add_argument("--rounds", type=int, default=3, help="times that each question is asked (default 3)")


def run(args: argparse.Namespace) -> Report:
    if args.rounds < 1:
        raise ValueError(f"--rounds {args.rounds}: ask at least once")
    most = _untrained(args.model) if args.untrained else _trained(args.model)
    settings = ORDINARY if args.untrained else GenerationSettings()
    report = Report("latency")
    waves = questions(report)
    measured: dict[int, list[dict[str, float]]] = {2: [], 1: []}
    before = torch.get_num_threads()
    try:
        for number in range(args.rounds + 1):
            for threads, found in measured.items():
                torch.set_num_threads(threads)
                if number:
                    found += [row for wave in waves if (row := asked(most, wave, settings))]
                else:
                    asked(most, waves[0], settings)  # warms up
    finally:
        torch.set_num_threads(before)
    for threads, rows in measured.items():
        if not rows:
            raise ValueError("no answer had any sound: there is no first sample to wait for")
        for name, value in summed_up(rows).items():
            report.figures[name if threads == 2 else f"{name}_{threads}t"] = value
    report.figures["n"] = len(waves)
    seconds = statistics.median(len(wave) for wave in waves) / 16_000
    what = "random weights, replies cut to an ordinary length" if args.untrained else str(args.model)
    report.notes += [
        f"{what}, {most.model.dtype}, {len(waves)} questions of {seconds:.1f} s (median), asked {args.rounds} time(s) "
        f"at 2 threads and at 1; {len(waves) * args.rounds - len(measured[1])} answers without sound left out",
        "first_unit_ms and first_sound_ms count from the end of the question; encode + prefill + text = first unit, "
        "and first_chunk_ms is from there to the first sample; vocoder_ms is of the whole reply",
        f"OMP_WAIT_POLICY is {os.environ.get('OMP_WAIT_POLICY', 'not set')}: unless it is passive, two threads whose "
        "cores other programs use, too, lose much time waiting for each other",
    ]
    return report


def asked(most: Most, wave: np.ndarray, settings: GenerationSettings) -> dict[str, float] | None:
    """Milliseconds of one question's answer by name, `rtf` and `reply_s`; None if it has no sound."""
    start, first, reply = time.perf_counter(), None, None
    for event in most.stream(wave, settings=settings):
        if isinstance(event, SpeechDelta) and first is None:
            first = (time.perf_counter() - start) * 1e3
        elif isinstance(event, Done):
            reply = event.reply
    seconds = time.perf_counter() - start
    return None if first is None else _row(reply, first, seconds)


def _row(reply: Reply, first: float, seconds: float) -> dict[str, float]:
    timings, length = reply.timings, len(reply.waveform) / reply.sample_rate
    return {
        "first_sound_ms": first,
        "rtf": seconds / length,
        "encode_ms": timings["encode"],
        "prefill_ms": timings["prefill"],
        "heard_ms": timings["heard"],
        "text_ms": timings["first_unit"] - timings["encode"] - timings["prefill"],
        "first_unit_ms": timings["first_unit"],
        "first_chunk_ms": timings["first_sound"] - timings["first_unit"],
        "vocoder_ms": timings["vocoder"],
        "reply_s": length,
    }


def summed_up(rows: list[dict[str, float]]) -> dict[str, float]:
    """Medians, and the 95th percentile of the first sound."""
    found = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    waits = [row["first_sound_ms"] for row in rows]
    first = {
        "first_sound_ms_p50": found.pop("first_sound_ms"),
        "first_sound_ms_p95": float(np.percentile(waits, 95)),
    }
    return first | found


def questions(report: Report) -> list[np.ndarray]:
    """Questions of nano's world with held-out wording, each in a voice of its own; without the engines, the samples."""
    try:
        return list(_spoken())
    except MissingEngine as error:
        report.notes.append(f"the questions are those of {SAMPLES} alone: {error}")
    paths = sorted(SAMPLES.glob("*.wav"))
    if not paths:
        raise FileNotFoundError(f"there are no questions: {SAMPLES} holds no wav, and no speech engine is installed")
    return [soundfile.read(path, dtype="float32")[0] for path in paths]


def _spoken() -> Iterator[np.ndarray]:
    texts = dict.fromkeys(item.question for item in exchanges("test", SEED, 2 * QUESTIONS))
    with Synthesizer() as synthesizer:
        for number, text in enumerate(list(texts)[:QUESTIONS]):
            try:
                yield synthesizer.speak(text, training_voices(SEED, number))
            except SynthesisError:  # a voice that cannot say it
                yield synthesizer.speak(text, training_voices(SEED, number + QUESTIONS))


def _trained(folder: Path) -> Most:
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} has no decoder: name a whole checkpoint with --model, or say --untrained for random weights"
        )
    most = load(folder, device="cpu")
    for part, what in ((most.encoder, "speech_encoder"), (most.vocoder, "vocoder")):
        if part is None:
            raise ValueError(f"{folder} has no {what}: a spoken answer to a spoken question needs both")
    return most


def _untrained(folder: Path) -> Most:
    """Random decoder between the folder's own ears and mouth, whose cost depends on their shape."""
    most = untrained("nano")
    processor = MostProcessor(most.config, most.processor.tokenizer, SpeechEncoder.load(folder))
    return Most(most.model, most.loop.decoder, processor, Vocoder.load(folder))
