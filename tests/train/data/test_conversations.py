"""Conversations as rows of shards, and back."""

import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.conftest import spoken, write_folder
from train.data.conversations import (
    CUT,
    Conversation,
    Stretch,
    Turn,
    conversations_of,
    is_conversations,
    rows_of,
    starts_of,
)
from train.data.shards import ShardedSpeech

HI = np.full(640, 0.25, np.float32)
ANSWER = np.full(1280, -0.5, np.float32)


def talk(name="test/00000/7"):
    """A written rule, a spoken question, an answer broken into of which the second sentence alone is spoken."""
    return Conversation(
        name,
        "somewhere",
        "CC0-1.0",
        "valid",
        (
            Turn("system", (Stretch("Be kind."),)),
            Turn("user", (Stretch("Hi there.", HI),), "anna"),
            Turn("assistant", (Stretch("Hello."), Stretch("How are you?", ANSWER)), "slt", cut=True),
            Turn("user", (Stretch("Stop."),), "anna"),
        ),
    )


def plain(conversation):
    """All of a conversation, to be compared."""
    turns = [
        (
            turn.role,
            turn.speaker,
            turn.cut,
            [(s.text, None if s.wave is None else s.wave.tolist()) for s in turn.stretches],
        )
        for turn in conversation.turns
    ]
    return conversation.id, conversation.source, conversation.licence, conversation.split, turns


def test_each_stretch_is_a_row():
    rows = list(rows_of(talk()))
    places = ["0/0", "1/0", "2/0", "2/1", "3/0"]
    assert [row.id for row in rows] == [f"test/00000/7/{place}" for place in places]
    assert [row.task for row in rows] == ["system", "user", CUT, CUT, "user"]
    assert [row.text for row in rows] == ["Be kind.", "Hi there.", "Hello.", "How are you?", "Stop."]
    assert [len(row.wave) for row in rows] == [0, 640, 0, 1280, 0]
    assert [row.speaker for row in rows] == ["", "anna", "slt", "slt", "anna"]
    assert {(row.source, row.licence, row.split) for row in rows} == {("somewhere", "CC0-1.0", "valid")}


def test_rows_become_the_conversations_they_were():
    two = [talk("a/1"), talk("a/2")]
    back = list(conversations_of(row for conversation in two for row in rows_of(conversation)))
    assert [plain(each) for each in back] == [plain(each) for each in two]
    assert back[0].turns[2].cut
    assert back[0].turns[2].role == "assistant"
    assert back[0].turns[2].text == "Hello. How are you?"
    assert back[0].turns[2].stretches[0].wave is None


SOUNDS = st.lists(st.integers(-32768, 32767), min_size=1, max_size=4).map(lambda pcm: np.array(pcm, np.float32) / 32768)
STRETCHES = st.lists(st.builds(Stretch, st.text(max_size=8), st.none() | SOUNDS), min_size=1, max_size=3).map(tuple)
NAMES = st.text(st.characters(codec="utf-8"), max_size=5)
TURNS = st.one_of(
    st.builds(Turn, st.sampled_from(["system", "user"]), STRETCHES, NAMES),
    st.builds(Turn, st.just("assistant"), STRETCHES, NAMES, st.booleans()),
)
CONVERSATIONS = st.lists(st.tuples(NAMES, st.lists(TURNS, min_size=1, max_size=4).map(tuple)), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(CONVERSATIONS)
def test_any_conversations_come_back_from_disk(drawn):
    made = [Conversation(f"{name}/{place}", name, "CC0", "train", turns) for place, (name, turns) in enumerate(drawn)]
    with tempfile.TemporaryDirectory() as folder:
        speech = ShardedSpeech(write_folder(Path(folder), [row for each in made for row in rows_of(each)]))
        starts = starts_of(speech)
        parts = [range(start, stop) for start, stop in pairwise(starts)]
        back = [next(conversations_of(speech[row] for row in part)) for part in parts]
        assert [plain(each) for each in back] == [plain(each) for each in made]
        assert starts[-1] == len(speech)


def test_units_have_no_place_in_rows():
    heard = Turn("user", (Stretch("", units=np.array([1, 2], np.int32)),))
    with pytest.raises(ValueError, match=r"^x/1 is made of units: shards keep sound$"):
        list(rows_of(Conversation("x/1", "", "", "train", (heard,))))


def test_rows_of_something_else_are_refused():
    with pytest.raises(ValueError, match=r"has a row of task 'asr': this is no folder of conversations$"):
        list(conversations_of([spoken(0, "yes")]))


def test_conversations_begin_where_their_names_change(tmp_path):
    rows = [row for name in ("a/9", "a/10", "b/10") for row in rows_of(talk(name))]
    assert starts_of(ShardedSpeech(write_folder(tmp_path, rows))) == [0, 5, 10, 15]
    assert starts_of(ShardedSpeech(write_folder(tmp_path / "none", []))) == [0]


@pytest.mark.parametrize("first", ["system", "user", "cut"])
def test_a_folder_of_conversations_is_known_by_its_first_row(tmp_path, first):
    turns = {turn.role if not turn.cut else "cut": turn for turn in talk().turns}
    begun = Conversation("a/1", "", "", "train", (turns[first],))
    assert is_conversations(write_folder(tmp_path, rows_of(begun)))


def test_single_utterances_and_nothing_are_no_conversations(tmp_path, shards):
    assert not is_conversations(shards)
    assert not is_conversations(write_folder(tmp_path / "none", []))
