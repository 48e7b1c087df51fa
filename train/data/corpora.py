"""Where published speech corpora keep their clips: one function a layout, and the table of them all.

Nothing is decoded here: a Clip says who speaks, what, and where the sound lies. `train.data.readers` does the rest.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

HUMAN_TEST_VOICES = frozenset({1, 5, 11, 20, 22, 49, 53})  # of the coffee orders: never trained on
BARISTA_VOICES = Path(__file__).parent / "text" / "barista_voices.json"  # estimated voice -> its clips
SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")


@dataclass(frozen=True)
class Clip:
    """A clip not decoded yet: `sound` is a file or an encoded file's bytes, cut to `seconds` (start, duration)."""

    id: str
    speaker: str
    text: str | None
    sound: Path | bytes
    seconds: tuple[float, float] | None = None
    slots: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Corpus:
    """How the clips of one kind of corpus are found, and what its model card entry must say."""

    clips: Callable[[Path, str], Iterable[Clip]]
    source: str
    licence: str
    columns: Mapping[str, str] = field(default_factory=dict)  # of its hub version: id, speaker, text
    parts: tuple[str, ...] = ()  # the only splits there are; empty: any that the folder holds


def role_of(split: str) -> str:
    """`train`, `dev` or `test`, from a corpus' own name of a part."""
    return "test" if split.startswith("test") else "dev" if split.startswith(("dev", "validation")) else "train"


def _librispeech(folder: Path, split: str) -> Iterator[Clip]:
    parts = sorted(part for part in folder.iterdir() if part.is_dir() and part.name.startswith(split))
    if not parts:
        raise FileNotFoundError(f"{folder} holds no part that begins with {split!r}: give the folder LibriSpeech")
    for part in parts:
        for listing in sorted(part.glob("*/*/*.trans.txt")):
            for line in listing.read_text(encoding="utf-8").splitlines():
                name, _, text = line.partition(" ")
                yield Clip(name, f"librispeech-{name.split('-')[0]}", text, listing.parent / f"{name}.flac")


def _libriheavy(folder: Path, split: str) -> Iterator[Clip]:
    """`split` is small, medium, large, dev, test_clean or test_other; `train` means small.

    The manifests lie in `folder`, the sound of Libri-Light in it or in its `download/librilight`.
    """
    subset = "small" if split == "train" else split
    names = [f"libriheavy_cuts_{subset}.jsonl{ending}" for ending in ("", ".gz")]
    manifest = next((folder / name for name in names if (folder / name).is_file()), None)
    if manifest is None:
        raise FileNotFoundError(f"{folder} holds neither {names[0]} nor {names[1]}: fetch the manifests of Libriheavy")
    for cut in rows_of(manifest):
        said = cut["supervisions"][0]
        source = cut["recording"]["sources"][0]["source"]
        sound = folder / source
        if not sound.is_file():
            sound = folder / source.removeprefix("download/librilight/")
        text = said["text"] if "text" in said else said["custom"]["texts"][0]  # the book's words, not a recognizer's
        yield Clip(cut["id"], f"librispeech-{said['speaker']}", text, sound, (cut["start"], cut["duration"]))


def _common_voice(folder: Path, split: str) -> Iterator[Clip]:
    for row in _table(folder / f"{split}.tsv", ("client_id", "path", "sentence")):
        sound = folder / "clips" / row["path"]
        yield Clip(sound.stem, f"common_voice-{row['client_id'][:16]}", row["sentence"], sound)


def _voxpopuli(folder: Path, split: str) -> Iterator[Clip]:
    """`folder` is `transcribed_data/en`, as voxpopuli.get_asr_data leaves it."""
    for row in _table(folder / f"asr_{split}.tsv", ("id", "normalized_text", "speaker_id")):
        sound = folder / row["id"][:4] / f"{row['id']}.ogg"
        yield Clip(row["id"], f"voxpopuli-{row['speaker_id']}", row["normalized_text"] or None, sound)


def _folder(folder: Path, split: str) -> Iterator[Clip]:
    """Sound files anywhere below the folder, the words of each in a .txt beside it or not known.

    The speaker is the subfolder's name, or the file's own where there is none.
    """
    for sound in _sounds(folder, "**/*"):
        name = sound.relative_to(folder).with_suffix("").as_posix()
        words = sound.with_suffix(".txt")
        text = words.read_text(encoding="utf-8").strip() if words.is_file() else None
        yield Clip(name, f"{folder.name}-{name.split('/')[0]}", text, sound)


