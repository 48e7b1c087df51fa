"""`python -m train vocoder`: the mouth. A small HiFi-GAN learns to speak units in one voice.

What is special about it:
- units come from the frozen encoder, computed once; crops of units and sound are drawn as a function of (seed, step);
- first, without any sound, embeddings and context layers learn to tell the spectrum of what they read: twenty times as
  many units pass in the same time, and most of what makes speech understood is settled;
- then they are frozen, spectral losses alone give the generator its sound, and discriminators join and make it sound
  like a voice;
- generator and discriminators learn from the same pass, so a step costs one forward of each and one exchange of
  gradients between workers (one thread each, as in `train/encoder.py`);
- discriminators look at a window of the crop: context is what units need, detail is what discriminators need;
- what is evaluated and exported is the running average of the generator's weights.

`out` becomes a folder that `SpeechEncoder.load`, `Vocoder.load` and `python -m train evaluate mouth` read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from most_core.speech import Quantizer, SpeechEncoder
from most_core.vocoder import NOTHING, SLOPE, UnitHifiGan, VocoderConfig, context_reach_units, receptive_field_samples
from train import discriminators
from train.checkpoints import resume, save_checkpoint
from train.config import RunOptions, config_hash, deadline, to_yaml
from train.data.shards import ShardedSpeech
from train.data.unit_speech import (
    Batch,
    UnitCrops,
    best_shift,
    encode_piece,
    pieces,
    read_units,
    units_folder,
    wave_of,
)
from train.discriminators import Discriminators
from train.progress import Progress, plot_losses
from train.vocoder_export import export
from train.vocoder_losses import MEL_FLOOR, MELS, SpectralLoss
from train.vocoder_samples import check
from train.workers import agreed, run_workers, shown_by, sum_gradients

FIRST_LOUDNESS = 0.05
TOLD_HOP = 160  # 10 ms
TELLING_LOSSES = ("loss/told",)
LOSSES = ("loss/mel", "loss/stft", "adversarial/discriminators", "adversarial/generator", "features/apart")
SHIFT_UTTERANCES = 300  # by which the shift is measured


@dataclass(frozen=True)
class Weights:
    """What each loss counts."""

    mel: float = 15.0
    stft: float = 3.0
    adversarial: float = 1.0
    features: float = 2.0


@dataclass(frozen=True)
class Config:
    """Settings of the vocoder's training. `encoder` is the output of `python -m train units`."""

    encoder: Path
    speech: tuple[Path, ...]  # folders of shards, all of one voice
    check: Path | None = None  # a folder of shards to speak again now and then
    shift: int | None = None  # samples from a recording's start to the sound of its first unit; None: measured
    shape: VocoderConfig = field(default_factory=VocoderConfig)  # num_units must be the encoder's
    discriminators: discriminators.Shape = field(default_factory=discriminators.Shape)
    weights: Weights = field(default_factory=Weights)
    seed: int = 0
    steps: int = 16_000
    sound_from: int = 2000  # until this step units are read, from it on spoken
    adversarial_from: int = 6000  # discriminators join at this step
    micro_batches: int = 2
    crops: int = 2  # of a micro-batch
    telling_crops: int = 32  # of a micro-batch before there is sound
    telling_units: int = 32  # of such a crop
    crop_units: int = 16  # 0.64 seconds
    window_units: int = 10  # of a crop, which the discriminators judge
    telling_rate: float = 2e-3
    learning_rate: float = 8e-4
    discriminator_learning_rate: float = 2e-4
    warmup: int = 200
    clip: float = 20.0
    average: float = 0.999
    log_every: int = 20
    check_every: int = 2000
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        if self.shape.duration_predictor:
            raise ValueError("shape.duration_predictor is true, but units are learned with their repeats: leave it out")
        if not 0 <= self.sound_from <= self.adversarial_from:
            raise ValueError(
                f"sound_from is {self.sound_from}, adversarial_from {self.adversarial_from}: discriminators cannot "
                "join before there is sound"
            )
        if not 0 < self.window_units <= self.crop_units:
            raise ValueError(f"window_units is {self.window_units}; expected 1..{self.crop_units}, as crop_units says")


