"""Microphones and speakers of this machine, through PortAudio, which is imported only when somebody asks for them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np

from app.settings import Settings
from app.vad import SAMPLE_RATE

Kind = Literal["microphone", "speaker"]
Table = Sequence[Mapping[str, Any]]  # as sounddevice.query_devices gives it
CHANNELS = {"microphone": "max_input_channels", "speaker": "max_output_channels"}
BLOCKS_S = 50  # a second: blocks of 20 ms, the detector's frames


@dataclass(frozen=True)
class Device:
    """A microphone or speaker, and how it is opened."""

    index: int
    name: str
    rate: int
    channels: int


@dataclass(frozen=True)
class Streams:
    """Open devices. `latency_ms`: from the speaker's taking a sample to its sounding. `working`: both still run."""

    latency_ms: float
    working: Callable[[], bool]


@dataclass(frozen=True)
class Pair:
    """What one talks through."""

    microphone: Device
    speaker: Device

    @contextlib.contextmanager
    def open(self, hear: Callable[[np.ndarray], None], take: Callable[[int], np.ndarray]) -> Iterator[Streams]:
        """While open, `hear` is given each block of the microphone's sound, and `take` is asked for so many samples
        for the speaker: mono float32 at the devices' rates, on threads of PortAudio's, which must not wait. OSError
        if they cannot be opened."""
        sounddevice = portaudio()

        def heard(data: np.ndarray, *_: Any) -> None:
            hear(data.mean(axis=1))  # a copy: the device's memory is used again

        def wanted(data: np.ndarray, *_: Any) -> None:
            data[:] = take(len(data))[:, None]

        with contextlib.ExitStack() as stack:
            opened = []
            for kind, device, make, callback in (
                ("microphone", self.microphone, sounddevice.InputStream, heard),
                ("speaker", self.speaker, sounddevice.OutputStream, wanted),
            ):
                try:
                    stream = make(
                        samplerate=device.rate,
                        blocksize=device.rate // BLOCKS_S,
                        device=device.index,
                        channels=device.channels,
                        dtype="float32",
                        callback=callback,
                    )
                    stack.callback(stream.close)
                    stream.start()
                except sounddevice.PortAudioError as error:
                    told = f"{device.name} does not open ({error}): choose another with --{kind}, see --list-devices"
                    raise OSError(told) from error
                opened.append(stream)
            yield Streams(1000 * opened[1].latency, lambda: all(stream.active for stream in opened))


def portaudio() -> ModuleType:
    """The module sounddevice; OSError that says what to install where it or PortAudio is missing."""
    try:
        import sounddevice
    except ImportError as error:
        raise OSError("sounddevice is missing: install it with pip install sounddevice") from error
    except OSError as error:
        told = f"PortAudio is missing ({error}): install it (Debian: apt install libportaudio2)"
        raise OSError(told) from error
    return sounddevice


def list_devices() -> str:
    """Microphones and speakers by their numbers; OSError without PortAudio."""
    sounddevice = portaudio()
    systems = [system["name"] for system in sounddevice.query_hostapis()]
    return listed(query(sounddevice), systems, sounddevice.default.device)


def find(settings: Settings) -> Pair:
    """The microphone and the speaker asked for, each known to take a rate. ValueError or OSError if there is none."""
    sounddevice = portaudio()
    table = query(sounddevice)
    checks = {"microphone": sounddevice.check_input_settings, "speaker": sounddevice.check_output_settings}
    found = []
    for kind, wanted, usual in zip(CHANNELS, (settings.microphone, settings.speaker), sounddevice.default.device):
        row = choose(table, kind, wanted, usual)

        def accepts(rate: int, channels: int, kind: str = kind, row: Mapping[str, Any] = row) -> None:
            try:
                checks[kind](device=row["index"], channels=channels, dtype="float32", samplerate=rate)
            except sounddevice.PortAudioError as error:
                raise OSError(str(error)) from error

        found.append(fitting(row, kind, accepts))
    return Pair(*found)


def query(sounddevice: ModuleType) -> Table:
    """All devices; OSError where PortAudio cannot tell."""
    try:
        return list(sounddevice.query_devices())
    except sounddevice.PortAudioError as error:
        raise OSError(f"PortAudio cannot list the devices: {error}") from error


def choose(table: Table, kind: Kind, wanted: str, usual: int) -> Mapping[str, Any]:
    """The device of this number, or whose name holds `wanted`; the usual one if that is empty.

    Of several, the one whose whole name it is, or the only one of the usual device's system (on Windows, each device
    is there once for each of four systems). OSError if the machine has none, ValueError if it is another that is
    wanted."""
    fit = [row for row in table if row[CHANNELS[kind]] > 0]
    if not fit:
        raise OSError(f"there is no {kind} on this machine: connect one and look with --list-devices")
    by_number = {row["index"]: row for row in table}
    wanted = wanted.strip()
    if not wanted:
        if by_number.get(usual) not in fit:
            raise OSError(f"no {kind} is the usual one: choose with --{kind} from --list-devices")
        return by_number[usual]
    if wanted.isdecimal():
        row = by_number.get(int(wanted))
        if row is None:
            raise ValueError(f"--{kind} {wanted}: no device has this number, see --list-devices")
        if row not in fit:
            raise ValueError(f"--{kind} {wanted}: {row['name']} is no {kind}, see --list-devices")
        return row
    matches = [row for row in fit if wanted.casefold() in row["name"].casefold()]
    if not matches:
        raise ValueError(f"--{kind} {wanted}: no {kind} has a name with this in it, see --list-devices")
    system = by_number[usual]["hostapi"] if usual in by_number else None
    for narrower in (
        [row for row in matches if row["name"].casefold() == wanted.casefold()],
        [row for row in matches if row["hostapi"] == system],
    ):
        if len(matches) > 1 and narrower:
            matches = narrower
    if len(matches) > 1:
        named = ", ".join(f"{row['index']} {row['name']}" for row in matches)
        raise ValueError(f"--{kind} {wanted}: several have this in their names ({named}); give a number")
    return matches[0]


def fitting(row: Mapping[str, Any], kind: Kind, accepts: Callable[[int, int], None]) -> Device:
    """The device at the model's rate if it takes that, else at its own; mono if it takes that. `accepts` raises
    OSError for a rate and channels that it does not take."""
    own = round(row["default_samplerate"])
    refused: OSError | None = None
    for channels in sorted({1, min(row[CHANNELS[kind]], 2)}):
        for rate in (SAMPLE_RATE, own):
            try:
                accepts(rate, channels)
            except OSError as error:
                refused = error
            else:
                return Device(row["index"], row["name"], rate, channels)
    raise OSError(
        f"{row['name']} takes neither {SAMPLE_RATE} nor {own} Hz ({refused}): "
        f"choose another with --{kind}, see --list-devices"
    )


def listed(table: Table, systems: Sequence[str], usual: Sequence[int]) -> str:
    """Microphones and speakers by their numbers. `systems`: names of PortAudio's host APIs."""
    lines = []
    for kind, index in zip(CHANNELS, usual):
        lines.append(f"{kind}s (--{kind} NUMBER or part of the name; * is the usual one)")
        rows = [row for row in table if row[CHANNELS[kind]] > 0]
        lines += [
            f"{'*' if row['index'] == index else ' '}{row['index']:4}  {row['name']}  "
            f"[{systems[row['hostapi']]}, {round(row['default_samplerate'])} Hz]"
            for row in rows
        ] or ["      none"]
    return "\n".join(lines)
