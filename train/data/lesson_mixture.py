"""Batches of lessons: a pure function of (seed, micro-batch), so that resuming costs nothing and is exact.

A micro-batch is of one task and of lessons about equally long; `mixture` gives each task's share of the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from most_core.config import TokenTable
from train.data.lessons import Form, Lessons, Sequence, put_together

BUCKETS = 24
GOLDEN = (math.sqrt(5) - 1) / 2
SPEAKING = ("speech_instructions", "text_instructions")  # whose replies may be silent
LENGTH_MULTIPLE = 8  # of a batch: a CPU plans its products anew for every new length
SAMPLE = 64  # lessons from which the spread of features is measured


@dataclass(frozen=True)
class Forms:
    """How often a lesson is taken in another form: users' clips as units, replies without sound, and answers without
    the words that were heard before them."""

    units_in: float = 0.0
    silent: float = 0.1
    direct: float = 0.0

    def __post_init__(self) -> None:
        for name, share in vars(self).items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}; expected a share, 0..1")


@dataclass(frozen=True)
class FeatureNoise:
    """What is done to features, so that nobody learns them by heart: noise of `deviation` of their spread, and `masks`
    a second in which up to `mask_frames` are blanked."""

    deviation: float = 0.2
    masks: float = 0.8
    mask_frames: int = 8

    def __post_init__(self) -> None:
        if self.deviation < 0 or self.masks < 0 or self.mask_frames < 1:
            raise ValueError(
                f"noise is {vars(self)}; expected deviation and masks of 0 or more, mask_frames of 1 or more"
            )


class Batch(NamedTuple):
    """`ids`, `targets` (which ids are to be learned), `valid` (which are no padding): [B, T]; `features` [B, F, D]."""

    task: str
    ids: torch.Tensor
    targets: torch.Tensor
    valid: torch.Tensor
    features: torch.Tensor | None
    names: list[str]

    def to(self, device: torch.device) -> Batch:
        ids, targets, valid = (each.to(device, non_blocking=True) for each in self[1:4])
        features = None if self.features is None else self.features.to(device, non_blocking=True)
        return Batch(self.task, ids, targets, valid, features, self.names)


class LessonMixture(torch.utils.data.Dataset):
    """`mixture[i]` is micro-batch i of a run: always the same one, in any process."""

    def __init__(
        self,
        folder: Path,
        mixture: Mapping[str, float],
        table: TokenTable,
        feature_size: int,
        pad: int,
        tokens: int,
        forms: Forms = Forms(),
        noise: FeatureNoise | None = None,
        seed: int = 0,
        verify: bool = False,
    ) -> None:
        """About `tokens` ids make a micro-batch, padding included. Longer lessons are left out."""
        self.table, self.pad, self.tokens, self.forms, self.noise, self.seed = table, pad, tokens, forms, noise, seed
        self.tasks = [task for task, share in mixture.items() if share > 0]
        self.edges = np.cumsum([mixture[task] for task in self.tasks])
        self.lessons, self.buckets, self.shares, self.dropped = {}, {}, {}, 0
        for task in self.tasks:
            if not (folder / task).is_dir():
                raise FileNotFoundError(f"{folder} holds no lessons for {task}: prepare some, or give it no share")
            lessons = self.lessons[task] = Lessons(folder / task, feature_size, verify)
            order = np.argsort(lessons.lengths, kind="stable")
            order = order[(lessons.lengths[order] <= tokens) & (lessons.lengths[order] > 0)]
            self.dropped += len(lessons) - len(order)
            if not len(order):
                raise ValueError(f"{folder / task} holds no lesson of at most {tokens} tokens")
            mass = np.cumsum(lessons.lengths[order])
            cuts = np.searchsorted(mass, mass[-1] * np.arange(1, BUCKETS) / BUCKETS)
            self.buckets[task] = [bucket for bucket in np.split(order, cuts) if len(bucket)]
            self.shares[task] = np.cumsum([lessons.lengths[bucket].sum() for bucket in self.buckets[task]])
        self.spread = self._spread() if noise is not None else 0.0

    def __len__(self) -> int:
        return 1 << 40

    def task_of(self, index: int) -> str:
        """The task of a micro-batch. A golden-ratio sequence keeps to the shares in any stretch of a run."""
        place = (np.random.default_rng(self.seed).random() + index * GOLDEN) % 1 * self.edges[-1]
        return self.tasks[min(int(np.searchsorted(self.edges, place, side="right")), len(self.tasks) - 1)]

    def __getitem__(self, index: int) -> Batch:
        rng, task = np.random.default_rng([self.seed, index]), self.task_of(index)
        shares = self.shares[task]
        bucket = self.buckets[task][int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))]
        lessons = self.lessons[task]
        count = max(1, self.tokens // _rounded(int(lessons.lengths[bucket[-1]])))
        chosen = [lessons[int(row)] for row in bucket[rng.integers(len(bucket), size=count)]]
        taken = [put_together(lesson, self._form(task, rng), self.table) for lesson in chosen]
        taken = [each._replace(features=self._disturbed(each.features, rng)) for each in taken]
        return padded(task, taken, [lesson.id for lesson in chosen], self.pad)

    def _form(self, task: str, rng: np.random.Generator) -> Form:
        units_in, silent, direct = rng.random(3)
        forms = self.forms
        return Form(units_in < forms.units_in, task in SPEAKING and silent < forms.silent, direct >= forms.direct)

    def _disturbed(self, features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.noise is None or not len(features):
            return features
        features = features.astype(np.float32)
        features += self.noise.deviation * self.spread * rng.standard_normal(features.shape, np.float32)
        for _ in range(rng.poisson(self.noise.masks * len(features) / 25)):
            start = rng.integers(len(features))
            features[start : start + rng.integers(1, self.noise.mask_frames, endpoint=True)] = 0
        return features

    def _spread(self) -> float:
        """Standard deviation of the features of some lessons."""
        found = []
        for lessons in self.lessons.values():
            rows = np.random.default_rng(self.seed).integers(len(lessons), size=SAMPLE)
            found += [lessons[int(row)].features.astype(np.float32).ravel() for row in rows]
        values = np.concatenate(found)
        values = values[np.isfinite(values)]  # a broken lesson shall be named where it does harm
        return float(values.std()) if len(values) else 0.0


def padded(task: str, taken: list[Sequence], names: list[str], pad: int) -> Batch:
    """Sequences side by side, the shorter ones filled up at their ends."""
    length, frames = max(len(each.ids) for each in taken), max(len(each.features) for each in taken)
    length = _rounded(length)
    ids = np.full((len(taken), length), pad, np.int64)
    targets, valid = np.zeros((2, len(taken), length), bool)
    features = np.zeros((len(taken), frames, taken[0].features.shape[1]), np.float32) if frames else None
    for row, each in enumerate(taken):
        ids[row, : len(each.ids)], targets[row, : len(each.ids)], valid[row, : len(each.ids)] = *each[:2], True
        if len(each.features):
            features[row, : len(each.features)] = each.features
    tensors = (torch.from_numpy(each) for each in (ids, targets, valid))
    return Batch(task, *tensors, None if features is None else torch.from_numpy(features), names)


def _rounded(length: int) -> int:
    return -(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
