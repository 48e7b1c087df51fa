"""Other people's speech encoders, units and vocoders -> the parts of a MoST folder. Run through convert.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import HubertConfig, HubertModel

from most_core.checkpoint_files import load_content, load_exactly, load_weights, read_json, written_whole
from most_core.speech import SAMPLE_RATE, Quantizer, feature_extractor, load_hubert
from most_core.vocoder import UnitHifiGan, VocoderConfig, write_vocoder

# -- encoder -----------------------------------------------------------------------------------------------------------

# fairseq's names -> transformers'; the first pattern that matches the start of a name replaces it.
HUBERT_NAMES = (
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.(1\.)?", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"post_extract_proj\.", "feature_projection.projection."),
    (r"layer_norm\.", "feature_projection.layer_norm."),
    (r"mask_emb$", "masked_spec_embed"),
    (r"encoder\.pos_conv\.0\.weight_g$", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"encoder\.pos_conv\.0\.weight_v$", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"encoder\.pos_conv\.0\.bias$", "encoder.pos_conv_embed.conv.bias"),
    (r"encoder\.layers\.(\d+)\.self_attn\.", r"encoder.layers.\1.attention."),
    (r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.", r"encoder.layers.\1.layer_norm."),
    (r"encoder\.layers\.(\d+)\.fc1\.", r"encoder.layers.\1.feed_forward.intermediate_dense."),
    (r"encoder\.layers\.(\d+)\.fc2\.", r"encoder.layers.\1.feed_forward.output_dense."),
)
TRAINING_ONLY = ("final_proj.", "label_embs_concat")  # HuBERT's prediction heads
USUAL_STRIDES = {7: (5, 2, 2, 2, 2, 2, 2), 8: (5, 2, 2, 2, 2, 2, 2, 2)}  # 50 Hz, 25 Hz


def hubert(
    src: str | Path,
    dst: str | Path,
    strides: list[int] | None = None,
    heads: int | None = None,
    normalize: bool | None = None,
) -> list[str]:
    """Write `dst/speech_encoder` from a fairseq HuBERT checkpoint or a transformers HubertModel folder.

    A fairseq file's tensors tell all of its shape but the strides (default: 50 Hz for 7 convolutions, 25 Hz for 8),
    the attention heads and whether waveforms are normalized (default: as HuBERT large, not as base).
    """
    src, dst = Path(src), Path(dst)
    if src.is_dir():
        model = _transformers_hubert(src)
        preprocessor = src / "preprocessor_config.json"
        if normalize is None and preprocessor.is_file():
            normalize = bool(read_json(preprocessor).get("do_normalize", True))
    else:
        model = _fairseq_hubert(src, strides, heads)
    config = model.config
    if normalize is None:
        normalize = config.feat_extract_norm == "layer"
    with written_whole(dst / "speech_encoder") as folder:
        model.save_pretrained(folder)
        feature_extractor(normalize).save_pretrained(folder)
    rate = SAMPLE_RATE / np.prod(config.conv_stride)
    return [f"HuBERT: {config.num_hidden_layers} layers x {config.hidden_size}, {rate:g} Hz, normalize {normalize}"]


def _transformers_hubert(src: Path) -> HubertModel:
    if not (src / "config.json").is_file():
        raise FileNotFoundError(f"{src / 'config.json'} is missing: give a HubertModel folder or a fairseq checkpoint")
    kind = read_json(src / "config.json").get("model_type")
    if kind != "hubert":
        raise ValueError(f"{src / 'config.json'} has model_type {kind!r}, expected 'hubert'")
    return load_hubert(src)


def _fairseq_hubert(src: Path, strides: list[int] | None, heads: int | None) -> HubertModel:
    state = {}
    for name, tensor in load_weights(src, "model").items():
        if not name.startswith(TRAINING_ONLY):
            state[_hubert_name(name)] = tensor
    config = _hubert_config(state, src, strides, heads)
    state.setdefault("masked_spec_embed", torch.zeros(config.hidden_size))  # used in training alone
    model = HubertModel(config)
    load_exactly(model, state, str(src))
    return model


def _hubert_name(name: str) -> str:
    for pattern, replacement in HUBERT_NAMES:
        renamed, count = re.subn(rf"^{pattern}", replacement, name)
        if count:
            return renamed
    return name


def _hubert_config(
    state: dict[str, torch.Tensor], src: Path, strides: list[int] | None, heads: int | None
) -> HubertConfig:
    try:
        conv_names = [f"feature_extractor.conv_layers.{i}.conv.weight" for i in range(_count(state, "conv.weight"))]
        convs = [state[name].shape for name in conv_names]
        width = len(state["encoder.layer_norm.weight"])
        inner = len(state["encoder.layers.0.feed_forward.intermediate_dense.bias"])
        pos_conv = state["encoder.pos_conv_embed.conv.parametrizations.weight.original1"].shape
    except KeyError as error:
        raise ValueError(f"{src}: tensor {error.args[0]} is missing: this is no HuBERT checkpoint") from None
    strides = list(strides or USUAL_STRIDES.get(len(convs), ()))
    if len(strides) != len(convs):
        raise ValueError(f"{src} has {len(convs)} convolutions, {len(strides)} strides were given: give one for each")
    heads = heads or max(1, width // 64)
    if width % heads:
        raise ValueError(f"{heads} attention heads do not divide the width {width}: give another number of heads")
    # Norms after every convolution mark HuBERT large, which also puts the norm before each block.
    large = "feature_extractor.conv_layers.1.layer_norm.weight" in state
    return HubertConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=_count(state, "attention.k_proj.weight"),
        num_attention_heads=heads,
        conv_dim=[shape[0] for shape in convs],
        conv_kernel=[shape[2] for shape in convs],
        conv_stride=strides,
        conv_bias="feature_extractor.conv_layers.0.conv.bias" in state,
        feat_extract_norm="layer" if large else "group",
        do_stable_layer_norm=large,
        num_conv_pos_embeddings=pos_conv[2],
        num_conv_pos_embedding_groups=pos_conv[0] // pos_conv[1],
    )


def _count(state: dict[str, torch.Tensor], ending: str) -> int:
    return sum(bool(re.search(rf"layers\.\d+\.{re.escape(ending)}$", name)) for name in state)


# -- units -------------------------------------------------------------------------------------------------------------


def units(src: str | Path, dst: str | Path, layer: int, rate_hz: int = 25) -> list[str]:
    """Write `dst/units.safetensors` from k-means centroids [K, D] in a .npy, .safetensors or .pt file."""
    src, dst = Path(src), Path(dst)
    encoder = dst / "speech_encoder" / "config.json"
    centroids = _centroids(src)
    if encoder.is_file() and (width := read_json(encoder).get("hidden_size")) != centroids.shape[1]:
        raise ValueError(f"{src} has {centroids.shape[1]} dimensions, the encoder in {dst} {width}: use matching units")
    with written_whole(dst / "units.safetensors") as path:
        Quantizer(centroids, layer, rate_hz).save(path)
    return [f"{len(centroids)} units of encoder layer {layer}, {centroids.shape[1]} dimensions, {rate_hz} Hz"]


def _centroids(src: Path) -> torch.Tensor:
    if src.suffix not in (".npy", ".safetensors", ".pt"):
        raise ValueError(
            f"{src} may run code when opened: export it where you trust it, "
            "np.save('centroids.npy', joblib.load(path).cluster_centers_), and give the .npy"
        )
    if not src.is_file():
        raise FileNotFoundError(f"{src} is missing: give an existing file")
    content = _npy(src) if src.suffix == ".npy" else load_content(src)
    values = list(content.values()) if isinstance(content, dict) else [content]
    tables = [torch.as_tensor(value) for value in values if isinstance(value, np.ndarray | torch.Tensor)]
    tables = [table for table in tables if table.ndim == 2 and table.is_floating_point()]
    if len(tables) != 1:
        raise ValueError(f"{src} holds {len(tables)} float matrices, expected one with a centroid a row")
    if not tables[0].numel():
        raise ValueError(f"{src} holds no centroids, its shape is {list(tables[0].shape)}: export them again")
    if not tables[0].isfinite().all():
        raise ValueError(f"{src} holds centroids that are not finite: export them again")
    return tables[0].float()


def _npy(src: Path) -> np.ndarray:
    with src.open("rb") as file:
        try:
            return np.lib.format.read_array(file, allow_pickle=False)
        except Exception:  # a damaged header can raise anything
            raise ValueError(f"{src} is damaged or holds no array of numbers: np.save a float array again") from None


# -- vocoder -----------------------------------------------------------------------------------------------------------

# textlesslib's and speech-resynthesis' names -> UnitHifiGan's
VOCODER_NAMES = (
    (r"(conv_pre|conv_post|resblocks)\.", r"generator.\1."),
    (r"ups\.", "generator.upsampler."),
    (r"dict\.", "embedding."),
    (r"dur_predictor\.(conv[12])\.0\.", r"duration_predictor.\1."),
    (r"dur_predictor\.", "duration_predictor."),
)


def vocoder(src: str | Path, config_json: str | Path, dst: str | Path) -> list[str]:
    """Write `dst/vocoder` from a unit HiFi-GAN checkpoint (`CodeGenerator`) and its config.json."""
    src, config_json, dst = Path(src), Path(config_json), Path(dst)
    if not config_json.is_file():
        raise FileNotFoundError(f"{config_json} is missing: give the vocoder's config.json")
    config = _vocoder_config(read_json(config_json), config_json)
    state = {}
    for name, tensor in _without_weight_norm(load_weights(src, "generator")).items():
        for pattern, replacement in VOCODER_NAMES:
            name, count = re.subn(rf"^{pattern}", replacement, name)
            if count:
                break
        state[name] = tensor
    model = UnitHifiGan(config)
    load_exactly(model, state, str(src))
    with written_whole(dst / "vocoder") as folder:
        write_vocoder(model, folder)
    return [f"vocoder: {config.num_units} units, {config.samples_per_unit} samples each at {config.sample_rate} Hz"]


def _vocoder_config(settings: dict[str, Any], path: Path) -> VocoderConfig:
    for name in ("multispkr", "embedder_params", "f0", "f0_vq_params", "f0_quant_num_bin", "code_vq_params"):
        if settings.get(name):
            raise ValueError(
                f"{path}: {name} is set: only single-speaker vocoders without pitch or other codes can be converted"
            )
    if str(settings.get("resblock", "1")) != "1":
        raise ValueError(f"{path}: resblock type {settings['resblock']} is not supported, only type 1")
    duration = settings.get("dur_predictor_params") or {}
    if not isinstance(duration, dict):
        raise ValueError(f"{path}: dur_predictor_params {duration!r} is not an object with settings: correct it")
    try:
        if settings.get("model_in_dim", settings["embedding_dim"]) != settings["embedding_dim"]:
            raise ValueError(
                f"{path}: model_in_dim {settings['model_in_dim']} is not embedding_dim {settings['embedding_dim']}: "
                "only single-speaker vocoders without pitch or other codes can be converted"
            )
        if duration and duration["var_pred_kernel_size"] != 3:
            kernel = duration["var_pred_kernel_size"]
            raise ValueError(f"{path}: var_pred_kernel_size {kernel} is not supported, only 3")
        shape = dict(
            num_units=settings["num_embeddings"],
            embedding_dim=settings["embedding_dim"],
            upsample_rates=settings["upsample_rates"],
            upsample_kernel_sizes=settings["upsample_kernel_sizes"],
            upsample_initial_channel=settings["upsample_initial_channel"],
            resblock_kernel_sizes=settings["resblock_kernel_sizes"],
            resblock_dilation_sizes=settings["resblock_dilation_sizes"],
            sample_rate=settings.get("sampling_rate", SAMPLE_RATE),
            context_dilations=(),
            context_lookahead=0,
            duration_predictor=bool(duration),
            **({"duration_hidden_dim": duration["var_pred_hidden_dim"]} if duration else {}),
        )
    except KeyError as error:
        raise ValueError(f"{path}: the setting {error.args[0]} is missing") from None
    try:
        return VocoderConfig(**shape)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _without_weight_norm(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Fold `weight_g` (lengths) and `weight_v` (directions) into plain weights."""
    folded = {}
    for name, tensor in state.items():
        if name.endswith(".weight_g"):
            continue
        if name.endswith(".weight_v"):
            stem = name.removesuffix("_v")
            if f"{stem}_g" not in state:
                raise ValueError(f"tensor {stem}_g is missing: the checkpoint is not complete")
            folded[stem] = torch._weight_norm(tensor, state[f"{stem}_g"], 0)
        else:
            folded[name] = tensor
    return folded
