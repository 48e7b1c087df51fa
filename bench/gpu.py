"""Full size on one GPU with random weights: load, decode (captured, nf4, batch 8, against generate()), prefill."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import torch

from bench.report import Report, interleaved, median_ratio
from most_core import expert_kernels
from most_core.config import MostConfig
from most_core.decoder import LeanDecoder
from most_core.graph_decoder import GraphDecoder
from most_core.loading import load_decoder
from most_core.model import MostForCausalLM

PROMPT = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rehearse", action="store_true", help="the same code at reduced size, on the CPU if need be")
    parser.add_argument("--skip-nf4", action="store_true", help="leave the quantized model out")
    parser.add_argument("--skip-compile", action="store_true", help="leave the compiled variant out")


def run(args: argparse.Namespace) -> Report:
    if not args.rehearse and not torch.cuda.is_available():
        raise ValueError("bench gpu needs a CUDA GPU: try --rehearse for the same code at reduced size")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = MostConfig.nano(initializer_range=0.08) if args.rehearse else MostConfig.lite()
    tokens, report = (16, Report("gpu")) if args.rehearse else (256, Report("gpu"))
    report.notes.append(f"{'nano (rehearsal)' if args.rehearse else 'lite'} on {device}, random weights, greedy")

    def note(name: str, value: float) -> None:
        # Each figure is shown as soon as it is known: a run that is cut short loses only what follows.
        report.figures[name] = value
        print(f"{name} {value:.5g}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        _random_model(config, device).save_pretrained(folder)
        start = time.perf_counter()
        model = load_decoder(folder, device=device, dtype=torch.bfloat16)
        note("load_s", time.perf_counter() - start)
        with torch.inference_mode():
            _measure(model, tokens, note, compiled=not args.skip_compile and device == "cuda")
        if device == "cuda":
            note("peak_gb", torch.cuda.max_memory_allocated() / 1e9)
        del model
        if not args.skip_nf4:
            if device == "cuda":
                torch.cuda.empty_cache()
            small = load_decoder(folder, device=device, dtype=torch.bfloat16, quantize="nf4")
            with torch.inference_mode():
                decoder, prompt = LeanDecoder(small, 1, 1024), _prompt(small.config)
                note("nf4_tokens_per_s_b1", tokens / statistics.median(_seconds(decoder, [prompt], tokens)))
    return report


def _measure(model: MostForCausalLM, tokens: int, note: Callable[[str, float], None], compiled: bool) -> None:
    prompt = _prompt(model.config)
    variants = {"captured": GraphDecoder(model, 8, 1024)}
    if compiled:
        variants["compiled"] = GraphDecoder(model, 8, 1024, compiled=True)
    speeds = {}
    for name, decoder in variants.items():
        speeds[name] = tokens / statistics.median(_seconds(decoder, [prompt], tokens))
        note(f"bf16_tokens_per_s_b1_{name}", speeds[name])
    best = variants[max(speeds, key=speeds.get)]
    note("bf16_tokens_per_s_b1", max(speeds.values()))
    note("bf16_tokens_per_s_b8", 8 * tokens / statistics.median(_seconds(best, [prompt] * 8, tokens)))

    ids = torch.tensor([prompt], device=model.device)
    times = {}
    for backend in ("most", "grouped_mm", "batched_mm"):
        model.set_experts_implementation(backend)
        times[backend] = interleaved({backend: lambda: _generate(model, ids, 16)}, 2)[backend][-1]
    model.set_experts_implementation(min(times, key=times.get))
    runs = {"ours": lambda: _decode(best, [prompt], tokens), "hf": lambda: _generate(model, ids, tokens)}
    seconds = interleaved(runs, 3)
    note("ratio_hf_b1", median_ratio(seconds["ours"], seconds["hf"]))
    note("hf_tokens_per_s_b1", tokens / statistics.median(seconds["hf"]))
    model.set_experts_implementation("most")

    ours = torch.tensor(_decode(best, [prompt], 32)[0])
    theirs = _generate(model, ids, 32)[0, PROMPT:].cpu()
    note("same_as_generate_32", (ours == theirs).float().mean().item())
    long = (prompt * 16)[:1024]
    lean = LeanDecoder(model, 1, 1024)

    def prefill() -> None:
        lean.reset(0)
        lean.prefill(0, long)

    note("prefill_tokens_per_s", len(long) / statistics.median(interleaved({"p": prefill}, 5)["p"]))
    if expert_kernels.triton is not None and model.device.type == "cuda":
        note("kernel_gap", _kernel_gap(model))


def _decode(decoder: LeanDecoder, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    rows = list(range(len(prompts)))
    logits = []
    for slot, prompt in zip(rows, prompts):
        decoder.reset(slot)
        logits.append(decoder.prefill(slot, prompt))
    made: list[list[int]] = [[] for _ in rows]
    step = torch.stack(logits)
    for _ in range(tokens):
        chosen = step.argmax(-1).tolist()
        for row, token in zip(made, chosen):
            row.append(token)
        step = decoder.step(rows, chosen)
    return made


def _seconds(decoder: LeanDecoder, prompts: list[list[int]], tokens: int) -> list[float]:
    return interleaved({"run": lambda: _decode(decoder, prompts, tokens)}, 3)["run"]


def _generate(model: MostForCausalLM, ids: torch.Tensor, tokens: int) -> torch.Tensor:
    model.generation_config.eos_token_id = None
    options = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)


def _prompt(config: MostConfig) -> list[int]:
    return torch.randint(3, 2000, (PROMPT,), generator=torch.Generator().manual_seed(0)).tolist()


def _kernel_gap(model: MostForCausalLM) -> float:
    """Largest relative difference of the Triton kernels from plain PyTorch, on one layer's real shapes."""
    experts, config = model.model.layers[-1].mlp.experts, model.config
    hidden = torch.randn(4, config.hidden_size, device=model.device, dtype=torch.bfloat16)
    probs = torch.randn(4, config.n_routed_experts, device=model.device).softmax(-1)
    weights, choice = probs.topk(config.num_experts_per_tok)
    arguments = (hidden, experts.gate_up_proj, experts.down_proj, choice, weights)
    ours, theirs = expert_kernels.mix_with_kernels(*arguments), expert_kernels.mix_with_gather(*arguments)
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def _random_model(config: MostConfig, device: str) -> MostForCausalLM:
    with torch.device("meta"):
        model = MostForCausalLM(config).bfloat16()
    model.to_empty(device=device)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.fill_(1)
        else:
            parameter.data.normal_(std=config.initializer_range)
    model.tie_weights()
    return model
