import argparse
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from torch.nn.utils import weight_norm
from transformers import (
    AutoTokenizer,
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    HubertConfig,
    HubertModel,
    PreTrainedTokenizerFast,
)

from most_core import checkpoint_files, convert
from most_core.config import MostConfig, TokenTable
from most_core.convert import main, read_upstream_state
from most_core.model import MostForCausalLM, MostPerExpertForCausalLM
from most_core.speech import Quantizer, SpeechEncoder, untrained_encoder
from most_core.vocoder import Vocoder

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
YARN = {
    "type": "yarn",
    "factor": 4.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
    "original_max_position_embeddings": 64,
}


def save_tokenizer(folder, extra=()):
    """Byte-level BPE without merges: 256 bytes and two special tokens, as in DeepSeek's layout."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({text: i for i, text in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")
    wrapped.add_tokens(list(extra), special_tokens=True)
    wrapped.save_pretrained(folder)
    return wrapped


@pytest.fixture(scope="module")
def deepseek_folder(tmp_path_factory):
    """A tiny DeepSeek-V2 in several shards."""
    folder = tmp_path_factory.mktemp("deepseek")
    torch.manual_seed(0)
    config = DeepseekV2Config(
        vocab_size=264,  # 258 in use
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        kv_lora_rank=16,
        q_lora_rank=None,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_shared_experts=1,
        first_k_dense_replace=1,
        max_position_embeddings=256,
        initializer_range=0.1,
        rope_scaling=YARN,
        rope_theta=10000.0,
    )
    DeepseekV2ForCausalLM(config).save_pretrained(folder, max_shard_size="60KB")
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def most_folder(deepseek_folder, tmp_path_factory):
    """The same, converted with 32 units."""
    folder = tmp_path_factory.mktemp("most") / "converted"
    report = convert.deepseek(deepseek_folder, folder, num_units=32, speech_feature_size=24)
    assert "text tokens 0..257" in report[1]
    return folder


def all_tensors(folder):
    tensors = {}
    for file in checkpoint_files.weight_files(folder):
        tensors |= load_file(file)
    return tensors


def only_error(capsys, *argv):
    """The single line that a refused conversion prints."""
    assert main([str(arg) for arg in argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


# -- deepseek ----------------------------------------------------------------------------------------------------------


def test_every_deepseek_tensor_arrives_unchanged(deepseek_folder, most_folder):
    old, new = all_tensors(deepseek_folder), all_tensors(most_folder)
    assert new.keys() - old.keys() == {"model.speech_projector.weight", "model.speech_projector.bias"}
    assert len([name for name in old if ".experts." in name]) == 2 * 8 * 3
    for name, tensor in old.items():
        if name in convert.VOCAB_ROWS:
            assert torch.equal(new[name][:258], tensor[:258])
        else:
            assert torch.equal(new[name], tensor), name


def test_with_the_plain_router_old_tokens_have_the_old_logits(deepseek_folder, most_folder):
    ids = torch.randint(0, 258, (2, 40), generator=torch.Generator().manual_seed(0))
    old = DeepseekV2ForCausalLM.from_pretrained(deepseek_folder).eval()
    new = MostForCausalLM.from_pretrained(most_folder, use_modality_aware_routing=False).eval()
    with torch.no_grad():
        gap = old(input_ids=ids).logits[..., :258] - new(input_ids=ids).logits[..., :258]
    assert gap.abs().max() < 1e-5


def test_the_configuration_is_most_and_keeps_the_positions(most_folder):
    config = MostConfig.from_pretrained(most_folder)
    assert json.loads((most_folder / "config.json").read_text())["model_type"] == "most"
    assert config.architectures == ["MostForCausalLM"]
    assert config.tokens == TokenTable.after(258, 32)
    assert config.vocab_size == 320  # 258 + 32 + 6, rounded up
    assert config.text_expert_indices == [0, 1, 2, 3]
    assert config.audio_expert_indices == [4, 5, 6, 7]
    assert config.speech_feature_size == 24
    assert {name: config.rope_parameters[name] for name in YARN if name != "type"} == {
        name: value for name, value in YARN.items() if name != "type"
    }
    assert (most_folder / "generation_config.json").is_file()


def test_new_rows_look_like_text_rows_and_differ(most_folder):
    for name in convert.VOCAB_ROWS:
        rows = all_tensors(most_folder)[name]
        text, new = rows[:258].norm(dim=1), rows[258:].norm(dim=1)
        assert text.min() <= new.min()
        assert new.max() <= text.max()
        assert len(rows[258:].unique(dim=0)) == 320 - 258


def test_the_projector_makes_vectors_as_large_as_embeddings(most_folder):
    tensors = all_tensors(most_folder)
    features = torch.randn(200, 24, generator=torch.Generator().manual_seed(1))
    projected = features @ tensors["model.speech_projector.weight"].T
    assert projected.std() / tensors["model.embed_tokens.weight"][:258].std() == pytest.approx(1, abs=0.2)


def test_tokenizer_ids_are_the_tables(deepseek_folder, most_folder):
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (deepseek_folder, most_folder))
    config = MostConfig.from_pretrained(most_folder)
    spellings = config.tokens.spellings()
    assert new.convert_tokens_to_ids(spellings) == list(range(258, 258 + len(spellings)))
    assert new("hello, [Hu7][/Audio]!").input_ids == [*old("hello, ").input_ids, 265, 291, *old("!").input_ids]
    assert new.decode([265, *old("ok").input_ids], skip_special_tokens=True) == "ok"
    assert (new.bos_token, new.eos_token) == ("<bos>", "<eos>")


def test_the_result_generates_and_a_seed_makes_it_again(deepseek_folder, most_folder, tmp_path):
    model = MostForCausalLM.from_pretrained(most_folder).eval()
    output = model.generate(torch.tensor([[5, 6, 260]]), max_new_tokens=3, do_sample=False)
    assert output.shape[1] <= 6
    for seed, same in ((0, True), (1, False)):
        convert.deepseek(deepseek_folder, tmp_path / str(seed), seed, num_units=32, speech_feature_size=24)
        again = all_tensors(tmp_path / str(seed))
        assert all(torch.equal(again[name], tensor) for name, tensor in all_tensors(most_folder).items()) == same


def test_output_is_sharded_when_large_and_keeps_its_dtype(deepseek_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "MAX_SHARD_BYTES", 60_000)
    source = tmp_path / "source"
    DeepseekV2ForCausalLM.from_pretrained(deepseek_folder, dtype=torch.bfloat16).save_pretrained(source)
    save_tokenizer(source)
    assert main(["deepseek", str(source), str(tmp_path / "most"), "--num-units", "32"]) == 0
    assert len(list((tmp_path / "most").glob("model-*.safetensors"))) > 1
    model, loading = MostForCausalLM.from_pretrained(tmp_path / "most", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert model.dtype == torch.bfloat16
    assert model.config.speech_feature_size == 768
    assert {tensor.dtype for tensor in all_tensors(tmp_path / "most").values()} == {torch.bfloat16}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError("disk full")])
def test_a_stopped_conversion_leaves_nothing(deepseek_folder, tmp_path, monkeypatch, error):
    def stop(*args):
        raise error

    monkeypatch.setattr(checkpoint_files.ShardWriter, "close", stop)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        convert.deepseek(deepseek_folder, tmp_path / "new" / "most", num_units=32)
    assert list(tmp_path.iterdir()) == []


def test_a_deepseek_folder_that_is_not_one_is_refused(deepseek_folder, tmp_path, capsys):
    assert "config.json is missing" in only_error(capsys, "deepseek", tmp_path / "none", tmp_path / "dst")
    (tmp_path / "config.json").write_text("{")
    assert "not valid JSON" in only_error(capsys, "deepseek", tmp_path, tmp_path / "dst")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert "model_type 'llama'" in only_error(capsys, "deepseek", tmp_path, tmp_path / "dst")
    (tmp_path / "config.json").write_text((deepseek_folder / "config.json").read_text())
    assert "tokenizer.json is missing" in only_error(capsys, "deepseek", tmp_path, tmp_path / "dst")
    save_tokenizer(tmp_path)
    assert "holds no weights" in only_error(capsys, "deepseek", tmp_path, tmp_path / "dst")
    (tmp_path / "model.safetensors").write_bytes(b"12345678")
    assert "damaged" in only_error(capsys, "deepseek", tmp_path, tmp_path / "dst")
    state = all_tensors(deepseek_folder)
    del state["model.layers.1.mlp.experts.3.up_proj.weight"]
    save_file(state, tmp_path / "model.safetensors")
    error = only_error(capsys, "deepseek", tmp_path, tmp_path / "dst")
    assert "model.layers.1.mlp.experts.3.up_proj.weight is missing" in error
    assert not (tmp_path / "dst").exists()
    assert not list(tmp_path.glob(".*"))
    assert "exists already" in only_error(capsys, "deepseek", deepseek_folder, tmp_path)


def test_a_tokenizer_with_colliding_tokens_is_refused(deepseek_folder, tmp_path, capsys):
    (tmp_path / "config.json").write_text((deepseek_folder / "config.json").read_text())
    save_tokenizer(tmp_path, extra=["[Audio]"])
    error = only_error(capsys, "deepseek", tmp_path, tmp_path / "dst", "--num-units", "32")
    assert "gives [Audio] the id 258, expected 291" in error


# -- upstream ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def upstream_parts():
    config = json.loads((GOLDEN / "upstream_tiny_config.json").read_text())
    return config, load_file(GOLDEN / "upstream_tiny_weights.safetensors")


@pytest.mark.parametrize("layout", [MostForCausalLM, MostPerExpertForCausalLM])
def test_upstream_state_fits_both_layouts(upstream_parts, layout):
    config, state = upstream_parts
    model = read_upstream_state(layout(MostConfig(**config)), state)
    experts = model.model.layers[2].mlp.experts
    down = experts.down_proj[5] if layout is MostForCausalLM else experts[5].down_proj.weight
    up = experts.gate_up_proj[5, 24:] if layout is MostForCausalLM else experts[5].up_proj.weight
    assert torch.equal(down, state["model.layers.2.mlp.experts.5.down_proj.weight"])
    assert torch.equal(up, state["model.layers.2.mlp.experts.5.up_proj.weight"])
    assert torch.equal(model.lm_head.weight, state["lm_head.weight"])


def test_upstream_state_that_does_not_fit_is_named(upstream_parts):
    config, state = upstream_parts
    model = MostForCausalLM(MostConfig(**config))
    name = "model.layers.1.mlp.experts.7.gate_proj.weight"
    with pytest.raises(ValueError, match=f"{name} is missing"):
        read_upstream_state(model, {key: value for key, value in state.items() if key != name})
    with pytest.raises(ValueError, match=r"experts\.8\.gate_proj\.weight is unexpected"):
        read_upstream_state(model, {**state, name.replace("7", "8"): state[name]})
    with pytest.raises(ValueError, match=rf"{name} has shape \[48, 24\], .* expects \[24, 48\]"):
        read_upstream_state(model, {**state, name: state[name].T})
    with pytest.raises(ValueError, match=r"speech_projector\.bias is missing"):
        read_upstream_state(model, {**state, "model.speech_projector.weight": torch.zeros(48, 768)})
    read_upstream_state(
        model, {**state, "audio_encoder.w": torch.zeros(1), "model.rotary_emb.inv_freq": torch.zeros(4)}
    )


@pytest.mark.parametrize("kind", ["folder", "safetensors", "pt"])
def test_an_upstream_checkpoint_becomes_a_most_folder(upstream_parts, tmp_path, kind, capsys):
    config, state = upstream_parts
    source, dst = tmp_path / "source", tmp_path / "dst"
    save_tokenizer(source)
    (source / "config.json").write_text(json.dumps(config))
    given = {**state, "audio.projector.weight": torch.randn(48, 20), "audio.projector.bias": torch.randn(48)}
    given["audio.encoder.weight"] = torch.zeros(3)
    path = source / ("weights.pt" if kind == "pt" else "model.safetensors")
    if kind == "pt":
        torch.save({"state_dict": given}, path)
    else:
        save_file(given, path)
    argv = [
        "upstream",
        source if kind == "folder" else path,
        dst,
        "--num-units",
        "32",
        "--projector",
        "audio.projector",
    ]
    assert main([str(arg) for arg in argv]) == 0
    report = capsys.readouterr().out
    assert "skipped audio.encoder.weight" in report
    assert "skipped audio.projector" not in report
    model = MostForCausalLM.from_pretrained(dst)
    assert model.config.speech_feature_size == 20
    assert torch.equal(model.model.speech_projector.weight, given["audio.projector.weight"])
    rows, frame = model.model.embed_tokens.weight, model.config.tokens.frame
    assert torch.equal(rows[:frame], state["model.embed_tokens.weight"][:frame])  # units and markers stay as trained
    assert not torch.equal(rows[frame], state["model.embed_tokens.weight"][frame])
    assert torch.equal(rows[frame + 2 :], state["model.embed_tokens.weight"][frame + 2 :])


def test_upstream_refusals(upstream_parts, tmp_path, capsys):
    config, state = upstream_parts
    weights = GOLDEN / "upstream_tiny_weights.safetensors"
    assert "config.json is missing" in only_error(capsys, "upstream", weights, tmp_path / "dst")
    save_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = ("--config", tmp_path / "config.json")
    error = only_error(capsys, "upstream", weights, tmp_path / "dst", *options, "--projector", "nothing")
    assert "holds no tensor nothing.weight" in error
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}))
    assert "hidden_size" in only_error(capsys, "upstream", weights, tmp_path / "dst", *options)
    torch.save({"state_dict": state, "args": argparse.Namespace()}, tmp_path / "unsafe.bin")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "re-save its state dict" in only_error(capsys, "upstream", tmp_path / "unsafe.bin", tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


# -- hubert ------------------------------------------------------------------------------------------------------------


def small_hubert(large=False):
    config = HubertConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        conv_dim=[8] * 8,
        conv_kernel=[10, 3, 3, 3, 3, 2, 2, 2],
        conv_stride=[5, 2, 2, 2, 2, 2, 2, 2],
        conv_bias=large,
        feat_extract_norm="layer" if large else "group",
        do_stable_layer_norm=large,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    torch.manual_seed(2)
    return HubertModel(config).eval()


def fairseq_state(model, large):
    """The model's tensors under fairseq's names, spelled out independently of the converter."""
    ours = model.state_dict()
    names = {
        "mask_emb": "masked_spec_embed",
        "post_extract_proj.weight": "feature_projection.projection.weight",
        "post_extract_proj.bias": "feature_projection.projection.bias",
        "layer_norm.weight": "feature_projection.layer_norm.weight",
        "layer_norm.bias": "feature_projection.layer_norm.bias",
        "encoder.layer_norm.weight": "encoder.layer_norm.weight",
        "encoder.layer_norm.bias": "encoder.layer_norm.bias",
        "encoder.pos_conv.0.bias": "encoder.pos_conv_embed.conv.bias",
        "encoder.pos_conv.0.weight_g": "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
        "encoder.pos_conv.0.weight_v": "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
    }
    for end in ("weight", "bias"):
        for i in range(8):
            conv = f"feature_extractor.conv_layers.{i}"
            names[f"{conv}.0.{end}"] = f"{conv}.conv.{end}"
            names[f"{conv}.2.1.{end}" if large else f"{conv}.2.{end}"] = f"{conv}.layer_norm.{end}"
        for i in range(2):
            layer = f"encoder.layers.{i}"
            for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                names[f"{layer}.self_attn.{projection}.{end}"] = f"{layer}.attention.{projection}.{end}"
            names[f"{layer}.self_attn_layer_norm.{end}"] = f"{layer}.layer_norm.{end}"
            names[f"{layer}.final_layer_norm.{end}"] = f"{layer}.final_layer_norm.{end}"
            names[f"{layer}.fc1.{end}"] = f"{layer}.feed_forward.intermediate_dense.{end}"
            names[f"{layer}.fc2.{end}"] = f"{layer}.feed_forward.output_dense.{end}"
    state = {theirs: ours[name] for theirs, name in names.items() if name in ours}
    assert len(state) == len(ours)
    return {**state, "final_proj.weight": torch.zeros(4, 24), "label_embs_concat": torch.zeros(5, 4)}


@pytest.mark.parametrize("large", [False, True])
def test_a_fairseq_hubert_gives_the_same_hidden_states(tmp_path, large):
    model = small_hubert(large)
    torch.save({"model": fairseq_state(model, large), "args": None}, tmp_path / "hubert.pt")
    assert main(["hubert", str(tmp_path / "hubert.pt"), str(tmp_path / "dst"), "--heads", "3"]) == 0
    converted = HubertModel.from_pretrained(tmp_path / "dst" / "speech_encoder").eval()
    wave = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        old, new = (m(wave, output_hidden_states=True).hidden_states for m in (model, converted))
    assert all((a - b).abs().max() < 1e-6 for a, b in zip(old, new))
    settings = json.loads((tmp_path / "dst" / "speech_encoder" / "preprocessor_config.json").read_text())
    assert settings["do_normalize"] is large


def test_a_transformers_hubert_is_copied_and_completes_an_encoder(tmp_path):
    encoder = untrained_encoder(12, 8, seed=4)
    encoder.save(tmp_path / "source")
    np.save(tmp_path / "centers.npy", encoder.quantizer.centroids.numpy().astype(np.float64))
    dst = tmp_path / "dst"
    assert main(["hubert", str(tmp_path / "source" / "speech_encoder"), str(dst)]) == 0
    assert main(["units", str(tmp_path / "centers.npy"), str(dst), "--layer", "2"]) == 0
    wave = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    assert np.array_equal(SpeechEncoder.load(dst).units(wave), encoder.units(wave))
    assert sorted(path.name for path in dst.iterdir()) == ["speech_encoder", "units.safetensors"]


def test_hubert_refusals(tmp_path, capsys):
    model, dst = small_hubert(), tmp_path / "dst"
    state = fairseq_state(model, large=False)
    path = tmp_path / "hubert.pt"
    torch.save({"model": state, "args": argparse.Namespace(lr=1)}, path)
    error = only_error(capsys, "hubert", path, dst)
    assert "argparse.Namespace" in error
    assert "re-save its state dict" in error
    torch.save({"model": state}, path)
    assert "8 convolutions, 2 strides" in only_error(capsys, "hubert", path, dst, "--strides", "5,2")
    assert "5 attention heads do not divide" in only_error(capsys, "hubert", path, dst, "--heads", "5")
    del state["encoder.layers.1.fc2.bias"]
    torch.save({"model": state}, path)
    assert "layers.1.feed_forward.output_dense.bias is missing" in only_error(capsys, "hubert", path, dst)
    path.write_bytes(path.read_bytes()[:1000])
    assert "damaged" in only_error(capsys, "hubert", path, dst)
    torch.save({"model": {"weight": torch.zeros(1)}}, path)
    assert "no HuBERT checkpoint" in only_error(capsys, "hubert", path, dst)
    assert "is missing" in only_error(capsys, "hubert", tmp_path / "nothing.pt", dst)
    assert not dst.exists()


def test_a_transformers_hubert_that_is_damaged_is_refused(tmp_path, capsys):
    src, dst = tmp_path / "src", tmp_path / "dst"
    small_hubert().save_pretrained(src)
    capsys.readouterr()
    weights = src / "model.safetensors"
    tensors, whole = load_file(weights), weights.read_bytes()
    name = "encoder.layer_norm.bias"
    save_file({**tensors, name: torch.zeros(25)}, weights, {"format": "pt"})
    assert f"{name} has shape [25], config.json asks for [24]" in _last_line(capsys, "hubert", src, dst)
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, weights, {"format": "pt"})
    assert f"{name} is missing" in _last_line(capsys, "hubert", src, dst)
    weights.write_bytes(whole[: len(whole) // 2])
    assert "is damaged or not complete" in _last_line(capsys, "hubert", src, dst)
    weights.write_bytes(whole)
    settings = json.loads((src / "config.json").read_text())
    (src / "config.json").write_text(json.dumps({**settings, "hidden_size": "wide"}))
    assert "hidden_size" in _last_line(capsys, "hubert", src, dst)
    assert not dst.exists()


def _last_line(capsys, *argv):
    """The line that a refused conversion prints after transformers' progress bar."""
    assert main([str(arg) for arg in argv]) == 2
    error = capsys.readouterr().err.rpartition("error: ")[2]
    assert error.count("\n") == 1
    return error


