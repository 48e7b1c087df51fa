"""`python -m train export`: decoder, ears and mouth become one folder to load, with a model card."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

import most_core
from most_core.checkpoint_files import read_json, written_whole
from most_core.config import MostConfig
from train.config import RunOptions
from train.data.lessons import Lessons
from train.data.shards import MANIFEST

NAMED = 4  # voices and corpora named in a line of the card
SPEECH_PARTS = ("speech_encoder", "units.safetensors", "unit_reader.safetensors")


@dataclass(frozen=True)
class Config:
    """What goes into the folder.

    `model`: what a stage left. `ears` and `mouth`: the folders whose encoder, units and vocoder it was trained with; a
    model without `mouth` only writes. `lessons`: what the stages learned from, for the card. `title` heads the card.
    `longest_reply`: tokens after which a reply is cut where nothing else is asked for, sound included.
    """

    model: Path = Path("runs/nano/stage2/model")
    ears: Path = Path("runs/nano/ears")
    mouth: Path | None = Path("runs/nano/mouth")
    lessons: list[Path] | None = None
    title: str = "MoST"
    longest_reply: int = 1024

    def __post_init__(self) -> None:
        if self.longest_reply < 1:
            raise ValueError(f"longest_reply is {self.longest_reply}: it must be at least 1")


def run(config: Config, out: Path, options: RunOptions) -> int:
    """Write `out`, which must be new or empty (`--fresh` replaces it), once all its parts are known to fit."""
    for folder, needed in ((config.model, "model.safetensors*"), (config.ears, "units.safetensors")):
        if not any(folder.glob(needed)):
            raise FileNotFoundError(f"{folder} has no {needed.rstrip('*')}: train it first")
    if config.mouth is not None and not (config.mouth / "vocoder").is_dir():
        raise FileNotFoundError(f"{config.mouth} has no vocoder: train it first, or say mouth=null")
    text = card(config)
    if options.dry_run:
        print(text)
        return 0
    if options.fresh and out.is_dir() and not (out / "config.json").is_file():
        raise ValueError(f"{out} is no model: --fresh replaces an earlier export only")
    made = out.with_name(f"{out.name}.new") if options.fresh else out
    if options.fresh:
        shutil.rmtree(made, ignore_errors=True)
    with written_whole(made) as partial:
        shutil.copytree(config.model, partial)
        limits = GenerationConfig.from_pretrained(config.model)
        limits.max_new_tokens = config.longest_reply
        limits.save_pretrained(partial)
        for name in SPEECH_PARTS:
            part = config.ears / name
            if part.is_dir():
                shutil.copytree(part, partial / name)
            elif part.is_file():
                shutil.copyfile(part, partial / name)
        if config.mouth is not None:
            shutil.copytree(config.mouth / "vocoder", partial / "vocoder")
        (partial / "README.md").write_text(text, encoding="utf-8")
        if config.lessons:
            (partial / "data.json").write_text(json.dumps(data_of(config.lessons), indent=1) + "\n", encoding="utf-8")
        most_core.load(partial, device="cpu")  # refuses parts that do not belong together
    if options.fresh:
        shutil.rmtree(out, ignore_errors=True)
        made.rename(out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    print(f"{out}: {size:.1f} MB; talk to it with `python app.py --model {out}`")
    return 0


def card(config: Config) -> str:
    """The model card: what it is, what it learned from and under which licences."""
    shape = MostConfig.from_pretrained(config.model)
    text_experts, audio_experts = (len(group) for group in shape.expert_groups()[0]) if shape.uses_experts else (0, 0)
    lines = [
        "---",
        "library_name: most",
        "language: en",
        "tags: [speech, mixture-of-experts, spoken-dialogue]",
        "---",
        "",
        f"# {config.title}",
        "",
        f"A MoST of {shape.num_hidden_layers} layers, {shape.hidden_size} wide, with {text_experts} text experts and "
        f"{audio_experts} audio experts in each of {len(shape.moe_layers)} layers, of which a token meets "
        f"{shape.num_experts_per_tok}, and {shape.n_shared_experts} shared. It hears {shape.audio_rate_hz} features a "
        f"second and speaks in {shape.tokens.num_units} units.",
        "",
        "```python",
        "import most_core",
        "",
        'reply = most_core.load("this folder").answer(waveform)  # reply.heard, reply.text, reply.waveform',
        "```",
        "",
    ]
    if config.lessons:
        lines += [
            "## What it learned from",
            "",
            "| task | spoken or written by | licence | lessons |",
            "|---|---|---|---|",
        ]
        for task, source, licence, count in _origins(config.lessons, shape.speech_feature_size):
            lines.append(f"| {task.replace('_', ' ')} | {source} | {licence} | {count:,} |")
        lines.append("")
    lines += [
        "## Figures",
        "",
        "`python -m train evaluate ears --model FOLDER --out FOLDER/figures.json` measures the ears, `evaluate mouth` "
        "the mouth.",
        "",
    ]
    return "\n".join(lines)


def data_of(folders: Sequence[Path]) -> dict[str, Any]:
    """The speech and texts that lessons were made of, by folder: the settings that make each again, and digests to
    compare with. Places outside of the project are named by their last folder alone."""
    found: dict[str, Any] = {}
    for lessons in sorted(path for folder in folders for path in folder.glob(f"*/{MANIFEST}")):
        for source in read_json(lessons)["generator"].get("sources", ()):
            path = Path(source) / MANIFEST
            if not path.is_file():
                raise FileNotFoundError(f"{lessons} names {source}, which has no {MANIFEST}: keep what lessons are of")
            manifest = read_json(path)
            shards, generator = manifest["shards"], dict(manifest["generator"])
            if "location" in generator:
                generator["location"] = Path(generator["location"]).name
            digests = "".join(shard["sha256"] for shard in shards)
            made = {
                "lessons": [],
                "generator": generator,
                "rows": sum(shard["rows"] for shard in shards),
                "hours": round(sum(shard["seconds"] for shard in shards) / 3600, 2),
                "sha256": hashlib.sha256(digests.encode()).hexdigest(),
            }
            found.setdefault(source, made)["lessons"].append(lessons.parent.name)
    return found


def _origins(folders: list[Path], feature_size: int) -> list[tuple[str, str, str, int]]:
    """(task, where from, licence, lessons) of all lessons."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for folder in folders:
        manifests = sorted(folder.glob(f"*/{MANIFEST}"))
        if not manifests:
            raise FileNotFoundError(f"lessons: {folder} holds none: give what `prepare` left")
        for manifest in manifests:
            lessons = Lessons(manifest.parent, feature_size)
            counts.update(zip(*(lessons.column(name) for name in ("task", "licence", "source"))))
    rows = []
    for task, licence in sorted({(task, licence) for task, licence, _ in counts}):
        mine = sorted(((n, source) for (*key, source), n in counts.items() if key == [task, licence]), reverse=True)
        named = "; ".join(source for _, source in mine[:NAMED])
        more = f" and {len(mine) - NAMED} more" if len(mine) > NAMED else ""
        rows.append((task, named + more, licence, sum(n for n, _ in mine)))
    return rows
