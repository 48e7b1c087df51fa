"""The lean decoder: the same arithmetic as model.py, arranged for speaking token by token.

What is special about it:
- the latent MLA cache is preallocated, [layers, slots, context, r + d]; each slot holds one conversation, so rows
  join and leave a batch freely and need no padding;
- the key and value expansions are absorbed into the query and output projections, so that a step reads the latent
  cache once instead of expanding all of it; for small models they are folded into single matrices;
- one row on a CPU takes its own path of about 25 small operations a layer that touches only the chosen experts;
- routing probabilities and choices land in preallocated buffers either way, so recording them costs one copy.

Shapes: B rows, T tokens of a row, H hidden, h heads, r latent rank, d rotary size, C = r + d, L MoE layers, E experts,
K experts per token, I expert width.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache

from most_core.config import MostConfig
from most_core.experts import FusedExperts, pack_experts
from most_core.model import MostForCausalLM, MostMoe, check_ids
from most_core.router import MostRouter, choose_experts, group_mask, modality_of
from most_core.single_row import SingleRow

PREFILL_CHUNK = 512  # tokens; bounds the memory of the attention scores


class Decoder(Protocol):
    """What the generation loop needs. Not thread-safe by itself: hold `lock` around a forward."""

    config: MostConfig
    slots: int
    context: int
    lock: threading.RLock

    def reset(self, slot: int) -> None: ...
    def length(self, slot: int) -> int: ...
    def prefill(
        self,
        slot: int,
        ids: Sequence[int],
        features: torch.Tensor | None = None,
        cancel: threading.Event | None = None,
    ) -> torch.Tensor | None: ...
    def step(self, slots: Sequence[int], ids: Sequence[int]) -> torch.Tensor: ...
    def knock_out(self, slot: int, experts: Sequence[tuple[int, int]], mode: str = "next") -> None: ...
    def routing(self) -> tuple[torch.Tensor, torch.Tensor]: ...


@dataclass
class _Attention:
    """One layer's attention with absorbed projections. `fold` [(h+1)*C, H] replaces the modules where it is small."""

    module: nn.Module
    norm_weight: torch.Tensor
    eps: float
    scaling: float
    key_up: torch.Tensor  # [h, dn, r]: query side of the key expansion, latent norm included
    value_up: torch.Tensor  # [h, r, dv]
    fold: torch.Tensor | None = None
    fold_out: torch.Tensor | None = None  # [H, h*r]

    def queries_and_entry(self, normed_BTH: torch.Tensor) -> torch.Tensor:
        """[B, T, h+1, C]: each head's (latent, rotary) query, then the cache entry (latent, rotary key), unrotated."""
        batch, length, _ = normed_BTH.shape
        heads, nope, _ = self.key_up.shape
        if self.fold is not None:
            return F.linear(normed_BTH, self.fold).view(batch, length, heads + 1, -1)
        attn = self.module
        normed_BTH = normed_BTH * self.norm_weight
        query = attn.q_proj(normed_BTH) if attn.q_proj is not None else _low_rank_query(attn, normed_BTH)
        query = query.view(batch, length, heads, -1) * self.scaling
        latent = torch.einsum("bthn,hnr->bthr", query[..., :nope], self.key_up.to(query.dtype))
        entry = attn.kv_a_proj_with_mqa(normed_BTH)
        query = torch.cat([latent, query[..., nope:]], dim=-1)
        return torch.cat([query, entry[:, :, None]], dim=2)

    def output(self, context_BThr: torch.Tensor) -> torch.Tensor:
        if self.fold_out is not None:
            return F.linear(context_BThr.flatten(2), self.fold_out)
        values = torch.einsum("bthr,hrv->bthv", context_BThr, self.value_up.to(context_BThr.dtype))
        return self.module.o_proj(values.flatten(2))


