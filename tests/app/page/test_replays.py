"""Recorded turns without some of their experts, from the real server."""

import base64
import json
import threading
import time

import httpx
import numpy as np
import pytest
import session_zips as zips
import soundfile

from app.audio import from_pcm16, resampled, to_pcm16
from app.page import replays
from most_core import RoutingTrace
from most_core.replay import Effect

QUESTION = "What is the capital of Wales?"


def in_base64(data):
    return base64.b64encode(data).decode()


def tables_of(trace):
    return {name: in_base64(data) for name, data in trace.to_bytes().items()}


def asked(site, path, **body):
    return httpx.post(site.url + path, json=body, headers=site.headers, timeout=60)


def error(answer):
    told = answer.json()["error"]["message"]
    assert "\n" not in told
    assert len(told) < 500
    return told


@pytest.fixture(scope="module")
def wave():
    return to_pcm16(soundfile.read("assets/samples/latte.wav", dtype="float32")[0])


@pytest.fixture(scope="module")
def spoken(nano, wave):
    """A reply to a spoken question, and the body of a request about it."""
    reply = nano.answer(from_pcm16(wave), record_routing=True)
    return reply, {"tables": tables_of(reply.trace), "sound": in_base64(wave)}


@pytest.fixture(scope="module")
def typed(nano):
    reply = nano.answer(QUESTION, record_routing=True)
    return reply, {"tables": tables_of(reply.trace), "sound": None}


def busiest(trace, layer, modality):
    """(decoder layer, its most used expert)."""
    chosen = trace.chosen[trace.modality == modality, list(trace.layers).index(layer)]
    return [layer, int(np.bincount(chosen.ravel()).argmax())]


@pytest.mark.parametrize("mode", ["next", "zero"])
def test_a_spoken_turn_is_answered_without_an_expert(site, nano, spoken, wave, mode):
    reply, turn = spoken
    off = [busiest(reply.trace, 4, 1), busiest(reply.trace, 3, 0)]
    told = asked(site, "/page/knock_out", **turn, knock_out=off, mode=mode, temperature=0, seed=None, speak=True).json()
    settings = nano.usual_settings.__class__(max_new_tokens=nano.usual_settings.max_new_tokens, knock_out_mode=mode)
    pairs = [tuple(pair) for pair in off]
    expected = nano.answer(from_pcm16(wave), settings=settings, knock_out=pairs, record_routing=True)
    assert (told["text"], told["heard"]) == (expected.text, expected.heard)
    assert told["finish_reason"] == expected.finish_reason
    sound = from_pcm16(base64.b64decode(told["sound"]))
    np.testing.assert_allclose(sound, resampled(expected.waveform, expected.sample_rate, 24_000), atol=1e-4)
    given = RoutingTrace.from_bytes({name: base64.b64decode(table) for name, table in told["tables"].items()})
    np.testing.assert_array_equal(given.chosen, expected.trace.chosen)
    for layer, expert in off:
        assert not (given.chosen[:, list(given.layers).index(layer)] == expert).any()
    assert asked(site, "/page/trace", tables=told["tables"]).json()["model_hash"] == nano.model_hash

    tokens, place = told["tokens"], np.flatnonzero(np.isfinite(reply.trace.logprob))
    assert [token["token"] for token in tokens] == place.tolist()
    assert [token["text"] for token in tokens] == reply.trace.text[place].tolist()
    assert [token["modality"] for token in tokens] == reply.trace.modality[place].tolist()
    before = np.array([token["logprob"] for token in tokens])
    np.testing.assert_allclose(before, reply.trace.logprob[place], atol=1e-3)
    lost = before - [token["without"] for token in tokens]
    assert lost.sum() > 0.1
    assert told["lost"]["total"] == pytest.approx(lost.sum(), abs=1e-4)
    for name, modality in (("text", 0), ("audio", 1)):
        assert told["lost"][name] == pytest.approx(lost[reply.trace.modality[place] == modality].mean(), abs=1e-5)


def test_nothing_off_loses_nothing_and_says_the_same(site, typed):
    reply, turn = typed
    told = asked(site, "/page/knock_out", **turn, knock_out=[]).json()
    assert told["text"] == reply.text == "The capital of Wales is Cardiff."
    assert told["heard"] == ""
    assert told["lost"]["total"] == 0
    silent = asked(site, "/page/knock_out", **turn, knock_out=[], speak=False).json()
    assert (silent["text"], silent["sound"]) == (reply.text, "")


