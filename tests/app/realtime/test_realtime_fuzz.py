"""Whatever clients send, in whatever order: nothing raises, what they are told fits together, and nothing stays behind.

Sessions talk to one engine, one after the other, in a time of their own that leaps as far as a sequence says.
Hypothesis rolls the dice, and shortens a sequence that does harm.
"""

import base64
import contextlib
import random

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from realtime_client import Client, Watched

from app.realtime.session import HANDLERS
from app.realtime.session_settings import Refused

SEQUENCES, SHARES = 10_000, 20


VALUES = (
    None,
    True,
    False,
    0,
    1,
    -1,
    0.5,
    2**70,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "a",
    "audio",
    "ä" * 300,
)
NAMES = ("item_1", "item_2", "item_3", "root", "nobody", "resp_1", "", None, 7)
UPDATES = (
    {"turn_detection": None},
    {"turn_detection": {"type": "server_vad"}},
    {"turn_detection": {"type": "semantic_vad", "eagerness": "low"}},
    {"turn_detection": {"create_response": False}},
    {"turn_detection": {"create_response": True, "silence_duration_ms": 200}},
    {"turn_detection": {"interrupt_response": False}},
    {"turn_detection": {"threshold": 0.2, "prefix_padding_ms": 0}},
    {"transcription": None},
    {"transcription": {"model": "most"}},
)
OURS = (
    {"routing": True},
    {"record": True},
    {"captions": True},
    {"half_duplex": True},
    {"hands_free": False},
    {"hands_free": True},
)
TUNED = (
    {"turns": {"tentative_ms": 100}},
    {"turns": {"interrupt_ms": 100, "pause_after_ms": 40}},
    {"turns": {"stalled_ms": 300}},
    {"turns": {"longest_ms": 1000}},
    {"vad": {"aggressiveness": 0, "start_window": 10, "start_frames": 2}},
    {"vad": {"background_s": 1, "hangover_ms": 0}},
    {"history": 0},
    {"history": 9, "temperature": 1, "seed": 5},
)


