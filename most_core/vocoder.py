"""Speech out: units -> waveform, all at once or while the units are still coming.

Units become embeddings, context layers tell each what was said around it, at the cost of a few numbers a unit, and
transformers' HiFi-GAN makes them sound. All of it looks a fixed number of samples back and ahead, so a stream renders
overlapping windows of units and keeps the part whose context was complete: the same sound as all at once, whatever the
chunks.

Shapes: B batch, N units, E embedding width, S samples.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers import SeamlessM4TConfig
from transformers.models.seamless_m4t.modeling_seamless_m4t import SeamlessM4THifiGan

from most_core.checkpoint_files import load_exactly, load_weights, read_json

Units = Sequence[int] | np.ndarray | torch.Tensor
OUTER_REACH = 3  # SeamlessM4THifiGan's first and last convolutions always have kernel 7
NOTHING = -1  # stands for a unit before the first and after the last
SLOPE = 0.1
MOST_UNITS_AT_ONCE = 250  # of one pass through the generator: 10 s at 25 Hz
LONGEST_UNIT = 250  # frames; nothing spoken lasts longer, a bad duration predictor would
# Types of a vocoder's settings, in words.
KINDS = {
    "int": "a positive whole number",
    "bool": "true or false",
    "tuple[int, ...]": "a list of positive whole numbers",
    "tuple[tuple[int, ...], ...]": "a list of lists of positive whole numbers",
}


@dataclass
class VocoderConfig:
    """Shape of a vocoder. The default is the nano one: 640 samples a unit, 25 units a second.

    A large first rate and small resblocks keep the lookahead short (`receptive_field_units`): it delays every stream.
    Each context layer is a convolution over units; the first `context_lookahead` of them look one unit ahead, the
    others only back. Public vocoders have none.
    """

    num_units: int = 500
    embedding_dim: int = 224
    context_dilations: tuple[int, ...] = (1, 1, 1, 2, 4, 8)
    context_kernel_size: int = 3
    context_lookahead: int = 3
    upsample_rates: tuple[int, ...] = (8, 5, 4, 4)
    upsample_kernel_sizes: tuple[int, ...] = (16, 11, 8, 8)
    upsample_initial_channel: int = 256
    resblock_kernel_sizes: tuple[int, ...] = (3, 5)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3), (1, 3))
    sample_rate: int = 16_000
    duration_predictor: bool = False
    duration_hidden_dim: int = 128
    duration_kernel_size: int = 3

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not _is_kind(value, field.type) and not (field.name == "context_lookahead" and value == 0):
                raise ValueError(f"{field.name} {value!r} is not {KINDS[field.type]}: correct it")
        if sum(d == 1 for d in self.context_dilations[: self.context_lookahead]) < self.context_lookahead:
            raise ValueError(
                f"context_lookahead {self.context_lookahead} needs as many context layers of dilation 1 in front, but "
                f"context_dilations is {self.context_dilations}: lower the one or extend the other"
            )
        if self.context_lookahead and self.context_kernel_size < 2:
            raise ValueError("context_kernel_size 1 cannot look ahead: make it at least 2")
        self.context_dilations = tuple(self.context_dilations)
        self.upsample_rates = tuple(self.upsample_rates)
        self.upsample_kernel_sizes = tuple(self.upsample_kernel_sizes)
        self.resblock_kernel_sizes = tuple(self.resblock_kernel_sizes)
        self.resblock_dilation_sizes = tuple(tuple(row) for row in self.resblock_dilation_sizes)
        for left, right in (
            ("upsample_rates", "upsample_kernel_sizes"),
            ("resblock_kernel_sizes", "resblock_dilation_sizes"),
        ):
            if not 0 < len(getattr(self, left)) == len(getattr(self, right)):
                raise ValueError(
                    f"{left} has {len(getattr(self, left))} entries, {right} {len(getattr(self, right))}: "
                    "give both the same number, at least one"
                )
        for rate, kernel in zip(self.upsample_rates, self.upsample_kernel_sizes):
            if kernel < rate or (kernel - rate) % 2:
                raise ValueError(
                    f"upsample kernel {kernel} does not fit rate {rate}: kernel - rate must be even and not negative, "
                    "or the length would not be exact"
                )
        for kernel in (*self.resblock_kernel_sizes, self.duration_kernel_size):
            if kernel % 2 == 0:
                raise ValueError(f"convolution kernel {kernel} is even: only odd ones keep the length")
        if self.upsample_initial_channel % 2 ** len(self.upsample_rates):
            raise ValueError(
                f"upsample_initial_channel {self.upsample_initial_channel} is halved {len(self.upsample_rates)} times: "
                f"make it a multiple of {2 ** len(self.upsample_rates)}"
            )

    @property
    def samples_per_unit(self) -> int:
        return math.prod(self.upsample_rates)

    @classmethod
    def from_json(cls, path: str | Path) -> VocoderConfig:
        values = read_json(Path(path))
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(
                f"{path} has the unknown setting {unknown[0]!r}: bring other people's vocoders in with "
                "`python -m most_core.convert vocoder`"
            )
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def _is_kind(value: Any, kind: str) -> bool:
    if kind.startswith("tuple["):
        items = kind.removeprefix("tuple[").removesuffix(", ...]")
        return isinstance(value, list | tuple) and all(_is_kind(item, items) for item in value)
    if kind == "bool":
        return isinstance(value, bool)
    return type(value) is int and value > 0


def generator_reach_samples(config: VocoderConfig) -> int:
    """How far before its start and past its end what the generator is given for a unit changes the sound."""
    block = max(
        sum((kernel - 1) // 2 * (dilation + 1) for dilation in dilations)
        for kernel, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes)
    )
    reach = OUTER_REACH
    for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes):
        # A transposed convolution spreads each input over `kernel` outputs, (kernel - rate) / 2 beyond its own on
        # either side: symmetric, as all else here, hence one number for both directions.
        reach = reach * rate + (kernel - rate) // 2 + block
    return reach + OUTER_REACH


def context_reach_units(config: VocoderConfig) -> tuple[int, int]:
    """(back, ahead): how many units before and after a unit the context layers look at."""
    reach = (config.context_kernel_size - 1) * sum(config.context_dilations)
    return reach - config.context_lookahead, config.context_lookahead


def receptive_field_samples(config: VocoderConfig) -> tuple[int, int]:
    """(back, ahead): how far a change of unit i reaches past the end and before the start of its own sound.

    Sound is complete once units are known up to `ahead` samples later.
    """
    reach, size = generator_reach_samples(config), config.samples_per_unit
    back, ahead = context_reach_units(config)
    return reach + back * size, reach + ahead * size


def receptive_field_units(config: VocoderConfig) -> tuple[int, int]:
    """(left, right): how many units before and after a unit its sound depends on, exactly."""
    back, ahead = receptive_field_samples(config)
    return -(-back // config.samples_per_unit), -(-ahead // config.samples_per_unit)


class Context(nn.Module):
    """Embeddings of a stretch of units and their surroundings -> of the stretch alone, each told about the others.

    [B, back + N + ahead, E] -> [B, N, E], with `context_reach_units`.
    """

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        width, kernel = config.embedding_dim, config.context_kernel_size
        self.layers = nn.ModuleList(nn.Conv1d(width, width, kernel, dilation=d) for d in config.context_dilations)
        self.lookahead = config.context_lookahead

    def forward(self, embeds_BNE: torch.Tensor) -> torch.Tensor:
        hidden = embeds_BNE.mT
        for place, layer in enumerate(self.layers):
            told = layer(F.leaky_relu(hidden, SLOPE))
            ahead = int(place < self.lookahead)
            back = hidden.shape[2] - told.shape[2] - ahead
            hidden = hidden[:, :, back : back + told.shape[2]] + told
        return hidden.mT


class DurationPredictor(nn.Module):
    """log(1 + duration) of each unit [B, N] from the embeddings [B, N, E]; textlesslib's shape."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        width, kernel = config.duration_hidden_dim, config.duration_kernel_size
        self.conv1 = nn.Conv1d(config.embedding_dim, width, kernel, padding=kernel // 2)
        self.ln1 = nn.LayerNorm(width)
        self.conv2 = nn.Conv1d(width, width, kernel, padding=kernel // 2)
        self.ln2 = nn.LayerNorm(width)
        self.proj = nn.Linear(width, 1)

    def forward(self, embeds_BNE: torch.Tensor) -> torch.Tensor:
        hidden = self.ln1(self.conv1(embeds_BNE.mT).relu().mT)
        hidden = self.ln2(self.conv2(hidden.mT).relu().mT)
        return self.proj(hidden).squeeze(-1)


class UnitHifiGan(nn.Module):
    """Unit ids [B, N] -> waveform [B, N * samples_per_unit]; differentiable, for training."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.num_units, config.embedding_dim)
        self.context = Context(config)
        self.duration_predictor = DurationPredictor(config) if config.duration_predictor else None
        self.generator = SeamlessM4THifiGan(
            SeamlessM4TConfig(
                unit_embed_dim=config.embedding_dim,
                lang_embed_dim=0,
                spkr_embed_dim=0,
                upsample_rates=config.upsample_rates,
                upsample_kernel_sizes=config.upsample_kernel_sizes,
                upsample_initial_channel=config.upsample_initial_channel,
                resblock_kernel_sizes=config.resblock_kernel_sizes,
                resblock_dilation_sizes=config.resblock_dilation_sizes,
            )
        )

    def forward(self, units_BN: torch.Tensor) -> torch.Tensor:
        return self.sound(F.pad(units_BN, context_reach_units(self.config), value=NOTHING))

    def sound(self, window_BN: torch.Tensor) -> torch.Tensor:
        """Sound of a stretch of units, given with those that the context layers see before and after it."""
        return self.generator(self.in_context(window_BN).mT)

    def in_context(self, window_BN: torch.Tensor) -> torch.Tensor:
        """What the generator is given for each unit of the stretch [B, N, E]."""
        known = window_BN != NOTHING
        return self.context(self.embedding(window_BN * known) * known[..., None])

    def durations(self, units_BN: torch.Tensor) -> torch.Tensor:
        """How many frames each unit lasts [B, N]: from 1 to LONGEST_UNIT."""
        log_durations = self.duration_predictor(self.embedding(units_BN))
        return torch.expm1(log_durations).round().clamp(1, LONGEST_UNIT).long()


class Vocoder:
    """A frozen `UnitHifiGan` with its loading, checking and streaming. Waveforms are float32 in [-1, 1]."""

    def __init__(self, model: UnitHifiGan) -> None:
        self.model = model.eval().requires_grad_(False)
        self.config = model.config

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    def synthesize(self, units: Units, predict_durations: bool | None = None) -> np.ndarray:
        """Sound of all units: `len(units) * samples_per_unit` samples, or as long as the predicted durations.

        Durations are predicted (for units whose repeats were removed) if the vocoder has a predictor; pass False for
        one frame a unit. Memory does not grow with the length beyond the sound itself.
        """
        return self.stream(predict_durations)._advance(units, last=True)

    def stream(self, predict_durations: bool | None = None, hop: int = 8) -> VocoderStream:
        """A new stream. After a quick start it renders at most every `hop` units: less overlap to compute again."""
        return VocoderStream(self, predict_durations, hop)

    def check_units(self, units: Units) -> np.ndarray:
        """Units as [N] int64, or a ValueError that names the one that this vocoder does not have."""
        ids = units.cpu().numpy() if isinstance(units, torch.Tensor) else np.asarray(units)
        if ids.size == 0:
            return np.zeros(0, np.int64)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ValueError(f"units have shape {ids.shape} and type {ids.dtype}: give one row of integers")
        for bad in ids[(ids < 0) | (ids >= self.config.num_units)][:1]:
            raise ValueError(f"unit {bad} is out of range: this vocoder has units 0..{self.config.num_units - 1}")
        return ids.astype(np.int64)

    def save(self, folder: str | Path) -> None:
        """Write `vocoder/` into a checkpoint folder."""
        write_vocoder(self.model, Path(folder) / "vocoder")

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> Vocoder:
        """Read the vocoder of a checkpoint folder, in float32. Nothing else need be there."""
        part = Path(folder) / "vocoder"
        for name in ("config.json", "model.safetensors"):
            if not (part / name).is_file():
                raise FileNotFoundError(f"{part / name} is missing: {folder} holds no complete vocoder")
        model = UnitHifiGan(VocoderConfig.from_json(part / "config.json"))
        load_exactly(model, load_weights(part / "model.safetensors"), str(part))
        return cls(model.float().to(device))


class VocoderStream:
    """Units in, sound out, as early as the generator's lookahead allows. Made by `Vocoder.stream`.

    Memory is flat: only the units that coming sound still depends on are kept.
    """

    def __init__(self, vocoder: Vocoder, predict_durations: bool | None, hop: int) -> None:
        config = vocoder.config
        if predict_durations and not config.duration_predictor:
            raise ValueError("predict_durations=True, but this vocoder has no duration predictor: pass None or False")
        if hop < 1:
            raise ValueError(f"hop {hop} is not positive: give the units to wait for, 1 for the least delay")
        self._vocoder = vocoder
        self._stretches = config.duration_predictor if predict_durations is None else predict_durations
        self._hop = hop
        self._reach = generator_reach_samples(config)
        self._before, self._after = context_reach_units(config)
        self._ahead = receptive_field_samples(config)[1]
        self._undecided = np.zeros(0, np.int64)  # units whose durations wait for what follows, with left context
        self._decided = 0  # how many of those already have theirs
        self._units = np.full(self._before, NOTHING)  # one a frame; the first is frame number _first
        self._first = -self._before
        self._emitted = 0  # samples
        self._finished = False

    def push(self, units: Units) -> np.ndarray:
        """The sound that these units complete: maybe none yet, maybe some of earlier units."""
        return self._advance(units, last=False)

    def finish(self) -> np.ndarray:
        """The rest of the sound. Nothing can be pushed any more."""
        return self._advance((), last=True)

    def _advance(self, units: Units, last: bool) -> np.ndarray:
        if self._finished:
            raise ValueError("this vocoder stream is finished: start another with Vocoder.stream()")
        ids = self._vocoder.check_units(units)
        self._finished = last
        pieces = range(0, max(1, len(ids)), MOST_UNITS_AT_ONCE)
        sounds = [np.zeros(0, np.float32)]
        for start in pieces:
            piece = ids[start : start + MOST_UNITS_AT_ONCE]
            sounds += self._take(piece, last and start == pieces[-1])
        return np.concatenate(sounds)

    def _take(self, units: np.ndarray, last: bool) -> list[np.ndarray]:
        frames = self._stretched(units, last) if self._stretches else units
        self._units = np.concatenate([self._units, frames])
        size = self._vocoder.config.samples_per_unit
        known = (self._first + len(self._units)) * size
        if last:
            self._units = np.concatenate([self._units, np.full(self._after, NOTHING)])
        ready = known if last else known - self._ahead
        # Start with the first samples, then wait for as much as was already given out, up to a hop: a listener never
        # runs dry if units come at twice the speed of the sound.
        wanted = min(self._hop * size, max(1, self._emitted))
        sounds = []
        while self._emitted < ready and (last or ready - self._emitted >= wanted):
            sounds.append(self._render(min(ready, self._emitted + MOST_UNITS_AT_ONCE * size)))
        return sounds

    @torch.no_grad()
    def _render(self, stop: int) -> np.ndarray:
        """Samples from the last one given out to `stop`, rendered with all the context that there is."""
        size = self._vocoder.config.samples_per_unit
        start = max(0, self._emitted - self._reach) // size
        first = start - self._before
        self._units, self._first = self._units[first - self._first :], first
        end = -(-(stop + self._reach) // size) + self._after
        window = torch.from_numpy(self._units[: end - first]).to(self._vocoder.model.embedding.weight.device)
        wave = self._vocoder.model.sound(window[None])[0].cpu().numpy()
        sound = wave[self._emitted - start * size : stop - start * size].astype(np.float32)
        self._emitted = stop
        return sound

    @torch.no_grad()
    def _stretched(self, units: np.ndarray, last: bool) -> np.ndarray:
        """Each unit repeated for its predicted duration, for those whose right context is complete."""
        reach = 2 * (self._vocoder.config.duration_kernel_size // 2)  # two convolutions
        self._undecided = np.concatenate([self._undecided, units])
        stop = len(self._undecided) - (0 if last else reach)
        if stop <= self._decided:
            return np.zeros(0, np.int64)
        window = torch.from_numpy(self._undecided).to(self._vocoder.model.embedding.weight.device)
        durations = self._vocoder.model.durations(window[None])[0].cpu().numpy()
        new = slice(self._decided, stop)
        frames = np.repeat(self._undecided[new], durations[new])
        keep = max(0, stop - reach)
        self._undecided, self._decided = self._undecided[keep:], stop - keep
        return frames


def write_vocoder(model: UnitHifiGan, part: Path) -> None:
    """Write config.json and model.safetensors into the folder `part`."""
    part.mkdir(parents=True, exist_ok=True)
    (part / "config.json").write_text(json.dumps(asdict(model.config), indent=1) + "\n")
    state = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, part / "model.safetensors", {"format": "pt"})


def untrained_vocoder(num_units: int, seed: int = 0) -> Vocoder:
    """A small random vocoder (640 samples a unit) with audible, never clipping sound: for tests."""
    config = VocoderConfig(num_units=num_units, embedding_dim=32, upsample_initial_channel=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UnitHifiGan(config)
    with torch.no_grad():
        for name, parameter in model.generator.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()  # or the biases would drown the units
        # PyTorch's initialisation fades the signal from layer to layer; the last layer makes up for it.
        peak = model(torch.arange(num_units)[None]).abs().max()
        model.generator.conv_post.weight.mul_(0.5 / peak)
    return Vocoder(model)
