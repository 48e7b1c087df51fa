"""`python -m train encoder`: the ears. A small HuBERT learns to spell what it hears (CTC), and is frozen afterwards.

What is special about it:
- the first convolution strides 8 samples at once: a front end on raw sound that costs a CPU no more than a mel
  spectrogram; 25 frames a second;
- a middle layer learns to hear phones (CTC again), which the layers above then spell: English spelling is too wild to
  be learnt from sound at once. It is also what makes that layer's clusters, the units, phonetic;
- augmentation and time masks are drawn anew each time, as a function of (seed, step): nothing to save, exact resume;
- on a CPU each worker process is one thread and takes its share of the step's micro-batches: two such processes are
  faster than two threads, and far faster when the machine is shared;
- what is evaluated and exported is the running average of the weights.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jiwer
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers import HubertConfig, HubertModel

from most_core.speech import feature_extractor, spelled
from train.checkpoints import latest_checkpoint, load_checkpoint, resume, save_checkpoint
from train.config import RunOptions, config_hash, deadline, to_yaml
from train.data.augment import Augmentation
from train.data.mixture import LETTER_STEPS, LETTERS, Batch, Masking, Speech, SpeechMixture, Targets, normalized
from train.data.pronunciation import PHONES
from train.data.shards import ShardedSpeech
from train.data.utterance import spoken_letters
from train.progress import Progress, plot_losses
from train.workers import agreed, run_workers, shown_by, sum_gradients


@dataclass(frozen=True)
class Shape:
    """A HuBERT: convolutions (640 samples a frame in all), then transformer layers."""

    conv_dim: tuple[int, ...] = (48, 96, 128, 160, 192)
    conv_kernel: tuple[int, ...] = (32, 10, 8, 4, 4)
    conv_stride: tuple[int, ...] = (8, 5, 4, 2, 2)
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    feed_forward: int = 1024
    middle_layer: int = 4


@dataclass(frozen=True)
class Config:
    """Settings of the encoder's training. The schedule depends on the step alone."""

    speech: dict[str, Speech]
    check: dict[str, Path] = field(default_factory=dict)  # folders of shards to report the word error on
    start: Path | None = None  # the output of an earlier training: begin with such of its weights as fit
    shape: Shape = field(default_factory=Shape)
    augmentation: Augmentation = field(default_factory=Augmentation)
    masking: Masking = field(default_factory=Masking)
    seed: int = 0
    steps: int = 10_000
    micro_batches: int = 4  # a step's utterances come in so many groups of about equal length
    micro_batch_seconds: float = 32.0
    learning_rate: float = 1.5e-3
    warmup: int = 500
    short_first: int = 500  # steps over which longer utterances join the shortest
    weight_decay: float = 0.01
    clip: float = 1.0
    middle_loss: float = 0.5  # weight of the phones
    average: float = 0.999
    log_every: int = 20
    check_every: int = 1000
    checkpoint_every: int = 200
    loaders: int = 8  # processes that prepare batches for a GPU; on a CPU each worker prepares its own


