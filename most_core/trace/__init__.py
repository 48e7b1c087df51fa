"""Recording which experts met which token: next to nothing while decoding, the rest for many tokens at once.

Shapes: T tokens, N tokens of one forward, L MoE layers, E routed experts, K experts per token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from most_core.config import AUDIO, TEXT, MostConfig
from most_core.router import choose_experts
from most_core.trace_files import NO_EXPERT
from most_core.trace_rows import RoutingRows, RoutingTrace, concatenate, group_masks

__all__ = ["NO_EXPERT", "RoutingRecorder", "RoutingRows", "RoutingTrace", "concatenate"]


def _derive_chosen(probs_TLE: torch.Tensor, usable_TLE: torch.Tensor, config: MostConfig) -> torch.Tensor:
    """[T, L, K]: what the router takes from these probabilities, -1 where it finds no usable expert."""
    _, indices = choose_experts(probs_TLE.flatten(0, 1), usable_TLE.flatten(0, 1), config)
    indices = indices.view(*probs_TLE.shape[:2], config.num_experts_per_tok)
    return indices.masked_fill(~usable_TLE.gather(-1, indices), -1)


def _summarise(
    probs_TLE: torch.Tensor, group_TLE: torch.Tensor, chosen_TLK: torch.Tensor, keep: int
) -> dict[str, np.ndarray]:
    """The [T, L, ...] arrays of RoutingRows."""
    probs, experts = probs_TLE.masked_fill(~group_TLE, -1.0).topk(keep)
    experts = experts.masked_fill(probs < 0, NO_EXPERT)
    unmasked_probs, unmasked = probs_TLE.topk(keep)
    inside = probs_TLE * group_TLE
    q = inside / inside.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)

    empty = chosen_TLK < 0
    chosen_probs = probs_TLE.gather(-1, chosen_TLK.clamp_min(0)).masked_fill(empty, 0.0)
    is_ranked = chosen_TLK[..., None] == experts[..., None, :]
    # Sort by rank; the unranked follow by falling probability, the empty slots come last.
    place = torch.where(is_ranked.any(-1), is_ranked.int().argmax(-1), keep + 1 - chosen_probs)
    order = place.masked_fill(empty, math.inf).argsort(-1)
    chosen = chosen_TLK.masked_fill(empty, NO_EXPERT).gather(-1, order)
    return {
        "experts": experts.byte().numpy(),
        "probs": probs.clamp_min(0).half().numpy(),
        "chosen": chosen.byte().numpy(),
        "chosen_probs": chosen_probs.gather(-1, order).half().numpy(),
        "unmasked_experts": unmasked.byte().numpy(),
        "unmasked_probs": unmasked_probs.half().numpy(),
        "removed_mass": (probs_TLE * ~group_TLE).sum(-1).numpy(),
        "entropy": torch.special.entr(q).sum(-1).numpy(),
    }


class _HostCopies:
    """Copies of a buffer that the next forward overwrites.

    From a GPU they pass through two pinned buffers, each read one call later, so that no call waits for the GPU.
    """

    def __init__(self) -> None:
        self._copies: list[torch.Tensor] = []
        self._spare: list[torch.Tensor] = []
        self._flying: tuple[torch.Tensor, torch.Tensor, torch.cuda.Event] | None = None

    def add(self, tensor: torch.Tensor) -> None:
        if not tensor.is_cuda:
            self._copies.append(tensor.clone() if tensor.device.type == "cpu" else tensor.cpu())
            return
        pinned = self._spare.pop() if self._spare else None
        if pinned is None or pinned.numel() < tensor.numel():
            with torch.inference_mode(False):  # an inference tensor could not be written outside that mode
                pinned = torch.empty(tensor.numel(), dtype=tensor.dtype, pin_memory=True)
        host = pinned[: tensor.numel()].view(tensor.shape).copy_(tensor, non_blocking=True)
        arrived = torch.cuda.current_stream(tensor.device).record_event()
        self._land()
        self._flying = (pinned, host, arrived)

    def _land(self) -> None:
        if self._flying is not None:
            pinned, host, arrived = self._flying
            arrived.synchronize()
            self._copies.append(host.clone())
            self._spare.append(pinned)
            self._flying = None

    def take(self) -> list[torch.Tensor]:
        self._land()
        copies, self._copies = self._copies, []
        return copies


class RoutingRecorder:
    """Collects the gates' probabilities of one reply.

    `knock_out` names experts that are off, as (decoder layer, expert): they are never `chosen`. If the model still
    picks them, with weight zero, their slot is empty; otherwise the next best of the group stands in.
    """

    def __init__(self, config: MostConfig, *, keep: int = 8, knock_out: Sequence[tuple[int, int]] = ()) -> None:
        layers, E, K = config.moe_layers, config.n_routed_experts, config.num_experts_per_tok
        if not layers:
            raise ValueError("the model has no mixture-of-experts layers: there is no routing to record")
        if E > NO_EXPERT:
            raise ValueError(f"{E} experts do not fit one byte: record models of at most {NO_EXPERT} experts")
        if keep < K:
            raise ValueError(f"keep {keep} is less than the {K} experts per token: keep at least {K}")
        self._config, self._layers, self._keep = config, layers, min(keep, E)
        self._groups_2LE = group_masks(config)
        self._on_LE = torch.ones(len(layers), E, dtype=torch.bool)
        for layer, expert in knock_out:
            if layer not in layers or not 0 <= expert < E:
                raise ValueError(f"there is no expert {expert} in layer {layer}: layers {layers}, experts 0..{E - 1}")
            self._on_LE[layers.index(layer), expert] = False
        self._probs, self._indices = _HostCopies(), _HostCopies()
        self._steps: list[tuple[list[int], list[int], str, int, bool]] = []
        self._count = self._settled = 0
        self._frames: dict[tuple[str, int], int] = {}
        self._notes: dict[int, dict[str, Any]] = {}
        self._blocks: list[RoutingRows] = []
        self._drained = 0  # blocks

    def record(
        self,
        probs_LNE: torch.Tensor,
        ids: Sequence[int],
        modality: Sequence[int],
        role: str,
        turn: int,
        *,
        indices_LNK: torch.Tensor | None = None,
    ) -> int:
        """Copy one forward's probabilities (softmax over all experts, before the mask); its first token's number.

        `indices_LNK` are the experts that the model truly used, -1 for none. Without them `chosen` is what the router
        takes from these probabilities, so that `leakage` then checks nothing but the arithmetic.
        """
        count = len(ids)
        if len(probs_LNE) != len(self._layers) or probs_LNE.shape[1] != count or len(modality) != count:
            raise ValueError(
                f"{count} ids and {len(modality)} modalities do not fit probabilities {tuple(probs_LNE.shape)}: "
                f"give {len(self._layers)} layers and one of each per token"
            )
        unknown = set(modality) - {TEXT, AUDIO}
        if unknown:
            raise ValueError(f"modality id {unknown.pop()} is unknown: use 0 (text) or 1 (audio)")
        self._probs.add(probs_LNE)
        if indices_LNK is not None:
            self._indices.add(indices_LNK)
        self._steps.append((list(ids), list(modality), role, turn, indices_LNK is not None))
        first = self._count
        self._count += count
        return first

    def record_token(
        self, probs_L1E: torch.Tensor, token: int, audio: bool, turn: int, chosen_L1K: torch.Tensor
    ) -> int:
        """`record` of one generated token, without checks: it runs between any two tokens of a reply."""
        self._probs.add(probs_L1E)
        self._indices.add(chosen_L1K)
        self._steps.append(((token,), (AUDIO if audio else TEXT,), "assistant", turn, True))
        self._count += 1
        return self._count - 1

    def annotate(self, token: int, **known: Any) -> None:
        """Set `text`, `start_s`, `end_s` or `logprob` of a token, before the `drain` that is to show it."""
        if not 0 <= token < self._count:
            raise ValueError(f"token {token} is not among the {self._count} recorded: annotate it after record")
        unknown = known.keys() - {"text", "start_s", "end_s", "logprob"}
        if unknown:
            raise ValueError(f"a token has no {unknown.pop()!r}: annotate text, start_s, end_s or logprob")
        self._notes.setdefault(token, {}).update(known)

    def drain(self) -> RoutingRows:
        """The tokens recorded since the last drain."""
        self._settle()
        blocks, self._drained = self._blocks[self._drained :], len(self._blocks)
        return self._annotated(concatenate(blocks) if blocks else self._no_rows())

    def finish(self, *, model_hash: str = "", dtype: str = "", seed: int | None = None) -> RoutingTrace:
        """All tokens recorded so far, drained or not."""
        self._settle()
        rows = vars(self._annotated(concatenate(self._blocks) if self._blocks else self._no_rows()))
        return RoutingTrace(**rows, config=self._config, model_hash=model_hash, dtype=dtype, seed=seed)

    def _settle(self) -> None:
        if self._steps:
            steps, self._steps = self._steps, []
            self._blocks.append(self._rows(steps, self._probs.take(), self._indices.take()))
            self._settled = self._count

    def _no_rows(self) -> RoutingRows:
        return self._rows([], [torch.empty(len(self._layers), 0, self._config.n_routed_experts)], [])

    def _rows(self, steps: list[tuple], probs_LNE: list[torch.Tensor], indices_LNK: list[torch.Tensor]) -> RoutingRows:
        counts = [len(step[0]) for step in steps]
        role = np.repeat(np.array([step[2] for step in steps], object), counts)
        turn = np.repeat(np.array([step[3] for step in steps], np.int32), counts)
        given = np.repeat(np.array([step[4] for step in steps], bool), counts)
        modality = np.array([m for step in steps for m in step[1]], np.int64)

        probs_TLE = torch.cat(probs_LNE, 1).transpose(0, 1).detach().float()
        group_TLE = self._groups_2LE[modality]
        told_TLK = torch.cat(indices_LNK, 1).transpose(0, 1).long() if indices_LNK else None
        if told_TLK is not None and given.all():  # as while a reply is made: ten times a second
            chosen_TLK = told_TLK
        else:
            chosen_TLK = _derive_chosen(probs_TLE, group_TLE & self._on_LE, self._config)
            if told_TLK is not None:
                chosen_TLK[given] = told_TLK
        if told_TLK is not None:
            if chosen_TLK.max() >= probs_TLE.shape[2]:
                raise ValueError(f"there is no expert {int(chosen_TLK.max())}: give indices below {probs_TLE.shape[2]}")
            on_TLK = self._on_LE.expand_as(group_TLE).gather(-1, chosen_TLK.clamp_min(0))
            chosen_TLK = chosen_TLK.masked_fill(~on_TLK, -1)

        start_s = np.full(len(turn), np.nan, np.float32)
        end_s = start_s.copy()
        for key in {step[2:4] for step in steps}:
            heard = np.flatnonzero((role == key[0]) & (turn == key[1]) & (modality == AUDIO))
            frame = self._frames.get(key, 0) + np.arange(len(heard))
            self._frames[key] = self._frames.get(key, 0) + len(heard)
            start_s[heard] = frame / self._config.audio_rate_hz
            end_s[heard] = (frame + 1) / self._config.audio_rate_hz
        return RoutingRows(
            token=np.arange(self._settled, self._settled + len(turn), dtype=np.int32),
            turn=turn,
            role=role,
            modality=modality.astype(np.uint8),
            id=np.array([i for step in steps for i in step[0]], np.int32),
            text=np.full(len(turn), "", object),
            start_s=start_s,
            end_s=end_s,
            logprob=np.full(len(turn), np.nan, np.float32),
            layers=np.array(self._layers, np.int16),
            **_summarise(probs_TLE, group_TLE, chosen_TLK, self._keep),
        )

    def _annotated(self, rows: RoutingRows) -> RoutingRows:
        for position, token in enumerate(rows.token.tolist()):
            for name, value in self._notes.get(token, {}).items():
                getattr(rows, name)[position] = value
        return rows
