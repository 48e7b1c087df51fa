"""A real server and real clients on real sockets: the line, the limits, and what one client costs the others."""

import asyncio
import base64
import contextlib
import json
import logging
import socket as sockets
import struct
import threading
import time

import pytest
import uvicorn
import websockets
from fastapi import FastAPI, WebSocket
from openai import AsyncOpenAI
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

from app.engine import Engine
from app.guard import Guard
from app.metrics import Metrics
from app.realtime.sockets import Lobby, Realtime
from app.server import config, listen
from app.settings import Settings

OPENAI = TypeAdapter(RealtimeServerEvent)
PATIENCE_S = 20
QUICKLY = {"max_output_tokens": 16}
pytestmark = pytest.mark.flaky(reruns=2)  # clocks and real sockets, on machines that others keep busy for a moment


class Site:
    """A server on a port of its own, in a thread."""

    def __init__(self, most, **limits):
        self.settings = Settings(port=0, **limits)
        self.metrics = Metrics()
        self.engine = Engine(most, watch=self.metrics.model_s.inc)
        self.realtime = Realtime(self.engine, self.settings, self.metrics, "most-tiny")
        app = FastAPI()

        @app.websocket("/v1/realtime")
        async def converse(connection: WebSocket):
            await self.realtime.serve(connection)

        listener = listen(self.settings)
        self.port = listener.getsockname()[1]
        self.server = uvicorn.Server(config(Guard(app, self.metrics), self.settings))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()
        self.wait(lambda: self.server.started)

    def url(self, query=""):
        return f"ws://127.0.0.1:{self.port}/v1/realtime{query}"

    def wait(self, done, seconds=PATIENCE_S):
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end
            time.sleep(0.01)

    @property
    def empty(self):
        return self.realtime.lobby.inside == 0 and not self.realtime.lobby.line and self.engine.load == (0, 0)

    def close(self):
        self.wait(lambda: self.empty)
        self.server.should_exit = True
        self.thread.join(PATIENCE_S)
        self.engine.close()


class Caller:
    """One client."""

    def __init__(self, site, query="", **options):
        self.site, self.options = (
            site,
            {"max_size": None, "max_queue": None, "ping_interval": None, "compression": None},
        )
        self.options |= options
        self.query, self.events = query, []

    async def __aenter__(self):
        self.socket = await websockets.connect(self.site.url(self.query), **self.options)
        return self

    async def __aexit__(self, *_):
        await self.socket.close()

    async def send(self, kind, **body):
        await self.socket.send(json.dumps({"type": kind, **body}))

    async def until(self, kind, seconds=PATIENCE_S, **fields):
        """The next event of this type."""
        async with asyncio.timeout(seconds):
            while True:
                self.events.append(event := json.loads(await self.socket.recv()))
                if event["type"] == kind and fields.items() <= event.items():
                    return event

    async def closed(self, seconds=PATIENCE_S):
        """The code it is closed with."""
        with contextlib.suppress(websockets.ConnectionClosed):
            async with asyncio.timeout(seconds):
                while True:
                    self.events.append(json.loads(await self.socket.recv()))
        return self.socket.close_code

    async def ask(self, text, **wishes):
        part = {"type": "input_text", "text": text}
        await self.send("conversation.item.create", item={"type": "message", "role": "user", "content": [part]})
        await self.send("response.create", response=wishes)
        return await self.until("response.done")

    def errors(self):
        return [event["error"]["code"] for event in self.events if event["type"] == "error"]

    def abort(self):
        """Vanish without a word."""
        sock = self.socket.transport.get_extra_info("socket")
        sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.transport.abort()


@pytest.fixture(scope="module")
def site(quick):
    site = Site(quick)
    yield site
    site.close()


@pytest.fixture
def small(quick):
    """Two conversations at a time, one in line."""
    site = Site(quick, sessions=2, line=1)
    yield site
    site.close()


@pytest.fixture(autouse=True)
def no_failures(caplog):
    """No test may make the server log an error."""
    yield
    assert not [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR and r.name != "asyncio"]


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 3 * PATIENCE_S))


# The line


