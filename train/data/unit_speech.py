"""Speech beside its units: what a vocoder learns from.

Units are computed once, in pieces that survive a kill, and kept beside the training. Batches are a pure function of
(seed, index), so that resuming costs nothing.

Frame t of the encoder sees samples [640 t, 640 t + its receptive field); the vocoder makes 640 samples of unit t. The
recording is therefore cut `shift` samples in, so that both are about the same moment: half of what the receptive field
is longer than a frame, if a frame were all about its middle; `best_shift` measures where it really looks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from most_core.speech import SpeechEncoder
from most_core.vocoder import NOTHING
from train.data.shards import FULL_SCALE, ShardedSpeech, read_manifest
from train.files import whole_file
from train.vocoder_losses import SpectralLoss

PIECE = 200  # utterances whose units make a file: a few seconds' work
SHIFT_STEP = 64


class Batch(NamedTuple):
    """Crops of U units: `waves` [B, samples_per_unit U] float32, and `units` [B, back + U + ahead] int64, with those
    that context layers see around them. `window`: the sample from which discriminators look."""

    units: torch.Tensor
    waves: torch.Tensor
    window: int


def units_folder(out: Path, encoder: Path, speech: Sequence[Path]) -> Path:
    """Where the units of this speech by this encoder are kept: other speech or another encoder has another folder."""
    digest = hashlib.sha256()
    for path in (encoder / "units.safetensors", encoder / "speech_encoder" / "model.safetensors"):
        digest.update(path.read_bytes())
    for folder in speech:
        for shard in read_manifest(folder)[0]:
            digest.update(shard.sha256.encode())
    return out / "units" / digest.hexdigest()[:12]


def pieces(speech: ShardedSpeech) -> range:
    """The numbers of the files of units."""
    return range(-(-len(speech) // PIECE))


def encode_piece(encoder: SpeechEncoder, speech: ShardedSpeech, folder: Path, piece: int) -> None:
    """Write the units of a piece, unless they are there."""
    path = _file(folder, piece)
    if path.is_file():
        return
    rows = range(piece * PIECE, min(len(speech), (piece + 1) * PIECE))
    units = [encoder.units(wave_of(speech, row)) for row in rows]
    with whole_file(path) as file:
        np.savez(file, units=np.concatenate(units).astype(np.int32), counts=[len(each) for each in units])


def read_units(speech: ShardedSpeech, folder: Path) -> list[np.ndarray]:
    """The units [T] of every utterance, once all pieces are written."""
    units: list[np.ndarray] = []
    for piece in pieces(speech):
        with np.load(_file(folder, piece)) as content:
            units += np.split(content["units"], np.cumsum(content["counts"])[:-1])
    return units


def _file(folder: Path, piece: int) -> Path:
    return folder / f"units-{piece:05}.npz"


def wave_of(speech: ShardedSpeech, row: int) -> np.ndarray:
    """float32 samples of an utterance, without its texts."""
    return speech.pcm(row).astype(np.float32) / FULL_SCALE


def best_shift(
    waves: Sequence[np.ndarray], units: Sequence[np.ndarray], num_units: int, samples_per_unit: int, most: int
) -> tuple[int, float]:
    """Where, from 0 to `most` samples in, waves are told best by their units; and the share of them that units tell.

    Sound is the log-mel spectrum at the middle of each unit's samples; told is what the mean over all moments of the
    same unit leaves unexplained the least of.
    """
    spectral = SpectralLoss()
    owners = torch.from_numpy(np.concatenate(units).astype(np.int64))
    shifts = list(range(0, most + 1, SHIFT_STEP))
    points: list[list[torch.Tensor]] = [[] for _ in shifts]
    for wave, row in zip(waves, units):
        mel = spectral.log_mel(torch.from_numpy(wave)[None], SHIFT_STEP)[0]
        middles = samples_per_unit * torch.arange(len(row)) + samples_per_unit // 2
        for shift, found in zip(shifts, points):
            found.append(mel[:, ((middles + shift) // SHIFT_STEP).clamp(max=mel.shape[1] - 1)].T)
    told = [_explained(torch.cat(found), owners, num_units) for found in points]
    best = int(np.argmax(told))
    return shifts[best], told[best]


def _explained(points: torch.Tensor, owners: torch.Tensor, owners_in_all: int) -> float:
    """Share of the variance of `points` [P, D] that lies between their owners."""
    counts = torch.bincount(owners, minlength=owners_in_all).clamp(min=1)[:, None]
    means = torch.zeros(owners_in_all, points.shape[1]).index_add_(0, owners, points) / counts
    within = (points - means[owners]).square().sum()
    return float(1 - within / (points - points.mean(0)).square().sum())


class UnitCrops:
    """`crops[i]` is micro-batch i of a run: always the same one, in any process."""

    def __init__(
        self,
        speech: ShardedSpeech,
        units: Sequence[np.ndarray],
        shift: int,
        samples_per_unit: int,
        crop_units: int,
        crops: int,
        window_samples: int,
        seed: int,
        surroundings: tuple[int, int] = (0, 0),
    ) -> None:
        """`crops` of `crop_units` units make a batch. Utterances shorter than a crop are left out.

        `surroundings`: how many units before and after a crop come with it; NOTHING where there are none.
        """
        self.speech, self.units, self.shift, self.size = speech, units, shift, samples_per_unit
        self.crop_units, self.crops, self.seed, self.surroundings = crop_units, crops, seed, surroundings
        self.windows = (crop_units * samples_per_unit - window_samples) // samples_per_unit + 1
        samples = np.rint(speech.seconds.astype(np.float64) * 16_000).astype(np.int64)
        counts = np.array([len(each) for each in units], np.int64)
        counts = np.minimum(counts, (samples - shift) // samples_per_unit)
        self.rows = np.flatnonzero(counts >= crop_units)
        if not len(self.rows):
            raise ValueError(f"no utterance is as long as a crop of {crop_units} units: lower crop_units")
        self.dropped = len(units) - len(self.rows)
        self.counts = counts[self.rows]
        self._ends = np.cumsum(self.counts)

    @property
    def hours(self) -> float:
        return float(self._ends[-1] * self.size / 16_000 / 3600)

    def __getitem__(self, index: int) -> Batch:
        rng = np.random.default_rng([self.seed, index])
        units, waves = [], []
        for place in np.searchsorted(self._ends, rng.integers(self._ends[-1], size=self.crops), side="right"):
            row, last = int(self.rows[place]), int(self.counts[place]) - self.crop_units
            # Beginnings and ends lie in few crops: reach beyond them to draw them oftener
            start = int(np.clip(rng.integers(-self.crop_units // 4, last + self.crop_units // 4 + 1), 0, last))
            units.append(self._with_surroundings(row, start))
            first = self.shift + start * self.size
            waves.append(self.speech.pcm(row)[first : first + self.crop_units * self.size])
        return Batch(
            torch.from_numpy(np.stack(units).astype(np.int64)),
            torch.from_numpy(np.stack(waves).astype(np.float32) / FULL_SCALE),
            int(rng.integers(self.windows)) * self.size,
        )

    def _with_surroundings(self, row: int, start: int) -> np.ndarray:
        back, ahead = self.surroundings
        stop = start + self.crop_units + ahead
        known = self.units[row][max(0, start - back) : stop]
        before = max(0, back - start)
        after = back + self.crop_units + ahead - before - len(known)
        return np.pad(known, (before, after), constant_values=NOTHING)
