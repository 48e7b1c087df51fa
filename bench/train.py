"""Stage 1 at nano's shape: our training step against a plain loop: padded, not bucketed, expert by expert."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import MethodType

import numpy as np
import torch
from torch import nn

from bench.report import Report, interleaved
from most_core.config import MostConfig
from most_core.model import MostForCausalLM, MostPerExpertForCausalLM
from train.config import find_config, load_config
from train.data.lesson_mixture import Batch, LessonMixture, padded
from train.data.lessons import Form, put_together
from train.data.made_up import write_made_up
from train.routing_watch import RoutingWatch
from train.stages import Config, Learners, Tally, losses_of, make_optimizer, take_step

ROWS = 600  # lessons of each task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=7, help="interleaved pairs (default 7)")
    parser.add_argument("--threads", type=int, default=None, help="torch threads (default: all cores)")
    parser.add_argument(
        "--config", default="stage1-nano", help="a preset or YAML file of stage 1 (default: stage1-nano)"
    )


def run(args: argparse.Namespace) -> Report:
    if args.threads:
        torch.set_num_threads(args.threads)
    config = load_config(Config, find_config(args.config))
    torch.manual_seed(0)
    shape = MostConfig.preset(config.start, **config.shape)
    ours, plain = MostForCausalLM(shape).train(), _plain_model(shape).train()
    with tempfile.TemporaryDirectory() as folder:
        return _compare(config, ours, plain, Path(folder), args.rounds)


def _compare(config: Config, ours: MostForCausalLM, plain: nn.Module, folder: Path, rounds: int) -> Report:
    shape = ours.config
    for task in config.mixture:
        write_made_up(folder / task, task, shape, ROWS)
    table, size, pad = shape.tokens, shape.speech_feature_size, shape.pad_token_id
    mixture = LessonMixture(
        folder, config.mixture, table, size, pad, config.micro_batch_tokens, config.forms, config.noise, config.seed
    )
    _check_same(ours, plain, mixture[0])
    shares = _Stopwatch()
    steps = {"ours": _our_step(config, ours, mixture, shares), "plain": _plain_step(config, plain, mixture)}
    tokens: dict[str, list[int]] = {name: [] for name in steps}
    runs = {name: lambda name=name: tokens[name].append(steps[name]()) for name in steps}
    seconds = interleaved(runs, rounds)
    rates = {name: [t / s for t, s in zip(tokens[name][1:], seconds[name])] for name in steps}
    report = Report("train")
    report.figures["tokens_per_s"] = statistics.median(rates["ours"])
    report.figures["plain_tokens_per_s"] = statistics.median(rates["plain"])
    report.figures["ratio_plain"] = statistics.median(a / b for a, b in zip(rates["ours"], rates["plain"]))
    report.figures |= {f"share_{name}": share for name, share in shares.shares().items()}
    report.notes.append(
        f"{config.start}, {config.precision}, one process of {torch.get_num_threads()} threads, made-up lessons as "
        f"long as nano's, mixture {config.mixture}; tokens without padding"
    )
    return report


class _Stopwatch:
    """Seconds by name, of all steps but the first, which warms up."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, float]] = []

    def begin(self) -> None:
        self.rounds.append({})
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.rounds[-1][name] = self.rounds[-1].get(name, 0.0) + now - self._last
        self._last = now

    def shares(self) -> dict[str, float]:
        names = self.rounds[0]
        return {name: statistics.median(r[name] / sum(r.values()) for r in self.rounds[1:]) for name in names}


def _our_step(config: Config, model: MostForCausalLM, mixture: LessonMixture, watch: _Stopwatch) -> Callable[[], int]:
    """One step of `train stage1`, timed by parts."""
    learners = Learners(model, make_optimizer(config, model), RoutingWatch(model), model.config, None)
    tally = Tally(model.config.tokens)
    model.register_forward_pre_hook(lambda *_: watch.lap("backward"))  # of the micro-batch before
    model.register_forward_hook(lambda *_: watch.lap("forward"))
    learners.optimizer.register_step_pre_hook(lambda *_: watch.lap("backward"))
    count = iter(range(1 << 30))

    def step() -> int:
        number = next(count)
        watch.begin()
        batches = [mixture[number * config.micro_batches + micro] for micro in range(config.micro_batches)]
        watch.lap("data")
        take_step(config, number, learners, batches, tally, 1)
        watch.lap("update")
        return sum(int(batch.valid.sum()) for batch in batches)

    return step


def _plain_step(config: Config, model: nn.Module, mixture: LessonMixture) -> Callable[[], int]:
    """As many tokens of lessons in the order they come, padded to the longest; all logits; a loop over all experts."""
    optimizer, rng = make_optimizer(config, model), np.random.default_rng(0)
    everything = list(mixture.lessons.values())
    mean = np.mean([lessons.lengths.mean() for lessons in everything])
    rows = max(1, round(config.micro_batch_tokens / mean))

    def step() -> int:
        total = 0
        for _ in range(config.micro_batches):
            drawn = [everything[rng.choice(len(everything), p=list(config.mixture.values()))] for _ in range(rows)]
            lessons = [each[int(rng.integers(len(each)))] for each in drawn]
            taken = [put_together(lesson, Form(), mixture.table) for lesson in lessons]
            batch = padded("mixed", taken, [lesson.id for lesson in lessons], mixture.pad)
            labels = batch.ids.masked_fill(~batch.targets, -100)
            made = model(input_ids=batch.ids, attention_mask=batch.valid, input_features=batch.features, labels=labels)
            (made.loss / config.micro_batches).backward()
            total += int(batch.valid.sum())
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def _plain_model(shape: MostConfig) -> MostPerExpertForCausalLM:
    """The model with a module for each expert, all of them called one after the other, as public code trains it."""
    model = MostPerExpertForCausalLM(shape)
    for layer in shape.moe_layers:
        experts = model.model.layers[layer].mlp.experts
        experts.forward = MethodType(_all_experts, experts)
    return model


def _all_experts(
    experts: nn.ModuleList, hidden: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The public code's way while training: every token once for each of its experts, picked out expert by expert."""
    flat, repeated = indices.reshape(-1), hidden.repeat_interleave(indices.shape[1], dim=0)
    made = torch.empty_like(repeated)
    for number, expert in enumerate(experts):
        made[flat == number] = expert(repeated[flat == number])
    return (made.view(*indices.shape, -1) * weights[..., None]).sum(1).to(hidden.dtype)


def _check_same(ours: MostForCausalLM, plain: nn.Module, batch: Batch) -> None:
    """Give both the same weights; ValueError if they do not compute the same."""
    state = ours.state_dict()
    for name in [name for name in state if ".experts." in name]:
        stem, kind = name.rsplit(".", 1)
        for number, matrix in enumerate(state.pop(name)):
            if kind == "gate_up_proj":
                gate, up = matrix.chunk(2)
                state |= {f"{stem}.{number}.gate_proj.weight": gate, f"{stem}.{number}.up_proj.weight": up}
            else:
                state[f"{stem}.{number}.down_proj.weight"] = matrix
    plain.load_state_dict(state)
    with torch.no_grad():
        gap = (losses_of(ours, batch)[0] - losses_of(plain, batch)[0]).abs().max()
    if gap > 1e-3:
        raise ValueError(f"losses differ by {float(gap):.3g}: the comparison would be void")
