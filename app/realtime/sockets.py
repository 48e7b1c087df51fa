"""How realtime events travel: one WebSocket a conversation, a line for those who come when all places are taken, and
limits, so that who floods, stalls or vanishes costs the others nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from fastapi import WebSocket
from starlette.websockets import WebSocketDisconnect, WebSocketState

from app.engine import Engine
from app.metrics import Metrics
from app.realtime.session import RealtimeSession
from app.realtime.session_settings import Refused
from app.settings import Settings

TICK_S = 0.04
STALLED_S = 1.0  # to take one message: who is slower cannot follow speech
BACKLOG_BYTES = 16_000_000  # not yet taken
AHEAD_S = 30.0  # of real time, a client may send
EVENTS_S, BURST = 200, 2000  # events a client may send, a second and at once
LONGEST_EVENT = 16 * 1024 * 1024  # bytes
LINE_S = 2.0  # between two looks at who waits
LINE_BYTES = 1024 * 1024  # of what is sent in line are kept for later
LONGEST_REASON = 120  # bytes; a frame that closes takes 123
REALTIME = "realtime"  # the subprotocol that OpenAI's clients in browsers ask for

log = logging.getLogger(__name__)


class Lobby:
    """Lets in so many at a time, in the order of their coming."""

    def __init__(self, places: int, line: int, metrics: Metrics) -> None:
        self.places, self.longest, self.metrics = places, line, metrics
        self.inside = 0
        self.line: deque[asyncio.Event] = deque()

    def enter(self) -> bool:
        """Whether there was a place at once."""
        if self.inside >= self.places or self.line:
            return False
        self._count(1)
        return True

    def queue(self) -> asyncio.Event | None:
        """Stand in line: the event is set when one is in. None if the line is too long."""
        if len(self.line) >= self.longest:
            return None
        turn = asyncio.Event()
        self.line.append(turn)
        self.metrics.waiting.set(len(self.line))
        return turn

    def position(self, turn: asyncio.Event) -> int:
        """1 is next."""
        return self.line.index(turn) + 1 if turn in self.line else 0

    def leave(self, turn: asyncio.Event | None = None) -> None:
        """Somebody inside, or (by their event) in line, is gone."""
        if turn is not None and turn in self.line:
            self.line.remove(turn)
        else:
            self._count(-1)
        while self.line and self.inside < self.places:
            self._count(1)
            self.line.popleft().set()
        self.metrics.waiting.set(len(self.line))

    def _count(self, step: int) -> None:
        self.inside += step
        self.metrics.sessions.set(self.inside)


class Realtime:
    """Serves `/v1/realtime`."""

    def __init__(self, engine: Engine, settings: Settings, metrics: Metrics, model: str) -> None:
        self.engine, self.settings, self.metrics, self.model = engine, settings, metrics, model
        self.lobby = Lobby(settings.sessions, settings.line, metrics)

    async def serve(self, socket: WebSocket) -> None:
        """One client, from the handshake to the end."""
        offered = [p.strip() for p in socket.headers.get("sec-websocket-protocol", "").split(",")]
        await socket.accept(subprotocol=REALTIME if REALTIME in offered else None)
        with contextlib.suppress(WebSocketDisconnect, _Gone, RuntimeError, TimeoutError):
            wished = socket.query_params.get("model", self.model)
            if wished not in (self.model, "most"):
                told = f"there is no model {wished[:80]!r}: say {self.model}"
                return await _refuse(socket, "model_not_found", told, 1008)
            first = _First()
            if not self.lobby.enter():
                turn = self.lobby.queue()
                if turn is None:
                    self.metrics.refused.labels("busy").inc()
                    told = f"{self.lobby.places} conversations go on and {self.lobby.longest} wait: try again later"
                    return await _refuse(socket, "server_busy", told, 1013)
                first = await self._wait(socket, turn)
            try:
                await self._converse(socket, first)
            finally:
                first.forget()
                self.lobby.leave()

    async def _wait(self, socket: WebSocket, turn: asyncio.Event) -> _First:
        """In line, telling the position. Returns what the client sent meanwhile, for later: it is read at once, or
        nobody would see that it left, and its answers to pings."""
        first = _First()
        waiting = asyncio.ensure_future(turn.wait())
        told = 0
        try:
            while not turn.is_set():
                position = self.lobby.position(turn)
                if position != told:
                    told, first.sequence = position, first.sequence + 1
                    event = {"type": "most.queue", "turn_id": 0, "sequence": first.sequence, "position": position}
                    await _send(socket, event)
                reading = first.reading = first.reading or asyncio.ensure_future(socket.receive())
                await asyncio.wait({waiting, reading}, timeout=LINE_S, return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    first.keep(reading.result())
                    await asyncio.sleep(1 / EVENTS_S)
            return first
        except BaseException:
            first.forget()
            self.lobby.leave(turn)
            raise
        finally:
            waiting.cancel()

    async def _converse(self, socket: WebSocket, first: _First) -> None:
        outbox, loop = _Outbox(socket), asyncio.get_running_loop()

        def post(call: Callable[[], None]) -> None:
            loop.call_soon_threadsafe(guarded, call)

        def guarded(call: Callable[[], None]) -> None:
            try:
                call()
            except Exception:  # else the loop would tell it, and the client wait for ever
                log.exception("%s failed", session.id)
                session.end("the conversation failed here: begin another")

        session = RealtimeSession(
            self.engine, outbox.put, post, self.settings, self.metrics, self.model, first.sequence
        )
        tasks = [
            asyncio.ensure_future(task)
            for task in (self._read(socket, session, first), outbox.deliver(), self._tick(session))
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not task.cancelled() and isinstance(error := task.exception(), Exception):
                    self._explain(error, session)
            if session.ended and socket.client_state == WebSocketState.CONNECTED:
                await outbox.empty()
                await _close(socket, 1000, session.ended)
        except _Slow as slow:
            self._explain(slow, session)
        finally:
            session.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if socket.client_state == WebSocketState.CONNECTED and not session.ended:
                with contextlib.suppress(RuntimeError, TimeoutError):
                    await _close(socket, 1011, "the session ended")

    def _explain(self, error: Exception, session: RealtimeSession) -> None:
        if isinstance(error, _Gone | WebSocketDisconnect):
            return
        if isinstance(error, _Slow):
            self.metrics.refused.labels("slow").inc()
            log.warning("%s: %s", session.id, error)
        else:
            log.error("%s failed", session.id, exc_info=error)

    async def _read(self, socket: WebSocket, session: RealtimeSession, first: _First) -> None:
        pace = _Pace(session)
        while not _ended(message := await first.next(socket)):
            start = time.monotonic()
            self._take(session, message)
            while session.unheard:
                await asyncio.sleep(time.monotonic() - start)
                start = time.monotonic()
                session.hear_on()
            await pace.keep(time.monotonic() - start)

    def _take(self, session: RealtimeSession, message: dict[str, Any]) -> None:
        text, data = message.get("text"), message.get("bytes")
        if text is not None:
            session.receive_text(text)
        elif data is not None:
            try:
                session.microphone(data)
            except Refused as refused:
                session.out.error(refused)

    async def _tick(self, session: RealtimeSession) -> None:
        start = time.monotonic()
        while not session.ended:
            await asyncio.sleep(TICK_S)
            session.tick()
            if time.monotonic() - start > 60 * self.settings.minutes:
                session.end(f"the conversation has lasted {self.settings.minutes} minutes: begin another")


class _Gone(Exception):
    """The client left."""


class _Slow(Exception):
    """The client does not take what is sent."""


class _First:
    """What a client sent before its conversation began, and what is being waited for already."""

    def __init__(self) -> None:
        self.kept: deque[dict[str, Any]] = deque()
        self.reading: asyncio.Future[dict[str, Any]] | None = None
        self.sequence = 0  # of the last event that was sent
        self._bytes = 0

    def keep(self, message: dict[str, Any]) -> None:
        """For later, but only so much: what is said in a long line is heard by nobody. _Gone if it is the last."""
        if _ended(message):
            raise _Gone
        self.reading = None
        self._bytes += len(message.get("text") or message.get("bytes") or "")
        if self._bytes <= LINE_BYTES:
            self.kept.append(message)

    async def next(self, socket: WebSocket) -> dict[str, Any]:
        if self.kept:
            return self.kept.popleft()
        reading, self.reading = self.reading, None
        return await (reading or socket.receive())

    def forget(self) -> None:
        if self.reading is not None:
            self.reading.cancel()


class _Outbox:
    """Events on their way to one client."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket, self._waiting, self._bytes = socket, deque[str](), 0
        self._more, self._over = asyncio.Event(), False
        self._delivering = asyncio.Lock()  # one message after the other, also where the last ones are waited for

    def put(self, event: dict[str, Any]) -> None:
        message = json.dumps(event, separators=(",", ":"))
        self._bytes += len(message)
        self._over = self._over or self._bytes > BACKLOG_BYTES
        if not self._over:
            self._waiting.append(message)
        self._more.set()

    async def deliver(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            await self.empty()

    async def empty(self) -> None:
        async with self._delivering:
            while self._waiting:
                if self._over:
                    raise _Slow(f"more than {BACKLOG_BYTES} bytes wait to be taken: the client is sent away")
                message = self._waiting.popleft()
                self._bytes -= len(message)
                try:
                    async with asyncio.timeout(STALLED_S):  # wait_for may lose a cancellation in Python 3.11
                        await self._socket.send_text(message)
                except TimeoutError:
                    self._over = True
                    raise _Slow(f"a message was not taken within {STALLED_S:g} s: the client is sent away") from None


class _Pace:
    """Slows a client that sends more than a conversation needs."""

    def __init__(self, session: RealtimeSession) -> None:
        self._session, self._start, self._allowed, self._at = session, time.monotonic(), float(BURST), time.monotonic()

    async def keep(self, took_s: float) -> None:
        """Wait as long as is due after a message that took so long: so nobody has more than half of the server."""
        now = time.monotonic()
        self._allowed = min(self._allowed + (now - self._at) * EVENTS_S, BURST) - 1
        self._at = now
        ahead = self._session.conversation.now_ms / 1000 - (now - self._start) - AHEAD_S
        wait = max(ahead, -self._allowed / EVENTS_S, took_s)
        self._session.conversation.listening = False  # so that no silence stands in for what waits meanwhile
        await asyncio.sleep(min(wait, max(STALLED_S, took_s)))
        self._session.conversation.listening = True


def _ended(message: dict[str, Any]) -> bool:
    return message["type"] == "websocket.disconnect"


async def _send(socket: WebSocket, event: dict[str, Any]) -> None:
    try:
        async with asyncio.timeout(STALLED_S):
            await socket.send_text(json.dumps(event))
    except TimeoutError:
        raise _Gone from None


async def _close(socket: WebSocket, code: int, reason: str) -> None:
    """TimeoutError if the client takes nothing more."""
    async with asyncio.timeout(STALLED_S):
        await socket.close(code, reason.encode()[:LONGEST_REASON].decode(errors="ignore"))


async def _refuse(socket: WebSocket, code: str, message: str, close: int) -> None:
    error = {"type": "invalid_request_error", "code": code, "message": message, "param": None, "event_id": None}
    await _send(socket, {"type": "error", "event_id": "event_1", "error": error})
    await _close(socket, close, message)
