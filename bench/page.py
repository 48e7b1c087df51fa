"""How the page feels: a real Chromium in front of a real server, with a microphone that hears questions from a file.

What the page's microphone gives and what it sends to its speaker are heard on one clock, beside the page's own code.
`page_first_sound_ms` counts from where speech truly ends in that sound to the first sample above -50 dBFS at the
speaker, echo cancelling and the like switched off; `page_extra_ms` is what the median is over that of a bare client of
the socket (`turn_ms`), which asks the same questions of the same server before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile
from playwright.async_api import Browser, async_playwright
from scipy.signal import correlate

from app.audio import Resampler
from app.vad import SAMPLE_RATE
from bench import voice_activity
from bench.app import MEGABYTE, Found, at_wire_rate, serving, talked
from bench.latency import questions
from bench.report import Report
from bench.talker import AUDIBLE, BACKGROUND

REPLIES = 50
BARE_BEFORE, BARE_AFTER = 24, 12  # turns of the bare client
LEAD_S, SPARE_S = 5.0, 2.0  # silence before the first question, and after the longest reply
SHORTEST_GAP_S, LONGEST_GAP_S = 4.0, 8.0  # so that all of it ends within the minutes that a bench has
MICROPHONE_RATE = 48_000  # of Chromium's fake one
QUANTUM = 128  # samples of which the tee keeps one row
READY_S = 60.0
READY, START = '#most [data-ready="true"]', '#most [data-action="start"]'
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
# What the page would read from its settings: sound as the microphone gives it.
PLAIN = dict.fromkeys(("echoCancellation", "noiseSuppression", "autoGainControl"), False)
SETTINGS = f"""localStorage.setItem("most.settings", JSON.stringify(
  {{...JSON.parse(localStorage.getItem("most.settings") ?? "{{}}"), ...{json.dumps(PLAIN)}}}))"""
TEE = Path(__file__).with_name("page_tee.js")


@dataclass(frozen=True)
class Schedule:
    """What the microphone will hear at 48 kHz, and the seconds at which each question begins and ends in it."""

    sound: np.ndarray
    times: list[tuple[float, float]]

    @property
    def seconds(self) -> float:
        return len(self.sound) / MICROPHONE_RATE


@dataclass(frozen=True)
class Recording:
    """What the tee heard, one row a quantum: the microphone's energy, the speaker's peak, and the number of the
    speaker's first audible sample or -1. `began` is the wall clock's time of its first row."""

    rows: np.ndarray
    rate: float
    began: float = 0.0

    @property
    def row_s(self) -> float:
        return QUANTUM / self.rate


@dataclass
class Turn:
    """One question and its answer, seconds in the recording."""

    begin: float
    end: float
    sound: tuple[float, float] | None = None  # of the answer, from its first audible sample to its last audible row
    gaps: int = 0  # within it, that are silent as only a starved speaker is


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=Path("assets/nano"), help="checkpoint folder")
    parser.add_argument("--replies", type=int, default=REPLIES, help=f"questions asked of the page (default {REPLIES})")


def run(args: argparse.Namespace) -> Report:
    if args.replies < 1:
        raise ValueError(f"--replies {args.replies}: ask at least once")
    need_chromium()
    report = Report("page")
    asyncio.run(_measure(args, report))
    return report


def need_chromium() -> None:
    """ValueError if there is none."""
    if shutil.which("chromium") is None:
        raise ValueError("there is no chromium: apt-get install chromium")


async def _measure(args: argparse.Namespace, report: Report) -> None:
    clips = [voice_activity.trimmed(wave)[0] for wave in questions(report)]
    async with chromium() as browser:
        page = await browser.new_page()
        start = time.perf_counter()
        with serving(args.model) as (socket, _):
            address = page_of(socket)
            await page.goto(address)
            await page.wait_for_selector(READY, state="attached", timeout=1000 * READY_S)
            report.figures["page_ready_s"] = time.perf_counter() - start
            await browser.close()
            await _converse(args, address, socket, clips, report)


def page_of(socket: str) -> str:
    """The page's address, from its socket's."""
    return socket.replace("ws", "http", 1).removesuffix("v1/realtime")


async def _converse(
    args: argparse.Namespace, address: str, socket: str, clips: Sequence[np.ndarray], report: Report
) -> None:
    waves = [at_wire_rate(clip) for clip in clips]
    bare = Found()
    longest = await talked(socket, [waves[i % len(waves)] for i in range(BARE_BEFORE)], bare, seed=400)
    gap = min(max(longest + SPARE_S, SHORTEST_GAP_S), LONGEST_GAP_S)
    schedule = scheduled([clips[i % len(clips)] for i in range(args.replies)], gap)
    recording, cpu = await _recorded(address, schedule)
    await talked(socket, [waves[i % len(waves)] for i in range(BARE_AFTER)], bare, seed=401)
    turns = turns_in(recording, schedule)
    waits = [1000 * (turn.sound[0] - turn.end) for turn in turns if turn.sound]
    if not waits or not bare.turns:
        raise ValueError("no question was answered with sound")
    speaking = [turn.sound for turn in turns if turn.sound]
    idle = quiet(turns)
    report.figures |= {
        "page_first_sound_ms_p50": statistics.median(waits),
        "page_first_sound_ms_p95": float(np.percentile(waits, 95)),
        "page_replies": len(waits),
        "page_unanswered": len(turns) - len(waits),
        "page_underruns": sum(turn.gaps for turn in turns),
        "turn_ms_p50": statistics.median(bare.turns),
        "turn_ms_p95": float(np.percentile(bare.turns, 95)),
        "turns": len(bare.turns),
        "page_extra_ms": statistics.median(waits) - statistics.median(bare.turns),
        "page_cpu_share": share(cpu, speaking, recording.began),
        "page_cpu_share_idle": share(cpu, idle, recording.began),
    }
    report.notes += [
        f"{len(turns)} questions, {gap:.1f} s between them, over a quiet room (-62 dBFS); the bare client asked "
        f"{len(bare.turns)} before and after",
        "page_underruns: stretches of digital silence within replies, at the speaker; page_cpu_share: of one core, all "
        "of Chromium's processes together, while a reply sounds, and _idle while it listens and nobody speaks",
    ]


@asynccontextmanager
async def chromium(*flags: str) -> AsyncIterator[Browser]:
    """A headless one of its own, whose pages may use a made-up microphone."""
    async with async_playwright() as playwright:
        path = shutil.which("chromium")
        browser = await playwright.chromium.launch(executable_path=path, headless=True, args=[*FLAGS, *flags])
        try:
            yield browser
        finally:
            await browser.close()


async def _recorded(address: str, schedule: Schedule) -> tuple[Recording, np.ndarray]:
    """What page and microphone said to each other, and (wall clock, CPU seconds of Chromium) several times a second."""
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "questions.wav"
        soundfile.write(wav, schedule.sound, MICROPHONE_RATE, subtype="PCM_16")
        async with chromium(f"--use-file-for-fake-audio-capture={wav}%noloop") as browser:
            page = await browser.new_page()
            await page.add_init_script(SETTINGS)
            await page.add_init_script(path=TEE)
            await page.goto(address)
            await page.wait_for_selector(READY, state="attached", timeout=1000 * READY_S)
            await page.click(START)
            cpu = await _watch(schedule.seconds + LEAD_S)
            return recording_of(await page.evaluate("benchTee.read()")), cpu


def recording_of(found: dict[str, Any]) -> Recording:
    """What a page's `benchTee.read()` gave; ValueError if it had not one sound context."""
    if found["contexts"] != 1:
        raise ValueError(f"the page has {found['contexts']} sound contexts: one was expected")
    rows = np.frombuffer(base64.b64decode(found["rows"]), np.float32).reshape(-1, 3)
    return Recording(rows, found["rate"], found["began"])


