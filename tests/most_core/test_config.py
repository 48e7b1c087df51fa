"""The presets, the token table, and what a wrong configuration is told."""

import pytest
import torch

from most_core import MostConfig, MostForCausalLM
from most_core.config import TokenTable

TABLE = vars(MostConfig.tiny().tokens)


def meta_model(config):
    with torch.device("meta"):
        return MostForCausalLM(config)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def active(config):
    """Parameters that one token meets: all but the routed experts it does not choose and the embedding table."""
    one_expert = 3 * config.hidden_size * config.moe_intermediate_size
    idle = config.n_routed_experts - config.num_experts_per_tok
    model = meta_model(config)
    return count(model) - count(model.model.embed_tokens) - idle * one_expert * len(config.moe_layers)


# -- presets -----------------------------------------------------------------------------------------------------------


def test_tiny_has_fewer_than_200_thousand_parameters():
    assert count(meta_model(MostConfig.tiny())) < 200_000


def test_nano_has_about_9_million_parameters():
    assert count(meta_model(MostConfig.nano())) == pytest.approx(9e6, rel=0.05)


def test_lite_has_15_8_billion_parameters_of_which_2_4_are_active():
    config = MostConfig.lite()
    model = meta_model(config)
    experts = sum(count(layer.mlp.experts) for layer in model.model.layers[1:])
    assert count(model) == pytest.approx(15.8e9, rel=0.01)
    assert experts == pytest.approx(14.4e9, rel=0.01)
    assert active(config) == pytest.approx(2.4e9, rel=0.05)


def test_lite_is_the_published_shape():
    config = MostConfig.lite()
    assert (config.num_hidden_layers, config.moe_layers) == (27, list(range(1, 27)))
    assert (config.n_routed_experts, config.num_experts_per_tok, config.n_shared_experts) == (64, 6, 2)
    assert (config.hidden_size, config.moe_intermediate_size, config.vocab_size) == (2048, 1408, 102400)
    assert config.expert_groups() == [(list(range(32)), list(range(32, 64)))] * 26
    assert config.rope_parameters["rope_type"] == "yarn"
    assert (config.aux_loss_alpha, config.audio_rate_hz) == (0.001, 25)


def test_nano_has_eight_text_and_eight_audio_experts():
    assert MostConfig.nano().expert_groups() == [(list(range(8)), list(range(8, 16)))] * 5


def test_presets_take_overrides():
    config = MostConfig.preset("tiny", num_hidden_layers=5, n_shared_experts=3)
    assert (config.num_hidden_layers, config.n_shared_experts) == (5, 3)


def test_unknown_preset_is_told_the_nearest_name():
    with pytest.raises(ValueError, match="unknown preset 'nanoo': did you mean 'nano'") as error:
        MostConfig.preset("nanoo")
    assert "\n" not in str(error.value)


def test_unknown_preset_without_a_near_name_is_told_all_names():
    with pytest.raises(ValueError, match="choose one of tiny, nano, lite"):
        MostConfig.preset("gigantic9000")


# -- token table -------------------------------------------------------------------------------------------------------


def test_lite_ids_are_the_documented_ones():
    tokens = MostConfig.lite().tokens
    assert (tokens.first_unit, tokens.num_units) == (100002, 500)
    assert (tokens.audio_start, tokens.audio_end, tokens.wave_start, tokens.wave_end) == (
        100502,
        100503,
        100504,
        100505,
    )
    assert tokens.size <= 102400


def test_ids_of_the_table_are_consecutive_and_spelled_in_order():
    table = TokenTable.after(num_text_tokens=10, num_units=3)
    spelled = dict(zip(range(10, table.size), table.spellings(), strict=True))
    assert spelled == {
        10: "[Hu0]",
        11: "[Hu1]",
        12: "[Hu2]",
        table.audio_start: "[Audio]",
        table.audio_end: "[/Audio]",
        table.wave_start: "[Wave]",
        table.wave_end: "[/Wave]",
        table.frame: "[Frame]",
        table.heard_end: "[/Heard]",
    }


def test_units_and_frames_are_audio_and_markers_are_text():
    table = TokenTable.after(num_text_tokens=10, num_units=3)
    assert [i for i in range(table.size + 5) if table.is_audio(i)] == [10, 11, 12, table.frame]


def test_a_configuration_without_a_table_has_no_tokens():
    assert MostConfig.tiny(token_table=None, eos_token_id=None).tokens is None


# -- save and load -----------------------------------------------------------------------------------------------------

PER_LAYER = {
    "text_expert_indices": [[0, 2, 4], [1, 3, 5, 7]],
    "audio_expert_indices": [[1, 3, 5, 6, 7], [0, 2]],
}


