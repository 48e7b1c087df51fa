"""What a training will take, before it takes it: parameters, memory of each GPU line by line, tokens, hours.

Every line is derived in docs/training.md, "What fits where". GB are 10^9 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import nn

from most_core.config import MostConfig
from most_core.model import MostDecoderLayer, MostForCausalLM
from train.stage_config import Config
from train.start import shape_of
from train.trainable import make_trainable

Trains = Literal["all", "all_but_experts", "lora"]
MODES: tuple[Trains, ...] = get_args(Trains)  # the fullest first
MOMENT_BYTES = {"adamw": 8, "muon": 8, "adamw_8bit": 2}  # two a parameter, in float32 (muon: at most), or one byte each
RESERVE_GB = 3.0  # the driver's context, communication buffers, what the allocator cannot use
SMALL_THINGS = 1.15  # of a layer's activations: routing, rotary parts, copies; measured (tests/train/test_plan.py)


@dataclass(frozen=True)
class Line:
    """One thing that fills a GPU."""

    name: str
    gb: float
    why: str


@dataclass(frozen=True)
class Plan:
    """What a dry run prints. `memory` is that of each GPU."""

    config: Config
    parameters: int
    trained: int
    memory: tuple[Line, ...]
    tokens: int
    hours: float
    notes: tuple[str, ...]

    @property
    def total_gb(self) -> float:
        return sum(line.gb for line in self.memory)

    @property
    def fits(self) -> bool:
        return self.total_gb <= self.config.gpu_gb

    def __str__(self) -> str:
        config = self.config
        learns = f"{_billions(self.trained)} of {_billions(self.parameters)} parameters learn"
        lines = [f"{config.start}: {learns} (trains: {config.trains})"]
        lines.append(f"memory of each of {config.gpus} GPUs:" if config.gpus > 1 else "memory of the GPU:")
        lines += [f"  {line.name:24s} {line.gb:7.1f} GB   {line.why}" for line in self.memory]
        verdict = "fits" if self.fits else "does not fit"
        lines.append(f"  {'in all':24s} {self.total_gb:7.1f} GB   {verdict} into {config.gpu_gb:g} GB")
        hours = f"{self.hours:,.0f}" if self.hours >= 10 else f"{self.hours:.1f}"
        speed = f"at {config.tokens_per_s:,.0f} tokens a second and GPU"
        lines.append(f"{self.tokens / 1e9:,.2f} billion tokens in {config.steps:,} steps: {hours} hours {speed}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def plan(config: Config) -> Plan:
    """What training with these settings takes. Allocates no weights and opens no checkpoint but its config.json."""
    shape, notes = _shape(config)
    counts, memory = _Counts(shape, config), memory_lines(shape, config)
    tokens = config.steps * config.micro_batches * config.micro_batch_tokens
    made = Plan(
        config=config,
        parameters=counts.all,
        trained=counts.trained,
        memory=memory,
        tokens=tokens,
        hours=tokens / (config.tokens_per_s * config.gpus) / 3600,
        notes=(),
    )
    for mode in MODES[: MODES.index(config.trains)]:
        notes.append(f"trains: {mode} would take {_needs(shape, replace(config, trains=mode))}")
    if not made.fits:
        best = fitting(config)
        notes.append(f"trains: {best} fits" if best else "nothing fits: take more GPUs or smaller micro_batch_tokens")
    return replace(made, notes=tuple(notes))


def fitting(config: Config) -> Trains | None:
    """The fullest way to train that fits the GPUs with otherwise the same settings; None if none does."""
    shape, _ = _shape(config)
    for mode in MODES:
        lines = memory_lines(shape, replace(config, trains=mode))
        if sum(line.gb for line in lines) <= config.gpu_gb:
            return mode
    return None


def _shape(config: Config) -> tuple[MostConfig, list[str]]:
    """The shape of the model that training starts from, and what a reader must know about it."""
    if "/" in config.start and not Path(config.start).is_dir():
        return MostConfig.lite(**config.shape), [
            f"{config.start} is not there yet; planned for DeepSeek-V2-Lite's shape"
        ]
    return shape_of(config.start, config.shape), []


def memory_lines(shape: MostConfig, config: Config) -> tuple[Line, ...]:
    """What fills each GPU at the worst moment of a step."""
    counts = _Counts(shape, config)
    compute = 4 if config.precision == "float32" else 2
    tokens = config.micro_batch_tokens
    layers = [layer_bytes(shape, i, compute) for i in range(shape.num_hidden_layers)]
    hidden = shape.hidden_size * compute
    kept = " and ".join(str(dtype).removeprefix("torch.") for dtype in counts.dtypes)
    lines = [
        Line("weights", counts.weight_bytes, f"in {kept}"),
        Line("gradients", counts.gradient_bytes, "of what learns, in its own precision"),
        Line("optimizer", counts.trained_share * MOMENT_BYTES[config.optimizer], f"both moments of {config.optimizer}"),
    ]
    if config.checkpoint_activations:
        saved, why = hidden * len(layers), f"the inputs of {len(layers)} layers, {tokens:,} tokens"
        lines.append(Line("activations", tokens * saved, why))
        lines.append(Line("one layer again", 2 * tokens * max(layers), "its activations and their gradients"))
    else:
        lines.append(Line("activations", tokens * sum(layers), f"of {len(layers)} layers, {tokens:,} tokens"))
        lines.append(Line("one layer's gradients", tokens * max(layers), "of its activations"))
    vocabulary = shape.vocab_size
    wide = 12 if compute == 4 else 14  # a float32 copy, log-probabilities, their gradient, each 4; the logits
    lines.append(Line("logits", tokens * vocabulary * wide, f"of {vocabulary:,} words: 4 copies"))
    if config.trains == "lora" and shape.moe_layers:
        experts = 3 * shape.n_routed_experts * shape.hidden_size * shape.moe_intermediate_size
        copies = 1 if config.checkpoint_activations else len(shape.moe_layers)
        lines.append(
            Line("adapted experts", (copies + 1) * experts * compute, f"sums of {copies} layers, gradients of one")
        )
    if config.gpus > 1 or (compute == 2 and config.optimizer == "adamw"):  # as sharding.make_mesh decides
        gathered = (2 * counts.largest_layer + counts.outside_layers) * compute
        lines.append(Line("gathered weights", gathered, "two layers; embeddings, projector, head"))
        reduced = max(counts.trained_in_a_layer, counts.trained_outside_layers) * (compute + 4)
        lines.append(Line("gradients to be summed", reduced, "of one unit, and their float32 copy"))
    lines = [replace(line, gb=line.gb / 1e9) for line in lines]
    return (*lines, Line("reserve", RESERVE_GB, "driver, communication, fragments"))


def layer_bytes(shape: MostConfig, layer: int, compute: int) -> float:
    """Bytes that a decoder layer keeps of each token for its backward pass, at `compute` bytes a number."""
    hidden, heads = shape.hidden_size, shape.num_attention_heads
    norms = 2 * hidden * (8 + compute)  # input and normalized input in float32, and the result
    head = 2 * (shape.qk_nope_head_dim + shape.qk_rope_head_dim) + shape.qk_nope_head_dim + 2 * shape.v_head_dim
    attention = compute * (heads * head + 4 * shape.kv_lora_rank + shape.qk_rope_head_dim)
    if not shape.layer_is_moe(layer):
        width = shape.intermediate_size if shape.uses_experts else shape.dense_width
        return SMALL_THINGS * (norms + attention + compute * 4 * width)
    width = shape.moe_intermediate_size
    routed = compute * shape.num_experts_per_tok * (2 * hidden + 4 * width) + 4 * hidden  # the gate reads float32
    shared = compute * 4 * width * shape.n_shared_experts
    return SMALL_THINGS * (norms + attention + routed + shared)


class _Counts:
    """Sizes of what `make_trainable` makes, and the first GPU's share; on the meta device: nothing is allocated."""

    def __init__(self, shape: MostConfig, config: Config) -> None:
        with torch.device("meta"):
            learner = make_trainable(MostForCausalLM(shape), config)
        parameters = list(learner.parameters())
        learning = [p for p in parameters if p.requires_grad]
        self.all = sum(p.numel() for p in parameters)
        self.trained = sum(p.numel() for p in learning)
        self.trained_share = sum(_share(p, config.gpus) for p in learning)
        self.weight_bytes = sum(_share(p, config.gpus) * p.element_size() for p in parameters)
        self.gradient_bytes = sum(_share(p, config.gpus) * p.element_size() for p in learning)
        self.dtypes = sorted({p.dtype for p in parameters}, key=str)
        layers = [module for module in learner.modules() if isinstance(module, MostDecoderLayer)]
        self.largest_layer = max(map(_size, layers))
        self.trained_in_a_layer = max(map(_trained_size, layers))
        self.outside_layers = self.all - sum(map(_size, layers))
        self.trained_outside_layers = self.trained - sum(map(_trained_size, layers))


def _share(parameter: nn.Parameter, gpus: int) -> int:
    """How much of a parameter the first GPU has: FSDP2 deals out whole rows, of experts' weights whole experts."""
    rows = len(parameter)
    return -(-rows // gpus) * (parameter.numel() // rows)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _trained_size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _needs(shape: MostConfig, config: Config) -> str:
    total = sum(line.gb for line in memory_lines(shape, config))
    if config.gpus > 1 or config.optimizer == "adamw_8bit":
        return f"{total:.0f} GB"
    lean = sum(line.gb for line in memory_lines(shape, replace(config, optimizer="adamw_8bit")))
    return f"{total:.0f} GB, with adamw_8bit {lean:.0f} GB"


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e8 else f"{count / 1e6:.2f} M"
