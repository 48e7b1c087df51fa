"""`python -m train corpus`: a corpus of recordings becomes shards, its missing transcripts recovered."""

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
from train.recognizer import words_of_all

GIVEN, POCKETSPHINX = "given", "pocketsphinx"
SURE, SURE_POCKETSPHINX = 0.9, 0.6  # least confidence of a word to be believed: of ours, and of PocketSphinx's


@dataclass(frozen=True)
class Config:
    """Which corpus, where it is, and who wrote down what is said in it.

    `transcripts`: "given" by the corpus; a JSON file {id: text}; "pocketsphinx"; or a folder with a speech encoder of
    ours. These two find the likeliest wording of coffee orders, of which only the slots are written down, and of other
    recordings the stretches whose words they believe with at least `sure`, 0..1: if it is not given, .6 for
    PocketSphinx and .9 for an encoder.
    """

    kind: str = "folder"
    location: str = "."
    split: str = "train"
    transcripts: str = GIVEN
    sure: float | None = None
    utterances_per_shard: int = 2000

    def __post_init__(self) -> None:
        if self.sure is not None and not 0 <= self.sure <= 1:
            raise ValueError(f"sure is {self.sure}; expected a confidence, 0..1")


def run(config: Config, out: Path, options: RunOptions) -> int:
    """Write the corpus into `out`, which is replaced as a whole once everything is there."""
    utterances = read(config.kind, config.location, config.split)
    if options.dry_run:
        for item in islice(utterances, 10):
            print(f"{item.id:40} {item.speaker:20} {len(item.wave) / SAMPLE_RATE:5.1f} s  {item.text or '(no text)'}")
        return 0
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    written_down = transcribed(utterances, config.transcripts, config.sure)
    shards = []
    while batch := list(islice(written_down, config.utterances_per_shard)):
        path = unfinished / f"speech-{len(shards):05}.arrow"
        write_shard(path, batch)
        shards.append(describe_shard(path))
    if not shards:
        raise ValueError(f"{config.location} gives no utterance of kind {config.kind} and split {config.split}")
    write_manifest(unfinished, shards, {"command": "corpus", **asdict(config)})
    shutil.rmtree(out, ignore_errors=True)
    unfinished.rename(out)
    hours = sum(shard.seconds for shard in shards) / 3600
    print(f"{sum(shard.rows for shard in shards)} utterances, {hours:.2f} hours in {out}")
    return 0


def transcribed(utterances: Iterable[Utterance], source: str, sure: float | None = None) -> Iterator[Utterance]:
    """The utterances with the texts that `source` (see `Config.transcripts`) has for them, and no others."""
    if source == GIVEN:
        yield from utterances
        return
    items = list(utterances)
    texts: Mapping[str, str]
    if Path(source).suffix == ".json":
        texts = json.loads(Path(source).read_text(encoding="utf-8"))
    elif all(isinstance(item, OrderClip) for item in items):
        texts = _orders(items, source)
    else:
        yield from _sure_parts(items, source, sure)
        return
    for item in items:
        if item.id in texts:
            plain = {name: getattr(item, name) for name in Utterance.__dataclass_fields__}
            yield Utterance(**{**plain, "text": texts[item.id]})


def _orders(items: list[OrderClip], source: str) -> dict[str, str]:
    if source == POCKETSPHINX:
        found = pocketsphinx_transcripts(items)
    else:
        encoder = SpeechEncoder.load(source, units_needed=False)
        found = transcripts(items, encoder.letter_log_probs, encoder.ctc.vocab)
    return {name: transcript.text for name, transcript in found.items()}


def _sure_parts(items: list[Utterance], source: str, sure: float | None) -> Iterator[Utterance]:
    if source == POCKETSPHINX:
        sure = SURE_POCKETSPHINX if sure is None else sure
        return pseudo_labelled(items, words_of_all([item.wave for item in items]), sure)
    encoder = SpeechEncoder.load(source, units_needed=False)
    return pseudo_labelled(items, (encoder.words(item.wave) for item in items), SURE if sure is None else sure)