def _barista(folder: Path, split: str) -> Iterator[Clip]:
    """The public repository as it is cloned, or a flat folder of its clips with a `labels.json`.

    Of the repository's clips those are read whose voice has been told apart (`text/barista_voices.json`).
    """
    cloned = (folder / "data" / "label" / "label.json").is_file()
    labels = json.loads((folder / ("data/label/label.json" if cloned else "labels.json")).read_text(encoding="utf-8"))
    by_voice = json.loads(BARISTA_VOICES.read_text(encoding="utf-8"))
    voices = {clip: int(voice) for voice, clips in by_voice.items() for clip in clips}
    for name, label in sorted(labels.items()):
        sound = folder / "data" / "speech" / "clean" / name if cloned else folder / name
        voice = label.get("voice", voices.get(sound.stem))
        if voice is not None and (voice in HUMAN_TEST_VOICES) == (split == "test"):
            slots = {slot: value.strip() for slot, value in label["slots"].items()}
            yield Clip(sound.stem, f"barista-{voice}", None, sound, slots=slots)


def _keywords(folder: Path, split: str) -> Iterator[Clip]:
    for sound in _sounds(folder, "*/*"):
        phrase = sound.parent.name
        yield Clip(f"{phrase}-{sound.stem}", f"keywords-{sound.stem}", phrase.replace("_", " "), sound)


def _librispeech_sample(folder: Path, split: str) -> Iterator[Clip]:
    """One flat folder of clips named as LibriSpeech names them, without transcripts; every eighth is for tests."""
    for place, sound in enumerate(_sounds(folder, "*")):
        if (place % 8 == 0) == (split == "test"):
            yield Clip(sound.stem, f"librispeech-{sound.stem.split('-')[0]}", None, sound)


def _sounds(folder: Path, pattern: str) -> list[Path]:
    sounds = sorted(file for file in folder.glob(pattern) if file.suffix.lower() in SOUND_SUFFIXES)
    if not sounds:
        raise FileNotFoundError(f"{folder} holds no sound files ({', '.join(SOUND_SUFFIXES)})")
    return sounds


def _table(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give another split, or fetch the corpus again")
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        for column in columns:
            if column not in (table.fieldnames or ()):
                raise ValueError(f"{path} has no column {column!r} but {table.fieldnames}: is it this corpus' table?")
        yield from table


def rows_of(path: Path) -> Iterator[dict]:
    """Rows of a Parquet file or of JSON lines, gzipped or not."""
    if path.suffix == ".parquet":
        for batch in pq.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
        return
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} line {number} is no JSON ({error}): fetch the file again") from None
            yield row


_COLUMNS = {"id": "id", "speaker": "speaker_id", "text": "text"}
CORPORA: dict[str, Corpus] = {
    "librispeech": Corpus(_librispeech, "LibriSpeech (Panayotov et al. 2015)", "CC BY 4.0", _COLUMNS),
    "libriheavy": Corpus(_libriheavy, "Libriheavy (Kang et al. 2023), LibriVox recordings", "public domain"),
    "common_voice": Corpus(
        _common_voice,
        "Common Voice (Ardila et al. 2020)",
        "CC0-1.0",
        {"id": "path", "speaker": "client_id", "text": "sentence"},
    ),
    "voxpopuli": Corpus(
        _voxpopuli,
        "VoxPopuli (Wang et al. 2021)",
        "CC0-1.0",
        {"id": "audio_id", "speaker": "speaker_id", "text": "normalized_text"},
    ),
    "folder": Corpus(_folder, "own recordings", "unstated", _COLUMNS),
    "barista": Corpus(_barista, "Picovoice/speech-to-intent-benchmark", "Apache-2.0", parts=("train", "test")),
    "keywords": Corpus(_keywords, "Picovoice/wake-word-benchmark", "Apache-2.0", parts=("train",)),
    "librispeech_sample": Corpus(
        _librispeech_sample,
        "LibriSpeech train-clean-100 (Panayotov et al. 2015) through resemble-ai/Resemblyzer",
        "CC BY 4.0",
        parts=("train", "test"),
    ),
}
