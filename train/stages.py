"""`python -m train stage1` and `stage2`: the language model learns to hear, speak and answer.

One step takes `micro_batches` from the mixture, each of one task, divided among the processes. Its gradient is that of
the summed losses of all tokens to be said, divided by their number, whoever computed which. So the number of processes
changes nothing but rounding.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from most_core.checkpoint_files import written_whole
from most_core.config import MostConfig, TokenTable
from most_core.processing import load_tokenizer
from train.checkpoints import resume, save_checkpoint
from train.config import RunOptions, claim, config_hash, deadline
from train.data.lesson_mixture import Batch, Forms, LessonMixture
from train.data.made_up import write_made_up
from train.data.shards import MANIFEST
from train.files import sha256_of
from train.half_products import half_products
from train.muon import Muon
from train.progress import Progress, plot_losses
from train.routing_watch import RoutingWatch
from train.sharding import gather_state, make_mesh, processes, reshard, shard, spread_state
from train.stage_config import TASKS, Config, learning_rate
from train.start import shape_of, starting_model
from train.trainable import learned, make_trainable, trained_parameters
from train.workers import agreed, run_workers, shown_by, sum_gradients

DRY_PARAMETERS, DRY_LESSONS = 100e6, 60


def run(config: Config, out: Path, options: RunOptions) -> int:
    """Train, or go on training, in `out`; leaves `out/model`, a folder of decoder and tokenizer. 1 if time ran out."""
    if options.dry_run:
        return _dry_run(config)
    _mixture(config, shape_of(config.start, config.shape), config.lessons, config.mixture, as_it_is=True, verify=True)
    if config.check is not None and not any((config.check / task / MANIFEST).is_file() for task in TASKS):
        raise FileNotFoundError(f"check: {config.check} holds no lessons: prepare some, or say check=null")
    if "WORLD_SIZE" not in os.environ:
        claim(out, config, fresh=options.fresh, made=("model",), inputs=_inputs(config))
        run_workers(_work, config.micro_batches, config, out, options)
        return 0 if (out / "model").is_dir() else 1
    state = processes(options.device)  # accelerate or torchrun started one process a GPU
    if config.micro_batches % state.num_processes:
        raise ValueError(
            f"micro_batches is {config.micro_batches}, but there are {state.num_processes} processes: give a multiple"
        )
    if state.is_main_process:
        claim(out, config, fresh=options.fresh, made=("model", "checkpoints"), inputs=_inputs(config))
    state.wait_for_everyone()
    _work(state.process_index, state.num_processes, state.device, config, out, options)
    state.wait_for_everyone()
    return 0 if (out / "model").is_dir() else 1


def _inputs(config: Config) -> dict[str, str]:
    """Digests of the weights to start from and of the lessons: others at the same place must not be gone on with."""
    parts = sorted(Path(config.start).glob("model*.safetensors")) if Path(config.start).is_dir() else []
    parts += [config.lessons / task / MANIFEST for task, share in config.mixture.items() if share > 0]
    return {str(path): sha256_of(path)[:16] for path in parts}


def _mixture(
    config: Config,
    shape: MostConfig,
    folder: Path,
    shares: Mapping[str, float],
    *,
    as_it_is: bool,
    verify: bool = False,
) -> LessonMixture:
    """Batches from `folder`, disturbed and in other forms as the settings say, or `as_it_is`."""
    forms, noise = (Forms(silent=0), None) if as_it_is else (config.forms, config.noise)
    tokens, tokens_of = config.micro_batch_tokens, shape.tokens
    pad, size = shape.pad_token_id, shape.speech_feature_size
    return LessonMixture(folder, shares, tokens_of, size, pad, tokens, forms, noise, config.seed, verify)


def _work(rank: int, workers: int, device: torch.device, config: Config, out: Path, options: RunOptions) -> None:
    """One process of the run. On CPUs all of them hold the same weights, on GPUs each its part; rank 0 also writes."""
    late, main = deadline(options.minutes), rank == 0
    learners, state = _learners(config, device, workers), None
    if main or learners.mesh is None:
        state = resume(out / "checkpoints", config_hash(config))
    first = agreed_step(0 if state is None else state["step"], workers, device)
    if first:
        spread_state(learners.model, learners.optimizer, state or {})
    mixture = _mixture(config, learners.shape, config.lessons, config.mixture, as_it_is=False)
    checks, tally = _Checks(config, learners.shape, rank, workers), Tally(learners.shape.tokens)
    with Progress(out if main else None, config.steps, step=first, title=out.name, stream=shown_by(rank)) as bar:
        if main:
            bar.note(_introduction(learners, mixture, workers, device, first))
        if first == 0 and (figures := checks.figures(learners, device)):
            bar.log(0, **figures)
        since = time.monotonic()
        for step in range(first, config.steps):
            logs = step % config.log_every == config.log_every - 1 or step == config.steps - 1
            numbers = range(step * config.micro_batches + rank, (step + 1) * config.micro_batches, workers)
            batches = [mixture[number].to(device) for number in numbers]
            with learners.watch.watching(logs):
                norm = take_step(config, step, learners, batches, tally, workers)
            done = step + 1
            if logs:
                figures = tally.figures(workers, device) | learners.watch.figures() | {"norm": norm}
                figures["tokens_per_s/all"] = figures.pop("tokens") / (time.monotonic() - since)
                since = time.monotonic()
                bar.log(step, **figures)
            else:
                bar.update(step)
            stop = agreed(late(), workers, device)
            ending = stop or done == config.steps
            if (done % config.check_every == 0 or ending) and (figures := checks.figures(learners, device)):
                bar.log(step, **figures)
            if ending or done % config.checkpoint_every == 0:
                state = gather_state(learners.model, learners.optimizer)  # all take part
                if main:
                    save_checkpoint(out / "checkpoints", done, state, config_hash=config_hash(config))
            if stop and done < config.steps:
                bar.note(f"stopped at step {done} of {config.steps}; the same command continues")
                return
    if main:
        plot_losses(out)
        save_model(config, out)


@dataclass
class Learners:
    """What learns, and by what. `mesh`: over which GPUs the weights are spread; None where each process has all."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    watch: RoutingWatch
    shape: MostConfig
    mesh: DeviceMesh | None
    computing: Callable[[], AbstractContextManager[None]] = nullcontext  # around every forward pass


