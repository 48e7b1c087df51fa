"""A conversation that was saved: a zip of session.json, sounds (WAV) and routing traces (Parquet); docs/session.md.

It may come from anybody, so nothing in it is believed before it is looked at, and nothing is unpacked to disk.
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
import wave
import zipfile
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from most_core.trace import RoutingTrace
from most_core.trace_files import NO_EXPERT, SCHEMAS

FORMAT, VERSION = "most-session", 1
LARGEST_MB = 100  # of the zip, and of what is in it
ABOUT = "session.json"
LARGEST_ABOUT = 10_000_000  # bytes
MOST_TURNS, MOST_DEPTH, LONGEST = 10_000, 32, 100_000  # turns; nesting of JSON; characters of a text
MOST_FILES = 5 * MOST_TURNS + 1
MOST_ROWS, MOST_TEXT = 5_000_000, 50_000_000  # of a table; characters in it
MOST_CELLS = 10_000_000  # expert slots of all traces together: what they become in memory
LARGEST_CONFIG, MOST_LAYERS = 300_000, 1000  # bytes; layers, and items of a list, of a model that a trace tells of
LARGEST_NUMBER = 2**63
RATES = {"user": 16_000, "reply": 24_000}
TABLES = ("tokens", "routing", "layers")
NAME = re.compile(r"turn-([0-9]{2,5})(-(user|reply)\.wav|\.(tokens|routing|layers)\.parquet)")
ENDING = b"PK\x05\x06"  # of a zip: 22 bytes and perhaps a comment
FAR_ENDING = b"PK\x06\x07"  # before it, in zips too large for us
BROKEN = (pa.ArrowException, OSError, ArithmeticError, LookupError, TypeError, AttributeError, RuntimeError)
NUMBERS = {field.type for schema in SCHEMAS.values() for field in schema} - {pa.string()}
LISTED = 46 + 64  # bytes in a zip's list of files, for one of ours with more than any writer adds


@dataclass(frozen=True)
class Session:
    """`about` is session.json, `sounds` the WAV files by their names, `traces` those of the turns that have one, and
    `tables` the same as they are in the zip."""

    about: dict[str, Any]
    sounds: dict[str, bytes]
    traces: dict[int, RoutingTrace]
    tables: dict[int, dict[str, bytes]]


def read(data: bytes) -> Session:
    """What was saved; ValueError with one line if it is not all there, or not what it should be."""
    files = _unpacked(data)
    if ABOUT not in files:
        raise ValueError(f"the zip has no {ABOUT}: give a session that the page saved")
    about = _parsed(files.pop(ABOUT))
    turns = _turns(about)
    named = _named(turns)
    for name in named:
        if name not in files:
            raise ValueError(f"{name} is missing in the zip: save the session again")
    for name in files:
        if name not in named:
            raise ValueError(f"the zip has {name}, but {ABOUT} does not name it: save the session again")
    sounds = {name: sound for name, sound in files.items() if name.endswith(".wav")}
    for name, sound in sounds.items():
        _check_sound(name, sound)
    stems = {turn.turn: f"turn-{turn.turn:02}" for turn in turns if turn.tables is not None}
    tables = {turn: {name: files[f"{stem}.{name}.parquet"] for name in TABLES} for turn, stem in stems.items()}
    return Session(about, sounds, _traces(tables, stems), tables)


# The zip


def _unpacked(data: bytes) -> dict[str, bytes]:
    """Its files by name: all of them names that sessions have, and no more than the limit in all."""
    _check_list(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            _check_entries(entries)
            return {entry.filename: _content(archive, entry) for entry in entries}
    except ValueError:
        raise
    except NotImplementedError as error:
        raise ValueError(
            f"the zip is packed in a way that is not read here ({error}): save the session again"
        ) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, struct.error, OverflowError) as error:
        raise ValueError(f"the zip is damaged ({_line(error)}): save the session again") from None


def _check_list(data: bytes) -> None:
    """The list of files is not long. Only then may zipfile read it, which keeps an object of each."""
    at = len(data) - 22
    if at < 0 or data[at : at + 4] != ENDING:
        at = data.rfind(ENDING, max(0, len(data) - 22 - 65_535))
    if at < 0 or len(data) < at + 22:
        raise ValueError("this is no zip, or only the beginning of one: give a session that the page saved")
    count, size = struct.unpack_from("<HI", data, at + 10)
    if data[max(at - 20, 0) : at].startswith(FAR_ENDING) or count > MOST_FILES or size > LISTED * MOST_FILES:
        raise ValueError(f"the zip has more than {MOST_FILES} files: give a session that the page saved")


def _check_entries(entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > MOST_FILES:
        raise ValueError(f"the zip has more than {MOST_FILES} files: give a session that the page saved")
    seen: set[str] = set()
    for entry in entries:
        name = entry.filename
        if name != entry.orig_filename or (name != ABOUT and not NAME.fullmatch(name)):
            raise ValueError(f"the zip has a file {_shown(entry.orig_filename)}, which no session has: take it out")
        if name in seen:
            raise ValueError(f"the zip has {name} twice: save the session again")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name} in the zip is packed in a way that is not read here: save the session again")
        if entry.flag_bits & 1:
            raise ValueError(f"{name} in the zip is encrypted: save the session again")
        seen.add(name)
    total = sum(entry.file_size for entry in entries)
    if total > LARGEST_MB * 1_000_000:
        raise ValueError(f"the zip holds {total / 1e6:.0f} MB, the limit is {LARGEST_MB} MB: save fewer turns")


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Never more than it says, which was added up before."""
    with archive.open(entry) as file:
        content = file.read(entry.file_size)
        if len(content) != entry.file_size or file.read(1):
            raise ValueError(f"{entry.filename} in the zip is not as long as the zip says: save the session again")
    return content


