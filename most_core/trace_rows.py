"""What is known about the routing of some tokens: arrays in memory, a delta on the wire, Parquet on disk.

Shapes: T tokens, L MoE layers, K experts per token, W experts kept per token and layer (`keep`, or all if fewer).
An empty slot holds expert `NO_EXPERT` and probability 0.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from most_core.config import MostConfig
from most_core.router import group_mask
from most_core.trace_files import NO_EXPERT, parse_trace, read_trace, trace_bytes, write_trace


@dataclass(eq=False, kw_only=True)
class RoutingRows:
    """What happened to some tokens. All probabilities are raw: the softmax over all experts."""

    token: np.ndarray  # int32 [T], rising
    turn: np.ndarray  # int32 [T]
    role: np.ndarray  # str objects [T]
    modality: np.ndarray  # uint8 [T]
    id: np.ndarray  # int32 [T]
    text: np.ndarray  # str objects [T], "" where unknown
    start_s: np.ndarray  # float32 [T], as the two below nan where unknown
    end_s: np.ndarray
    logprob: np.ndarray
    layers: np.ndarray  # int16 [L], decoder layer numbers
    experts: np.ndarray  # uint8 [T, L, W], the strongest of the token's group, by falling probability
    probs: np.ndarray  # float16 [T, L, W]
    chosen: np.ndarray  # uint8 [T, L, K], what the model used: those in `experts` in that order, then any others
    chosen_probs: np.ndarray  # float16 [T, L, K]
    unmasked_experts: np.ndarray  # uint8 [T, L, W], the strongest of all: its first K would do without the mask
    unmasked_probs: np.ndarray  # float16 [T, L, W]
    removed_mass: np.ndarray  # float32 [T, L], probability of the experts outside the group
    entropy: np.ndarray  # float32 [T, L], nats, of the probabilities renormalised on the group
    shared_norm: np.ndarray | None = None  # float32 [T, L], as the one below None unless replayed
    routed_norm: np.ndarray | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.token)

    def slice(self: Rows, start: int | None, stop: int | None) -> Rows:
        """The tokens at positions start..stop (as in a Python slice); they keep their token numbers."""
        columns = {name: getattr(self, name) for name in PER_TOKEN}
        return replace(self, **{name: v if v is None else v[start:stop] for name, v in columns.items()})

    def to_wire(self, provisional: bool = False) -> dict[str, Any]:
        """The body of a `most.routing.delta` event. Unknown times are None, empty slots are expert 255."""
        k = self.chosen.shape[2]
        return {
            "first_token": int(self.token[0]) if self.num_tokens else 0,
            "provisional": provisional,
            "modality": self.modality.tolist(),
            "role": self.role.tolist(),
            "text": self.text.tolist(),
            "start_ms": milliseconds(self.start_s),
            "end_ms": milliseconds(self.end_s),
            "layers": self.layers.tolist(),
            "k": k,
            "experts": _base64(self.chosen),
            "weights": _base64(self.chosen_probs),
            "unmasked": _base64(self.unmasked_experts[..., :k]),
            "removed": _base64(self.removed_mass),
        }


PER_TOKEN = [field.name for field in fields(RoutingRows) if field.name != "layers"]
Rows = TypeVar("Rows", bound=RoutingRows)


def milliseconds(seconds: np.ndarray) -> list[int | None]:
    """None where the time is unknown."""
    return [round(1000 * s) if math.isfinite(s) else None for s in seconds.tolist()]


def _base64(values: np.ndarray) -> str:
    """Bytes as they are; shares of one times 255."""
    if values.dtype != np.uint8:
        values = np.rint(values.astype(np.float32).clip(0, 1) * 255).astype(np.uint8)
    return base64.b64encode(values.tobytes()).decode("ascii")


def _config_json(rows: RoutingRows) -> str | None:
    return rows.config.to_json_string() if isinstance(rows, RoutingTrace) else None


def concatenate(pieces: Sequence[Rows]) -> Rows:
    """One after the other; a piece whose token numbers do not follow on is renumbered so that they do.

    Norms that only some pieces have are nan in the others; what else is known is the first piece's.
    """
    if not pieces:
        raise ValueError("there are no traces to concatenate: give at least one")
    kinds = {(*p.layers.tolist(), p.experts.shape[2], p.chosen.shape[2], _config_json(p)) for p in pieces}
    if len(kinds) > 1:
        raise ValueError(f"traces of {len(kinds)} kinds do not concatenate: use one model and one keep")
    columns = {name: [getattr(piece, name) for piece in pieces] for name in PER_TOKEN}
    end = 0
    for i, token in enumerate(columns["token"]):
        if len(token):
            columns["token"][i] = token + max(end - int(token[0]), 0)
            end = int(columns["token"][i][-1]) + 1
    for name in ("shared_norm", "routed_norm"):
        if all(norm is None for norm in columns[name]):
            del columns[name]
            continue
        for i, norm in enumerate(columns[name]):
            columns[name][i] = np.full_like(pieces[i].entropy, np.nan) if norm is None else norm
    return replace(pieces[0], **{name: np.concatenate(parts) for name, parts in columns.items()})


@dataclass(eq=False, kw_only=True)
class RoutingTrace(RoutingRows):
    """Rows and where they come from: what lies beside a reply, what metrics and the inspector read."""

    config: MostConfig
    model_hash: str = ""
    dtype: str = ""
    seed: int | None = None

    @property
    def decisions(self) -> int:
        """How many choices were made: tokens x MoE layers x experts per token."""
        return self.chosen.size

    @property
    def outside(self) -> np.ndarray:
        """[T, L, K] bool: which chosen experts are outside the token's group. An empty slot is not."""
        groups_2LE = group_masks(self.config).numpy()
        allowed = np.pad(groups_2LE, ((0, 0), (0, 0), (0, NO_EXPERT + 1 - groups_2LE.shape[2])))
        allowed[..., NO_EXPERT] = True
        return ~allowed[self.modality[:, None, None], np.arange(len(self.layers))[:, None], self.chosen]

    @property
    def leakage(self) -> float:
        """Share of tokens with a chosen expert outside their group: counted from `chosen`, not assumed."""
        return float(self.outside.any((1, 2)).mean()) if self.num_tokens else 0.0

    @property
    def _metadata(self) -> dict[str, str]:
        seed = "" if self.seed is None else str(self.seed)
        config = self.config.to_json_string()
        return {"model_hash": self.model_hash, "config": config, "dtype": self.dtype, "seed": seed}

    def save(self, prefix: str | Path) -> None:
        """Write `<prefix>.{tokens,routing,layers}.parquet`."""
        write_trace(prefix, vars(self), self._metadata)

    @classmethod
    def load(cls, prefix: str | Path) -> RoutingTrace:
        """The inverse of `save`, exact."""
        return cls._read(*read_trace(prefix))

    def to_bytes(self) -> dict[str, bytes]:
        """The files that `save` writes, as {"tokens": ..., "routing": ..., "layers": ...}."""
        return trace_bytes(vars(self), self._metadata)

    @classmethod
    def from_bytes(cls, files: Mapping[str, bytes], name: str = "given") -> RoutingTrace:
        """The inverse of `to_bytes`; `name` is what errors call the trace."""
        return cls._read(*parse_trace(files, name))

    @classmethod
    def _read(cls, arrays: dict[str, np.ndarray | None], config: MostConfig, meta: dict[str, str]) -> RoutingTrace:
        seed = int(meta["seed"]) if meta["seed"] else None
        return cls(**arrays, config=config, model_hash=meta["model_hash"], dtype=meta["dtype"], seed=seed)


def group_masks(config: MostConfig) -> torch.Tensor:
    """[2, L, E] bool: which experts tokens of each modality may meet in each MoE layer."""
    cpu = torch.device("cpu")
    return torch.stack([group_mask(g, config.n_routed_experts, cpu) for g in config.expert_groups()], 1)
