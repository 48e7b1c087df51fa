"""Many replies share one model: in turn, fairly, each to its own end, whatever becomes of the others."""

import asyncio
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from app.engine import Busy, Ended, Engine, Pause
from most_core import Done, GenerationSettings, SpeechDelta, TextDelta

SECOND = SpeechDelta(np.zeros(16_000, np.float32), 16_000)
PATIENCE_S = 10


@pytest.fixture
def engine(quick):
    engine = Engine(quick)
    yield engine
    engine.close()
    assert not engine._thread.is_alive()


class Told:
    """What came of some jobs, in order: (name, event)."""

    def __init__(self):
        self.log, self._new = [], threading.Condition()

    def of(self, name):
        def tell(event):
            with self._new:
                self.log.append((name, event))
                self._new.notify_all()

        return tell

    def events(self, name):
        return [event for teller, event in self.log if teller == name]

    def wait(self, done):
        with self._new:
            assert self._new.wait_for(done, PATIENCE_S), self.log

    def until_ended(self, *names):
        self.wait(lambda: all(any(isinstance(e, Ended) for e in self.events(name)) for name in names))


@pytest.fixture
def told():
    return Told()


class Steps:
    """An iterator that gives one event a step, as the model would, and knows how many were made."""

    def __init__(self, *events, hold=False, pause_s=0.0):
        self.events, self.made, self.closed, self.pause_s = events, 0, False, pause_s
        self.go, self.begun = threading.Event(), threading.Event()
        if not hold:
            self.go.set()

    def __call__(self, cancel):
        self.begun.set()
        try:
            for event in self.events:
                assert self.go.wait(PATIENCE_S)
                if cancel.is_set():
                    return
                self.made += 1
                time.sleep(self.pause_s)
                yield event
        finally:
            self.closed = True


def start_together(engine, told, **jobs):
    """Submit them all while the engine is held, so that none is ahead by chance."""
    gate = Steps("open", hold=True)
    engine.submit(gate, told.of("gate"))
    running = {name: engine.submit(make, told.of(name)) for name, make in jobs.items()}
    for job in running.values():
        job.created = next(iter(running.values())).created
    gate.go.set()
    return running


def failing(error):
    def make(cancel):
        yield "something"
        raise error

    return make


def test_events_come_in_order_and_end_with_one_ended(engine, told, quick):
    engine.submit(lambda cancel: quick.stream("hello", cancel=cancel), told.of("a"))
    told.until_ended("a")
    *events, done, ended = told.events("a")
    assert isinstance(done, Done)
    assert ended == Ended()
    assert "".join(e.text for e in events if isinstance(e, TextDelta)).strip() == done.reply.text
    sound = np.concatenate([e.pcm for e in events if isinstance(e, SpeechDelta)])
    np.testing.assert_array_equal(sound, done.reply.waveform)


def test_two_long_jobs_take_turns(engine, told):
    start_together(engine, told, a=Steps(*[SECOND] * 20), b=Steps(*[SECOND] * 20))
    told.until_ended("a", "b")
    order = [name for name, event in told.log if event is SECOND]
    for count in range(2, 40, 2):
        assert abs(order[:count].count("a") - order[:count].count("b")) <= 1


def test_a_new_job_sounds_before_an_older_one_that_is_far_ahead_goes_on(engine, told):
    old = Steps(*[SECOND] * 300, hold=True, pause_s=0.002)
    engine.submit(old, told.of("old"))
    new = Steps(TextDelta("hi"), SECOND)
    old.go.set()
    told.wait(lambda: len(told.events("old")) >= 5)
    old.go.clear()
    engine.submit(new, told.of("new"))
    before = len(told.log)
    old.go.set()
    told.until_ended("new", "old")
    first = next(i for i, (name, event) in enumerate(told.log) if name == "new" and event is SECOND)
    assert [name for name, _ in told.log[before:first]].count("old") <= 2  # one step was under way


def test_spare_jobs_run_only_when_nothing_else_can(engine, told):
    gate = Steps("open", hold=True)
    engine.submit(gate, told.of("gate"))
    assert gate.begun.wait(PATIENCE_S)
    engine.submit(Steps(1, 2, 3), told.of("spare"), spare=True)
    engine.submit(Steps(*[SECOND] * 5), told.of("a"))
    assert engine.load == (1, 1)
    gate.go.set()
    told.until_ended("a", "spare")
    names = [name for name, _ in told.log if name != "gate"]
    assert names == ["a"] * 6 + ["spare"] * 4


