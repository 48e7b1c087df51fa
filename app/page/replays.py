"""What would have been: a recorded reply without some experts, and which experts it needed. Routes under /page."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from app.audio import WIRE_RATE, from_pcm16, resampled, to_pcm16
from app.engine import Make, Pause
from app.page.exact_trace import Tables, decoded, in_base64, in_base64_each, read_tables
from app.rest.api import Answer, Asked, Refusal, Service, Whole, checked, shown, to_json, waveform
from most_core import Done, GenerationSettings, Most, Reply, RoutingTrace
from most_core.config import AUDIO, TEXT
from most_core.replay import Replay, features_of, importance, prompt_of, scored
from most_core.speech import SAMPLE_RATE

MOST_PAIRS, MOST_RANKED = 10_000, 20  # experts that are off at a time; experts that are told of
TRIED = 3  # times as many are left out one by one: estimates are rough where a reply is sure of its words
Pair = Annotated[list[Annotated[int, Field(ge=0, le=10_000)]], Field(min_length=2, max_length=2)]
Mode = Literal["next", "zero"]


class _Turn(Asked):
    """A recorded turn: its trace's tables and the sound that was heard (base64 of PCM16 at 16 kHz)."""

    tables: Tables
    sound: str | None = None
    mode: Mode = "next"


class _KnockOut(_Turn):
    knock_out: Annotated[list[Pair], Field(max_length=MOST_PAIRS)]
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    speak: bool = True


class _Importance(_Turn):
    count: Annotated[int, Field(ge=1, le=MOST_RANKED)] = 5


async def knock_out(service: Service, given: dict[str, Any]) -> Answer:
    """The reply that comes of the same prompt without these experts, and what the recorded reply loses by it."""
    asked = await asyncio.to_thread(checked, _KnockOut, given)
    trace, wave = await asyncio.to_thread(_read, service, asked)
    most, off = service.most, [(layer, expert) for layer, expert in asked.knock_out]
    settings = dataclasses.replace(
        most.usual_settings,
        temperature=asked.temperature,
        seed=asked.seed,
        speak=asked.speak,
        knock_out_mode=asked.mode,
    )
    plain, without, reply = await _made(service, lambda cancel: _knocked_out(most, trace, wave, off, settings, cancel))
    service.metrics.spoken_s.inc(len(reply.waveform) / reply.sample_rate)
    return Whole(await asyncio.to_thread(_told, trace, plain, without, reply))


async def rank_experts(service: Service, given: dict[str, Any]) -> Answer:
    """The experts that the recorded reply needed most."""
    asked = await asyncio.to_thread(checked, _Importance, given)
    trace, wave = await asyncio.to_thread(_read, service, asked)
    most = service.most
    found = await _made(service, lambda cancel: _important(most, trace, wave, TRIED * asked.count, asked.mode, cancel))
    found = sorted(found, key=lambda effect: -abs(effect.exact))[: asked.count]
    return Whole(to_json({"experts": [dataclasses.asdict(effect) for effect in found]}))


def _read(service: Service, asked: _Turn) -> tuple[RoutingTrace, np.ndarray | None]:
    trace, most = read_tables(asked.tables), service.most
    if trace.model_hash != most.model_hash:
        told = f"this turn is of model {shown(trace.model_hash)}, loaded is {most.model_hash!r}"
        raise Refusal(400, f"{told}: ask the loaded model the same, or load the other")
    if asked.sound is None:
        return trace, None
    if most.encoder is None:
        raise Refusal(400, "sound is given, but this model has no ears: send a typed turn", param="sound")
    pcm = decoded(asked.sound, "sound")
    wave = waveform(service, from_pcm16(pcm), SAMPLE_RATE, "sound")
    service.metrics.heard_s.inc(len(wave) / SAMPLE_RATE)
    return trace, wave


async def _made(service: Service, make: Make) -> Any:
    """What a job in the engine makes in the end."""
    async with contextlib.aclosing(service.engine.stream(make)) as events:
        made = [event.value async for event in events if isinstance(event, _Made)]
    if not made:  # the engine ends its jobs when it is closed
        raise RuntimeError("the server is closing")
    return made[0]


@dataclasses.dataclass(frozen=True)
class _Made:
    value: Any


# On the engine's thread, one pass through the model at a time


def _knocked_out(
    most: Most,
    trace: RoutingTrace,
    wave: np.ndarray | None,
    off: list[tuple[int, int]],
    settings: GenerationSettings,
    cancel: threading.Event,
) -> Iterator[Any]:
    features = _features(most, wave)
    yield Pause()
    if cancel.is_set():
        return
    plain = scored(most, trace, features)
    yield Pause()
    if cancel.is_set():
        return
    without = scored(most, trace, features, knock_out=off, mode=settings.knock_out_mode, like=plain)
    yield Pause()
    prompt = prompt_of(most, trace, features)
    for event in most.stream_prompt(prompt, settings=settings, cancel=cancel, record_routing=True, knock_out=off):
        yield _Made((plain, without, event.reply)) if isinstance(event, Done) else event


def _important(
    most: Most, trace: RoutingTrace, wave: np.ndarray | None, count: int, mode: str, cancel: threading.Event
) -> Iterator[Pause | _Made]:
    features, found = _features(most, wave), []
    yield Pause()
    if cancel.is_set():
        return
    for effect in importance(most, trace, features, count=count, mode=mode):
        if effect.exact is None:
            break
        found.append(effect)
        yield Pause()
        if cancel.is_set():
            return
    yield _Made(found)


def _features(most: Most, wave: np.ndarray | None) -> torch.Tensor | None:
    return None if wave is None else features_of(most, wave)


# What is told


def _told(trace: RoutingTrace, plain: Replay, without: Replay, reply: Reply) -> bytes:
    lost = plain.logprob - without.logprob
    modality = trace.modality[plain.place]

    def mean(kind: int) -> float | None:
        return float(lost[modality == kind].mean()) if (modality == kind).any() else None

    tokens = [
        {
            "token": int(trace.token[at]),
            "text": trace.text[at],
            "modality": int(trace.modality[at]),
            "logprob": float(before),
            "without": float(after),
        }
        for at, before, after in zip(plain.place.tolist(), plain.logprob, without.logprob)
    ]
    return to_json(
        {
            "text": reply.text,
            "heard": reply.heard,
            "finish_reason": reply.finish_reason,
            "sound": in_base64(to_pcm16(resampled(reply.waveform, reply.sample_rate, WIRE_RATE))),
            "tables": in_base64_each(reply.trace.to_bytes()),
            "tokens": tokens,
            "lost": {"text": mean(TEXT), "audio": mean(AUDIO), "total": float(lost.sum())},
        }
    )
