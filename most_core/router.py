"""Which modality a token has, which experts it may meet, and how strongly.

Shapes: B batch, T tokens of a sequence, N = B*T flat tokens, E routed experts, K experts per token, H hidden.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter

from most_core.config import AUDIO, MODALITY_NAMES, TEXT, MostConfig, TokenTable


def modality_of(input_ids: torch.Tensor, tokens: TokenTable | None) -> torch.Tensor:
    """Modality of each token id: units and frames are audio, everything else (markers too) is text."""
    if tokens is None:
        return torch.zeros_like(input_ids)
    is_unit = (input_ids >= tokens.first_unit) & (input_ids < tokens.first_unit + tokens.num_units)
    return (is_unit | (input_ids == tokens.frame)).to(input_ids.dtype)


def check_modality(input_ids: torch.Tensor, modality_ids: torch.Tensor, tokens: TokenTable | None) -> None:
    """Raise if given modality ids have another shape, an unknown value, or contradict the token ids."""
    if modality_ids.shape != input_ids.shape:
        raise ValueError(
            f"modality_ids have shape {tuple(modality_ids.shape)}, input_ids {tuple(input_ids.shape)}: "
            "give one modality per token"
        )
    unknown = modality_ids[(modality_ids != TEXT) & (modality_ids != AUDIO)]
    if unknown.numel():
        raise ValueError(f"modality id {int(unknown[0])} is unknown: use 0 (text) or 1 (audio)")
    if tokens is None:
        return
    wrong = (modality_ids != modality_of(input_ids, tokens)).nonzero()
    if len(wrong):
        row, position = wrong[0].tolist()
        token, given = int(input_ids[row, position]), int(modality_ids[row, position])
        raise ValueError(
            f"modality_ids call token {token} at row {row}, position {position} {MODALITY_NAMES[given]}, but it is "
            f"{MODALITY_NAMES[1 - given]}: leave modality_ids out, they follow from the token ids"
        )


def group_mask(groups: tuple[list[int], list[int]], num_experts: int, device: torch.device) -> torch.Tensor:
    """[2, E] bool: which experts tokens of each modality may be routed to."""
    mask = torch.zeros(2, num_experts, dtype=torch.bool)
    for modality, experts in enumerate(groups):
        mask[modality, experts] = True
    return mask.to(device)


def choose_experts(
    probs_NE: torch.Tensor, allowed_NE: torch.Tensor | None, config: MostConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights [N, K], indices [N, K]) of the strongest allowed experts.

    The softmax runs over all experts, the mask comes after it, and the weights are not renormalised
    (unless the configuration asks for it): this is upstream's arithmetic, exact.
    """
    # Masked experts rank below every probability, so that no token leaves its group even if all of the group's
    # probabilities underflow to 0.
    scores = probs_NE if allowed_NE is None else probs_NE.masked_fill(allowed_NE == 0, -1.0)
    if config.topk_method == "group_limited_greedy":
        scores = torch.where(_best_group_mask(scores, config) > 0, scores, scores.clamp_max(0.0))
    weights, indices = torch.topk(scores, config.num_experts_per_tok, dim=-1, sorted=False)
    if config.norm_topk_prob and config.num_experts_per_tok > 1:
        return weights / (weights.sum(-1, keepdim=True) + 1e-20), indices
    if config.routed_scaling_factor != 1.0:
        weights = weights * config.routed_scaling_factor
    return weights, indices


def _best_group_mask(scores_NE: torch.Tensor, config: MostConfig) -> torch.Tensor:
    """DeepSeek's device-limited routing: only experts of the `topk_group` strongest expert groups stay."""
    per_group = scores_NE.view(len(scores_NE), config.n_group, -1)
    best = per_group.amax(-1).topk(config.topk_group, dim=-1, sorted=False).indices
    mask = torch.zeros_like(per_group[..., 0]).scatter_(1, best, 1.0)
    return mask[..., None].expand_as(per_group).reshape_as(scores_NE)


