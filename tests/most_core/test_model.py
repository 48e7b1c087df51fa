"""The decoder: parity with the public code and with DeepSeek-V2, caches, speech as input, HF's own interfaces."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DeepseekV2Config, DeepseekV2ForCausalLM, StaticCache

from most_core import MostConfig, MostForCausalLM, parity
from most_core.model import MostPerExpertForCausalLM

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
GOLDEN_FILES = [GOLDEN / f"upstream_tiny_{name}" for name in ("config.json", "weights.safetensors", "io.safetensors")]
TOKENS = MostConfig.tiny().tokens
UNIT, FRAME = TOKENS.first_unit, TOKENS.frame
# Text, units and markers of both kinds.
MIXED = torch.tensor([[1, 40, 41, TOKENS.audio_start, UNIT, UNIT + 31, UNIT + 7, TOKENS.audio_end, 50, 51, 52, 53]])


def features(rows, frames, seed=0):
    return torch.randn(rows, frames, 24, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits_of(model, ids, **inputs):
    return model(input_ids=ids, **inputs).logits


# -- parity ------------------------------------------------------------------------------------------------------------


def test_forward_and_backward_equal_the_public_codes_recorded_numbers(capsys):
    assert parity.main([str(path) for path in GOLDEN_FILES]) == 0
    report = capsys.readouterr().out
    assert "FAIL" not in report
    for quantity in ("logits", "expert choice", "auxiliary loss", "gate gradient", "cross entropy"):
        assert quantity in report


@pytest.mark.parametrize("kind", ["experts.5.up_proj", "gate.weight", "kv_b_proj", "shared_experts.down_proj"])
def test_parity_fails_when_one_weight_is_perturbed(kind, tmp_path, capsys):
    weights = load_file(GOLDEN_FILES[1])
    name = next(name for name in weights if kind in name)
    weights[name][0, 0] += 0.5
    save_file(weights, tmp_path / "weights.safetensors")
    argv = [str(GOLDEN_FILES[0]), str(tmp_path / "weights.safetensors"), str(GOLDEN_FILES[2])]
    assert parity.main(argv) == 1
    assert "FAIL" in capsys.readouterr().out


def test_parity_names_a_damaged_file_in_one_line(tmp_path, capsys):
    damaged = tmp_path / "weights.safetensors"
    damaged.write_bytes(b"these are no tensors")
    assert parity.main([str(GOLDEN_FILES[0]), str(damaged), str(GOLDEN_FILES[2])]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in lines if line.startswith("error:") and "weights.safetensors" in line]) == 1


@pytest.mark.parametrize(
    ("changed", "name", "message"),
    [
        (1, "lm_head.weight", "WEIGHTS do not belong to CONFIG: .* lm_head.weight is missing"),
        (2, "modality_marks", "tensor modality_marks is missing from IO"),
        (2, "layer2.gate_grad", "tensor layer2.gate_grad is missing from IO"),
    ],
)
def test_parity_names_a_missing_tensor_and_its_file_in_one_line(changed, name, message, tmp_path, capsys):
    argv = [str(path) for path in GOLDEN_FILES]
    tensors = load_file(argv[changed])
    del tensors[name]
    argv[changed] = str(tmp_path / "less.safetensors")
    save_file(tensors, argv[changed])
    assert parity.main(argv) == 2
    assert re.fullmatch(f"error: .*{message}.*\n", capsys.readouterr().err)


@pytest.mark.parametrize("content", ["{", "[]", '{"hidden_size": "wide"}', '{"num_attention_heads": 0}'])
def test_parity_names_a_malformed_configuration_in_one_line(content, tmp_path, capsys):
    (tmp_path / "config.json").write_text(content)
    assert parity.main([str(path) for path in (tmp_path / "config.json", *GOLDEN_FILES[1:])]) == 2
    assert re.fullmatch(r"error: .*config\.json .*\n", capsys.readouterr().err)


def test_the_description_of_the_recording_names_every_tensor():
    text = re.sub(r"layer{i}", "layer1", (GOLDEN / "README.md").read_text())
    with safe_open(GOLDEN_FILES[2], "pt") as file:
        names = [name for name in file.keys() if not name.startswith(("layer2", "layer3"))]  # noqa: SIM118
    assert [name for name in names if f"`{name}`" not in text] == []


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_parity_names_a_missing_file_in_one_line(missing, tmp_path, capsys):
    argv = [str(path) for path in GOLDEN_FILES]
    argv[missing] = str(tmp_path / "nowhere")
    assert parity.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "nowhere" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"use_modality_aware_routing": False},
        {"text_expert_indices": list(range(8)), "audio_expert_indices": [4, 5, 6, 7]},
    ],
    ids=["plain router", "text may meet all"],
)
def test_text_with_all_experts_is_deepseek_v2(make_model, settings):
    ours = make_model(seed=3, **settings)
    shape = {k: v for k, v in ours.config.to_dict().items() if k in DeepseekV2Config().to_dict() and k != "model_type"}
    theirs = DeepseekV2ForCausalLM(DeepseekV2Config(**shape)).eval()
    state = {name: tensor for name, tensor in ours.state_dict().items() if "speech_projector" not in name}
    assert not theirs.load_state_dict(state, strict=True).missing_keys
    ids = torch.randint(0, 256, (2, 33), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(logits_of(ours, ids), logits_of(theirs, ids), atol=1e-5, rtol=1e-5)


def test_modality_changes_the_routing_and_nothing_else_does(make_model):
    """The same embeddings as text and as audio: other experts, other logits; as text twice: the same."""
    model = make_model()
    embeds = model.model.embed_tokens(MIXED).detach()
    kinds = [torch.zeros_like(MIXED), torch.ones_like(MIXED), torch.zeros_like(MIXED)]
    with torch.no_grad():
        text, audio, again = (model(inputs_embeds=embeds, modality_ids=kind).logits for kind in kinds)
    assert (text - audio).abs().max() > 1e-2
    assert torch.equal(text, again)


# -- caches ------------------------------------------------------------------------------------------------------------


def test_cached_steps_equal_one_pass(model):
    whole = logits_of(model, MIXED)
    cache, steps = None, []
    for ids in (MIXED[:, :3], *MIXED[:, 3:].split(1, 1)):
        with torch.no_grad():
            out = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-4, rtol=1e-4)


def test_static_cache_equals_one_pass(model):
    cache = StaticCache(config=model.config, max_cache_len=20)
    first = logits_of(model, MIXED[:, :5], past_key_values=cache, use_cache=True)
    rest = [logits_of(model, ids, past_key_values=cache, use_cache=True) for ids in MIXED[:, 5:].split(1, 1)]
    torch.testing.assert_close(torch.cat([first, *rest], 1), logits_of(model, MIXED), atol=1e-4, rtol=1e-4)


def test_left_padded_row_equals_the_row_alone(model):
    short = MIXED[:, 4:]
    batch = torch.cat([MIXED, torch.cat([torch.zeros(1, 4, dtype=torch.long), short], 1)])
    mask = torch.ones_like(batch)
    mask[1, :4] = 0
    both = logits_of(model, batch, attention_mask=mask)
    torch.testing.assert_close(both[:1], logits_of(model, MIXED), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both[1:, 4:], logits_of(model, short), atol=1e-4, rtol=1e-4)


def test_generate_with_left_padding_equals_each_prompt_alone(model):
    short = MIXED[:, 4:]
    batch = torch.cat([MIXED, torch.cat([torch.zeros(1, 4, dtype=torch.long), short], 1)])
    mask = torch.ones_like(batch)
    mask[1, :4] = 0
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    both = model.generate(batch, attention_mask=mask, **options)[:, 12:]
    for row, ids in enumerate((MIXED, short)):
        assert torch.equal(both[row : row + 1], model.generate(ids, **options)[:, ids.shape[1] :])


# -- speech in ---------------------------------------------------------------------------------------------------------


def test_units_as_input_meet_only_audio_experts_and_text_only_text_experts(model):
    seen = []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda _, __, out: seen.append(out[2])) for layer in model.model.layers[1:]
    ]
    logits_of(model, MIXED)
    for hook in hooks:
        hook.remove()
    audio = torch.tensor([TOKENS.is_audio(i) for i in MIXED[0].tolist()])
    assert len(seen) == 2
    for indices in seen:
        assert (indices[audio] >= 4).all()
        assert (indices[~audio] < 4).all()


def test_features_fill_the_frames_in_order(model):
    ids = torch.tensor([[1, TOKENS.wave_start, FRAME, FRAME, FRAME, TOKENS.wave_end, 9]])
    given = features(1, 3)
    embeds = model.model.embed(ids, given)
    projected = model.model.speech_projector(given)
    torch.testing.assert_close(embeds[0, 2:5], projected[0])
    rest = torch.tensor([0, 1, 5, 6])
    assert torch.equal(embeds[0, rest], model.model.embed_tokens(ids)[0, rest])


def test_several_clips_and_rows_of_other_lengths_take_their_own_features(model):
    ids = torch.tensor([[FRAME, FRAME, 7, FRAME, FRAME, 8], [9, FRAME, 9, 9, 9, FRAME]])
    given = features(2, 4)
    projected = model.model.speech_projector(given)
    embeds = model.model.embed(ids, given)
    torch.testing.assert_close(embeds[0, [0, 1, 3, 4]], projected[0])
    torch.testing.assert_close(embeds[1, [1, 5]], projected[1, :2])


def test_padding_at_the_end_of_a_rows_features_is_ignored(model):
    ids = torch.tensor([[1, FRAME, FRAME, 9]])
    given = features(1, 2)
    padded = torch.cat([given, torch.full((1, 3, 24), 1e6)], 1)
    assert torch.equal(logits_of(model, ids, input_features=given), logits_of(model, ids, input_features=padded))


def test_order_of_the_frames_matters(model):
    ids = torch.tensor([[1, FRAME, FRAME, 9]])
    given = features(1, 2)
    swapped = logits_of(model, ids, input_features=given.flip(1))
    assert (logits_of(model, ids, input_features=given) - swapped).abs().max() > 1e-3


def test_frames_are_routed_to_audio_experts(model):
    ids = torch.tensor([[1, FRAME, FRAME, 9]])
    seen = []
    hook = model.model.layers[1].mlp.gate.register_forward_hook(lambda _, __, out: seen.append(out[2]))
    logits_of(model, ids, input_features=features(1, 2))
    hook.remove()
    assert (seen[0][1:3] >= 4).all()
    assert (seen[0][[0, 3]] < 4).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "hold 2 .Frame. placeholders but no input_features were given"),
        (features(1, 1), "do not cover the .2. .Frame. placeholders"),
        (features(2, 2), "do not cover"),
        (features(1, 2)[0], r"input_features have shape \(2, 24\), expected \[1, frames, 24\]"),
        (features(1, 2)[..., :20], r"input_features have shape \(1, 2, 20\), expected"),
    ],
    ids=["missing", "too few", "other batch", "two dimensions", "other width"],
)
def test_features_that_do_not_fit_are_refused_in_one_line(model, given, message):
    with pytest.raises(ValueError, match=message) as error:
        model(input_ids=torch.tensor([[1, FRAME, FRAME, 9]]), input_features=given)
    assert "\n" not in str(error.value)


def test_features_are_learnt_from(make_model):
    model = make_model().train()
    ids = torch.tensor([[1, FRAME, FRAME, 9]])
    model(input_ids=ids, input_features=features(1, 2), labels=ids).loss.backward()
    assert model.model.speech_projector.weight.grad.abs().sum() > 0
    assert not model.model.embed_tokens.weight.grad[FRAME].any()


# -- refused inputs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": MIXED, "modality_ids": torch.zeros_like(MIXED)}, f"call token {UNIT} at row 0, position 4 text"),
        ({"input_ids": MIXED, "modality_ids": torch.zeros(1, 3, dtype=torch.long)}, "give one modality per token"),
        ({"input_ids": MIXED, "modality_ids": MIXED}, "modality id 40 is unknown"),
        ({"input_ids": torch.tensor([[1, 296]])}, r"token id 296 is out of range.*0\.\.295"),
        ({"input_ids": torch.tensor([[-1, 3]])}, "token id -1 is out of range"),
        ({"inputs_embeds": torch.zeros(1, 2, 32)}, "inputs_embeds carry no token ids: give modality_ids"),
        ({"input_ids": MIXED, "inputs_embeds": torch.zeros(1, 2, 32)}, "exactly one of input_ids and inputs_embeds"),
        ({}, "exactly one of input_ids and inputs_embeds"),
    ],
)
def test_wrong_inputs_are_refused_in_one_line(model, inputs, message):
    with pytest.raises(ValueError, match=message) as error:
        model(**inputs)
    assert "\n" not in str(error.value)


def test_right_modality_ids_may_be_given(model):
    marks = torch.tensor([[int(TOKENS.is_audio(i)) for i in MIXED[0].tolist()]])
    assert torch.equal(logits_of(model, MIXED, modality_ids=marks), logits_of(model, MIXED))


def test_without_modality_routing_embeddings_need_no_modality(make_model):
    model = make_model(use_modality_aware_routing=False)
    assert model(inputs_embeds=torch.zeros(1, 2, 32)).logits.shape == (1, 2, 296)


# -- Hugging Face's generate -------------------------------------------------------------------------------------------

SPOKEN = torch.tensor([[1, TOKENS.wave_start, FRAME, FRAME, FRAME, TOKENS.wave_end, 9]])
CLEAN = {"max_new_tokens": 6, "eos_token_id": None}


def greedy_by_hand(model, ids, steps, **inputs):
    for _ in range(steps):
        ids = torch.cat([ids, logits_of(model, ids, **inputs)[:, -1:].argmax(-1)], 1)
    return ids


def test_greedy_generate_equals_argmax_of_full_passes(model):
    assert torch.equal(model.generate(MIXED, do_sample=False, **CLEAN), greedy_by_hand(model, MIXED, 6))


def test_generate_with_speech_features_equals_full_passes(model):
    given = features(1, 3)
    made = model.generate(SPOKEN, input_features=given, do_sample=False, **CLEAN)
    assert torch.equal(made, greedy_by_hand(model, SPOKEN, 6, input_features=given))


def test_generate_with_a_static_cache_equals_full_passes(model):
    made = model.generate(MIXED, do_sample=False, cache_implementation="static", **CLEAN)
    assert torch.equal(made, greedy_by_hand(model, MIXED, 6))


def test_generate_takes_modality_ids_for_the_prompt(model):
    marks = torch.tensor([[int(TOKENS.is_audio(i)) for i in MIXED[0].tolist()]])
    made = model.generate(MIXED, modality_ids=marks, do_sample=False, **CLEAN)
    assert torch.equal(made, greedy_by_hand(model, MIXED, 6))


def test_beam_search_takes_speech_and_modality_ids_and_finds_no_worse_than_greedy(model):
    given = features(1, 3)
    marks = torch.tensor([[0, 0, 1, 1, 1, 0, 0]])
    inputs = {"input_features": given, "modality_ids": marks}
    beams = model.generate(SPOKEN, num_beams=3, do_sample=False, length_penalty=0.0, **inputs, **CLEAN)
    greedy = model.generate(SPOKEN, do_sample=False, **inputs, **CLEAN)
    assert beams.shape == (1, 13)

    def score(ids):
        logprobs = logits_of(model, ids, input_features=given).log_softmax(-1)[0, 6:-1]
        return logprobs.gather(1, ids[0, 7:, None]).sum().item()

    assert score(beams) >= score(greedy) - 1e-4


def test_beam_search_over_a_batch_equals_each_prompt_alone(model):
    prompts = SPOKEN.repeat(2, 1)
    given = features(2, 3, seed=5)
    both = model.generate(prompts, input_features=given, num_beams=3, do_sample=False, **CLEAN)
    for row in range(2):
        one = slice(row, row + 1)
        alone = model.generate(prompts[one], input_features=given[one], num_beams=3, do_sample=False, **CLEAN)
        assert torch.equal(both[one], alone)


def test_sampled_generate_is_reproducible_with_a_seed(model):
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(model.generate(SPOKEN, input_features=features(1, 3), do_sample=True, top_k=0, **CLEAN).tolist())
    assert made[0] == made[1] != made[2]


# -- on disk -----------------------------------------------------------------------------------------------------------


def test_saved_model_loads_exactly(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = MostForCausalLM.from_pretrained(tmp_path).eval()
    for (name, ours), (other, theirs) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(ours, theirs)
    assert torch.equal(logits_of(loaded, MIXED), logits_of(model, MIXED))


def test_auto_model_finds_the_class_and_our_experts_backend(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is MostForCausalLM
    assert loaded.config._experts_implementation == "most"
    assert torch.equal(logits_of(loaded, MIXED), logits_of(model, MIXED))


def test_names_on_disk_are_deepseeks(model, tmp_path):
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    for expert in range(8):
        for part in ("gate_proj", "up_proj", "down_proj"):
            assert f"model.layers.1.mlp.experts.{expert}.{part}.weight" in names
    assert "model.layers.1.mlp.gate.weight" in names
    assert "model.layers.1.mlp.shared_experts.up_proj.weight" in names
    assert "model.layers.0.mlp.down_proj.weight" in names
    assert "model.layers.1.self_attn.kv_a_proj_with_mqa.weight" in names
    assert not any(name.endswith(("experts.gate_up_proj", "experts.down_proj")) for name in names)


def test_per_expert_layout_loads_the_same_checkpoint_and_back(model, tmp_path):
    model.save_pretrained(tmp_path / "fused")
    one_by_one = MostPerExpertForCausalLM.from_pretrained(tmp_path / "fused").eval()
    torch.testing.assert_close(logits_of(one_by_one, MIXED), logits_of(model, MIXED), atol=1e-5, rtol=1e-5)
    one_by_one.save_pretrained(tmp_path / "linears")
    back = MostForCausalLM.from_pretrained(tmp_path / "linears").eval()
    assert torch.equal(logits_of(back, MIXED), logits_of(model, MIXED))


def test_bfloat16_checkpoint_loads_in_its_own_type(make_model, tmp_path):
    make_model().bfloat16().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert MostForCausalLM.from_pretrained(tmp_path, dtype="auto").lm_head.weight.dtype == torch.bfloat16


# -- training ----------------------------------------------------------------------------------------------------------


def test_loss_is_cross_entropy_plus_the_balance_losses(make_model):
    model = make_model(aux_loss_alpha=0.5).train()
    labels = MIXED.clone()
    labels[:, :2] = -100
    out = model(input_ids=MIXED, labels=labels)
    plain = torch.nn.functional.cross_entropy(out.logits[0, :-1], labels[0, 1:], ignore_index=-100)
    assert out.aux_loss.item() >= 2 * 0.5 * 0.99  # two layers, alpha where perfectly even
    torch.testing.assert_close(out.loss, plain + out.aux_loss)


def test_balance_loss_is_the_sum_over_layers_of_their_own(make_model):
    model = make_model(aux_loss_alpha=0.5).train()
    losses = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _, __, out: losses.append(out[1]))
    total = model(input_ids=MIXED).aux_loss
    assert losses[0] is None
    torch.testing.assert_close(total, losses[1] + losses[2])


def test_there_is_no_balance_loss_outside_training(model):
    out = model(input_ids=MIXED, labels=MIXED)
    assert out.aux_loss is None
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(out.logits[0, :-1], MIXED[0, 1:]))


def test_padding_leaves_the_training_loss_unchanged(make_model):
    model = make_model(aux_loss_alpha=0.5).train()
    padded = torch.cat([MIXED, torch.full((1, 5), UNIT)], 1)
    mask = torch.ones_like(padded)
    mask[:, 12:] = 0
    labels = padded.masked_fill(mask == 0, -100)
    torch.testing.assert_close(
        model(input_ids=padded, attention_mask=mask, labels=labels).loss, model(input_ids=MIXED, labels=MIXED).loss
    )


def gradients(model, **inputs):
    model.train()
    loss = model(**inputs).loss
    loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_neither_loss_nor_gradients(make_model, reentrant):
    ids = torch.cat([SPOKEN, MIXED[:, :5]], 1)
    inputs = {"input_ids": ids, "labels": ids, "input_features": features(1, 3)}
    plain, checkpointed = make_model(aux_loss_alpha=0.5), make_model(aux_loss_alpha=0.5)
    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    loss, grads = gradients(plain, **inputs)
    again, same = gradients(checkpointed, **inputs)
    assert torch.equal(loss, again)
    for name, grad in grads.items():
        assert torch.equal(grad, same[name]), name


def test_checkpointing_truly_recomputes_the_layers(make_model):
    model, calls = make_model().train(), []
    model.gradient_checkpointing_enable()
    model.model.layers[1].mlp.gate.register_forward_hook(lambda *_: calls.append(1))
    model(input_ids=MIXED, labels=MIXED).loss.backward()
    assert len(calls) == 2


@pytest.mark.parametrize("ids", [torch.full((1, 6), 40), torch.full((1, 6), UNIT)], ids=["text only", "audio only"])
def test_every_parameter_of_the_experts_gets_a_gradient_on_one_modality(make_model, ids):
    _, grads = gradients(make_model(), input_ids=ids, labels=ids)
    for name, grad in grads.items():
        if ".experts." in name:
            assert grad is not None, name
            assert (grad.abs().flatten(1).sum(1) == 0).any()


@pytest.mark.parametrize(
    "settings",
    [
        {"feed_forward": "dense"},
        {"n_shared_experts": 0},
        {"n_shared_experts": None},
        {"n_shared_experts": 2},
        {"q_lora_rank": 8},
        {"tie_word_embeddings": True},
        {"text_expert_indices": [[0, 1], [2, 3, 4]], "audio_expert_indices": [[4, 5, 6], [7, 6]]},
    ],
    ids=["dense", "no shared", "shared None", "two shared", "query rank", "tied", "per layer"],
)
def test_every_variant_learns_saves_and_loads(make_model, settings, tmp_path):
    model = make_model(**settings)
    loss, grads = gradients(model, input_ids=MIXED, labels=MIXED)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(grad).all() for grad in grads.values() if grad is not None)
    model.eval().save_pretrained(tmp_path)
    loaded = MostForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits_of(loaded, MIXED), logits_of(model, MIXED))


def test_dense_ablation_has_no_experts_and_the_active_width(make_model):
    model = make_model(feed_forward="dense")
    assert not any("experts" in name for name, _ in model.named_parameters())
    assert model.model.layers[1].mlp.gate_proj.weight.shape == (3 * 16, 32)


def test_without_shared_experts_there_are_no_such_weights(make_model):
    assert not any("shared" in name for name, _ in make_model(n_shared_experts=0).named_parameters())
