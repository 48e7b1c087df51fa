"""A client of the realtime server without any socket: it keeps account of what it is told, and checks that it fits."""

import json
import queue
import time

from app.engine import Ended, Engine
from app.metrics import Metrics
from app.realtime.session import RealtimeSession
from app.settings import Settings
from app.turn import State

METRICS = Metrics()
LIMITS = Settings(characters=100, seconds=5, turns=6)


class Watched(Engine):
    """Knows which of its jobs have not ended."""

    def __init__(self, most, **options):
        self.open = set()
        super().__init__(most, **options)

    def submit(self, make, tell, *, spare=False):
        def told(event):
            tell(event)
            if isinstance(event, Ended):
                self.open.discard(job)

        self.open.add(job := super().submit(make, told, spare=spare))
        return job

    def gone(self):
        """Whether every job ended within a second."""
        end = time.perf_counter() + 1
        while self.open and time.perf_counter() < end:
            time.sleep(0.0005)
        return not self.open and self.load == (0, 0)


class Client:
    """One session's other end: keeps account of what it is told, and is late with what the engine posts."""

    def __init__(self, engine, settings=None):
        self.events, self.posted, self.clock = [], queue.SimpleQueue(), 0.0
        self.created, self.open, self.sequence, self.session = [], None, 0, None
        self.session = RealtimeSession(engine, self.take, self.posted.put, settings or LIMITS, METRICS, "most-tiny")
        self.session.conversation._wall = lambda: self.clock
        self.session.conversation._heard_at = 0.0

    def take(self, event):
        json.dumps(event, allow_nan=False)
        kind = event["type"]
        assert isinstance(kind, str)
        assert event["event_id"]
        if kind.startswith("most."):
            self.sequence += 1
            assert event["sequence"] == self.sequence
        if kind == "response.created":
            assert self.open is None, "a response began while another one went on"
            self.open = event["response"]["id"]
            assert self.open not in self.created
            self.created.append(self.open)
        elif kind.startswith("response."):
            assert self.open == event.get("response_id", event.get("response", {}).get("id")), kind
            self.open = None if kind == "response.done" else self.open
        elif kind == "most.playback" and event["action"] == "play":
            assert self.session.conversation.state != State.HEARING
        self.events.append(event)

    def drain(self, at_most=10**9):
        while at_most > 0:
            try:
                self.posted.get_nowait()()
            except queue.Empty:
                return
            at_most -= 1

    def settle(self, until=lambda: False, seconds=5.0):
        """Let the engine work until there is nothing more to come, or something has happened."""
        end = time.perf_counter() + seconds
        while time.perf_counter() < end and not until():
            self.drain()
            if not self.session.conversation.engine.open and self.posted.empty():
                break
            time.sleep(0.0005)
        self.drain()

    def kinds(self):
        return [event["type"] for event in self.events]

    def of(self, kind):
        return [event for event in self.events if event["type"] == kind]

    def send(self, kind, **body):
        self.session.receive({"type": kind, **body})

    def update(self, **wishes):
        self.send("session.update", session=wishes)

    def write(self, text, role="user", **more):
        part = {"type": "output_text" if role == "assistant" else "input_text", "text": text}
        self.send("conversation.item.create", item={"type": "message", "role": role, "content": [part], **more})

    def hear(self, *pieces):
        """Sound, as long as it lasts."""
        for pcm in pieces:
            for start in range(0, len(pcm), 4800):
                self.session.microphone(pcm[start : start + 4800])
                self.clock += len(pcm[start : start + 4800]) / 48_000
