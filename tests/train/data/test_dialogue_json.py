import json

import numpy as np
import pytest

from train.data.conversations import rows_of
from train.data.dialogue_json import DialogueFile, read_dialogues, read_places, sentences

SMOLTALK = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " What is pi? "},
        {"role": "assistant", "content": "About 3.14. It goes on, e.g. with a one.\nAsk Mr. Smith!"},
    ],
    "license": "Apache-2.0",
}
SHAREGPT = {
    "id": "abc",
    "conversations": [
        {"from": "human", "value": "Hello."},
        {"from": "gpt", "value": "Hi."},
        {"from": "human", "value": "Bye."},
    ],
}
HEARD = {
    "id": 7,
    "instruction": "Transcribe the following speech into text.",
    "input": "[Hu7][Hu90] [Hu499]",
    "output": "Good morning.",
    "metadata": {"licence": "CC0-1.0"},
}
SPOKEN = {
    "id": 8,
    "instruction": "Convert the following text into speech.",
    "input": "Good morning.",
    "output": "[Hu1][Hu2]",
    "metadata": {},
}


def written(path, records):
    lines = "\n\n".join(json.dumps(record) for record in records)
    path.write_text(lines if path.suffix == ".jsonl" else json.dumps(records))
    return path


@pytest.mark.parametrize("name", ["some.json", "some.jsonl"])
def test_three_forms_are_read(tmp_path, name):
    smoltalk, sharegpt, heard, spoken = read_dialogues(written(tmp_path / name, [SMOLTALK, SHAREGPT, HEARD, SPOKEN]))
    assert [turn.role for turn in smoltalk.turns] == ["system", "user", "assistant"]
    assert smoltalk.turns[1].text == "What is pi?"
    said = [stretch.text for stretch in smoltalk.turns[2].stretches]
    assert said == ["About 3.14.", "It goes on, e.g. with a one.", "Ask Mr. Smith!"]
    assert (smoltalk.id, smoltalk.source, smoltalk.licence) == ("some-1", "some", "Apache-2.0")
    # Nobody answers the last turn
    assert [(turn.role, turn.text) for turn in sharegpt.turns] == [("user", "Hello."), ("assistant", "Hi.")]
    assert (sharegpt.id, sharegpt.licence, heard.licence) == ("abc", "unknown", "CC0-1.0")

    words, units = heard.turns[0].stretches
    assert words.text == HEARD["instruction"]
    assert units.text == ""
    assert units.units.dtype == np.int32
    assert units.units.tolist() == [7, 90, 499]
    assert heard.turns[1].text == "Good morning."
    assert [stretch.text for stretch in spoken.turns[0].stretches] == [f"{SPOKEN['instruction']}\nGood morning."]
    assert spoken.turns[1].stretches[0].units.tolist() == [1, 2]
    with pytest.raises(ValueError, match="made of units"):
        list(rows_of(spoken))


def test_units_and_text_may_take_turns(tmp_path):
    record = {"instruction": "Go on", "input": "", "output": "One. Two. [Hu3][Hu4]\nThree. [Hu5]"}
    (made,) = read_dialogues(written(tmp_path / "a.jsonl", [record]))
    answer = [stretch.text or stretch.units.tolist() for stretch in made.turns[1].stretches]
    assert answer == ["One.", "Two.", [3, 4], "Three.", [5]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is 3.5 metres. Or more?  Yes!", ["It is 3.5 metres.", "Or more?", "Yes!"]),
        ("See Dr. J. Brown, e.g. Monday. Good.", ["See Dr. J. Brown, e.g. Monday.", "Good."]),
        ("Come at 5 p.m.  today. No. I will.", ["Come at 5 p.m.  today.", "No.", "I will."]),
        ('"Really?" she asked. "Yes." He left.', ['"Really?" she asked.', '"Yes."', "He left."]),
        ("Do:\n1. This. 2. That\n\n- more", ["Do:", "1. This.", "2. That", "- more"]),
        ("", []),
        ("no end", ["no end"]),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


@pytest.mark.parametrize("name", ["some.json", "some.jsonl"])
def test_chosen_conversations_are_read_in_any_order(tmp_path, name):
    records = [SMOLTALK, SHAREGPT, {"messages": [{"role": "assistant", "content": "Grüße."}]}, SPOKEN]
    path = written(tmp_path / name, records)
    places, conversations = zip(*read_places(path))
    chosen = DialogueFile(path, np.array(places)[[2, 0]])
    assert len(chosen) == 2
    assert [chosen[0], chosen[1], chosen[0]] == [conversations[2], conversations[0], conversations[2]]


def test_lines_are_read_one_by_one(tmp_path):
    path = written(tmp_path / "some.jsonl", [SMOLTALK, SHAREGPT])
    path.write_text(path.read_text() + "\n{not JSON")
    read = read_dialogues(path)
    assert next(read).licence == "Apache-2.0"
    assert next(read).id == "abc"
    with pytest.raises(ValueError, match=r"some\.jsonl, record 3: this is not JSON"):
        next(read)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1], "it is a list, not an object"),
        ({"text": "a"}, "none of the keys messages, conversations, instruction"),
        ({"messages": "a"}, "messages is text, not a list"),
        ({"messages": []}, "no turn of the assistant"),
        ({"messages": ["a"]}, r"messages\[0\] is text, not an object"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]\.content is missing"),
        ({"messages": [{"role": "user", "content": None}]}, r"messages\[0\]\.content is null, not text"),
        (
            {"messages": [{"role": "tool", "content": "a"}]},
            r"messages\[0\]\.role is 'tool'; expected one of system, us",
        ),
        ({"conversations": [{"from": "human", "value": "a"}]}, "no turn of the assistant"),
        ({"conversations": [{"from": "robot", "value": "a"}]}, r"\.from is 'robot'; expected one of .*gpt"),
        ({"instruction": "a", "input": "b"}, "output is missing"),
        ({"instruction": "a", "input": 3, "output": "b"}, "input is a number, not text"),
        ({"instruction": "a", "input": "[Hu1][Hux]", "output": "b"}, r"\[Hux\] is no speech unit"),
        ({"instruction": "a", "output": "[Hu99999999999]"}, r"\[Hu99999999999\] is no speech unit"),
    ],
)
def test_records_that_are_no_conversation(tmp_path, record, message):
    for name in ("bad.json", "bad.jsonl"):
        with pytest.raises(ValueError, match=message) as caught:
            list(read_dialogues(written(tmp_path / name, [SMOLTALK, record])))
        assert str(caught.value).startswith(f"{tmp_path / name}, record 2: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"", "a.json holds no conversation"),
        ("a.json", b"[]", "a.json holds no conversation"),
        ("a.jsonl", b"\n\n", "a.jsonl holds no conversation"),
        ("a.json", b"[{]", "a.json: this is not JSON"),
        ("a.json", b"{}", "an object, not an array"),
        ("a.jsonl", b"\xff\xfe", "a.jsonl, record 1: this is not JSON"),
        ("a.csv", b"x", "neither .json nor .jsonl"),
    ],
)
def test_files_that_hold_none(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_dialogues(tmp_path / name))
