"""POST /v1/chat/completions: text and speech in, text and speech out, whole or as it is made.

Beside OpenAI's fields, an answer holds `most`: what was heard, how sure the model is, and what took how long.
`max_tokens` counts everything that the model writes: what it heard, the answer, and 25 units a second of speech.
Nothing is kept here, so an audio `id` cannot be referred to later, and `expires_at` is the moment of the answer.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import dataclasses
import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from app.audio import WIRE_RATE, Resampler, encode, from_pcm16, resampled, to_pcm16
from app.rest.api import (
    Answer,
    Asked,
    Pieces,
    Refusal,
    Service,
    Whole,
    checked,
    event,
    finite,
    listed,
    read_recording,
    refuse_unsupported,
    shown,
    to_json,
    waveform,
)
from app.rest.speaking import Voice
from most_core import Done, Event, GenerationSettings, Message, Most, Reply, SpeechDelta, TextDelta
from most_core.speech import SAMPLE_RATE

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
SOUNDS = ("wav", "mp3", "flac", "ogg", "opus", "m4a", "webm", "aac", "pcm16")
# Fields that ask for what the model cannot do, with the values that ask for nothing.
UNSUPPORTED = {
    "n": (1,),
    "stop": ("", []),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "response_format": ({"type": "text"},),
    "prediction": (),
    "reasoning_effort": ("none",),
    "web_search_options": (),
}
# Fields that change no answer: who asks, and what OpenAI does with it.
IGNORED = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "verbosity",
)


class AudioOut(Asked):
    voice: Voice
    format: Literal["wav", "flac", "mp3", "opus", "aac", "pcm16"]


class StreamOptions(Asked):
    include_usage: bool | None = False
    include_obfuscation: bool | None = False  # which never happens here


class Chat(Asked):
    """What the route takes; null is as if not given."""

    model: str
    messages: list[Any] = Field(min_length=1)
    modalities: list[Literal["text", "audio"]] | None = None
    audio: AudioOut | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None


async def complete(service: Service, given: dict[str, Any]) -> Answer:
    wanted = refuse_unsupported(given, UNSUPPORTED)
    asked = checked(Chat, {name: value for name, value in wanted.items() if name not in IGNORED})
    service.check_model(asked.model)
    _check_audio(service.most, asked)
    messages = await asyncio.to_thread(read_messages, service, asked.messages)
    completion = Completion(service, asked, messages)
    return Pieces(completion.chunks()) if asked.stream else Whole(await completion.whole())


def _check_audio(most: Most, asked: Chat) -> None:
    if not _speaks(asked):
        return
    if asked.audio is None:
        raise Refusal(400, "audio is missing: modalities ask for it, so give its voice and format", param="audio")
    if most.vocoder is None:
        raise Refusal(400, "modalities ask for audio, but this model has no voice: ask for text", param="modalities")
    if asked.stream and asked.audio.format != "pcm16":
        raise Refusal(
            400,
            f"audio.format is {asked.audio.format!r}: sound can only be streamed as 'pcm16'",
            param="audio.format",
            code="invalid_value",
        )


def _speaks(asked: Chat) -> bool:
    return "audio" in (asked.modalities or ())


class Completion:
    """One answer to a conversation."""

    def __init__(self, service: Service, asked: Chat, messages: list[Message]) -> None:
        self.service, self.asked, self.messages = service, asked, messages
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self.audio_id = f"audio_{uuid.uuid4().hex}"

    def events(self) -> AsyncIterator[Event]:
        most = self.service.most
        settings = generation_settings(most, self.asked)
        return self.service.engine.stream(lambda cancel: most.stream(self.messages, settings=settings, cancel=cancel))

    async def whole(self) -> bytes:
        async with contextlib.aclosing(self.events()) as events:
            done = [made.reply async for made in events if isinstance(made, Done)]
        reply = _finished(done)
        message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None, "annotations": []}
        if _speaks(self.asked):
            sound = await asyncio.to_thread(_encoded, reply, self.asked.audio.format)
            message |= {"content": None, "audio": self._audio(data=sound, transcript=reply.text, expires=True)}
        choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason, "logprobs": None}
        self._count(reply)
        usage = await asyncio.to_thread(usage_of, self.service.most, self.messages, reply)
        return to_json(self._object("chat.completion", [choice], usage=usage, most=told(reply)))

    async def chunks(self) -> AsyncIterator[bytes]:
        """Server-sent events: the role, then text and sound as they come, then how it ended."""
        first: dict[str, Any] = {"role": "assistant", "content": ""}
        speaks, resampler, done = _speaks(self.asked), None, []
        if speaks:
            first = {"role": "assistant", "audio": self._audio(transcript="")}
        async with contextlib.aclosing(self.events()) as events:
            async for made in events:
                if first:
                    yield self._chunk(first)
                    first = {}
                if isinstance(made, TextDelta):
                    said = {"audio": self._audio(transcript=made.text)} if speaks else {"content": made.text}
                    yield self._chunk(said)
                elif isinstance(made, SpeechDelta):
                    resampler = resampler or Resampler(made.sample_rate, WIRE_RATE)
                    yield self._sound(resampler.push(made.pcm))
                elif isinstance(made, Done):
                    done.append(made.reply)
        reply = _finished(done)
        if resampler is not None:
            yield self._sound(resampler.finish())
        if speaks:
            yield self._chunk({"audio": self._audio(expires=True)})
        self._count(reply)
        yield self._chunk({}, reply.finish_reason, most=told(reply))
        if self.asked.stream_options and self.asked.stream_options.include_usage:
            usage = await asyncio.to_thread(usage_of, self.service.most, self.messages, reply)
            yield event(self._object("chat.completion.chunk", [], usage=usage))
        yield b"data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return event(self._object("chat.completion.chunk", [choice], **more))

    def _sound(self, samples: np.ndarray) -> bytes:
        return self._chunk({"audio": self._audio(data=to_pcm16(samples))})

    def _audio(self, data: bytes | None = None, expires: bool = False, **more: Any) -> dict[str, Any]:
        if data is not None:
            more["data"] = base64.b64encode(data).decode()
        if expires:
            more["expires_at"] = int(time.time())
        return {"id": self.audio_id, **more}

    def _object(self, kind: str, choices: list[Any], **more: Any) -> dict[str, Any]:
        name = self.service.name
        return {"id": self.id, "object": kind, "created": self.created, "model": name, "choices": choices, **more}

    def _count(self, reply: Reply) -> None:
        self.service.metrics.spoken_s.inc(len(reply.waveform) / reply.sample_rate)


def _finished(done: list[Reply]) -> Reply:
    if not done:  # the engine ends its jobs when it is closed
        raise RuntimeError("the server is closing")
    return done[0]


def generation_settings(most: Most, asked: Chat) -> GenerationSettings:
    """The model's usual ones, but for what was asked."""
    said = {
        "max_new_tokens": asked.max_completion_tokens or asked.max_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "seed": asked.seed,
    }
    given = {name: value for name, value in said.items() if value is not None}
    return dataclasses.replace(most.usual_settings, speak=_speaks(asked), **given)