def test_the_lobby_lets_in_by_order_of_coming():
    lobby = Lobby(1, 2, Metrics())
    assert lobby.enter()
    assert not lobby.enter()
    first, second = lobby.queue(), lobby.queue()
    assert lobby.queue() is None
    assert [lobby.position(first), lobby.position(second)] == [1, 2]
    lobby.leave(first)
    assert lobby.position(second) == 1
    assert not lobby.enter()
    lobby.leave()
    assert second.is_set()
    assert (lobby.inside, len(lobby.line)) == (1, 0)
    lobby.leave(second)
    assert lobby.inside == 0
    assert lobby.enter()


def test_who_comes_too_late_waits_in_line_or_is_refused(small):
    async def story():
        async with Caller(small) as a, Caller(small) as b, Caller(small) as c:
            await a.until("session.created")
            await b.until("session.created")
            assert (await c.until("most.queue"))["position"] == 1
            async with Caller(small) as d:
                assert await d.closed() == 1013
                assert d.errors() == ["server_busy"]
            await a.socket.close()
            await c.until("session.created", seconds=1.5)
            await c.socket.send(bytes(48_000))  # a second of silence, whose level is told
            await c.until("most.vad")
            assert [event["sequence"] for event in c.events if event["type"].startswith("most.")] == [1, 2]
            assert (await c.ask("hello"))["response"]["status"] in ("completed", "incomplete")

    run(story())


def test_who_leaves_the_line_makes_room_in_it_even_after_having_sent_something(quick):
    site = Site(quick, sessions=1, line=2)

    async def story():
        async with Caller(site) as a, Caller(site) as b, Caller(site) as c:
            await a.until("session.created")
            await b.until("most.queue", position=1)
            await c.until("most.queue", position=2)
            for _ in range(5):
                await b.send("session.update", session={})
            await asyncio.sleep(0.2)
            b.abort()
            await c.until("most.queue", position=1, seconds=4)

    try:
        run(story())
    finally:
        site.close()


def test_what_is_sent_in_line_is_done_inside_and_a_stream_of_sound_does_not_end_the_waiting(small, babble):
    async def story():
        async with Caller(small) as a, Caller(small) as b, Caller(small) as c:
            await a.until("session.created")
            await b.until("session.created")
            await c.until("most.queue")
            await c.send("session.update", session={"instructions": "be brief"})
            for _ in range(300):
                await c.socket.send(bytes(9600))
            async with asyncio.timeout(5):  # it is read all the while: or pings would stay unanswered
                await (await c.socket.ping())
            await a.socket.close()
            assert (await c.until("session.updated"))["session"]["instructions"] == "be brief"

    run(story())


@pytest.mark.parametrize("busy", [False, True])
def test_a_client_that_vanishes_frees_its_place_at_once(small, busy):
    async def story():
        async with Caller(small) as a, Caller(small) as b:
            await a.until("session.created")
            await b.until("session.created")
            if busy:
                await a.send("conversation.item.create", item=written("hello"))
                await a.send("response.create")
                await a.until("response.created")
            a.abort()
            async with Caller(small) as c:
                await c.until("session.created", seconds=2)

    run(story())


def written(text):
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def test_an_unknown_model_is_refused_in_words_of_any_language(site):
    async def story():
        for query in ("?model=gpt-realtime", "?model=" + "%E6%A8%A1" * 200):
            async with Caller(site, query) as a:
                assert await a.closed() == 1008
                assert a.errors() == ["model_not_found"]
        for query in ("?model=most", "?model=most-tiny", ""):
            async with Caller(site, query) as a:
                await a.until("session.created")

    run(story())


# What clients send


