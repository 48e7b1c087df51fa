"""Every setting of the app in one dataclass, from flags or environment variables (`MOST_PORT=8000`)."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Settings:
    """Fields with help become flags: `--host`, or MOST_HOST in the environment. Flags win."""

    model: str = field(default="assets/nano", metadata={"help": "checkpoint folder"})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda or cuda:N"})
    quantize: str = field(default="", metadata={"help": "int8 or nf4; the experts are quantized too"})
    host: str = field(default="127.0.0.1", metadata={"help": "address to listen on"})
    port: int = field(default=7860, metadata={"help": "port to listen on"})
    threads: int = field(
        default=0, metadata={"help": "torch threads; 0: one for a small model on a CPU, else torch's own choice"}
    )
    ask: str = field(default="", metadata={"help": "answer this recording, or typed question, instead of opening"})
    out: str = field(default="", metadata={"help": "with --ask: write the answer's sound to this WAV file"})


def parse(argv: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the command line and the environment; exits with a message on unknown or malformed ones."""
    parser = argparse.ArgumentParser(
        prog="python app.py",
        description="Talk to MoST in the browser.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for item in dataclasses.fields(Settings):
        kind = type(item.default)
        given = environment.get(f"MOST_{item.name.upper()}")
        try:
            default = item.default if given is None else kind(given)
        except ValueError:
            parser.error(f"MOST_{item.name.upper()} is {given!r}, not {kind.__name__}")
        parser.add_argument(f"--{item.name.replace('_', '-')}", type=kind, default=default, help=item.metadata["help"])
    return Settings(**vars(parser.parse_args(argv)))
