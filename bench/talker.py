"""A client that talks like a page does: sound in real time, replies played as they come, playback reported.

It knows the true times, since it makes the microphone's sound itself: what is said, when, and over what background. All
times are milliseconds since the client began to send sound.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from app.audio import WIRE_RATE, from_pcm16, to_pcm16

BLOCK = WIRE_RATE // 50  # samples that are sent at once
PER_MS = WIRE_RATE / 1000
BACKGROUND = 10 ** (-62 / 20)  # a quiet room
AUDIBLE = 10 ** (-50 / 20)
REPORT_MS = 100
LONGEST_S = 600


@dataclass
class Heard:
    """One reply, as it was heard."""

    turn: int
    pcm: list[np.ndarray] = field(default_factory=list)
    text: str = ""
    status: str = ""  # of response.done
    began_ms: float | None = None  # when its first sample was played
    audible_ms: float | None = None  # ... its first sample that can be heard
    played: float = 0.0  # samples
    ended_ms: float | None = None
    pauses_ms: list[float] = field(default_factory=list)
    resumes_ms: list[float] = field(default_factory=list)
    stopped_ms: float | None = None
    timings: dict[str, Any] | None = None

    @property
    def samples(self) -> int:
        return sum(map(len, self.pcm))


class Talker:
    """`async with Talker(url) as t:`, then `t.say(wave)` and `await t.until(lambda: ...)`. `echo`: how much of what is
    played comes back through the microphone, 60 ms later."""

    def __init__(self, url: str, *, echo: float = 0.0, seed: int = 0, update: dict[str, Any] | None = None) -> None:
        self.url, self.echo, self.update = url, echo, update
        self.random = np.random.default_rng(seed)
        self.replies: dict[int, Heard] = {}
        self.events: list[tuple[float, dict[str, Any]]] = []
        self.state, self.stale_samples = "listening", 0
        self.late_blocks = 0  # that this client sent more than 20 ms late: then its figures tell of itself
        self._sent = 0  # samples
        self._ahead = np.zeros(LONGEST_S * WIRE_RATE, np.float32)  # what will be said
        self._turn, self._paused, self._played_at = 0, False, 0.0
        self._reported_ms = -1e9
        self._spoken = np.zeros(LONGEST_S * WIRE_RATE, np.float32)  # what was played, for the echo
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Talker:
        self._socket: ClientConnection = await connect(self.url, max_size=None, compression=None)
        self._start = time.perf_counter()
        if self.update:
            await self.send("session.update", session=self.update)
        self._tasks = [asyncio.create_task(self._speak()), asyncio.create_task(self._listen())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._socket.close()

    @property
    def now_ms(self) -> float:
        return 1000 * (time.perf_counter() - self._start)

    async def send(self, kind: str, **body: Any) -> None:
        await self._socket.send(json.dumps({"type": kind, **body}))

    def say(self, wave: np.ndarray, in_ms: float = 40.0) -> float:
        """Speak (24 kHz) soon; when its first sample is due. More than one thing at a time is mixed."""
        start = int(max(self._sent / PER_MS, self.now_ms) + in_ms) * BLOCK // 20
        if start + len(wave) > len(self._ahead):
            raise ValueError(f"a talker speaks for at most {LONGEST_S} s: begin another")
        self._ahead[start : start + len(wave)] += wave
        return start / PER_MS

    async def until(self, true: Callable[[], bool], within_s: float = 20.0) -> bool:
        """Wait for something that an event or playback brings about; False if it does not come."""
        end = time.perf_counter() + within_s
        while not true():
            if time.perf_counter() > end or any(t.done() for t in self._tasks):
                return False
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), 0.02)
            except TimeoutError:
                self._advance()
        return True

    async def _speak(self) -> None:
        while True:
            due = (self._sent + BLOCK) / PER_MS
            if (wait := due - self.now_ms) > 0:
                await asyncio.sleep(wait / 1000)
            elif wait < -20:
                self.late_blocks += 1
            part = slice(self._sent, self._sent + BLOCK)
            block = self._ahead[part] + BACKGROUND * self.random.standard_normal(BLOCK).astype(np.float32)
            if self.echo:
                delayed = slice(max(part.start - int(60 * PER_MS), 0), max(part.stop - int(60 * PER_MS), 0))
                heard = self._spoken[delayed]
                block[BLOCK - len(heard) :] += self.echo * heard
            self._sent += BLOCK
            data = base64.b64encode(to_pcm16(block)).decode("ascii")
            await self.send("input_audio_buffer.append", audio=data)
            self._advance()
            await self._report()

    async def _listen(self) -> None:
        try:
            async for message in self._socket:
                self._take(self.now_ms, json.loads(message))
                self._changed.set()
        except ConnectionClosed:
            pass

    def _take(self, at: float, event: dict[str, Any]) -> None:
        self._advance()
        kind = event["type"]
        if kind == "response.output_audio.delta":
            reply = self._reply(event["turn_id"])
            samples = from_pcm16(base64.b64decode(event["delta"]))
            if reply.stopped_ms is not None or reply.turn != self._turn:
                self.stale_samples += len(samples)
            elif reply.began_ms is None:
                reply.began_ms = self._played_at = at
            reply.pcm.append(samples)
            return
        self.events.append((at, event))
        if kind == "most.playback":
            self._obey(at, self._reply(event["turn_id"]), event["action"])
        elif kind == "most.state":
            self.state = event["state"]
        elif kind == "most.timings":
            self._reply(event["turn_id"]).timings = event
        elif kind == "response.done":
            reply = self._reply(event["turn_id"])
            reply.status = event["response"]["status"]
            reply.text = "".join(p.get("transcript", "") for o in event["response"]["output"] for p in o["content"])

    def _obey(self, at: float, reply: Heard, action: str) -> None:
        if action == "play":
            self._turn, self._paused, self._played_at = reply.turn, False, at
        elif action == "pause":
            self._paused = True
            reply.pauses_ms.append(at)
        elif action == "resume":
            self._paused, self._played_at = False, at
            reply.resumes_ms.append(at)
        else:
            reply.stopped_ms = at

    def _reply(self, turn: int) -> Heard:
        return self.replies.setdefault(turn, Heard(turn))

    def _advance(self) -> None:
        """Play up to now."""
        reply, now = self.replies.get(self._turn), self.now_ms
        if reply is None or reply.began_ms is None or self._paused or reply.stopped_ms is not None:
            self._played_at = now
            return
        before, size = int(reply.played), reply.samples
        reply.played = min(reply.played + (now - self._played_at) * PER_MS, size)
        after = int(reply.played)
        if after > before:
            piece = np.concatenate(reply.pcm)[before:after]
            start = int(self._played_at * PER_MS)
            self._spoken[start : start + len(piece)] += piece
            loud = np.flatnonzero(np.abs(piece) > AUDIBLE)
            if reply.audible_ms is None and len(loud):
                reply.audible_ms = self._played_at + loud[0] / PER_MS
        self._played_at = now
        if reply.status and after >= size and reply.ended_ms is None:
            reply.ended_ms = now
            self._reported_ms = -1e9

    async def _report(self) -> None:
        reply = self.replies.get(self._turn)
        if reply is None or reply.began_ms is None or reply.stopped_ms is not None:
            return
        if self.now_ms - self._reported_ms < REPORT_MS:
            return
        self._reported_ms = self.now_ms if reply.ended_ms is None else 1e9
        played_ms, ended = reply.played / PER_MS, reply.ended_ms is not None
        await self.send("most.playback", turn_id=reply.turn, played_ms=played_ms, ended=ended)