# -- units -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npy", "safetensors", "pt"])
def test_centroids_of_each_kind(tmp_path, kind):
    centroids = torch.randn(6, 4)
    path = tmp_path / f"km.{kind}"
    if kind == "npy":
        np.save(path, centroids.numpy())
    elif kind == "pt":
        torch.save({"cluster_centers": centroids, "counts": torch.zeros(6)}, path)
    else:
        save_file({"centers": centroids}, path)
    assert main(["units", str(path), str(tmp_path / "dst"), "--layer", "11"]) == 0
    loaded = Quantizer.load(tmp_path / "dst" / "units.safetensors")
    assert torch.equal(loaded.centroids, centroids)
    assert (loaded.layer, loaded.rate_hz) == (11, 25)


def test_units_refusals(tmp_path, capsys):
    path, dst = tmp_path / "km.bin", tmp_path / "dst"
    path.write_bytes(pickle.dumps({"cluster_centers_": 1}))
    assert "cluster_centers_), and give the .npy" in only_error(capsys, "units", path, dst, "--layer", 11)
    for content, words in (
        (np.zeros((2, 3), object), "holds no array of numbers"),
        (np.zeros((0, 3)), "holds no centroids, its shape is [0, 3]"),
        (np.zeros(3), "0 float matrices"),
        (np.full((2, 3), np.nan), "not finite"),
    ):
        np.save(tmp_path / "km.npy", content)
        assert words in only_error(capsys, "units", tmp_path / "km.npy", dst, "--layer", 11)
    np.save(tmp_path / "km.npy", np.zeros((2, 3)))
    whole = (tmp_path / "km.npy").read_bytes()
    for content in (b"", b"garbage" * 9, whole[:-1], whole[:20], pickle.dumps([1])):
        (tmp_path / "km.npy").write_bytes(content)
        error = only_error(capsys, "units", tmp_path / "km.npy", dst, "--layer", 11)
        assert "km.npy is damaged" in error
        assert "pickle" not in error
    assert not dst.exists()
    untrained_encoder(12, 8).save(dst)
    (dst / "units.safetensors").unlink()
    capsys.readouterr()
    np.save(tmp_path / "km.npy", np.zeros((2, 3)))
    assert "3 dimensions, the encoder in" in only_error(capsys, "units", tmp_path / "km.npy", dst, "--layer", 1)