def sound(dice, longest=0.3):
    """Some speech, or silence."""
    size = 2 * int(dice.uniform(0, longest) * 24_000)
    start = 2 * dice.randrange((len(VOICE) - size) // 2)
    return VOICE[start : start + size] if dice.random() < 0.7 else bytes(size)


def utterance(dice):
    """Speech with an end, or nearly: time for a reply to be begun, or to be committed, too."""
    return [VOICE[:19_200], bytes(dice.choice([17_000, 27_000]))]


VOICE = b""


@pytest.fixture(scope="module")
def engine(quick, babble):
    global VOICE
    VOICE = babble(3)
    engine = Watched(quick)
    yield engine
    engine.close()


def any_json(dice, depth=0):
    kind = dice.randrange(4 if depth < 3 else 1)
    if kind == 1:
        return [any_json(dice, depth + 1) for _ in range(dice.randrange(3))]
    if kind == 2:
        words = ("type", "audio", "text", "id", "content", "role", "item", "session", "response", "most", "input")
        return {dice.choice(words): any_json(dice, depth + 1) for _ in range(dice.randrange(4))}
    return dice.choice(VALUES)


def event_of(dice):
    """An event that may make sense, at least in part."""
    match dice.randrange(17):
        case 0 | 1:
            wish = {"audio": {"input": dice.choice(UPDATES)}} if dice.random() < 0.6 else {}
            if dice.random() < 0.5:
                wish["most"] = dict(dice.choice(OURS + TUNED))
            if dice.random() < 0.3:
                wish["output_modalities"] = [dice.choice(["audio", "text"])]
            if dice.random() < 0.3:
                wish["max_output_tokens"] = dice.randint(1, 8)
            return {"type": "session.update", "session": wish}
        case 2:
            return {"type": "input_audio_buffer.commit"}
        case 3:
            return {"type": "input_audio_buffer.clear"}
        case 4 | 5:
            role = dice.choice(["user", "user", "assistant", "system"])
            part = {
                "type": "output_text" if role == "assistant" else "input_text",
                "text": dice.choice(["hello", "a b c"]),
            }
            if role == "user" and dice.random() < 0.4:
                part = {"type": "input_audio", "audio": base64.b64encode(sound(dice)).decode()}
            item = {"type": "message", "role": role, "content": [part] * dice.choice([0, 1, 1, 1, 2])}
            if dice.random() < 0.3:
                item["id"] = dice.choice(NAMES)
            event = {"type": "conversation.item.create", "item": item}
            return event | ({"previous_item_id": dice.choice(NAMES)} if dice.random() < 0.3 else {})
        case 6:
            kind = dice.choice(["conversation.item.retrieve", "conversation.item.delete"])
            return {"type": kind, "item_id": dice.choice(NAMES)}
        case 7:
            end = dice.choice([0, 1, 100, 10_000, -1, 10**400])
            return {
                "type": "conversation.item.truncate",
                "item_id": dice.choice(NAMES),
                "content_index": 0,
                "audio_end_ms": end,
            }
        case 8 | 9 | 10:
            wish = {"output_modalities": [dice.choice(["audio", "text"])]} if dice.random() < 0.3 else {}
            return {"type": "response.create", "response": wish}
        case 11:
            return {"type": "response.cancel"} | ({"response_id": dice.choice(NAMES)} if dice.random() < 0.3 else {})
        case 12:
            return {"type": dice.choice(["most.press", "most.release", "most.stop", "output_audio_buffer.clear"])}
        case 13:
            return {"type": "most.mute", "on": dice.random() < 0.4}
        case 14:
            return {"type": dice.choice(list(HANDLERS)), **{dice.choice(NAMES[:5]): any_json(dice)}}
        case 15:
            event = event_of(dice)
            if event and isinstance(event, dict):  # one value in it is another
                inner = event
                while isinstance(inner, dict) and inner:
                    name = dice.choice(list(inner))
                    if not isinstance(inner[name], dict) or dice.random() < 0.4:
                        inner[name] = any_json(dice)
                        break
                    inner = inner[name]
            return event
        case _:
            return any_json(dice)


def play(dice, engine):
    client = Client(engine)
    session, talks = client.session, dice.random() < 0.3
    if dice.random() < 0.5:
        session.receive({"type": "session.update", "session": {"audio": {"input": dice.choice(UPDATES)}}})
    if dice.random() < 0.3:
        session.receive({"type": "session.update", "session": {"most": dict(dice.choice(OURS + TUNED))}})
    for _ in range(dice.randrange(2, 11)):
        match dice.randrange(10):
            case 0 | 1 | 2:
                for piece in utterance(dice) if talks and dice.random() < 0.5 else [sound(dice)]:
                    client.clock += len(piece) / 48_000 * dice.choice([0, 1, 1, 1])
                    with contextlib.suppress(Refused):
                        session.microphone(piece + b"x" * (dice.random() < 0.02))
            case 3:
                client.clock += dice.choice([0.04, 0.3, 0.6, 1, 6, 3600])
                session.tick()
            case 4:
                turn = dice.choice([session.conversation.machine.live_turn or 0, 1, 2])
                ms, ended = dice.choice([0, 50, 200, 1e6]), dice.random() < 0.5
                session.receive({"type": "most.playback", "turn_id": turn, "played_ms": ms, "ended": ended})
            case 5:
                others = random.Random(dice.randrange(2**32))  # how often it is asked depends on the engine's thread
                client.settle(until=lambda others=others: others.random() < 0.1, seconds=0.03)
            case 6:
                client.drain(dice.randrange(4))
            case 7 if dice.random() < 0.2:
                session.receive_text(dice.choice(["", "{", "[" * 5000, '{"type": "most.stop"}', "9" * 5000, "NaN"]))
            case _:
                session.receive(event := event_of(dice))
                written = isinstance(event, dict) and event.get("type") == "conversation.item.create"
                if written and dice.random() < 0.5:
                    client.send("response.create")
    if dice.random() < 0.3:
        client.settle(seconds=0.05)
    session.close()
    client.drain()
    assert client.open is None, "a response was created, but never done"
    return client


def honest_turn(engine):
    """A new session hears speech and answers it."""
    client = Client(engine)
    for piece in (bytes(24_000), VOICE[:96_000], bytes(48_000)):
        client.session.microphone(piece)
        client.clock += len(piece) / 48_000
    client.settle(until=lambda: client.created and client.open is None)
    kinds = client.kinds()
    assert "input_audio_buffer.speech_started" in kinds
    assert "response.output_audio.delta" in kinds
    assert kinds.count("response.created") == kinds.count("response.done") == 1
    client.session.close()
    assert engine.gone()


@pytest.mark.parametrize("share", range(SHARES))
def test_no_sequence_of_events_does_harm(engine, share):
    played = 0

    @seed(share)
    @settings(
        max_examples=SEQUENCES // SHARES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def sequence(dice):
        nonlocal played
        played += 1
        client = play(dice, engine)
        if played % 10 == 0:
            assert engine.gone(), "a job of a closed session goes on"
        said = len(client.events)
        client.drain()
        assert len(client.events) == said, "told after the end"

    sequence()
    assert played >= SEQUENCES // SHARES
    honest_turn(engine)
