"""Checkpoint folders to models: checks first, one-line errors, devices, dtypes, quantization of the experts too."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from most_core.assistant import Most
from most_core.checkpoint_files import no_needless_bars, read_json
from most_core.config import MostConfig
from most_core.decoder import Decoder, LeanDecoder, ModuleDecoder
from most_core.graph_decoder import GraphDecoder
from most_core.model import MostForCausalLM
from most_core.processing import MostProcessor, load_tokenizer, train_small_tokenizer
from most_core.speech import SpeechEncoder, untrained_encoder
from most_core.vocoder import Vocoder, untrained_vocoder

# bitsandbytes would quantize these too: the head and the projector are small and precious, and the latent expansion
# is absorbed as a plain matrix. Naming any module replaces the library's own defaults, so all are named.
KEEP_PRECISE = ("lm_head", "kv_b_proj", "speech_projector")
# Words for an untrained model's tokenizer.
PRIMER = """The quick brown fox jumps over the lazy dog while five boxing wizards jump quickly. What time is it?
Can I get a large latte with a bit of soy milk, please? One two three four five six seven eight nine ten."""
LARGE = 1_000_000_000  # parameters; smaller models run in float32 on a CPU, where that is fastest


def load(
    path: str | Path,
    device: str = "auto",
    dtype: torch.dtype | str | None = None,
    quantize: str | None = None,
    *,
    slots: int = 4,
    context: int | None = None,
    **placement: Any,
) -> Most:
    """The whole model of a checkpoint folder.

    `slots` conversations of at most `context` tokens run at a time. `placement` is `load_decoder`'s `device_map`,
    `max_memory` and `offload_folder`. A folder without `speech_encoder/` or `vocoder/` loads as a model that cannot
    hear or speak.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: give a MoST checkpoint folder, such as assets/nano")
    device = choose_device(device)
    model = load_decoder(folder, device=device, dtype=dtype, quantize=quantize, **placement)
    encoder = SpeechEncoder.load(folder, device) if (folder / "speech_encoder").is_dir() else None
    vocoder = Vocoder.load(folder, device) if (folder / "vocoder").is_dir() else None
    processor = MostProcessor(model.config, load_tokenizer(folder), encoder)
    _check_speech_parts(folder, model.config, encoder, vocoder)
    return Most(model, make_decoder(model, slots, context), processor, vocoder)


def _check_speech_parts(
    folder: Path, config: MostConfig, encoder: SpeechEncoder | None, vocoder: Vocoder | None
) -> None:
    """Raise if encoder or vocoder do not fit the decoder, rather than in the middle of a conversation."""
    units = config.tokens.num_units
    if encoder is not None and encoder.feature_size != config.speech_feature_size:
        raise ValueError(
            f"the speech encoder in {folder} gives {encoder.feature_size} features, config.json expects "
            f"{config.speech_feature_size}: they do not belong together"
        )
    if encoder is not None and encoder.num_units > units:
        raise ValueError(f"the speech encoder in {folder} has {encoder.num_units} units, the token table only {units}")
    if vocoder is not None and vocoder.config.num_units < units:
        raise ValueError(f"the vocoder in {folder} has {vocoder.config.num_units} units, the token table {units}")


def untrained(preset: str = "nano", seed: int = 0, *, slots: int = 4) -> Most:
    """A complete model with random weights ("tiny" or "nano"): it babbles, and everything else works."""
    config = MostConfig.preset(preset)
    if preset == "lite":
        raise ValueError("an untrained lite model weighs 31.6 GB and helps nobody: use 'nano' or 'tiny'")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MostForCausalLM(config).eval()
    tokenizer = train_small_tokenizer([PRIMER], config)
    encoder = untrained_encoder(config.speech_feature_size, config.tokens.num_units, seed)
    vocoder = untrained_vocoder(config.tokens.num_units, seed)
    processor = MostProcessor(config, tokenizer, encoder)
    return Most(model, make_decoder(model, slots), processor, vocoder)


def make_decoder(model: MostForCausalLM, slots: int = 1, context: int | None = None) -> Decoder:
    """The fastest decoder for where and how the model's weights are."""
    for name, value in (("slots", slots), ("context", context)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}: it must be at least 1")
    longest = model.config.max_position_embeddings
    if context is not None and context > longest:
        raise ValueError(f"context {context} is more than the {longest} positions that the model was made for")
    spread = getattr(model, "hf_device_map", None) or {}
    if len(set(spread.values())) > 1 or any(p.device.type == "meta" for p in model.parameters()):
        return ModuleDecoder(model, slots, context)
    if model.model.embed_tokens.weight.device.type == "cuda" and GraphDecoder.suits(model):
        decoder = GraphDecoder(model, slots, context)
        decoder.warm_up()
        return decoder
    return LeanDecoder(model, slots, context)


def load_decoder(
    folder: str | Path,
    *,
    device: str = "auto",
    dtype: torch.dtype | str | None = None,
    quantize: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    max_memory: dict[str | int, str | int] | None = None,
    offload_folder: str | Path | None = None,
) -> MostForCausalLM:
    """The decoder of a checkpoint folder, in eval mode.

    `quantize` is None, "int8" or "nf4" (through bitsandbytes, the routed experts included). `device_map`,
    `max_memory` and `offload_folder` are accelerate's, for weights spread over devices, CPU memory and disk.
    """
    folder = Path(folder)
    config = read_config(folder)
    check_weights(folder, config)
    device = choose_device(device)
    dtype = _dtype(dtype, device, config)
    options: dict[str, Any] = {"config": config, "dtype": dtype, "local_files_only": True}
    if quantize is not None:
        options["quantization_config"] = _quantization(quantize, dtype)
    if device_map is not None or max_memory is not None or offload_folder is not None:
        options["device_map"] = device_map or "auto"
        options["max_memory"] = max_memory
        if offload_folder is not None:
            options["offload_folder"] = str(offload_folder)
    elif quantize is not None or device != "cpu":
        options["device_map"] = {"": device}
    # transformers lists the layers that no tensor-parallel plan splits, on every load and for every model.
    logging.getLogger("transformers.distributed.tensor_parallel").setLevel(logging.ERROR)
    with no_needless_bars(folder):
        model = MostForCausalLM.from_pretrained(folder, **options).eval()
    if getattr(model, "is_quantized", False):
        _make_usable_on_cpu(model)
    return model