NONSENSE = [
    "",
    "{",
    "null",
    "[]",
    '"hello"',
    "NaN",
    "1e999",
    "9" * 10_000,
    "[" * 100_000,
    '{"type": null}',
    '{"type": "nothing"}',
    '{"type": "session.update", "session": {"seed": 1e400}}',
    '{"type": "session.update", "session": {"most": {"seed": %s}}}' % (10**400),
    '{"type": "session.update", "session": {"most": {"temperature": NaN}}}',
    '{"type": "session.update", "session": %s}' % ('{"audio":' * 900 + "1" + "}" * 900),
    '{"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16000}}}}}',
    '{"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}}',
    '{"type": "input_audio_buffer.append"}',
    '{"type": "input_audio_buffer.append", "audio": "a"}',
    '{"type": "input_audio_buffer.append", "audio": "!!!!"}',
    '{"type": "input_audio_buffer.append", "audio": "ÄÖÜ"}',
    '{"type": "input_audio_buffer.append", "audio": "AAAA"}',
    '{"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": [{"type": '
    '"input_text", "text": "%s"}]}}' % ("x" * 1_000_000),
    b"\0",
    bytes(3_000_001),
]


def test_nonsense_is_answered_by_an_error_each_and_the_session_goes_on(site):
    async def story():
        async with Caller(site) as a:
            await a.until("session.created")
            for number, nonsense in enumerate(NONSENSE):
                await a.socket.send(nonsense)
                error = (await a.until("error"))["error"]
                assert error["message"], number
                assert len(error["message"]) < 1000
            assert (await a.ask("hello"))["response"]["status"] in ("completed", "incomplete")

    run(story())


def test_a_message_of_a_hundred_megabytes_is_cut_off_and_the_server_lives(site):
    async def story():
        async with Caller(site) as a, Caller(site) as b:
            await a.until("session.created")
            await b.until("session.created")
            with contextlib.suppress(websockets.ConnectionClosed):
                await a.socket.send("x" * 100_000_000)
            assert await a.closed() == 1009
            assert (await b.ask("hello"))["response"]["status"] in ("completed", "incomplete")

    run(story())


def test_text_that_is_no_text_ends_that_session_alone(site, caplog):
    async def story():
        async with Caller(site) as a, Caller(site) as b:
            await a.until("session.created")
            await b.until("session.created")
            await a.socket.send(b"\xff\xfe", text=True)
            assert await a.closed() == 1007
            assert (await b.ask("hello"))["response"]["status"] in ("completed", "incomplete")

    run(story())
    caplog.clear()  # the server tells of it


@pytest.mark.parametrize("flood", ["events", "sound", "errors", "megabytes"])
def test_a_flood_does_not_keep_others_from_their_answers(site, flood, babble):
    sent = {
        "events": json.dumps({"type": "session.update", "session": {"most": {"turns": {"tentative_ms": 150}}}}),
        "sound": babble(5),
        "errors": "{",
        "megabytes": "[" + "0," * 2_000_000 + "0]",
    }[flood]

    async def story():
        async with Caller(site) as a, Caller(site) as b:
            await a.until("session.created")
            await b.until("session.created")

            async def pour():
                with contextlib.suppress(websockets.ConnectionClosed):
                    while True:
                        await a.socket.send(sent)

            async def read():
                await a.closed(60)

            tasks = [asyncio.ensure_future(pour()), asyncio.ensure_future(read())]
            await asyncio.sleep(0.3)
            start = time.monotonic()
            await b.ask("hello", **QUICKLY)
            took = time.monotonic() - start
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            a.abort()
            assert took < 5

    run(story())


def test_who_asks_for_costly_things_waits_for_as_long_as_they_took(site, babble):
    """Sound is made anew at each asking: but half of the time belongs to the others."""
    part = {"type": "input_audio", "audio": base64.b64encode(babble(100)).decode()}

    async def story():
        async with Caller(site) as a, Caller(site) as b:
            await b.until("session.created")
            item = {"type": "message", "role": "user", "content": [part], "id": "long"}
            await a.send("conversation.item.create", item=item)
            await a.until("conversation.item.done")
            for _ in range(6):
                await a.send("conversation.item.retrieve", item_id="long")
            reading = asyncio.ensure_future(a.closed(60))
            start = time.monotonic()
            await b.ask("hello", **QUICKLY)
            assert time.monotonic() - start < 5
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            a.abort()

    run(story())


