"""How evenly a training model uses its experts, layer by layer, and whether any token meets an expert it must not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from most_core.config import AUDIO, TEXT
from most_core.router import MostRouter


class RoutingWatch:
    """Counts the choices of every router of a model while it is asked to."""

    def __init__(self, model: nn.Module) -> None:
        self.groups: dict[int, tuple[list[int], list[int]]] = {}
        self.counts: dict[int, torch.Tensor] = {}
        self._on = False
        for name, module in model.named_modules():
            if isinstance(module, MostRouter):
                layer = int(re.search(r"layers\.(\d+)\.", name)[1])
                self.groups[layer] = module.groups
                module.register_forward_hook(partial(self._count, layer))

    @contextmanager
    def watching(self, on: bool) -> Iterator[None]:
        """Count what is chosen inside, if `on`, from nothing."""
        self._on = on
        if on:
            self.counts.clear()
        try:
            yield
        finally:
            self._on = False

    def _count(self, layer: int, router: MostRouter, given: tuple[Any, ...], made: tuple[torch.Tensor, ...]) -> None:
        if not self._on:
            return
        experts = router.num_experts
        places = given[1].reshape(-1, 1) * experts + made[2]  # modality first
        counts = torch.bincount(places.reshape(-1), minlength=2 * experts).view(2, experts)
        self.counts[layer] = self.counts.get(layer, 0) + counts.cpu()

    def figures(self) -> dict[str, float]:
        """For each MoE layer, by its number in the decoder: `balance`, the busiest expert's load over its group's
        mean, the worse of both groups; `leakage`, the share of choices outside the token's own group."""
        figures = {}
        for layer, counts in sorted(self.counts.items()):
            groups, worst, outside = self.groups[layer], 0.0, 0
            for modality in (TEXT, AUDIO):
                own = counts[modality, groups[modality]]
                outside += int(counts[modality].sum() - own.sum())
                if own.sum():
                    worst = max(worst, float(own.max() / own.float().mean()))
            figures[f"balance/layer_{layer}"] = worst
            figures[f"leakage/layer_{layer}"] = outside / max(1, int(counts.sum()))
        return figures
