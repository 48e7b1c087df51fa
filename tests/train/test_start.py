import pytest
import torch

from most_core.config import MostConfig
from train.start import shape_of, starting_model


def test_a_shape_is_a_presets_with_changes_or_a_checkpoints(tmp_path):
    assert shape_of("tiny", {}).tokens == MostConfig.tiny().tokens
    assert shape_of("tiny", {"speech_feature_size": 48}).speech_feature_size == 48
    MostConfig.tiny(hidden_size=16).save_pretrained(tmp_path)
    assert shape_of(str(tmp_path), {}).hidden_size == 16


@pytest.mark.parametrize(
    ("start", "changes", "message"),
    [
        ("small", {}, "start is 'small'.*or give a checkpoint folder"),
        ("tiny", {"num_experts_per_tok": 9}, "every token takes 9"),
        ("tiny", {"token_table": None}, "nothing can be heard or said"),
    ],
)
def test_impossible_shapes_are_refused_in_one_line(start, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        shape_of(start, changes)
    assert "\n" not in str(error.value)


def test_a_checkpoints_shape_is_its_own(tmp_path):
    MostConfig.tiny().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="whose shape is its own"):
        shape_of(str(tmp_path), {"hidden_size": 16})


def test_random_weights_are_the_seeds(tmp_path):
    one, same, other = (starting_model("tiny", {}, seed).lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    model = starting_model("tiny", {}, 3)
    model.save_pretrained(tmp_path)
    assert torch.equal(starting_model(str(tmp_path), {}, 0).lm_head.weight, model.lm_head.weight)