def _encoded(reply: Reply, format: str) -> bytes:
    return encode(resampled(reply.waveform, reply.sample_rate, WIRE_RATE), WIRE_RATE, format)


def told(reply: Reply) -> dict[str, Any]:
    """What OpenAI's format has no place for."""
    timings = {name: round(ms, 1) for name, ms in reply.timings.items()}
    return {"heard": reply.heard, "confidence": finite(round(reply.confidence, 4)), "timings": timings}


def usage_of(most: Most, messages: list[Message], reply: Reply) -> dict[str, Any]:
    """Tokens in and out. Those of the prompt, and units, are counted one by one; of text that was made, the tokens
    are counted that it takes to write it, without the marks between heard, answer and speech."""
    heard, read = prompt_tokens(most, messages)
    processor = most.processor
    wrote = len(processor.text_ids(reply.text))
    if any(not isinstance(message["content"], str) for message in messages[-1:]):
        wrote += len(processor.text_ids(reply.heard))
    units = len(reply.units)
    return {
        "prompt_tokens": heard + read,
        "completion_tokens": wrote + units,
        "total_tokens": heard + read + wrote + units,
        "prompt_tokens_details": {"audio_tokens": heard, "text_tokens": read, "cached_tokens": 0},
        "completion_tokens_details": {"audio_tokens": units, "text_tokens": wrote, "reasoning_tokens": 0},
    }


