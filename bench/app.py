"""How the voice app feels: a real server, real sockets, sound in real time, a client that plays what it gets.

`turn_ms` counts from where speech truly ends in the sound to the reply's first audible sample (-50 dBFS) as played:
endpoint wait, model, network, all of it. `barge_in_ms` counts from the true onset of speech over a reply to the moment
the client pauses. Server and settings are the same throughout, and no guard is off. With --soak: 200 turns more, and
what they leave in memory.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from app.audio import WIRE_RATE, Resampler
from app.vad import SAMPLE_RATE
from bench import voice_activity
from bench.latency import questions
from bench.report import Report
from bench.talker import Heard, Talker

PINGS = 200
SESSIONS, PAIRS = 5, 6  # of turns: each session has PAIRS interruptions, a first turn and one with a cough
GUARDED = 5  # sessions that are interrupted at once
ECHO, ECHO_TURNS = 10 ** (-24 / 20), 8  # a laptop's speaker, after the browser's canceller
AT_ONCE, AT_ONCE_TURNS = 8, 3
INTO_REPLY_MS = 500  # speech over a reply begins
SHORTEST_REST_MS = 1000  # of a reply after the onset, in which nothing happened: an interruption was missed
PAUSE_S = 0.6  # of people between two turns
SOAK_TALKERS, SOAK_TURNS, WARM_TURNS = 4, 200, 40
MEGABYTE = 2**20


@dataclass
class Found:
    """Everything measured, before it is summed up."""

    turns: list[float] = field(default_factory=list)
    barge_ins: list[float] = field(default_factory=list)
    guarded: list[float] = field(default_factory=list)
    missed: int = 0  # interruptions that paused nothing
    off: list[float] = field(default_factory=list)  # the stages' sum from the measured total, as a share
    stages: dict[str, list[float]] = field(default_factory=dict)
    coughs: int = 0
    cough_cancels: int = 0
    unanswered: int = 0
    stale_samples: int = 0
    late_blocks: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=Path("assets/nano"), help="checkpoint folder")
    parser.add_argument("--people", type=Path, default=voice_activity.PEOPLE, help="folder with barista/")
    parser.add_argument("--soak", action="store_true", help="200 turns, and what they leave in memory; nothing else")
    parser.add_argument("--no-vad", action="store_true", help="leave out the voice activity detector's own figures")


def run(args: argparse.Namespace) -> Report:
    report = Report("app")
    waves = [at_wire_rate(voice_activity.trimmed(wave)[0]) for wave in questions(report)]
    with serving(args.model) as (url, process):
        if args.soak:
            asyncio.run(_soak(url, process, waves, report))
            return report
        asyncio.run(_measure(url, waves, report))
    if not args.no_vad:
        voice_activity.figures(report, args.people)
    return report


def serving(model: Path) -> AbstractContextManager[tuple[str, psutil.Process]]:
    """The app as users start it, on a free port: its socket's address and its process."""
    return started("app.py", "--port", "0", "--model", str(model))


