"""POST /v1/audio/speech: a text, read aloud.

The model has one voice with one speed. Clients must name a voice, so any name is taken, and it is that voice. WAV and
PCM are sent as they are made; the other formats are encoded when all is said.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from app.audio import WIRE_RATE, Resampler, encode, to_pcm16, wav_header
from app.rest.api import Answer, Asked, Pieces, Service, checked, event, refuse_unsupported

MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": f"audio/pcm;rate={WIRE_RATE};channels=1",
}
UNSUPPORTED = {"speed": (1, 1.0), "instructions": ("",)}


def voice_name(given: Any) -> Any:
    """A voice may be given as its name or as `{"id": name}`."""
    return given["id"] if isinstance(given, dict) and given.keys() == {"id"} else given


Voice = Annotated[str, Field(min_length=1, max_length=64), BeforeValidator(voice_name)]


class Speech(Asked):
    """What the route takes."""

    model: str
    input: str
    voice: Voice
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] | None = "mp3"
    stream_format: Literal["audio", "sse"] | None = "audio"


async def speak(service: Service, given: dict[str, Any]) -> Answer:
    asked = checked(Speech, refuse_unsupported(given, UNSUPPORTED))
    service.check_model(asked.model)
    service.check_length(asked.input, "input")
    spoken, format = Spoken(service, asked.input), asked.response_format or "mp3"
    sound = spoken.stream(header=format == "wav") if format in ("wav", "pcm") else spoken.encoded(format)
    if asked.stream_format == "sse":
        return Pieces(_events(service, asked.input, sound, spoken))
    return Pieces(sound, MEDIA_TYPES[format])


class Spoken:
    """A text becoming sound at the wire's rate; `seconds` of it by now."""

    def __init__(self, service: Service, text: str) -> None:
        self.service, self.text, self.seconds = service, text, 0.0

    async def pieces(self) -> AsyncIterator[np.ndarray]:
        most, metrics, resampler = self.service.most, self.service.metrics, None
        job = self.service.engine.stream(lambda cancel: most.stream_speech(self.text, cancel=cancel))
        async with contextlib.aclosing(job) as events:
            async for delta in events:
                resampler = resampler or Resampler(delta.sample_rate, WIRE_RATE)
                self.seconds += len(delta.pcm) / delta.sample_rate
                metrics.spoken_s.inc(len(delta.pcm) / delta.sample_rate)
                yield resampler.push(delta.pcm)
        if resampler is not None:
            yield resampler.finish()

    async def stream(self, header: bool) -> AsyncIterator[bytes]:
        async with contextlib.aclosing(self.pieces()) as pieces:
            async for piece in pieces:
                yield (wav_header(WIRE_RATE) if header else b"") + to_pcm16(piece)
                header = False

    async def encoded(self, format: str) -> AsyncIterator[bytes]:
        async with contextlib.aclosing(self.pieces()) as pieces:
            made = [piece async for piece in pieces]
        if not made:  # the engine ends its jobs when it is closed
            raise RuntimeError("the server is closing")
        yield await asyncio.to_thread(encode, np.concatenate(made), WIRE_RATE, format)


async def _events(service: Service, text: str, sound: AsyncIterator[bytes], spoken: Spoken) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(sound):
        async for piece in sound:
            yield event({"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()})
    read = len(service.most.processor.text_ids(text))
    units = round(spoken.seconds * service.most.config.audio_rate_hz)
    usage = {"input_tokens": read, "output_tokens": units, "total_tokens": read + units}
    yield event({"type": "speech.audio.done", "usage": usage})
