"""What lessons are made of, wherever it lies: recordings, conversations, texts, all opened alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from most_core.processing import SPEAK, TRANSCRIBE
from train.data.conversations import Conversation, Stretch, Turn, conversations_of, is_conversations, starts_of
from train.data.dialogue_json import read_dialogues
from train.data.shards import ShardedSpeech
from train.data.utterance import Utterance

SINGLE = ("asr", "tts", "text")  # tasks that single utterances can teach


@dataclass(frozen=True)
class Source:
    """One folder or file: `count` items, of each of which lessons are made.

    `texts` gives all words in it, `unsaid` the assistant's sentences that come without sound.
    """

    path: Path
    count: int
    item: Callable[[int], Conversation]
    texts: Callable[[], Iterable[str]]
    unsaid: Callable[[], Iterable[str]] = tuple


def open_sources(tasks: Mapping[str, Sequence[Path]], times: Mapping[str, int] = {}) -> dict[str, list[Source]]:
    """The sources of every task; ValueError or OSError for what cannot be used for it. `times`: how often a path's
    items count, where it is not once."""
    if strange := sorted(set(times) - {str(path) for paths in tasks.values() for path in paths}):
        raise ValueError(f"times.{strange[0]} is in none of the tasks: name a path as it stands there")
    sources = {
        task: [_repeated(_open(task, path), times.get(str(path), 1)) for path in paths] for task, paths in tasks.items()
    }
    for task, opened in sources.items():
        if not sum(source.count for source in opened):
            raise ValueError(f"tasks.{task}: {opened[0].path} holds nothing for it")
    return sources


def _repeated(source: Source, times: int) -> Source:
    return replace(source, count=source.count * times, item=lambda i: source.item(i % source.count))


def _open(task: str, path: Path) -> Source:
    if not path.exists():
        raise FileNotFoundError(f"tasks.{task}: {path} is not there: give a folder of shards or a file")
    if path.is_file() and task == "text":
        return _documents(path)
    if path.is_file() or is_conversations(path):
        source = _dialogue_file(task, path) if path.is_file() else _conversations(task, path)
        return replace(source, unsaid=tuple) if task in SINGLE else source  # whose answers nobody speaks
    if task not in SINGLE:
        raise ValueError(f"tasks.{task}: {path} holds single utterances; give conversations (`dialogues`, or JSON)")
    speech = ShardedSpeech(path)
    heard = np.ones(len(speech), bool) if task == "text" else speech.seconds > 0
    rows = [row for row, text in enumerate(speech.texts) if text and heard[row]]
    return Source(
        path, len(rows), lambda i: _exchange(task, speech[rows[i]]), lambda: (speech.texts[row] for row in rows)
    )


def _exchange(task: str, utterance: Utterance) -> Conversation:
    """One utterance as what the model is asked to do with it."""
    said = Stretch(utterance.text, utterance.wave)
    if task == "asr":
        turns = (Turn("user", (Stretch(TRANSCRIBE), said)), Turn("assistant", (Stretch(utterance.text),)))
    elif task == "text":
        turns = (Turn("assistant", (Stretch(utterance.text),)),)
    else:
        asked = Stretch(f"{SPEAK} {utterance.text}")
        turns = (Turn("user", (asked,)), Turn("assistant", (Stretch("", utterance.wave),)))
    return Conversation(utterance.id, utterance.source, utterance.licence, utterance.split, turns)


def _conversations(task: str, path: Path) -> Source:
    """Shards of conversations."""
    _refuse_single(task, path)
    speech = ShardedSpeech(path)
    starts = starts_of(speech)

    def unsaid() -> Iterator[str]:
        rows = zip(speech.column("task"), speech.texts, speech.seconds)
        return (text for role, text, seconds in rows if role.startswith("assistant") and not seconds)

    def item(i: int) -> Conversation:
        return next(conversations_of(speech[row] for row in range(starts[i], starts[i + 1])))

    return Source(path, len(starts) - 1, item, lambda: (text for text in speech.texts if text), unsaid)


def _dialogue_file(task: str, path: Path) -> Source:
    """Conversations written as JSON."""
    items = list(read_dialogues(path))
    if task in ("asr", "tts") and not all(any(_has_units(turn) for turn in item.turns) for item in items):
        _refuse_single(task, path)
    texts = [turn.text for item in items for turn in item.turns]
    unsaid = [
        stretch.text
        for item in items
        for turn in item.turns
        if turn.role == "assistant"
        for stretch in turn.stretches
        if stretch.units is None
    ]
    return Source(path, len(items), items.__getitem__, lambda: texts, lambda: unsaid)


def _has_units(turn: Turn) -> bool:
    return any(stretch.units is not None for stretch in turn.stretches)


def _refuse_single(task: str, path: Path) -> None:
    if task in ("asr", "tts"):
        raise ValueError(f"tasks.{task}: {path} holds conversations; give shards of `synthesize` or `corpus`")


def _documents(path: Path) -> Source:
    """The texts of a .txt (a line each) or .jsonl file."""
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"tasks.text: {path} is no .txt or .jsonl file: give a document a line, or lines of JSON")
    texts = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode().strip()
                if text and path.suffix == ".jsonl":
                    text = json.loads(text)["text"].strip()
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: this is not UTF-8 ({error})") from None
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ValueError(f'{path}, line {number}: expected {{"text": ...}}, got {text[:60]!r}') from None
            if text:
                texts.append(text)
    return Source(path, len(texts), lambda i: _document(path, i, texts[i]), lambda: texts)


def _document(path: Path, index: int, text: str) -> Conversation:
    return Conversation(f"{path.name}/{index}", path.name, "its own", "train", (Turn("assistant", (Stretch(text),)),))
