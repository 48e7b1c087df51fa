"""The lean loop against Hugging Face's generate() at nano shape, and what recording the routing costs."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from bench.report import Report, interleaved, median_ratio
from most_core.config import MostConfig
from most_core.decoder import LeanDecoder
from most_core.generation import GenerationSettings, TokenLoop
from most_core.model import MostForCausalLM
from most_core.trace import RoutingRecorder

PROMPT, TOKENS = 64, 128
BACKENDS = ("most", "eager", "grouped_mm", "batched_mm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=7, help="interleaved pairs per thread count (default 7)")


def run(args: argparse.Namespace) -> Report:
    report = Report("decode")
    torch.manual_seed(0)
    config = MostConfig.nano(initializer_range=0.08)
    model = MostForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    prompt = torch.randint(3, config.tokens.first_unit, (1, PROMPT))
    loop = TokenLoop(LeanDecoder(model))

    settings = GenerationSettings(max_new_tokens=TOKENS, stop_ids=(-1,))

    def lean(recorder: RoutingRecorder | None = None) -> list[int]:
        generation = loop.start(prompt[0].tolist(), settings, recorder=recorder)
        while loop.step([generation]):
            pass
        loop.finish(generation)
        return [token.id for token in generation.tokens]

    def hugging_face() -> list[int]:
        options = {"max_new_tokens": TOKENS, "do_sample": False}
        return model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[0, PROMPT:].tolist()

    if lean() != hugging_face():
        raise ValueError("the lean loop and generate() disagree: the comparison would be void")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        backend = _fastest_backend(model, hugging_face)
        seconds = interleaved({"lean": lean, "hf": hugging_face}, args.rounds)
        report.figures[f"tokens_per_s_{threads}t"] = TOKENS / statistics.median(seconds["lean"])
        report.figures[f"hf_tokens_per_s_{threads}t"] = TOKENS / statistics.median(seconds["hf"])
        report.figures[f"ratio_hf_{threads}t"] = median_ratio(seconds["lean"], seconds["hf"])
        report.notes.append(f"generate() ran with its fastest expert backend here: {backend} at {threads} thread(s)")
    torch.set_num_threads(1)
    report.figures["trace_cost"] = _trace_cost(TokenLoop(LeanDecoder(model, slots=2)), prompt[0].tolist())
    recorder = RoutingRecorder(config)
    lean(recorder)
    start = time.perf_counter()
    recorder.finish()
    report.figures["trace_finish_us_per_token"] = (time.perf_counter() - start) / (PROMPT + TOKENS) * 1e6
    report.notes.append(f"{PROMPT} prompt tokens, {TOKENS} generated, greedy, float32, the same tokens from both")
    return report


def _trace_cost(loop: TokenLoop, prompt: list[int]) -> float:
    """What recording adds to a token, as a share: two conversations take turns token by token, one of them recorded;
    median over 20 rounds of the ratio of their median token times. (Whole runs differ by more than the cost itself.)"""
    settings, ratios = GenerationSettings(max_new_tokens=TOKENS, stop_ids=(-1,)), []
    for _ in range(20):
        pair = [loop.start(prompt, settings, recorder=r) for r in (None, RoutingRecorder(loop.decoder.config))]
        seconds: list[list[float]] = [[], []]
        for token in range(TOKENS - 1):
            for which in (0, 1) if token % 2 else (1, 0):
                start = time.perf_counter()
                loop.step([pair[which]])
                seconds[which].append(time.perf_counter() - start)
        for generation in pair:
            loop.finish(generation)
        plain, recorded = map(statistics.median, seconds)
        ratios.append(recorded / plain)
    return statistics.median(ratios) - 1


def _fastest_backend(model: MostForCausalLM, generate: Callable[[], object]) -> str:
    times = {}
    for backend in BACKENDS:
        model.set_experts_implementation(backend)
        times[backend] = min(interleaved({backend: generate}, 2)[backend])
    best = min(times, key=times.get)
    model.set_experts_implementation(best)
    return best