def test_a_spare_job_gives_its_place_to_one_that_waits(engine, told):
    long = Steps(*[SECOND] * 300, hold=True, pause_s=0.002)
    engine.submit(long, told.of("long"))
    for _ in range(engine.places - 1):
        engine.submit(Steps(*range(100_000)), told.of("spare"), spare=True)
    long.go.set()
    told.wait(lambda: len(told.events("long")) >= 5)
    long.go.clear()
    engine.submit(Steps(SECOND), told.of("new"))
    before = len(told.events("long"))
    long.go.set()
    told.until_ended("new", "long")
    order = [name for name, event in told.log if event is SECOND]
    assert order.index("new") <= before + 2
    for job in [*engine._running, *engine._waiting]:
        job.cancel()


def test_cancelling_stops_within_one_token_and_frees_the_place(engine, told, quick, monkeypatch):
    settings = GenerationSettings(max_new_tokens=900, max_sentence_tokens=2, max_sentence_units=4)
    steps, step = [], quick.loop.decoder.step
    monkeypatch.setattr(quick.loop.decoder, "step", lambda *a: steps.append(len(told.log)) or step(*a))
    job = engine.submit(lambda cancel: quick.stream("hello", settings=settings, cancel=cancel), told.of("a"))
    told.wait(lambda: len(told.events("a")) >= 3)
    job.cancel()
    made = len(steps)
    told.until_ended("a")
    assert len(steps) <= made + 1
    assert told.events("a")[-1] == Ended()
    assert len(quick.loop._free) == engine.places
    assert engine.load == (0, 0)


def test_a_job_cancelled_while_it_waits_never_starts(engine, told):
    gates = [Steps("open", hold=True) for _ in range(engine.places)]
    for gate in gates:
        engine.submit(gate, told.of("gate"))
    late = Steps("never")
    job = engine.submit(late, told.of("late"))
    job.cancel()
    for gate in gates:
        gate.go.set()
    told.until_ended("late")
    assert told.events("late") == [Ended()]
    assert not late.made


@pytest.mark.parametrize(
    ("error", "fault"), [(ValueError("too much"), False), (RuntimeError("broken"), True), (KeyError("x"), True)]
)
def test_a_job_that_fails_ends_with_a_sentence_and_the_next_one_works(engine, told, quick, error, fault):
    engine.submit(failing(error), told.of("bad"))
    engine.submit(lambda cancel: quick.stream("hello", cancel=cancel), told.of("good"))
    told.until_ended("bad", "good")
    ended = told.events("bad")[-1]
    assert ended.fault is fault
    assert str(error) in ended.error
    assert told.events("good")[-1] == Ended()
    assert len(quick.loop._free) == engine.places


def test_a_question_that_does_not_fit_is_refused_and_frees_its_place(engine, told, quick):
    engine.submit(lambda cancel: quick.stream("word " * 5000, cancel=cancel), told.of("bad"))
    told.until_ended("bad")
    [ended] = told.events("bad")
    assert ended.error
    assert not ended.fault
    assert len(quick.loop._free) == engine.places


def test_whatever_a_job_does_in_its_end_or_its_listener_with_an_event_the_engine_goes_on(engine, told):
    class Stubborn:
        def __iter__(self):
            return self

        def __next__(self):
            raise ValueError("no")

        def close(self):
            raise RuntimeError("generator ignored GeneratorExit")

    engine.submit(lambda cancel: Stubborn(), told.of("stubborn"))
    engine.submit(lambda cancel: 7, told.of("number"))

    def deaf(event):
        raise TypeError("this listener is broken")

    engine.submit(Steps(1, 2), deaf)
    engine.submit(Steps("fine"), told.of("good"))
    told.until_ended("stubborn", "number", "good")
    assert told.events("good") == ["fine", Ended()]


def test_more_jobs_than_places_wait_and_all_finish(engine, told, quick):
    names = [str(i) for i in range(3 * engine.places)]
    for name in names:
        engine.submit(lambda cancel: quick.stream("hello", cancel=cancel), told.of(name))
    told.until_ended(*names)
    assert all(isinstance(told.events(name)[-2], Done) for name in names)
    assert engine.load == (0, 0)


