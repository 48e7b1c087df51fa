"""Speech on disk: Arrow files that are mapped into memory and read in any order, and a manifest that lists them.

A row is an utterance; its sound is 16-bit PCM at 16 kHz. A shard appears under its name only when it is whole, and the
manifest is replaced in one step, so a folder can be read while it is still being filled.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from train.data.utterance import Utterance
from train.files import sha256_of, whole_file, write_whole

SAMPLE_RATE = 16_000
FULL_SCALE = 32_768
MANIFEST = "manifest.json"
FORMAT = 1
ROWS_A_BATCH = 256  # what a writer holds in memory at a time: about 25 MB
TEXT_COLUMNS = ("id", "speaker", "source", "licence", "split", "task", "text")
SCHEMA = pa.schema(
    [*((name, pa.string()) for name in TEXT_COLUMNS), ("seconds", pa.float32()), ("audio", pa.large_binary())]
)


@dataclass(frozen=True)
class ShardInfo:
    """What the manifest says of a shard; `notes` are its maker's, such as how many voices failed."""

    name: str
    rows: int
    seconds: float
    bytes: int
    sha256: str
    notes: dict[str, Any] = field(default_factory=dict)


def to_pcm(wave: np.ndarray) -> np.ndarray:
    """float32 in [-1, 1] -> little-endian int16."""
    return np.clip(np.rint(wave * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype("<i2")


def write_shard(path: Path, utterances: Iterable[Utterance]) -> None:
    """Write a shard; `path` exists only once everything is on the disk. Nothing is left behind by an error."""
    rest = iter(utterances)
    with whole_file(path) as file, pa.ipc.new_file(file, SCHEMA) as writer:
        while batch := list(islice(rest, ROWS_A_BATCH)):
            writer.write_batch(_batch(batch))


def describe_shard(path: Path) -> ShardInfo:
    """A shard's line of the manifest, from the file itself."""
    shard = Shard(path)
    seconds = round(float(shard.column("seconds").astype(np.float64).sum()), 3)
    return ShardInfo(path.name, shard.rows, seconds, path.stat().st_size, sha256_of(path))


def write_manifest(folder: Path, shards: Iterable[ShardInfo], generator: Mapping[str, Any]) -> None:
    """Replace the folder's manifest. `generator` says how its shards were made: settings, seed, version."""
    ordered = sorted(shards, key=lambda shard: shard.name)
    content = {"format": FORMAT, "generator": dict(generator), "shards": [asdict(shard) for shard in ordered]}
    write_whole(folder / MANIFEST, json.dumps(content, indent=1).encode())


def read_manifest(folder: Path) -> tuple[list[ShardInfo], dict[str, Any]]:
    """The shards of a folder, and how they were made."""
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {MANIFEST}: make speech with `python -m train synthesize`")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(
                f"{path} has format {content['format']}, this version reads {FORMAT}: make the speech anew"
            )
        return [ShardInfo(**shard) for shard in content["shards"]], content["generator"]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and run the command that made it again") from error


class ShardedSpeech:
    """The utterances of one or several folders, as one sequence. Sound stays on disk until it is touched.

    Opening compares the shards' sizes with the manifest, and with `verify=True` their contents too.
    """

    def __init__(self, *folders: Path | str, verify: bool = False) -> None:
        self._shards: list[Shard] = []
        for folder in map(Path, folders):
            for info in read_manifest(folder)[0]:
                check_shard(folder / info.name, info, verify)
                self._shards.append(Shard(folder / info.name))
        self._starts = np.cumsum([0, *(shard.rows for shard in self._shards)]).tolist()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Utterance:
        shard, row = self._find(index)
        fields = {name: shard.cell(name, row) for name in TEXT_COLUMNS}
        return Utterance(wave=self.pcm(index).astype(np.float32) / FULL_SCALE, **fields)

    def __iter__(self) -> Iterator[Utterance]:
        return (self[index] for index in range(len(self)))

    def pcm(self, index: int) -> np.ndarray:
        """int16 samples of one utterance, straight from the file: read only, nothing copied."""
        shard, row = self._find(index)
        return shard.pcm(row)

    @cached_property
    def seconds(self) -> np.ndarray:
        """How long each utterance lasts, float32."""
        return np.concatenate([np.empty(0, np.float32), *(shard.column("seconds") for shard in self._shards)])

    @cached_property
    def texts(self) -> list[str | None]:
        return self.column("text")

    @cached_property
    def speakers(self) -> list[str]:
        return self.column("speaker")

    def column(self, name: str) -> list[str | None]:
        """Any of the text columns: id, speaker, source, licence, split, task, text."""
        return [value for shard in self._shards for value in shard.column(name)]

    def _find(self, index: int) -> tuple[Shard, int]:
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"utterance {index} is outside 0..{len(self) - 1}")
        shard = bisect.bisect_right(self._starts, position) - 1
        return self._shards[shard], position - self._starts[shard]


