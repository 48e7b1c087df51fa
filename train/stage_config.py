"""Settings of the language model's two stages."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from train.data.lesson_mixture import FeatureNoise, Forms

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
    optimizer: Literal["adamw", "adamw_8bit", "muon"] = "adamw"
    matrix_rate: float = 4e-3  # muon's learning rate for the matrices of the layers; all else learns at learning_rate
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
        for name in (
            "gpus",
            "check_batches",
            "steps",
            "micro_batches",
            "micro_batch_tokens",
            "log_every",
            "check_every",
            "checkpoint_every",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.optimizer == "muon" and self.trains == "lora":
            raise ValueError("optimizer is muon, trains is lora: low-rank additions want adamw")
        for name in ("learning_rate", "matrix_rate", "clip", "tokens_per_s", "gpu_gb"):
            if getattr(self, name) < 0 or (getattr(self, name) == 0 and name not in ("learning_rate", "matrix_rate")):
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")


def learning_rate(config: Config, step: int) -> float:
    """Factor of the learning rate: up over `warmup` steps, then down along a cosine to `last_rate`."""
    rising = min(1.0, (step + 1) / max(1, config.warmup))
    done = max(0, step - config.warmup) / max(1, config.steps - config.warmup)
    low = config.last_rate
    return rising * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
