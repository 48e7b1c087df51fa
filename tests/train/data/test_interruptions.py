import json
import wave

import numpy as np
import pytest

from train.data.conversations import Conversation, Stretch, Turn
from train.data.interruptions import UNIT, break_into, safe_name, whole_units, write_scene

RATE = 16_000


def tone(seconds, silence=0.0):
    """A tone after some silence."""
    time = np.arange(round(seconds * RATE)) / RATE
    sound = 0.5 * np.sin(2 * np.pi * 300 * time)
    return np.concatenate([np.zeros(round(silence * RATE)), sound]).astype(np.float32)


def conversation(lengths=(1.2, 0.9, 1.5), reply=0.7):
    answer = [Stretch(f"Sentence {i}.", whole_units(tone(length))) for i, length in enumerate(lengths)]
    turns = (
        Turn("user", (Stretch("Tell me.", tone(0.8)),), "someone"),
        Turn("assistant", (*answer, Stretch("Never spoken.")), "most"),
        Turn("user", (Stretch("Stop.", tone(0.5, silence=0.25)),), "someone"),
        Turn("assistant", (Stretch("Okay.", whole_units(tone(reply))),), "most"),
    )
    return Conversation("c/00000/00001/0", "a test", "CC0-1.0", "train", turns)


@pytest.mark.parametrize("seed", range(20))
def test_the_answer_goes_on_for_a_while_and_ends_with_a_whole_unit(seed):
    made, scene = break_into(conversation(), 1, None, np.random.default_rng(seed))
    cut = made.turns[1]
    *heard, last = [event for event in scene.events if event.role == "assistant"][:-1]
    (broke_in,) = [event for event in scene.events if event.kind == "interrupt"]
    assert cut.cut
    assert [event.text for event in (*heard, last)] == [stretch.text for stretch in cut.stretches]
    assert "Never spoken." not in cut.text
    assert last.cut_unit * UNIT == len(cut.stretches[-1].wave)
    assert last.end - last.start == pytest.approx(last.cut_unit * UNIT / RATE)
    assert all(event.cut_unit is None for event in scene.events if event is not last)
    assert 100 <= broke_in.overlap_ms <= 400
    assert last.end - broke_in.start == pytest.approx(broke_in.overlap_ms / 1000)
    # Both are heard at once, from the user's first sound on
    both = np.abs(scene.sound[round(broke_in.start * RATE) : round(last.end * RATE)])
    assert np.sqrt(np.square(both).mean(0)).min() > 0.1
    assert np.abs(scene.sound[round(broke_in.start * RATE) :][:160, 0]).max() > 0.1
    # The assistant is silent until its reply, which waits for the user
    reply = scene.events[-1]
    assert reply.text == "Okay."
    assert reply.start >= broke_in.end + 0.2
    assert not scene.sound[round(last.end * RATE) : round(reply.start * RATE), 1].any()


def test_every_event_is_where_its_sound_is():
    made, scene = break_into(conversation(), 1, None, np.random.default_rng(3))
    clips = [stretch.wave for turn in made.turns for stretch in turn.stretches]
    events = sorted(scene.events, key=lambda event: (event.start, event.channel))
    assert len(clips) == len(events)
    for event in events:
        sound = scene.sound[round(event.start * RATE) : round(event.end * RATE), event.channel]
        assert any(np.array_equal(sound, clip) for clip in clips)
    assert [event.channel for event in events] == [("user", "assistant").index(event.role) for event in events]


def test_moments_differ():
    starts = {break_into(conversation(), 1, None, np.random.default_rng(seed))[1].events[-2].start for seed in range(9)}
    assert len(starts) == 9


def test_over_a_murmur_the_answer_goes_on():
    whole = conversation()
    whole = Conversation(whole.id, whole.source, whole.licence, whole.split, whole.turns[:2])
    made, scene = break_into(whole, 1, Stretch("Right.", tone(0.3, silence=0.2)), np.random.default_rng(1))
    assert made == whole
    (murmur,) = [event for event in scene.events if event.kind == "backchannel"]
    answer = [event for event in scene.events if event.role == "assistant"]
    assert [event.text for event in answer] == ["Sentence 0.", "Sentence 1.", "Sentence 2."]
    assert {event.cut_unit for event in scene.events} == {None}
    assert murmur.end - murmur.start == pytest.approx(0.3)
    assert answer[0].start + 0.2 <= murmur.start < answer[-1].end
    assert murmur.overlap_ms == round(1000 * (min(murmur.end, answer[-1].end) - murmur.start))


def test_too_short_an_answer_is_left_alone():
    assert break_into(conversation(lengths=(0.25,)), 1, None, np.random.default_rng(0)) is None
    assert break_into(conversation(lengths=()), 1, None, np.random.default_rng(0)) is None


def test_a_scene_on_disk(tmp_path):
    _, scene = break_into(conversation(), 1, None, np.random.default_rng(0))
    write_scene(tmp_path, "c/00000/00001/0", scene)
    names = sorted(path.name for path in (tmp_path / "interrupted").iterdir())
    assert names == ["c-00000-00001-0.json", "c-00000-00001-0.wav"]
    with wave.open(str(tmp_path / "interrupted" / names[1])) as sound:
        assert (sound.getnchannels(), sound.getframerate(), sound.getsampwidth()) == (2, RATE, 2)
        pcm = np.frombuffer(sound.readframes(sound.getnframes()), "<i2").reshape(-1, 2)
    np.testing.assert_allclose(pcm / 32_768, scene.sound, atol=1 / 32_768)
    told = json.loads((tmp_path / "interrupted" / names[0]).read_text())
    assert (told["id"], told["sample_rate"], told["samples_a_unit"]) == ("c/00000/00001/0", RATE, 640)
    assert [event["text"] for event in told["events"]] == [event.text for event in scene.events]
    assert set(told["events"][0]) == {"start", "end", "channel", "role", "text", "kind", "overlap_ms", "cut_unit"}


def test_names_are_safe():
    assert safe_name("a b-../x/00001") == "a_b-..-x-00001"
