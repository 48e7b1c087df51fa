"""Checkpoints that survive SIGKILL: written beside, fsynced, renamed; found again only when complete.

A checkpoint is a folder `step-00001200` with `state.pt` and `meta.json`. Its number counts finished steps, which is
also the index of the step that comes next.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from train.files import flush, flush_folder, sha256_of

STATE, META = "state.pt", "meta.json"
_TEMPORARY = ".step-"  # how names of folders being written begin
_PLAIN = (bool, int, float, str, bytes, type(None), torch.Size, torch.dtype, torch.device)
log = logging.getLogger(__name__)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int = 2, *, config_hash: str = "") -> Path:
    """Write `folder/step-XXXXXXXX` as a whole or not at all; of older ones keep the last `keep - 1`.

    `state` is made of tensors, state_dicts, numbers and text. It comes back from `load_checkpoint` with "step" added.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; at least the checkpoint just saved must be kept")
    state = {**state, "step": step}
    _require_loadable(state, "state")
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(stale)
    target = folder / f"step-{step:08d}"
    temporary = folder / f".{target.name}.saving"
    temporary.mkdir()
    with open(temporary / STATE, "wb") as file:
        torch.save(state, file)
        flush(file)
    meta = {
        "step": step,
        "config_hash": config_hash,
        "time": time.time(),
        "complete": {"bytes": (temporary / STATE).stat().st_size, "sha256": sha256_of(temporary / STATE)},
    }
    with open(temporary / META, "w", encoding="utf-8") as file:
        json.dump(meta, file, indent=2)
        flush(file)
    flush_folder(temporary)
    if target.exists():  # a folder cannot be renamed over another: the old one steps aside, still to be found
        aside = folder / f"{target.name}.replaced"
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    temporary.rename(target)
    flush_folder(folder)
    older = [path for path in _checkpoints(folder) if _age(path) < _age(target)]
    others = [path for path in older if path.stem != target.stem]
    kept = [path for path in others if _damage(path, thorough=False) is None][: keep - 1]
    for path in older:
        if path not in kept:
            shutil.rmtree(path)
    return target


def latest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with most steps, or None. Damaged ones are passed over with a warning."""
    for path in _checkpoints(folder):
        damage = _damage(path, thorough=True)
        if damage is None:
            return path
        log.warning("%s is skipped: %s", path, damage)
    return None


def load_checkpoint(path: Path, config_hash: str | None = None) -> dict[str, Any]:
    """The state that was saved, on the CPU. ValueError if it was saved under other settings than `config_hash`'s."""
    saved = json.loads((path / META).read_text(encoding="utf-8"))["config_hash"]
    if config_hash is not None and saved != config_hash:
        raise ValueError(
            f"{path} was trained with other settings (config {saved}, now {config_hash}): "
            "begin anew with --fresh, or in another folder with --out"
        )
    return torch.load(path / STATE, map_location="cpu", weights_only=True)


def resume(folder: Path, config_hash: str, *, fresh: bool = False) -> dict[str, Any] | None:
    """Where a run in `folder` goes on: the state of its latest checkpoint, or None to begin at step 0.

    `fresh` removes the checkpoints there. ValueError if they were made under other settings.
    """
    if fresh:
        for path in [*_checkpoints(folder), *folder.glob(f"{_TEMPORARY}*")]:
            shutil.rmtree(path)
    latest = latest_checkpoint(folder)
    return None if latest is None else load_checkpoint(latest, config_hash)


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, complete or not, most steps first."""
    found = folder.glob("step-*") if folder.is_dir() else ()
    return sorted(
        (path for path in found if re.fullmatch(r"step-\d{8}(\.replaced)?", path.name)), key=_age, reverse=True
    )


def _age(path: Path) -> tuple[str, bool]:
    return path.stem, not path.suffix


def _damage(path: Path, *, thorough: bool) -> str | None:
    """Why a checkpoint cannot be used, or None. Only `thorough` reads all of it."""
    try:
        complete = json.loads((path / META).read_text(encoding="utf-8"))["complete"]
        size = (path / STATE).stat().st_size
        if size != complete["bytes"]:
            return f"{STATE} has {size} of {complete['bytes']} bytes"
        if thorough and sha256_of(path / STATE) != complete["sha256"]:
            return f"{STATE} is not what was saved (checksum differs)"
    except OSError as error:
        return f"{Path(error.filename).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError):
        return f"{META} is not complete"
    return None


def _require_loadable(value: Any, name: str) -> None:
    """What `torch.load(weights_only=True)` would refuse must fail now, not at the resume."""
    if isinstance(value, dict) and type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _require_loadable(key, f"a key of {name}")
            _require_loadable(item, f"{name}[{key!r}]")
    elif type(value) in (list, tuple):
        for i, item in enumerate(value):
            _require_loadable(item, f"{name}[{i}]")
    elif not isinstance(value, torch.Tensor) and type(value) not in _PLAIN:
        raise ValueError(f"{name} is a {type(value).__name__}: checkpoints hold tensors, plain numbers and text only")