class Shard:
    """A mapped Arrow file."""

    def __init__(self, path: Path) -> None:
        self._batches = mapped(path, SCHEMA, "a shard")
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)]).tolist()
        self.rows = self._starts[-1]
        self._sounds = [_sounds(batch.column("audio")) for batch in self._batches]

    def cell(self, name: str, row: int) -> Any:
        batch, row = self._find(row)
        return self._batches[batch].column(name)[row].as_py()

    def pcm(self, row: int) -> np.ndarray:
        batch, row = self._find(row)
        bounds, samples = self._sounds[batch]
        return samples[bounds[row] // 2 : bounds[row + 1] // 2]

    def column(self, name: str) -> Any:
        """A float32 array of seconds, a list of anything else."""
        whole = pa.chunked_array([batch.column(name) for batch in self._batches], SCHEMA.field(name).type)
        return whole.to_numpy() if name == "seconds" else whole.to_pylist()

    def _find(self, row: int) -> tuple[int, int]:
        batch = bisect.bisect_right(self._starts, row) - 1
        return batch, row - self._starts[batch]


def mapped(path: Path, schema: pa.Schema, kind: str) -> list[pa.RecordBatch]:
    """The batches of an Arrow file, mapped into memory; ValueError if it is no whole one, or not `kind`."""
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            found = reader.schema
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no whole shard ({error}): delete it and make it again") from error
    if found != schema:
        raise ValueError(f"{path} has columns {', '.join(found.names)}, not those of {kind}: make it again")
    return batches


def _sounds(audio: pa.LargeBinaryArray) -> tuple[np.ndarray, np.ndarray]:
    """Where each row's bytes begin, and all samples, as views of the file: pyarrow's own cells are copies."""
    _, bounds, samples = audio.buffers()
    views = np.frombuffer(bounds, "<i8"), np.frombuffer(samples, "<i2")
    for view in views:
        view.flags.writeable = False  # the pages are, too: writing to them would end the process
    return views


def _batch(utterances: list[Utterance]) -> pa.RecordBatch:
    columns: dict[str, list[Any]] = {name: [getattr(item, name) for item in utterances] for name in TEXT_COLUMNS}
    columns["seconds"] = [len(item.wave) / SAMPLE_RATE for item in utterances]
    columns["audio"] = [to_pcm(item.wave).tobytes() for item in utterances]
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


def check_shard(path: Path, info: ShardInfo, verify: bool) -> None:
    """Raise a one-line error for a shard that is not there, or not as the manifest says; `verify` reads all of it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, though the manifest lists it: run the command that made it again")
    if (size := path.stat().st_size) != info.bytes:
        raise ValueError(
            f"{path} has {size} bytes, the manifest says {info.bytes}: delete it and run the command that made it again"
        )
    if verify and sha256_of(path) != info.sha256:
        raise ValueError(f"{path} is not what was written (SHA-256 differs): delete it and make it again")
