"""`python app.py`: parse the settings, load the model, open the assistant. `python app.py --help` lists everything."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# Before anything of Hugging Face or Gradio is imported: no telemetry, no look-ups on the network.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Before torch is: else its threads wait for each other at full speed, ten times as long where others want the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from app.settings import Settings, parse

if TYPE_CHECKING:
    from most_core import Most

SMALL = 100_000_000  # parameters; the products of smaller models are too small to share among threads


def main(settings: Settings) -> int:
    """Answer one question, talk in the terminal, or serve until interrupted; 2 if that cannot be done."""
    try:
        if settings.list_devices:
            from app.terminal import devices

            print(devices.list_devices())
            return 0
        if settings.ask:
            _ask(settings)
            return 0
        for flag, given in (("--out", settings.out), ("--trace", settings.trace)):
            if given:
                raise ValueError(f"{flag} {given} is for the answer to a question: give one with --ask")
        if settings.local:
            from app.terminal import devices

            devices.find(settings)  # better known before the model is loaded
            from app.terminal import talk

            return talk.talk(_load(settings), settings)
        from app import server

        return server.serve(lambda: _load(settings, server.places(settings)), settings)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _ask(settings: Settings) -> None:
    from app import ask

    if settings.out:
        ask.check_out(Path(settings.out))
    if settings.trace:
        ask.check_out(Path(settings.trace), "--trace")
    question = ask.read_question(settings.ask)
    reply = ask.answer(_load(settings), question, trace=bool(settings.trace))
    print(ask.told(reply, spoken=question.sound is not None))
    if reply.trace is not None:
        reply.trace.save(settings.trace)
    if settings.out:
        ask.write_sound(reply, Path(settings.out))


def _load(settings: Settings, places: int = 1) -> Most:
    """The model asked for, for so many conversations at a time; ValueError or OSError if it cannot be loaded."""
    import torch

    import most_core

    if settings.threads:
        torch.set_num_threads(settings.threads)
    most = most_core.load(settings.model, settings.device, quantize=settings.quantize or None, slots=places)
    small = most.model.device.type == "cpu" and sum(p.numel() for p in most.model.parameters()) < SMALL
    if small and not settings.threads:
        torch.set_num_threads(1)
    gc.freeze()  # what was made until now stays: it is never looked through again
    gc.enable()
    return most


if __name__ == "__main__":
    gc.disable()  # until the model is loaded: a fifth of the start went into looking for garbage among what stays
    sys.exit(main(parse()))
