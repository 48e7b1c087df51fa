"""What it costs to see it think: the routing of a full-size model, sixty tokens a second, from recorder to picture.

The stream is made up (see `bench.paced`), all that it goes through is real: recorder, engine, conversation, socket, the
page in headless Chromium, which draws without a graphics card. `recording_cost` is that of the shipped model's replies.
With --soak: ten minutes of stream, and what they leave in the page and in the server.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from playwright.async_api import CDPSession, Page

from app.audio import WIRE_RATE
from bench import paced
from bench.app import MEGABYTE, started
from bench.latency import questions
from bench.paced import PROMPT, TOKENS_PER_S
from bench.page import READY, READY_S, chromium, chromium_mb, cpu_seconds, need_chromium, page_of
from bench.report import Report
from bench.talker import Talker
from most_core import Event, Most, MostConfig, RoutingDelta, load
from most_core.generation import Generation

PAIRS = 20  # of replies with and without recording
ROUNDS, STRETCH_S = 6, 10  # of the server's: each round has one of each kind
PAGE_S, PAGE_TURNS = 20, 3
SOAK_S, SOAK_TURN_S, WARM_TURNS = 600, 30, 2
KEPT = 8  # ranked experts a token and layer, of which the exact trace tells
IDLE_S = 3.0
LATE_S = 30.0  # after which what did not come will not come
LONG_FRAME_MS = 50.0
WISHES = {  # what a session asks for
    "plain": {"routing": False, "record": False},
    "live": {"routing": True, "record": False},
    "page": {"routing": True, "record": True},
}
ROUTING, OVER = ".routing", '.turn[data-status="completed"]'
TAKES_MORE = f"(before) => Number(document.querySelector('{ROUTING}').dataset.tokens) > before"
# When each frame began to be made.
FRAMES = """(() => {
  const frames = (globalThis.benchFrames = []);
  const tick = () => (frames.push(performance.now()), requestAnimationFrame(tick));
  requestAnimationFrame(tick);
})();"""


@dataclass(frozen=True)
class Stretch:
    """One reply of the paced model, as the bare client got it."""

    seconds: float
    cpu_s: float  # that the server spent on it
    tokens: int  # whose routing came
    lost: int  # tokens and events that did not come
    record_bytes: int  # of the reply's files

    @property
    def share(self) -> float:
        """Of one core."""
        return self.cpu_s / self.seconds


@dataclass(frozen=True)
class Watched:
    """A page for a while: its beginning, each frame and its end in milliseconds, and Chromium's share of one core."""

    frames_ms: np.ndarray
    core_share: float


@dataclass(frozen=True)
class Frames:
    """How often a page drew."""

    fps: float
    worst_fps: float  # 5th percentile of its seconds
    long: int  # frames that took more than LONG_FRAME_MS
    longest_ms: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=Path("assets/nano"), help="checkpoint folder, to be recorded")
    parser.add_argument("--soak", action="store_true", help="ten minutes, and what they leave; nothing else")


def run(args: argparse.Namespace) -> Report:
    need_chromium()
    report = Report("routing")
    if not args.soak:
        _record(load(args.model, device="cpu"), report)
    with started("-m", paced.__name__) as (socket, process):
        asyncio.run((_soak if args.soak else _measure)(socket, process, report))
    return report


async def _measure(socket: str, process: psutil.Process, report: Report) -> None:
    found = await _served(socket, process, report)
    await _drawn(page_of(socket), report)
    report.figures["lost_tokens"] += sum(stretch.lost for stretch in found)


# Recording


