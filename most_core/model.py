"""The MoST decoder on transformers' DeepSeek-V2, which supplies attention (MLA), rotary embeddings and norms.

What is special about MoST:
- every token carries a modality; the router masks the experts of the other one (router.py);
- shared experts see every token, and their output is added without a gate;
- continuous speech enters through a linear projector at `[Frame]` positions; units are ordinary tokens;
- the balance loss is returned by each layer, not kept aside, so that checkpointing recomputes it right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM
from transformers.cache_utils import Cache, DynamicCache
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.deepseek_v2.modeling_deepseek_v2 import (
    DeepseekV2Attention,
    DeepseekV2MLP,
    DeepseekV2PreTrainedModel,
    DeepseekV2RMSNorm,
    DeepseekV2RotaryEmbedding,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from most_core.config import MostConfig
from most_core.experts import FusedExperts, PerExpertLinears
from most_core.router import MostRouter, balance_loss, check_modality, modality_of


class MostMoe(nn.Module):
    """Routed experts of the token's modality plus the shared experts."""

    def __init__(self, config: MostConfig, layer_idx: int, experts_class: type[nn.Module]) -> None:
        super().__init__()
        self.config = config
        groups = config.expert_groups()[config.moe_layers.index(layer_idx)]
        self.gate = MostRouter(config, groups)
        self.experts = experts_class(config)
        self.shared_experts = None
        if config.n_shared_experts:
            width = config.moe_intermediate_size * config.n_shared_experts
            self.shared_experts = DeepseekV2MLP(config, intermediate_size=width)

    def forward(
        self, hidden_BTH: torch.Tensor, modality_BT: torch.Tensor, valid_BT: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        flat = hidden_BTH.view(-1, hidden_BTH.shape[-1])
        modality_N = modality_BT.reshape(-1)
        logits, weights, indices = self.gate(flat, modality_N)
        output = self.experts(flat, indices, weights).view_as(hidden_BTH)
        if self.shared_experts is not None:
            output = output + self.shared_experts(hidden_BTH)
        loss = None
        if self.training and self.config.aux_loss_alpha > 0:
            allowed = self.gate.allowed(modality_N)
            loss = balance_loss(logits, indices, allowed, modality_BT, self.config, valid_BT)
        return output, loss


class MostDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: MostConfig, layer_idx: int, experts_class: type[nn.Module]) -> None:
        super().__init__()
        self.self_attn = DeepseekV2Attention(config, layer_idx)
        if config.layer_is_moe(layer_idx):
            self.mlp = MostMoe(config, layer_idx, experts_class)
        else:
            width = config.intermediate_size if config.uses_experts else config.dense_width
            self.mlp = DeepseekV2MLP(config, intermediate_size=width)
        self.input_layernorm = DeepseekV2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = DeepseekV2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        modality_ids: torch.Tensor,
        valid: torch.Tensor | None = None,
        **attention_kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(hidden states, balance loss of this layer or None)."""
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **attention_kwargs)
        hidden_states = hidden_states + attended
        normed = self.post_attention_layernorm(hidden_states)
        if isinstance(self.mlp, MostMoe):
            mixed, loss = self.mlp(normed, modality_ids, valid)
        else:
            mixed, loss = self.mlp(normed), None
        return hidden_states + mixed, loss


class MostPreTrainedModel(DeepseekV2PreTrainedModel):
    config: MostConfig
    config_class = MostConfig
    _no_split_modules = ["MostDecoderLayer"]  # noqa: RUF012
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": OutputRecorder(MostDecoderLayer, index=0),
        "attentions": OutputRecorder(DeepseekV2Attention, index=1),
        "router_logits": OutputRecorder(MostRouter, index=0),
    }

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # transformers greps this module's source for its decorator, which sits on the parent class

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        return super().get_correct_experts_implementation(requested_experts or "most")


@dataclass
class MostModelOutput(MoeModelOutputWithPast):
    """Adds `aux_loss`: the sum of the layers' balance losses, or None outside training."""

    aux_loss: torch.Tensor | None = None