def test_a_seed_gives_the_same_draw_again(site, typed):
    _, turn = typed
    one, two, other = (
        asked(site, "/page/knock_out", **turn, knock_out=[[5, 3]], temperature=2, seed=seed).json()["text"]
        for seed in (7, 7, 8)
    )
    assert one == two != other


def test_a_reply_of_text_alone_has_no_loss_of_audio(site, nano):
    settings = nano.usual_settings.__class__(speak=False, max_new_tokens=64)
    trace = nano.answer(QUESTION, settings=settings, record_routing=True).trace
    told = asked(site, "/page/knock_out", tables=tables_of(trace), knock_out=[[1, 2]], sound=None).json()
    assert told["lost"]["audio"] is None
    assert told["lost"]["text"] is not None


@pytest.mark.parametrize("mode", ["next", "zero"])
def test_the_experts_that_a_reply_needs_are_told(site, spoken, mode):
    _, turn = spoken
    told = asked(site, "/page/importance", **turn, count=3, mode=mode).json()["experts"]
    assert len(told) == 3
    assert all(set(row) == {"layer", "expert", "modality", "estimate", "exact"} for row in told)
    exact = [abs(row["exact"]) for row in told]
    assert exact == sorted(exact, reverse=True)
    first = told[0]
    assert first["modality"] == int(first["expert"] >= 8)
    pair = [first["layer"], first["expert"]]
    lost = asked(site, "/page/knock_out", **turn, knock_out=[pair], mode=mode).json()["lost"]["total"]
    assert first["exact"] == pytest.approx(lost, abs=1e-3)


WRONG = [
    ({"knock_out": [[0, 1]]}, "there is no expert 1 in layer 0"),  # a dense one
    ({"knock_out": [[9, 1]]}, "there is no expert 1 in layer 9"),
    ({"knock_out": [[1, 16]]}, "there is no expert 16 in layer 1"),
    ({"knock_out": [[1, -1]]}, "knock_out.0.1 is -1"),
    ({"knock_out": [[1, 2.0]]}, "knock_out.0.1 is 2.0"),
    ({"knock_out": [[1, True]]}, "knock_out.0.1 is True"),
    ({"knock_out": [[1]]}, "knock_out.0 is [1]"),
    ({"knock_out": [[1, 2, 3]]}, "knock_out.0 is [1, 2, 3]"),
    ({"knock_out": "1:2"}, "knock_out is '1:2'"),
    ({"knock_out": [[1, 1]] * 10_001}, "knock_out is"),
    ({"knock_out": [[1, expert] for expert in range(5)]}, "too many experts knocked out in layer 1"),
    ({"knock_out": None}, "knock_out is None"),
    ({"mode": "other"}, "mode is 'other'"),
    ({"temperature": "hot"}, "temperature is 'hot'"),
    ({"temperature": -0.1}, "temperature is -0.1"),
    ({"temperature": 2.1}, "temperature is 2.1"),
    ({"seed": 2**63}, "seed is 9223372036854775808"),
    ({"seed": 1.5}, "seed is 1.5"),
    ({"speak": 1}, "speak is 1"),
    ({"say": "x"}, "say is not known here"),
    ({"sound": "%"}, "sound is no base64"),
    ({"sound": in_base64(b"abc")}, "send whole samples"),
    ({"sound": ""}, "sound"),
    ({"sound": in_base64(bytes(32_000))}, "give the sound of this turn"),
    ({"sound": in_base64(bytes(2 * 16_000 * 21))}, "sound is 21.0 s long, the limit is 20 s"),
    ({"sound": None}, "give the sound that was heard"),
    ({"tables": {}}, "tables.tokens is missing"),
]


@pytest.mark.parametrize(("change", "match"), WRONG, ids=[match for _, match in WRONG])
def test_what_is_wrong_is_told_in_one_line(site, spoken, change, match):
    body = {**spoken[1], "knock_out": [[1, 2]], **change}
    answer = asked(site, "/page/knock_out", **body)
    assert answer.status_code == 400
    assert match in error(answer)


@pytest.mark.parametrize(("change", "match"), [({"count": 0}, "count is 0"), ({"count": 21}, "count is 21")])
def test_the_count_has_limits(site, typed, change, match):
    answer = asked(site, "/page/importance", **typed[1], **change)
    assert answer.status_code == 400
    assert match in error(answer)