# -- vocoder -----------------------------------------------------------------------------------------------------------

CODE_CONFIG = {
    "resblock": "1",
    "num_embeddings": 20,
    "embedding_dim": 12,
    "model_in_dim": 12,
    "upsample_rates": [5, 4],
    "upsample_kernel_sizes": [11, 8],
    "upsample_initial_channel": 16,
    "resblock_kernel_sizes": [3, 7],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]],
    "sampling_rate": 16000,
    "dur_predictor_params": {
        "encoder_embed_dim": 12,
        "var_pred_hidden_dim": 10,
        "var_pred_kernel_size": 3,
        "var_pred_dropout": 0.5,
    },
}


class CodeGenerator(nn.Module):
    """The public layout once more, written from its names and arithmetic alone."""

    def __init__(self, c):
        super().__init__()
        width = c["upsample_initial_channel"]
        self.dict = nn.Embedding(c["num_embeddings"], c["embedding_dim"])
        self.conv_pre = weight_norm(nn.Conv1d(c["model_in_dim"], width, 7, padding=3))
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(c["upsample_rates"], c["upsample_kernel_sizes"]):
            up = nn.ConvTranspose1d(width, width // 2, kernel, rate, padding=(kernel - rate) // 2)
            self.ups.append(weight_norm(up))
            width //= 2
            for k, dilations in zip(c["resblock_kernel_sizes"], c["resblock_dilation_sizes"]):
                block = nn.Module()
                block.convs1 = nn.ModuleList(self.same(width, k, dilation) for dilation in dilations)
                block.convs2 = nn.ModuleList(self.same(width, k, 1) for _ in dilations)
                self.resblocks.append(block)
        self.conv_post = weight_norm(nn.Conv1d(width, 1, 7, padding=3))
        if "dur_predictor_params" in c:
            hidden = c["dur_predictor_params"]["var_pred_hidden_dim"]
            self.dur_predictor = nn.Module()
            self.dur_predictor.conv1 = nn.Sequential(nn.Conv1d(c["embedding_dim"], hidden, 3, padding=1), nn.ReLU())
            self.dur_predictor.ln1 = nn.LayerNorm(hidden)
            self.dur_predictor.conv2 = nn.Sequential(nn.Conv1d(hidden, hidden, 3, padding=1), nn.ReLU())
            self.dur_predictor.ln2 = nn.LayerNorm(hidden)
            self.dur_predictor.proj = nn.Linear(hidden, 1)

    @staticmethod
    def same(width, kernel, dilation):
        return weight_norm(nn.Conv1d(width, width, kernel, dilation=dilation, padding=(kernel - 1) * dilation // 2))

    def forward(self, code, dur_prediction):
        x = self.dict(code).transpose(1, 2)
        if dur_prediction:
            p = self.dur_predictor
            h = p.ln1(p.conv1(x).transpose(1, 2))
            h = p.ln2(p.conv2(h.transpose(1, 2)).transpose(1, 2))
            durations = torch.clamp(torch.round(torch.exp(p.proj(h).squeeze(2)) - 1).long(), min=1)
            x = torch.repeat_interleave(x, durations.view(-1), dim=2)
        x = self.conv_pre(x)
        per_level = len(self.resblocks) // len(self.ups)
        for i, up in enumerate(self.ups):
            x = up(nn.functional.leaky_relu(x, 0.1))
            total = 0
            for block in self.resblocks[i * per_level : (i + 1) * per_level]:
                y = x
                for c1, c2 in zip(block.convs1, block.convs2):
                    y = y + c2(nn.functional.leaky_relu(c1(nn.functional.leaky_relu(y, 0.1)), 0.1))
                total = total + y
            x = total / per_level
        return torch.tanh(self.conv_post(nn.functional.leaky_relu(x))).flatten()


@pytest.mark.parametrize("with_durations", [True, False])
def test_a_code_generator_gives_the_same_sound(tmp_path, with_durations):
    config = dict(CODE_CONFIG)
    if not with_durations:
        del config["dur_predictor_params"]
    torch.manual_seed(5)
    theirs = CodeGenerator(config).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith("weight_g"):
            nn.init.uniform_(parameter, 0.5, 2.0)  # or folding the norm would change nothing
        if name == "dur_predictor.proj.bias":
            nn.init.constant_(parameter, 1.0)
    torch.save({"generator": theirs.state_dict()}, tmp_path / "g")
    (tmp_path / "config.json").write_text(json.dumps(config))
    argv = ["vocoder", tmp_path / "g", tmp_path / "config.json", tmp_path / "dst"]
    assert main([str(arg) for arg in argv]) == 0
    assert [path.name for path in (tmp_path / "dst").iterdir()] == ["vocoder"]
    ours = Vocoder.load(tmp_path / "dst")
    code = torch.randint(0, 20, (30,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(code[None], with_durations).numpy()
        if with_durations:
            assert len(expected) > 30 * 20
    sound = ours.synthesize(code)
    assert sound.shape == expected.shape
    assert np.abs(sound).max() > 0.01
    assert np.abs(sound - expected).max() < 1e-5


def test_vocoder_refusals(tmp_path, capsys):
    config, path, dst = tmp_path / "config.json", tmp_path / "g.pt", tmp_path / "dst"
    state = CodeGenerator(CODE_CONFIG).state_dict()
    torch.save({"generator": state}, path)

    def refused(**changes):
        config.write_text(json.dumps({**CODE_CONFIG, **changes}))
        return only_error(capsys, "vocoder", path, config, dst)

    assert "multispkr is set" in refused(multispkr="from_input_file")
    assert "f0 is set" in refused(f0=True)
    assert "model_in_dim 24" in refused(model_in_dim=24)
    assert "resblock type 2" in refused(resblock="2")
    assert "conv_pre.bias has shape [16], the configuration expects [32]" in refused(upsample_initial_channel=32)
    assert "duration_predictor.conv1.weight is unexpected" in refused(dur_predictor_params=None)
    assert "embedding_dim 'x' is not a positive whole number" in refused(embedding_dim="x", model_in_dim="x")
    assert "upsample_rates None is not a list" in refused(upsample_rates=None)
    assert "dur_predictor_params 'yes' is not an object" in refused(dur_predictor_params="yes")
    config.write_text(json.dumps({"embedding_dim": 12}))
    assert "the setting num_embeddings is missing" in only_error(capsys, "vocoder", path, config, dst)
    del state["ups.1.weight_g"]
    torch.save({"generator": state}, path)
    assert "ups.1.weight_g is missing" in refused()
    assert not dst.exists()


# -- written whole -----------------------------------------------------------------------------------------------------


def test_a_failed_write_removes_every_folder_it_made(tmp_path):
    (tmp_path / "kept").mkdir()
    with pytest.raises(FileNotFoundError), checkpoint_files.written_whole(tmp_path / "kept" / "a" / "b" / "c"):
        pass  # wrote nothing
    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), checkpoint_files.written_whole(tmp_path / "file" / "a" / "b"):
        pass
    with checkpoint_files.written_whole(tmp_path / "kept" / "a" / "b" / "c") as partial:
        partial.write_text("x")
    assert (tmp_path / "kept" / "a" / "b" / "c").read_text() == "x"


def test_the_working_folder_can_be_written_to_and_stays_the_same_folder(tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with checkpoint_files.written_whole(Path(".")) as partial:
        partial.mkdir()
        (partial / "config.json").write_text("{}")
    assert [path.name for path in Path(".").iterdir()] == ["config.json"]
    assert list(tmp_path.rglob("*")) == [here, here / "config.json"]
    with pytest.raises(ValueError, match="here exists already"), checkpoint_files.written_whole(Path(".")):
        pass
