"""`python -m most_core.convert deepseek|upstream|hubert|units|vocoder SRC DST`: bring in other people's checkpoints.

deepseek  DeepSeek-V2(-Lite) folder          -> a MoST folder: decoder, projector and tokenizer
upstream  the public MoST code's checkpoint  -> the same
hubert    fairseq or transformers HuBERT     -> DST/speech_encoder
units     k-means centroids                  -> DST/units.safetensors
vocoder   unit HiFi-GAN (CodeGenerator)      -> DST/vocoder

Decoders are copied tensor by tensor, never held in memory whole. A failed conversion leaves nothing behind.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import AddedToken, Tokenizer
from transformers import GenerationConfig

from most_core import convert_speech
from most_core.checkpoint_files import ShardWriter, check_shapes, load_weights, read_json, weight_files, written_whole
from most_core.config import UNIT_TOKEN, MostConfig, TokenTable
from most_core.model import MostForCausalLM
from most_core.processing import DEEPSEEK_CHAT_TEMPLATE

MAX_SHARD_BYTES = 2 * 1024**3
VOCAB_MULTIPLE = 64  # a vocabulary that must grow grows to a multiple of this
PROJECTOR, EMBEDDING = "model.speech_projector", "model.embed_tokens.weight"
DECODER = ("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.", PROJECTOR + ".")
VOCAB_ROWS = (EMBEDDING, "lm_head.weight")
STATE_DICT_KEYS = ("state_dict", "model", "module")
NEW_ROW_NOISE = 0.5  # of the text rows' standard deviation

# Of the source's config.json: what describes its files or its code rather than the model.
FOREIGN_SETTINGS = ("model_type", "architectures", "auto_map", "token_table", "transformers_version", "_name_or_path")


# -- names -------------------------------------------------------------------------------------------------------------


def read_upstream_state(model: MostForCausalLM, state: Mapping[str, torch.Tensor]) -> MostForCausalLM:
    """Copy a state dict in DeepSeek's per-expert names into a model of either expert layout, and return the model.

    The speech projector may be absent (the model keeps its own), tensors outside the decoder are ignored; anything
    else that is missing, unexpected or of another shape raises a ValueError.
    """
    decoder = {name: tensor for name, tensor in state.items() if is_decoder_tensor(name)}
    check_decoder(model, {name: tuple(tensor.shape) for name, tensor in decoder.items()}, "state dict")
    own = per_expert_tensors(model)
    with torch.no_grad():
        for name, tensor in decoder.items():
            own[name].copy_(tensor)
    return model


def check_decoder(model: MostForCausalLM, found: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise unless `found`, shapes by per-expert name, are the model's, but for the projector or a tied head."""
    expected = {name: tuple(tensor.shape) for name, tensor in per_expert_tensors(model).items()}
    if _lacks_projector(found):
        expected = {name: shape for name, shape in expected.items() if not name.startswith(PROJECTOR)}
    if model.config.tie_word_embeddings and "lm_head.weight" not in found:
        expected.pop("lm_head.weight", None)
    check_shapes(expected, found, where)


def per_expert_tensors(model: MostForCausalLM) -> dict[str, torch.Tensor]:
    """The model's own tensors under DeepSeek's per-expert names; of fused experts, views of their parts."""
    parts: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        experts, _, fused = name.rpartition(".")
        if fused == "gate_up_proj":
            for e, gate_up in enumerate(tensor):
                parts[f"{experts}.{e}.gate_proj.weight"], parts[f"{experts}.{e}.up_proj.weight"] = gate_up.chunk(2)
        elif fused == "down_proj":
            parts |= {f"{experts}.{e}.down_proj.weight": down for e, down in enumerate(tensor)}
        else:
            parts[name] = tensor
    return parts


def is_decoder_tensor(name: str) -> bool:
    """Whether this is the decoder's or its projector's (old files also store rotary tables, which we compute)."""
    return name.startswith(DECODER) and not name.endswith("rotary_emb.inv_freq")


def _lacks_projector(names: Iterable[str]) -> bool:
    return not any(name.startswith(PROJECTOR) for name in names)


# -- decoders ----------------------------------------------------------------------------------------------------------


