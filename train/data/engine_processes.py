"""The engines' processes as `Synthesizer` sees them: start, ask for an utterance under a deadline, end.

espeak-ng and flite are libraries that train/data/engines.py serves; festival is its own program.
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from contextlib import suppress
from typing import Protocol

import numpy as np

from train.data import engines

FESTIVAL_PITCH = {"kal_diphone": (105, 14), "ked_diphone": (105, 15)}  # Hz; the HTS voice has no such control


class VoiceSettings(Protocol):
    """What of a `Voice` reaches its engine."""

    name: str
    pitch: float
    rate: float
    intonation: float


class Crashed(Exception):
    """The engine's process ended or hung; a new one may do better."""


class EngineProcess:
    """An engine's process, its pipes, and reading from it under a deadline."""

    def __init__(self, command: list[str]) -> None:
        # A group of its own, so that a hanging engine goes with the copy of it that speaks
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, process_group=0
        )
        self.pid = self._process.pid

    def write(self, data: bytes) -> None:
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except OSError as error:
            raise Crashed("it had ended") from error

    def read(self, count: int, deadline: float) -> bytes:
        source, data = self._process.stdout.fileno(), bytearray()
        while len(data) < count:
            if not select.select([source], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Crashed("it hung")
            if not (part := os.read(source, count - len(data))):
                raise Crashed("it ended")
            data += part
        return bytes(data)

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe.close()
        self._process.wait()


class Library(EngineProcess):
    """espeak-ng or flite, loaded by train/data/engines.py."""

    def __init__(self, engine: str) -> None:
        super().__init__([sys.executable, "-S", engines.__file__, engine])

    def speak(self, text: str, voice: VoiceSettings, deadline: float) -> tuple[int, np.ndarray]:
        request = {"text": text} | {key: getattr(voice, key) for key in ("name", "pitch", "rate", "intonation")}
        self.write(json.dumps(request).encode() + b"\n")
        rate, count = engines.REPLY.unpack(self.read(engines.REPLY.size, deadline))
        data = self.read(count, deadline)
        if rate == 0:
            raise ValueError(data.decode())
        return rate, np.frombuffer(data, "<i2")


class Festival(EngineProcess):
    """festival, which reads Scheme and writes a WAV file to its standard output."""

    HEADER = struct.Struct("<4s20xi8x4si")  # "RIFF", sampling rate, "data", bytes

    def __init__(self) -> None:
        super().__init__(["festival", "--pipe"])
        self._spoken = 0

    def speak(self, text: str, voice: VoiceSettings, deadline: float) -> tuple[int, np.ndarray]:
        lines = [f"(voice_{voice.name})", f"(Parameter.set 'Duration_Stretch {1 / voice.rate:.4f})"]
        if pitch := FESTIVAL_PITCH.get(voice.name):
            mean, spread = pitch[0] * voice.pitch, pitch[1] * voice.pitch * voice.intonation
            lines.append(
                f"(set! int_lr_params '((target_f0_mean {mean:.1f}) (target_f0_std {spread:.1f})"
                " (model_f0_mean 170) (model_f0_std 34)))"
            )
        else:
            lines.append(f'(set! hts_engine_params (append hts_engine_params \'(("-r" {voice.rate:.4f}))))')
        lines.append(f'(utt.save.wave (utt.synth (Utterance Text "{text}")) "-" \'riff)')
        self._spoken += 1
        if self._spoken % 100 == 0:  # it keeps about a megabyte an utterance otherwise
            lines.append("(gc)")
        self.write("\n".join([*lines, "(fflush nil)", ""]).encode())
        riff, rate, data, count = self.HEADER.unpack(self.read(self.HEADER.size, deadline))
        if (riff, data) != (b"RIFF", b"data"):
            raise Crashed("it answered with something else than sound")
        return rate, np.frombuffer(self.read(count, deadline), "<i2")
