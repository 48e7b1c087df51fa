"""Every setting of the app in one dataclass, from flags or environment variables (`MOST_PORT=8000`)."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TRUE, FALSE = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


def _flag(default: Any, group: str, help: str) -> Any:
    return field(default=default, metadata={"help": help, "group": group})


MODEL, PAGE, ASK, LOCAL, LIMITS = "model", "page and server", "one question", "in the terminal", "limits"


@dataclass(frozen=True)
class Settings:
    """Every field becomes a flag: `--host`, or MOST_HOST in the environment. Flags win."""

    model: str = _flag("assets/nano", MODEL, "checkpoint folder")
    device: str = _flag("auto", MODEL, "auto, cpu, cuda or cuda:N")
    quantize: str = _flag("", MODEL, "int8 or nf4; the experts are quantized too")
    threads: int = _flag(0, MODEL, "torch threads; 0: one for a small model on a CPU, else torch's own choice")
    history: int = _flag(1, MODEL, "earlier exchanges that a spoken turn is answered with; nano knows short ones")

    host: str = _flag("127.0.0.1", PAGE, "address to listen on; others than this machine's own need a token")
    port: int = _flag(7860, PAGE, "port to listen on; 0: any free one")
    token: str = _flag("", PAGE, "word that every visitor must know; auto: make one up; none: let everybody in")
    origins: str = _flag("", PAGE, "other sites whose pages may connect, such as https://a.example; with commas")
    ssl_certfile: str = _flag("", PAGE, "certificate (PEM), to serve https")
    ssl_keyfile: str = _flag("", PAGE, "its key (PEM)")

    ask: str = _flag("", ASK, "answer this recording, or typed question, instead of opening the page")
    out: str = _flag("", ASK, "with --ask: write the answer's sound to this WAV file")
    trace: str = _flag("", ASK, "with --ask: write which expert took which token to PREFIX.*.parquet")

    local: bool = _flag(False, LOCAL, "talk here in the terminal, through this machine's microphone and speaker")
    list_devices: bool = _flag(False, LOCAL, "list microphones and speakers, then stop")
    microphone: str = _flag("", LOCAL, "number or part of the name of the microphone; empty: the usual one")
    speaker: str = _flag("", LOCAL, "number or part of the name of the speaker; empty: the usual one")
    half_duplex: bool = _flag(False, LOCAL, "do not listen while it speaks: for loudspeakers near the microphone")

    sessions: int = _flag(8, LIMITS, "conversations at a time; who comes later waits in line")
    line: int = _flag(32, LIMITS, "conversations that may wait; who comes later is refused")
    minutes: int = _flag(60, LIMITS, "longest conversation")
    turns: int = _flag(500, LIMITS, "most turns of a conversation")
    requests: int = _flag(16, LIMITS, "REST requests that may be worked on or wait; more are refused")
    upload_mb: int = _flag(20, LIMITS, "largest upload or request")
    seconds: int = _flag(120, LIMITS, "longest recording that is answered or transcribed")
    characters: int = _flag(4000, LIMITS, "longest text that is answered or spoken")

    def __post_init__(self) -> None:
        for name, least, most in (
            ("port", 0, 65_535),
            ("threads", 0, 1024),
            ("history", 0, 1000),
            ("sessions", 1, 1000),
            ("line", 0, 10_000),
            ("minutes", 1, 100_000),
            ("turns", 1, 1_000_000),
            ("requests", 1, 10_000),
            ("upload_mb", 1, 10_000),
            ("seconds", 1, 100_000),
            ("characters", 1, 10_000_000),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{flag(name)} is {value}: give a number in {least}..{most}")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def parse(argv: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the command line and the environment; exits with a message on unknown or malformed ones."""
    parser = argparse.ArgumentParser(
        prog="python app.py",
        description="Talk to MoST: in the browser (without any flag), in the terminal (--local), or once (--ask).",
        epilog="Each flag is an environment variable, too: MOST_PORT=8000 is --port 8000.",
        formatter_class=functools.partial(argparse.ArgumentDefaultsHelpFormatter, max_help_position=26, width=100),
        allow_abbrev=False,
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for item in dataclasses.fields(Settings):
        group = item.metadata["group"]
        groups[group] = groups.get(group) or parser.add_argument_group(group)
        default = _default(parser, item, environment.get(f"MOST_{item.name.upper()}"))
        kind: dict[str, Any] = {"type": type(item.default), "metavar": item.name.upper()}
        if isinstance(item.default, bool):
            kind = {"action": argparse.BooleanOptionalAction}
        groups[group].add_argument(flag(item.name), default=default, help=item.metadata["help"], **kind)
    try:
        return Settings(**vars(parser.parse_args(argv)))
    except ValueError as error:
        parser.error(str(error))


def _default(parser: argparse.ArgumentParser, item: dataclasses.Field, given: str | None) -> Any:
    """What the environment says, or the built-in default."""
    if given is None:
        return item.default
    if isinstance(item.default, bool):
        if given.lower() not in TRUE + FALSE:
            parser.error(f"MOST_{item.name.upper()} is {given!r}: say 1 or 0")
        return given.lower() in TRUE
    try:
        return type(item.default)(given)
    except ValueError:
        parser.error(f"MOST_{item.name.upper()} is {given!r}, not {type(item.default).__name__}")