def test_a_client_that_never_reads_is_sent_away(site, babble):
    part = {"type": "input_audio", "audio": base64.b64encode(babble(20)).decode()}

    async def story():
        async with Caller(site) as a:
            await a.until("session.created")
            item = {"type": "message", "role": "user", "content": [part], "id": "long"}
            await a.send("conversation.item.create", item=item)
            a.socket.transport.pause_reading()
            for _ in range(8):  # a million bytes each
                await a.send("conversation.item.retrieve", item_id="long")
            start = time.monotonic()
            while site.realtime.lobby.inside:
                await asyncio.sleep(0.02)
                assert time.monotonic() - start < 8
            a.abort()

    run(story())
    assert b'most_refused_total{why="slow"}' in site.metrics.text()


@contextlib.asynccontextmanager
async def slow_link(port, bytes_s):
    """A port that leads to another one; what comes back takes its time, and little of it waits on the way."""

    async def carry(reader, writer, pause):
        while data := await reader.read(4096):
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(len(data) * pause)

    async def connected(reader, writer):
        connection = sockets.socket()
        connection.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 8192)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        far_reader, far_writer = await asyncio.open_connection(sock=connection, limit=4096)
        ways = [carry(reader, far_writer, 0), carry(far_reader, writer, 1 / bytes_s)]
        tasks = [asyncio.ensure_future(way) for way in ways]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        writer.close()
        far_writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def test_a_long_record_does_not_end_the_session_of_a_client_on_a_slow_link(quick, babble, monkeypatch):
    def narrow(settings, listen=listen):
        listener = listen(settings)
        listener.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, 8192)  # else all of it fits in there
        return listener

    with monkeypatch.context() as patch:
        patch.setitem(globals(), "listen", narrow)
        site = Site(quick)
    part = {"type": "input_audio", "audio": base64.b64encode(babble(3)).decode()}

    async def story():
        async with slow_link(site.port, 60_000) as site.port, Caller(site) as a:
            await a.until("session.created")
            await a.send("session.update", session={"output_modalities": ["text"], "most": {"record": True}})
            await a.send("conversation.item.create", item={"type": "message", "role": "user", "content": [part]})
            start = time.monotonic()
            await a.send("response.create", response=QUICKLY)
            await a.until("response.done")
            assert time.monotonic() - start > 1.5  # more than one message may take
            pieces = [e["data"] for e in a.events if e["type"] == "most.record.piece" and e["of"] == "user"]
            assert len(base64.b64decode("".join(pieces))) == 3 * 32_000

    try:
        run(story())
    finally:
        site.close()


def test_the_connection_of_a_client_that_never_reads_is_given_up(quick, babble, monkeypatch):
    monkeypatch.setattr("app.server.GONE_MS", 1500)
    site = Site(quick)
    part = {"type": "input_audio", "audio": base64.b64encode(babble(20)).decode()}

    async def story():
        async with Caller(site) as a:
            await a.until("session.created")
            item = {"type": "message", "role": "user", "content": [part], "id": "long"}
            await a.send("conversation.item.create", item=item)
            a.socket.transport.pause_reading()
            for _ in range(8):
                await a.send("conversation.item.retrieve", item_id="long")
            async with asyncio.timeout(15):
                while site.server.server_state.connections:
                    await asyncio.sleep(0.05)
            a.abort()

    try:
        run(story())
    finally:
        site.close()


# Limits


def test_the_last_turn_ends_the_conversation(quick):
    site = Site(quick, turns=2)

    async def story():
        async with Caller(site) as a:
            await a.ask("hello")
            await a.ask("and again")
            assert await a.closed() == 1000
            assert a.errors() == ["session_ended"]
            assert "2 turns" in a.socket.close_reason

    try:
        run(story())
    finally:
        site.close()


def test_the_last_minute_ends_the_conversation(quick):
    site = Site(quick)
    object.__setattr__(site.settings, "minutes", 0.005)

    async def story():
        async with Caller(site) as a:
            assert await a.closed(5) == 1000
            assert a.errors() == ["session_ended"]

    try:
        run(story())
    finally:
        site.close()


# Conversations


async def speak(caller, pcm, pace=0.0):
    for start in range(0, len(pcm), 4800):
        await caller.socket.send(pcm[start : start + 4800])
        await asyncio.sleep(pace)