class MostModel(MostPreTrainedModel):
    """Decoder without a head. `experts_class` decides how the routed experts are laid out."""

    experts_class: type[nn.Module] = FusedExperts

    def __init__(self, config: MostConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.speech_projector = nn.Linear(config.speech_feature_size, config.hidden_size)
        self.layers = nn.ModuleList(
            MostDecoderLayer(config, i, self.experts_class) for i in range(config.num_hidden_layers)
        )
        self.norm = DeepseekV2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = DeepseekV2RotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        modality_ids: torch.LongTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        valid: torch.BoolTensor | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """As any transformers decoder, plus:

        `input_features` [B, F, speech_feature_size] fill the `[Frame]` positions of each row in order (rows with
        fewer frames are padded at the end). `modality_ids` [B, T] (0 text, 1 audio) follow from `input_ids` and need
        only be given with `inputs_embeds`, or for a configuration without a token table. `valid` [B, T] says which
        tokens are no padding, to the balance loss alone: where rows are filled up at their ends, nothing that counts
        sees the padding, and attention needs no `attention_mask`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            if input_ids.shape[1] > 1 and not torch.compiler.is_compiling():
                check_ids(input_ids, self.config.vocab_size)
            inputs_embeds = self.embed(input_ids, input_features)
        modality_ids = self._modality(input_ids, inputs_embeds, modality_ids)

        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past)[None]
        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        if valid is None and attention_mask is not None and attention_mask.ndim == 2:
            valid = attention_mask
        valid = valid if self.training else None
        position_embeddings = self.rotary_emb(inputs_embeds, position_ids)

        hidden_states, losses = inputs_embeds, []
        for layer in self.layers:
            hidden_states, loss = layer(
                hidden_states,
                modality_ids=modality_ids,
                valid=valid,
                attention_mask=causal_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_embeddings=position_embeddings,
                **kwargs,
            )
            if loss is not None:
                losses.append(loss.to(hidden_states.device))
        return MostModelOutput(
            last_hidden_state=self.norm(hidden_states),
            past_key_values=past_key_values,
            aux_loss=torch.stack(losses).sum() if losses else None,
        )

    def embed(self, input_ids: torch.Tensor, input_features: torch.Tensor | None = None) -> torch.Tensor:
        """Token embeddings [B, T, H] with projected speech features at the `[Frame]` positions."""
        embeds = self.embed_tokens(input_ids)
        tokens = self.config.tokens
        if tokens is None or (input_features is None and input_ids.shape[1] == 1):
            return embeds
        frames = input_ids == tokens.frame
        counts = frames.sum(1)
        if input_features is None:
            if not torch.compiler.is_compiling() and counts.any():
                raise ValueError(
                    f"input_ids hold {int(counts.sum())} [Frame] placeholders but no input_features were given: "
                    "pass the encoder's features [batch, frames, size]"
                )
            return embeds
        if input_features.ndim != 3 or input_features.shape[-1] != self.config.speech_feature_size:
            raise ValueError(
                f"input_features have shape {tuple(input_features.shape)}, expected "
                f"[{len(input_ids)}, frames, {self.config.speech_feature_size}]"
            )
        if len(input_features) != len(input_ids) or int(counts.max()) > input_features.shape[1]:
            raise ValueError(
                f"input_features {tuple(input_features.shape)} do not cover the {counts.tolist()} [Frame] placeholders "
                "of the rows: give each row at least as many frames as placeholders"
            )
        used = torch.arange(input_features.shape[1], device=counts.device) < counts[:, None]
        projected = self.speech_projector(input_features[used].to(self.speech_projector.weight.dtype))
        return embeds.masked_scatter(frames[..., None], projected.to(embeds.dtype))

    def _modality(
        self, input_ids: torch.Tensor | None, embeds: torch.Tensor, given: torch.Tensor | None
    ) -> torch.Tensor:
        if input_ids is None:
            if given is None and self.config.use_modality_aware_routing and self.config.uses_experts:
                raise ValueError(
                    "inputs_embeds carry no token ids: give modality_ids [batch, tokens] (0 text, 1 audio)"
                )
            return given if given is not None else torch.zeros(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        if given is None:
            return modality_of(input_ids, self.config.tokens)
        if not torch.compiler.is_compiling():
            check_modality(input_ids, given, self.config.tokens)
        return given


class MostForCausalLM(MostPreTrainedModel, GenerationMixin):
    """MoST with its head: training (`labels`), HF `generate()`, and the weights that the lean decoder reads.

    In training `loss` is the cross entropy plus `aux_loss`, the balance losses of all layers.
    """

    model_class: type[MostModel] = MostModel
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: MostConfig) -> None:
        super().__init__(config)
        self.model = self.model_class(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        modality_ids: torch.LongTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        targets: torch.BoolTensor | None = None,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """See `MostModel.forward`; `labels` [B, T] are shifted inside, -100 is ignored.

        `targets` [B, T] says which ids are to be foretold: `logits` [targets, V] are then only of the positions before
        those, row by row, which spares a training the rest of the vocabulary's work.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            modality_ids=modality_ids,
            input_features=input_features,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        hidden = slice_logits_to_keep(hidden, logits_to_keep) if targets is None else hidden[:, :-1][targets[:, 1:]]
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
            if outputs.aux_loss is not None:
                loss = loss + outputs.aux_loss.to(loss.device)
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=outputs.aux_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )

    def _update_model_kwargs_for_generation(self, outputs: Any, model_kwargs: dict[str, Any], **kwargs: Any) -> dict:
        # Given modality ids describe the prompt; every generated token's modality follows from its id.
        model_kwargs.pop("modality_ids", None)
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> MostForCausalLM:
        """As in transformers. A quantized load is given the per-expert layout: bitsandbytes would silently leave
        fused experts, nine tenths of the weights, as they are."""
        if cls is MostForCausalLM:
            config = kwargs.get("config") or MostConfig.from_pretrained(pretrained_model_name_or_path)
            if kwargs.get("quantization_config") or getattr(config, "quantization_config", None):
                cls = MostPerExpertForCausalLM
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)


class MostPerExpertModel(MostModel):
    experts_class = PerExpertLinears


class MostPerExpertForCausalLM(MostForCausalLM):
    """The same model with one `nn.Linear` per expert projection: the layout for quantization."""

    model_class = MostPerExpertModel


def check_ids(input_ids: torch.Tensor, vocab_size: int) -> None:
    """Raise a readable error for ids that have no embedding row."""
    if input_ids.numel() == 0:
        return
    low, high = (int(x) for x in torch.aminmax(input_ids))
    if low < 0 or high >= vocab_size:
        bad = low if low < 0 else high
        raise ValueError(f"token id {bad} is out of range: this model's vocabulary has ids 0..{vocab_size - 1}")


# Per-expert checkpoints fuse on load (and split again on save) only for classes with a registered mapping, and the
# per-expert layout must have none: hence by class name, not by model type.
for _name in ("MostForCausalLM", "MostModel"):
    register_checkpoint_conversion_mapping(_name, get_checkpoint_conversion_mapping("deepseek_v2"), overwrite=True)

AutoModel.register(MostConfig, MostModel, exist_ok=True)
AutoModelForCausalLM.register(MostConfig, MostForCausalLM, exist_ok=True)
