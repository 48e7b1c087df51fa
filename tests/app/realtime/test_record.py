"""What a client that keeps a conversation gets with each reply: the sound that was heard, and the trace as files."""

import base64
import json

import numpy as np
import pytest
import soundfile
from realtime_client import Client, Watched

import most_core
from app.audio import Resampler, from_pcm16, to_pcm16
from app.realtime.output import PIECE_BYTES
from most_core import Done, GenerationSettings, MostConfig
from most_core.trace import RoutingTrace
from most_core.trace_rows import PER_TOKEN

RATE = 16_000


@pytest.fixture(scope="module")
def nano():
    """The shipped model, and the replies that it made."""
    most = most_core.load("assets/nano", device="cpu", slots=2)
    replies, stream = [], most.stream

    def kept(*given, **options):
        for event in stream(*given, **options):
            if isinstance(event, Done):
                replies.append(event.reply)
            yield event

    most.stream = kept
    engine = Watched(most)
    yield engine, replies
    engine.close()


@pytest.fixture
def talk(nano):
    engine, replies = nano
    replies.clear()
    client = Client(engine)
    client.send("session.update", session={"most": {"record": True, "seed": 5}})
    yield client, replies
    client.session.close()
    client.drain()
    assert engine.gone()


def finished(client, times=1):
    client.settle(until=lambda: client.kinds().count("response.done") >= times, seconds=60)


def equal(one, other):
    for name in [*PER_TOKEN, "layers"]:
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None), name
        if a is not None:
            np.testing.assert_array_equal(a, b, err_msg=name)


def record(client):
    """The one record that came, and its parts joined: each in order, none mixed with another, all before it."""
    (event,) = client.of("most.record")
    pieces = client.of("most.record.piece")
    parts, sizes = {}, {}
    for piece in pieces:
        name, data = piece["of"], base64.b64decode(piece["data"], validate=True)
        assert name not in parts or name == next(reversed(parts))
        parts[name] = parts.get(name, b"") + data
        sizes.setdefault(name, []).append(len(data))
        assert len(json.dumps(piece)) < 17_000
    for of_one in sizes.values():
        assert set(of_one[:-1]) <= {PIECE_BYTES}
        assert 0 < of_one[-1] <= PIECE_BYTES
    assert {piece["turn_id"] for piece in pieces} <= {event["turn_id"]}
    assert all(piece["sequence"] < event["sequence"] for piece in pieces)
    expected = ["user"] * event["user"] + ["tokens", "routing", "layers"] * event["tables"]
    assert list(parts) == expected
    return event, parts


def trace_of(parts):
    return RoutingTrace.from_bytes({name: parts[name] for name in ("tokens", "routing", "layers")})


def test_a_spoken_turn_brings_its_sound_and_its_trace_and_no_deltas(talk):
    client, replies = talk
    wave, rate = soundfile.read("assets/samples/latte.wav", dtype="float32")
    up = Resampler(rate, 24_000)
    said = to_pcm16(np.concatenate([up.push(wave), up.finish()]))
    client.hear(bytes(24_000), said, bytes(72_000))
    finished(client)
    client.send("most.stop")
    event, parts = record(client)
    known = ("most.reply", "most.record.piece", "most.record", "response.done")
    kinds = [kind for kind in client.kinds() if kind in known]
    assert list(dict.fromkeys(kinds)) == list(known)
    assert kinds[-2:] == ["most.record", "response.done"]
    assert (event["turn_id"], event["seed"]) == (1, 5)
    assert "most.routing.delta" not in client.kinds()
    trace = trace_of(parts)
    equal(trace, replies[-1].trace)
    assert trace.model_hash == client.session.conversation.engine.most.model_hash
    assert trace.seed == 5
    heard = from_pcm16(parts["user"])
    assert 0.6 * len(wave) < len(heard) < 1.2 * len(wave) + RATE
    shift = np.argmax(np.correlate(heard, wave[RATE // 2 : RATE], "valid"))
    piece = heard[shift : shift + RATE // 2]
    assert np.corrcoef(piece, wave[RATE // 2 : RATE])[0, 1] > 0.99  # it is what was said


def test_a_typed_turn_has_no_sound_but_a_trace(talk):
    client, replies = talk
    client.update(output_modalities=["text"])
    client.write("What is the capital of Wales?")
    client.send("response.create")
    finished(client)
    event, parts = record(client)
    assert event["user"] is False
    equal(trace_of(parts), replies[-1].trace)


def test_a_long_sound_comes_in_pieces_that_are_its_whole(talk):
    client, _ = talk
    seconds = 5
    wave = np.random.default_rng(3).uniform(-0.1, 0.1, seconds * 24_000).astype(np.float32)
    client.update(output_modalities=["text"], audio={"input": {"turn_detection": None}})
    client.hear(to_pcm16(wave))
    client.send("input_audio_buffer.commit")
    client.send("response.create")
    finished(client)
    _, parts = record(client)
    (item,) = [item for item in client.session.conversation.items.values() if item.role == "user"]
    assert parts["user"] == to_pcm16(item.sound)
    pieces = [piece["data"] for piece in client.of("most.record.piece") if piece["of"] == "user"]
    assert len(pieces) == -(-len(parts["user"]) // PIECE_BYTES) > 5
    assert base64.b64decode("".join(pieces), validate=True) == parts["user"]


def test_whoever_wants_deltas_too_gets_both_and_whoever_wants_neither_none(talk):
    client, _ = talk
    client.update(output_modalities=["text"], most={"routing": True})
    client.write("What is the capital of Wales?")
    client.send("response.create")
    finished(client)
    assert client.of("most.routing.delta")
    assert client.of("most.record")[0]["tables"]
    before = len(client.events)
    client.update(most={"routing": False, "record": False})
    client.write("What is the capital of France?")
    client.send("response.create")
    finished(client, times=2)
    assert not [e for e in client.events[before:] if e["type"].startswith(("most.record", "most.routing"))]


def test_a_reply_that_is_cut_off_has_no_tables(talk):
    client, _ = talk
    client.write("Repeat after me: she watched the needle without a word.")
    client.send("response.create")
    client.settle(until=lambda: "response.created" in client.kinds(), seconds=60)
    client.send("response.cancel")
    event, _ = record(client)
    assert event["tables"] is False
    assert client.of("response.done")[0]["response"]["status"] == "cancelled"


def test_a_model_without_experts_records_sound_alone(babble, monkeypatch):
    dense = MostConfig.tiny(feed_forward="dense")
    monkeypatch.setattr(MostConfig, "preset", lambda name: dense)
    most = most_core.untrained("tiny")
    most.usual_settings = GenerationSettings(max_new_tokens=16, max_heard_tokens=2, max_sentence_tokens=2)
    assert not most.config.moe_layers
    engine = Watched(most)
    client = Client(engine)
    client.update(most={"record": True})
    client.hear(bytes(24_000), babble(1), bytes(72_000))
    finished(client)
    event, _ = record(client)
    assert event["tables"] is False
    assert event["user"] is True
    client.session.close()
    client.drain()
    engine.close()
