"""Conversations that others wrote, from JSON: one array in a .json file, or one record a line in a .jsonl file.

Three forms of a record are known:

    {"messages": [{"role": "user", "content": "..."}, ...]}                      SmolTalk's
    {"conversations": [{"from": "human", "value": "..."}, ...]}                  ShareGPT's
    {"id": ..., "instruction": "...", "input": "...", "output": "..."}           the public MoST code's

The last may hold speech units, "[Hu7][Hu90]", in its input or its output.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from train.data.conversations import Conversation, Role, Stretch, Turn

MESSAGE_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
SHARE_ROLES: dict[str, Role] = MESSAGE_ROLES | {"human": "user", "gpt": "assistant"}
UNIT = re.compile(r"\[Hu([^\]]*)\]")
UNITS = re.compile(rf"((?:{UNIT.pattern.replace('(', '(?:')}\s*)+)")
LARGEST_UNIT = np.iinfo(np.int32).max
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?![a-z\s])|\s*\n\s*")
ABBREVIATIONS = {"mr", "mrs", "ms", "dr", "prof", "st", "vs", "fig", "e.g", "i.e", "cf", "approx"}  # end no sentence


def read_dialogues(path: Path) -> Iterator[Conversation]:
    """The conversations of a file, up to their last assistant turn each; a .jsonl file is read line by line.

    Users' turns have one stretch, or one for each change between text and units; assistants' have one a sentence. All
    are of the split "train". ValueError, in one line with file and record, for what is no such conversation.
    """
    return (conversation for _, conversation in read_places(path))


def read_places(path: Path) -> Iterator[tuple[tuple[int, int], Conversation]]:
    """`read_dialogues` with each record's number and where it lies, which `DialogueFile` takes."""
    number = 0
    for number, place, record in _records(path):
        yield (number, place), _conversation(path, number, record)
    if not number:
        raise ValueError(f"{path} holds no conversation: give a file with at least one record")


class DialogueFile:
    """Chosen conversations of a file, in any order: those at `places` ([conversations, 2], of `read_places`)."""

    def __init__(self, path: Path, places: np.ndarray) -> None:
        self.path = path
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Conversation:
        number, place = self.places[index].tolist()
        if not _is_lines(self.path):
            return _conversation(self.path, number, self._all[place])
        with open(self.path, "rb") as file:
            file.seek(place)
            return _conversation(self.path, number, _parse(self.path, number, file.readline()))

    @cached_property
    def _all(self) -> list[Any]:
        return [record for *_, record in _records(self.path)]


def sentences(text: str) -> list[str]:
    """The sentences of a text, lines kept apart. "3.5", "e.g. this" and "Mr. Smith" do not end one."""
    found, start = [], 0
    for end in SENTENCE_END.finditer(text):
        if "\n" in end.group() or not _abbreviated(text[start : end.start()]):
            found.append(text[start : end.end()].strip())
            start = end.end()
    return [sentence for sentence in [*found, text[start:].strip()] if sentence]


def _abbreviated(text: str) -> bool:
    """Whether a text ends with a full stop that belongs to its last word: "Mr.", the initial "J.", a list's "1."."""
    if text.strip()[:-1].isdigit():
        return True
    word = text.rsplit(None, 1)[-1].lstrip("\"'([") if text.strip() else ""
    if not word.endswith("."):
        return False
    return word[:-1].lower() in ABBREVIATIONS or (len(word) == 2 and word[0].isupper() and word[0] != "I")


def _is_lines(path: Path) -> bool:
    if path.suffix not in (".json", ".jsonl"):
        raise ValueError(f"{path} is neither .json nor .jsonl: rename it for what it holds")
    return path.suffix == ".jsonl"