async def _watch(seconds: float) -> np.ndarray:
    end, found = time.time() + seconds, []
    while time.time() < end:
        found.append((time.time(), cpu_seconds()))
        await asyncio.sleep(0.2)
    return np.array(found)


def cpu_seconds() -> float:
    """Of all processes of Chromium that we have started."""
    return _sum_of_chromium(lambda process: sum(process.cpu_times()[:2]))


def chromium_mb() -> float:
    """Memory of these processes; what they share counts once for each."""
    return _sum_of_chromium(lambda process: process.memory_info().rss) / MEGABYTE


def _sum_of_chromium(of: Callable[[psutil.Process], float]) -> float:
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            if "chrom" in process.name():
                total += of(process)
        except psutil.NoSuchProcess:
            pass
    return total


def scheduled(clips: Sequence[np.ndarray], gap_s: float) -> Schedule:
    """Clips (16 kHz, trimmed to their speech) with gaps between them, over the noise of a quiet room."""
    pieces, times, at = [np.zeros(round(LEAD_S * MICROPHONE_RATE))], [], LEAD_S
    for clip in clips:
        up = Resampler(SAMPLE_RATE, MICROPHONE_RATE)
        wave = np.concatenate([up.push(clip), up.finish()])
        pieces += [wave, np.zeros(round(gap_s * MICROPHONE_RATE))]
        times.append((at, at + len(wave) / MICROPHONE_RATE))
        at += (len(wave) + len(pieces[-1])) / MICROPHONE_RATE
    sound = np.concatenate(pieces)
    noise = BACKGROUND * np.random.default_rng(0).standard_normal(len(sound))
    return Schedule((sound + noise).astype(np.float32), times)


