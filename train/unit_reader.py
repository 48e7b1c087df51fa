"""From units back to letters: how much of what was said do the units still hold?

A small network learns to spell from the units alone, of the speech the ears were trained on. Its word error judges the
units (how many clusters, of which layer) apart from any language model, and ships with the checkpoint for evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from most_core.speech import spelled
from train.data.mixture import LETTER_STEPS, LETTERS

FILE = "unit_reader.safetensors"
WIDTH, KERNEL, LAYERS = 128, 5, 5


class UnitReader(nn.Module):
    """Embedding, gated convolutions over 0.8 seconds of context, letters. `clusters` is also the padding's row."""

    def __init__(self, clusters: int) -> None:
        super().__init__()
        self.clusters = clusters
        self.embedding = nn.Embedding(clusters + 1, WIDTH, padding_idx=clusters)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(WIDTH, 2 * WIDTH, KERNEL, padding=KERNEL // 2) for _ in range(LAYERS)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, LETTER_STEPS * len(LETTERS))

    def forward(self, units: torch.Tensor) -> torch.Tensor:
        """Logits [B, steps T, letters] of units [B, T]."""
        x = self.embedding(units)
        for norm, convolution in zip(self.norms, self.convolutions):
            x = x + F.glu(convolution(norm(x).transpose(1, 2)), dim=1).transpose(1, 2)
        return self.head(x).unflatten(-1, (LETTER_STEPS, -1)).flatten(1, 2)

    @torch.no_grad()
    def read(self, units: np.ndarray) -> str:
        """The words of [T] units, greedily."""
        log_probs = self(torch.from_numpy(np.asarray(units, dtype=np.int64))[None])[0].log_softmax(-1)
        return " ".join(word.text for word in spelled(log_probs, LETTERS, 1.0))

    def save(self, folder: Path) -> None:
        """Write it, in half precision, into a checkpoint folder."""
        tensors = {name: tensor.half().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / FILE, {"clusters": str(self.clusters)})

    @classmethod
    def load(cls, folder: Path) -> UnitReader | None:
        """The reader of a checkpoint folder, or None where there is none."""
        if not (folder / FILE).is_file():
            return None
        with safe_open(folder / FILE, "pt") as file:
            reader = cls(int(file.metadata()["clusters"]))
            reader.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118
        return reader.eval()


def learn_to_read(
    units: Sequence[np.ndarray],
    letters: Sequence[Sequence[int]],
    clusters: int,
    steps: int,
    seed: int = 0,
    batch: int = 48,
    learning_rate: float = 2e-3,
) -> UnitReader:
    """A reader trained with CTC on pairs of units and letter ids, in batches of about equal length."""
    torch.manual_seed(seed)
    reader = UnitReader(clusters)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=learning_rate, weight_decay=0.01)
    warm_up = max(1, steps // 10)
    shape = lambda step: min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps)))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
    by_length = sorted(range(len(units)), key=lambda i: len(units[i]))
    for step in range(steps):
        rng = np.random.default_rng([seed, step])
        start = int(rng.integers(max(1, len(by_length) - batch)))
        rows = by_length[start : start + batch]
        padded = np.full((len(rows), max(len(units[i]) for i in rows)), clusters, dtype=np.int64)
        for row, i in zip(padded, rows):
            row[: len(units[i])] = units[i]
            row[: len(units[i])][rng.random(len(units[i])) < 0.05] = clusters  # hidden now and then: read the context
        log_probs = reader(torch.from_numpy(padded)).log_softmax(-1).transpose(0, 1)
        frames = torch.tensor([LETTER_STEPS * len(units[i]) for i in rows])
        lengths = torch.tensor([len(letters[i]) for i in rows])
        targets = torch.tensor([letter for i in rows for letter in letters[i]])
        loss = F.ctc_loss(log_probs, targets, frames, lengths, zero_infinity=True)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return reader.eval()