def _learners(config: Config, device: torch.device, workers: int) -> Learners:
    by_us = device.type == "cpu" and "WORLD_SIZE" not in os.environ
    computing = half_products if by_us and config.precision == "bfloat16" else nullcontext
    mesh = None if by_us else make_mesh(processes(device.type), config)
    model = make_trainable(starting_model(config.start, config.shape, config.seed), config)
    shape, watch = model.config, RoutingWatch(model)
    if mesh is None:
        model.to(device)
    dtype = getattr(torch, config.precision)
    model = shard(model, mesh, compute_dtype=dtype, checkpoint_activations=config.checkpoint_activations)
    return Learners(model, make_optimizer(config, model), watch, shape, mesh, computing)


def agreed_step(step: int, workers: int, device: torch.device) -> int:
    """The first process's step, told to all."""
    if workers == 1:
        return step
    told = torch.tensor([step], device=device)
    torch.distributed.broadcast(told, 0)
    return int(told)


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW for what learns; matrices are decayed, norms and biases are not. With "muon", that for those in layers."""
    if config.optimizer == "muon":
        return _muon(config, model)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in learning if parameter.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in learning if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, lr=config.learning_rate, betas=config.betas)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def _muon(config: Config, model: nn.Module) -> Muon:
    """Muon for the matrices that states pass through; AdamW for words, units and routers, whose rows are not alike."""
    matrices, pairs, rows, rest = [], [], [], []
    for name, parameter in trained_parameters(model).items():
        if parameter.ndim < 2:
            rest.append(parameter)
        elif name.endswith(("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight")):
            rows.append(parameter)
        else:
            (pairs if name.endswith("gate_up_proj") else matrices).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay, "orthogonal": True},
        {"params": pairs, "weight_decay": config.weight_decay, "orthogonal": True, "stacked": 2},
        {"params": rows, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    # a dense model has no stacked pairs, and processes have nothing to tell each other of none
    return Muon([group for group in groups if group["params"]], lr=config.learning_rate, betas=config.betas)


def take_step(
    config: Config, step: int, learners: Learners, batches: Sequence[Batch], tally: Tally, workers: int
) -> float:
    """Learn from this process's share of a step's micro-batches; returns the norm of the gradient of all shares.

    ValueError, before anything is learned, where the gradient is no number.
    """
    learning, counted = list(trained_parameters(learners.model).values()), torch.zeros(1, device=batches[0].ids.device)
    for batch in batches:
        with learners.computing():
            losses, balance = losses_of(learners.model, batch)
        weight = torch.where(tally.are_units(batch), config.unit_weight, 1.0)
        ((losses * weight).sum() + balance * len(losses)).backward()
        counted += len(losses)
        tally.add(batch, losses.detach())
    if learners.mesh is None:
        counted = sum_gradients(learning, counted, workers)
    elif workers > 1:  # gradients are summed already
        torch.distributed.all_reduce(counted)
    torch._foreach_div_([parameter.grad for parameter in learning], float(counted))
    norm = float(nn.utils.clip_grad_norm_(learning, config.clip))
    if not math.isfinite(norm):
        told = "; ".join(f"{batch.task} ({', '.join(batch.names[:3])})" for batch in batches)
        raise ValueError(
            f"step {step}: the gradient is {norm} after {told}. Nothing was learned from it and the last checkpoint "
            "is kept: lower learning_rate, or look at these lessons"
        )
    for group in learners.optimizer.param_groups:
        rate = config.matrix_rate if group.get("orthogonal") else config.learning_rate
        group["lr"] = rate * learning_rate(config, step)
    learners.optimizer.step()
    learners.optimizer.zero_grad()
    return norm


def losses_of(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(cross entropy of every target, row by row; the balance loss)"""
    made = model(input_ids=batch.ids, attention_mask=batch.valid, input_features=batch.features, targets=batch.targets)
    losses = F.cross_entropy(made.logits.float(), batch.ids[:, 1:][batch.targets[:, 1:]], reduction="none")
    return losses, losses.new_zeros(()) if made.aux_loss is None else made.aux_loss