class Ears(nn.Module):
    """HuBERT with a CTC head for letters on its last layer and, for training, one for phones on a middle layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.hubert = HubertModel(hubert_config(shape))
        self.head = nn.Linear(shape.hidden, LETTER_STEPS * len(LETTERS))
        self.middle_head = nn.Linear(shape.hidden, LETTER_STEPS * len(PHONES))
        self.middle_layer = shape.middle_layer

    def forward(self, waves: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of letters and of phones, [B, steps T, symbols], for normalized waves [B, N]."""
        output = self.hubert(waves, mask_time_indices=mask, output_hidden_states=True)
        last = self.head(output.last_hidden_state)
        middle = self.middle_head(output.hidden_states[self.middle_layer])
        return tuple(x.unflatten(-1, (LETTER_STEPS, -1)).flatten(1, 2) for x in (last, middle))

    def loss(self, batch: Batch, middle: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed losses of the letters and (times `middle`) of the phones."""
        letters, phones = self(batch.waves, batch.mask)
        return ctc_loss(letters, batch.letters), middle * ctc_loss(phones, batch.phones)


def hubert_config(shape: Shape) -> HubertConfig:
    """The transformers configuration of a shape. Dropout is off: augmentation never shows the same sound twice."""
    return HubertConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.feed_forward,
        conv_dim=shape.conv_dim,
        conv_kernel=shape.conv_kernel,
        conv_stride=shape.conv_stride,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=16,
        attn_implementation="eager",  # for a hundred frames, a fifth faster than the fused kernels of a CPU
        do_stable_layer_norm=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
        mask_time_prob=0.05,  # makes the embedding of a masked frame; where the masks lie, `Masking` says
    )


def ctc_loss(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    """CTC loss summed over the utterances: every symbol weighs the same, in a word or in a long sentence.

    Rows without targets count for nothing.
    """
    known = targets.lengths > 0
    if not known.any():
        return logits.sum() * 0
    log_probs = logits[known.to(logits.device)].float().log_softmax(-1).transpose(0, 1)
    lengths = targets.lengths[known]
    frames = torch.full((len(lengths),), logits.shape[1], dtype=torch.long)
    ids = targets.ids.to(logits.device)
    return F.ctc_loss(log_probs, ids, frames, lengths, reduction="sum", zero_infinity=True)


def learning_rate(config: Config, step: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def run(config: Config, out: Path, options: RunOptions) -> int:
    """Train, or go on training, in `out`; leaves `out/speech_encoder` as `SpeechEncoder` and transformers read it."""
    if options.dry_run:
        return _dry_run(config)
    return run_workers(_work, config.micro_batches, config, out, options)


def _work(rank: int, workers: int, device: torch.device, config: Config, out: Path, options: RunOptions) -> None:
    """One process of the run. All of them hold the same weights; rank 0 also writes."""
    torch.manual_seed(config.seed)
    ears = Ears(config.shape).to(device)
    average = Ears(config.shape).to(device).requires_grad_(False).eval()
    average.load_state_dict(ears.state_dict())
    optimizer = torch.optim.AdamW(_groups(ears, config.weight_decay), betas=(0.9, 0.98), eps=1e-8, fused=True)
    state = resume(out / "checkpoints", config_hash(config))
    first = 0
    if state is None and config.start is not None:
        own = ears.state_dict()
        fitting = {
            name: tensor for name, tensor in _weights_of(config.start).items() if tensor.shape == own[name].shape
        }
        for module in (ears, average):
            module.load_state_dict(fitting, strict=False)
    if state is not None:
        first = state["step"]
        ears.load_state_dict(state["ears"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
    mixture = SpeechMixture(
        config.speech,
        config.augmentation,
        config.masking,
        config.seed,
        config.micro_batch_seconds,
        list(zip(config.shape.conv_kernel, config.shape.conv_stride)),
        config.short_first * config.micro_batches,
    )
    mine = [
        step * config.micro_batches + micro
        for step in range(first, config.steps)
        for micro in range(rank, config.micro_batches, workers)
    ]
    batches = iter(
        torch.utils.data.DataLoader(
            mixture,
            batch_size=None,
            sampler=mine,
            num_workers=config.loaders if device.type == "cuda" else 0,
            pin_memory=device.type == "cuda",
        )
    )
    late = deadline(options.minutes)
    folder = out if rank == 0 else None
    with Progress(folder, config.steps, step=first, title="encoder", stream=shown_by(rank)) as bar:
        if rank == 0:
            parameters = sum(p.numel() for p in ears.hubert.parameters())
            bar.note(
                f"{parameters / 1e6:.2f} M parameters, {mixture.hours:.1f} hours of speech in {len(mixture.rows)} "
                f"utterances ({mixture.dropped} dropped), {workers} worker(s) on {device.type}, from step {first}"
            )
        heard, since = 0.0, time.monotonic()
        for step in range(first, config.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            totals = torch.zeros(5)  # loss of letters, of phones, letters, phones, seconds
            for _ in range(rank, config.micro_batches, workers):
                batch = next(batches).to(device)
                with torch.autocast(device.type, torch.bfloat16):
                    letters, phones = ears.loss(batch, config.middle_loss)
                (letters + phones).backward()
                counts = len(batch.letters.ids), len(batch.phones.ids), batch.waves.numel() / 16_000
                totals += torch.tensor([letters.item(), phones.item(), *counts])
            totals = sum_gradients(list(ears.parameters()), totals, workers)
            torch._foreach_div_([parameter.grad for parameter in ears.parameters()], float(totals[2]))
            norm = nn.utils.clip_grad_norm_(ears.parameters(), config.clip)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                decay = min(config.average, (step + 1) / (step + 10))
                torch._foreach_lerp_(list(average.parameters()), list(ears.parameters()), 1 - decay)
            heard += float(totals[4])
            if step % config.log_every == 0:
                of_letters = totals[0] / totals[2]
                of_phones = totals[1] / max(config.middle_loss, 1e-9) / max(totals[3], 1)
                speed = heard / (time.monotonic() - since)
                bar.log(
                    step, **{"loss/letters": of_letters, "loss/phones": of_phones, "norm": norm, "x_real_time": speed}
                )
            else:
                bar.update(step)
            done = step + 1
            stop = agreed(late(), workers)
            if rank == 0 and (done % config.check_every == 0 or done == config.steps) and config.check:
                for name, error in checked(average, config.check, device).items():
                    bar.log(step, **{f"word_error/{name}": error})
            if done % config.checkpoint_every == 0 or done == config.steps or stop:
                if rank == 0:
                    state = {
                        "ears": ears.state_dict(),
                        "average": average.state_dict(),
                        "optimizer": optimizer.state_dict(),
                    }
                    save_checkpoint(out / "checkpoints", done, state, config_hash=config_hash(config))
                if stop and done < config.steps:
                    bar.note(f"stopped at step {done} of {config.steps}; the same command continues")
                    break
    if rank == 0:
        plot_losses(out)
        export(average, out)
        (out / "config.yaml").write_text(to_yaml(config), encoding="utf-8")


def _weights_of(earlier: Path) -> dict[str, torch.Tensor]:
    latest = latest_checkpoint(earlier / "checkpoints")
    if latest is None:
        raise FileNotFoundError(f"{earlier} holds no checkpoint to start from: give the --out of an encoder training")
    return load_checkpoint(latest)["average"]


def _groups(ears: Ears, decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in ears.parameters() if p.ndim > 1]
    others = [p for p in ears.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def spell(logits: torch.Tensor) -> str:
    """Greedy CTC decoding of [T, letters]: what `SpeechEncoder.words` hears, as one line."""
    return " ".join(word.text for word in spelled(logits.float().log_softmax(-1).cpu(), LETTERS, 1.0))


@torch.no_grad()
def checked(ears: Ears, folders: Mapping[str, Path], device: torch.device) -> dict[str, float]:
    """Word error of greedy spelling on each folder of shards, one utterance at a time as the product hears them."""
    errors = {}
    for name, path in folders.items():
        speech = ShardedSpeech(path)
        said, heard = [], []
        for i in range(len(speech)):
            wave = torch.from_numpy(speech.pcm(i).astype("float32") / 32768)[None].to(device)
            with torch.autocast(device.type, torch.bfloat16):
                heard.append(spell(ears(normalized(wave))[0][0]))
            said.append(spoken_letters(speech.texts[i]))
        errors[name] = jiwer.wer(said, heard)
    return errors


def export(ears: Ears, out: Path) -> None:
    """Write `speech_encoder/` in half precision: a plain HubertModel folder with its CTC head beside it."""
    part = out / "speech_encoder"
    part.mkdir(parents=True, exist_ok=True)
    hubert = HubertModel(ears.hubert.config)
    hubert.load_state_dict(ears.hubert.state_dict())
    hubert.half().save_pretrained(part)
    feature_extractor(do_normalize=True).save_pretrained(part)
    tensors = {"weight": ears.head.weight.detach().cpu().contiguous(), "bias": ears.head.bias.detach().cpu()}
    save_file(tensors, part / "ctc.safetensors", {"layer": str(ears.hubert.config.num_hidden_layers)})
    (part / "vocab.json").write_text(json.dumps(LETTERS, indent=1), encoding="utf-8")


def _dry_run(config: Config) -> int:
    """Show the resolved settings and the size, and take one step on noise."""
    ears = Ears(config.shape)
    generator = torch.Generator().manual_seed(0)
    waves = normalized(torch.randn(2, 32_000, generator=generator))
    frames = ears.hubert._get_feat_extract_output_lengths(waves.shape[1])
    targets = Targets(torch.tensor([5, 6, 7, 8]), torch.tensor([2, 2]))
    batch = Batch(waves, targets, targets, torch.zeros(2, int(frames), dtype=torch.bool))
    loss = sum(ears.loss(batch, config.middle_loss))
    loss.backward()
    parameters = sum(p.numel() for p in ears.parameters())
    hours = config.steps * config.micro_batches * config.micro_batch_seconds / 3600
    print(to_yaml(config))
    print(
        f"{parameters / 1e6:.2f} M parameters ({parameters * 2 / 1e6:.1f} MB exported), {hours:.0f} hours heard in "
        f"{config.steps} steps; one step on noise: loss {loss.item():.2f}"
    )
    return 0
