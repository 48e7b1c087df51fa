"""The decode step on a GPU as one captured CUDA graph.

At batch 1 a full-size step reads 4.9 GB in about a millisecond, but launches a thousand kernels, which takes longer.
Here a step is a pure function of a few static tensors (tokens, slots, positions, masks), captured once for every batch
size and cache length (rounded up), then replayed. On a CPU the same function runs as it is, so that tests and
rehearsals meet the code that a GPU captures.

Shapes: as in decoder.py; P pairs of a rotary vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from most_core import expert_kernels
from most_core.decoder import LeanDecoder
from most_core.experts import FusedExperts
from most_core.model import MostForCausalLM, MostMoe
from most_core.router import choose_experts, modality_of

LENGTH_STEP = 256  # cache lengths are rounded up to a multiple: one graph each


class GraphDecoder(LeanDecoder):
    """A `LeanDecoder` whose `step` is captured. For resident, unquantized models with fused experts."""

    def __init__(
        self, model: MostForCausalLM, slots: int = 1, context: int | None = None, *, compiled: bool = False
    ) -> None:
        if not self.suits(model):
            raise ValueError("a captured decoder needs plain fused experts: quantized models use LeanDecoder")
        super().__init__(model, slots, context)
        self._one = None
        on_gpu = self.device.type == "cuda"
        self._mix_experts = expert_kernels.mix_with_gather
        if on_gpu and expert_kernels.triton is not None:
            self._mix_experts = expert_kernels.mix_with_kernels
        moes = [layer.mlp for layer in model.model.layers if isinstance(layer.mlp, MostMoe)]
        self._gates = [moe.gate.weight.float() for moe in moes]
        angles = torch.view_as_real(self.rotary)
        self._cos, self._sin = angles[..., 0].contiguous(), angles[..., 1].contiguous()
        self._mask_table = self._base_mask.expand(slots, *self._base_mask.shape).clone()
        self._keep_table = torch.ones_like(self._mask_table[:, :, 0])
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, dict[str, torch.Tensor]]] = {}
        # Compiled, the many small operations between the products fuse; the layers share one compilation.
        self._attend_static = torch.compile(self._attend_static, dynamic=False) if compiled else self._attend_static
        self._route_static = torch.compile(self._route_static, dynamic=False) if compiled else self._route_static

    @staticmethod
    def suits(model: MostForCausalLM) -> bool:
        """Whether the model can be captured at all."""
        experts = [layer.mlp.experts for layer in model.model.layers if isinstance(layer.mlp, MostMoe)]
        return all(isinstance(e, FusedExperts) for e in experts) and model.config.hidden_act == "silu"

    def reset(self, slot: int) -> None:
        super().reset(slot)
        self._mask_table[slot], self._keep_table[slot] = self._base_mask, 1

    def knock_out(self, slot: int, experts: Sequence[tuple[int, int]], mode: str = "next") -> None:
        super().knock_out(slot, experts, mode)
        self._mask_table[slot] = self.masks[slot]
        self._keep_table[slot] = 1 if self.keep[slot] is None else self.keep[slot]

    @torch.inference_mode()
    def step(self, slots: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
        self._check_room(slots)
        lengths = [self._lengths[s] for s in slots]
        inputs = torch.tensor([list(ids), list(slots), lengths])
        total = min(-(-(max(lengths) + 1) // LENGTH_STEP) * LENGTH_STEP, self.context)
        if self.device.type != "cuda":
            outputs = self._step_static(inputs, total)
        else:
            outputs = self._replay(inputs.pin_memory(), total)
        for slot in slots:
            self._lengths[slot] += 1
        self._probs, self._choice = outputs["probs"], outputs["choice"]
        return outputs["logits"]

    def _replay(self, inputs: torch.Tensor, total: int) -> dict[str, torch.Tensor]:
        key = (inputs.shape[1], total)
        if key not in self._graphs:
            static = {"inputs": inputs.to(self.device)}
            # The first runs allocate and tune; they write the cache entries that the replay writes again.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self._step_static(static["inputs"], total)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                static |= self._step_static(static["inputs"], total)
            self._graphs[key] = (graph, static)
        graph, static = self._graphs[key]
        static["inputs"].copy_(inputs, non_blocking=True)
        graph.replay()
        return static

    def _step_static(self, inputs: torch.Tensor, total: int) -> dict[str, torch.Tensor]:
        """One token for each row; reads and writes nothing but tensors."""
        tokens, rows, positions = inputs
        config, model = self.config, self.model.model
        x = model.embed_tokens(tokens).to(self.dtype)
        cos, sin = self._cos[positions][:, None], self._sin[positions][:, None]
        hidden = torch.arange(total, device=self.device) > positions[:, None]
        bias = torch.zeros(hidden.shape, device=self.device).masked_fill(hidden, float("-inf"))[:, None]
        modality = modality_of(tokens, config.tokens)
        masks, keeps = self._mask_table[rows, :, modality], self._keep_table[rows]  # [B, L, E]
        probs, choices = [], []
        for i, layer in enumerate(model.layers):
            x = x + self._attend_static(i, x, rows, positions, cos, sin, bias, total)
            norm = layer.post_attention_layernorm
            normed = F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)
            if not isinstance(layer.mlp, MostMoe):
                x = x + layer.mlp(normed)
                continue
            index = self._moe_index[i]
            prob, choice, weights, shown = self._route_static(
                normed, self._gates[index], masks[:, index], keeps[:, index]
            )
            experts = layer.mlp.experts
            x = x + self._mix_experts(normed, experts.gate_up_proj, experts.down_proj, choice, weights)
            if layer.mlp.shared_experts is not None:
                x = x + layer.mlp.shared_experts(normed)
            probs.append(prob)
            choices.append(shown)
        x = F.rms_norm(x, x.shape[-1:], model.norm.weight, model.norm.variance_epsilon)
        return {
            "logits": self.model.lm_head(x).float(),
            "probs": torch.stack(probs) if probs else torch.empty(0),
            "choice": torch.stack(choices) if choices else torch.empty(0),
        }

    def _attend_static(
        self,
        i: int,
        x: torch.Tensor,
        rows: torch.Tensor,
        positions: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        bias: torch.Tensor,
        total: int,
    ) -> torch.Tensor:
        plan, rank = self.attention[i], self.config.kv_lora_rank
        normed = F.rms_norm(x, x.shape[-1:], None, plan.eps)
        y = plan.queries_and_entry(normed[:, None])[:, 0]  # [B, h+1, C]
        even, odd = y[..., rank::2].float(), y[..., rank + 1 :: 2].float()
        rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(y.dtype)
        latent = F.rms_norm(y[:, -1, :rank], (rank,), None, plan.module.kv_a_layernorm.variance_epsilon)
        self.cache[i][rows, positions] = torch.cat([latent, rotated[:, -1]], dim=-1)
        queries = torch.cat([y[:, :-1, :rank], rotated[:, :-1]], dim=-1)
        keys = self.cache[i, :, :total].index_select(0, rows)
        scores = torch.bmm(queries, keys.transpose(1, 2)).float() + bias
        context = torch.bmm(scores.softmax(-1).to(y.dtype), keys[..., :rank])
        return plan.output(context[:, None])[:, 0]

    def _route_static(
        self, normed: torch.Tensor, gate: torch.Tensor, mask: torch.Tensor, keep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(probabilities, experts, weights, experts as shown: -1 where silenced)."""
        prob = F.linear(normed.float(), gate).softmax(-1)
        weights, choice = choose_experts(prob, mask, self.config)
        kept = keep.gather(1, choice)
        return prob, choice, weights * kept, choice.masked_fill(kept == 0, -1)
