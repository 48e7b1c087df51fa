"""`python -m train prepare`: a corpus of recordings becomes shards, its missing transcripts recovered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from most_core.speech import SAMPLE_RATE, SpeechEncoder
from train.config import RunOptions
from train.data.orders import pocketsphinx_transcripts, transcripts
from train.data.pseudo_labels import pseudo_labelled
from train.data.readers import OrderClip, read
from train.data.shards import describe_shard, write_manifest, write_shard
from train.data.utterance import Utterance

GIVEN, POCKETSPHINX = "given", "pocketsphinx"


@dataclass(frozen=True)
class Config:
    """Which corpus, where it is, and who wrote down what is said in it.

    `transcripts`: "given" by the corpus; a JSON file {id: text}; or a folder with a speech encoder of ours. The last
    finds the likeliest wording of coffee orders, of which only the slots are written down (as "pocketsphinx" does, for
    want of an encoder), and of other recordings the stretches that it is sure of.
    """

    kind: str = "folder"
    location: str = "."
    split: str = "train"
    transcripts: str = GIVEN
    utterances_per_shard: int = 2000


def run(config: Config, out: Path, options: RunOptions) -> int:
    """Write the corpus into `out`, which is replaced as a whole once everything is there."""
    utterances = read(config.kind, config.location, config.split)
    if options.dry_run:
        for item in islice(utterances, 10):
            print(f"{item.id:40} {item.speaker:20} {len(item.wave) / SAMPLE_RATE:5.1f} s  {item.text or '(no text)'}")
        return 0
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    written_down = transcribed(utterances, config.transcripts)
    shards = []
    while batch := list(islice(written_down, config.utterances_per_shard)):
        path = unfinished / f"speech-{len(shards):05}.arrow"
        write_shard(path, batch)
        shards.append(describe_shard(path))
    if not shards:
        raise ValueError(f"{config.location} gives no utterance of kind {config.kind} and split {config.split}")
    write_manifest(unfinished, shards, {"command": "prepare", **asdict(config)})
    shutil.rmtree(out, ignore_errors=True)
    unfinished.rename(out)
    hours = sum(shard.seconds for shard in shards) / 3600
    print(f"{sum(shard.rows for shard in shards)} utterances, {hours:.2f} hours in {out}")
    return 0


def transcribed(utterances: Iterable[Utterance], source: str) -> Iterator[Utterance]:
    """The utterances with the texts that `source` (see `Config.transcripts`) has for them, and no others."""
    if source == GIVEN:
        yield from utterances
        return
    items = list(utterances)
    orders = [item for item in items if isinstance(item, OrderClip)]
    texts: Mapping[str, str]
    if Path(source).suffix == ".json":
        texts = json.loads(Path(source).read_text(encoding="utf-8"))
    elif source == POCKETSPHINX:
        texts = {name: found.text for name, found in pocketsphinx_transcripts(orders).items()}
    else:
        encoder = SpeechEncoder.load(source, units_needed=False)
        if len(orders) < len(items):
            yield from pseudo_labelled(items, encoder.words)
            return
        spellings = transcripts(orders, encoder.letter_log_probs, encoder.ctc.vocab)
        texts = {name: found.text for name, found in spellings.items()}
    for item in items:
        if item.id in texts:
            plain = {name: getattr(item, name) for name in Utterance.__dataclass_fields__}
            yield Utterance(**{**plain, "text": texts[item.id]})
