"""Checkpoint folders: exact round trips, damaged ones in one line, quantized and offloaded models."""

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import most_core
from most_core import GenerationSettings, Most, MostConfig, MostForCausalLM
from most_core.decoder import LeanDecoder, ModuleDecoder
from most_core.loading import check_weights, choose_device, expected_shapes, load_decoder, make_decoder, read_config
from most_core.speech import untrained_encoder
from most_core.vocoder import untrained_vocoder

IDS = torch.randint(3, 288, (4, 64), generator=torch.Generator().manual_seed(0))
GREEDY = GenerationSettings(max_new_tokens=24, max_heard_tokens=5, max_sentence_tokens=5, max_sentence_units=5)
# Every width is a multiple of 32 and 64 where bitsandbytes' CPU kernels want it.
WIDE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
}


@pytest.fixture(scope="module")
def saved(most, tmp_path_factory):
    """The tiny assistant's checkpoint; read only."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    most.save(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the checkpoint that a test may damage."""
    return shutil.copytree(saved, tmp_path / "copy")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def sharded(folder):
    MostForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    return sorted(folder.glob("model-*.safetensors"))


# -- round trips -------------------------------------------------------------------------------------------------------


def test_a_saved_assistant_loads_exactly(most, saved, wave, short):
    loaded = most_core.load(saved, device="cpu")
    for (name, ours), (other, theirs) in zip(
        most.model.state_dict().items(), loaded.model.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(ours, theirs)
    ours, theirs = (m.answer(wave, settings=short) for m in (most, loaded))
    assert (ours.text, ours.heard, ours.units) == (theirs.text, theirs.heard, theirs.units)
    assert (ours.waveform == theirs.waveform).all()


def test_small_models_load_without_a_progress_bar(saved, capfd, monkeypatch):
    most_core.load(saved, device="cpu")
    assert capfd.readouterr().err == ""
    monkeypatch.setattr("most_core.checkpoint_files.WORTH_A_BAR", 1)
    most_core.load(saved, device="cpu")
    assert "Loading weights" in capfd.readouterr().err


def test_a_loaded_model_is_in_eval_mode_and_float32_on_the_cpu(saved):
    model = load_decoder(saved, device="cpu")
    assert not model.training
    assert model.dtype == torch.float32
    assert isinstance(make_decoder(model), LeanDecoder)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "float16"])
def test_a_type_can_be_asked_for(saved, dtype):
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert load_decoder(saved, device="cpu", dtype=dtype).dtype == wanted


def test_a_bfloat16_model_answers(saved, wave, short):
    reply = most_core.load(saved, device="cpu", dtype="bfloat16").answer(wave, settings=short, record_routing=True)
    assert reply.units
    assert reply.trace.leakage == 0


def test_slots_and_context_are_as_asked_for(saved):
    decoder = most_core.load(saved, device="cpu", slots=2, context=50).loop.decoder
    assert (decoder.slots, decoder.context) == (2, 50)


def test_sharded_weights_load(copy, most):
    assert len(sharded(copy)) > 2
    assert torch.equal(load_decoder(copy, device="cpu").lm_head.weight, most.model.lm_head.weight)


def test_parts_may_be_left_out(copy, short):
    shutil.rmtree(copy / "speech_encoder")
    shutil.rmtree(copy / "vocoder")
    loaded = most_core.load(copy, device="cpu")
    assert loaded.vocoder is None
    assert loaded.processor.encoder is None
    assert loaded.answer("hello", settings=short).text


def test_expected_shapes_are_those_on_disk(saved):
    found = {name: tuple(tensor.shape) for name, tensor in load_file(saved / "model.safetensors").items()}
    assert expected_shapes(read_config(saved)) == found


def test_tied_weights_are_stored_and_expected_once(tmp_path):
    model = MostForCausalLM(MostConfig.tiny(tie_word_embeddings=True))
    model.save_pretrained(tmp_path)
    check_weights(tmp_path, read_config(tmp_path))
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


def test_untrained_models_are_reproducible(most):
    again, other = most_core.untrained("tiny"), most_core.untrained("tiny", seed=1)
    assert torch.equal(again.model.lm_head.weight, most.model.lm_head.weight)
    assert not torch.equal(other.model.lm_head.weight, most.model.lm_head.weight)