def generator(shape: VocoderConfig, seed: int) -> UnitHifiGan:
    """A new generator, of a speaker's loudness. PyTorch's own first weights let the signal fade from layer to layer
    until only biases are heard.
    """
    torch.manual_seed(seed)
    model = UnitHifiGan(shape)
    with torch.no_grad():
        for name, module in model.generator.named_modules():
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                inputs = module.in_channels * module.kernel_size[0] / module.stride[0]
                # Residual branches begin small, or every block would double the signal
                nn.init.normal_(module.weight, std=(0.3 if ".convs2." in name else 1.0) * math.sqrt(2 / inputs))
                nn.init.zeros_(module.bias)
    set_loudness(model, F.pad(torch.arange(shape.num_units)[None], context_reach_units(shape), value=NOTHING))
    return model


@torch.no_grad()
def set_loudness(model: UnitHifiGan, window_BN: torch.Tensor) -> None:
    """Scale both ends of a generator that has not learned yet to what it is given, and to a speaker's loudness."""
    model.generator.conv_pre.weight.div_(model.in_context(window_BN).std())
    model.generator.conv_post.weight.mul_(FIRST_LOUDNESS / model.sound(window_BN).std())


class Teller(nn.Module):
    """The log-mel spectrum, TOLD_HOP samples a frame, of what the generator is given for units: [B, N, E] -> frames."""

    def __init__(self, shape: VocoderConfig) -> None:
        super().__init__()
        self.mels = nn.Linear(shape.embedding_dim, shape.samples_per_unit // TOLD_HOP * MELS)
        nn.init.constant_(self.mels.bias, math.log(MEL_FLOOR) / 2)

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        """[B, 80, frames]"""
        return self.mels(F.leaky_relu(context, SLOPE)).unflatten(2, (-1, MELS)).flatten(1, 2).mT

    def loss(self, context: torch.Tensor, waves: torch.Tensor, spectral: SpectralLoss) -> torch.Tensor:
        """Mean absolute difference from the spectrum of `waves`."""
        told = self(context)
        return (told - spectral.log_mel(waves, TOLD_HOP)[:, :, : told.shape[2]]).abs().mean()


def learning_rate(config: Config, step: int) -> float:
    """Factor of the learning rates: in each part, with and without sound, a warm-up and a cosine to a twentieth."""
    first, last = (0, config.sound_from) if step < config.sound_from else (config.sound_from, config.steps)
    done = max(0, step - first - config.warmup) / max(1, last - first - config.warmup)
    warm = min(1.0, (step - first + 1) / max(1, config.warmup))
    return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def run(config: Config, out: Path, options: RunOptions) -> int:
    """Train, or go on training, in `out`; leaves `out/vocoder` and the encoder that its units are of."""
    if options.dry_run:
        return _dry_run(config)
    num_units = len(Quantizer.load(config.encoder / "units.safetensors").centroids)
    if config.shape.num_units != num_units:
        raise ValueError(
            f"shape.num_units is {config.shape.num_units}, but {config.encoder} has {num_units} units: give that number"
        )
    return run_workers(_work, config.micro_batches, config, out, options)


def _work(rank: int, workers: int, device: torch.device, config: Config, out: Path, options: RunOptions) -> None:
    """One process of the run. All of them hold the same weights; rank 0 also writes."""
    late = deadline(options.minutes)
    encoder = SpeechEncoder.load(config.encoder, device)
    speech = ShardedSpeech(*config.speech)
    folder = units_folder(out, config.encoder, config.speech)
    if _encoded(encoder, speech, folder, rank, workers, late):
        _train(rank, workers, config, out, device, encoder, speech, read_units(speech, folder), late)
    elif rank == 0:
        print("stopped before all units were computed; the same command continues", flush=True)


def _encoded(
    encoder: SpeechEncoder, speech: ShardedSpeech, folder: Path, rank: int, workers: int, late: Callable[[], bool]
) -> bool:
    """Compute the units that are not there yet, each worker its share; False if time ran out."""
    mine = pieces(speech)[rank::workers]
    stop = False
    with Progress(None, len(mine), title="units", unit="piece", stream=shown_by(rank)) as bar:
        for place, piece in enumerate(mine):
            stop = late()
            if stop:
                break
            encode_piece(encoder, speech, folder, piece)
            bar.update(place)
    return not agreed(stop, workers)  # and nobody goes on before all are here


@dataclass
class _Learners:
    """All that learns, and by what: "reader" is the part of `model` that reads units, with its teller."""

    model: UnitHifiGan
    average: UnitHifiGan
    judges: Discriminators
    teller: Teller
    parameters: dict[str, list[nn.Parameter]]
    optimizers: dict[str, torch.optim.Optimizer]

    @property
    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """What a checkpoint keeps."""
        parts = {"generator": self.model, "average": self.average, "discriminators": self.judges, "teller": self.teller}
        return parts | {f"optimizer of {name}": optimizer for name, optimizer in self.optimizers.items()}


def _learners(config: Config, device: torch.device) -> _Learners:
    model = generator(config.shape, config.seed).to(device)
    average = UnitHifiGan(model.config).to(device).requires_grad_(False).eval()
    average.load_state_dict(model.state_dict())
    judges, teller = Discriminators(config.discriminators).to(device), Teller(model.config).to(device)
    parameters = {
        "reader": [*model.embedding.parameters(), *model.context.parameters(), *teller.parameters()],
        "model": list(model.generator.parameters()),
        "judges": list(judges.parameters()),
    }
    optimizers = {
        name: torch.optim.AdamW(each, betas=(0.8, 0.99), weight_decay=0.01, fused=True)
        for name, each in parameters.items()
    }
    return _Learners(model, average, judges, teller, parameters, optimizers)


def _train(
    rank: int,
    workers: int,
    config: Config,
    out: Path,
    device: torch.device,
    encoder: SpeechEncoder,
    speech: ShardedSpeech,
    units: list[np.ndarray],
    late: Callable[[], bool],
) -> None:
    learners = _learners(config, device)
    state, first, shift = resume(out / "checkpoints", config_hash(config)), 0, config.shift
    if state is not None:
        first, shift = state["step"], state["shift"]
        for name, part in learners.parts.items():
            part.load_state_dict(state[name])
    size, told = config.shape.samples_per_unit, float("nan")
    if shift is None:
        longest = encoder.first_frame_samples - encoder.samples_per_frame
        waves = [wave_of(speech, row) for row in range(min(len(speech), SHIFT_UTTERANCES))]
        shift, told = best_shift(waves, units[: len(waves)], encoder.num_units, size, longest)
    window, around = config.window_units * size, context_reach_units(config.shape)
    crops, telling_crops = (
        UnitCrops(speech, units, shift, size, length, number, min(window, length * size), config.seed, around)
        for number, length in ((config.crops, config.crop_units), (config.telling_crops, config.telling_units))
    )
    spectral = SpectralLoss(config.shape.sample_rate).to(device)
    heard = ShardedSpeech(config.check) if config.check and rank == 0 else None
    heard_units = [encoder.units(wave_of(heard, row)) for row in range(len(heard))] if heard else []
    main = rank == 0
    with Progress(out if main else None, config.steps, step=first, title="vocoder", stream=shown_by(rank)) as bar:
        if main:
            bar.note(
                f"{_millions(learners.model)} parameters, discriminators {_millions(learners.judges)}; "
                f"{crops.hours:.1f} hours in {len(crops.rows)} utterances ({crops.dropped} dropped), sound {shift} "
                f"samples after its frame's first"
                + (f" (units tell {100 * told:.0f} % of it)" if told == told else "")
                + f", {workers} worker(s) on {device.type}, from step {first}"
            )
        logged_at = time.monotonic()
        for step in range(first, config.steps):
            source = crops if step >= config.sound_from else telling_crops
            if step == config.sound_from:
                set_loudness(learners.model, crops[0].units.to(device))
            batches = [
                Batch(batch.units.to(device), batch.waves.to(device), batch.window)
                for batch in (
                    source[step * config.micro_batches + micro] for micro in range(rank, config.micro_batches, workers)
                )
            ]
            figures = _step(config, step, learners, batches, spectral, workers)
            done = step + 1
            if step % config.log_every == 0:
                samples = config.log_every * config.micro_batches * batches[0].waves.numel()
                seconds, logged_at = time.monotonic() - logged_at, time.monotonic()
                if step > first:
                    figures["x_real_time"] = samples / config.shape.sample_rate / seconds
                bar.log(step, **figures)
            else:
                bar.update(step)
            stop = agreed(late(), workers)
            ending = stop or done == config.steps
            if heard and step >= config.sound_from and (ending or done % config.check_every == 0):
                found = check(learners.average, heard, heard_units, shift, out / "samples" / f"step-{done:08d}")
                bar.log(step, **{f"check_{name}": value for name, value in found.items()})
            if main and (ending or done % config.checkpoint_every == 0):
                state = {name: part.state_dict() for name, part in learners.parts.items()} | {"shift": shift}
                save_checkpoint(out / "checkpoints", done, state, config_hash=config_hash(config))
            if stop and done < config.steps:
                bar.note(f"stopped at step {done} of {config.steps}; the same command continues")
                break
    if main:
        if (out / "log.jsonl").stat().st_size:
            plot_losses(out)
        export(learners.average, out, config.encoder, config.speech, shift)
        (out / "config.yaml").write_text(to_yaml(config), encoding="utf-8")


def _step(
    config: Config,
    step: int,
    learners: _Learners,
    batches: Sequence[Batch],
    spectral: SpectralLoss,
    workers: int,
) -> dict[str, float]:
    """Learn from this worker's share of a step's micro-batches; returns what there is to log of all shares."""
    model, judges, learning, shown = learners.model, None, {"reader": config.telling_rate}, TELLING_LOSSES
    if step >= config.sound_from:
        learning, shown = {"model": config.learning_rate}, LOSSES[:2]
    if step >= config.adversarial_from:
        learning["judges"] = config.discriminator_learning_rate
        judges, shown = learners.judges, LOSSES
    totals = torch.zeros(len(shown))
    for batch in batches:
        if step >= config.sound_from:
            losses = _backward(config, model, judges, spectral, batch)
        else:
            losses = [learners.teller.loss(model.in_context(batch.units), batch.waves, spectral)]
            losses[0].backward()
        totals += torch.tensor([loss.item() for loss in losses])
    every = [parameter for name in learning for parameter in learners.parameters[name]]
    totals = sum_gradients(every, totals, workers) / config.micro_batches
    torch._foreach_div_([parameter.grad for parameter in every], float(config.micro_batches))
    figures = dict(zip(shown, totals.tolist()))
    for name, highest in learning.items():
        optimizer = learners.optimizers[name]
        optimizer.param_groups[0]["lr"] = highest * learning_rate(config, step)
        figures[f"norm/{name}"] = float(nn.utils.clip_grad_norm_(learners.parameters[name], config.clip))
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        decay = min(config.average, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(learners.average.parameters()), list(model.parameters()), 1 - decay)
    return figures


def _backward(
    config: Config,
    model: UnitHifiGan,
    judges: Discriminators | None,
    spectral: SpectralLoss,
    batch: Batch,
) -> list[torch.Tensor]:
    """Add a micro-batch's gradients to those of generator and discriminators; returns the LOSSES there are."""
    with torch.no_grad():
        context = model.in_context(batch.units)
    made = model.generator(context.mT)
    stft, mel = spectral(made, batch.waves)
    loss = config.weights.mel * mel + config.weights.stft * stft
    losses = [mel, stft]
    if judges is not None:
        window = slice(batch.window, batch.window + config.window_units * config.shape.samples_per_unit)
        # A leaf of its own: what the generator learns must not reach the discriminators' weights, nor the reverse
        shown = made[:, window].detach().requires_grad_()
        judgement = judges(shown, batch.waves[:, window])
        weights = list(judges.parameters())
        for weight, grad in zip(weights, torch.autograd.grad(judgement.discriminators, weights, retain_graph=True)):
            weight.grad = grad if weight.grad is None else weight.grad + grad
        wish = config.weights.adversarial * judgement.generator + config.weights.features * judgement.features
        loss = loss + (made[:, window] * torch.autograd.grad(wish, shown)[0]).sum()
        losses += judgement
    loss.backward()
    return losses


def _millions(module: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.2f} M"


def _dry_run(config: Config) -> int:
    """Show the resolved settings and the sizes, and take one step on noise."""
    model = generator(config.shape, config.seed)
    judges, size = Discriminators(config.discriminators), model.config.samples_per_unit
    random = torch.Generator().manual_seed(0)
    around = sum(context_reach_units(config.shape))
    units = torch.randint(config.shape.num_units, (2, config.crop_units + around), generator=random)
    waves = 0.1 * torch.randn(2, config.crop_units * size, generator=random)
    losses = _backward(config, model, judges, SpectralLoss(), Batch(units, waves, 0))
    crops = (config.steps - config.sound_from) * config.crops
    hours = crops * config.micro_batches * config.crop_units * size / 16_000 / 3600
    ahead = receptive_field_samples(model.config)[1] / 16
    print(
        f"{_millions(model)} parameters with {config.shape.num_units} units, looking {ahead:.0f} ms ahead, "
        f"discriminators {_millions(judges)}; {hours:.0f} hours heard in {config.steps} steps; one step on noise: mel "
        f"{losses[0]:.2f}, stft {losses[1]:.2f}, discriminators {losses[2]:.2f}"
    )
    return 0