@pytest.mark.parametrize("path", ["/page/knock_out", "/page/importance"])
@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"temperature": NaN}', "NaN is no number"),
        ('{"temperature": 1e999}', "is missing"),
        ("[]", "send a JSON object"),
        ("{", "no JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_request_is_refused(site, path, text, match):
    kind = {"Content-Type": "application/json"}
    answer = httpx.post(site.url + path, content=text, headers=kind, timeout=60)
    assert answer.status_code == 400
    assert match in error(answer)


def test_infinite_heat_is_refused(site, typed):
    body = json.dumps({**typed[1], "knock_out": []})[:-1] + ', "temperature": 1e999}'
    kind = {"Content-Type": "application/json"}
    answer = httpx.post(site.url + "/page/knock_out", content=body, headers=kind, timeout=60)
    assert answer.status_code == 400
    assert "temperature is inf" in error(answer)


@pytest.mark.parametrize("path", ["/page/knock_out", "/page/importance"])
def test_a_turn_of_another_model_is_refused(site, path):
    body = {"tables": tables_of(zips.trace()), "sound": None}
    answer = asked(site, path, **body, **({"knock_out": []} if "knock" in path else {}))
    assert answer.status_code == 400
    assert f"model '0123456789abcdef', loaded is '{site.most.model_hash}'" in error(answer)


def changed(trace, **columns):
    copy = RoutingTrace.from_bytes(trace.to_bytes())
    for name, value in columns.items():
        setattr(copy, name, value(np.array(getattr(copy, name))))
    return tables_of(copy)


def at(place, value):
    def change(array):
        array[place] = value
        return array

    return change


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"id": at(3, 10**9)}, "token id 1000000000 is out of range"),
        ({"id": at(3, -1)}, "token id -1 is out of range"),
        ({"logprob": lambda known: np.full_like(known, np.nan)}, "does not end with a reply"),
        ({"logprob": at(-1, np.nan)}, "does not end with a reply"),
        ({"logprob": lambda known: np.zeros_like(known)}, "begins with its reply"),
        ({"id": at(-1, 1)}, "not text and speech in turns"),
        ({"id": at(3, 2554)}, "frames"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tables_that_are_no_recorded_reply_are_refused(site, typed, columns, match):
    frame = site.most.tokens.frame
    columns = {**columns, "id": at(3, frame)} if match == "frames" else columns
    tables = changed(typed[0].trace, **columns)
    for path, more in (("/page/knock_out", {"knock_out": [[1, 2]]}), ("/page/importance", {})):
        answer = asked(site, path, tables=tables, sound=None, **more)
        assert answer.status_code == 400
        assert match in error(answer)


def test_truncated_tables_are_refused(site, typed):
    tables = {**typed[1]["tables"], "routing": typed[1]["tables"]["routing"][:1000]}
    answer = asked(site, "/page/knock_out", tables=tables, sound=None, knock_out=[])
    assert answer.status_code == 400
    assert "routing.parquet is damaged" in error(answer)


def test_others_are_answered_meanwhile(site, spoken):
    """A long list of passes gives way to whoever comes."""
    took = {}

    def ranked():
        start = time.perf_counter()
        answer = asked(site, "/page/importance", **spoken[1], count=20)
        took["ranked"] = time.perf_counter() - start
        took["status"] = answer.status_code

    thread = threading.Thread(target=ranked)
    thread.start()
    time.sleep(0.3)
    body = {"model": "most-nano", "messages": [{"role": "user", "content": QUESTION}]}
    answer = asked(site, "/v1/chat/completions", **body)
    assert answer.status_code == 200
    assert thread.is_alive()
    thread.join()
    assert took["status"] == 200


def test_who_goes_away_stops_the_work(site, spoken, monkeypatch):
    def endless(*_, **__):
        while True:
            time.sleep(0.01)
            yield Effect(1, 2, 0, 0.0, 0.0)

    monkeypatch.setattr(replays, "importance", endless)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(site.url + "/page/importance", json=spoken[1], timeout=1)
    end = time.monotonic() + 20
    while site.get("/health").json()["jobs"] and time.monotonic() < end:
        time.sleep(0.05)
    assert site.get("/health").json()["jobs"] == 0