def test_an_untrained_lite_model_is_refused():
    with pytest.raises(ValueError, match=r"31\.6 GB"):
        most_core.untrained("lite")


# -- damaged folders ---------------------------------------------------------------------------------------------------


def missing_shard(folder):
    sharded(folder)[1].unlink()


def truncated_shard(folder):
    shard = sharded(folder)[1]
    os.truncate(shard, shard.stat().st_size - 100)


def wrong_shape(folder):
    rewrite(folder / "model.safetensors", lambda t: t.update({"model.norm.weight": torch.ones(31)}))


def missing_tensor(folder):
    rewrite(folder / "model.safetensors", lambda t: t.pop("model.layers.1.mlp.experts.3.up_proj.weight"))


def another_depth(folder):
    edit(folder / "config.json", num_hidden_layers=2)


def pickled(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))


def without(*names):
    def damage(folder):
        for name in names:
            (folder / name).unlink()

    return damage


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def truncated(name):
    return lambda folder: os.truncate(folder / name, 500)


def settings(**changes):
    return lambda folder: edit(folder / "config.json", **changes)


def other_vocoder(folder):
    shutil.rmtree(folder / "vocoder")
    untrained_vocoder(16).save(folder)


def other_encoder(feature_size, num_units):
    def damage(folder):
        shutil.rmtree(folder / "speech_encoder")
        (folder / "units.safetensors").unlink()
        untrained_encoder(feature_size, num_units).save(folder)

    return damage


DAMAGES = {
    "missing shard": (missing_shard, "shard model-00002-of-.* is missing from"),
    "truncated shard": (truncated_shard, "model-00002-of-.* is truncated or not a safetensors file"),
    "truncated file": (truncated("model.safetensors"), "is truncated or not a safetensors file"),
    "garbage weights": (text("model.safetensors", "hello"), "is truncated or not a safetensors file"),
    "wrong shape": (wrong_shape, r"tensor model\.norm\.weight in .* has shape \[31\], config.json asks for \[32\]"),
    "missing tensor": (missing_tensor, r"tensor model\.layers\.1\.mlp\.experts\.3\.up_proj\.weight is missing"),
    "fewer layers": (another_depth, r"config.json knows no tensor model\.layers\.2\."),
    "more layers": (settings(num_hidden_layers=4), r"tensor model\.layers\.3\..* is missing"),
    "pickle": (pickled, r"pytorch_model\.bin, a pickle, where safetensors are expected"),
    "no weights": (without("model.safetensors"), "no model.safetensors in"),
    "garbage index": (text("model.safetensors.index.json", "{"), "index.json is not valid JSON"),
    "empty index": (text("model.safetensors.index.json", "{}"), "names no shards"),
    "no config": (without("config.json"), "no config.json in"),
    "other model type": (settings(model_type="llama"), "has model_type 'llama', not 'most'"),
    "no model type": (settings(model_type=None), "has model_type None, not 'most'"),
    "broken JSON": (text("config.json", '{"model_type": '), "config.json is not valid JSON"),
    "JSON list": (text("config.json", "[]"), "config.json holds a list"),
    "binary config": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"), "is not valid JSON"),
    "mistyped setting": (settings(hidden_size="abc"), "config.json describes no model: .*hidden_size"),
    "impossible experts": (settings(text_expert_indices=[0, 99]), "name expert 99, but there are only 8"),
    "half a token table": (settings(token_table={"first_unit": 1}), "config.json describes no model: .*num_units"),
    "no token table": (settings(token_table=None), "no token table"),
    "no tokenizer": (without("tokenizer.json"), r"no tokenizer\.json in"),
    "no chat template": (without("chat_template.jinja"), "the tokenizer has no chat template"),
    "garbage tokenizer": (text("tokenizer.json", "{"), "the tokenizer in .* cannot be read"),
    "truncated encoder": (truncated("speech_encoder/model.safetensors"), "the speech encoder in .* is damaged"),
    "no units": (without("units.safetensors"), "units.safetensors is missing"),
    "encoder of another width": (other_encoder(32, 32), "gives 32 features, config.json expects 24"),
    "encoder of more units": (other_encoder(24, 64), "has 64 units, the token table only 32"),
    "truncated vocoder": (truncated("vocoder/model.safetensors"), "vocoder/model.safetensors is damaged"),
    "vocoder of fewer units": (other_vocoder, "has 16 units, the token table 32"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_refused_in_one_line(copy, damage, message):
    damage(copy)
    with pytest.raises((ValueError, OSError), match=message) as error:
        most_core.load(copy, device="cpu")
    assert "\n" not in str(error.value)


def test_a_pickle_is_never_opened(copy, tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "was_run"), "w")

    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="a pickle"):
        most_core.load(copy, device="cpu")
    assert not (tmp_path / "was_run").exists()


