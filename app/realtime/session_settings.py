"""What a client may wish of a realtime session: OpenAI's fields that mean something here, and ours under `most`.

`updated` checks everything before anything changes. A wish that cannot be granted is refused by its name, not ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from app.audio import WIRE_RATE
from app.conversation import TalkSettings
from app.turn import TurnSettings
from app.vad import VadSettings
from most_core import GenerationSettings

LONGEST_INSTRUCTIONS = 4000
LONGEST_VOICE = 64
USUAL_THRESHOLD = 0.5
FORMAT = {"type": "audio/pcm", "rate": WIRE_RATE}


class Refused(ValueError):
    """A wish or an event that cannot be granted: `param` names what was wrong, `code` says how, for programs."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param, self.code = param, code


@dataclass(frozen=True)
class Detection:
    """How the ends of speech are found (OpenAI's `turn_detection`). Where the client does not name the silence that
    ends a turn, it is learned from how the person speaks."""

    kind: str = "server_vad"
    threshold: float = USUAL_THRESHOLD
    prefix_padding_ms: int = 300
    silence_duration_ms: int | None = None
    create_response: bool = True
    interrupt_response: bool = True

    def to_wire(self) -> dict[str, Any]:
        shared = {"create_response": self.create_response, "interrupt_response": self.interrupt_response}
        if self.kind == "semantic_vad":
            return {"type": self.kind, "eagerness": "auto", **shared}
        return {
            "type": self.kind,
            "threshold": self.threshold,
            "prefix_padding_ms": self.prefix_padding_ms,
            "silence_duration_ms": self.silence_duration_ms,
            **shared,
            "idle_timeout_ms": None,
        }