@dataclass
class Source:
    """A decoder's weight files, and what they call the linear layer that becomes our speech projector."""

    path: Path
    projector: str = PROJECTOR

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor under our name for it, file by file."""
        for file in weight_files(self.path):
            for name, tensor in load_weights(file, *STATE_DICT_KEYS).items():
                stem, _, end = name.rpartition(".")
                yield f"{PROJECTOR}.{end}" if stem == self.projector else name, tensor


def deepseek(
    src: str | Path, dst: str | Path, seed: int = 0, num_units: int = 500, speech_feature_size: int = 768
) -> list[str]:
    """Turn a DeepSeek-V2 folder into a MoST folder; returns report lines.

    The first half of the experts becomes text's, the second audio's. All units and markers are new tokens, with new
    rows (`with_new_rows`), and the speech projector is drawn from `seed`.
    """
    src, dst = Path(src), Path(dst)
    settings = read_json(_existing(src / "config.json"))
    if settings.get("model_type") != "deepseek_v2":
        raise ValueError(
            f"{src / 'config.json'} has model_type {settings.get('model_type')!r}, expected 'deepseek_v2': "
            "for a checkpoint of the public MoST code use the command upstream"
        )
    settings["speech_feature_size"] = speech_feature_size
    with written_whole(dst) as folder:
        table = _begin_folder(src, folder, num_units)
        return _write_decoder(Source(src), folder, settings, table, table.first_unit, seed)


def upstream(
    src: str | Path,
    dst: str | Path,
    seed: int = 0,
    num_units: int = 500,
    speech_feature_size: int = 768,
    projector: str = PROJECTOR,
    config: str | Path | None = None,
) -> list[str]:
    """Turn a checkpoint of the public MoST code (a folder or a weight file) into a MoST folder; returns report lines.

    `projector` is the name there of the linear layer that becomes the speech projector. Units and the four begin/end
    markers keep their rows; only our own tokens after them get new ones. `config` is config.json if it is not in the
    folder of the weights; tokenizer files are looked for beside it.
    """
    src, dst = Path(src), Path(dst)
    config = Path(config or (src if src.is_dir() else src.parent) / "config.json")
    settings = read_json(_existing(config))
    settings["speech_feature_size"] = speech_feature_size
    with written_whole(dst) as folder:
        table = _begin_folder(config.parent, folder, num_units)
        return _write_decoder(Source(src, projector), folder, settings, table, table.frame, seed)


def _begin_folder(home: Path, folder: Path, num_units: int) -> TokenTable:
    folder.mkdir()
    if (home / "generation_config.json").is_file():
        shutil.copy(home / "generation_config.json", folder)
    # DeepSeek's own template knows no speech; ours renders text the same.
    (folder / "chat_template.jinja").write_text(DEEPSEEK_CHAT_TEMPLATE)
    return write_tokenizer(home, folder, num_units)


def _write_decoder(
    source: Source, folder: Path, settings: dict[str, Any], table: TokenTable, first_new: int, seed: int
) -> list[str]:
    shapes = {name: tuple(tensor.shape) for name, tensor in source.tensors()}
    skipped = [name for name in shapes if not is_decoder_tensor(name)]
    shapes = {name: shape for name, shape in shapes.items() if is_decoder_tensor(name)}
    new_projector = _lacks_projector(shapes)
    if new_projector and source.projector != PROJECTOR:
        raise ValueError(f"{source.path} holds no tensor {source.projector}.weight: check the projector's name")

    settings = {key: value for key, value in settings.items() if key not in FOREIGN_SETTINGS}
    if len(shape := shapes.get(f"{PROJECTOR}.weight", ())) == 2:
        settings["speech_feature_size"] = shape[1]
    with torch.device("meta"):
        old_model = MostForCausalLM(_config(settings))
    check_decoder(old_model, shapes, str(source.path))
    if table.size > old_model.config.vocab_size:
        settings["vocab_size"] = -(-table.size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    config = _config({**settings, "token_table": vars(table), "architectures": ["MostForCausalLM"]})

    generator = torch.Generator().manual_seed(seed)
    writer = ShardWriter(folder, MAX_SHARD_BYTES)
    for name, tensor in source.tensors():
        if name not in shapes:
            continue
        if name in VOCAB_ROWS:
            tensor = with_new_rows(tensor, table, first_new, config.vocab_size, generator)
        if name == EMBEDDING:
            config.dtype = tensor.dtype
        if name == EMBEDDING and new_projector:
            for end, value in _new_projector(config, tensor[: table.first_unit], generator).items():
                writer.add(f"{PROJECTOR}.{end}", value)
        writer.add(name, tensor)
    writer.close()

    config.save_pretrained(folder)
    if not (folder / "generation_config.json").is_file():
        GenerationConfig.from_model_config(config).save_pretrained(folder)
    return [
        f"{len(shapes)} tensors, {len(config.moe_layers)} MoE layers of {config.n_routed_experts} experts",
        f"text tokens 0..{table.first_unit - 1}, new rows from {first_new}, vocabulary {config.vocab_size}",
        f"speech projector: {'new' if new_projector else 'from ' + source.projector}",
        *(f"skipped {name}" for name in skipped),
    ]


def _config(settings: dict[str, Any]) -> MostConfig:
    try:
        return MostConfig(**settings)
    except StrictDataclassError as error:
        raise ValueError(f"config.json: {' '.join(str(error).split())}") from None


def with_new_rows(
    rows: torch.Tensor, table: TokenTable, first_new: int, vocab_size: int, generator: torch.Generator
) -> torch.Tensor:
    """Embedding or head rows [V, H] grown to `vocab_size`, those of new tokens made like an average text token.

    A new row is the text rows' mean, which gives a new token an average logit, plus half of their standard deviation
    as noise, which tells the new tokens apart; its length is brought to where 9 of 10 text rows lie.
    """
    text = rows[: table.first_unit].float()
    grown = torch.cat([rows, rows.new_zeros(max(0, vocab_size - len(rows)), rows.shape[1])])
    new = sorted({*range(first_new, table.size), *range(len(rows), vocab_size)})
    noise = torch.randn(len(new), rows.shape[1], generator=generator)
    values = text.mean(0) + NEW_ROW_NOISE * text.std(0) * noise
    low, high = text.norm(dim=1).quantile(torch.tensor([0.05, 0.95]))
    length = values.norm(dim=1, keepdim=True)
    grown[new] = (values * length.clamp(low, high) / length).to(rows.dtype)
    return grown


def _new_projector(config: MostConfig, text_rows: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random weights that turn features of variance 1 into vectors as large as a text token's embedding."""
    weight = torch.randn(config.hidden_size, config.speech_feature_size, generator=generator)
    weight *= text_rows.float().std() * config.speech_feature_size**-0.5
    return {"weight": weight.to(text_rows.dtype), "bias": text_rows.new_zeros(config.hidden_size)}


