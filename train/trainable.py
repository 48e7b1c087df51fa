"""What of a model learns: everything, everything but the routed experts, or low-rank additions (LoRA)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from most_core.config import MostConfig
from most_core.model import MostForCausalLM
from train.stage_config import Config, Lora

# The projections of attention, of shared experts and of dense blocks; routed experts are parameters, not modules.
_LINEARS = (
    *("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
    *("gate_proj", "up_proj", "down_proj"),
)
_EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def make_trainable(model: MostForCausalLM, config: Config) -> nn.Module:
    """The model with only what `config.trains` names learning, in the precision that training keeps it in.

    For "lora" it comes back inside a peft model, which is called like the model; otherwise it is the same object.
    """
    if config.trains == "lora":
        learner = _with_lora(model, config.lora)
    else:
        learner = model
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(config.trains == "all" or not is_routed_expert(name))
    for parameter in learner.parameters():
        parameter.data = parameter.data.to(kept_dtype(config, learns=parameter.requires_grad))
    return learner


def is_routed_expert(name: str) -> bool:
    """Whether a parameter of this name belongs to the experts among which a router chooses."""
    return ".experts." in name


def kept_dtype(config: Config, *, learns: bool) -> torch.dtype:
    """How a weight is kept between steps: AdamW needs float32, in which a small step is not rounded away."""
    exact = config.precision == "float32" or (learns and config.optimizer != "adamw_8bit")
    return torch.float32 if exact else torch.bfloat16


def merged(model: nn.Module) -> MostForCausalLM:
    """Plain weights again, for export. Takes a model that is not sharded, and uses it up."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def learned(model: MostForCausalLM, config: Config, weights: dict[str, torch.Tensor]) -> MostForCausalLM:
    """The plain model that a training made: `model`, as it started, and what a checkpoint has of its weights."""
    learner = make_trainable(model, config)
    with torch.no_grad():
        for name, parameter in trained_parameters(learner).items():
            parameter.copy_(weights[name])
    return merged(learner).to(kept_dtype(config, learns=False))


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What learns, by name: all that the optimizer needs, and all that a checkpoint needs of the weights."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _with_lora(model: MostForCausalLM, lora: Lora) -> nn.Module:
    from peft import LoraConfig, get_peft_model  # imports bitsandbytes, which is slow and warns

    shape = model.config
    whole = ["speech_projector"]
    if shape.moe_layers:
        whole.append("gate")  # small, and no router has met speech before
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(_LINEARS),
        target_parameters=list(_EXPERTS) if shape.moe_layers else None,
        modules_to_save=whole,
        trainable_token_indices=_new_rows(shape),
    )
    return get_peft_model(model, settings)


def _new_rows(shape: MostConfig) -> dict[str, Any] | None:
    """Rows of units and markers, which mean nothing yet: of the embeddings and of the head, where it has its own."""
    if shape.tokens is None:
        return None
    rows = list(range(shape.tokens.first_unit, shape.tokens.size))
    # A tied head must not be named: peft finds it by itself and shares the rows.
    return {"embed_tokens": rows} if shape.tie_word_embeddings else {"embed_tokens": rows, "lm_head": rows}
