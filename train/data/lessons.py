"""Lessons: what the language model learns from, ready to be put together, in Arrow files mapped into memory.

A lesson is a conversation, or a piece of text, as ids, without what its clips are made of: between the two markers of a
clip nothing stands. Features and units lie beside, so that each time a lesson is taken its clips may be either, the
reply spoken or silent, and what was heard told or not.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from most_core.config import TokenTable
from train.data.shards import ShardInfo, check_shard, mapped, read_manifest
from train.files import sha256_of, whole_file

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "task", "source", "licence", "split", "text")),
        ("ids", pa.list_(pa.int32())),
        ("replies", pa.list_(pa.int32())),
        ("clips", pa.list_(pa.int32())),
        ("units", pa.list_(pa.int32())),
        ("features", pa.large_binary()),
    ]
)
ROWS_A_BATCH = 256
FRAMES_PER_SECOND = 25


@dataclass(frozen=True)
class Lesson:
    """One row. `replies` [R, 2]: from where to where in `ids` the assistant speaks. `clips` [C]: how many units each
    clip has, in the order of the markers; `units` are those of all clips, `features` [F, D] float16 those of the
    user's clips, or none where nobody has their sound. `text` is for people."""

    id: str
    task: str
    source: str
    licence: str
    split: str
    text: str
    ids: np.ndarray
    replies: np.ndarray
    clips: np.ndarray
    units: np.ndarray
    features: np.ndarray

    @property
    def tokens(self) -> int:
        """How long it is with all of its clips."""
        return len(self.ids) + int(self.clips.sum())


class Form(NamedTuple):
    """How a lesson is taken this time: the user's clips as units rather than features; replies without sound; the
    words that were heard before the answer."""

    units_in: bool = False
    silent: bool = False
    heard: bool = True


class Sequence(NamedTuple):
    """`targets` says which of the `ids` are to be learned; `features` [F, D] fill the `[Frame]` ids in order."""

    ids: np.ndarray
    targets: np.ndarray
    features: np.ndarray


def write_lessons(path: Path, lessons: Iterable[Lesson]) -> None:
    """Write a shard, whole or not at all."""
    rows: list[Lesson] = []
    with whole_file(path) as file, pa.ipc.new_file(file, SCHEMA) as writer:
        for lesson in lessons:
            rows.append(lesson)
            if len(rows) == ROWS_A_BATCH:
                writer.write_batch(_batch(rows))
                rows = []
        if rows:
            writer.write_batch(_batch(rows))


def describe_lessons(path: Path) -> ShardInfo:
    """A shard's line of the manifest, from the file itself: its seconds are those of all clips."""
    shard = _Shard(path)
    seconds = sum(int(shard.tokens_of(batch)[1].sum()) for batch in shard.batches) / FRAMES_PER_SECOND
    return ShardInfo(path.name, shard.rows, round(seconds, 3), path.stat().st_size, sha256_of(path))


class Lessons:
    """The lessons of a folder of shards, as one sequence; `lengths` [N] are their tokens with all clips.

    Opening compares the shards' sizes with the manifest, and with `verify=True` their contents too.
    """

    def __init__(self, folder: Path, feature_size: int, verify: bool = False) -> None:
        self.feature_size = feature_size
        infos, _ = read_manifest(folder)
        self._shards = []
        for info in infos:
            check_shard(folder / info.name, info, verify)
            self._shards.append(_Shard(folder / info.name))
        self._starts = np.cumsum([0, *(shard.rows for shard in self._shards)]).tolist()
        lengths = [ids + clips for shard in self._shards for ids, clips in map(shard.tokens_of, shard.batches)]
        self.lengths = np.concatenate([np.empty(0, np.int64), *lengths])

    def __len__(self) -> int:
        return self._starts[-1]

    def column(self, name: str) -> list[str]:
        """Any of the columns of text: id, task, source, licence, split, text."""
        return [value for shard in self._shards for batch in shard.batches for value in batch.column(name).to_pylist()]

    def __getitem__(self, index: int) -> Lesson:
        if not 0 <= index < len(self):
            raise IndexError(f"lesson {index} is outside 0..{len(self) - 1}")
        shard = bisect.bisect_right(self._starts, index) - 1
        return self._shards[shard].lesson(index - self._starts[shard], self.feature_size)


class _Shard:
    """A mapped Arrow file."""

    def __init__(self, path: Path) -> None:
        self.batches = mapped(path, SCHEMA, "lessons")
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self.batches)]).tolist()
        self.rows = self._starts[-1]

    def tokens_of(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """(ids, units) of each row of a batch, counted."""
        return tuple(batch.column(name).value_lengths().to_numpy().astype(np.int64) for name in ("ids", "units"))

    def lesson(self, row: int, feature_size: int) -> Lesson:
        place = bisect.bisect_right(self._starts, row) - 1
        batch, row = self.batches[place], row - self._starts[place]
        cells = {name: batch.column(name)[row] for name in SCHEMA.names}
        texts = {name: cells[name].as_py() for name in ("id", "task", "source", "licence", "split", "text")}
        numbers = {name: cells[name].values.to_numpy() for name in ("ids", "replies", "clips", "units")}
        numbers["replies"] = numbers["replies"].reshape(-1, 2)
        features = np.frombuffer(cells["features"].as_buffer(), np.float16).reshape(-1, feature_size)
        return Lesson(**texts, **numbers, features=features)


def _batch(lessons: list[Lesson]) -> pa.RecordBatch:
    columns = {name: [getattr(lesson, name) for lesson in lessons] for name in SCHEMA.names}
    columns["replies"] = [lesson.replies.reshape(-1) for lesson in lessons]
    columns["features"] = [lesson.features.astype("<f2").tobytes() for lesson in lessons]
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


def put_together(lesson: Lesson, form: Form, table: TokenTable) -> Sequence:
    """The ids, with what clips are made of, that the model is to read, and which of them it is to say."""
    ids, said = lesson.ids, np.zeros(len(lesson.ids), bool)
    for start, stop in lesson.replies:
        said[start:stop] = True
    kept = np.ones(len(ids), bool)
    if not form.heard:
        for start, stop in lesson.replies:
            for end in np.flatnonzero(ids[start:stop] == table.heard_end):
                kept[start : start + end + 1] = False
    words = int((said & kept & (ids < table.first_unit)).sum()) - len(lesson.replies)  # but what ends each reply
    silent = form.silent and words > 0  # a reply of units alone would be nothing
    as_units = form.units_in or not len(lesson.features)
    pieces: list[tuple[np.ndarray, np.ndarray]] = []
    done, first_unit = 0, 0
    for mark, count in zip(np.flatnonzero((ids == table.wave_start) | (ids == table.audio_start)), lesson.clips):
        units, first_unit = lesson.units[first_unit : first_unit + count], first_unit + count
        spoken = ids[mark] == table.audio_start
        if spoken and silent:
            kept[mark : mark + 2] = False
            continue
        ids_of_clip = table.first_unit + units if spoken or as_units else np.full(count, table.frame)
        if not spoken and as_units:
            ids = ids.copy() if ids is lesson.ids else ids
            ids[mark : mark + 2] = table.audio_start, table.audio_end
        here = slice(done, mark + 1)
        pieces += [(ids[here][kept[here]], said[here][kept[here]]), (ids_of_clip, np.full(count, said[mark]))]
        done = mark + 1
    pieces.append((ids[done:][kept[done:]], said[done:][kept[done:]]))
    features = lesson.features[:0] if as_units else lesson.features
    return Sequence(*(np.concatenate(parts) for parts in zip(*pieces)), features)