def prompt_tokens(most: Most, messages: list[Message]) -> tuple[int, int]:
    """(frames of speech, everything else) that the model is given of a conversation."""
    answer: Message = {"role": "assistant", "content": "."}
    _, replies = most.processor.lesson([*messages, answer])  # clips stand in it without their frames
    frames = 0
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "audio":
                first = most.encoder.first_frame_samples
                beyond = max(0, len(part["audio"]) - first)
                frames += beyond // most.encoder.samples_per_frame + 1
    return frames, replies[-1][0]


# Messages


def read_messages(service: Service, given: list[Any]) -> list[Message]:
    """OpenAI's messages as the model's. It decodes sound: call it in a thread."""
    messages: list[Message] = []
    for number, message in enumerate(given):
        where = f"messages[{number}]"
        if not isinstance(message, dict):
            raise _wrong(where, message, "give an object with role and content")
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise _wrong(f"{where}.role", role, f"use {listed(list(ROLES))}")
        messages.append({"role": ROLES[role], "content": _content(service, message, role, where)})
    said = [part for message in messages for part in _parts(message)]
    service.check_length("".join(part["text"] for part in said if part["type"] == "text"), "the text of messages")
    seconds = sum(len(part["audio"]) for part in said if part["type"] == "audio") / SAMPLE_RATE
    longest = service.settings.seconds
    if seconds > longest:
        raise Refusal(
            400, f"messages hold {seconds:.1f} s of sound, the limit is {longest} s: drop the oldest", param="messages"
        )
    service.metrics.heard_s.inc(seconds)
    return messages


def _content(service: Service, message: dict[str, Any], role: str, where: str) -> str | list[dict[str, Any]]:
    if message.get("tool_calls") or message.get("function_call"):
        raise _wrong(f"{where}.tool_calls", message.get("tool_calls"), "this model calls no tools; leave them out")
    content = message.get("content")
    if not content and message.get("audio"):
        raise _wrong(f"{where}.audio", message["audio"], "sound is not kept here; give its transcript as content")
    if isinstance(content, str) and content:
        return content
    if not isinstance(content, list) or not content:
        raise _wrong(f"{where}.content", content, "give a text, or a list of parts")
    return [_part(service, part, role, f"{where}.content[{number}]") for number, part in enumerate(content)]


def _part(service: Service, part: Any, role: str, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise _wrong(f"{where}.text", part.get("text"), "give a string")
        return {"type": "text", "text": part["text"]}
    if kind != "input_audio":
        raise _wrong(f"{where}.type", kind, "use 'text' or 'input_audio'")
    if role != "user":
        raise _wrong(f"{where}.type", kind, f"sound can only be the user's, not the {role}'s")
    sound = part.get("input_audio")
    if not isinstance(sound, dict):
        raise _wrong(f"{where}.input_audio", sound, "give an object with data and format")
    where = f"{where}.input_audio"
    format, data = sound.get("format"), sound.get("data")
    if format not in SOUNDS:
        raise _wrong(f"{where}.format", format, f"use {listed(SOUNDS)}")
    if not isinstance(data, str) or not data:
        raise _wrong(f"{where}.data", data, "give the sound in base64")
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _wrong(f"{where}.data", data, f"this is no base64 ({error}); encode the sound again") from None
    try:
        if format == "pcm16":
            samples = waveform(service, from_pcm16(raw), WIRE_RATE, f"{where}.data")
        else:
            samples = read_recording(service, raw, f"{where}.data")
    except ValueError as error:
        told = str(error) if str(error).startswith(where) else f"{where}.data: {error}"
        raise Refusal(400, told, param=f"{where}.data", code="invalid_value") from None
    return {"type": "audio", "audio": samples, "sampling_rate": SAMPLE_RATE}


def _parts(message: Message) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _wrong(param: str, value: Any, advice: str) -> Refusal:
    code = "missing_required_parameter" if value is None else "invalid_value"
    return Refusal(400, f"{param} is {shown(value)}: {advice}", param=param, code=code)
