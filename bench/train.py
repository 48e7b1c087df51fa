"""Stage 1 at nano's shape: our training step against a plain loop: padded, not bucketed, expert by expert."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import MethodType

import numpy as np
import torch
from torch import nn

from bench.report import Report, interleaved
from most_core.config import MostConfig
from most_core.model import MostPerExpertForCausalLM
from train.config import find_config, load_config
from train.data.lesson_mixture import Batch, LessonMixture, padded
from train.data.lessons import Form, put_together
from train.data.made_up import write_made_up
from train.half_products import half_products
from train.routing_watch import RoutingWatch
from train.stages import Config, Learners, Tally, losses_of, make_optimizer, take_step
from train.start import shape_of, starting_model
from train.workers import keep_memory

ROWS = 600  # lessons of each task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=7, help="interleaved pairs (default 7)")
    parser.add_argument("--config", default="stage1-nano", help="preset or YAML file (default: stage1-nano)")


def run(args: argparse.Namespace) -> Report:
    config = load_config(Config, find_config(args.config))
    shape = shape_of(config.start, config.shape)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as rivals:
        for task in config.mixture:
            write_made_up(Path(folder) / task, task, shape, ROWS)
        _check_same(config, _mixture(config, Path(folder))[0])
        processes = min(config.micro_batches, os.cpu_count() or 1)
        ours = rivals.enter_context(_started(_our_process, processes, config, Path(folder)))
        plain = rivals.enter_context(_started(_plain_process, 1, config, Path(folder)))
        shares: list[dict[str, float]] = []
        tokens: dict[str, list[int]] = {"ours": [], "plain": []}

        def our_step() -> None:
            made = ours()
            tokens["ours"].append(sum(count for count, _ in made))
            shares.append(made[0][1])

        seconds = interleaved(
            {"ours": our_step, "plain": lambda: tokens["plain"].append(plain()[0][0])}, args.rounds, warmup=2
        )
    rates = {name: [t / s for t, s in zip(tokens[name][2:], seconds[name])] for name in tokens}
    report = Report("train")
    report.figures["tokens_per_s"] = statistics.median(rates["ours"])
    report.figures["plain_tokens_per_s"] = statistics.median(rates["plain"])
    report.figures["ratio_plain"] = statistics.median(a / b for a, b in zip(rates["ours"], rates["plain"]))
    for name in shares[0]:
        report.figures[f"share_{name}"] = statistics.median(each[name] / sum(each.values()) for each in shares[2:])
    report.notes.append(
        f"{config.start}, mixture {config.mixture}, made-up lessons as long as nano's; ours: "
        f"{processes} process(es) of one thread with products in {config.precision}, as `train stage1` has; plain: one "
        f"process of {os.cpu_count()} threads in float32; tokens without padding"
    )
    return report


def _mixture(config: Config, folder: Path) -> LessonMixture:
    shape = shape_of(config.start, config.shape)
    tokens, table, size, pad = config.micro_batch_tokens, shape.tokens, shape.speech_feature_size, shape.pad_token_id
    return LessonMixture(folder, config.mixture, table, size, pad, tokens, config.forms, config.noise, config.seed)


@contextmanager
def _started(
    work: Callable[..., None], count: int, config: Config, folder: Path
) -> Iterator[Callable[[], list[tuple[int, dict[str, float]]]]]:
    """Processes that take one step each time they are told to, and say how many tokens it had and what it spent."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    pipes = [context.Pipe() for _ in range(count)]
    started = [
        context.Process(target=work, args=(theirs, rank, count, port, config, folder), daemon=True)
        for rank, (_, theirs) in enumerate(pipes)
    ]
    for process, (_, theirs) in zip(started, pipes):
        process.start()
        theirs.close()  # or a child that ends early would never be missed

    def step() -> list[tuple[int, dict[str, float]]]:
        for mine, _ in pipes:
            mine.send(True)
        return [mine.recv() for mine, _ in pipes]

    try:
        yield step
    finally:
        for (mine, _), process in zip(pipes, started):
            with suppress(OSError):
                mine.send(False)
            process.join(timeout=10)
            process.terminate()


def _our_process(pipe: Connection, rank: int, workers: int, port: int, config: Config, folder: Path) -> None:
    torch.set_num_threads(1)
    keep_memory()
    if workers > 1:
        address = f"tcp://127.0.0.1:{port}"
        torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=workers)
    watch, count = _Stopwatch(), 0
    step = _our_step(config, _mixture(config, folder), watch, rank, workers)
    while pipe.recv():
        watch.begin()
        tokens, count = step(count), count + 1
        pipe.send((tokens, watch.seconds))


def _plain_process(pipe: Connection, rank: int, workers: int, port: int, config: Config, folder: Path) -> None:
    step = _plain_step(config, _mixture(config, folder))
    while pipe.recv():
        pipe.send((step(), {}))


class _Stopwatch:
    """Seconds of a step, by what they were spent on."""

    def begin(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


def _our_step(
    config: Config, mixture: LessonMixture, watch: _Stopwatch, rank: int, workers: int
) -> Callable[[int], int]:
    """One step of `train stage1`, timed by parts."""
    model = starting_model(config.start, config.shape, config.seed).train()
    computing = half_products if config.precision == "bfloat16" else nullcontext
    learners = Learners(model, make_optimizer(config, model), RoutingWatch(model), model.config, None, computing)
    tally = Tally(model.config.tokens)
    model.register_forward_pre_hook(lambda *_: watch.lap("backward"))  # of the micro-batch before
    model.register_forward_hook(lambda *_: watch.lap("forward"))
    learners.optimizer.register_step_pre_hook(lambda *_: watch.lap("backward"))

    def step(number: int) -> int:
        numbers = range(number * config.micro_batches + rank, (number + 1) * config.micro_batches, workers)
        batches = [mixture[micro] for micro in numbers]
        watch.lap("data")
        take_step(config, number, learners, batches, tally, workers)
        watch.lap("update")
        return sum(int(batch.valid.sum()) for batch in batches)

    return step


def _plain_step(config: Config, mixture: LessonMixture) -> Callable[[], int]:
    """As many tokens of lessons in the order they come, padded to the longest; all logits; a loop over all experts."""
    model = _plain_model(shape_of(config.start, config.shape)).train()
    optimizer, rng = make_optimizer(config, model), np.random.default_rng(0)
    everything = list(mixture.lessons.values())
    shares = [config.mixture[task] for task in mixture.lessons]
    mean = np.mean([lessons.lengths.mean() for lessons in everything])
    rows = max(1, round(config.micro_batch_tokens / mean))

    def step() -> int:
        total = 0
        for _ in range(config.micro_batches):
            drawn = [everything[rng.choice(len(everything), p=shares)] for _ in range(rows)]
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


def _check_same(config: Config, batch: Batch) -> None:
    """ValueError if both models do not compute the same from the same weights."""
    ours = starting_model(config.start, config.shape, config.seed)
    plain = _plain_model(ours.config)
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