@pytest.mark.parametrize(
    "config",
    [
        MostConfig.tiny(),
        MostConfig.nano(),
        MostConfig.lite(),
        MostConfig.tiny(**PER_LAYER),
        MostConfig.tiny(use_modality_aware_routing=False),
        MostConfig.tiny(feed_forward="dense", n_shared_experts=0),
        MostConfig.tiny(token_table=None),
    ],
    ids=["tiny", "nano", "lite", "per layer", "plain", "dense", "no table"],
)
def test_saved_configuration_loads_as_it_was(config, tmp_path):
    config.save_pretrained(tmp_path)
    loaded = MostConfig.from_pretrained(tmp_path)
    different = {
        name
        for name, value in config.to_dict().items()
        if loaded.to_dict().get(name) != value
        and name not in ("architectures", "transformers_version", "_name_or_path")
    }
    assert not different
    assert loaded.tokens == config.tokens
    assert loaded.expert_groups() == config.expert_groups()


def test_each_moe_layer_can_have_its_own_experts():
    assert MostConfig.tiny(**PER_LAYER).expert_groups() == [
        ([0, 2, 4], [1, 3, 5, 6, 7]),
        ([1, 3, 5, 7], [0, 2]),
    ]


def test_with_the_plain_router_everyone_may_meet_every_expert():
    everyone = list(range(8))
    assert MostConfig.tiny(use_modality_aware_routing=False).expert_groups() == [(everyone, everyone)] * 2


def test_first_half_of_the_experts_is_texts_unless_told_otherwise():
    assert MostConfig.tiny().text_expert_indices == [0, 1, 2, 3]
    assert MostConfig.tiny().audio_expert_indices == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({"first_k_dense_replace": 0}, [0, 1, 2]),
        ({"first_k_dense_replace": 2}, [2]),
        ({"first_k_dense_replace": 1, "moe_layer_freq": 2}, [2]),
        ({"feed_forward": "dense"}, []),
    ],
)
def test_moe_layers_follow_the_settings(settings, layers):
    assert MostConfig.tiny(**settings).moe_layers == layers


def test_dense_block_is_as_wide_as_the_experts_a_token_meets():
    assert MostConfig.tiny(feed_forward="dense", n_shared_experts=1, num_experts_per_tok=2).dense_width == 3 * 16


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feed_forward": "expert"}, "unknown feed_forward 'expert': did you mean 'experts'"),
        ({"aux_loss_form": "per_modalty"}, "unknown aux_loss_form 'per_modalty': did you mean 'per_modality'"),
        ({"scoring_func": "sigmoid"}, "unknown scoring_func 'sigmoid'"),
        ({"vocab_size": 290}, "vocab_size 290 is smaller than the 294 ids of the token table"),
        (
            {"text_expert_indices": [0], "audio_expert_indices": [4, 5]},
            "text_expert_indices of MoE layer 0 hold 1 experts but every token takes 2",
        ),
        (
            {"text_expert_indices": [0, 1], "audio_expert_indices": [[4, 5], [6, 6]]},
            "audio_expert_indices of MoE layer 1 hold 1 experts",
        ),
        (
            {"text_expert_indices": [0, 8], "audio_expert_indices": [4, 5]},
            r"text_expert_indices name expert 8, but there are only 8 \(0..7\)",
        ),
        (
            {"text_expert_indices": [0, 1], "audio_expert_indices": [-1, 5]},
            "audio_expert_indices name expert -1",
        ),
        (
            {"text_expert_indices": [[0, 1]] * 3, "audio_expert_indices": [4, 5]},
            "text_expert_indices has lists for 3 layers, the model has 2 MoE layers",
        ),
        ({"text_expert_indices": [0, 1]}, "audio_expert_indices is not set"),
        ({"audio_expert_indices": [0, 1]}, "text_expert_indices is not set"),
        ({"text_expert_indices": [], "audio_expert_indices": [1, 2]}, "hold 0 experts"),
        ({"num_experts_per_tok": None}, "num_experts_per_tok is not set"),
        ({"num_experts_per_tok": 5}, "hold 4 experts but every token takes 5"),
        ({"token_table": {**TABLE, "frame": 260}}, "frame of the token table has id 260, as has one of the units"),
        ({"token_table": {**TABLE, "frame": 288}}, "frame of the token table has id 288, as has audio_start"),
        ({"token_table": {**TABLE, "wave_end": -1}}, "wave_end of the token table is -1"),
        ({"eos_token_id": None}, "eos_token_id is None although there is a token table"),
    ],
)
def test_wrong_settings_are_told_what_and_why_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        MostConfig.tiny(**settings)
    assert "\n" not in str(error.value)
