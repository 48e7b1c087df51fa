"""A routing trace as the page takes it whole: JSON with the arrays in base64, and its three tables on the way in."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np

from app.page.session_file import TABLES, read_trace
from app.rest.api import Asked, finite
from most_core import MostConfig
from most_core.trace_files import NO_EXPERT
from most_core.trace_rows import RoutingTrace, milliseconds

LARGEST_MB = 40  # of a request with tables and sound


class Tables(Asked):
    """A trace's Parquet files in base64, as a request has them."""

    tokens: str
    routing: str
    layers: str


def read_tables(tables: Tables) -> RoutingTrace:
    """ValueError with one line if they are not all of a trace. It may take a while: call it in a thread."""
    return read_trace({name: decoded(getattr(tables, name), f"tables.{name}") for name in TABLES}, "turn", "the turn")


def decoded(text: str, name: str) -> bytes:
    """Base64 of a request, strictly; `name` is what errors call it."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name} is no base64 ({error}): encode it again") from None


def experts(config: MostConfig) -> dict[str, Any]:
    """Which experts there are, layer by layer; {} of a model that has none."""
    if not config.moe_layers:
        return {}
    return {
        "layers": config.moe_layers,
        "routed": config.n_routed_experts,
        "shared": config.n_shared_experts,
        "per_token": config.num_experts_per_tok,
        "apart": config.use_modality_aware_routing,
        "groups": [{"text": sorted(set(text)), "audio": sorted(set(audio))} for text, audio in config.expert_groups()],
    }


def exact(trace: RoutingTrace) -> dict[str, Any]:
    """All that is known of it. T tokens, L layers, K experts a token, W ranked ones: arrays are uint8 (255: none) and
    little-endian float32."""
    return {
        "experts": experts(trace.config),
        "model_hash": trace.model_hash,
        "k": trace.chosen.shape[2],
        "wide": trace.experts.shape[2],
        "tokens": {
            "token": trace.token.tolist(),
            "turn": trace.turn.tolist(),
            "role": trace.role.tolist(),
            "modality": trace.modality.tolist(),
            "id": trace.id.tolist(),
            "text": trace.text.tolist(),
            "start_ms": milliseconds(trace.start_s),
            "end_ms": milliseconds(trace.end_s),
            "logprob": [finite(value) for value in trace.logprob.tolist()],
        },
        "chosen": in_base64(trace.chosen),
        "chosen_probs": _floats(trace.chosen_probs),
        "ranked": in_base64(trace.experts),
        "ranked_probs": _floats(trace.probs),
        "unmasked": in_base64(trace.unmasked_experts),
        "unmasked_probs": _floats(trace.unmasked_probs),
        "removed": _floats(trace.removed_mass),
        "entropy": _floats(trace.entropy),
        "leakage": {"outside": int(trace.outside.sum()), "decisions": int((trace.chosen != NO_EXPERT).sum())},
        **_report(trace),
    }


def in_base64_each(files: dict[str, bytes]) -> dict[str, str]:
    """As `Tables`."""
    return {name: in_base64(data) for name, data in files.items()}


def in_base64(values: np.ndarray | bytes) -> str:
    return base64.b64encode(values if isinstance(values, bytes) else values.tobytes()).decode("ascii")


def _floats(values: np.ndarray) -> str:
    return in_base64(values.astype("<f4"))


def _report(trace: RoutingTrace) -> dict[str, Any]:
    """REPORT: the one place where the metrics of `most_core.metrics.report(trace)` are put in, once they exist."""
    return {}
