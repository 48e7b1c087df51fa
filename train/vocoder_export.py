"""A trained vocoder on disk: a checkpoint folder with ears and mouth, and whose voice it speaks with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from most_core.checkpoint_files import read_json
from most_core.vocoder import UnitHifiGan, write_vocoder
from train.data.shards import read_manifest
from train.data.voices import Voice

VOICE = "voice.json"


def export(average: UnitHifiGan, out: Path, ears: Path, speech: Sequence[Path], shift: int) -> None:
    """Write `out/vocoder` in half precision and, beside it, copies of the encoder in the folder `ears` and its units.

    `speech` are the shards it learned from, `shift` how far into a recording the sound of its first unit begins.
    """
    half = UnitHifiGan(average.config)
    half.load_state_dict(average.state_dict())
    write_vocoder(half.half(), out / "vocoder")
    manifests = [read_manifest(folder)[1] for folder in speech]
    voices = [manifest.get("voices") for manifest in manifests]
    voice = voices[0] if isinstance(voices[0], dict) and all(other == voices[0] for other in voices) else None
    described = {"voice": voice, "shift": shift}
    (out / "vocoder" / VOICE).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    if out.resolve() != ears.resolve():
        shutil.copytree(ears / "speech_encoder", out / "speech_encoder", dirs_exist_ok=True)
        for path in ears.glob("unit*.safetensors"):  # centroids, and the reader that judges them
            shutil.copyfile(path, out / path.name)


def voice_of(folder: Path) -> tuple[Voice, int]:
    """Whose voice the vocoder in a checkpoint folder has, and the `shift` between a recording and its units' sound."""
    path = folder / "vocoder" / VOICE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: it is written by `python -m train vocoder`")
    described: dict[str, Any] = read_json(path)
    if not described.get("voice"):
        raise ValueError(f"{path} names no synthetic voice: only a vocoder of such a voice can be compared with it")
    return Voice(**described["voice"]), int(described["shift"])
