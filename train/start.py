"""What a training of the language model starts from: a preset's shape with random weights, or a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from most_core.checkpoint_files import no_needless_bars
from most_core.config import MostConfig
from most_core.model import MostForCausalLM


def shape_of(start: str, changes: Mapping[str, Any]) -> MostConfig:
    """The shape of a checkpoint folder, or of a preset ("tiny", "nano", "lite") with some settings changed."""
    if Path(start).is_dir():
        if changes:
            raise ValueError(
                f"shape is {dict(changes)}, but {start} is a checkpoint, whose shape is its own: leave it out"
            )
        return MostConfig.from_pretrained(start)
    try:
        shape = MostConfig.preset(start, **changes)
    except (TypeError, ValueError) as error:
        raise ValueError(f"start is {start!r}, shape {dict(changes)}: {error}; or give a checkpoint folder") from None
    if shape.tokens is None:
        raise ValueError("shape.token_table is null: without it nothing can be heard or said, leave it out")
    return shape


def starting_model(start: str, changes: Mapping[str, Any], seed: int) -> MostForCausalLM:
    """The model with the weights that a run begins with, in float32."""
    if Path(start).is_dir():
        with no_needless_bars(Path(start)):
            return MostForCausalLM.from_pretrained(start, dtype=torch.float32)
    torch.manual_seed(seed)
    return MostForCausalLM(shape_of(start, changes)).float()
