"""What a MoST is: its shape, its experts, and the one table of special token ids.

`MostConfig` is transformers' `DeepseekV2Config` plus what MoST adds. Names that the public MoST code
already uses (`text_expert_indices`, `use_modality_aware_routing`, `aux_loss_alpha`, ...) keep their meaning,
so that its configuration files load as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, DeepseekV2Config

TEXT, AUDIO = 0, 1
MODALITY_NAMES = ("text", "audio")

# Spelling of the special tokens, in the order of their ids. Units and the begin/end pairs are upstream's;
# the wave placeholder and the end-of-heard marker are ours, at ids that DeepSeek's vocabulary leaves unused.
UNIT_TOKEN = "[Hu{}]"
MARKER_TOKENS = (
    "[Audio]",  # begin of discrete audio (units)
    "[/Audio]",  # end of discrete audio
    "[Wave]",  # begin of continuous audio (encoder features)
    "[/Wave]",  # end of continuous audio
    "[Frame]",  # one encoder frame: its embedding is replaced by a projected speech feature
    "[/Heard]",  # ends the transcript of what was heard; the answer follows
)


@dataclass(frozen=True)
class TokenTable:
    """Ids of the tokens that are not plain text. Units and frames are audio, every marker is text."""

    first_unit: int
    num_units: int
    audio_start: int
    audio_end: int
    wave_start: int
    wave_end: int
    frame: int
    heard_end: int

    @classmethod
    def after(cls, num_text_tokens: int, num_units: int) -> TokenTable:
        """The standard table: units follow the text tokens, markers follow the units."""
        markers = num_text_tokens + num_units
        return cls(num_text_tokens, num_units, *range(markers, markers + len(MARKER_TOKENS)))

    @property
    def size(self) -> int:
        """Number of ids in use: all text, unit and marker tokens."""
        return self.heard_end + 1

    def is_audio(self, token: int) -> bool:
        """Whether a token id is routed to the audio experts."""
        return self.first_unit <= token < self.first_unit + self.num_units or token == self.frame

    def spellings(self) -> list[str]:
        """Token strings from `first_unit` on, in id order."""
        return [UNIT_TOKEN.format(i) for i in range(self.num_units)] + list(MARKER_TOKENS)


@strict
class MostConfig(DeepseekV2Config):
    """Shape of a MoST decoder. Presets: `tiny()` for tests, `nano()` for two CPU cores, `lite()` for the real size.

    Experts: `text_expert_indices` and `audio_expert_indices` are either one list for every MoE layer (the
    paper's split by index) or one list per MoE layer (the split by measured activation).
    Ablations: `use_modality_aware_routing=False` is the plain router, `n_shared_experts=0..n`,
    `feed_forward="dense"` replaces every mixture by one dense block of the same active width.
    """

    model_type = "most"

    use_modality_aware_routing: bool = True
    text_expert_indices: list[int] | list[list[int]] | None = None
    audio_expert_indices: list[int] | list[list[int]] | None = None
    feed_forward: str = "experts"
    aux_loss_alpha: float = 0.001
    aux_loss_form: str = "per_modality"
    seq_aux: bool = True
    scoring_func: str = "softmax"
    moe_layer_freq: int = 1
    num_experts_per_tok: int | None = 6
    n_shared_experts: int | None = 2  # None, as some DeepSeek configurations say it, is 0
    token_table: dict[str, int] | None = None
    speech_feature_size: int = 768
    audio_rate_hz: int = 25

    def __post_init__(self, **kwargs: Any) -> None:
        if self.n_shared_experts is None:
            self.n_shared_experts = 0
        super().__post_init__(**kwargs)
        named = (self.text_expert_indices, self.audio_expert_indices)
        if self.uses_experts and self.use_modality_aware_routing and named == (None, None):
            half = self.n_routed_experts // 2
            self.text_expert_indices = list(range(half))
            self.audio_expert_indices = list(range(half, self.n_routed_experts))
        self._check()

    def _check(self) -> None:
        _one_of("feed_forward", self.feed_forward, ("experts", "dense"))
        _one_of("aux_loss_form", self.aux_loss_form, ("per_modality", "upstream"))
        _one_of("scoring_func", self.scoring_func, ("softmax",))
        if self.tokens is not None and self.tokens.size > self.vocab_size:
            raise ValueError(
                f"vocab_size {self.vocab_size} is smaller than the {self.tokens.size} ids of the token table: "
                f"raise vocab_size to at least {self.tokens.size}"
            )
        self._check_tokens()
        if not self.uses_experts:
            return
        if self.num_experts_per_tok is None:
            raise ValueError("num_experts_per_tok is not set: give the number of experts per token")
        for layer, (text, audio) in enumerate(self.expert_groups()):
            for name, group in (("text", text), ("audio", audio)):
                if len(set(group)) < self.num_experts_per_tok:
                    raise ValueError(
                        f"{name}_expert_indices of MoE layer {layer} hold {len(set(group))} experts but every token "
                        f"takes {self.num_experts_per_tok}: give the group at least that many"
                    )
                if any(not 0 <= e < self.n_routed_experts for e in group):
                    bad = next(e for e in group if not 0 <= e < self.n_routed_experts)
                    raise ValueError(
                        f"{name}_expert_indices name expert {bad}, but there are only "
                        f"{self.n_routed_experts} (0..{self.n_routed_experts - 1})"
                    )

    def _check_tokens(self) -> None:
        if self.tokens is None:
            return
        for name, number in self.token_table.items():
            if number < 0:
                raise ValueError(f"{name} of the token table is {number}: give a number from 0 on")
        units = range(self.tokens.first_unit, self.tokens.first_unit + self.tokens.num_units)
        markers: dict[int, str] = {}
        for name, token in self.token_table.items():
            if name in ("first_unit", "num_units"):
                continue
            if token in units or token in markers:
                other = markers.get(token, "one of the units")
                raise ValueError(f"{name} of the token table has id {token}, as has {other}: give each its own id")
            markers[token] = name
        if self.eos_token_id is None:
            raise ValueError("eos_token_id is None although there is a token table: give the id that ends a reply")

    @property
    def tokens(self) -> TokenTable | None:
        """The special-token ids, or None for a decoder whose modality ids are always given from outside."""
        return None if self.token_table is None else TokenTable(**self.token_table)

    @property
    def uses_experts(self) -> bool:
        return self.feed_forward == "experts"

    def layer_is_moe(self, layer_idx: int) -> bool:
        return self.uses_experts and layer_idx >= self.first_k_dense_replace and layer_idx % self.moe_layer_freq == 0

    @property
    def moe_layers(self) -> list[int]:
        """Decoder layer numbers that hold experts, in order."""
        return [i for i in range(self.num_hidden_layers) if self.layer_is_moe(i)]

    @property
    def dense_width(self) -> int:
        """Width of the dense ablation's block: as wide as all the experts that one token meets."""
        return self.moe_intermediate_size * ((self.num_experts_per_tok or 0) + self.n_shared_experts)

    def expert_groups(self) -> list[tuple[list[int], list[int]]]:
        """(text experts, audio experts) of every MoE layer. With the plain router both are all experts."""
        count = len(self.moe_layers)
        if not self.use_modality_aware_routing or not self.uses_experts:
            everyone = list(range(self.n_routed_experts))
            return [(everyone, everyone)] * count
        sides = []
        for name in ("text_expert_indices", "audio_expert_indices"):
            value = getattr(self, name)
            if value is None:
                raise ValueError(f"{name} is not set although use_modality_aware_routing is on: give its experts")
            per_layer = value if value and isinstance(value[0], list) else [value] * count
            if len(per_layer) != count:
                raise ValueError(f"{name} has lists for {len(per_layer)} layers, the model has {count} MoE layers")
            sides.append(per_layer)
        return list(zip(*sides))

    # -- presets ---------------------------------------------------------------------------------------------------

    @classmethod
    def tiny(cls, **overrides: Any) -> MostConfig:
        """A model for tests: 3 layers x 32, 8 experts, under 200,000 parameters."""
        return cls(
            **{
                **_preset_tokens(num_text_tokens=256, num_units=32, round_to=8),
                "hidden_size": 32,
                "intermediate_size": 64,
                "moe_intermediate_size": 16,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "kv_lora_rank": 16,
                "q_lora_rank": None,
                "qk_nope_head_dim": 16,
                "qk_rope_head_dim": 8,
                "v_head_dim": 16,
                "n_routed_experts": 8,
                "num_experts_per_tok": 2,
                "n_shared_experts": 1,
                "first_k_dense_replace": 1,
                "max_position_embeddings": 1024,
                "speech_feature_size": 24,
                "initializer_range": 0.1,
                **overrides,
            }
        )

    @classmethod
    def nano(cls, **overrides: Any) -> MostConfig:
        """The shipped model's shape: 6 layers x 256, 8 text and 8 audio experts, about 9 M parameters."""
        return cls(
            **{
                **_preset_tokens(num_text_tokens=2048, num_units=500, round_to=64),
                "hidden_size": 256,
                "intermediate_size": 768,
                "moe_intermediate_size": 96,
                "num_hidden_layers": 6,
                "num_attention_heads": 4,
                "kv_lora_rank": 96,
                "q_lora_rank": None,
                "qk_nope_head_dim": 48,
                "qk_rope_head_dim": 16,
                "v_head_dim": 64,
                "n_routed_experts": 16,
                "num_experts_per_tok": 4,
                "n_shared_experts": 1,
                "first_k_dense_replace": 1,
                "max_position_embeddings": 4096,
                "speech_feature_size": 256,
                "tie_word_embeddings": True,
                **overrides,
            }
        )

    @classmethod
    def lite(cls, **overrides: Any) -> MostConfig:
        """The real one: DeepSeek-V2-Lite's 27 layers x 2048 with 64 experts, 15.8 B parameters, 2.4 B active."""
        return cls(
            **{
                "vocab_size": 102400,
                "token_table": vars(TokenTable.after(num_text_tokens=100002, num_units=500)),
                "bos_token_id": 100000,
                "eos_token_id": 100001,
                "pad_token_id": 100001,
                "hidden_size": 2048,
                "intermediate_size": 10944,
                "moe_intermediate_size": 1408,
                "num_hidden_layers": 27,
                "num_attention_heads": 16,
                "kv_lora_rank": 512,
                "q_lora_rank": None,
                "qk_nope_head_dim": 128,
                "qk_rope_head_dim": 64,
                "v_head_dim": 128,
                "n_routed_experts": 64,
                "num_experts_per_tok": 6,
                "n_shared_experts": 2,
                "first_k_dense_replace": 1,
                "max_position_embeddings": 163840,
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 10000.0,
                    "factor": 40.0,
                    "beta_fast": 32.0,
                    "beta_slow": 1.0,
                    "mscale": 0.707,
                    "mscale_all_dim": 0.707,
                    "original_max_position_embeddings": 4096,
                },
                "speech_feature_size": 768,
                **overrides,
            }
        )

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> MostConfig:
        """The preset called `name`: "tiny", "nano" or "lite"."""
        _one_of("preset", name, ("tiny", "nano", "lite"))
        return getattr(cls, name)(**overrides)


def _preset_tokens(num_text_tokens: int, num_units: int, round_to: int) -> dict[str, Any]:
    table = TokenTable.after(num_text_tokens, num_units)
    return {
        "vocab_size": -(-table.size // round_to) * round_to,
        "token_table": vars(table),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "aux_loss_alpha": 0.001,
    }


def _one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        close = get_close_matches(str(value), allowed, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(allowed)}"
        raise ValueError(f"unknown {what} {value!r}: {hint}")


AutoConfig.register("most", MostConfig, exist_ok=True)