def test_a_missing_folder_is_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere: give a MoST checkpoint folder"):
        most_core.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "unknown device 'gpu': use 'auto', 'cpu', 'cuda' or 'cuda:N'"),
        ({"device": "foo:1"}, "unknown device 'foo:1'"),
        ({"device": ""}, "unknown device ''"),
        ({"device": "cpu", "dtype": "flaot32"}, "unknown dtype 'flaot32': use 'float32', 'bfloat16' or 'float16'"),
        ({"device": "cpu", "dtype": "int8"}, "unknown dtype 'int8'"),
        ({"device": "cpu", "quantize": "int4"}, "unknown quantization 'int4': use 'int8', 'nf4' or None"),
        ({"device": "cpu", "slots": 0}, "slots is 0: it must be at least 1"),
        ({"device": "cpu", "context": 0}, "context is 0: it must be at least 1"),
    ],
)
def test_impossible_options_are_refused_in_one_line(saved, options, message):
    with pytest.raises(ValueError, match=message) as error:
        most_core.load(saved, **options)
    assert "\n" not in str(error.value)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:3"):
        with pytest.raises(ValueError, match="torch sees no GPU: use device='cpu'"):
            choose_device(device)
    assert choose_device("auto") == "cpu"


def test_devices_may_be_given_as_torchs_own():
    assert choose_device(torch.device("cpu")) == "cpu"


