"""Full size on one GPU with random weights: load, decode (batch 1 and 8, nf4, against generate()), prefill."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time

import torch

from bench.report import Report, interleaved, median_ratio
from most_core import expert_kernels
from most_core.config import MostConfig
from most_core.decoder import Decoder
from most_core.generation import GenerationSettings, TokenLoop
from most_core.graph_decoder import GraphDecoder
from most_core.loading import load_decoder, make_decoder
from most_core.model import MostForCausalLM

PROMPT = torch.randint(3, 2000, (128,), generator=torch.Generator().manual_seed(0)).tolist()
SLOTS, CONTEXT = 8, 1024
NEVER = (-1,)  # no token stops a reply


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rehearse", action="store_true", help="the same code at reduced size, on the CPU if need be")
    parser.add_argument("--skip-nf4", action="store_true", help="leave the quantized model out")


def run(args: argparse.Namespace) -> Report:
    if not args.rehearse and not torch.cuda.is_available():
        raise ValueError("bench gpu needs a CUDA GPU: try --rehearse for the same code at reduced size")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = MostConfig.nano(initializer_range=0.08) if args.rehearse else MostConfig.lite()
    tokens, report = (16 if args.rehearse else 256), Report("gpu")
    report.notes.append(f"{'nano (rehearsal)' if args.rehearse else 'lite'} on {device}, random weights, greedy")

    def note(name: str, value: float) -> None:
        # Each figure is shown as soon as it is known: a run that is cut short loses only what follows.
        report.figures[name] = value
        print(f"{name} {value:.5g}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        _random_model(config, device).save_pretrained(folder)
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        model = load_decoder(folder, device=device, dtype=torch.bfloat16)
        note("load_s", time.perf_counter() - start)
        start = time.perf_counter()
        decoder = make_decoder(model, SLOTS, CONTEXT) if device == "cuda" else GraphDecoder(model, SLOTS, CONTEXT)
        note("capture_s", time.perf_counter() - start)
        loop = TokenLoop(decoder)
        note("bf16_tokens_per_s_b1", _tokens_per_s(loop, 1, tokens))
        note("bf16_tokens_per_s_b8", _tokens_per_s(loop, 8, tokens))
        note("prefill_tokens_per_s", _prefill_tokens_per_s(decoder))
        if device == "cuda":
            note("peak_gb", torch.cuda.max_memory_allocated() / 1e9)
        note("top1_agreement", _agreement(decoder, model))
        note("ratio_hf_b1", _ratio_to_generate(loop, model, tokens))
        if expert_kernels.triton is not None and device == "cuda":
            note("kernel_gap", _kernel_gap(model))
        del model, decoder, loop
        if not args.skip_nf4:
            if device == "cuda":
                torch.cuda.empty_cache()
            small = load_decoder(folder, device=device, dtype=torch.bfloat16, quantize="nf4")
            note("nf4_tokens_per_s_b1", _tokens_per_s(TokenLoop(make_decoder(small, 1, CONTEXT)), 1, tokens))
    return report


def _tokens_per_s(loop: TokenLoop, batch: int, tokens: int) -> float:
    """Tokens a second of the streaming loop that everybody uses, prefill left out; median of three."""
    settings = GenerationSettings(max_new_tokens=tokens, stop_ids=NEVER)
    speeds = []
    for _ in range(4):  # the first warms up
        generations = [loop.start(PROMPT, settings) for _ in range(batch)]
        start = time.perf_counter()
        while loop.step(generations):
            pass
        speeds.append(batch * (tokens - 1) / (time.perf_counter() - start))
        for generation in generations:
            loop.finish(generation)
    return statistics.median(speeds[1:])


def _prefill_tokens_per_s(decoder: Decoder) -> float:
    long = (PROMPT * (CONTEXT // len(PROMPT)))[:CONTEXT]

    def prefill() -> None:
        decoder.reset(0)
        decoder.prefill(0, long)

    return len(long) / statistics.median(interleaved({"prefill": prefill}, 5)["prefill"])


@torch.inference_mode()
def _agreement(decoder: Decoder, model: MostForCausalLM) -> float:
    """Share of steps whose likeliest token is that of the model's own forward, both fed the same tokens."""
    fed = (PROMPT * 2)[-64:]
    reference = model(torch.tensor([PROMPT + fed], device=model.device)).logits[0, len(PROMPT) - 1 : -1].argmax(-1)
    decoder.reset(0)
    ours = [decoder.prefill(0, PROMPT).argmax().item()]
    ours += [decoder.step([0], [token])[0].argmax().item() for token in fed[:-1]]
    return (torch.tensor(ours) == reference.cpu()).float().mean().item()


def _ratio_to_generate(loop: TokenLoop, model: MostForCausalLM, tokens: int) -> float:
    ids = torch.tensor([PROMPT], device=model.device)
    times = {}
    for backend in ("most", "grouped_mm", "batched_mm"):
        model.set_experts_implementation(backend)
        times[backend] = interleaved({backend: lambda: _generate(model, ids, 16)}, 2)[backend][-1]
    model.set_experts_implementation(min(times, key=times.get))
    settings = GenerationSettings(max_new_tokens=tokens, stop_ids=NEVER)
    runs = {"ours": lambda: loop.run([PROMPT], settings), "hf": lambda: _generate(model, ids, tokens)}
    seconds = interleaved(runs, 3)
    model.set_experts_implementation("most")
    return median_ratio(seconds["ours"], seconds["hf"])


def _generate(model: MostForCausalLM, ids: torch.Tensor, tokens: int) -> torch.Tensor:
    model.generation_config.eos_token_id = None
    options = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)


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