def test_what_a_spoken_conversation_is_told_fits_openai_and_keeps_its_order(site, babble):
    async def story():
        async with Caller(site) as a:
            await a.send("session.update", session={"most": {"routing": True}})
            for number in range(3):
                await speak(a, bytes(24_000) + babble(1, number) + bytes(48_000))
                await a.until("response.done")
                await a.until("most.state", state="listening")  # it was played
            return a.events

    events = run(story())
    turns, sequences = [], []
    for event in events:
        if event["type"].startswith("most."):
            sequences.append(event["sequence"])
        else:
            assert OPENAI.validate_json(json.dumps(event), strict=True).type == event["type"]
        if event["type"] == "response.output_audio.delta":
            turns.append(event["turn_id"])
    assert sequences == list(range(1, len(sequences) + 1))
    assert turns == sorted(turns)
    assert len(set(turns)) == 3


def test_two_conversations_keep_apart(site):
    async def story():
        async with Caller(site) as a, Caller(site) as b:

            async def talk(caller, word):
                for number in range(4):
                    done = await caller.ask(f"{word} {number}", metadata={"who": word})
                    assert done["response"]["metadata"] == {"who": word}

            await asyncio.gather(talk(a, "apple"), talk(b, "pear"))
            for caller, word, other in ((a, "apple", "pear"), (b, "pear", "apple")):
                told = json.dumps(caller.events)
                assert other not in told
                assert told.count(f"{word} 3") == 3  # added, done, and in most.reply
                responses = {e["response_id"] for e in caller.events if "response_id" in e}
                assert responses == {e["response"]["id"] for e in caller.events if "response" in e}
            ids = [{e["session"]["id"] for e in c.events if e["type"] == "session.created"} for c in (a, b)]
            assert len(ids[0] | ids[1]) == 2
            sounds = [
                b"".join(base64.b64decode(e["delta"]) for e in c.events if e["type"] == "response.output_audio.delta")
                for c in (a, b)
            ]
            assert all(sounds)

    run(story())


def test_sound_in_bursts_with_stalls_is_heard_as_one_utterance(site, babble):
    async def story():
        async with Caller(site) as a:
            await a.until("session.created")
            pcm = bytes(24_000) + babble(1.5) + bytes(60_000)
            for start in range(0, len(pcm), 14_400):  # 0.3 s at once, then none for 0.3 s
                await a.socket.send(pcm[start : start + 14_400])
                await asyncio.sleep(0.3)
            await a.until("response.done")
            assert [e["type"] for e in a.events].count("input_audio_buffer.committed") == 1

    run(story())


def test_openais_own_client_holds_a_conversation(site, babble):
    async def story():
        client = AsyncOpenAI(api_key="none", websocket_base_url=f"ws://127.0.0.1:{site.port}/v1")
        async with client.realtime.connect(model="most-tiny") as connection:
            await connection.session.update(
                session={
                    "type": "realtime",
                    "output_modalities": ["audio"],
                    "audio": {"input": {"turn_detection": None, "transcription": {"model": "gpt-4o-transcribe"}}},
                }
            )
            recording = bytes(48_000) + babble(20) + bytes(48_000)  # a whole file at once, as OpenAI allows
            await connection.input_audio_buffer.append(audio=base64.b64encode(recording).decode())
            await connection.input_audio_buffer.commit()
            await connection.response.create()
            heard = said = status = None
            async for event in connection:
                assert event.type != "error", event
                if event.type == "conversation.item.input_audio_transcription.completed":
                    heard = event.transcript
                elif event.type == "response.output_audio_transcript.done":
                    said = event.transcript
                elif event.type == "response.done":
                    status = event.response.status
                    break
            await connection.conversation.item.create(item=written("and in writing?"))
            await connection.response.create(response={"output_modalities": ["text"]})
            async for event in connection:
                assert event.type != "error", event
                if event.type == "response.done":
                    assert event.response.output[0].content[0].type == "output_text"
                    break
        await client.close()
        assert status in ("completed", "incomplete")
        assert heard is not None
        assert said is not None

    run(story())