class Tally:
    """Losses and tokens since the last time that they were logged, by task, words and units apart."""

    def __init__(self, table: TokenTable) -> None:
        self.table = table
        self.sums: dict[str, float] = defaultdict(float)

    def are_units(self, batch: Batch) -> torch.Tensor:
        """Which of the targets, row by row, are units (their end included)."""
        ids = batch.ids[:, 1:][batch.targets[:, 1:]]
        first = self.table.first_unit
        return (ids >= first) & (ids < first + self.table.num_units) | (ids == self.table.audio_end)

    def add(self, batch: Batch, losses: torch.Tensor) -> None:
        units = self.are_units(batch)
        for kind, which in (("words", ~units), ("units", units)):
            if count := int(which.sum()):
                self.sums[f"{batch.task}/{kind}/sum"] += float(losses[which].sum())
                self.sums[f"{batch.task}/{kind}/count"] += count
        self.sums[f"{batch.task}/tokens"] += int(batch.valid.sum())

    def figures(self, workers: int, device: torch.device) -> dict[str, float]:
        """Mean losses, each task's share of the tokens, and the tokens of all processes; begins anew."""
        names = [f"{task}/{rest}" for task in TASKS for rest in _TALLIED]
        sums = torch.tensor([self.sums.get(name, 0.0) for name in names], dtype=torch.float64, device=device)
        if workers > 1:
            torch.distributed.all_reduce(sums)
        found = dict(zip(names, sums.tolist()))
        self.sums.clear()
        total = sum(found[f"{task}/tokens"] for task in TASKS)
        figures = {"tokens": total}
        for task in TASKS:
            for kind in ("words", "units"):
                if count := found[f"{task}/{kind}/count"]:
                    figures[f"loss_{kind}/{task}"] = found[f"{task}/{kind}/sum"] / count
            if found[f"{task}/tokens"]:
                figures[f"share/{task}"] = found[f"{task}/tokens"] / total
        return figures