def test_too_many_waiting_are_refused_in_words(quick, told):
    engine, gate = Engine(quick, waiting=2), Steps("open", hold=True)
    try:
        engine.submit(gate, told.of("gate"))
        assert gate.begun.wait(PATIENCE_S)
        engine.submit(Steps("spare"), told.of("spare"), spare=True)
        for name in ("a", "b"):
            engine.submit(Steps("late"), told.of(name))
        for spare in (False, True):
            with pytest.raises(Busy, match="try again"):
                engine.submit(Steps("more"), told.of("more"), spare=spare)
        gate.go.set()
        told.until_ended("gate", "a", "b", "spare")
    finally:
        gate.go.set()
        engine.close()


def test_run_gives_the_events_and_raises_what_was_wrong(engine, quick):
    events = list(engine.run(lambda cancel: quick.stream("hello", cancel=cancel)))
    assert isinstance(events[-1], Done)
    assert not any(isinstance(event, Ended) for event in events)
    with pytest.raises(ValueError, match="too much"):
        list(engine.run(failing(ValueError("too much"))))
    with pytest.raises(RuntimeError, match="broken"):
        list(engine.run(failing(OverflowError("broken"))))


def test_closing_run_early_cancels(engine):
    steps = Steps(*range(1_000_000))
    running = engine.run(steps)
    assert next(running) == 0
    running.close()
    wait_for(lambda: steps.closed)
    assert steps.made < 1_000_000


def test_stream_gives_the_same_to_a_coroutine(engine, quick):
    async def collect(make):
        return [event async for event in engine.stream(make)]

    events = asyncio.run(collect(lambda cancel: quick.stream("hello", cancel=cancel)))
    assert isinstance(events[-1], Done)
    with pytest.raises(ValueError, match="too much"):
        asyncio.run(collect(failing(ValueError("too much"))))


def test_closing_stream_early_cancels(engine):
    steps = Steps(*range(1_000_000))

    async def take_one():
        running = engine.stream(steps)
        assert await anext(running) == 0
        await running.aclose()

    asyncio.run(take_one())
    wait_for(lambda: steps.closed)
    assert steps.made < 1_000_000


def test_a_coroutine_that_is_cancelled_cancels_its_job(engine):
    steps = Steps(*range(1_000_000))

    async def give_up():
        async def consume():
            async for _ in engine.stream(steps):
                pass

        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(consume(), 0.05)

    asyncio.run(give_up())
    wait_for(lambda: steps.closed)
    assert steps.made < 1_000_000


def test_a_listener_whose_loop_is_closed_does_not_harm_the_engine(engine, told):
    loop = asyncio.new_event_loop()
    loop.close()
    steps = Steps(*range(1_000_000))
    engine.submit(steps, lambda event: loop.call_soon_threadsafe(print, event))
    engine.submit(Steps("fine"), told.of("good"))
    told.until_ended("good")
    wait_for(lambda: steps.closed)
    assert steps.made < 1000


def test_closing_ends_everything_and_tells_who_waits(quick, told):
    engine = Engine(quick)
    settings = replace(quick.usual_settings, max_new_tokens=900)
    names = [str(i) for i in range(2 * engine.places)]
    for name in names:
        engine.submit(lambda cancel: quick.stream("hello", settings=settings, cancel=cancel), told.of(name))
    engine.close()
    told.until_ended(*names)
    assert not engine._thread.is_alive()
    assert len(quick.loop._free) == engine.places
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(Steps(1), told.of("late"))
    engine.close()


def test_warming_up_leaves_nothing_behind_and_steps_are_watched(quick):
    seconds = []
    engine = Engine(quick, watch=seconds.append)
    engine.warm_up()
    assert engine.load == (0, 0)
    engine.close()
    assert seconds
    assert min(seconds) >= 0


def wait_for(done):
    end = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_who_pauses_lets_those_go_first_who_came_later(engine, told):
    first, second = Steps(*[Pause()] * 5, pause_s=0.05), Steps(*[TextDelta("a")] * 5, pause_s=0.01)
    engine.submit(first, told.of("first"))
    told.wait(lambda: told.events("first"))
    engine.submit(second, told.of("second"))
    told.until_ended("first", "second")
    assert [event for _, event in told.log if isinstance(event, Ended)] == [Ended()] * 2
    assert [name for name, event in told.log if isinstance(event, Ended)] == ["second", "first"]
