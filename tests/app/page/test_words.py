"""The page's strings and event names, which its modules and the server's must have in common."""

import json
import re
from pathlib import Path

import pytest

from app.outputs import State
from app.page.words import words
from app.realtime.session import HANDLERS
from most_core.assistant import STAGES

STATIC = Path("app/page/static")
MODULES = {path.name: path.read_text(encoding="utf-8") for path in sorted(STATIC.rglob("*.js"))}
SERVER = "\n".join(path.read_text(encoding="utf-8") for path in sorted(Path("app/realtime").glob("*.py")))
FAMILIES = r"(?:most|session|input_audio_buffer|output_audio_buffer|conversation|response)"
SIDE = {"tabs", "tools", "card", "errors_server"}  # groups that Python reads


def flat(group, place=""):
    for key, value in group.items():
        name = f"{place}.{key}" if place else key
        yield from flat(value, name) if isinstance(value, dict) else [name]


def used():
    """The places that modules name, with * where a part of it is computed."""
    places = set()
    for source in MODULES.values():
        for quoted in re.findall(r"""(?:say|list)\(\s*(?:[^()"'`]*\?\s*)?("[^"]+"|`[^`]+`)""", source):
            places.add(re.sub(r"\$\{[^}]+\}", "*", quoted[1:-1]))
        places |= set(re.findall(rf'"((?:{"|".join(words())})\.[a-z_]+)"', source))  # in tables and choices
    return places


def test_every_string_that_a_module_names_is_there():
    there = set(flat(words()))
    for place in used():
        pattern = re.escape(place).replace(r"\*", "[A-Za-z_-]+")
        assert any(re.fullmatch(pattern, name) for name in there), place


def test_no_string_is_left_over():
    patterns = [re.escape(place).replace(r"\*", "[A-Za-z_-]+") for place in used()]
    for name in flat({key: group for key, group in words().items() if key not in SIDE}):
        assert any(re.fullmatch(pattern, name) for pattern in patterns), f"nobody says {name}"


def test_every_state_and_stage_has_words():
    assert {state.value for state in State} <= set(words()["states"])
    assert {*STAGES, "endpoint", "queue", "hold", "network", "playback"} <= set(words()["beside"]["stages"])


def test_what_is_filled_in_is_given():
    for source in MODULES.values():
        for place, given in re.findall(r'say\("([a-z_.]+)", \{([^}]*)\}\)', source):
            group = words()
            for key in place.split("."):
                group = group[key]
            for name in re.findall(r"\{(\w+)\}", group):
                assert "..." in given or re.search(rf"\b{name}\b", given), f"{place} wants {name}"


@pytest.mark.parametrize("module", MODULES)
def test_events_are_called_as_the_server_calls_them(module):
    source = MODULES[module]
    sent = set(re.findall(rf'type: "({FAMILIES}\.[a-z_.]+)"', source))
    assert sent <= set(HANDLERS), sent - set(HANDLERS)
    taken = set(re.findall(rf'case "({FAMILIES}\.[a-z_.]+)"', source))
    taken |= set(re.findall(rf'event\.type [!=]== "({FAMILIES}\.[a-z_.]+)"', source))
    parts = set(re.findall(rf'"({FAMILIES}\.[a-z_.]+)"', SERVER))
    # Two are put together there: response.{output_audio_transcript,output_text}.delta.
    parts |= {"response.output_audio_transcript.delta", "response.output_text.delta"}
    assert taken <= parts, taken - parts
    if module == "turns.js":
        assert len(taken) > 10


def test_the_strings_are_one_file_of_plain_text():
    for name in flat(words()):
        group = words()
        for key in name.split("."):
            group = group[key]
        for text in [group] if isinstance(group, str) else group:
            assert isinstance(text, str)
            assert text.strip() == text
            assert not re.search(r"<[a-z/]", text), name
    assert json.loads(Path("app/page/words/en.json").read_text(encoding="utf-8")) == words()