_TALLIED = ("words/sum", "words/count", "units/sum", "units/count", "tokens")


class _Checks:
    """Losses on lessons that are never learned from, the same ones every time."""

    def __init__(self, config: Config, shape: MostConfig, rank: int, workers: int) -> None:
        self.table, self.rank, self.workers = shape.tokens, rank, workers
        tasks = [task for task in TASKS if config.check is not None and (config.check / task).is_dir()]
        mixtures = [_mixture(config, shape, config.check, {task: 1.0}, as_it_is=True) for task in tasks]
        self.all = [(mixture, number) for mixture in mixtures for number in range(config.check_batches)]

    def figures(self, learners: Learners, device: torch.device) -> dict[str, float]:
        """Each process computes as many batches as the others, for sharded weights are gathered by all of them: what
        is over is computed for nothing."""
        learners.model.eval()
        tally = Tally(self.table)
        with torch.no_grad():
            for first in range(0, len(self.all), self.workers):
                place = first + self.rank
                mixture, number = self.all[place % len(self.all)]
                batch = mixture[number].to(device)
                with learners.computing():
                    losses, _ = losses_of(learners.model, batch)
                if place < len(self.all):
                    tally.add(batch, losses)
        reshard(learners.model)
        learners.model.train()
        figures = tally.figures(self.workers, device)
        return {f"check_{name}": value for name, value in figures.items() if name.startswith("loss")}


def _introduction(learners: Learners, mixture: LessonMixture, workers: int, device: torch.device, first: int) -> str:
    learning = sum(parameter.numel() for parameter in trained_parameters(learners.model).values())
    everything = sum(parameter.numel() for parameter in learners.model.parameters())
    rows = ", ".join(f"{len(lessons)} for {task}" for task, lessons in mixture.lessons.items())
    return (
        f"{everything / 1e6:.2f} M parameters, {learning / 1e6:.2f} M of them learn; lessons: {rows} "
        f"({mixture.dropped} too long); {workers} process(es) on {device.type}, from step {first}"
    )


def save_model(config: Config, out: Path) -> None:
    """Write the last checkpoint as `out/model`, a folder of decoder and tokenizer, in place of an earlier one."""
    state = resume(out / "checkpoints", config_hash(config))
    start = starting_model(config.start, config.shape, config.seed)
    model, folder = learned(start, config, state["weights"]), out / "model"
    for old in [folder, *out.glob(f".{folder.name}.*.partial")]:  # and what a kill in this very place left behind
        shutil.rmtree(old, ignore_errors=True)
    with written_whole(folder) as partial:
        model.save_pretrained(partial)
        load_tokenizer(config.lessons / "tokenizer").save_pretrained(partial)


def _dry_run(config: Config) -> int:
    """What it will take; and, of a model that this machine can surely hold, a step on made-up lessons."""
    from train.plan import plan

    planned = plan(config)
    print(planned)
    if planned.parameters > DRY_PARAMETERS:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        learners = _learners(config, torch.device("cpu"), 1)
        for task in config.mixture:
            write_made_up(Path(folder) / task, task, learners.shape, rows=DRY_LESSONS)
        mixture = _mixture(config, learners.shape, Path(folder), config.mixture, as_it_is=False)
        tally = Tally(learners.shape.tokens)
        norm = take_step(config, 0, learners, [mixture[i] for i in range(config.micro_batches)], tally, 1)
        figures = tally.figures(1, torch.device("cpu"))
    told = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
    print(f"one step on made-up lessons: {told}, norm of the gradient {norm:.3g}")
    return 0
