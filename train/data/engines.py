"""A speech engine served over pipes: `python engines.py espeak-ng` speaks what comes in on standard input.

A request is one line of JSON, {"text", "name", "pitch", "rate", "intonation"} (factors: 1 is the voice's own), and the
reply is two 32-bit integers, the sampling rate and a number of bytes, then so many bytes of 16-bit mono PCM. A rate of
0 means that the bytes are an error message. Only the standard library is imported, so that a restart costs little.

Every utterance is spoken by a forked copy of the loaded engine. Both libraries carry noise generators and flutter from
one utterance to the next: the copy always begins from the same state, so a sound depends on nothing said before it.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

REPLY = struct.Struct("<ii")
Speak = Callable[[str, str, float, float, float], tuple[int, bytes]]

# Mean and spread of each voice's pitch in Hz, as its own data has them; flite is told absolute values.
FLITE_PITCH = {"slt": (172, 27), "awb": (132, 25), "rms": (98, 24), "kal": (95, 11), "kal16": (95, 11)}
ESPEAK_FILES = {"en-gb": "gmw/en"}  # the one accent whose file does not bear its language's name
ESPEAK_WORDS_PER_MINUTE, ESPEAK_MIDDLE = 175, 50


def flite() -> Speak:
    library = ctypes.CDLL("libflite.so.1", mode=ctypes.RTLD_GLOBAL)
    for name in ("usenglish", "cmulex"):  # the voices look up symbols of these
        ctypes.CDLL(f"libflite_{name}.so.1", mode=ctypes.RTLD_GLOBAL)

    class Wave(ctypes.Structure):
        _fields_ = (
            ("type", ctypes.c_char_p),
            ("rate", ctypes.c_int),
            ("samples", ctypes.c_int),
            ("channels", ctypes.c_int),
            ("data", ctypes.c_void_p),
        )

    class FliteVoice(ctypes.Structure):
        _fields_ = (("name", ctypes.c_char_p), ("features", ctypes.c_void_p))

    library.flite_text_to_wave.restype = ctypes.POINTER(Wave)
    library.flite_text_to_wave.argtypes = (ctypes.c_char_p, ctypes.c_void_p)
    library.flite_feat_set_float.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float)
    library.flite_init()
    voices = {}
    for name in FLITE_PITCH:
        register = getattr(ctypes.CDLL(f"libflite_cmu_us_{name}.so.1"), f"register_cmu_us_{name}")
        register.restype, register.argtypes = ctypes.POINTER(FliteVoice), (ctypes.c_char_p,)
        voices[name] = register(None)

    def speak(text: str, name: str, pitch: float, rate: float, intonation: float) -> tuple[int, bytes]:
        if name not in voices:
            raise ValueError(f"flite has no voice {name!r}: choose one of {', '.join(voices)}")
        mean, spread = FLITE_PITCH[name]
        features = {
            b"duration_stretch": 1 / rate,
            b"int_f0_target_mean": mean * pitch,
            b"int_f0_target_stddev": spread * pitch * intonation,
        }
        for key, value in features.items():  # the keys must outlive the call: flite keeps the pointer, not the letters
            library.flite_feat_set_float(voices[name].contents.features, key, value)
        wave = library.flite_text_to_wave(text.encode(), voices[name]).contents
        return wave.rate, ctypes.string_at(wave.data, 2 * wave.samples)

    return speak


def espeak() -> Speak:
    library = ctypes.CDLL("libespeak-ng.so.1")
    synchronous, utf8 = 2, 1
    speed, pitch_, range_ = 1, 3, 4
    sampling_rate = library.espeak_Initialize(synchronous, 0, None, 0)
    if sampling_rate <= 0:
        raise OSError("libespeak-ng cannot read its data")
    parts: list[bytes] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    def collect(wave: int | None, samples: int, _events: int) -> int:
        if wave and samples:
            parts.append(ctypes.string_at(wave, 2 * samples))
        return 0

    library.espeak_SetSynthCallback(collect)
    library.espeak_Synth.argtypes = (
        *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int),
        *(ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p),
    )

    def speak(text: str, name: str, pitch: float, rate: float, intonation: float) -> tuple[int, bytes]:
        parts.clear()
        accent, plus, variant = name.partition("+")
        if library.espeak_SetVoiceByName(f"{ESPEAK_FILES.get(accent, accent)}{plus}{variant}".encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {name!r}: `espeak-ng --voices=en` lists them")
        # 50 steps of its pitch are an octave of the base; what is heard as pitch is 3/4 base and 1/4 range
        base = max(0.5, 1 + (pitch - 1) / 0.75)
        settings = {
            speed: ESPEAK_WORDS_PER_MINUTE * rate,
            pitch_: min(99, ESPEAK_MIDDLE + 50 * math.log2(base)),
            range_: min(99, ESPEAK_MIDDLE * pitch * intonation),
        }
        for parameter, value in settings.items():
            library.espeak_SetParameter(parameter, round(value), 0)
        data = text.encode() + b"\0"
        if library.espeak_Synth(data, len(data), 0, 1, 0, utf8, None, None) != 0:
            raise ValueError("espeak_Synth refused the text")
        library.espeak_Synchronize()
        return sampling_rate, b"".join(parts)

    speak.keep = collect  # type: ignore[attr-defined]  # ctypes does not hold on to a callback that C remembers
    return speak


ENGINES: dict[str, Callable[[], Speak]] = {"espeak-ng": espeak, "flite": flite}


def answer(speak: Speak, request: dict[str, Any], out: BinaryIO) -> None:
    try:
        rate, data = speak(**request)
    except ValueError as error:
        rate, data = 0, str(error).encode()
    out.write(REPLY.pack(rate, len(data)) + data)
    out.flush()


def serve(engine: str) -> None:
    """Answer requests until standard input ends."""
    # The libraries must not print into the replies
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    speak = ENGINES[engine]()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            answer(speak, json.loads(line), out)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != 0:  # what it wrote may be half a reply: the other side must start afresh
            raise SystemExit(f"{engine} ended with status {status}")


if __name__ == "__main__":
    serve(sys.argv[1])
