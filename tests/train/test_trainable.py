import pytest
import torch

from most_core import MostForCausalLM
from train.stage_config import Config, Lora
from train.trainable import learned, make_trainable, merged, trained_parameters


def batch(shape):
    """Words, frames and units: something for every expert group, embedding row and the projector."""
    random = torch.Generator().manual_seed(1)
    tokens = shape.tokens
    words = torch.randint(3, tokens.first_unit, (2, 10), generator=random)
    units = torch.randint(0, tokens.num_units, (2, 10), generator=random) + tokens.first_unit
    ids = torch.cat([words, torch.full((2, 4), tokens.frame), units], dim=1)
    return {"input_ids": ids, "input_features": torch.randn(2, 4, shape.speech_feature_size, generator=random)}


def learn(model, shape, steps=3):
    """A few steps of AdamW; the gradients of the last."""
    model.train()
    trained = trained_parameters(model)
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        inputs = batch(shape)
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
    model.eval()
    return {name: parameter.grad for name, parameter in trained.items()}


def weights_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("trains", ["all", "all_but_experts"])
def test_what_is_named_learns_and_nothing_else(make_model, trains):
    model = make_model()
    learner = make_trainable(model, Config(trains=trains))
    assert learner is model
    assert merged(learner) is model
    before = weights_of(model)
    learn(learner, model.config)
    experts = {name for name in before if ".mlp.experts." in name}
    assert len(experts) == 4
    assert changed(before, weights_of(model)) == set(before) - (set() if trains == "all" else experts)


@pytest.mark.parametrize("tied", [False, True])
def test_lora_reaches_every_part_and_merges_into_plain_weights(make_model, tied):
    model = make_model(tie_word_embeddings=tied)
    shape, names, before = model.config, set(model.state_dict()), weights_of(model)
    learner = make_trainable(model, Config(trains="lora", lora=Lora(rank=4, alpha=8)))
    inputs = batch(shape)
    with torch.no_grad():
        untouched = make_model(tie_word_embeddings=tied)(**inputs).logits
        torch.testing.assert_close(learner(**inputs).logits, untouched, atol=1e-6, rtol=0)
    gradients = learn(learner, shape)
    assert all(gradient is not None and gradient.any() for gradient in gradients.values())
    with torch.no_grad():
        adapted = learner(**inputs).logits
        plain = merged(learner)
        torch.testing.assert_close(plain(**inputs).logits, adapted, atol=1e-5, rtol=1e-5)
    assert (adapted - untouched).abs().max() > 0.1
    assert type(plain) is MostForCausalLM
    assert set(plain.state_dict()) == names
    assert (plain.lm_head.weight is plain.model.embed_tokens.weight) == tied
    norms = {name for name in before if "norm" in name}
    assert changed(before, weights_of(plain)) == set(before) - norms


@pytest.mark.parametrize("tied", [False, True])
def test_lora_learns_the_rows_of_units_and_markers_alone(make_model, tied):
    model = make_model(tie_word_embeddings=tied)
    table, before = model.config.tokens, weights_of(model)
    learner = make_trainable(model, Config(trains="lora"))
    learn(learner, model.config)
    after = weights_of(merged(learner))
    for name in ("model.embed_tokens.weight",) if tied else ("model.embed_tokens.weight", "lm_head.weight"):
        rows = (before[name] != after[name]).any(1)
        assert rows[table.first_unit : table.size].all()
        assert not rows[: table.first_unit].any()
        assert not rows[table.size :].any()


def test_lora_fits_a_model_without_experts(make_model):
    model = make_model(feed_forward="dense")
    gradients = learn(make_trainable(model, Config(trains="lora")), model.config)
    assert any(".mlp.up_proj.lora_B" in name for name in gradients)


@pytest.mark.parametrize(
    ("trains", "optimizer", "learns"),
    [
        ("all_but_experts", "adamw", torch.float32),
        ("all_but_experts", "adamw_8bit", torch.bfloat16),
        ("lora", "adamw", torch.float32),
    ],
)
def test_what_learns_is_kept_as_its_optimizer_needs_it(make_model, trains, optimizer, learns):
    config = Config(trains=trains, optimizer=optimizer, precision="bfloat16")
    learner = make_trainable(make_model(), config)
    for parameter in learner.parameters():
        assert parameter.dtype == (learns if parameter.requires_grad else torch.bfloat16)


@pytest.mark.parametrize("trains", ["all", "all_but_experts", "lora"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_start_and_what_learned_make_the_model_again(make_model, trains, precision):
    config = Config(trains=trains, precision=precision, optimizer="adamw_8bit")
    learner = make_trainable(make_model(), config)
    learn(learner, make_model().config)
    weights = {name: parameter.detach().clone() for name, parameter in trained_parameters(learner).items()}
    again = learned(make_model(), config, weights)
    assert type(again) is MostForCausalLM
    assert {parameter.dtype for parameter in again.parameters()} == {getattr(torch, precision)}
    for name, weight in merged(learner).state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight)