# session.json


class _Part(BaseModel):
    """Other fields are let be, other types are not."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")


Text = Annotated[str, Field(max_length=LONGEST)]
Ms = Annotated[float, Field(ge=0, le=1e12)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Word(_Part):
    text: Text
    start_ms: Ms
    end_ms: Ms
    confidence: Share | None


class _User(_Part):
    text: Text
    words: Annotated[list[_Word], Field(max_length=LONGEST)]
    confidence: Share | None
    wav: Text | None
    file: Text | None


class _Reply(_Part):
    text: Text
    status: Literal["completed", "cancelled", "incomplete", "failed", "lost"]
    sound_ms: Ms
    played_ms: Ms
    skipped_ms: Ms = 0
    wav: Text | None
    confidence: Share | None = None
    cut: bool = False
    why: Text | None = None


class _Stage(_Part):
    name: Text
    ms: Ms


class _Timings(_Part):
    stages: Annotated[list[_Stage], Field(max_length=100)]
    total_ms: Ms


class _Tables(_Part):
    tokens: Text
    routing: Text
    layers: Text


class _Turn(_Part):
    turn: Annotated[int, Field(ge=1, le=99_999)]
    kind: Literal["spoken", "typed", "file"]
    at: Text
    user: _User
    reply: _Reply
    timings: _Timings | None
    tables: _Tables | None
    seed: int | None = None


class _About(_Part):
    created: Text
    model: dict[str, Any]
    versions: dict[str, Any]
    settings: dict[str, Any]
    turns: Annotated[list[_Turn], Field(max_length=MOST_TURNS)]


def _parsed(data: bytes) -> dict[str, Any]:
    if len(data) > LARGEST_ABOUT:
        raise ValueError(f"{ABOUT} is larger than {LARGEST_ABOUT // 1_000_000} MB: save fewer turns")
    try:
        about = json.loads(data, parse_constant=_no_number, parse_float=_float, parse_int=_int)
    except RecursionError:
        raise ValueError(f"{ABOUT} is nested too deeply: save the session again") from None
    except ValueError as error:
        raise ValueError(f"{ABOUT} is no JSON ({_line(error)}): save the session again") from None
    _check_depth(about)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"{ABOUT} does not call itself {FORMAT}: give a session that the page saved")
    version = about.get("version")
    if type(version) is not int or version != VERSION:
        raise ValueError(
            f"the session has version {_shown(version)}, but only {VERSION} is read here: use the release that saved it"
        )
    return about


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(_shown(text))


def _int(text: str) -> int:
    value = int(text) if len(text) <= 20 else LARGEST_NUMBER + 1
    return value if abs(value) <= LARGEST_NUMBER else _no_number(_shown(text))


def _check_depth(value: Any) -> None:
    level: Collection[Any] = [value]
    for _ in range(MOST_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise ValueError(f"{ABOUT} is nested more than {MOST_DEPTH} deep: save the session again")


def _inside(value: Any) -> Collection[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _turns(about: dict[str, Any]) -> list[_Turn]:
    try:
        turns = _About.model_validate(about).turns
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(
            f"{ABOUT}: {_shown(place)} is not right ({_line(first['msg'])}): save the session again"
        ) from None
    numbers = [turn.turn for turn in turns]
    if numbers != sorted(set(numbers)):
        raise ValueError(f"the turns of {ABOUT} do not rise: save the session again")
    return turns


def _named(turns: list[_Turn]) -> set[str]:
    """The files that belong to the turns, each under the one name that it may have."""
    named: set[str] = set()
    for turn in turns:
        stem = f"turn-{turn.turn:02}"
        due = {f"{stem}-user.wav": turn.user.wav, f"{stem}-reply.wav": turn.reply.wav}
        if turn.tables is not None:
            due |= {f"{stem}.{table}.parquet": getattr(turn.tables, table) for table in TABLES}
        for name, given in due.items():
            if given is not None and given != name:
                raise ValueError(f"turn {turn.turn} names {_shown(given)}, where only {name} may be: save it again")
            if given is not None:
                named.add(name)
    return named


# Sounds and traces


def _check_sound(name: str, data: bytes) -> None:
    rate = RATES["user" if name.endswith("-user.wav") else "reply"]
    try:
        with wave.open(io.BytesIO(data)) as sound:
            found = (sound.getnchannels(), sound.getsampwidth(), sound.getframerate())
            whole = len(sound.readframes(sound.getnframes())) == 2 * sound.getnframes()
    except (wave.Error, EOFError, struct.error, RuntimeError, OverflowError, ZeroDivisionError) as error:
        raise ValueError(f"{name} is no WAV that can be read ({_line(error)}): save the session again") from None
    if found != (1, 2, rate):
        told = f"{found[0]} channels of {8 * found[1]} bits at {found[2]} Hz"
        raise ValueError(f"{name} has {told}, not one of 16 bits at {rate} Hz: save the session again")
    if not whole:
        raise ValueError(f"{name} ends before its sound does: save the session again")


def _traces(tables: dict[int, dict[str, bytes]], stems: dict[int, str]) -> dict[int, RoutingTrace]:
    traces, cells = {}, 0
    for turn, parts in tables.items():
        traces[turn] = trace = read_trace(parts, stems[turn], f"turn {turn}")
        cells += _cells(trace)
        if cells > MOST_CELLS:
            raise ValueError(f"the traces hold more than {MOST_CELLS} choices of experts: save fewer turns")
    return traces


def _cells(trace: RoutingTrace) -> int:
    groups = len(trace.layers) * trace.config.n_routed_experts
    return trace.chosen.size + trace.experts.size + 2 * groups


def read_trace(parts: dict[str, bytes], name: str, whose: str) -> RoutingTrace:
    """The trace in three Parquet files, by table; ValueError with one line if it is none. Errors call the files
    `name`, and the trace that of `whose`."""
    try:
        for table in TABLES:
            _check_table(f"{name}.{table}.parquet", parts[table])
        trace = RoutingTrace.from_bytes(parts, name)
        numbers = (trace.chosen_probs, trace.probs, trace.unmasked_probs, trace.removed_mass, trace.entropy)
        if not all(np.isfinite(values).all() for values in numbers):
            raise ValueError(f"the trace of {whose} has a share that cannot be: save the session again")
        if _cells(trace) > MOST_CELLS:
            raise ValueError(f"the trace of {whose} holds more than {MOST_CELLS} choices of experts: save fewer turns")
        return trace
    except BROKEN as error:
        raise ValueError(f"the trace of {whose} is damaged ({_line(error)}): save the session again") from None


def _check_table(name: str, data: bytes) -> None:
    """It would not fill the memory: what is packed into a few bytes may be very much."""
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        about, schema = file.metadata, file.schema_arrow
        groups = [about.row_group(i) for i in range(about.num_row_groups)]
        rows, size = sum(group.num_rows for group in groups), sum(group.total_byte_size for group in groups)
        if max(rows, about.num_rows) > MOST_ROWS or not 0 <= size <= LARGEST_MB * 1_000_000:
            raise ValueError(
                f"{name} holds {max(rows, about.num_rows)} rows, the limit is {MOST_ROWS}: save fewer turns"
            )
        for column in schema:
            if column.type == pa.string():
                _check_text(name, column.name, data)
            elif column.type not in NUMBERS:
                raise ValueError(f"{name} has a column of {column.type}, which no trace has: save the session again")
        _check_config(name, (about.metadata or {}).get(b"config", b"{}"))
    except BROKEN as error:
        raise ValueError(f"{name} is damaged or no Parquet file ({_line(error)}): save the session again") from None


def _check_text(name: str, column: str, data: bytes) -> None:
    """Read as each different text and where it is, which a few bytes cannot make large."""
    texts = pq.ParquetFile(io.BytesIO(data), read_dictionary=[column]).read([column])[column]
    lengths = [pc.take(pc.binary_length(chunk.dictionary), chunk.indices) for chunk in texts.chunks]
    if sum(pc.sum(part).as_py() or 0 for part in lengths) > MOST_TEXT:
        raise ValueError(f"{name} has more than {MOST_TEXT} characters: save fewer turns")


def _check_config(name: str, data: bytes) -> None:
    """Its numbers are those of a model that can be: some of them say how much memory is taken."""
    if len(data) > LARGEST_CONFIG:
        raise ValueError(f"{name} tells of its model in more than {LARGEST_CONFIG} bytes: save the session again")
    config = json.loads(data, parse_constant=_no_number, parse_float=_float, parse_int=_int)
    _check_depth(config)
    if isinstance(config, dict) and any(len(_inside(part)) > MOST_LAYERS for part in config.values()):
        raise ValueError(f"{name} tells of its model in lists of more than {MOST_LAYERS}: save the session again")
    for what, most in (("num_hidden_layers", MOST_LAYERS), ("n_routed_experts", NO_EXPERT)):
        count = config.get(what, 1) if isinstance(config, dict) else None
        if not isinstance(count, int) or not 0 < count <= most:
            told = f"{name} tells of a model with {what} {_shown(count)}, which cannot be"
            raise ValueError(f"{told}: save the session again")


def _line(error: Any) -> str:
    lines = str(error).split()
    told = " ".join(lines) or type(error).__name__
    return told if len(told) <= 200 else told[:197] + "..."


def _shown(value: Any) -> str:
    """A value as an error repeats it."""
    told = repr(value if not isinstance(value, str) else value[:81])
    return told if len(told) <= 80 else told[:77] + "..."
