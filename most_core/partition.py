"""Which expert belongs to whom: the paper splits by index; here the split by measured activation.

Profile the plain router on text and on speech, then give each expert to the modality that uses it more, group sizes
free (each at least the experts one token takes). The result is one list per MoE layer in the configuration.

Shapes: L MoE layers, E experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from most_core.config import AUDIO, TEXT, MostConfig
from most_core.model import MostForCausalLM
from most_core.router import MostRouter, choose_experts


@torch.inference_mode()
def profile(model: MostForCausalLM, batches: Iterable[Mapping[str, torch.Tensor]]) -> torch.Tensor:
    """Share of each modality's routing weight that every expert would get from the plain router: [L, 2, E].

    `batches` are inputs of `model.forward` (input_ids, and input_features or attention_mask where needed); they should
    hold text and speech. The model itself runs as it is; only the measured choice ignores the mask.
    """
    config = model.config
    routers = [module for module in model.modules() if isinstance(module, MostRouter)]
    if not routers:
        raise ValueError("the model has no routed experts: there is nothing to partition")
    usage = torch.zeros(len(routers), 2, config.n_routed_experts, dtype=torch.float64)
    valid = torch.empty(0)

    def measure(router: MostRouter, args: tuple, output: tuple[torch.Tensor, ...]) -> None:
        weights, indices = choose_experts(output[0].softmax(-1), None, config)
        modality = args[1].reshape(-1)
        for kind in (TEXT, AUDIO):
            rows = ((modality == kind) & valid).nonzero().squeeze(-1)
            usage[routers.index(router), kind].scatter_add_(
                0, indices[rows].reshape(-1).cpu(), weights[rows].reshape(-1).double().cpu()
            )

    hooks = [router.register_forward_hook(measure) for router in routers]
    try:
        for batch in batches:
            mask = batch.get("attention_mask")
            mask = torch.ones_like(batch["input_ids"]) if mask is None else mask
            valid = mask.reshape(-1).bool()
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    for kind, name in ((TEXT, "text"), (AUDIO, "speech")):
        if not usage[:, kind].sum() > 0:
            raise ValueError(f"the batches hold no {name} tokens: profile on text and on speech")
    return usage / usage.sum(-1, keepdim=True)


def by_activation(usage: torch.Tensor, smallest: int) -> tuple[list[list[int]], list[list[int]]]:
    """(text experts, audio experts) per layer from `profile()`: each expert goes where it is used more; a group with
    fewer than `smallest` takes those that cost the other group least."""
    count = usage.shape[-1]
    if 2 * smallest > count:
        raise ValueError(f"{count} experts cannot make two groups of at least {smallest}: use fewer experts per token")
    text, audio = [], []
    for layer in usage:
        preference = layer[TEXT] - layer[AUDIO]
        order = preference.argsort(descending=True).tolist()
        size = min(max(int((preference > 0).sum()), smallest), count - smallest)
        text.append(sorted(order[:size]))
        audio.append(sorted(order[size:]))
    return text, audio


def repartition(config: MostConfig, usage: torch.Tensor) -> MostConfig:
    """A copy of the configuration with the experts split by measured activation; weights need no change."""
    text, audio = by_activation(usage, config.num_experts_per_tok)
    settings = config.to_dict() | {
        "use_modality_aware_routing": True,
        "text_expert_indices": text,
        "audio_expert_indices": audio,
    }
    return MostConfig(**settings)