def choose_device(device: str) -> str:
    """What "auto" means here (the first GPU, else the CPU), or the device asked for if it is there."""
    device = str(device)
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = device.partition(":")[0]
    try:
        torch.device(device)
    except RuntimeError:
        kind = None
    if kind not in ("cpu", "cuda", "mps"):
        raise ValueError(f"unknown device {device!r}: use 'auto', 'cpu', 'cuda' or 'cuda:N'")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {device!r} was asked for, but torch finds no Apple GPU: use device='cpu'")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but torch sees no GPU: use device='cpu'")
    if kind == "cuda" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} was asked for, but there are {torch.cuda.device_count()} GPUs: use 'cuda:0'"
        )
    return device


def read_config(folder: Path) -> MostConfig:
    """The configuration of a checkpoint folder, or a one-line error."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"no config.json in {folder}: is this a MoST checkpoint folder?")
    data = read_json(path)
    if data.get("model_type") != "most":
        raise ValueError(
            f"{path} has model_type {data.get('model_type')!r}, not 'most': convert it with "
            "`python -m most_core.convert`"
        )
    try:
        return MostConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # strict fields, our checks and plain arithmetic each raise their own kind
        raise ValueError(f"{path} describes no model: {' '.join(str(error).split())}") from None


def check_weights(folder: Path, config: MostConfig) -> None:
    """Raise a one-line error for missing, truncated or misshapen weights, before any is loaded."""
    found: dict[str, tuple[int, ...]] = {}
    for shard in _shards(folder):
        if not shard.is_file():
            raise FileNotFoundError(f"shard {shard.name} is missing from {folder}: copy the checkpoint again")
        try:
            with safe_open(shard, framework="pt") as file:
                found.update({key: tuple(file.get_slice(key).get_shape()) for key in file.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{shard} is truncated or not a safetensors file ({error}): copy it again") from None
    if getattr(config, "quantization_config", None):
        return  # packed shapes; transformers checks them
    expected = expected_shapes(config)
    for name, shape in expected.items():
        if name not in found:
            raise ValueError(f"tensor {name} is missing from {folder}: the checkpoint is incomplete")
        if found[name] != shape:
            raise ValueError(
                f"tensor {name} in {folder} has shape {list(found[name])}, config.json asks for {list(shape)}: "
                "they do not belong together"
            )
    for name in found:
        if name not in expected and name.startswith("model.layers.") and "inv_freq" not in name:
            raise ValueError(f"config.json knows no tensor {name}, which is in {folder}: they do not belong together")


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{index} names no shards: copy the checkpoint again")
        return [folder / name for name in sorted(set(weight_map.values()))]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickles:
        raise ValueError(
            f"{folder} holds {pickles[0]}, a pickle, where safetensors are expected: convert it with "
            "`python -m most_core.convert` (a pickle can run code when opened)"
        )
    raise FileNotFoundError(f"no model.safetensors in {folder}: is the download complete?")


def expected_shapes(config: MostConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a checkpoint of this configuration, as they are on disk."""
    with torch.device("meta"):
        model = MostForCausalLM(config)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in model.state_dict().items():
        shape = tuple(tensor.shape)
        if name.endswith("experts.gate_up_proj"):
            for expert in range(shape[0]):
                for part in ("gate_proj", "up_proj"):
                    shapes[name.replace("gate_up_proj", f"{expert}.{part}.weight")] = (shape[1] // 2, shape[2])
        elif name.endswith("experts.down_proj"):
            for expert in range(shape[0]):
                shapes[name.replace("down_proj", f"{expert}.down_proj.weight")] = shape[1:]
        elif not (name == "lm_head.weight" and config.tie_word_embeddings):
            shapes[name] = shape
    return shapes


def _dtype(dtype: torch.dtype | str | None, device: str, config: MostConfig) -> torch.dtype:
    if isinstance(dtype, str):
        chosen = getattr(torch, dtype, None)
        if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
            raise ValueError(f"unknown dtype {dtype!r}: use 'float32', 'bfloat16' or 'float16'")
        return chosen
    if dtype is not None:
        return dtype
    if device != "cpu":
        return torch.bfloat16
    experts = 3 * config.n_routed_experts * config.moe_intermediate_size * config.hidden_size * len(config.moe_layers)
    return torch.bfloat16 if experts > LARGE else torch.float32


def _quantization(quantize: str, dtype: torch.dtype) -> Any:
    if quantize not in ("int8", "nf4"):
        raise ValueError(f"unknown quantization {quantize!r}: use 'int8', 'nf4' or None")
    from transformers import BitsAndBytesConfig  # imported late: bitsandbytes prints warnings and is slow to load

    skip = list(KEEP_PRECISE)
    if quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skip,
    )


def _make_usable_on_cpu(model: MostForCausalLM) -> None:
    """bitsandbytes' packed CPU kernel for nf4 takes only some widths; others go through its plain path. Its int8
    layers log a line per call."""
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu") and (module.out_features % 32 or module.in_features % 64):
            module.support_avx512bf16_for_cpu = False