def turns_in(recording: Recording, schedule: Schedule) -> list[Turn]:
    """Where in the recording each question was heard, and what was answered to it before the next."""
    heard = np.sqrt(recording.rows[:, 0])
    truth = envelope(schedule.sound, recording.row_s)
    row = recording.row_s
    begin, end = schedule.times[0]
    first, last = int(begin / row), int(end / row)
    offset = place(heard[: last + int(SPARE_S / row)], truth[first:last]) - first  # the file began about with it
    turns = []
    for begin, end in schedule.times:
        first, last = int(begin / row), int(end / row)
        near = max(int(first + offset - 1 / row), 0)  # the two clocks may drift apart, a little a minute
        piece = heard[near : near + last - first + int(2 / row)]
        if len(piece) < last - first:
            raise ValueError("the recording ends before the questions do")
        offset = near + place(piece, truth[first:last]) - first
        turns.append(Turn(begin + offset * row, end + offset * row))
    until = [turn.begin for turn in turns[1:]] + [len(recording.rows) * row]
    for turn, next_begin in zip(turns, until):
        turn.sound, turn.gaps = answered(recording, turn.end, next_begin)
    return turns


def envelope(wave: np.ndarray, row_s: float, rate: int = MICROPHONE_RATE) -> np.ndarray:
    """Square root of the energy of each row."""
    edges = (np.arange(int(len(wave) / rate / row_s) + 1) * row_s * rate).astype(int)
    energy = np.concatenate([[0.0], np.cumsum(np.square(wave, dtype=np.float64))])[edges]
    return np.sqrt(np.maximum(np.diff(energy), 0))


def place(heard: np.ndarray, clip: np.ndarray) -> float:
    """Row of `heard` at which the clip is most likely to begin, between rows too."""
    likeness = correlate(heard, clip - clip.mean(), mode="valid", method="fft")
    best = int(np.argmax(likeness))
    if not 0 < best < len(likeness) - 1:
        return float(best)
    before, at, after = likeness[best - 1 : best + 2]
    bend = before - 2 * at + after
    return best + (0.5 * (before - after) / bend if bend < 0 else 0.0)


def answered(recording: Recording, end: float, until: float) -> tuple[tuple[float, float] | None, int]:
    """(first audible sample and end of the last audible row, stretches of digital silence between them) of the
    speaker's sound from `end` to `until`. None if there is none, or if it was sounding already."""
    row = recording.row_s
    first, last = math.ceil(end / row), int(until / row)
    loud = first + np.flatnonzero(recording.rows[first:last, 1] > AUDIBLE)
    if not len(loud) or (recording.rows[max(first - 20, 0) : first, 1] > AUDIBLE).any():
        return None, 0
    silent = recording.rows[loud[0] : loud[-1] + 1, 1] == 0
    gaps = int(np.count_nonzero(np.diff(silent.astype(int)) == 1))
    start = loud[0] * row + recording.rows[loud[0], 2] / recording.rate
    return (start, (loud[-1] + 1) * row), gaps


def quiet(turns: Sequence[Turn], margin_s: float = 0.5) -> list[tuple[float, float]]:
    """The times between an answer and the next question, but for a margin."""
    found = []
    for turn, after in pairwise(turns):
        if turn.sound and turn.sound[1] + margin_s < after.begin - margin_s:
            found.append((turn.sound[1] + margin_s, after.begin - margin_s))
    return found


def share(cpu: np.ndarray, intervals: Sequence[tuple[float, float]], began: float) -> float:
    """Of one core, in these intervals of a recording that began then: `cpu` holds (wall clock, seconds so far)."""
    spent = sum(np.diff(np.interp([began + begin, began + end], *cpu.T))[0] for begin, end in intervals)
    long = sum(end - begin for begin, end in intervals)
    return float(spent / long) if long else float("nan")
