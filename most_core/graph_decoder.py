"""The decode step on a GPU as one captured CUDA graph.

At batch 1 a full-size step reads 4.9 GB in about a millisecond, but launches a thousand kernels, which takes longer.
`LeanDecoder.run_layers` reads and writes nothing but tensors, so a step is captured once for every batch size and cache
length (rounded up) and then replayed. On a CPU the same function runs as it is: tests and rehearsals meet the code that
a GPU captures.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch

from most_core import expert_kernels
from most_core.decoder import LeanDecoder
from most_core.experts import FusedExperts
from most_core.model import MostForCausalLM, MostMoe
from most_core.router import modality_of

LENGTH_STEP = 256  # cache lengths are rounded up to a multiple: one graph each


class GraphDecoder(LeanDecoder):
    """A `LeanDecoder` whose `step` is captured. For resident, unquantized models with fused experts."""

    def __init__(self, model: MostForCausalLM, slots: int = 1, context: int | None = None) -> None:
        if not self.suits(model):
            raise ValueError("a captured decoder needs plain fused experts: quantized models use LeanDecoder")
        super().__init__(model, slots, context)
        with_kernels = self.device.type == "cuda" and expert_kernels.triton is not None
        self._mix = expert_kernels.mix_with_kernels if with_kernels else expert_kernels.mix_with_gather
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, dict[str, torch.Tensor]]] = {}
        self._pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

    @staticmethod
    def suits(model: MostForCausalLM) -> bool:
        """Whether the model can be captured at all."""
        experts = [layer.mlp.experts for layer in model.model.layers if isinstance(layer.mlp, MostMoe)]
        plain = not getattr(model, "is_quantized", False) and model.config.hidden_act == "silu"
        return plain and all(isinstance(e, FusedExperts) for e in experts)

    def warm_up(self) -> None:
        """Capture the step of one conversation at every length, so that nobody waits for it in mid-sentence."""
        if self.device.type == "cuda":
            for total in range(LENGTH_STEP, self.context + LENGTH_STEP, LENGTH_STEP):
                self._captured(1, min(total, self.context))

    @torch.inference_mode()
    def step(self, slots: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
        self._check_room(slots)
        lengths = [self._lengths[slot] for slot in slots]
        inputs = torch.tensor([list(ids), list(slots), lengths])
        total = min(-(-(max(lengths) + 1) // LENGTH_STEP) * LENGTH_STEP, self.context)
        with self._on_device():
            if self.device.type == "cuda":
                graph, tensors = self._captured(len(slots), total)
                tensors["inputs"].copy_(inputs.pin_memory(), non_blocking=True)
                graph.replay()
            else:
                tensors = self._step(inputs, total)
        for slot in slots:
            self._lengths[slot] += 1
        self._probs, self._choice = tensors["probs"], tensors["choice"]
        return tensors["logits"]

    def _on_device(self) -> contextlib.AbstractContextManager:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()

    @torch.inference_mode()
    def _captured(self, batch: int, total: int) -> tuple[torch.cuda.CUDAGraph, dict[str, torch.Tensor]]:
        """The graph of a batch size and cache length, with its static tensors."""
        key = (batch, total)
        if key not in self._graphs:
            with self._on_device():
                # Runs before the first replay write where no conversation has been yet: behind the last position.
                tokens = torch.zeros(batch, dtype=torch.long)
                inputs = torch.stack([tokens, torch.arange(batch), torch.full_like(tokens, total - 1)]).to(self.device)
                spared = self.cache[:, :batch, total - 1].clone()
                stream = torch.cuda.Stream()
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    for _ in range(3):  # kernels are tuned and memory is found before the capture
                        self._step(inputs, total)
                torch.cuda.current_stream().wait_stream(stream)
                graph = torch.cuda.CUDAGraph()
                # thread_local: the encoder and the vocoder of another conversation may use the GPU meanwhile.
                with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                    tensors = self._step(inputs, total)
                self.cache[:, :batch, total - 1] = spared
            self._graphs[key] = (graph, {"inputs": inputs, **tensors})
        return self._graphs[key]

    def _step(self, inputs: torch.Tensor, total: int) -> dict[str, torch.Tensor]:
        tokens, rows, positions = inputs
        embeds = self.model.model.embed_tokens(tokens[:, None]).to(self.dtype)
        modality = modality_of(tokens[:, None], self.config.tokens)
        x, probs, choice = self.run_layers(embeds, rows, positions, total, modality, silenced=True)
        return {"logits": self._logits(x[:, -1]), "probs": probs, "choice": choice}

    def _mix_experts(self, index: int, flat: torch.Tensor, choice: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        if len(flat) > self.slots:  # prefill, which is not captured
            return super()._mix_experts(index, flat, choice, weights)
        experts = self._moes[index].experts
        return self._mix(flat, experts.gate_up_proj, experts.down_proj, choice, weights)
