"""`python -m train stage1` and `stage2`: the language model learns to hear, speak and answer.

One step takes `micro_batches` from the mixture, each of one task, divided among the processes. Its gradient is that of
the summed losses of all tokens to be said, divided by their number, whoever computed which. So the number of processes
changes nothing but rounding.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from most_core.checkpoint_files import written_whole
from most_core.config import MostConfig, TokenTable
from most_core.model import MostForCausalLM
from most_core.processing import load_tokenizer
from train.checkpoints import resume, save_checkpoint
from train.config import RunOptions, claim, config_hash, deadline
from train.data.lesson_mixture import Batch, FeatureNoise, Forms, LessonMixture
from train.progress import Progress, plot_losses
from train.routing_watch import RoutingWatch
from train.start import shape_of, starting_model
from train.workers import agreed, run_workers, shown_by, sum_gradients

TASKS = ("asr", "tts", "text", "speech_instructions", "text_instructions")


@dataclass(frozen=True)
class Lora:
    """Low-rank additions to attention, shared experts and routed experts, learned instead of the weights."""

    rank: int = 16
    alpha: float = 32.0


@dataclass(frozen=True)
class Config:
    """What is learned, from what, how long.

    `start`: a preset's shape with random weights ("tiny", "nano", "lite"), or the folder of a checkpoint, of which only
    the weights are taken. `shape` changes settings of a preset. `lessons` is what `prepare` left, `check` what is never
    learned from. `mixture` gives each task's share of the tokens. `unit_weight` is what a unit counts beside a word in
    the loss. `trains`: every weight; all but the routed experts; or LoRA. `gpus` and `tokens_per_s` (of one of them)
    are what a dry run plans with.
    """

    start: str = "nano"
    shape: dict[str, Any] = field(default_factory=dict)
    lessons: Path = Path("runs/nano/lessons")
    check: Path | None = None
    mixture: dict[str, float] = field(default_factory=lambda: {"asr": 0.4, "tts": 0.4, "text": 0.2})
    forms: Forms = field(default_factory=Forms)
    noise: FeatureNoise = field(default_factory=FeatureNoise)
    unit_weight: float = 1.0
    seed: int = 0
    steps: int = 10_000
    micro_batches: int = 2
    micro_batch_tokens: int = 2048
    learning_rate: float = 1e-3
    warmup: int = 200
    last_rate: float = 0.1  # of the learning rate, where the cosine ends
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip: float = 1.0
    trains: Literal["all", "all_but_experts", "lora"] = "all"
    lora: Lora = field(default_factory=Lora)
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_activations: bool = False
    log_every: int = 20
    check_every: int = 500
    check_batches: int = 4  # of each task
    checkpoint_every: int = 500
    gpus: int = 1
    gpu_gb: float = 80.0
    tokens_per_s: float = 3000.0

    def __post_init__(self) -> None:
        if strange := sorted(set(self.mixture) - set(TASKS)):
            raise ValueError(f"mixture.{strange[0]} is no setting; there are {', '.join(TASKS)}")
        if min(self.mixture.values(), default=0) < 0 or not math.isclose(sum(self.mixture.values()), 1, abs_tol=1e-6):
            total = sum(self.mixture.values())
            raise ValueError(f"mixture is {self.mixture}, in all {total:g}; expected shares that sum to 1")
        for name in ("steps", "micro_batches", "micro_batch_tokens", "log_every", "check_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")


def learning_rate(config: Config, step: int) -> float:
    """Factor of the learning rate: up over `warmup` steps, then down along a cosine to `last_rate`."""
    rising = min(1.0, (step + 1) / max(1, config.warmup))
    done = max(0, step - config.warmup) / max(1, config.steps - config.warmup)
    low = config.last_rate
    return rising * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def run(config: Config, out: Path, options: RunOptions) -> int:
    """Train, or go on training, in `out`; leaves `out/model`, a folder with decoder and tokenizer."""
    _mixture(config, shape_of(config.start, config.shape), config.lessons, config.mixture, as_it_is=True, verify=True)
    claim(out, config, fresh=options.fresh, made=("model",))
    return run_workers(_work, config.micro_batches, config, out, options)


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
    """One process of the run. All of them hold the same weights; rank 0 also writes."""
    late, model = deadline(options.minutes), starting_model(config.start, config.shape, config.seed).to(device)
    optimizer = make_optimizer(config, model)
    state, first = resume(out / "checkpoints", config_hash(config)), 0
    if state is not None:
        first = state["step"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    mixture = _mixture(config, model.config, config.lessons, config.mixture, as_it_is=False)
    checks = _Checks(config, model.config, rank, workers)
    tally, watch, main = Tally(model.config.tokens), RoutingWatch(model), rank == 0
    with Progress(out if main else None, config.steps, step=first, title=out.name, stream=shown_by(rank)) as bar:
        if main:
            bar.note(_introduction(config, model, mixture, workers, device, first))
        if first == 0:
            bar.log(0, **checks.figures(model, device))
        since = time.monotonic()
        for step in range(first, config.steps):
            logs = step % config.log_every == config.log_every - 1
            numbers = range(step * config.micro_batches + rank, (step + 1) * config.micro_batches, workers)
            batches = [mixture[number].to(device) for number in numbers]
            with watch.watching(logs):
                norm = take_step(config, step, model, optimizer, batches, tally, workers)
            done = step + 1
            if logs:
                figures = tally.figures(workers) | watch.figures() | {"norm": norm}
                figures["tokens_per_s/all"] = figures.pop("tokens") / (time.monotonic() - since)
                since = time.monotonic()
                bar.log(step, **figures)
            else:
                bar.update(step)
            stop = agreed(late(), workers)
            ending = stop or done == config.steps
            if done % config.check_every == 0 or done == config.steps:
                bar.log(step, **checks.figures(model, device))
            if main and (ending or done % config.checkpoint_every == 0):
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                save_checkpoint(out / "checkpoints", done, state, config_hash=config_hash(config))
            if stop and done < config.steps:
                bar.note(f"stopped at step {done} of {config.steps}; the same command continues")
                return
    if main:
        plot_losses(out)
        save_model(model, config.lessons, out / "model")


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW for what learns; matrices are decayed, norms and biases are not."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in learning if parameter.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in learning if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, lr=config.learning_rate, betas=config.betas)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def take_step(
    config: Config,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    tally: Tally,
    workers: int,
) -> float:
    """Learn from this process's share of a step's micro-batches; returns the norm of the gradient of all shares.

    ValueError, before anything is learned, where a loss or the gradient is no number.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    counted = torch.zeros(1)
    for batch in batches:
        losses, balance = losses_of(model, batch)
        weight = torch.where(tally.are_units(batch), config.unit_weight, 1.0)
        loss = (losses * weight).sum() + balance * len(losses)
        loss.backward()
        counted += len(losses)
        tally.add(batch, losses.detach())
    counted = sum_gradients(learning, counted, workers)
    torch._foreach_div_([parameter.grad for parameter in learning], float(counted))
    norm = float(nn.utils.clip_grad_norm_(learning, config.clip))
    if not math.isfinite(norm):
        told = "; ".join(f"{batch.task}: {', '.join(batch.names[:3])}" for batch in batches)
        raise ValueError(
            f"step {step}: the gradient is {norm}, after {told}. Nothing was learned from it and the last checkpoint "
            "is kept: lower learning_rate, or look at these lessons"
        )
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * learning_rate(config, step)
    optimizer.step()
    optimizer.zero_grad()
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

    def figures(self, workers: int) -> dict[str, float]:
        """Mean losses, each task's share of the tokens, and the tokens of all processes; begins anew."""
        names = [f"{task}/{rest}" for task in TASKS for rest in _TALLIED]
        sums = torch.tensor([self.sums.get(name, 0.0) for name in names], dtype=torch.float64)
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
        self.table, self.workers = shape.tokens, workers
        tasks = [task for task in TASKS if config.check is not None and (config.check / task).is_dir()]
        each = [
            (_mixture(config, shape, config.check, {task: 1.0}, as_it_is=True), i)
            for task in tasks
            for i in range(config.check_batches)
        ]
        self.mine = each[rank::workers]

    def figures(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        model.eval()
        tally = Tally(self.table)
        with torch.no_grad():
            for mixture, number in self.mine:
                batch = mixture[number].to(device)
                tally.add(batch, losses_of(model, batch)[0])
        model.train()
        figures = tally.figures(self.workers)
        return {f"check_{name}": value for name, value in figures.items() if name.startswith("loss")}


def _introduction(
    config: Config, model: nn.Module, mixture: LessonMixture, workers: int, device: torch.device, first: int
) -> str:
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    rows = ", ".join(f"{len(lessons)} for {task}" for task, lessons in mixture.lessons.items())
    return (
        f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f} M parameters, {learning / 1e6:.2f} M "
        f"of them learn; lessons: {rows} ({mixture.dropped} too long); {workers} process(es) on {device.type}, "
        f"from step {first}"
    )


def save_model(model: MostForCausalLM, lessons: Path, folder: Path) -> None:
    """Write the folder of decoder and tokenizer anew."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    with written_whole(folder) as partial:
        model.save_pretrained(partial)
        load_tokenizer(lessons / "tokenizer").save_pretrained(partial)
