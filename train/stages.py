"""`python -m train stage1` and `stage2`: the language model learns to hear, speak and answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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
    learned from. `mixture` gives each task's share of the tokens. `trains`: every weight; all but the routed experts;
    or LoRA. `gpus` and `tokens_per_s` (of one of them) are what a dry run plans with.
    """

    start: str = "nano"
    shape: dict[str, Any] = field(default_factory=dict)
    lessons: Path = Path("runs/nano/lessons")
    check: Path | None = None
    mixture: dict[str, float] = field(default_factory=lambda: {"asr": 0.4, "tts": 0.4, "text": 0.2})
    seed: int = 0
    steps: int = 10_000
    micro_batches: int = 2
    micro_batch_tokens: int = 1024
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
    gpus: int = 1
    gpu_gb: float = 80.0
    tokens_per_s: float = 3000.0
