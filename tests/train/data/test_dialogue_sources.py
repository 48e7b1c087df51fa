import json

import numpy as np
import pytest

from train.data.dialogue_sources import CORRECTIONS, MURMURS, STOPS, File, World, can_be_spoken, is_speakable
from train.data.world import TOPICS, exchange


def plans(split, many):
    source = World(split, 0)
    return [source.plan(index, 0, True, np.random.default_rng(index)) for index in range(many)]


@pytest.mark.parametrize("split", ["train", "test"])
def test_users_break_into_any_topic_of_the_world_in_four_ways(split):
    ways = set()
    for index, plan in enumerate(plans(split, 10 * len(TOPICS))):
        item = exchange(split, 0, index)
        turns = plan.conversation.turns
        assert turns[plan.broken].text == item.answer
        assert turns[plan.broken - 1].text == item.question
        assert plan.conversation.split == split
        if plan.murmur:
            assert plan.murmur in MURMURS
            assert plan.broken == len(turns) - 1
            ways.add("murmur")
            continue
        assert plan.broken == len(turns) - 3
        words = turns[-2].text
        assert words != item.question
        if (words, turns[-1].text) in STOPS:
            ways.add("stop")
        else:
            ways.add("correction" if words.startswith(CORRECTIONS) else "question")
    assert ways == {"murmur", "stop", "correction", "question"}
    assert all(is_speakable(text) for text in (*MURMURS, *CORRECTIONS, *(text for pair in STOPS for text in pair)))


def test_another_attempt_is_another_conversation():
    source = World("train", 0)
    first, again, other = (source.plan(3, attempt, False, np.random.default_rng(0)) for attempt in (0, 0, 1))
    assert first == again
    assert first.broken is None
    assert first.conversation != other.conversation


def test_only_answers_that_can_be_spoken_are_broken_into(tmp_path):
    def messages(*texts):
        names = ("user", "assistant")
        return {"messages": [{"role": names[i % 2], "content": text} for i, text in enumerate(texts)]}

    records = [
        messages("Who?", "I am.", "Why?", "So."),
        messages("Who?", "1. I am.", "Why?", "So."),
        messages("Who is 7?", "I am.", "Why?", "So."),
        messages("Who?", "I am.", "Why?", "So.", "And?", "Nothing."),
    ]
    path = tmp_path / "some.json"
    path.write_text(json.dumps(records))
    source = File(path, 60)
    assert source.facts["conversations"] == 4
    rng = np.random.default_rng(0)
    broken = [{source.plan(index, 0, True, rng).broken for _ in range(20)} for index in range(4)]
    assert broken == [{1}, {None}, {None}, {1, 3}]
    assert source.plan(0, 0, False, rng).broken is None
    assert not can_be_spoken(source.plan(2, 0, False, rng).conversation, 1)