# -- quantized ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(most, tmp_path_factory):
    """A checkpoint of a model whose widths suit bitsandbytes, and its own logits [4, 64, V]."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    torch.manual_seed(0)
    model = MostForCausalLM(MostConfig.tiny(**WIDE)).eval()
    Most(model, make_decoder(model), most.processor, most.vocoder).save(folder)
    with torch.no_grad():
        return folder, model(input_ids=IDS).logits


@pytest.fixture(scope="module", params=["int8", "nf4"])
def quantized(request, wide):
    return request.param, most_core.load(wide[0], device="cpu", quantize=request.param)


def quantized_linears(model):
    """Modules that should be quantized: all linears but those that stay precise."""
    precise = ("lm_head", "kv_b_proj", "speech_projector")
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.endswith(precise)
    }


def test_every_expert_is_really_quantized(quantized):
    import bitsandbytes as bnb

    kind, most = quantized
    wanted = {"int8": bnb.nn.Linear8bitLt, "nf4": bnb.nn.Linear4bit}[kind]
    linears = quantized_linears(most.model)
    experts = [module for name, module in linears.items() if ".experts." in name]
    assert len(experts) == 2 * 8 * 3
    assert all(type(module) is wanted for module in linears.values())
    assert {m.weight.dtype for m in linears.values()} == {{"int8": torch.int8, "nf4": torch.uint8}[kind]}


def test_head_projector_and_latent_expansion_stay_precise(quantized):
    model = quantized[1].model
    for module in (model.lm_head, model.model.speech_projector, *(x.self_attn.kv_b_proj for x in model.model.layers)):
        assert type(module) is torch.nn.Linear
        assert module.weight.dtype == torch.float32


def test_quantized_weights_shrink(quantized):
    kind, most = quantized
    small = large = 0
    for module in quantized_linears(most.model).values():
        weight = module.weight
        small += weight.numel() * weight.element_size()
        state = getattr(weight, "quant_state", None)
        if state is not None:
            small += state.absmax.numel() * state.absmax.element_size()
        scales = getattr(weight, "SCB", None)
        if scales is not None:
            small += scales.numel() * scales.element_size()
        large += 4 * module.in_features * module.out_features
    assert small / large < {"int8": 0.45, "nf4": 0.3}[kind]


def test_a_quantized_model_answers_speech_and_text(quantized, wave):
    _, most = quantized
    for question in ("hello", wave):
        reply = most.answer(question, settings=GREEDY, record_routing=True)
        assert reply.finish_reason in ("stop", "length")
        assert reply.units
        assert len(reply.waveform) == 640 * len(reply.units)
        assert reply.trace.leakage == 0


def test_a_quantized_model_mostly_agrees_with_the_original(quantized, wide):
    """Of a random model, whose logits lie close together; chance is 1 in 296."""
    kind, most = quantized
    with torch.no_grad():
        logits = most.model(input_ids=IDS).logits.float()
    agreement = (logits.argmax(-1) == wide[1].argmax(-1)).float().mean()
    similarity = torch.nn.functional.cosine_similarity(logits, wide[1], dim=-1).mean()
    assert agreement > {"int8": 0.9, "nf4": 0.45}[kind]
    assert similarity > {"int8": 0.995, "nf4": 0.9}[kind]


def test_the_lean_decoder_of_a_quantized_model_equals_its_own_forward(quantized):
    _, most = quantized
    decoder = LeanDecoder(most.model, slots=1, context=80)
    with torch.no_grad():
        expected = most.model(input_ids=IDS[:1, :9]).logits[0]
    first = decoder.prefill(0, IDS[0, :8].tolist())
    second = decoder.step([0], [int(IDS[0, 8])])[0]
    for got, wanted in ((first, expected[7]), (second, expected[8])):
        assert torch.nn.functional.cosine_similarity(got, wanted.float(), dim=-1) > 0.99


def test_widths_that_the_packed_kernel_does_not_take_quantize_all_the_same(saved):
    most = most_core.load(saved, device="cpu", quantize="nf4")
    assert most.answer("hello", settings=GREEDY).finish_reason in ("stop", "length")


def test_a_quantized_model_saves_and_loads(wide, tmp_path):
    model = load_decoder(wide[0], device="cpu", quantize="nf4")
    model.save_pretrained(tmp_path / "nf4")
    loaded = load_decoder(tmp_path / "nf4", device="cpu")
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=IDS[:1]).logits, model(input_ids=IDS[:1]).logits)
    assert (tmp_path / "nf4" / "model.safetensors").stat().st_size < 0.6 * (
        wide[0] / "model.safetensors"
    ).stat().st_size


# -- offloaded ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def offloaded(saved, tmp_path):
    places = dict.fromkeys(["embed_tokens", "speech_projector", "norm", "rotary_emb", "layers.0"], "cpu")
    places |= {"layers.1": "disk", "layers.2": "disk"}
    device_map = {"lm_head": "cpu", **{f"model.{name}": place for name, place in places.items()}}
    return most_core.load(saved, device="cpu", device_map=device_map, offload_folder=tmp_path / "offload")


def test_a_model_offloaded_to_disk_answers_the_same(offloaded, most, wave, tmp_path):
    assert isinstance(offloaded.loop.decoder, ModuleDecoder)
    assert any((tmp_path / "offload").iterdir())
    assert any(p.device.type == "meta" for p in offloaded.model.parameters())
    for question in ("hello", wave):
        ours, theirs = (m.answer(question, settings=GREEDY, record_routing=True) for m in (offloaded, most))
        assert (ours.text, ours.heard, ours.units) == (theirs.text, theirs.heard, theirs.units)
        assert (ours.trace.chosen == theirs.trace.chosen).all()


def test_an_offloaded_model_refuses_knock_outs_and_frees_its_place(offloaded):
    with pytest.raises(ValueError, match="cannot be knocked out: load it whole"):
        offloaded.answer("hello", knock_out=[(1, 0)])
    assert len(offloaded.loop._free) == 4


def test_a_device_map_of_one_device_keeps_the_fast_decoder(saved):
    assert isinstance(most_core.load(saved, device_map={"": "cpu"}).loop.decoder, LeanDecoder)
