"""Honest, careless and hostile clients of one realtime session, one habit after the other."""

import base64
import gc
import json
import time
import weakref

import pytest
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from realtime_client import Client, Watched

from app.settings import Settings
from app.turn import State

OPENAI = TypeAdapter(RealtimeServerEvent)
timed = pytest.mark.flaky(reruns=2)  # by the clock, on machines that others keep busy for a moment
ANSWERED = ("completed", "incomplete")  # a model that knows nothing often finds no end


@pytest.fixture(scope="module")
def engine(quick):
    engine = Watched(quick)
    yield engine
    engine.close()


@pytest.fixture
def client(engine):
    client = Client(engine)
    yield client
    client.session.close()
    client.drain()
    assert engine.gone()


def errors(client):
    return [event["error"]["code"] for event in client.of("error")]


def slow(client):
    """Replies that last long enough to be interrupted."""
    usual = client.session._usual
    client.session._usual = type(usual)(max_new_tokens=400, max_heard_tokens=2, max_sentence_tokens=2, temperature=0.0)
    client.update()


def encoded(pcm):
    return base64.b64encode(pcm).decode()


# Honest clients of OpenAI's


def test_a_client_that_takes_over_in_mid_utterance_is_told_of_no_key(client, babble):
    client.hear(bytes(48_000), babble(0.8))
    assert client.session.conversation.state == State.HEARING
    client.update(audio={"input": {"turn_detection": None}})
    assert client.session.conversation.state == State.LISTENING
    assert not client.of("most.notice")


def test_a_manual_turn_is_appended_committed_and_answered_when_asked(client, babble):
    client.update(audio={"input": {"turn_detection": None}})
    client.send("input_audio_buffer.append", audio=encoded(babble(0.8)))
    client.hear(bytes(48_000))
    assert not client.of("input_audio_buffer.speech_started")
    client.send("input_audio_buffer.commit")
    [committed] = client.of("input_audio_buffer.committed")
    assert not client.created
    client.send("response.create")
    client.settle()
    assert client.of("response.done")[0]["response"]["status"] in ANSWERED
    [heard] = client.of("conversation.item.input_audio_transcription.completed")
    assert heard["item_id"] == committed["item_id"]
    assert client.of("response.output_audio.delta")


def test_typed_text_is_answered_in_text_alone_where_that_is_wished(client):
    client.write("hello")
    client.send("response.create", response={"output_modalities": ["text"], "metadata": {"topic": "greeting"}})
    client.settle()
    assert client.of("response.output_text.delta")
    assert not client.of("response.output_audio.delta")
    [done] = client.of("response.done")
    assert done["response"]["metadata"] == {"topic": "greeting"}
    assert done["response"]["output"][0]["content"][0]["type"] == "output_text"


def test_an_item_may_bring_sound(client, babble):
    part = {"type": "input_audio", "audio": encoded(babble(0.5))}
    client.send("conversation.item.create", item={"type": "message", "role": "user", "content": [part], "id": "mine"})
    client.send("conversation.item.retrieve", item_id="mine")
    [told] = client.of("conversation.item.retrieved")
    assert len(base64.b64decode(told["item"]["content"][0]["audio"])) == 24_000
    client.send("response.create")
    client.settle()
    assert client.of("response.done")[0]["response"]["status"] in ANSWERED


def test_without_create_response_speech_is_only_committed(client, babble):
    client.update(audio={"input": {"turn_detection": {"create_response": False}}})
    client.hear(bytes(24_000), babble(1), bytes(48_000))
    assert client.of("input_audio_buffer.committed")
    assert not client.created
    client.send("response.create")
    client.settle()
    assert client.of("response.done")[0]["response"]["status"] in ANSWERED


def test_every_event_is_one_that_the_sdk_knows(client, babble):
    client.update(most={"routing": True, "captions": True}, audio={"input": {"turn_detection": {"threshold": 0.4}}})
    client.hear(bytes(24_000), babble(1), bytes(48_000))
    client.settle()
    for kind in ("semantic_vad", None):
        client.update(audio={"input": {"turn_detection": kind and {"type": kind}}})
    client.write("again")
    client.write("I said so", role="assistant")
    client.write("then")
    client.send("conversation.item.retrieve", item_id=client.of("conversation.item.added")[0]["item"]["id"])
    client.send("response.create", response={"max_output_tokens": 3})
    client.settle()
    slow(client)
    client.write("once more")
    client.send("response.create")
    client.settle(until=lambda: len(client.created) == 3 and client.events[-1]["type"] == "response.output_audio.delta")
    client.send(
        "conversation.item.truncate",
        item_id=client.of("conversation.item.added")[-1]["item"]["id"],
        content_index=0,
        audio_end_ms=0,
    )
    client.send("conversation.item.delete", item_id=client.of("conversation.item.added")[0]["item"]["id"])
    client.send("input_audio_buffer.clear")
    client.send("nonsense")
    seen = set()
    for event in client.events:
        if not event["type"].startswith("most."):
            told = OPENAI.validate_json(json.dumps(event), strict=True)
            assert told.type == event["type"]
            seen.add(event["type"])
    assert len(seen) >= 22


