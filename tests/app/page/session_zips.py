"""Sessions as the page saves them, for tests: zips of what is given."""

import copy
import io
import json
import wave
import zipfile

from most_core import MostConfig
from most_core.trace import RoutingRecorder

USER, REPLY = "turn-01-user.wav", "turn-01-reply.wav"
TABLES = {name: f"turn-01.{name}.parquet" for name in ("tokens", "routing", "layers")}
ABOUT = {
    "format": "most-session",
    "version": 1,
    "created": "2026-11-22T06:00:00Z",
    "model": {"name": "most-nano", "hash": "0123456789abcdef", "experts": {}},
    "versions": {"most": "0.1.0", "trace": "1"},
    "settings": {"seed": None, "temperature": 0.0},
    "turns": [
        {
            "turn": 1,
            "kind": "spoken",
            "at": "2026-11-22T06:00:05Z",
            "user": {
                "text": "hello",
                "words": [{"text": "hello", "start_ms": 0, "end_ms": 400.5, "confidence": 0.9}],
                "confidence": 0.75,
                "wav": USER,
                "file": None,
            },
            "reply": {"text": "Hi.", "status": "completed", "sound_ms": 100, "played_ms": 60, "wav": REPLY},
            "timings": {"stages": [{"name": "encode", "ms": 3.5}], "total_ms": 3.5},
            "tables": TABLES,
        },
        {
            "turn": 2,
            "kind": "typed",
            "at": "2026-11-22T06:01:05Z",
            "user": {"text": "and you?", "words": [], "confidence": None, "wav": None, "file": None},
            "reply": {"text": "", "status": "cancelled", "sound_ms": 0, "played_ms": 0, "wav": None},
            "timings": None,
            "tables": None,
        },
    ],
}


def about():
    """A session.json to change."""
    return copy.deepcopy(ABOUT)


def wav(seconds=0.1, rate=16_000, channels=1, width=2):
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(width)
        sound.setframerate(rate)
        sound.writeframes(bytes(range(256)) * (round(seconds * rate) * channels * width // 256))
    return file.getvalue()


def trace(tokens=7):
    import torch

    config = MostConfig.tiny()
    recorder = RoutingRecorder(config)
    shape = (len(config.moe_layers), tokens, config.n_routed_experts)
    probs = torch.rand(shape, generator=torch.Generator().manual_seed(1)).softmax(-1)
    recorder.record(probs, list(range(tokens)), [i % 2 for i in range(tokens)], "user", 1)
    return recorder.finish(model_hash="0123456789abcdef", dtype="bfloat16", seed=4)


def files():
    """What lies beside the session.json above."""
    tables = {TABLES[name]: data for name, data in trace().to_bytes().items()}
    return {USER: wav(), REPLY: wav(rate=24_000), **tables}


def zipped(session=None, beside=None, method=zipfile.ZIP_STORED):
    """A zip; `session` may be bytes, or None for a good one."""
    session = about() if session is None else session
    body = session if isinstance(session, bytes) else json.dumps(session).encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("session.json", body)
        for name, data in (files() if beside is None else beside).items():
            archive.writestr(name, data)
    return file.getvalue()