def _records(path: Path) -> Iterator[tuple[int, int, Any]]:
    """Each record with its number and place: the byte at which its line begins, or its index in the array."""
    if not _is_lines(path):
        content = path.read_bytes()
        if not content.strip():
            return
        records = _parse(path, None, content)
        if not isinstance(records, list):
            raise ValueError(f"{path} holds {_kind(records)}, not an array of conversations: write [...] around them")
        yield from ((place + 1, place, record) for place, record in enumerate(records))
        return
    number = place = 0
    with open(path, "rb") as file:
        for line in file:
            if line.strip():
                number += 1
                yield number, place, _parse(path, number, line)
            place += len(line)


def _parse(path: Path, number: int | None, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        where = str(path) if number is None else f"{path}, record {number}"
        raise ValueError(f"{where}: this is not JSON ({error})") from error


def _conversation(path: Path, number: int, record: Any) -> Conversation:
    try:
        if not isinstance(record, dict):
            raise ValueError(f"it is {_kind(record)}, not an object")
        if "messages" in record:
            turns = _turns(record["messages"], "messages", "role", "content", MESSAGE_ROLES)
        elif "conversations" in record:
            turns = _turns(record["conversations"], "conversations", "from", "value", SHARE_ROLES)
        elif "instruction" in record:
            turns = _instruction(record)
        else:
            raise ValueError("it has none of the keys messages, conversations, instruction")
        while turns and turns[-1].role != "assistant":
            turns.pop()
        if not turns:
            raise ValueError("it has no turn of the assistant")
    except ValueError as error:
        raise ValueError(f"{path}, record {number}: {error}") from None
    name = record.get("id")
    name = f"{path.stem}-{number}" if name is None else str(name)
    return Conversation(name, path.stem, _licence(record), "train", tuple(turns))


def _licence(record: dict[str, Any]) -> str:
    for place in (record, record.get("metadata")):
        if isinstance(place, dict) and (licence := place.get("licence") or place.get("license")):
            return str(licence)
    return "unknown"


def _turns(messages: Any, key: str, role_key: str, text_key: str, roles: dict[str, Role]) -> list[Turn]:
    if not isinstance(messages, list):
        raise ValueError(f"{key} is {_kind(messages)}, not a list of turns")
    turns = []
    for place, message in enumerate(messages):
        where = f"{key}[{place}]"
        if not isinstance(message, dict):
            raise ValueError(f"{where} is {_kind(message)}, not an object")
        role = _text(message, role_key, where)
        if role not in roles:
            raise ValueError(f"{where}.{role_key} is {role!r}; expected one of {', '.join(roles)}")
        text = _text(message, text_key, where)
        parts = sentences(text) if roles[role] == "assistant" else [text.strip()]
        turns.append(Turn(roles[role], tuple(Stretch(part) for part in parts or [""])))
    return turns


def _instruction(record: dict[str, Any]) -> list[Turn]:
    given = _text(record, "input", "") if record.get("input") else ""
    asked = [*_stretches(_text(record, "instruction", "")), *_stretches(given)]
    if all(stretch.units is None for stretch in asked):
        asked = [Stretch("\n".join(stretch.text for stretch in asked))]
    answer = tuple(_stretches(_text(record, "output", ""), sentences))
    return [Turn("user", tuple(asked)), Turn("assistant", answer or (Stretch(""),))]


def _stretches(text: str, split: Callable[[str], list[str]] = lambda text: [text]) -> Iterator[Stretch]:
    """Text and runs of units, in their order; text parted by `split`."""
    for place, part in enumerate(UNITS.split(text)):
        if place % 2:
            yield Stretch("", units=np.array([_unit(name) for name in UNIT.findall(part)], np.int32))
        elif part.strip():
            yield from map(Stretch, split(part.strip()))


def _unit(name: str) -> int:
    if not (name.isascii() and name.isdigit() and int(name) <= LARGEST_UNIT):
        raise ValueError(f"[Hu{name}] is no speech unit; expected a number, as in [Hu7]")
    return int(name)


def _text(record: dict[str, Any], key: str, where: str) -> str:
    name = f"{where}.{key}" if where else key
    if key not in record:
        raise ValueError(f"{name} is missing")
    if not isinstance(record[key], str):
        raise ValueError(f"{name} is {_kind(record[key])}, not text")
    return record[key]


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
