"""The bench of the routing: a stream that is what it says, shares that are reckoned right, a short run of it all."""

import argparse
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import paced as bench_paced
from bench import routing as bench_routing
from bench.paced import PROMPT, TOKENS_PER_S, Paced, asked_for, modality_of, prepared
from bench.routing import Stretch, both, changed, extra_share, frames_of, taken_and_lost
from most_core import Done, MostConfig, RoutingDelta, SpeechDelta, TextDelta
from most_core.config import AUDIO, TEXT
from most_core.trace_rows import concatenate

SECONDS = 4
QUESTION = f"Answer with {SECONDS * TOKENS_PER_S} tokens."


@pytest.fixture(scope="module")
def paced():
    return Paced()


class Clock:
    """Passes only while somebody sleeps."""

    now = 100.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture(scope="module")
def events(paced):
    """[(seconds since the start, event)] of a recorded reply."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_paced, "time", clock)
        return [(clock.now - Clock.now, event) for event in paced.stream(QUESTION, record_routing=True)]


def test_the_stream_keeps_its_pace(events):
    routed = [(at, event.tokens.num_tokens) for at, event in events if isinstance(event, RoutingDelta)]
    assert events[-1][0] == pytest.approx(SECONDS)
    assert 8 * SECONDS <= len(routed) <= 10 * SECONDS + 1  # every 100 ms, and then with the next token
    at, tokens = np.array(routed).T
    np.testing.assert_allclose(tokens.cumsum() - PROMPT, TOKENS_PER_S * at, atol=1e-6)


def test_what_comes_late_does_not_slow_the_stream_down(paced, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(bench_paced, "time", clock)
    for number, _ in enumerate(paced.stream(QUESTION)):
        if number == 30:
            clock.now += 0.5  # whoever takes the events takes their time
    assert clock.now - Clock.now == pytest.approx(SECONDS)


def test_the_stream_is_as_large_as_its_config_says(paced, events):
    config = MostConfig.lite()
    rows = concatenate([event.tokens for _, event in events if isinstance(event, RoutingDelta)])
    assert rows.token.tolist() == list(range(PROMPT + SECONDS * TOKENS_PER_S))
    assert rows.layers.tolist() == config.moe_layers
    assert rows.chosen.shape[1:] == (26, 6)
    trace = events[-1][1].reply.trace
    assert trace.config.to_dict() == config.to_dict()
    np.testing.assert_array_equal(trace.chosen, rows.chosen)
    groups = config.expert_groups()
    for modality in (TEXT, AUDIO):
        for layer in range(26):
            chosen = rows.chosen[rows.modality == modality, layer]
            assert set(chosen.flatten()) <= set(groups[layer][modality])
            assert all(len(set(experts)) == 6 for experts in chosen)
            assert (chosen != chosen[0]).any()
    assert dict(zip(*np.unique(rows.role, return_counts=True))) == {"user": PROMPT, "assistant": SECONDS * TOKENS_PER_S}


def test_speech_and_words_take_turns_and_the_sound_lasts_as_long_as_the_stream(events):
    *told, (_, done) = events
    assert isinstance(done, Done)
    written = sum(modality_of(number) == TEXT for number in range(SECONDS * TOKENS_PER_S))
    assert sum(isinstance(event, TextDelta) for _, event in told) == written
    assert len(done.reply.units) == SECONDS * TOKENS_PER_S - written
    sound = np.concatenate([event.pcm for _, event in told if isinstance(event, SpeechDelta)])
    assert len(sound) / 16_000 == pytest.approx(SECONDS)
    modality = done.reply.trace.modality[PROMPT:].tolist()
    assert modality == [modality_of(number) for number in range(SECONDS * TOKENS_PER_S)]
    assert 3 <= np.count_nonzero(np.diff(modality)) <= 2 * SECONDS


def test_a_stream_that_is_cancelled_ends(paced):
    cancel = threading.Event()
    events = paced.stream(QUESTION, cancel=cancel)
    next(events)
    cancel.set()
    *_, last = events
    assert last.reply.finish_reason == "cancelled"
    assert last.reply.trace is None


def test_made_up_routing_is_a_softmax_and_stays_a_while_with_its_experts():
    config = MostConfig.lite()
    probs, chosen = prepared(config, 40)
    assert probs.shape == (2, 26, 40, 64)
    torch.testing.assert_close(probs.sum(-1), torch.ones(2, 26, 40))
    stayed = (chosen[..., 1:, :, None] == chosen[..., :-1, None, :]).any(-1).float().mean()
    assert 6 / 32 + 0.1 < stayed < 0.9


@pytest.mark.parametrize(
    ("content", "count"),
    [("Answer with 120 tokens.", 120), ([{"type": "text", "text": "7, please"}], 7), ("hello", 0)],
)
def test_a_question_names_the_number_of_tokens(content, count):
    assert asked_for(content) == count


def test_shares_are_of_one_core_and_over_those_of_the_plain_stretch_beside_them():
    plain = [Stretch(10, cpu, 0, 0, 0) for cpu in (1.0, 2.0, 9.0)]
    live = [Stretch(10, cpu, 0, 0, 0) for cpu in (1.3, 2.4, 9.5)]
    assert live[1].share == pytest.approx(0.24)
    assert extra_share(live, plain) == pytest.approx(0.04)


def test_what_is_lost_is_known_by_the_numbers():
    def routed(sequence, first, count, provisional=False):
        event = {"type": "most.routing.delta", "sequence": sequence, "provisional": provisional}
        return {**event, "first_token": first, "modality": [0] * count}

    whole = [{"type": "most.state", "sequence": 4}, routed(5, 0, 3, True), routed(6, 0, 10), routed(7, 10, 5)]
    assert taken_and_lost([{"type": "response.created"}, *whole], 15) == (15, 0)
    assert taken_and_lost(whole, 20) == (15, 5)
    assert taken_and_lost([*whole, routed(9, 18, 2)], 20) == (17, 4)  # an event, and the three tokens in it
    assert taken_and_lost([], 0) == (0, 0)


def test_frames_are_counted_by_the_second_and_long_ones_named():
    even = 1000 / 60 * np.arange(241)  # four seconds
    frames = frames_of([even])
    assert frames.fps == pytest.approx(60, abs=0.5)
    assert frames.worst_fps >= 59
    assert frames.long == 0
    stalled = np.concatenate([even[even < 1000], even[even >= 2000]])
    frames = frames_of([even, stalled])
    assert frames.fps == pytest.approx(60 * 7 / 8, abs=0.5)
    assert frames.worst_fps < 30
    assert frames.long == 1
    assert frames.longest_ms == pytest.approx(1000, abs=20)
    nothing = frames_of([np.array([0.0, 3000.0])])
    assert (nothing.fps, nothing.worst_fps, nothing.long) == (0, 0, 1)


def test_the_same_reply_is_made_with_and_without_recording(most, wave, short, monkeypatch):
    stream, asked = most.stream, []

    def shortly(given, record_routing):
        asked.append(record_routing)
        return stream(given, settings=short, record_routing=record_routing)

    monkeypatch.setattr(most, "stream", shortly)
    plain, recorded = both(most, wave, recorded_first=True)
    assert plain > 0
    assert recorded > 0
    assert asked == [True, False]


def test_a_change_is_counted_where_it_is():
    assert changed([(1, -0.5), (2, -0.25)], [(1, -0.5), (2, -0.25)]) == 0
    assert changed([(1, -0.5), (2, -0.25)], [(1, -0.5), (2, -0.26), (3, 0.0)]) == 2


@pytest.mark.flaky(reruns=2)  # in real time, on machines that others keep busy for a moment
@pytest.mark.parametrize("soak", [False, True])
def test_a_short_run_has_every_figure_and_loses_nothing(soak, monkeypatch):
    if shutil.which("chromium") is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    short = {"PAIRS": 2, "ROUNDS": 1, "STRETCH_S": 3, "PAGE_S": 3, "PAGE_TURNS": 1}
    short |= {"IDLE_S": 1.0, "SOAK_S": 6, "SOAK_TURN_S": 2, "WARM_TURNS": 1}
    for name, value in short.items():
        monkeypatch.setattr(bench_routing, name, value)
    stretch, found = bench_routing.stretch, {}

    async def kept(socket, process, wishes, tokens):
        one = await stretch(socket, process, wishes, tokens)
        found[sum(wishes.values())] = (tokens, one)
        return one

    monkeypatch.setattr(bench_routing, "stretch", kept)
    figures = bench_routing.run(argparse.Namespace(model=Path("assets/nano"), soak=soak)).figures
    assert all(np.isfinite(value) for value in figures.values())
    assert figures["lost_tokens"] == 0
    assert 1 < figures["page_fps"] < 100
    for wished, (tokens, one) in found.items():
        assert one.tokens == (tokens + PROMPT if wished else 0)
        assert one.lost == 0
        assert (one.record_bytes > 0) == (wished == 2)  # its files only if they are asked for
        assert tokens / TOKENS_PER_S - 0.1 < one.seconds < tokens / TOKENS_PER_S + 3
        assert one.cpu_s > 0
    if soak:
        assert figures["page_data_mb"] > 0
        assert {"page_heap_growth_mb", "page_rss_growth_mb", "server_rss_growth_mb"} <= set(figures)
    else:
        assert len(found) == 3
        assert figures["recording_changes"] == 0
        assert -0.5 < figures["recording_cost"] < 1
        assert -0.2 < figures["server_core_share"] < 0.5
        assert 0 < figures["page_core_share"] < 4
        assert {"page_fps_p5", "server_core_share_recorded", "server_core_share_plain"} <= set(figures)