@dataclass(frozen=True)
class SessionSettings:
    """One session's."""

    history: int = 1
    instructions: str = ""
    speak: bool = True
    max_output_tokens: int | None = None
    voice: str = "default"
    transcription: bool = True
    detection: Detection | None = Detection()
    routing: bool = False
    record: bool = False
    captions: bool = False
    half_duplex: bool = False
    hands_free: bool = True
    temperature: float = 0.0
    seed: int | None = None
    turns: Mapping[str, float] = field(default_factory=dict)
    vad: Mapping[str, float] = field(default_factory=dict)

    def updated(self, given: Any) -> SessionSettings:
        """These settings with the wishes of a `session.update`. Refused if one of them cannot be granted."""
        changes: dict[str, Any] = {}
        readers: dict[str, Callable[[Any, str], None]] = {
            "type": lambda v, p: only(v, p, "realtime"),
            "model": lambda v, p: text(v, p, 200),
            "instructions": lambda v, p: changes.update(instructions=text(v, p, LONGEST_INSTRUCTIONS)),
            "output_modalities": lambda v, p: changes.update(speak=modalities(v, p)),
            "max_output_tokens": lambda v, p: changes.update(max_output_tokens=output_tokens(v, p)),
            "audio": lambda v, p: each(v, p, {"input": hear, "output": say}),
            "tools": lambda v, p: only(v, p, [], None),
            "tool_choice": lambda v, p: only(v, p, "auto", "none", None),
            "tracing": lambda v, p: only(v, p, None),
            "truncation": lambda v, p: only(v, p, "auto", None),
            "include": lambda v, p: only(v, p, [], None),
            "most": lambda v, p: each(v, p, ours),
        }

        def hear(value: Any, param: str) -> None:
            each(
                value,
                param,
                {
                    "format": sound_format,
                    "noise_reduction": lambda v, p: only(v, p, None),
                    "transcription": lambda v, p: changes.update(transcription=transcribed(v, p)),
                    "turn_detection": lambda v, p: changes.update(detection=self._detected(v, p)),
                },
            )

        def say(value: Any, param: str) -> None:
            each(
                value,
                param,
                {
                    "format": sound_format,
                    "voice": lambda v, p: changes.update(voice=text(v, p, LONGEST_VOICE)),
                    "speed": lambda v, p: only(v, p, 1, None),
                },
            )

        ours: dict[str, Callable[[Any, str], None]] = {
            **{
                name: lambda v, p, name=name: changes.update({name: switch(v, p)})
                for name in ("routing", "record", "captions", "half_duplex", "hands_free")
            },
            "history": lambda v, p: changes.update(history=number(v, p, 0, 1000, whole=True)),
            "temperature": lambda v, p: changes.update(temperature=number(v, p, 0, 2)),
            "seed": lambda v, p: changes.update(
                seed=None if v is None else number(v, p, -(2**63), 2**63 - 1, whole=True)
            ),
            "turns": lambda v, p: changes.update(turns=tuned(v, p, TurnSettings)),
            "vad": lambda v, p: changes.update(vad=tuned(v, p, VadSettings)),
        }
        each(given, "session", readers)
        wished = replace(self, **changes)
        wished.turn_settings(), wished.vad_settings()  # refuse what does not go together
        return wished

    def _detected(self, given: Any, param: str) -> Detection | None:
        if given is None:
            return None
        old = self.detection or Detection()
        if isinstance(given, dict) and given.get("type", old.kind) != old.kind:
            old = Detection()
        changes: dict[str, Any] = {}

        def kept(name: str, read: Callable[[Any, str], Any]) -> Callable[[Any, str], None]:
            return lambda v, p: changes.update({name: read(v, p)}) if v is not None else None

        each(
            given,
            param,
            {
                "type": kept("kind", lambda v, p: only(v, p, "server_vad", "semantic_vad")),
                "threshold": kept("threshold", lambda v, p: number(v, p, 0, 1)),
                "prefix_padding_ms": kept("prefix_padding_ms", lambda v, p: number(v, p, 0, 5000, whole=True)),
                "silence_duration_ms": kept("silence_duration_ms", lambda v, p: number(v, p, 200, 10_000, whole=True)),
                "create_response": kept("create_response", switch),
                "interrupt_response": kept("interrupt_response", switch),
                "idle_timeout_ms": lambda v, p: only(v, p, None),
                "eagerness": lambda v, p: only(v, p, "low", "medium", "high", "auto", None),
            },
        )
        return replace(old, **changes)

    def turn_settings(self) -> TurnSettings:
        detection, given = self.detection or Detection(), dict(self.turns)
        given.setdefault("preroll_ms", detection.prefix_padding_ms)
        if (silence := detection.silence_duration_ms) is not None:
            given = {"endpoint_min_ms": silence, "endpoint_start_ms": silence, "endpoint_max_ms": silence} | given
            given.setdefault("tentative_ms", min(TurnSettings.tentative_ms, silence))
            given.setdefault("endpoint_margin_ms", min(TurnSettings.endpoint_margin_ms, silence))
            given.setdefault("short_extra_ms", 0)
        return settings_of(TurnSettings, given, "session.most.turns")

    def vad_settings(self) -> VadSettings:
        threshold = (self.detection or Detection()).threshold
        margin = VadSettings.margin_db * threshold / USUAL_THRESHOLD
        given = {"margin_db": margin, "release_db": min(VadSettings.release_db, margin)} | dict(self.vad)
        return settings_of(VadSettings, given, "session.most.vad")

    def talk(self, usual: GenerationSettings) -> TalkSettings:
        limit = usual.max_new_tokens if self.max_output_tokens is None else self.max_output_tokens
        generation = replace(
            usual,
            speak=self.speak,
            max_new_tokens=min(limit, usual.max_new_tokens),
            temperature=self.temperature,
            seed=self.seed,
        )
        answer = self.detection is not None and self.detection.create_response
        return TalkSettings(
            generation, self.instructions, self.history, self.captions, self.routing, self.record, answer
        )

    def to_wire(self, session_id: str, model: str) -> dict[str, Any]:
        """As `session.created` and `session.updated` tell it."""
        return {
            "id": session_id,
            "object": "realtime.session",
            "type": "realtime",
            "model": model,
            "instructions": self.instructions,
            "output_modalities": ["audio" if self.speak else "text"],
            "max_output_tokens": "inf" if self.max_output_tokens is None else self.max_output_tokens,
            "tools": [],
            "tool_choice": "auto",
            "audio": {
                "input": {
                    "format": FORMAT,
                    "noise_reduction": None,
                    "transcription": {"model": model, "language": "en"} if self.transcription else None,
                    "turn_detection": self.detection.to_wire() if self.detection else None,
                },
                "output": {"format": FORMAT, "voice": self.voice, "speed": 1.0},
            },
            "most": {
                "routing": self.routing,
                "record": self.record,
                "captions": self.captions,
                "half_duplex": self.half_duplex,
                "hands_free": self.hands_free,
                "history": self.history,
                "temperature": self.temperature,
                "seed": self.seed,
                "turns": vars(self.turn_settings()),
                "vad": vars(self.vad_settings()),
            },
        }


