"""Speech corpora as they are published, on disk or streamed from a hub: `read(kind, location)` yields Utterances.

Every reader lists clips (who said what, and where the sound lies); decoding is done here, for all of them alike.
Transcripts are kept as the corpus gives them: `usable_for_ctc` tells which of them can be spelled in letters.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import soundfile

from most_core.speech import check_waveform
from train.data.corpora import CORPORA, HUMAN_TEST_VOICES, Clip, role_of, rows_of
from train.data.utterance import Utterance, spoken_letters

__all__ = ["HUMAN_TEST_VOICES", "READERS", "OrderClip", "TextItem", "read", "read_texts", "usable_for_ctc"]

HUB = "hub:"
MOST_DAMAGED = 0.01
FIRST_LOOK = 1000  # damaged clips are weighed against at least so many until the corpus ends

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OrderClip(Utterance):
    """A coffee order of which only the slots are written down: `{"size": "small", "coffeeDrink": "latte"}`."""

    slots: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TextItem:
    """A piece of written text, for training that needs no sound."""

    id: str
    text: str
    source: str
    licence: str
    split: str = "train"


def read(kind: str, location: str | Path, split: str = "train") -> Iterator[Utterance]:
    """Utterances of one part of a corpus, in an order that never changes.

    `location` is a folder, or `hub:owner/name?config=clean&revision=...` to stream with `datasets`. `split` is the
    part's own name (`train-clean-100`, `validated`, `dev`); a LibriSpeech split takes every part that begins so. A clip
    that cannot be decoded is skipped with a warning; more than 1 % of them is a ValueError.
    """
    if kind not in CORPORA:
        raise ValueError(f"{kind!r} is no kind of corpus: choose one of {', '.join(sorted(CORPORA))}")
    return READERS[kind](location, split)


def usable_for_ctc(text: str | None) -> bool:
    """Whether the text spells something in letters alone, so that a CTC head can be taught it."""
    try:
        return bool(text and spoken_letters(text))
    except ValueError:
        return False


def read_texts(location: str | Path, split: str = "train", source: str = "", licence: str = "") -> Iterator[TextItem]:
    """Written text from Parquet or JSON lines (also gzipped) with a column `content` or `text`: a file or a folder.

    `source` and `licence` are for the model card; without them RefinedWeb's are meant. `location` may be a hub's too.
    """
    source = source or "RefinedWeb (Penedo et al. 2023)"
    licence = licence or "ODC-By 1.0"
    place = Path(location)
    if str(location).startswith(HUB):
        rows = ((f"{split}-{i}", row) for i, row in enumerate(_streamed(str(location), split)))
    else:
        files = sorted(place.rglob("*")) if place.is_dir() else [place]
        files = [file for file in files if file.name.endswith((".parquet", ".jsonl", ".jsonl.gz"))]
        if not files:
            raise FileNotFoundError(f"{location} holds no .parquet, .jsonl or .jsonl.gz file: give a folder of text")
        rows = ((f"{file.name}-{i}", row) for file in files for i, row in enumerate(rows_of(file)))
    for name, row in rows:
        text = row.get("content", row.get("text"))
        if text is None:
            raise ValueError(f"{location}: item {name} has the columns {sorted(row)}, but neither `content` nor `text`")
        yield TextItem(name, text, source, licence, role_of(split))


def _read(kind: str, location: str | Path, split: str = "train") -> Iterator[Utterance]:
    corpus = CORPORA[kind]
    if corpus.parts and split not in corpus.parts:
        raise ValueError(f"{kind} has no part {split!r}, only {' and '.join(corpus.parts)}")
    if str(location).startswith(HUB):
        if not corpus.columns:
            raise ValueError(f"{kind} is read from a folder only, not from {location}")
        return _utterances(kind, _hub_clips(kind, _streamed(str(location), split)), split)
    folder = Path(location)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: give the one that holds {corpus.source}")
    return _utterances(kind, corpus.clips(folder, split), split)


Reader = Callable[..., Iterator[Utterance]]
READERS: dict[str, Reader] = {kind: partial(_read, kind) for kind in CORPORA}


def _utterances(kind: str, clips: Iterable[Clip], split: str) -> Iterator[Utterance]:
    corpus = CORPORA[kind]
    seen = damaged = 0
    for clip in clips:
        seen += 1
        try:
            wave = _decoded(clip)
        except (soundfile.SoundFileError, ValueError, OSError) as error:
            damaged += 1
            log.warning("skipped %s: %s", clip.id, " ".join(str(error).split()))
            if damaged > MOST_DAMAGED * max(seen, FIRST_LOOK):
                break
            continue
        item = (clip.id, clip.speaker, clip.text, wave, corpus.source, corpus.licence, role_of(split))
        yield Utterance(*item) if clip.slots is None else OrderClip(*item, slots=clip.slots)
    if damaged > MOST_DAMAGED * seen:
        raise ValueError(f"{damaged} of {seen} clips of {corpus.source} are damaged or missing: fetch the corpus again")


def _decoded(clip: Clip) -> np.ndarray:
    with soundfile.SoundFile(io.BytesIO(clip.sound) if isinstance(clip.sound, bytes) else clip.sound) as file:
        frames = -1
        if clip.seconds:
            start, duration = clip.seconds
            file.seek(round(start * file.samplerate))
            frames = round(duration * file.samplerate)
        samples = file.read(frames, dtype="float32", always_2d=True)
        return check_waveform(samples.mean(1), file.samplerate)


def _streamed(location: str, split: str) -> Iterable[dict]:
    """Rows of `hub:owner/name?config=...&revision=...&data_dir=...`, with sound left encoded."""
    try:
        import datasets
    except ImportError:
        raise ModuleNotFoundError(f"{location} is streamed with `datasets`: pip install datasets") from None
    name, _, query = location.removeprefix(HUB).partition("?")
    options = dict(parse_qsl(query))
    rows = datasets.load_dataset(name, options.pop("config", None), split=split, streaming=True, **options)
    if "audio" in (rows.column_names or ()):
        rows = rows.cast_column("audio", datasets.Audio(decode=False))
    return rows


def _hub_clips(kind: str, rows: Iterable[Mapping]) -> Iterator[Clip]:
    columns = CORPORA[kind].columns
    for number, row in enumerate(rows):
        lacking = [column for column in (*columns.values(), "audio") if column not in row]
        if lacking:
            raise ValueError(f"item {number} has the columns {sorted(row)}, but {kind} needs {', '.join(lacking)}")
        name, speaker = Path(str(row[columns["id"]])).stem, str(row[columns["speaker"]])[:16]
        sound = row["audio"]["bytes"] or Path(row["audio"]["path"])
        yield Clip(name, f"{kind}-{speaker}", row[columns["text"]], sound)
