"""The one model, shared by everybody who talks to it: a single thread takes turns between their replies.

What is special about it:
- Whoever's listener would first run out of something to hear comes next (`Job.due`): so nobody waits long for a first
  sound while somebody else's reply, long since ahead of its playback, is finished. Between replies that are equally
  far ahead, turns are taken event by event.
- Spare jobs (what is being said, shown while it is said) run only while nothing else can, and end where another job
  waits for their place.
- A cancelled job stops within one token, and its place in the model is free again before the next job goes on.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from most_core import Event, GenerationSettings, HeardDelta, Most, SpeechDelta, TextDelta

PAUSE_S = 1.0  # longer than such a part takes: whoever comes meanwhile goes first
READING_S = 0.06  # how long a listener is busy with a letter that has no sound
log = logging.getLogger(__name__)
Make = Callable[[threading.Event], Iterator[Any]]  # given the event that cancels it


@dataclass(frozen=True)
class Pause:
    """An event of a job that makes nothing to hear, between two parts of its work: all others may go first."""


@dataclass(frozen=True)
class Ended:
    """The last thing that comes of a job. `error` is a sentence for people: what was wrong with what was asked, or,
    if `fault`, that something failed here."""

    error: str = ""
    fault: bool = False


@dataclass(eq=False)
class Job:
    """Something to be generated. Times are `time.perf_counter()`."""

    make: Make
    tell: Callable[[Any], None]
    spare: bool = False
    cancelled: threading.Event = field(default_factory=threading.Event)
    created: float = field(default_factory=time.perf_counter)
    ahead_s: float = 0.0  # what the listener already has
    events: Iterator[Any] | None = None

    @property
    def due(self) -> tuple[bool, float]:
        """Jobs that sort first go first."""
        return self.spare, self.created + self.ahead_s

    def cancel(self) -> None:
        """Stop within one token, from any thread. What was told already may still be on its way."""
        self.cancelled.set()


class Busy(Exception):
    """More is waiting for the model than it will do in decent time."""


class Engine:
    """Start it once for one model; `close` ends its thread, and what still runs."""

    def __init__(self, most: Most, *, waiting: int = 64, watch: Callable[[float], None] | None = None) -> None:
        """At most `waiting` jobs wait for a place in the model; `watch` is told the seconds of each step."""
        self.most = most
        self.places = most.loop.decoder.slots
        self._waiting_limit, self._watch = waiting, watch
        self._change = threading.Condition()
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, make: Make, tell: Callable[[Any], None], *, spare: bool = False) -> Job:
        """Run the iterator that `make` returns. Each event, then one `Ended`, is passed to `tell` on the engine's
        thread: it must only hand them on. Busy if too many wait already."""
        job = Job(make, tell, spare)
        with self._change:
            if self._closed:
                raise RuntimeError("the engine is closed: make another one")
            if sum(not j.spare or spare for j in self._waiting) >= self._waiting_limit:
                raise Busy(f"{self._waiting_limit} requests wait already: try again in a few seconds")
            self._waiting.append(job)
            self._change.notify()
        return job

    def run(self, make: Make) -> Iterator[Any]:
        """The same events, for a caller that may block; ValueError with what was wrong, RuntimeError if the model
        failed. Closing the iterator cancels."""
        told: queue.SimpleQueue[Any] = queue.SimpleQueue()
        job = self.submit(make, told.put)
        try:
            while not isinstance(event := told.get(), Ended):
                yield event
        finally:
            job.cancel()
        raise_error(event)

    async def stream(self, make: Make) -> AsyncIterator[Any]:
        """As `run`, for a coroutine."""
        loop, told = asyncio.get_running_loop(), asyncio.Queue()
        job = self.submit(make, lambda event: loop.call_soon_threadsafe(told.put_nowait, event))
        try:
            while not isinstance(event := await told.get(), Ended):
                yield event
        finally:
            job.cancel()
        raise_error(event)

    def warm_up(self) -> None:
        """Answer once, so that the first person does not wait for what is done only once."""
        settings = GenerationSettings(max_new_tokens=24, max_heard_tokens=4, max_sentence_tokens=4)
        hears = self.most.encoder is not None
        given = np.zeros(16_000, np.float32) if hears else "hello"
        for _ in self.run(lambda cancel: self.most.stream(given, settings=settings, cancel=cancel)):
            pass

    @property
    def load(self) -> tuple[int, int]:
        """(running, waiting) jobs, the spare ones left out."""
        with self._change:
            return sum(not j.spare for j in self._running), sum(not j.spare for j in self._waiting)

    def close(self) -> None:
        """End everything; who waits is told."""
        with self._change:
            self._closed = True
            for job in [*self._waiting, *self._running]:
                job.cancel()
            self._change.notify()
        self._thread.join(timeout=10)

    # The engine's own thread

    def _work(self) -> None:
        while (job := self._next()) is not None:
            start = time.perf_counter()
            self._step(job)
            if self._watch is not None:
                self._watch(time.perf_counter() - start)
            del job  # who asked for it may be gone, and is not to be kept

    def _next(self) -> Job | None:
        """The job to go on with: all that were cancelled are ended first. None once all is closed."""
        with self._change:
            while True:
                for job in [j for j in self._waiting if j.cancelled.is_set()]:
                    self._waiting.remove(job)
                    self._running.append(job)  # to be told its end
                self._make_room()
                for job in self._running:
                    if job.cancelled.is_set():
                        return job
                while self._waiting and len(self._running) < self.places:
                    first = min(self._waiting, key=lambda j: j.due)
                    self._waiting.remove(first)
                    self._running.append(first)
                if self._running:
                    return min(self._running, key=lambda j: j.due)
                if self._closed:
                    return None
                self._change.wait()

    def _make_room(self) -> None:
        """A spare job gives its place to one that waits and is not."""
        if len(self._running) >= self.places and not all(j.spare for j in self._waiting):
            for job in [j for j in self._running if j.spare][:1]:
                job.cancel()

    def _step(self, job: Job) -> None:
        """Up to the job's next event."""
        try:
            if job.events is None:
                if job.cancelled.is_set():
                    return self._end(job, Ended())
                job.events = job.make(job.cancelled)
            event = next(job.events, None)
        except (ValueError, OSError) as error:
            return self._end(job, Ended(str(error)))
        except Exception as error:  # one reply's failure is not the others'
            return self._end(job, Ended(f"the model failed: {type(error).__name__}: {error}", fault=True))
        if event is None:
            return self._end(job, Ended())
        job.ahead_s += _seconds(event)
        _tell(job, event)

    def _end(self, job: Job, ended: Ended) -> None:
        try:
            if job.events is not None and hasattr(job.events, "close"):
                job.events.close()
        except Exception:
            log.exception("a job did not end as it should")
        with self._change:  # together, so that all is told once nothing runs
            self._running.remove(job)
            _tell(job, ended)
        job.make, job.tell, job.events = _over, _over, None  # what they hold may go, and seldom goes in circles


def _over(_: Any) -> Iterator[Any]:
    """In place of what a job held."""
    return iter(())


def _tell(job: Job, event: Any) -> None:
    try:
        job.tell(event)
    except RuntimeError:  # the event loop that listened is closed
        job.cancel()
    except Exception:  # nor may one listener's failure be the others'
        log.exception("nobody takes what comes of a job")
        job.cancel()


def raise_error(ended: Ended) -> None:
    """What went wrong, if anything did, as an exception."""
    if ended.error:
        raise RuntimeError(ended.error) if ended.fault else ValueError(ended.error)


def _seconds(event: Event | Pause) -> float:
    """How long a listener is busy with it."""
    if isinstance(event, Pause):
        return PAUSE_S
    if isinstance(event, SpeechDelta):
        return len(event.pcm) / event.sample_rate
    return READING_S * len(event.text) if isinstance(event, HeardDelta | TextDelta) else 0.0