def _record(most: Most, report: Report) -> None:
    """What recording adds to a reply of the real model, and whether it changes one."""
    begun, begin = [], most.loop.start

    def start(*given: Any, **options: Any) -> Generation:
        begun.append(begin(*given, **options))
        return begun[-1]

    most.loop.start = start
    waves = questions(report)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        both(most, waves[0])
        ratios, made, changes = [], 0, 0
        for number in range(PAIRS):
            begun.clear()
            plain, recorded = both(most, waves[number % len(waves)], recorded_first=number % 2 == 1)
            ratios.append(recorded / plain)
            one, other = ([(token.id, token.logprob) for token in generation.tokens] for generation in begun)
            made += len(one)
            changes += changed(one, other)
    finally:
        torch.set_num_threads(before)
    report.figures |= {
        "recording_cost": statistics.median(ratios) - 1,
        "recording_changes": changes,
        "recorded_tokens": made,
    }
    report.notes.append(
        f"recording_cost: {PAIRS} questions to {most.model.num_parameters():,} parameters on one thread, each answered "
        "once recorded and once not, turn and turn about event by event; recorder, deltas for the wire ten times a "
        "second and the finished trace included. recording_changes: tokens whose number or log-probability differs"
    )


def both(most: Most, wave: np.ndarray, recorded_first: bool = False) -> tuple[float, float]:
    """Seconds that the same reply takes plain and recorded. They take turns: machines are shared, and so both meet the
    same weather."""
    seconds = {False: 0.0, True: 0.0}
    order = (True, False) if recorded_first else (False, True)
    replies = {recorded: _told(most.stream(wave, record_routing=recorded)) for recorded in order}
    running = list(order)
    while running:
        for recorded in list(running):
            start = time.perf_counter()
            ended = next(replies[recorded], None) is None
            seconds[recorded] += time.perf_counter() - start
            if ended:
                running.remove(recorded)
        running.reverse()
    return seconds[False], seconds[True]


def _told(events: Iterator[Event]) -> Iterator[Event]:
    """The events that a plain reply has, too; deltas are made ready for the wire."""
    for event in events:
        if isinstance(event, RoutingDelta):
            event.tokens.to_wire()
        else:
            yield event


def changed(one: Sequence[tuple], other: Sequence[tuple]) -> int:
    """In how many places two sequences differ."""
    return sum(a != b for a, b in zip(one, other)) + abs(len(one) - len(other))


# The server


async def _served(socket: str, process: psutil.Process, report: Report) -> list[Stretch]:
    """What the stream costs the server."""
    found: dict[str, list[Stretch]] = {name: [] for name in WISHES}
    await stretch(socket, process, WISHES["page"], TOKENS_PER_S)  # warms up
    for number in range(ROUNDS):
        for name in list(WISHES) if number % 2 == 0 else reversed(WISHES):
            found[name].append(await stretch(socket, process, WISHES[name], STRETCH_S * TOKENS_PER_S))
    report.figures |= {
        "server_core_share": extra_share(found["live"], found["plain"]),
        "server_core_share_recorded": extra_share(found["page"], found["plain"]),
        "server_core_share_plain": statistics.median(one.share for one in found["plain"]),
    }
    report.notes.append(
        f"server_core_share: CPU time of the whole server process, the median of {ROUNDS} replies of {STRETCH_S} s "
        "with routing over those without it (_plain: sound, words and an idle microphone) next to them: recorder, "
        "drain, wire form, JSON, socket, while the made-up model sleeps between two tokens, so that they find the "
        "caches cold; _recorded: the reply's files at its end, too, as the page asks for them"
    )
    return [*found["live"], *found["page"]]


