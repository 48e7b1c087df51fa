"""Files of checkpoints: reading what others wrote without running their code, writing whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import logging as transformers_logging

SAFETENSORS = ".safetensors"
Shape = tuple[int, ...]
WORTH_A_BAR = 1_000_000_000  # bytes of weights: what takes seconds to load shows its progress


@contextmanager
def no_needless_bars(folder: Path) -> Iterator[None]:
    """transformers draws a progress bar for every load; not in here, unless the folder's weights are large."""
    large = sum(path.stat().st_size for path in folder.glob("*.safetensors")) >= WORTH_A_BAR
    if large or not transformers_logging.is_progress_bar_enabled():
        yield
        return
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or a one-line error that names the file."""
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected an object with settings")
    return values


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """All tensors of a safetensors file, and its metadata."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the checkpoint folder is not complete")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not complete ({error}): fetch it again") from None


def load_weights(path: Path, *wrappers: str) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors or PyTorch file by name, mapped into memory rather than read.

    `wrappers` are keys under which some checkpoints keep their state dict ("model", "generator", ...).
    """
    content = load_content(path)
    for key in wrappers:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a dictionary of named tensors")
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{path}: {name} is a {type(value).__name__}, expected only tensors: save the state dict")
    return content


def load_content(path: Path) -> Any:
    """Whatever a safetensors or PyTorch file holds. Pickled code is never run."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give an existing file")
    try:
        if path.suffix == SAFETENSORS:
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except (SafetensorError, EOFError, pickle.UnpicklingError, RuntimeError) as error:
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))  # the class that weights_only refused to create
        if foreign is None:
            raise ValueError(f"{path} is damaged or not complete: fetch it again") from error
        raise ValueError(
            f"{path} holds Python objects ({foreign[1]}) that may run code when opened: if you trust it, re-save its "
            "state dict alone, torch.save(torch.load(path, weights_only=False)['model'], 'weights.pt'), and give that"
        ) from None


def weight_files(src: Path) -> list[Path]:
    """The weight files of a model folder in transformers' naming, or `src` itself if it is a file."""
    if src.is_file():
        return [src]
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = src / f"{name}.index.json"
        if index.is_file():
            shards = [src / shard for shard in sorted(set(read_json(index).get("weight_map", {}).values()))]
            for shard in shards:
                if not shard.is_file():
                    raise FileNotFoundError(f"{shard} is missing but {index.name} names it: fetch it again")
            return shards
        if (src / name).is_file():
            return [src / name]
    raise FileNotFoundError(f"{src} holds no weights: expected model.safetensors, or its index and shards")


def load_exactly(model: nn.Module, state: dict[str, torch.Tensor], where: str) -> None:
    """`load_state_dict` with an error that names the first tensor that does not fit."""
    own = model.state_dict()
    check_shapes(
        {name: tuple(tensor.shape) for name, tensor in own.items()},
        {name: tuple(tensor.shape) for name, tensor in state.items()},
        where,
    )
    model.load_state_dict(state)


def check_shapes(expected: Mapping[str, Shape], found: Mapping[str, Shape], where: str) -> None:
    """Raise for the first tensor that is missing, unexpected or of another shape."""
    for name in expected:
        if name not in found:
            raise ValueError(f"{where}: tensor {name} is missing: the checkpoint is not complete")
    for name, shape in found.items():
        if name not in expected:
            raise ValueError(f"{where}: tensor {name} is unexpected: the configuration describes another model")
        if shape != expected[name]:
            raise ValueError(
                f"{where}: tensor {name} has shape {list(shape)}, the configuration expects {list(expected[name])}"
            )


@contextmanager
def written_whole(dst: Path) -> Iterator[Path]:
    """A temporary sibling of `dst` to write a file or folder to; it becomes `dst` only if nothing goes wrong."""
    dst = dst.resolve()  # "." has no name and no siblings
    if dst.exists() and not (dst.is_dir() and not any(dst.iterdir())):
        raise ValueError(f"{dst} exists already: remove it or choose another destination")
    new_parents = [folder for folder in dst.parents if not folder.exists()]  # innermost first
    partial = dst.with_name(f".{dst.name}.{os.getpid()}.partial")
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if dst.is_dir() and dst.samefile("."):  # replaced, it would be gone from under whoever works in it
            for item in list(partial.iterdir()):
                os.replace(item, dst / item.name)
        else:
            os.replace(partial, dst)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        elif partial.exists():
            partial.unlink()
        for folder in new_parents:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


class ShardWriter:
    """Writes a model tensor by tensor, at most `max_bytes` in memory, under transformers' file names."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []
        self._total_bytes = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        if self._pending and self._pending_bytes + tensor.nbytes > self.max_bytes:
            self._flush()
        self._pending[name] = tensor.contiguous()
        self._pending_bytes += tensor.nbytes

    def close(self) -> None:
        """Write what is left, then give the shards their final names and an index if there are several."""
        self._flush()
        count = len(self._shards)
        if count == 1:
            self._shard_path(0).rename(self.folder / "model.safetensors")
            return
        weight_map = {}
        for number, names in enumerate(self._shards):
            final = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            self._shard_path(number).rename(self.folder / final)
            weight_map |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")

    def _flush(self) -> None:
        save_file(self._pending, self._shard_path(len(self._shards)), {"format": "pt"})
        self._shards.append(list(self._pending))
        self._total_bytes += self._pending_bytes
        self._pending, self._pending_bytes = {}, 0

    def _shard_path(self, number: int) -> Path:
        return self.folder / f"shard-{number}.safetensors"