# Readers of single values: what they return is checked. `param` names the value in what is told.


def quoted(value: Any) -> str:
    """A value in an error message, shortened."""
    try:
        said = repr(value)
    except RecursionError:
        said = "something nested deeply"
    return said if len(said) <= 60 else said[:57] + "..."


def each(given: Any, param: str, readers: Mapping[str, Callable[[Any, str], Any]]) -> None:
    """Pass every field of an object to its reader; Refused for those without one."""
    if not isinstance(given, dict):
        raise Refused(f"{param} is {quoted(given)}: give an object", param, "invalid_type")
    for name, value in given.items():
        if name not in readers:
            raise Refused(
                f"{param} has no field {quoted(name)}: it has {', '.join(readers)}", f"{param}.{name}"[:80], "unknown"
            )
        readers[name](value, f"{param}.{name}")


def only(given: Any, param: str, *possible: Any) -> Any:
    """One of the values that are possible here."""
    if not any(given == value and isinstance(given, bool) == isinstance(value, bool) for value in possible):
        known = " or ".join("null" if value is None else repr(value) for value in possible)
        raise Refused(f"{param} is {quoted(given)}: only {known} is supported", param, "unsupported")
    return given


def text(given: Any, param: str, longest: int) -> str:
    if not isinstance(given, str):
        raise Refused(f"{param} is {quoted(given)}: give a string", param, "invalid_type")
    if len(given) > longest:
        raise Refused(f"{param} has {len(given)} characters: give at most {longest}", param, "too_long")
    if any("\ud800" <= character <= "\udfff" for character in given):
        raise Refused(f"{param} holds half of a surrogate pair, which is no character: leave it out", param)
    return given


def switch(given: Any, param: str) -> bool:
    if not isinstance(given, bool):
        raise Refused(f"{param} is {quoted(given)}: say true or false", param, "invalid_type")
    return given


def number(given: Any, param: str, least: float, most: float, whole: bool = False) -> Any:
    kind = "whole number" if whole else "number"
    fits = isinstance(given, int | float) and not isinstance(given, bool) and least <= given <= most  # so it is finite
    if not fits or (whole and given != int(given)):
        raise Refused(f"{param} is {quoted(given)}: give a {kind} in {least}..{most}", param)
    return int(given) if whole else given


def modalities(given: Any, param: str) -> bool:
    """Whether replies are spoken."""
    if given not in (["audio"], ["text"]):
        raise Refused(f'{param} is {quoted(given)}: give ["audio"] or ["text"]', param)
    return given == ["audio"]


def output_tokens(given: Any, param: str) -> int | None:
    return None if given in ("inf", None) else number(given, param, 1, 100_000, whole=True)


def sound_format(given: Any, param: str) -> None:
    each(given, param, {"type": lambda v, p: only(v, p, "audio/pcm"), "rate": lambda v, p: only(v, p, WIRE_RATE, None)})


def transcribed(given: Any, param: str) -> bool:
    """Whether the client wants to read what was heard. It is always this model that hears."""
    if given is None:
        return False
    each(
        given,
        param,
        {
            "model": lambda v, p: text(v, p, 200),
            "language": lambda v, p: only(v, p, "en", None),
            "prompt": lambda v, p: only(v, p, "", None),
        },
    )
    return True


def tuned(given: Any, param: str, kind: type) -> Mapping[str, float]:
    """Some fields of a settings dataclass; how they go together is checked with the others."""
    names = {item.name: lambda v, p: number(v, p, -1e6, 1e6) for item in fields(kind)}
    each(given, param, names)
    return dict(given)


def settings_of(kind: type, given: Mapping[str, float], param: str) -> Any:
    try:
        return kind(**given)
    except ValueError as error:
        raise Refused(str(error), param) from None
