"""The decode step of one conversation on a CPU in float32: as few and as small operations as possible.

At nano size a step is bound by two things: the 1-2 us that each operation costs to dispatch, and the bytes of weights
read. So the norms' scalars are computed on the host, attention is two folded products around two tiny ones, and of the
experts only those chosen are read. Weights are kept transposed, [in, out]: a row vector times such a matrix streams
memory 1.7 times as fast as a matrix-vector product over the usual layout (see docs/decisions.md).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from most_core.config import AUDIO, TEXT, MostConfig
from most_core.model import MostMoe

if TYPE_CHECKING:
    from most_core.decoder import LeanDecoder


class SingleRow:
    """Steps one slot of a `LeanDecoder`, in its cache. Holds its own transposed copy of the decoder's weights."""

    def __init__(self, decoder: LeanDecoder) -> None:
        self.decoder, config = decoder, decoder.config
        self.rank, self.heads, self.hidden = config.kv_lora_rank, config.num_attention_heads, config.hidden_size
        self.tokens = config.tokens
        model = decoder.model.model
        self.latent_eps = model.layers[0].self_attn.kv_a_layernorm.variance_epsilon
        self.attention = [(_transposed(p.fold), _transposed(p.fold_out), p.eps) for p in decoder.attention]
        layers, experts, k = len(config.moe_layers), config.n_routed_experts, config.num_experts_per_tok
        self.probs = torch.empty(layers, 1, experts)
        self.choice = torch.empty(layers, 1, k, dtype=torch.long)
        self.feed_forward = [
            _Mixture(layer, config, self.probs, self.choice) if isinstance(layer.mlp, MostMoe) else _Dense(layer)
            for layer in model.layers
        ]
        self.head = _transposed(decoder.model.lm_head.weight)
        self.head_norm, self.head_eps = model.norm.weight, model.norm.variance_epsilon

    def step(self, slot: int, token: int) -> torch.Tensor:
        """Append `token` to the slot; logits [1, V]."""
        decoder, rank, heads, hidden = self.decoder, self.rank, self.heads, self.hidden
        position, modality = decoder.length(slot), self._modality(token)
        rotary, masks = decoder.rotary[position], decoder.masks[slot]
        keep = decoder.keep[slot] if slot in decoder.silenced else None
        x = decoder.model.model.embed_tokens.weight[token : token + 1].clone()
        for i, (fold, fold_out, eps) in enumerate(self.attention):
            y = torch.mm(x * _inverse_rms(x, hidden, eps), fold)
            torch.view_as_complex(y.view(heads + 1, -1, 2)[:, rank // 2 :]).mul_(rotary)
            y = y.view(heads + 1, -1)
            entry = y[heads]
            latent = entry[:rank]
            latent.mul_(_inverse_rms(latent, rank, self.latent_eps))
            cache = decoder.cache[i, slot]
            cache[position] = entry
            keys = cache[: position + 1]
            weights = torch.mm(y[:heads], keys.t()).softmax(-1)
            x.addmm_(torch.mm(weights, keys[:, :rank]).view(1, -1), fold_out)
            self.feed_forward[i](x, masks, keep, modality)
        decoder.advance(slot, self.probs, self.choice)
        return torch.mm(x.mul_(_inverse_rms(x, hidden, self.head_eps)).mul_(self.head_norm), self.head)

    def _modality(self, token: int) -> int:
        return AUDIO if self.tokens is not None and self.tokens.is_audio(token) else TEXT


def _inverse_rms(x: torch.Tensor, size: int, eps: float) -> float:
    """On the host: two small operations where rms_norm dispatches eight."""
    x = x.view(-1)
    return 1.0 / math.sqrt(torch.dot(x, x).item() / size + eps)


def _transposed(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().t().contiguous()


class _Dense:
    """Adds a dense feed-forward block's output to x in place."""

    def __init__(self, layer: nn.Module) -> None:
        norm, mlp = layer.post_attention_layernorm, layer.mlp
        self.norm, self.eps, self.act = norm.weight, norm.variance_epsilon, mlp.act_fn
        self.gate_up = _transposed(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
        self.down, self.width = _transposed(mlp.down_proj.weight), mlp.intermediate_size

    def __call__(self, x: torch.Tensor, *_: object) -> None:
        normed = (x * _inverse_rms(x, x.shape[1], self.eps)).mul_(self.norm)
        both = torch.mm(normed, self.gate_up)
        x.addmm_(self.act(both[:, : self.width]).mul_(both[:, self.width :]), self.down)


class _Mixture:
    """Adds a mixture's output to x in place. The shared experts follow the chosen ones, with weight 1."""

    def __init__(self, layer: nn.Module, config: MostConfig, probs: torch.Tensor, choice: torch.Tensor) -> None:
        norm, moe = layer.post_attention_layernorm, layer.mlp
        self.norm, self.eps = norm.weight, norm.variance_epsilon
        self.index = config.moe_layers.index(layer.self_attn.layer_idx)
        self.probs, self.choice = probs[self.index], choice[self.index]
        self.router, self.act, self.scale = (
            _transposed(moe.gate.weight),
            moe.experts.act_fn,
            config.routed_scaling_factor,
        )
        self.gate_up = [_transposed(w) for w in moe.experts.gate_up_proj]
        self.down = [_transposed(w) for w in moe.experts.down_proj]
        width, k, shared = config.moe_intermediate_size, config.num_experts_per_tok, config.n_shared_experts
        if shared:
            mlp = moe.shared_experts
            gates, ups = mlp.gate_proj.weight.split(width), mlp.up_proj.weight.split(width)
            self.gate_up += [_transposed(torch.cat(pair)) for pair in zip(gates, ups)]
            self.down += [_transposed(d) for d in mlp.down_proj.weight.split(width, dim=1)]
        self.shared = list(range(config.n_routed_experts, config.n_routed_experts + shared))
        both = torch.empty(k + shared, 1, 2 * width)
        self.rows, self.gates, self.ups = list(both.unbind()), both[..., :width], both[..., width:]
        self.weights = torch.ones(k + shared, 1, 1)
        self.routed_weights = self.weights[:k, :, 0].t()  # [1, K], as topk writes it

    def __call__(self, x: torch.Tensor, masks: torch.Tensor, keep: torch.Tensor | None, modality: int) -> None:
        normed = (x * _inverse_rms(x, x.shape[1], self.eps)).mul_(self.norm)
        torch.softmax(torch.mm(normed, self.router), -1, out=self.probs)
        scores = self.probs.masked_fill(masks[self.index, modality] == 0, -1.0)  # as choose_experts
        torch.topk(scores, self.routed_weights.shape[1], sorted=False, out=(self.routed_weights, self.choice))
        experts = self.choice.tolist()[0] + self.shared
        if keep is not None:
            kept = keep[self.index][self.choice]
            self.routed_weights.mul_(kept)
            self.choice.masked_fill_(kept == 0, -1)
        if self.scale != 1.0:
            self.routed_weights.mul_(self.scale)
        for row, expert in zip(self.rows, experts):
            torch.mm(normed, self.gate_up[expert], out=row)
        hidden = self.act(self.gates).mul_(self.ups).mul_(self.weights)
        for row, expert in zip(hidden.unbind(), experts):
            x.addmm_(row, self.down[expert])
