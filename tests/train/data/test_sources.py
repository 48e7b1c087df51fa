"""What lessons are made of: every kind of source, for every task that takes it, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from most_core.processing import SPEAK, TRANSCRIBE
from tests.train.conftest import TEXTS, spoken, write_folder
from train.data.conversations import Conversation, Stretch, Turn, rows_of
from train.data.sources import open_sources

SOUND = np.full(640, 0.25, np.float32)
ASKED = Turn("user", (Stretch("What is pi?", SOUND),), "anna")
HEARD = {"instruction": TRANSCRIBE, "input": "[Hu7][Hu9]", "output": "Good morning."}
SPOKEN = {"instruction": SPEAK, "input": "Good morning.", "output": "[Hu1][Hu2]"}
CHAT = {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello. And you?"}]}


@pytest.fixture
def talks(tmp_path):
    """Shards of two conversations; of the answers, one sentence has sound."""
    answers = ((Stretch("About three."), Stretch("Or so.")), (Stretch("Ask me again.", SOUND),))
    talks = [Conversation(f"t/{i}", "t", "CC0", "valid", (ASKED, Turn("assistant", a))) for i, a in enumerate(answers)]
    return write_folder(tmp_path / "talks", [row for talk in talks for row in rows_of(talk)])


def written(path, *records):
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def only(task, *paths):
    """The one source that is opened."""
    (source,) = open_sources({task: paths})[task]
    return source


def turns(conversation):
    return [
        (turn.role, [(stretch.text, stretch.wave is not None) for stretch in turn.stretches])
        for turn in conversation.turns
    ]


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("asr", [("user", [(TRANSCRIBE, False), ("one two", True)]), ("assistant", [("one two", False)])]),
        ("tts", [("user", [(f"{SPEAK} one two", False)]), ("assistant", [("", True)])]),
        ("text", [("assistant", [("one two", False)])]),
    ],
)
def test_single_utterances_become_what_they_can_teach(shards, task, expected):
    source = only(task, shards)
    assert source.count == 24
    item = source.item(1)
    assert turns(item) == expected
    assert (item.id, item.source, item.licence, item.split) == ("u1", "a test", "CC0-1.0", "train")
    for stretch in (stretch for turn in item.turns for stretch in turn.stretches if stretch.wave is not None):
        np.testing.assert_allclose(stretch.wave, spoken(1, TEXTS[1]).wave, atol=1 / 32768)
    assert list(source.texts()) == list(TEXTS) * 4 + list(TEXTS[:4])
    assert list(source.unsaid()) == []


@pytest.mark.parametrize("task", ["asr", "tts", "text"])
def test_utterances_that_nobody_wrote_down_are_passed_over(tmp_path, task):
    rows = [spoken(0, "yes"), replace(spoken(1, "no"), text=None), replace(spoken(2, "no"), text=""), spoken(3, "two")]
    source = only(task, write_folder(tmp_path, rows))
    assert [source.item(i).id for i in range(source.count)] == ["u0", "u3"]
    assert list(source.texts()) == ["yes", "two"]


@pytest.mark.parametrize("task", ["speech_instructions", "text_instructions", "text"])
def test_shards_of_conversations(talks, task):
    source = only(task, talks)
    assert source.count == 2
    assert turns(source.item(0)) == [
        ("user", [("What is pi?", True)]),
        ("assistant", [("About three.", False), ("Or so.", False)]),
    ]
    assert turns(source.item(1))[1] == ("assistant", [("Ask me again.", True)])
    assert (source.item(1).id, source.item(1).split) == ("t/1", "valid")
    assert list(source.texts()) == ["What is pi?", "About three.", "Or so.", "What is pi?", "Ask me again."]
    assert list(source.unsaid()) == ([] if task == "text" else ["About three.", "Or so."])


@pytest.mark.parametrize("task", ["speech_instructions", "text_instructions"])
def test_conversations_from_json(tmp_path, task):
    source = only(task, written(tmp_path / "chat.jsonl", CHAT, SPOKEN))
    assert source.count == 2
    assert turns(source.item(0)) == [
        ("user", [("Hi.", False)]),
        ("assistant", [("Hello.", False), ("And you?", False)]),
    ]
    assert source.item(1).turns[1].stretches[0].units.tolist() == [1, 2]
    assert list(source.texts())[:2] == ["Hi.", "Hello. And you?"]
    assert list(source.unsaid()) == ["Hello.", "And you?"]


@pytest.mark.parametrize(("task", "record"), [("asr", HEARD), ("tts", SPOKEN)])
def test_records_of_units_teach_to_hear_and_to_speak(tmp_path, task, record):
    source = only(task, written(tmp_path / "units.jsonl", record, record))
    assert source.count == 2
    units = [stretch.units for turn in source.item(1).turns for stretch in turn.stretches if stretch.units is not None]
    assert [each.tolist() for each in units] == [[7, 9] if task == "asr" else [1, 2]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("some.txt", "One line.\n\n  Another. \n"),
        ("some.jsonl", '{"text": "One line.", "id": 3}\n\n{"text": " "}\n{"text": "  Another."}\n'),
    ],
)
def test_documents_are_read_line_by_line(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    source = only("text", tmp_path / name)
    assert source.count == 2
    assert list(source.texts()) == ["One line.", "Another."]
    assert [turns(source.item(i)) for i in range(2)] == [
        [("assistant", [("One line.", False)])],
        [("assistant", [("Another.", False)])],
    ]
    assert [source.item(i).id for i in range(2)] == [f"{name}/0", f"{name}/1"]


def test_several_places_of_a_task_keep_their_order(tmp_path, shards):
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "empty.txt").write_text("")
    opened = open_sources({"text": [tmp_path / "empty.txt", tmp_path / "a.txt", shards], "asr": [shards]})
    assert [[source.count for source in sources] for sources in opened.values()] == [[0, 1, 24], [24]]
    assert list(opened) == ["text", "asr"]


def test_a_place_may_count_several_times(shards):
    (source,) = open_sources({"asr": [shards]}, {str(shards): 3})["asr"]
    assert source.count == 72
    assert [source.item(i).id for i in (0, 23, 24, 71)] == ["u0", "u23", "u0", "u23"]
    assert len(list(source.texts())) == 24
    with pytest.raises(ValueError, match=r"^times\.elsewhere is in none of the tasks"):
        open_sources({"asr": [shards]}, {"elsewhere": 2})


def refusal(task, path):
    with pytest.raises((ValueError, OSError), match=r"^[^\n]+$") as error:
        open_sources({task: [path]})
    return str(error.value)


@pytest.mark.parametrize("task", ["asr", "tts", "text", "speech_instructions", "text_instructions"])
def test_a_place_that_is_not_there_is_named(tmp_path, task):
    missing = tmp_path / "nowhere"
    assert refusal(task, missing) == f"tasks.{task}: {missing} is not there: give a folder of shards or a file"


def test_a_folder_of_something_else_is_refused(tmp_path):
    assert refusal("asr", tmp_path).startswith(f"{tmp_path} has no manifest.json")


@pytest.mark.parametrize("task", ["speech_instructions", "text_instructions"])
def test_single_utterances_instruct_nobody(shards, task):
    expected = f"tasks.{task}: {shards} holds single utterances; give conversations (`dialogues`, or JSON)"
    assert refusal(task, shards) == expected


@pytest.mark.parametrize("task", ["asr", "tts"])
def test_conversations_are_no_single_utterances(tmp_path, talks, task):
    expected = f"tasks.{task}: %s holds conversations; give shards of `synthesize` or `corpus`"
    assert refusal(task, talks) == expected % talks
    chat = written(tmp_path / "chat.jsonl", HEARD, CHAT)
    assert refusal(task, chat) == expected % chat


@pytest.mark.parametrize("line", ["no JSON", '"text"', '{"words": "a"}', "[1]", '{"text": null}', '{"text": 5}'])
def test_a_bad_line_is_named_with_its_number(tmp_path, line):
    path = tmp_path / "some.jsonl"
    path.write_text(f'{{"text": "fine"}}\n\n{line}\n')
    assert refusal("text", path) == f'{path}, line 3: expected {{"text": ...}}, got {line!r}'


@pytest.mark.parametrize("name", ["some.txt", "some.jsonl"])
def test_a_line_in_another_encoding_is_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    assert refusal("text", path).startswith(f"{path}, line 2: this is not UTF-8 (")


def test_a_bad_record_of_a_conversation_is_named(tmp_path):
    path = written(tmp_path / "chat.jsonl", CHAT, {"messages": 3})
    assert refusal("text_instructions", path) == f"{path}, record 2: messages is a number, not a list of turns"


def test_a_source_of_nothing_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    nothing = write_folder(tmp_path / "nothing", [])
    silent = write_folder(tmp_path / "silent", [replace(spoken(0, "yes"), text=None)])
    assert refusal("text", tmp_path / "empty.txt") == f"tasks.text: {tmp_path / 'empty.txt'} holds nothing for it"
    assert refusal("asr", nothing) == f"tasks.asr: {nothing} holds nothing for it"
    assert refusal("tts", silent) == f"tasks.tts: {silent} holds nothing for it"
    (tmp_path / "empty.jsonl").write_text("")
    assert "holds no conversation" in refusal("text_instructions", tmp_path / "empty.jsonl")
