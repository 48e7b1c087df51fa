"""What all REST routes share: reading and checking what was sent, and refusing it in OpenAI's words.

A route is a function from what was sent to an `Answer`, whole or in pieces; `app.rest.work` runs it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app.audio import read_sound
from app.engine import Busy, Engine
from app.metrics import Metrics
from app.settings import Settings
from most_core import Most
from most_core.speech import check_waveform

ALIAS = "most"  # also names the model, whatever its own name is
RETRY_S = 2
SHOWN = 80  # characters of what was sent that an error repeats
SSE = "text/event-stream"
LOG = logging.getLogger(__name__)


class Refusal(Exception):
    """A request that gets no answer but this: one line that says what was wrong, with which value, what to do."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        kind = {429: "rate_limit_error", 500: "server_error"}.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        headers = {"Retry-After": str(RETRY_S)} if self.status == 429 else {}
        return Response(to_json(self.body), self.status, headers, "application/json")


@dataclass
class Service:
    """What the routes work with. `in_work` counts requests, for the limit on them."""

    engine: Engine
    settings: Settings
    metrics: Metrics
    name: str
    created: int = field(default_factory=lambda: int(time.time()))
    in_work: int = 0

    @property
    def most(self) -> Most:
        return self.engine.most

    @property
    def hears_words(self) -> bool:
        """Whether the encoder can tell which word was when."""
        return self.most.encoder is not None and self.most.encoder.ctc is not None

    @property
    def ears(self) -> str:
        """The model that transcribes with the encoder alone."""
        return f"{self.name}-ears"

    @property
    def models(self) -> list[str]:
        return [self.name, self.ears] if self.hears_words else [self.name]

    def check_model(self, model: str, served: list[str] | None = None) -> str:
        """The model meant; a refusal if it is not among those `served`, by default the one that answers."""
        model = self.name if model == ALIAS else model
        served = served or [self.name]
        if model not in served:
            raise Refusal(
                404,
                f"model {shown(model)} does not exist here: use {listed(served)}",
                param="model",
                code="model_not_found",
            )
        return model

    def check_length(self, text: str, param: str) -> None:
        longest = self.settings.characters
        if len(text) > longest:
            raise Refusal(
                400, f"{param} is {len(text)} characters long, the limit is {longest}: shorten it", param=param
            )


# What a route gives back


@dataclass
class Whole:
    content: bytes
    media_type: str = "application/json"
    status: int = 200


@dataclass
class Pieces:
    """An answer that is sent as it is made."""

    content: AsyncIterator[bytes]
    media_type: str = SSE


Answer = Whole | Pieces


# What went wrong


def as_refusal(error: Exception) -> Refusal:
    """What a client is told of it."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, Busy):
        return busy(str(error))
    if isinstance(error, HTTPException):
        return Refusal(error.status_code, one_line(error.detail))
    if isinstance(error, ValueError):
        return Refusal(400, one_line(str(error)))
    LOG.error("a request failed", exc_info=error)
    told = str(error) if isinstance(error, RuntimeError) else type(error).__name__
    return Refusal(500, one_line(f"something failed here, not in the request: {told}"), code="internal_error")


def busy(why: str) -> Refusal:
    """For one who came while others were served."""
    return Refusal(429, f"{why.partition(':')[0]}: try again in {RETRY_S} s", code="rate_limit_exceeded")


# Reading what was sent


async def read_json(request: Request) -> dict[str, Any]:
    """The object in the body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise Refusal(415, f"the body is {shown(kind)}: send JSON, with Content-Type: application/json")
    body = await request.body()
    given = await asyncio.to_thread(_parsed, body)
    if not isinstance(given, dict):
        raise Refusal(400, f"the body is {shown(given)}: send a JSON object")
    return given


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_no_number)
    except RecursionError:
        raise Refusal(400, "the body is nested too deeply: send plainer JSON") from None
    except ValueError as error:
        raise Refusal(400, f"the body is no JSON: {one_line(str(error))}") from None


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number in JSON")


class Asked(BaseModel):
    """Base of what a route takes: other fields and other types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


Kind = TypeVar("Kind", bound=Asked)


def checked(kind: type[Kind], given: dict[str, Any]) -> Kind:
    """What was given as one of `kind`, or a refusal that names the first field that is wrong."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    param = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        raise Refusal(400, f"{param} is missing: give it", param=param, code="missing_required_parameter")
    if first["type"] == "extra_forbidden":
        shown_name = shown(param).strip("'")
        raise Refusal(400, f"{shown_name} is not known here: leave it out", param=shown_name, code="unknown_parameter")
    rule = first["msg"].replace("Input should be", "it must be").removeprefix("Value error, ")
    raise Refusal(400, f"{param} is {shown(first['input'])}: {rule}", param=param, code="invalid_value")


def refuse_unsupported(given: dict[str, Any], unsupported: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    """`given` without the fields of `unsupported`, which name values that ask for nothing; any other is refused."""
    for name, harmless in unsupported.items():
        value = given.get(name)
        if value is not None and not any(type(value) is type(other) and value == other for other in harmless):
            raise Refusal(
                400,
                f"{name} is {shown(value)}, which this model cannot do: leave {name} out",
                param=name,
                code="unsupported_parameter",
            )
    return {name: value for name, value in given.items() if name not in unsupported}


def read_recording(service: Service, data: bytes, name: str) -> np.ndarray:
    """float32 mono at 16 kHz, of a file of any kind. It may take a while: call it in a thread."""
    return waveform(service, *read_sound(data, name, service.settings.seconds), name)


def waveform(service: Service, samples: np.ndarray, rate: int, name: str) -> np.ndarray:
    """float32 mono at 16 kHz, of samples; what is too long, empty or no sound is refused."""
    longest = service.settings.seconds
    if len(samples) > longest * rate:
        raise ValueError(f"{name} is {len(samples) / rate:.1f} s long, the limit is {longest} s: cut it")
    try:
        return check_waveform(samples, rate)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


# Words


def to_json(value: Any) -> bytes:
    """ASCII, so that half a surrogate pair does no harm."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + to_json(value) + b"\n\n"


def shown(value: Any) -> str:
    """A value as an error repeats it."""
    text = repr(value[: SHOWN + 1] if isinstance(value, str | bytes | list) else value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 500 else text[:497] + "..."


def listed(names: list[str] | tuple[str, ...]) -> str:
    """'a, b or c'."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def finite(value: float) -> float | None:
    """A number that JSON knows, or None."""
    return value if math.isfinite(value) else None