def _low_rank_query(attn: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    return attn.q_b_proj(attn.q_a_layernorm(attn.q_a_proj(hidden)))


def _plan_attention(layer: nn.Module, config: MostConfig, may_fold: bool) -> _Attention:
    attn, heads, rank = layer.self_attn, config.num_attention_heads, config.kv_lora_rank
    nope, rotary, hidden = config.qk_nope_head_dim, config.qk_rope_head_dim, config.hidden_size
    latent_norm = attn.kv_a_layernorm.weight.float()
    expand = attn.kv_b_proj.weight.float().view(heads, nope + config.v_head_dim, rank) * latent_norm
    dtype, norm = attn.kv_b_proj.weight.dtype, layer.input_layernorm
    plan = _Attention(
        module=attn,
        norm_weight=norm.weight,
        eps=norm.variance_epsilon,
        scaling=attn.scaling,
        key_up=expand[:, :nope].to(dtype),
        value_up=expand[:, nope:].transpose(1, 2).contiguous().to(dtype),
    )
    separate = heads * (nope * hidden + nope * rank + rank * config.v_head_dim + config.v_head_dim * hidden)
    if not may_fold or attn.q_proj is None or config.attention_bias or 2 * heads * rank * hidden > 1.5 * separate:
        return plan
    query = attn.q_proj.weight.float().view(heads, nope + rotary, hidden) * attn.scaling
    latent = torch.einsum("hnr,hnx->hrx", expand[:, :nope], query[:, :nope])
    queries = torch.cat([latent, query[:, nope:]], dim=1).flatten(0, 1)
    fold = torch.cat([queries, attn.kv_a_proj_with_mqa.weight.float()]) * norm.weight.float()
    out = attn.o_proj.weight.float().view(hidden, heads, config.v_head_dim)
    fold_out = torch.einsum("xhv,hvr->xhr", out, expand[:, nope:]).flatten(1)
    plan.fold, plan.fold_out = fold.to(dtype).contiguous(), fold_out.to(dtype).contiguous()
    return plan


class LeanDecoder:
    """Static-cache decoder over a resident model (any dtype, quantized too). It snapshots what it folds: build a new
    one after the weights change.

    `slots` conversations of at most `context` tokens each (default: the model's maximum, at most 4,096).
    """

    def __init__(self, model: MostForCausalLM, slots: int = 1, context: int | None = None) -> None:
        self.config = config = model.config
        self.model, self.slots = model, slots
        self.context = min(context or 4096, config.max_position_embeddings)
        self.lock = threading.RLock()
        self.device, self.dtype = model.model.embed_tokens.weight.device, model.model.norm.weight.dtype
        quantized = getattr(model, "is_quantized", False)
        self.attention = [_plan_attention(layer, config, not quantized) for layer in model.model.layers]
        self._moe_index = {layer: i for i, layer in enumerate(config.moe_layers)}

        entry = config.kv_lora_rank + config.qk_rope_head_dim
        shape = (config.num_hidden_layers, slots, self.context, entry)
        self.cache = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self._lengths = [0] * slots
        positions = torch.arange(self.context, device=self.device)[None]
        self.rotary = model.model.rotary_emb(torch.zeros(1, device=self.device), positions)[0]

        experts = config.n_routed_experts
        self._base_mask = torch.ones(len(self._moe_index), 2, experts, device=self.device)
        if config.uses_experts and config.use_modality_aware_routing:
            groups = config.expert_groups()
            self._base_mask = torch.stack([group_mask(g, experts, self.device) for g in groups]).float()
        # Per slot, as tensors, so that a captured step can look them up: who may be chosen, who is not silenced.
        self.masks = self._base_mask.repeat(slots, 1, 1, 1)  # [slots, L, 2, E]
        self.keep = torch.ones_like(self.masks[:, :, 0])  # [slots, L, E]
        self.silenced: set[int] = set()  # slots with a zero in keep
        self._probs = self._choice = torch.empty(0)
        self._moes = [layer.mlp for layer in model.model.layers if isinstance(layer.mlp, MostMoe)]
        self._gates = [moe.gate.weight.detach().float() for moe in self._moes]
        self._experts = pack_experts([moe.experts for moe in self._moes])
        self._one = SingleRow(self) if self._suits_single_row() else None

    def _suits_single_row(self) -> bool:
        config = self.config
        plain_router = not config.norm_topk_prob and config.topk_method == "greedy"
        plain_weights = self.device.type == "cpu" and self.dtype == torch.float32 and not config.mlp_bias
        even_pairs = config.kv_lora_rank % 2 == 0  # rotary pairs are viewed as complex numbers in place
        folded = all(plan.fold is not None for plan in self.attention)
        fused = all(isinstance(experts, FusedExperts) for experts in self._experts)
        return plain_router and plain_weights and even_pairs and folded and fused

    # -- conversations ---------------------------------------------------------------------------------------------

    def reset(self, slot: int) -> None:
        """Forget the slot's conversation and its knocked-out experts."""
        # Masked attention multiplies what is left of a longer conversation by 0, which would not silence a NaN.
        self.cache[:, slot, : self._lengths[slot]] = 0
        self._lengths[slot] = 0
        self.knock_out(slot, ())

    def length(self, slot: int) -> int:
        """Tokens in the slot's cache."""
        return self._lengths[slot]

    def knock_out(self, slot: int, experts: Sequence[tuple[int, int]], mode: str = "next") -> None:
        """Switch off (decoder layer, expert) pairs for one slot: `"next"` lets the next best step in, `"zero"` only
        silences the expert."""
        self.masks[slot], self.keep[slot] = knock_out_masks(self._base_mask, self.config, experts, mode)
        self.silenced.discard(slot)
        if experts and mode == "zero":
            self.silenced.add(slot)

    def routing(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(probabilities over all experts [L, N, E], chosen experts [L, N, K]) of the last forward; overwritten by the
        next one."""
        return self._probs, self._choice

    def advance(self, slot: int, probs: torch.Tensor, choice: torch.Tensor) -> None:
        """One token was appended to the slot, routed like this."""
        self._lengths[slot] += 1
        self._probs, self._choice = probs, choice

    # -- forward ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def prefill(
        self,
        slot: int,
        ids: Sequence[int],
        features: torch.Tensor | None = None,
        cancel: threading.Event | None = None,
    ) -> torch.Tensor | None:
        """Append `ids` (with `features` [F, D] for their [Frame] positions) to a slot; logits [V] after the last, or
        None if cancelled between two chunks."""
        tokens = torch.tensor([list(ids)], device=self.device)
        check_prompt(self, slot, tokens)
        if features is not None:
            features = features[None].to(self.device)
        embeds = self.model.model.embed(tokens, features).to(self.dtype)
        modality = modality_of(tokens, self.config.tokens)
        parts = []
        for chunk, kinds in zip(embeds.split(PREFILL_CHUNK, 1), modality.split(PREFILL_CHUNK, 1)):
            if cancel is not None and cancel.is_set():
                return None
            hidden = self._forward([slot], chunk, kinds)
            parts.append((self._probs, self._choice))
        self._probs, self._choice = (torch.cat(x, dim=1) for x in zip(*parts))
        return self._logits(hidden[:, -1])[0]

    @torch.inference_mode()
    def step(self, slots: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
        """Append one token to each slot; logits [B, V]."""
        self._check_room(slots)
        if self._one is not None and len(slots) == 1:
            return self._one.step(slots[0], ids[0])
        tokens = torch.tensor(ids, device=self.device)[:, None]
        embeds = self.model.model.embed_tokens(tokens).to(self.dtype)
        hidden = self._forward(slots, embeds, modality_of(tokens, self.config.tokens))
        return self._logits(hidden[:, -1])

    def _check_room(self, slots: Sequence[int]) -> None:
        for slot in slots:
            if self._lengths[slot] >= self.context:
                raise ValueError(
                    f"the conversation in slot {slot} has reached the context of {self.context} tokens: "
                    "drop the oldest turns or load with a larger context"
                )

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        norm = self.model.model.norm
        return self.model.lm_head(F.rms_norm(hidden, hidden.shape[-1:], norm.weight, norm.variance_epsilon)).float()

    def _forward(self, slots: Sequence[int], x: torch.Tensor, modality_BT: torch.Tensor) -> torch.Tensor:
        length = x.shape[1]
        rows = torch.tensor(slots, device=self.device)
        starts = torch.tensor([self._lengths[slot] for slot in slots], device=self.device)
        total = max(self._lengths[slot] for slot in slots) + length
        silenced = not self.silenced.isdisjoint(slots)
        x, self._probs, self._choice = self.run_layers(x, rows, starts, total, modality_BT, silenced)
        for slot in slots:
            self._lengths[slot] += length
        return x

    def run_layers(
        self,
        x: torch.Tensor,
        rows: torch.Tensor,
        starts: torch.Tensor,
        total: int,
        modality_BT: torch.Tensor,
        silenced: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(hidden [B, T, H], probabilities [L, N, E], chosen experts [L, N, K]) of tokens appended at `starts` of the
        slots `rows`. Reads and writes nothing but tensors, for a GPU to capture; `total` is the cache length read."""
        config, (batch, length, _) = self.config, x.shape
        layers, tokens = len(self._moes), batch * length
        probs = torch.empty(layers, tokens, config.n_routed_experts, device=self.device)
        choice = torch.empty(layers, tokens, config.num_experts_per_tok, dtype=torch.long, device=self.device)
        positions = starts[:, None] + torch.arange(length, device=self.device)  # [B, T]
        hidden = torch.arange(total, device=self.device) > positions[..., None]
        bias = torch.zeros(hidden.shape, device=self.device).masked_fill_(hidden, float("-inf"))[:, :, None]
        rotary = self.rotary[positions][:, :, None]
        masks = self.masks[rows[:, None], :, modality_BT].flatten(0, 1)  # [N, L, E]
        keeps = None
        if silenced:  # [N, L, E]; expand, since repeat_interleave may wait for the GPU, which a capture forbids
            keeps = self.keep[rows][:, None].expand(-1, length, -1, -1).flatten(0, 1)
        for i, layer in enumerate(self.model.model.layers):
            x = x + self._attend(i, x, rows, positions, rotary, bias, total)
            norm = layer.post_attention_layernorm
            normed = F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)
            if not isinstance(layer.mlp, MostMoe):
                x = x + layer.mlp(normed)
                continue
            index, flat = self._moe_index[i], normed.flatten(0, 1)
            torch.softmax(F.linear(flat.float(), self._gates[index]), -1, out=probs[index])
            weights, choice[index] = choose_experts(probs[index], masks[:, index], config)
            if keeps is not None:
                kept = keeps[:, index].gather(1, choice[index])
                x = x + self._mix_experts(index, flat, choice[index], weights * kept).view_as(x)
                choice[index] = choice[index].masked_fill(kept == 0, -1)
            else:
                x = x + self._mix_experts(index, flat, choice[index], weights).view_as(x)
            if layer.mlp.shared_experts is not None:
                x = x + layer.mlp.shared_experts(normed)
        return x, probs, choice

    def _attend(
        self,
        i: int,
        x: torch.Tensor,
        rows: torch.Tensor,
        positions: torch.Tensor,
        rotary: torch.Tensor,
        bias: torch.Tensor,
        total: int,
    ) -> torch.Tensor:
        plan, rank = self.attention[i], self.config.kv_lora_rank
        y = plan.queries_and_entry(F.rms_norm(x, x.shape[-1:], None, plan.eps))
        rotated = torch.view_as_complex(y[..., rank:].float().unflatten(-1, (-1, 2))) * rotary
        rotated = torch.view_as_real(rotated).flatten(-2).to(y.dtype)
        latent = F.rms_norm(y[:, :, -1, :rank], (rank,), None, plan.module.kv_a_layernorm.variance_epsilon)
        self.cache[i][rows[:, None], positions] = torch.cat([latent, rotated[:, :, -1]], dim=-1)

        queries = torch.cat([y[:, :, :-1, :rank], rotated[:, :, :-1]], dim=-1)  # [B, T, h, C]
        batch, length, heads, _ = queries.shape
        keys = self.cache[i, :, :total].index_select(0, rows)  # [B, total, C]
        scores = torch.bmm(queries.flatten(1, 2), keys.transpose(1, 2)).view(batch, length, heads, total)
        weights = (scores.float() + bias).softmax(-1).to(y.dtype)
        context = torch.bmm(weights.flatten(1, 2), keys[..., :rank]).view(batch, length, heads, rank)
        return plan.output(context)

    def _mix_experts(self, index: int, flat: torch.Tensor, choice: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return self._experts[index](flat, choice, weights)


class ModuleDecoder:
    """The same interface over the model's own forward: for weights that are not resident (offloaded to CPU or disk,
    or spread over devices), where only the modules' hooks know how to fetch them. Its experts cannot be knocked out."""

    def __init__(self, model: MostForCausalLM, slots: int = 1, context: int | None = None) -> None:
        self.config, self.model, self.slots = model.config, model, slots
        self.context = min(context or 4096, model.config.max_position_embeddings)
        self.lock = threading.RLock()
        self.device = model.model.embed_tokens.weight.device
        if self.device.type == "meta":
            self.device = torch.device("cpu")
        self.caches: list[DynamicCache] = [DynamicCache(config=model.config) for _ in range(slots)]
        self._routers = [m for m in model.modules() if isinstance(m, MostRouter)]
        self._seen: dict[MostRouter, tuple[torch.Tensor, torch.Tensor]] = {}
        for router in self._routers:
            router.register_forward_hook(self._watch)

    def _watch(self, router: MostRouter, _: object, output: tuple[torch.Tensor, ...]) -> None:
        logits, _, choice = output
        self._seen[router] = (logits.detach().softmax(-1).cpu(), choice.cpu())

    def reset(self, slot: int) -> None:
        self.caches[slot] = DynamicCache(config=self.config)

    def length(self, slot: int) -> int:
        return int(self.caches[slot].get_seq_length())

    def knock_out(self, slot: int, experts: Sequence[tuple[int, int]], mode: str = "next") -> None:
        if experts:
            raise ValueError("experts of an offloaded model cannot be knocked out: load it whole on one device")

    def routing(self) -> tuple[torch.Tensor, torch.Tensor]:
        seen = [self._seen[router] for router in self._routers]
        if not seen:
            return torch.empty(0), torch.empty(0)
        return torch.stack([probs for probs, _ in seen]), torch.stack([choice for _, choice in seen])

    @torch.inference_mode()
    def prefill(
        self,
        slot: int,
        ids: Sequence[int],
        features: torch.Tensor | None = None,
        cancel: threading.Event | None = None,
    ) -> torch.Tensor | None:
        if cancel is not None and cancel.is_set():
            return None
        tokens = torch.tensor([list(ids)], device=self.device)
        check_prompt(self, slot, tokens)
        features = None if features is None else features[None].to(self.device)
        return self._forward(slot, tokens, features)

    @torch.inference_mode()
    def step(self, slots: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
        rows, seen = [], []
        for slot, token in zip(slots, ids):
            rows.append(self._forward(slot, torch.tensor([[token]], device=self.device), None))
            seen.append(dict(self._seen))
        self._seen = {r: tuple(torch.cat([s[r][j] for s in seen]) for j in (0, 1)) for r in self._routers}
        return torch.stack(rows)

    def _forward(self, slot: int, tokens: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        output = self.model(
            input_ids=tokens,
            input_features=features,
            past_key_values=self.caches[slot],
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[0, -1].float()


def check_prompt(decoder: Decoder, slot: int, tokens: torch.Tensor) -> None:
    """Raise a readable error for an empty or too long prompt, or ids outside the vocabulary."""
    if tokens.numel() == 0:
        raise ValueError("the prompt is empty: give at least one token")
    total = decoder.length(slot) + tokens.shape[1]
    if total > decoder.context:
        raise ValueError(
            f"the conversation is {total} tokens long, the context holds {decoder.context}: "
            "drop the oldest turns or load with a larger context"
        )
    check_ids(tokens, decoder.config.vocab_size)


def knock_out_masks(
    base: torch.Tensor, config: MostConfig, experts: Sequence[tuple[int, int]], mode: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(mask [L, 2, E], keep [L, E]) with the given (decoder layer, expert) pairs switched off."""
    if mode not in ("next", "zero"):
        raise ValueError(f"unknown knock-out mode {mode!r}: use 'next' or 'zero'")
    mask, keep = base.clone(), torch.ones_like(base[:, 0])
    for layer, expert in experts:
        if layer not in config.moe_layers or not 0 <= expert < config.n_routed_experts:
            layers, last = config.moe_layers, config.n_routed_experts - 1
            have = f"layers {layers[0]}..{layers[-1]} have experts 0..{last}" if layers else "the model has no experts"
            raise ValueError(f"there is no expert {expert} in layer {layer}: {have}")
        row = config.moe_layers.index(layer)
        mask[row, :, expert], keep[row, expert] = 0, 0
    if mode == "zero":
        return base, keep
    left = torch.where(base.amax(-1) > 0, mask.sum(-1), config.num_experts_per_tok)
    if (left < config.num_experts_per_tok).any():
        row = int((left < config.num_experts_per_tok).any(-1).nonzero()[0])
        raise ValueError(
            f"too many experts knocked out in layer {config.moe_layers[row]}: every token needs "
            f"{config.num_experts_per_tok}; knock out fewer or use mode 'zero'"
        )
    return mask, torch.ones_like(keep)