@contextmanager
def started(*arguments: str) -> Iterator[tuple[str, psutil.Process]]:
    """A server that Python starts so, and that tells its address: its socket's, and its process."""
    command = [sys.executable, *arguments]
    offline = {"HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "0"}
    environment = {**os.environ, **offline, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        if not found:
            raise ValueError(f"the app did not start: {line.strip() or 'see above'}")
        yield found.group().rstrip("/").replace("http", "ws") + "/v1/realtime", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(timeout=20)


def at_wire_rate(speech: np.ndarray) -> np.ndarray:
    """16 kHz to 24."""
    up = Resampler(SAMPLE_RATE, WIRE_RATE)
    return np.concatenate([up.push(speech.astype(np.float32)), up.finish()])


async def _measure(url: str, waves: Sequence[np.ndarray], report: Report) -> None:
    found, figures = Found(), report.figures
    transport = await _transport(url)
    order = [waves[i % len(waves)] for i in range(SESSIONS * (2 * PAIRS + 2))]
    for session in range(SESSIONS):
        size = 2 * PAIRS + 2
        await _session(url, order[session * size : (session + 1) * size], found, seed=session)
    for session in range(GUARDED):
        await _interrupted_at_once(url, waves[session], waves[session + GUARDED], found, seed=session)
    echoes = await _echo(url, waves, found)
    first, answered = await _at_once(url, waves, found)
    if not found.turns:
        raise ValueError("no turn was answered with sound")
    figures |= {
        "transport_ms_p50": statistics.median(transport),
        "transport_ms_p95": _p95(transport),
        "turn_ms_p50": statistics.median(found.turns),
        "turn_ms_p95": _p95(found.turns),
        "turns": len(found.turns),
        "unanswered": found.unanswered,
        "barge_in_ms_p50": statistics.median(found.barge_ins) if found.barge_ins else float("nan"),
        "barge_in_ms_p95": _p95(found.barge_ins),
        "barge_ins": len(found.barge_ins),
        "barge_ins_missed": found.missed,
        "barge_in_guard_ms_p95": _p95(found.guarded),
        "stale_samples": found.stale_samples,
        "self_interruptions": echoes[0],
        "self_pauses": echoes[1],
        "coughs": found.coughs,
        "cough_cancels": found.cough_cancels,
        f"sessions_ok_{AT_ONCE}": answered,
        f"first_sound_{AT_ONCE}_ms_p50": statistics.median(first),
        f"first_sound_{AT_ONCE}_ms_p95": _p95(first),
        "timings_off_p95": _p95(found.off),
    }
    figures |= {f"stage_{name}_ms": statistics.median(values) for name, values in found.stages.items()}
    report.notes += [
        f"{SESSIONS} conversations of {2 * PAIRS + 2} questions, one after the other, over a quiet room (-62 dBFS); "
        f"{GUARDED} more are interrupted within the first three seconds of their first reply, where the guard against "
        f"an echo that is not cancelled yet asks for more speech (barge_in_guard_ms)",
        f"self_interruptions: replies cut, and self_pauses: paused, by their own echo at -24 dB in {ECHO_TURNS} turns; "
        f"{AT_ONCE} sessions: all ask at the same moment, {AT_ONCE_TURNS} times",
        "timings_off: the stages' sum as the client is told, from the client's own measure, as a share of that",
        f"{found.late_blocks} blocks of 20 ms were sent more than 20 ms late by the client itself",
    ]


async def talked(url: str, waves: Sequence[np.ndarray], found: Found, seed: int) -> float:
    """Ask one thing after the other in one conversation and hear each answer out; the longest time in seconds from a
    question's end to its answer's."""
    longest = 0.0
    async with Talker(url, seed=seed) as talker:
        await asyncio.sleep(1.0)
        for wave in waves:
            reply = await _ask(talker, wave, found)
            if reply is not None and reply.ended_ms is not None:
                longest = max(longest, found.turns[-1] + reply.ended_ms - reply.audible_ms)
        _close(talker, found)
    return longest / 1000


async def _transport(url: str) -> list[float]:
    """Round trips of an event that the server answers at once, while sound streams."""
    found = []
    async with Talker(url) as talker:
        await talker.until(lambda: bool(talker.events))
        for _ in range(PINGS):
            seen, start = len(talker.events), talker.now_ms
            await talker.send("input_audio_buffer.clear")
            await talker.until(lambda seen=seen: _came(talker, seen, "input_audio_buffer.cleared"))
            found.append(talker.events[-1][0] - start if _came(talker, seen, "input_audio_buffer.cleared") else 1e4)
            await asyncio.sleep(0.03)
    return found


async def _session(url: str, waves: Sequence[np.ndarray], found: Found, seed: int) -> None:
    async with Talker(url, seed=seed) as talker:
        await asyncio.sleep(1.0)
        await _ask(talker, waves[0], found)
        for number in range(PAIRS):
            reply = await _ask(talker, waves[1 + 2 * number], found, to_the_end=False)
            if reply is not None:
                await _interrupt(talker, reply, waves[2 + 2 * number], found, found.barge_ins)
        await _cough(talker, waves[-1], found)
        _close(talker, found)


async def _interrupted_at_once(url: str, first: np.ndarray, second: np.ndarray, found: Found, seed: int) -> None:
    async with Talker(url, seed=100 + seed) as talker:
        await asyncio.sleep(1.0)
        reply = await _ask(talker, first, found, to_the_end=False)
        if reply is not None:
            await _interrupt(talker, reply, second, found, found.guarded)
        _close(talker, found)


async def _echo(url: str, waves: Sequence[np.ndarray], found: Found) -> tuple[int, int]:
    """(replies cut, pauses) by the reply's own echo."""
    async with Talker(url, echo=ECHO, seed=200) as talker:
        await asyncio.sleep(1.0)
        for number in range(ECHO_TURNS):
            await _ask(talker, waves[number], found, count=False)
        cut = sum(reply.stopped_ms is not None for reply in talker.replies.values())
        extra = max(len(talker.replies) - ECHO_TURNS, 0)  # turns that nobody took
        pauses = sum(len(reply.pauses_ms) for reply in talker.replies.values())
        _close(talker, found)
    return cut + extra, pauses


async def _at_once(url: str, waves: Sequence[np.ndarray], found: Found) -> tuple[list[float], int]:
    """(milliseconds to the first sound of each turn, sessions of which every turn was answered with sound)."""
    first: list[float] = []

    async def one(number: int, start: asyncio.Barrier) -> bool:
        answered = 0
        async with Talker(url, seed=300 + number) as talker:
            await asyncio.sleep(1.0)
            for round_number in range(AT_ONCE_TURNS):
                await start.wait()
                wave = waves[(number * AT_ONCE_TURNS + round_number) % len(waves)]
                mine = Found()
                await _ask(talker, wave, mine)
                first.extend(mine.turns)
                answered += len(mine.turns)
            _close(talker, found)
        return answered == AT_ONCE_TURNS

    barrier = asyncio.Barrier(AT_ONCE)
    answered = await asyncio.gather(*(one(number, barrier) for number in range(AT_ONCE)))
    return first or [float("nan")], sum(answered)


async def _ask(
    talker: Talker, wave: np.ndarray, found: Found, to_the_end: bool = True, count: bool = True
) -> Heard | None:
    """Say something and hear the answer begin, or all of it; None if it does not come."""
    before = set(talker.replies)
    end = talker.say(wave) + 1000 * len(wave) / WIRE_RATE

    def reply() -> Heard | None:
        new = [r for turn, r in talker.replies.items() if turn not in before and r.audible_ms is not None]
        return max(new, key=lambda r: r.turn) if new and new[-1].audible_ms > end else None

    if not await talker.until(lambda: reply() is not None, within_s=10 + len(wave) / WIRE_RATE):
        found.unanswered += 1
        return None
    got = reply()
    if count:
        found.turns.append(got.audible_ms - end)
    if to_the_end:
        await talker.until(lambda: got.ended_ms is not None or got.stopped_ms is not None)
        if count:
            _weigh_timings(got, end, found)
        await asyncio.sleep(PAUSE_S)
    return got


async def _interrupt(talker: Talker, reply: Heard, wave: np.ndarray, found: Found, into: list[float]) -> None:
    """Speak over a reply; then hear the answer to that."""
    await asyncio.sleep(INTO_REPLY_MS / 1000)
    if reply.ended_ms is not None:
        return  # too short to be interrupted
    before = set(talker.replies)
    onset = talker.say(wave)
    end = onset + 1000 * len(wave) / WIRE_RATE
    await talker.until(lambda: bool(reply.pauses_ms) or reply.ended_ms is not None, within_s=3)
    pauses = [at for at in reply.pauses_ms if at > onset]
    if pauses:
        into.append(pauses[0] - onset)
    elif reply.ended_ms is not None and reply.ended_ms - onset < SHORTEST_REST_MS:
        pass  # it ended by itself
    else:
        found.missed += 1

    def next_reply() -> Heard | None:
        new = [r for turn, r in talker.replies.items() if turn not in before and r.audible_ms is not None]
        return new[-1] if new and new[-1].audible_ms > end else None

    if await talker.until(lambda: next_reply() is not None, within_s=10 + len(wave) / WIRE_RATE):
        got = next_reply()
        found.turns.append(got.audible_ms - end)
        await talker.until(lambda: got.ended_ms is not None or got.stopped_ms is not None)
        _weigh_timings(got, end, found)
    else:
        found.unanswered += 1
    await asyncio.sleep(PAUSE_S)


async def _cough(talker: Talker, wave: np.ndarray, found: Found) -> None:
    """A cough over a reply, which must go on."""
    reply = await _ask(talker, wave, found, to_the_end=False)
    if reply is None:
        return
    await asyncio.sleep(INTO_REPLY_MS / 1000)
    if reply.ended_ms is None:
        found.coughs += 1
        talker.say(cough())
    await talker.until(lambda: reply.ended_ms is not None or reply.stopped_ms is not None)
    found.cough_cancels += reply.stopped_ms is not None
    await asyncio.sleep(1.0)


def cough() -> np.ndarray:
    """A quarter of a second of noise that bursts and dies away, with a voice in it."""
    random, samples = np.random.default_rng(7), WIRE_RATE // 4
    time = np.arange(samples) / WIRE_RATE
    voice = np.sign(np.sin(2 * np.pi * 180 * time)) * 0.4
    burst = (random.standard_normal(samples) + voice) * np.exp(-time / 0.08)
    return (10 ** (voice_activity.SPEECH_DB / 20) * 2 * burst / np.sqrt(np.square(burst).mean())).astype(np.float32)


def _weigh_timings(reply: Heard, end: float, found: Found) -> None:
    if reply.timings is None or reply.began_ms is None:
        found.off.append(1.0)  # they did not come
        return
    total = reply.began_ms - end
    said = sum(stage["ms"] for stage in reply.timings["stages"])
    found.off.append(abs(said - total) / total)
    for stage in reply.timings["stages"]:
        found.stages.setdefault(stage["name"], []).append(stage["ms"])


def _close(talker: Talker, found: Found) -> None:
    found.stale_samples += talker.stale_samples
    found.late_blocks += talker.late_blocks


async def _soak(url: str, process: psutil.Process, waves: Sequence[np.ndarray], report: Report) -> None:
    found, sizes = Found(), []

    async def one(number: int) -> None:
        for part in range(SOAK_TURNS // SOAK_TALKERS // 10):
            async with Talker(url, seed=1000 + 10 * number + part) as talker:
                await asyncio.sleep(1.0)
                for turn in range(10):
                    await _ask(talker, waves[(number * 31 + part * 10 + turn) % len(waves)], found)
                    sizes.append((len(found.turns), process.memory_info().rss / MEGABYTE))
                _close(talker, found)

    await asyncio.gather(*(one(number) for number in range(SOAK_TALKERS)))
    warm = [size for turns, size in sizes if turns <= WARM_TURNS]
    late = [size for turns, size in sizes if turns > len(found.turns) - WARM_TURNS]
    report.figures |= {
        "rss_growth_mb": statistics.median(late) - max(warm[-5:]),
        "rss_mb": late[-1],
        "turns": len(found.turns),
        "unanswered": found.unanswered,
        "stale_samples": found.stale_samples,
        "turn_ms_p50": statistics.median(found.turns),
        "turn_ms_p95": _p95(found.turns),
    }
    report.notes.append(
        f"{SOAK_TALKERS} people at once, conversations of ten turns; growth from turn {WARM_TURNS} to the median of "
        f"the last {WARM_TURNS}"
    )


def _came(talker: Talker, seen: int, kind: str) -> bool:
    return any(event["type"] == kind for _, event in talker.events[seen:])


def _p95(values: Sequence[float]) -> float:
    return float(np.percentile(values, 95)) if len(values) else float("nan")
