"""Experts go to the modality that uses them, and the configuration remembers it."""

import pytest
import torch

from most_core.config import AUDIO, TEXT, MostConfig
from most_core.model import MostForCausalLM
from most_core.partition import by_activation, profile, repartition


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MostForCausalLM(MostConfig.tiny()).eval()


def text_and_speech(model):
    tokens = model.config.tokens
    text = torch.randint(3, tokens.first_unit, (2, 30))
    speech = torch.randint(tokens.first_unit, tokens.first_unit + tokens.num_units, (2, 30))
    return [{"input_ids": text}, {"input_ids": speech}]


def test_profile_counts_what_the_plain_router_would_choose(model):
    seen = {}
    for i, layer in enumerate(model.model.layers[1:]):
        layer.mlp.gate.register_forward_hook(lambda _, args, out, i=i: seen.setdefault(i, []).append((args[1], out[0])))
    usage = profile(model, text_and_speech(model))
    for i in range(2):
        for kind in (TEXT, AUDIO):
            total = torch.zeros(8, dtype=torch.float64)
            for modality, logits in seen[i]:
                for row, token_kind in zip(logits.softmax(-1), modality):
                    if token_kind == kind:
                        best = row.topk(2)
                        total[best.indices] += best.values.double()
            torch.testing.assert_close(usage[i, kind], total / total.sum(), atol=1e-6, rtol=0)


def test_padding_is_not_counted(model):
    text, speech = text_and_speech(model)
    short = profile(model, [{"input_ids": text["input_ids"][:, :20]}, speech])
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[:, 20:] = 0
    torch.testing.assert_close(profile(model, [{**text, "attention_mask": mask}, speech]), short)


def test_each_expert_goes_where_it_is_used_more():
    usage = torch.tensor([[[0.4, 0.3, 0.2, 0.1, 0, 0], [0.0, 0.0, 0.1, 0.2, 0.3, 0.4]]])
    assert by_activation(usage, 2) == ([[0, 1, 2]], [[3, 4, 5]])


def test_a_group_never_gets_fewer_experts_than_a_token_takes():
    usage = torch.tensor([[[0.25, 0.25, 0.25, 0.25, 0, 0], [0.2, 0.2, 0.2, 0.2, 0.1, 0.1]]])
    text, audio = by_activation(usage, 3)
    assert len(text[0]) == len(audio[0]) == 3
    assert {4, 5} <= set(audio[0])


def test_the_new_split_is_saved_loaded_and_obeyed(model, tmp_path):
    usage = torch.rand(2, 2, 8)
    config = repartition(model.config, usage)
    assert config.expert_groups()[0] != model.config.expert_groups()[0]
    config.save_pretrained(tmp_path)
    again = MostForCausalLM(MostConfig.from_pretrained(tmp_path)).eval()
    again.load_state_dict(model.state_dict())
    chosen = []
    again.model.layers[1].mlp.gate.register_forward_hook(lambda _, args, out: chosen.append((args[1], out[2])))
    for batch in text_and_speech(again):
        again(**batch)
    for modality, indices in chosen:
        for kind, row in zip(modality.tolist(), indices.tolist()):
            assert set(row) <= set(config.expert_groups()[0][kind])


def test_text_alone_is_refused(model):
    with pytest.raises(ValueError, match="no speech tokens"):
        profile(model, text_and_speech(model)[:1])


def test_too_few_experts_are_refused():
    with pytest.raises(ValueError, match="two groups of at least 4"):
        by_activation(torch.rand(1, 2, 6), 4)