async def stretch(socket: str, process: psutil.Process, wishes: dict[str, bool], tokens: int) -> Stretch:
    """A reply of so many tokens. ValueError if it does not come."""
    async with Talker(socket, update={"most": wishes}) as talker:
        await talker.until(lambda: any(event["type"] == "session.updated" for _, event in talker.events))
        content = [{"type": "input_text", "text": f"Answer with {tokens} tokens."}]
        await talker.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        cpu, start = _spent(process), time.perf_counter()
        await talker.send("response.create")
        if not await talker.until(
            lambda: any(reply.status for reply in talker.replies.values()), within_s=tokens / TOKENS_PER_S + LATE_S
        ):
            raise ValueError(f"a reply of {tokens} tokens did not end")
        seconds, cpu = time.perf_counter() - start, _spent(process) - cpu
        events = [event for _, event in talker.events]
    expected = tokens + PROMPT if wishes["routing"] else 0
    taken, lost = taken_and_lost(events, expected)
    pieces = [event["data"] for event in events if event["type"] == "most.record.piece"]
    return Stretch(seconds, cpu, taken, lost, sum(3 * len(piece) // 4 for piece in pieces))


def taken_and_lost(events: Sequence[dict[str, Any]], expected: int) -> tuple[int, int]:
    """Tokens whose routing came in one reply; and those of the expected ones that did not, with the numbers that are
    missing among our events."""
    ours = [event["sequence"] for event in events if event["type"].startswith("most.")]
    deltas = [event for event in events if event["type"] == "most.routing.delta" and not event["provisional"]]
    came = {event["first_token"] + n for event in deltas for n in range(len(event["modality"]))}
    missing = sum(max(after - before - 1, 0) for before, after in pairwise(ours))
    return len(came), missing + max(expected - len(came), 0)


def extra_share(more: Sequence[Stretch], less: Sequence[Stretch]) -> float:
    """Of one core, that the one kind of stretch costs over the other: median over the pairs."""
    return statistics.median(a.share - b.share for a, b in zip(more, less))


def _spent(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


# The page


async def _drawn(address: str, report: Report) -> None:
    """How the page draws what comes."""
    async with chromium() as browser:
        page = await _opened(await browser.new_page(), address)
        idle = await _watched(page, IDLE_S)
        found = []
        for turn in range(1, PAGE_TURNS + 1):
            before = await _taken(page)
            await _ask(page, PAGE_S)
            await page.wait_for_function(TAKES_MORE, arg=before, polling=100, timeout=1000 * LATE_S)
            found.append(await _watched(page, PAGE_S - 1))
            await _over(page, turn, PAGE_S)
        lost = await _lost(page, PAGE_TURNS * (PAGE_S * TOKENS_PER_S + PROMPT))
    frames = frames_of([watched.frames_ms for watched in found])
    report.figures |= {
        "page_fps": frames.fps,
        "page_fps_p5": frames.worst_fps,
        "page_long_frames": frames.long,
        "page_longest_frame_ms": frames.longest_ms,
        "page_fps_idle": frames_of([idle.frames_ms]).fps,
        "page_core_share": statistics.median(watched.core_share for watched in found),
        "page_core_share_idle": idle.core_share,
        "lost_tokens": lost,
    }
    report.notes.append(
        f"page_*: {PAGE_TURNS} typed questions, each answered for {PAGE_S} s with sound, words and routing, in "
        "headless Chromium that draws in software; page_core_share: of one core, all of its processes together; _p5: "
        f"of the seconds; long frames: more than {LONG_FRAME_MS:.0f} ms after the one before. lost_tokens: of page and "
        "bare client, by the numbers of tokens and of events"
    )


async def _soak(socket: str, process: psutil.Process, report: Report) -> None:
    """What minutes of stream leave behind."""
    sample = await stretch(socket, process, WISHES["page"], SOAK_TURN_S * TOKENS_PER_S)
    turns = SOAK_S // SOAK_TURN_S
    async with chromium() as browser:
        page = await _opened(await browser.new_page(), page_of(socket))
        tool = await page.context.new_cdp_session(page)
        await tool.send("Performance.enable")
        sizes = []
        for turn in range(1, turns + 1):
            await _ask(page, SOAK_TURN_S)
            await _over(page, turn, SOAK_TURN_S)
            heap = await _heap_mb(tool)
            sizes.append((heap, chromium_mb(), process.memory_info().rss / MEGABYTE))
        frames = frames_of([np.array(await page.evaluate("benchFrames"))])
        lost = await _lost(page, turns * (SOAK_TURN_S * TOKENS_PER_S + PROMPT))
    heap, whole, server = (after - before for before, after in zip(sizes[WARM_TURNS - 1], sizes[-1]))
    config = MostConfig.lite()
    k, tokens = config.num_experts_per_tok, SOAK_TURN_S * TOKENS_PER_S + PROMPT
    cells = tokens * len(config.moe_layers)
    live, exact = cells * (3 * k + 1), cells * (4 * k + 10 * KEPT + 8)
    sound = 2 * WIRE_RATE * SOAK_TURN_S
    later = turns - WARM_TURNS
    report.figures |= {
        "page_heap_growth_mb": heap,
        "page_heap_mb": sizes[-1][0],
        "page_data_mb": later * (live + exact + sample.record_bytes + sound) / MEGABYTE,
        "page_rss_growth_mb": whole,
        "server_rss_growth_mb": server,
        "page_fps": frames.fps,
        "page_fps_p5": frames.worst_fps,
        "lost_tokens": lost + sample.lost,
    }
    report.notes += [
        f"{turns} turns of {SOAK_TURN_S} s; growth from the end of the first minute to the end of the last",
        "page_heap_growth_mb: objects of the page's scripts after a collection. What is kept of the conversation as "
        "plain bytes lies outside of it and is page_data_mb: experts, weights, unmasked experts and removed shares "
        f"({live / tokens:.0f} bytes a token), the exact numbers once a turn is over ({exact / tokens:.0f}), the files "
        f"of each reply ({sample.record_bytes / tokens:.0f}), its sound",
        "page_rss_growth_mb: of all of Chromium's processes, that data included; page_fps: from the first frame on",
    ]


async def _opened(page: Page, address: str) -> Page:
    await page.add_init_script(FRAMES)
    await page.goto(address)
    await page.wait_for_selector(READY, state="attached", timeout=1000 * READY_S)
    if not await page.query_selector(ROUTING):
        raise ValueError(f"the page shows no routing: it has nothing that is {ROUTING}")
    return page


async def _ask(page: Page, seconds: int) -> None:
    """Something that is answered for so long."""
    await page.fill("#most-text", f"Answer with {seconds * TOKENS_PER_S} tokens.")
    await page.press("#most-text", "Enter")


async def _over(page: Page, turns: int, seconds: int) -> None:
    """Wait until so many turns are over, the last of which lasts so long."""
    ended = f"(count) => document.querySelectorAll('{OVER}').length >= count"
    await page.wait_for_function(ended, arg=turns, polling=500, timeout=1000 * (seconds + LATE_S))


async def _taken(page: Page) -> int:
    return int(await page.get_attribute(ROUTING, "data-tokens") or 0)


async def _lost(page: Page, sent: int) -> int:
    """Tokens that were sent and that the page has not, as far as numbers tell."""
    return int(await page.get_attribute(ROUTING, "data-lost") or 0) + abs(sent - await _taken(page))


async def _watched(page: Page, seconds: float) -> Watched:
    """A page that goes about its business for a while."""
    cpu, start = cpu_seconds(), time.perf_counter()
    began = await page.evaluate("performance.now()")
    await asyncio.sleep(seconds)
    share = (cpu_seconds() - cpu) / (time.perf_counter() - start)
    frames = await page.evaluate(
        "(began) => [began, ...benchFrames.filter((at) => at > began), performance.now()]", began
    )
    return Watched(np.array(frames), share)


async def _heap_mb(tool: CDPSession) -> float:
    """What is left after a collection."""
    await tool.send("HeapProfiler.collectGarbage")
    metrics = (await tool.send("Performance.getMetrics"))["metrics"]
    return next(metric["value"] for metric in metrics if metric["name"] == "JSHeapUsedSize") / MEGABYTE


def frames_of(stretches: Sequence[np.ndarray]) -> Frames:
    """Of moments in milliseconds: the beginning of a stretch, each frame in it, and its end."""
    seconds = sum(float(at[-1] - at[0]) for at in stretches) / 1000
    each = [np.histogram(at[1:-1], np.arange(at[0], at[-1], 1000))[0] for at in stretches]
    gaps = np.concatenate([np.diff(at) for at in stretches])
    return Frames(
        fps=sum(len(at) - 2 for at in stretches) / seconds,
        worst_fps=float(np.percentile(np.concatenate(each), 5)),
        long=int(np.count_nonzero(gaps > LONG_FRAME_MS)),
        longest_ms=float(gaps.max()),
    )
