"""Batches of speech for the ears: a pure function of (seed, step, micro-batch), so that resuming costs nothing.

Sources are mixed by hours heard, not by utterances. Utterances of about the same length share a micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from most_core.speech import BLANK, WORD_SEPARATOR
from train.data.augment import Augmentation, Augmenter
from train.data.pronunciation import phone_ids
from train.data.shards import ShardedSpeech
from train.data.utterance import spoken_letters

FRAMES_PER_SECOND = 25
LETTER_STEPS = 2  # letters a frame may spell: 25 a second are too few for "coffee" said fast
LETTERS: dict[str, int] = {
    symbol: i for i, symbol in enumerate([BLANK, WORD_SEPARATOR, "'", *"abcdefghijklmnopqrstuvwxyz"])
}
BUCKETS = 16


@dataclass(frozen=True)
class Speech:
    """A folder of shards, its share of the hours heard, and whether people (not synthesizers) speak in it."""

    path: Path
    weight: float = 1.0
    real: bool = False


class Targets(NamedTuple):
    """What CTC is to find in each row of a batch: `ids` of all rows in one sequence, `lengths` [B] of each."""

    ids: torch.Tensor
    lengths: torch.Tensor


class Batch(NamedTuple):
    """`waves` [B, N] float32, normalized; `mask` [B, T] is True where features are hidden from the encoder.

    A row whose pronunciation nobody knows has no phones.
    """

    waves: torch.Tensor
    letters: Targets
    phones: Targets
    mask: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.waves.to(device, non_blocking=True), self.letters, self.phones, self.mask.to(device, non_blocking=True)
        )


@dataclass(frozen=True)
class Masking:
    """Time masks on the features: each spans `frames`, and begins at `share` of the frames."""

    share: float = 0.012
    frames: tuple[int, int] = (3, 8)


def letter_ids(text: str) -> list[int]:
    """CTC targets of a text: `spoken_letters` as rows of the CTC head."""
    return [LETTERS[WORD_SEPARATOR if letter == " " else letter] for letter in spoken_letters(text)]


def normalized(waves: torch.Tensor) -> torch.Tensor:
    """As `SpeechEncoder` feeds HuBERT: zero mean and unit variance of each row."""
    mean = waves.mean(-1, keepdim=True)
    return (waves - mean) / torch.sqrt(waves.var(-1, correction=0, keepdim=True) + 1e-7)


class SpeechMixture(torch.utils.data.Dataset):
    """`mixture[i]` is micro-batch i of the run; any i, at any time, in any process, is always the same one."""

    def __init__(
        self,
        speech: Mapping[str, Speech],
        augmentation: Augmentation,
        masking: Masking,
        seed: int,
        micro_batch_seconds: float,
        frames_of: Sequence[tuple[int, int]],
        short_first: int = 0,
        max_seconds: float = 14.0,
    ) -> None:
        """`frames_of`: (kernel, stride) of the encoder's convolutions, which say how many frames a wave becomes.

        Over the first `short_first` micro-batches longer utterances join the shortest bit by bit: it is from single
        words that CTC finds out soonest where letters lie.
        """
        self.seed, self.masking, self.micro_batch_seconds = seed, masking, micro_batch_seconds
        self.convolutions, self.short_first = list(frames_of), short_first
        self.folders = [ShardedSpeech(source.path) for source in speech.values()]
        self.real = [source.real for source in speech.values()]
        rows: list[tuple[int, int]] = []
        seconds, shares, self.letters, self.phones, self.dropped = [], [], [], [], 0
        for folder_index, (folder, source) in enumerate(zip(self.folders, speech.values())):
            usable = []
            for i, (length, text) in enumerate(zip(folder.seconds, folder.texts)):
                ids = letter_ids(text) if text else []
                repeats = sum(a == b for a, b in pairwise(ids))
                room = LETTER_STEPS * FRAMES_PER_SECOND * length / augmentation.rate[1]
                if ids and length <= max_seconds and len(ids) + repeats <= room:
                    usable.append(i)
                    self.letters.append(np.array(ids, dtype=np.int16))
                    self.phones.append(np.array(phone_ids(text), dtype=np.int16))
                else:
                    self.dropped += 1
            total = float(sum(folder.seconds[i] for i in usable))
            if not usable:
                raise ValueError(
                    f"{source.path} holds no utterance with a text that fits its sound: nothing to train on"
                )
            rows += [(folder_index, i) for i in usable]
            seconds += [float(folder.seconds[i]) for i in usable]
            shares += [source.weight / total] * len(usable)
        order = np.argsort(seconds, kind="stable")
        self.rows = [rows[i] for i in order]
        self.letters, self.phones = ([ids[i] for i in order] for ids in (self.letters, self.phones))
        self.seconds = np.array(seconds)[order]
        share = np.array(shares)[order]
        heard = np.cumsum(share * self.seconds)
        edges = np.searchsorted(heard, heard[-1] * np.arange(1, BUCKETS) / BUCKETS)
        self.buckets = [bucket for bucket in np.split(np.arange(len(order)), edges) if len(bucket)]
        self.bucket_hours = np.cumsum([(share * self.seconds)[bucket].sum() for bucket in self.buckets])
        self.chances = [np.cumsum(share[bucket]) / share[bucket].sum() for bucket in self.buckets]
        talkers = [self.wave(int(i)) for i in np.random.default_rng([seed, 3]).integers(len(self.rows), size=48)]
        self.augmenter = Augmenter(augmentation, [w.astype(np.float32) / 32768 for w in talkers], seed)

    @property
    def hours(self) -> float:
        return float(self.seconds.sum() / 3600)

    def __len__(self) -> int:
        return 1 << 40

    def wave(self, row: int) -> np.ndarray:
        folder, i = self.rows[row]
        return self.folders[folder].pcm(i)

    def __getitem__(self, index: int) -> Batch:
        rng = np.random.default_rng([self.seed, index])
        allowed = len(self.buckets)
        if index < self.short_first:
            allowed = min(allowed, 1 + allowed * index // self.short_first)
        which = int(np.searchsorted(self.bucket_hours[:allowed], rng.random() * self.bucket_hours[allowed - 1]))
        bucket, chances = self.buckets[which], self.chances[which]
        count = max(1, round(self.micro_batch_seconds / self.seconds[bucket[-1]]))
        rows = bucket[np.searchsorted(chances, rng.random(count))]
        waves = self.augmenter.batch([self.wave(i) for i in rows], [self.real[self.rows[i][0]] for i in rows], rng)
        letters, phones = (_targets([ids[i] for i in rows]) for ids in (self.letters, self.phones))
        return Batch(normalized(waves), letters, phones, self._masked(len(rows), waves.shape[1], rng))

    def _masked(self, rows: int, samples: int, rng: np.random.Generator) -> torch.Tensor:
        frames = samples
        for kernel, stride in self.convolutions:
            frames = (frames - kernel) // stride + 1
        mask = np.zeros((rows, frames), dtype=bool)
        for row, start in zip(*np.nonzero(rng.random(mask.shape) < self.masking.share)):
            mask[row, start : start + rng.integers(*self.masking.frames, endpoint=True)] = True
        return torch.from_numpy(mask)


def _targets(rows: Sequence[np.ndarray]) -> Targets:
    ids = torch.from_numpy(np.concatenate(rows).astype(np.int64))
    return Targets(ids, torch.tensor([len(row) for row in rows]))