def test_truncating_a_reply_that_plays_is_told_once(client):
    slow(client)
    client.write("hello")
    client.send("response.create")
    client.settle(until=lambda: len(client.of("response.output_audio.delta")) > 2)
    [item] = [e["item"]["id"] for e in client.of("response.output_item.added")]
    client.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=40)
    [told] = client.of("conversation.item.truncated")
    assert (told["item_id"], told["audio_end_ms"]) == (item, 40)
    assert client.open is None


def test_a_response_is_cancelled_by_its_own_name_alone(client):
    slow(client)
    client.write("hello")
    client.send("response.create")
    client.settle(until=lambda: client.of("response.output_audio_transcript.delta"))
    client.send("response.cancel", response_id="resp_99")
    assert errors(client) == ["response_cancel_not_active"]
    assert client.open
    client.send("response.cancel", response_id=client.open)
    [done] = client.of("response.done")
    assert done["response"]["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}


def test_a_cancelled_reply_in_text_keeps_what_was_read(client):
    slow(client)
    client.update(output_modalities=["text"])
    client.write("hello")
    client.send("response.create")
    client.settle(until=lambda: len(client.of("response.output_text.delta")) >= 3)
    client.send("response.cancel")
    read = "".join(event["delta"] for event in client.of("response.output_text.delta")).strip()
    [item] = [i for i in client.session.conversation.items.values() if i.role == "assistant"]
    assert item.transcript == read
    assert not client.of("conversation.item.truncated")


def test_a_response_tells_the_limit_it_was_made_with(client):
    client.write("hello")
    client.send("response.create", response={"max_output_tokens": 5})
    client.settle()
    limits = [event["response"]["max_output_tokens"] for event in client.events if "response" in event]
    assert limits == [5, 5]


@pytest.mark.parametrize("detection", [None, {"type": "server_vad"}])
def test_committing_nothing_is_refused_as_by_openai(client, detection):
    client.update(audio={"input": {"turn_detection": detection}})
    client.send("input_audio_buffer.commit")
    assert errors(client) == ["input_audio_buffer_commit_empty"]


@pytest.mark.parametrize("answered_first", [True, False])
def test_a_change_of_mind_about_answering_waits_for_the_next_utterance(client, babble, answered_first):
    client.update(audio={"input": {"turn_detection": {"create_response": answered_first}}})
    client.hear(bytes(24_000), babble(1), bytes(19_200))  # long enough that a reply is begun
    client.update(audio={"input": {"turn_detection": {"create_response": not answered_first}}})
    client.hear(bytes(48_000))
    client.settle()
    client.hear(bytes(48_000))
    client.settle()
    assert client.of("input_audio_buffer.committed")
    assert len(client.created) == answered_first
    assert client.open is None
    assert client.session.conversation.state in (State.LISTENING, State.SPEAKING)


# Unlucky ones


@timed
def test_an_hour_without_sound_is_no_more_than_a_pause(client, babble):
    client.hear(bytes(24_000))
    client.clock += 3600
    start = time.perf_counter()
    client.session.tick()
    assert time.perf_counter() - start < 0.5
    client.hear(bytes(24_000), babble(1), bytes(48_000))
    client.settle()
    assert len(client.created) == 1


def test_a_gap_of_a_second_in_mid_sentence_ends_the_turn_there_and_the_rest_is_another(client, babble):
    client.hear(bytes(24_000), babble(1))
    for _ in range(25):
        client.clock += 0.04
        client.session.tick()
    client.settle()
    client.hear(babble(1, seed=1), bytes(48_000))
    client.settle()
    assert client.of("input_audio_buffer.committed")
    assert client.open is None


def test_a_burst_of_a_whole_conversation_at_once_is_heard_in_full(client, babble):
    for seed in range(3):
        client.session.microphone(bytes(24_000) + babble(1, seed) + bytes(60_000))
    while client.session.unheard:
        client.session.hear_on()
    client.settle()
    assert len(client.of("input_audio_buffer.committed")) == 3
    assert client.open is None


# Hostile ones


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf"), True, "1", None, [], {}])
def test_no_number_but_a_sensible_one_is_taken(client, value):
    client.send("most.playback", turn_id=value, played_ms=0)
    client.send("most.playback", turn_id=1, played_ms=value)
    assert errors(client) == ["invalid_value"] * 2


def test_deep_nesting_is_refused(client):
    depths = [50, 500, *range(800, 1000), 5000, 100_000]
    for depth in depths:
        deep = "[" * depth + "]" * depth
        client.session.receive_text(f'{{"type": "session.update", "session": {deep}}}')
        client.session.receive_text(f'{{"type": {deep}}}')
        client.session.receive_text(deep)
    assert len(errors(client)) == 3 * len(depths)


@timed
def test_an_item_of_many_parts_is_refused_at_once(client):
    parts = [{"type": "input_text", "text": "x" * 100}] * 20_000
    start = time.perf_counter()
    client.send("conversation.item.create", item={"type": "message", "role": "user", "content": parts})
    assert time.perf_counter() - start < 0.5
    assert errors(client) == ["too_long"]


@pytest.mark.parametrize("by_hand", [True, False])
def test_the_oldest_sound_is_forgotten_when_there_is_too_much(client, babble, by_hand, monkeypatch):
    monkeypatch.setattr("app.conversation.MOST_SOUND_S", 12)
    client.update(audio={"input": {"turn_detection": None}})
    part = {"type": "input_audio", "audio": encoded(babble(5))}
    for _ in range(5):
        if by_hand:
            client.send("input_audio_buffer.append", audio=part["audio"])
            client.send("input_audio_buffer.commit")
        else:
            client.send("conversation.item.create", item={"type": "message", "role": "user", "content": [part]})
    kept = [item.sound is not None for item in client.session.conversation.items.values()]
    assert kept == [False, False, False, True, True]
    client.send("response.create")
    client.settle()
    assert client.of("response.done")[0]["response"]["status"] in ANSWERED


def test_many_words_of_the_system_are_limited_in_all(client):
    for _ in range(40):
        client.write("x" * 100, role="system")
    assert "too_long" in errors(client)
    client.write("hello")
    client.send("response.create")
    client.settle()
    assert client.open is None


@timed
def test_tiny_appends_do_not_slow_down(client):
    client.update(audio={"input": {"turn_detection": None}})
    start = time.perf_counter()
    for _ in range(20_000):
        client.session.microphone(b"")
        client.session.microphone(b"\0\0")
    assert time.perf_counter() - start < 5
    assert client.session.conversation.recorded_s == pytest.approx(20_000 / 24_000, abs=0.01)


def test_an_item_cannot_take_the_name_of_one_that_is_to_come(client, babble):
    client.hear(bytes(24_000), babble(1))
    [started] = client.of("input_audio_buffer.speech_started")
    client.write("hello", id=started["item_id"])
    assert errors(client) == ["duplicate"]
    client.hear(bytes(60_000))
    client.settle()
    assert client.of("input_audio_buffer.committed")[0]["item_id"] == started["item_id"]


def test_half_a_character_is_refused_or_answered(client):
    client.session.receive_text(
        '{"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": '
        '[{"type": "input_text", "text": "\\ud800 hello"}]}}'
    )
    assert errors(client) == ["invalid_value"]
    client.session.receive_text('{"type": "session.update", "session": {"instructions": "\\udfff"}}')
    assert errors(client) == ["invalid_value"] * 2


def test_a_long_append_is_heard_a_second_at_a_time_and_before_what_comes_after_it(client, babble):
    session = client.session
    session.microphone(bytes(24_000) + babble(10))
    assert session.conversation.now_ms == pytest.approx(1000, abs=2)
    session.tick()
    assert session.unheard
    session.hear_on()
    assert session.conversation.now_ms == pytest.approx(2000, abs=2)
    client.send("input_audio_buffer.commit")
    assert session.conversation.now_ms == pytest.approx(10_500, abs=2)
    assert not session.unheard
    assert client.of("input_audio_buffer.committed")


def test_the_last_turn_is_answered_and_then_the_session_ends(engine):
    client = Client(engine, Settings(turns=2))
    for _ in range(2):
        client.write("hello")
        client.send("response.create")
        client.settle()
        client.session.tick()
    assert len(client.of("response.done")) == 2
    assert errors(client) == ["session_ended"]
    assert client.session.ended
    client.session.close()


def test_a_larger_window_of_the_detector_counts_from_then_on(client, babble):
    client.update(most={"vad": {"start_window": 12, "start_frames": 8}})
    client.hear(bytes(48_000), babble(1.5), bytes(48_000))
    client.settle()
    assert client.of("input_audio_buffer.speech_started")


def test_a_session_is_forgotten_at_once_when_it_is_over(engine, babble):
    client = Client(engine)
    client.hear(bytes(48_000), babble(0.8), bytes(96_000))
    client.settle()
    client.session.close()
    client.drain()
    assert engine.gone()
    alive = weakref.ref(client.session)
    client.session.conversation._wall = time.perf_counter  # not the client's own, which holds
    client.session.out._send = print  # the client, which holds the session
    gc.disable()
    try:
        del client
        assert alive() is None
    finally:
        gc.enable()