def write_tokenizer(src: Path, dst: Path, num_units: int) -> TokenTable:
    """Copy a tokenizer with the units and markers added as special tokens; returns their ids.

    Units follow the last id in use, or keep their place if the tokenizer knows them. Other ids than the table's
    raise: the rows of the decoder could not match.
    """
    _existing(src / "tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(src / "tokenizer.json"))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{src / 'tokenizer.json'} is no tokenizer: {error}") from None
    known = tokenizer.token_to_id(UNIT_TOKEN.format(0))
    table = TokenTable.after(tokenizer.get_vocab_size() if known is None else known, num_units)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in table.spellings()])
    for expected, text in enumerate(table.spellings(), table.first_unit):
        if (found := tokenizer.token_to_id(text)) != expected:
            raise ValueError(
                f"{src / 'tokenizer.json'} gives {text} the id {found}, expected {expected}: "
                f"its ids must be 0..{table.first_unit - 1} without gaps, and none of them a unit or marker"
            )
    tokenizer.save(str(dst / "tokenizer.json"))

    path = src / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    for name in ("added_tokens_decoder", "auto_map", "chat_template"):  # tokenizer.json and our template say it all
        settings.pop(name, None)
    # The class that takes tokenizer.json as it is; LlamaTokenizer, which DeepSeek names, would rebuild it.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (dst / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False, indent=1) + "\n")
    return table


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: it belongs to the checkpoint")
    return path


# -- command line ------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 with a report, or 2 with one line on stderr."""
    args = vars(_parser().parse_args(argv))
    command = args.pop("command")
    commands = {
        "deepseek": deepseek,
        "upstream": upstream,
        "hubert": convert_speech.hubert,
        "units": convert_speech.units,
        "vocoder": convert_speech.vocoder,
    }
    try:
        report = commands[command](**args)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join([*report, f"written to {args['dst']}"]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m most_core.convert",
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("deepseek", "upstream"):
        command = _command(commands, name)
        command.add_argument("--seed", type=int, default=0, help="of the new rows and the new projector")
        command.add_argument("--num-units", type=int, default=500)
        command.add_argument("--speech-feature-size", type=int, default=768, help="width of the speech encoder")
    command.add_argument("--projector", default=PROJECTOR, help="name of the tensors that project speech features")
    command.add_argument("--config", type=Path, help="config.json, if it is not beside SRC")

    command = _command(commands, "hubert")
    command.add_argument("--strides", type=_numbers, help="of the convolutions, as 5,2,2,2,2,2,2,2")
    command.add_argument("--heads", type=int, help="of attention; default: one for each 64 dimensions")
    command.add_argument("--normalize", action=argparse.BooleanOptionalAction, help="waveforms to variance 1")
    command = _command(commands, "units")
    command.add_argument("--layer", type=int, required=True, help="encoder layer they were clustered on")
    command.add_argument("--rate-hz", type=int, default=25)
    command = _command(commands, "vocoder", "config_json")
    return parser


def _command(commands: Any, name: str, *more: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name)
    for argument in ("src", *more, "dst"):
        command.add_argument(argument, type=Path, metavar=argument.upper())
    return command


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a stopped conversion cleans up
    sys.exit(main())
