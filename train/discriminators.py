"""Networks that tell a recording from a vocoder's sound, and what both sides learn from that (least squares).

As in HiFi-GAN, but small: every second, third, fifth... sample side by side shows pitch, averages of samples show form.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

SLOPE = 0.1


@dataclass(frozen=True)
class Shape:
    """Periods (in samples) and, for each, channels layer by layer; the same for how often samples are halved."""

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    period_channels: tuple[int, ...] = (16, 32, 64, 128)
    halvings: tuple[int, ...] = (0, 1, 2)
    scale_channels: tuple[int, ...] = (16, 32, 64, 128)


class Judgement(NamedTuple):
    """Losses: of the discriminators, of the generator, and how far features of made and real sound are apart."""

    discriminators: torch.Tensor
    generator: torch.Tensor
    features: torch.Tensor


class PeriodDiscriminator(nn.Module):
    """Looks at every `period`-th sample."""

    def __init__(self, period: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.period = period
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv1d(inputs, outputs, 5, 3, padding=2)) for inputs, outputs in pairwise((1, *channels))
        )
        self.last = weight_norm(nn.Conv1d(channels[-1], 1, 3, padding=1))

    def forward(self, waves: torch.Tensor) -> list[torch.Tensor]:
        """Features of each layer for waves [B, N]; the last are the scores, 1 for real. B comes first in all."""
        batch = len(waves)
        waves = F.pad(waves, (0, -waves.shape[1] % self.period))
        columns = waves.unflatten(1, (-1, self.period)).mT.flatten(0, 1)[:, None]
        return [found.unflatten(0, (batch, -1)) for found in _through(self.layers, self.last, columns)]


class ScaleDiscriminator(nn.Module):
    """Looks at the sound as a whole, its samples halved in number `halvings` times."""

    def __init__(self, halvings: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.step = 2**halvings
        first, *rest = pairwise((1, *channels))
        self.layers = nn.ModuleList(
            [
                weight_norm(nn.Conv1d(*first, 15, padding=7)),
                *(
                    weight_norm(nn.Conv1d(inputs, outputs, 21, 4, padding=10, groups=max(1, inputs // 8)))
                    for inputs, outputs in rest
                ),
            ]
        )
        self.last = weight_norm(nn.Conv1d(channels[-1], 1, 3, padding=1))

    def forward(self, waves: torch.Tensor) -> list[torch.Tensor]:
        """As of `PeriodDiscriminator`."""
        return _through(self.layers, self.last, F.avg_pool1d(waves[:, None], self.step))


def _through(layers: nn.ModuleList, last: nn.Module, signal: torch.Tensor) -> list[torch.Tensor]:
    found = []
    for layer in layers:
        signal = F.leaky_relu(layer(signal), SLOPE)
        found.append(signal)
    return [*found, last(signal)]


class Discriminators(nn.Module):
    """All of them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            [
                *(PeriodDiscriminator(period, shape.period_channels) for period in shape.periods),
                *(ScaleDiscriminator(halvings, shape.scale_channels) for halvings in shape.halvings),
            ]
        )

    def forward(self, made: torch.Tensor, real: torch.Tensor) -> Judgement:
        """Judge sounds [B, N] in one pass. Means over the members, so that their number changes no weight."""
        zero = torch.zeros((), device=made.device)
        judges, generator, features = zero, zero, zero
        for member in self.members:
            *layers, scores = (found.chunk(2) for found in member(torch.cat([made, real])))
            judges = judges + (scores[0].square().mean() + (1 - scores[1]).square().mean())
            generator = generator + (1 - scores[0]).square().mean()
            apart = [(ours - theirs.detach()).abs().mean() for ours, theirs in layers]
            features = features + torch.stack(apart).mean()
        return Judgement(*(loss / len(self.members) for loss in (judges, generator, features)))
