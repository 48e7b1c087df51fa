"""What int8 and nf4 change in a trained model's choices and hearing, against bfloat16 of the same checkpoint."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.report import Report
from most_core.assistant import Most
from most_core.generation import HEARD, TEXT, GenerationSettings, ReplyGrammar
from most_core.loading import load
from most_core.processing import Prompt, as_messages
from train.data import test_sets
from train.data.utterance import Utterance
from train.word_errors import rate, word_errors

REPLY = GenerationSettings(max_new_tokens=200)


@dataclass(frozen=True)
class Forced:
    """A prompt and the reply that every model is made to give to it."""

    prompt: Prompt
    reply: list[int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=Path("assets/nano"), help="checkpoint folder")
    parser.add_argument("--clips", type=int, default=60, help="clips of the test set `seen` to hear (default 60)")
    parser.add_argument("--data", type=Path, default=test_sets.FOLDER, help="where the test sets are kept")


def run(args: argparse.Namespace) -> Report:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("bench quantized needs bitsandbytes: pip install bitsandbytes")
    if args.clips < 2:
        raise ValueError(f"--clips {args.clips}: hear at least 2, a question and a sentence")
    if args.model.is_dir() and not (args.model / "config.json").is_file():
        raise ValueError(f"{args.model} has no decoder: name a whole checkpoint with --model")
    precise = load(args.model, device="cpu", dtype=torch.float32)
    if precise.encoder is None:
        raise ValueError(f"{args.model} has no speech_encoder: it cannot hear the clips")
    clips = spread(test_sets.load("seen", args.data), args.clips)
    questions = [clip for clip in clips if clip.task == "question"]
    forced = [_forced(precise, asked) for clip in questions for asked in (clip.wave, clip.text)]
    said = [clip.text for clip in clips]
    units = np.array([precise.tokens.is_audio(token) for each in forced for token in each.reply])

    report, expected, wrong = Report("quantized"), _choices(precise, forced), 0.0
    for name in ("bf16", "int8", "nf4"):
        most = load(args.model, device="cpu", dtype=torch.bfloat16, quantize=None if name == "bf16" else name)
        choices = _choices(most, forced)
        errors = rate(*word_errors(said, [most.transcribe(clip.wave) for clip in clips]))
        same = choices == expected
        if name == "bf16":
            report.figures["float32_top1"] = float(same.mean())
            expected, wrong = choices, errors
        else:
            report.figures[f"{name}_top1"] = float(same.mean())
            for part, rows in (("text", ~units), ("units", units)):
                if rows.any():
                    report.figures[f"{name}_top1_{part}"] = float(same[rows].mean())
            report.figures[f"{name}_asr_wer_points"] = 100 * (errors - wrong)
        report.figures[f"{name}_asr_wer"] = errors
    report.figures |= {"n_clips": len(clips), "n_replies": len(forced), "n_tokens": len(expected)}
    report.notes += [
        f"{args.model} on the CPU; top-1: every model is made to give the replies of the float32 one to "
        f"{len(questions)} questions, spoken and typed, and each likeliest token is compared with bfloat16's; "
        "float32_top1 is what rounding alone does",
        "points: word errors in a hundred more than bfloat16's",
    ]
    return report


def spread(utterances: Sequence[Utterance], count: int) -> list[Utterance]:
    """`count` of them, as evenly from end to end as questions and sentences alike allow."""
    found = []
    for task, some in (("question", -(-count // 2)), ("asr", count // 2)):
        of_task = [utterance for utterance in utterances if utterance.task == task]
        found += [of_task[i * len(of_task) // some] for i in range(min(some, len(of_task)))]
    return found


def _forced(most: Most, asked: np.ndarray | str) -> Forced:
    prompt = most.processor.prompt(as_messages(asked))
    grammar = ReplyGrammar(most.config, most.processor.special_ids, REPLY, HEARD if prompt.has_speech else TEXT)
    generation = most.loop.start(prompt, REPLY, grammar=grammar)
    try:
        while most.loop.step([generation]):
            pass
    finally:
        most.loop.finish(generation)
    return Forced(prompt, [token.id for token in generation.tokens])


@torch.inference_mode()
def _choices(most: Most, forced: Sequence[Forced]) -> np.ndarray:
    """The likeliest token at every place of all replies."""
    found = []
    for each in forced:
        ids = torch.tensor([each.prompt.ids + each.reply[:-1]])
        features = None if each.prompt.features is None else each.prompt.features[None].to(most.model.dtype)
        logits = most.model(ids, input_features=features).logits[0, len(each.prompt.ids) - 1 :]
        found.append(logits.argmax(-1).numpy())
    return np.concatenate(found)