class MostRouter(DeepseekV2TopkRouter):
    """Float32 gate whose softmax sees all experts and whose choice respects the token's modality."""

    def __init__(self, config: MostConfig, groups: tuple[list[int], list[int]]) -> None:
        super().__init__(config)
        self.config = config
        self.groups = groups
        # Not a buffer: non-persistent buffers hold garbage after from_pretrained.
        self._masks: dict[torch.device, torch.Tensor] = {}

    def allowed(self, modality_N: torch.Tensor) -> torch.Tensor | None:
        """[N, E] bool mask of the experts each token may meet; None where every token may meet all."""
        if not self.config.use_modality_aware_routing:
            return None
        device = modality_N.device
        if device not in self._masks:
            self._masks[device] = group_mask(self.groups, self.num_experts, device)
        return self._masks[device][modality_N]

    def forward(
        self, hidden_NH: torch.Tensor, modality_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(logits [N, E] before the mask, weights [N, K], indices [N, K])."""
        hidden_NH = hidden_NH.view(-1, self.hidden_dim)
        with torch.autocast(hidden_NH.device.type, enabled=False):  # which would round these products, too
            logits = F.linear(hidden_NH.float(), self.weight.float())
        weights, indices = choose_experts(logits.softmax(-1), self.allowed(modality_N), self.config)
        return logits, weights, indices


def balance_loss(
    logits_NE: torch.Tensor,
    indices_NK: torch.Tensor,
    allowed_NE: torch.Tensor | None,
    modality_BT: torch.Tensor,
    config: MostConfig,
    valid_BT: torch.Tensor | None = None,
) -> torch.Tensor:
    """DeepSeek's balance loss of one layer, times `aux_loss_alpha`.

    `aux_loss_form="upstream"` is the public code's: the masked, not renormalised probabilities, all tokens and all
    experts in one pot (or expert by expert over the whole batch where `seq_aux` is off).
    `"per_modality"`, ours, looks at each modality's tokens and experts on their own, so that a sequence of only
    speech is not punished for idle text experts; its value is alpha where every group is used evenly.
    """
    probs = logits_NE.softmax(-1)
    if allowed_NE is not None:
        probs = probs * allowed_NE
    batch, experts, k = len(modality_BT), config.n_routed_experts, config.num_experts_per_tok
    probs_BTE = probs.view(batch, -1, experts)
    if config.aux_loss_form == "upstream":
        return config.aux_loss_alpha * _upstream_balance(probs_BTE, indices_NK, k, config.seq_aux)

    weight_BT = torch.ones_like(modality_BT, dtype=probs.dtype) if valid_BT is None else valid_BT.to(probs.dtype)
    chosen_BTE = torch.zeros_like(probs).scatter_(1, indices_NK, 1.0).view_as(probs_BTE)
    inside = logits_NE if allowed_NE is None else logits_NE.masked_fill(~allowed_NE, float("-inf"))
    share_BTE = inside.softmax(-1).view_as(probs_BTE)
    total_B = weight_BT.sum(1).clamp_min(1)
    loss = probs.new_zeros(())
    for modality in (TEXT, AUDIO):
        weight = weight_BT * (modality_BT == modality)
        count_B = weight.sum(1)
        load_BE = (chosen_BTE * weight[..., None]).sum(1) / (count_B.clamp_min(1) * k)[:, None]
        prob_BE = (share_BTE * weight[..., None]).sum(1) / count_B.clamp_min(1)[:, None]
        if allowed_NE is None:
            size_B = experts
        else:  # all tokens of a modality share one group, so any of them tells its size
            size_B = (allowed_NE.view_as(probs_BTE).sum(-1) * weight).amax(1)
        loss = loss + (size_B * (load_BE * prob_BE).sum(-1) * count_B / total_B).mean()
    return config.aux_loss_alpha * loss


def _upstream_balance(probs_BTE: torch.Tensor, indices_NK: torch.Tensor, k: int, per_sequence: bool) -> torch.Tensor:
    batch, length, experts = probs_BTE.shape
    if per_sequence:
        picks = indices_NK.view(batch, -1)
        load = torch.zeros(batch, experts, device=probs_BTE.device)
        load.scatter_add_(1, picks, torch.ones_like(picks, dtype=load.dtype)).div_(length * k / experts)
        return (load * probs_BTE.mean(1)).sum(1).mean()
    load = F.one_hot(indices_NK.view(-1), experts).float().mean(0) * experts
    return (load * probs_BTE.mean((0, 1))).sum()
