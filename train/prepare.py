"""`python -m train prepare`: recordings, conversations and texts become lessons, with what frozen ears make of them.

Shards are made by several workers in any order, and each is a function of the settings and its number alone; a command
that was stopped, or killed, continues with those that are not there yet.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from most_core.checkpoint_files import written_whole
from most_core.processing import load_tokenizer, train_small_tokenizer
from most_core.speech import SpeechEncoder
from train.config import RunOptions, claim, deadline
from train.data.augment import Augmentation, Augmenter
from train.data.lesson_maker import LessonMaker
from train.data.lessons import Form, describe_lessons, put_together, write_lessons
from train.data.shards import MANIFEST, write_manifest
from train.data.sources import Source, open_sources
from train.data.voices import Voice, check_engine
from train.files import sha256_of, whole_file
from train.progress import Progress
from train.stage_config import TASKS
from train.start import shape_of
from train.workers import agreed, run_workers, shown_by

TALKERS = 24  # whose babble is behind others
VOICE_PIECE = 500  # sentences whose units make a file
MOST_WORKERS = 64
DRY_TEXTS = 2000  # from which a dry run makes its tokenizer


@dataclass(frozen=True)
class Config:
    """What to learn from, for which model.

    `tasks`: folders and files for each of asr, tts, text, speech_instructions and text_instructions. asr and tts take
    shards of speech; text takes such shards, conversations, .txt (a document a line) and .jsonl ("text" of each line);
    instructions take conversations, from shards or JSON. `start`: the model's shape, a preset, whose settings `shape`
    changes, or a checkpoint folder.
    `tokenizer`: the folder of one, or null: the checkpoint's, or else one made from these texts. `voice` speaks the
    assistant's sentences that come without sound; null leaves them silent. `times`: how often the items of a path
    count, each time by other chance. `augmentation`: what happens to what users say on its way to the ears, once and
    for all; its babble are talkers of the first path that is heard. Lessons of more than `longest` tokens are
    left out, texts are cut.
    """

    tasks: dict[str, list[Path]]
    ears: Path = Path("runs/nano/ears")
    start: str = "nano"
    shape: dict[str, Any] = field(default_factory=dict)
    tokenizer: Path | None = None
    voice: Voice | None = field(default_factory=lambda: Voice("flite", "slt"))
    times: dict[str, int] = field(default_factory=dict)
    augmentation: Augmentation | None = None
    seed: int = 0  # of that
    longest: int = 1024
    lessons_per_shard: int = 1000

    def __post_init__(self) -> None:
        if strange := sorted(set(self.tasks) - set(TASKS)):
            raise ValueError(f"tasks.{strange[0]} is no setting; there are {', '.join(TASKS)}")
        if empty := [task for task, places in self.tasks.items() if not places]:
            raise ValueError(f"tasks.{empty[0]} is empty: give it a folder, or leave it out")
        if not self.tasks:
            raise ValueError(f"tasks is empty: give folders for some of {', '.join(TASKS)}")
        if least := [path for path, times in self.times.items() if times < 1]:
            raise ValueError(f"times.{least[0]} is {self.times[least[0]]}; expected 1 or more")
        for name, least in (("longest", 2), ("lessons_per_shard", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected {least} or more")


def run(config: Config, out: Path, options: RunOptions) -> int:
    """Fill `out` with a folder of lessons for each task, and the tokenizer they are in."""
    sources = open_sources(config.tasks, config.times)
    if config.voice is not None:
        check_engine(config.voice.engine)
    if options.dry_run:
        return _dry_run(config, sources)
    _maker(config, _tokenizer(config, iter(())), sources)  # refuses what does not fit together before `out` is claimed
    claim(out, config, fresh=options.fresh, made=("voice", "tokenizer", *TASKS), inputs=_inputs(config))
    _sweep(out)
    if not (out / "tokenizer").is_dir():
        with written_whole(out / "tokenizer") as partial:
            _tokenizer(config, _texts(sources)).save_pretrained(partial)
    run_workers(_work, MOST_WORKERS, config, out, replace(options, fresh=False))
    return 0 if all((out / task / MANIFEST).is_file() for task in sources) else 1


def _inputs(config: Config) -> dict[str, str]:
    """Digests of what lessons are made of: other ears or more speech at the same place must not mix with the old."""
    parts = [config.ears / "units.safetensors", config.ears / "speech_encoder" / "model.safetensors"]
    for path in (path for paths in config.tasks.values() for path in paths):
        parts.append(path / MANIFEST if path.is_dir() else path)
    return {str(path): sha256_of(path)[:16] for path in parts}


def _sweep(out: Path) -> None:
    """Remove what commands that were killed have left half-written."""
    for path in [*out.glob("*.unfinished"), *out.glob("*/*.unfinished"), *out.glob(".tokenizer.*.partial")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _tokenizer(config: Config, texts: Iterator[str]) -> PreTrainedTokenizerBase:
    """The tokenizer given, or one made from these texts."""
    given = config.tokenizer or (Path(config.start) if Path(config.start).is_dir() else None)
    if given is not None:
        return load_tokenizer(given)
    return train_small_tokenizer(texts, shape_of(config.start, config.shape))


def _maker(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    sources: Mapping[str, Sequence[Source]],
    device: torch.device | str = "cpu",
) -> LessonMaker:
    encoder = SpeechEncoder.load(config.ears, device)
    augmenter = None
    if config.augmentation is not None:
        augmenter = Augmenter(config.augmentation, _talkers(sources), config.seed)
    return LessonMaker(shape_of(config.start, config.shape), tokenizer, encoder, config.longest, augmenter)


def _talkers(sources: Mapping[str, Sequence[Source]]) -> list[np.ndarray]:
    """Some of those who are heard, from one end of the first source to the other."""
    heard = next((task for task in ("asr", "speech_instructions") if task in sources), None)
    if heard is None:
        return []
    source = sources[heard][0]
    items = [source.item(place) for place in range(0, source.count, max(1, source.count // TALKERS))]
    waves = [each.wave for item in items for turn in item.turns if turn.role == "user" for each in turn.stretches]
    return [wave for wave in waves if wave is not None]


def _texts(sources: Mapping[str, Sequence[Source]]) -> Iterator[str]:
    return (text for opened in sources.values() for source in opened for text in source.texts())


def _work(rank: int, workers: int, device: torch.device, config: Config, out: Path, options: RunOptions) -> None:
    """One process: its share of the units of the assistant's voice, and when all are there, of the lessons."""
    late, sources = deadline(options.minutes), open_sources(config.tasks, config.times)
    maker = _maker(config, load_tokenizer(out / "tokenizer"), sources, device)
    pieces = _voice_pieces(sources) if config.voice is not None else []

    def speak(piece: int) -> None:
        path = _voice_file(out, piece)
        if not path.is_file():
            units = [maker.spoken_by(config.voice, sentence) for sentence in pieces[piece]]
            with whole_file(path) as file:
                np.savez(file, units=np.concatenate(units), counts=[len(each) for each in units])

    shards = [(task, number) for task in sources for number in range(_shards(config, sources[task]))]

    def make(shard: tuple[str, int]) -> None:
        task, number = shard
        path = out / task / f"lessons-{number:05}.arrow"
        if not path.is_file():
            places = ((source, index) for source in sources[task] for index in range(source.count))
            mine = islice(places, number * config.lessons_per_shard, (number + 1) * config.lessons_per_shard)
            items = (source.item(index) for source, index in mine)
            write_lessons(path, maker.lessons(task, items, (config.seed, TASKS.index(task), number)))

    if not _shared("voice", range(len(pieces)), speak, rank, workers, late):
        return
    maker.said = _read_voice(out, pieces)
    if _shared("lessons", shards, make, rank, workers, late) and rank == 0:
        for task, opened in sources.items():
            _finish(config, task, _shards(config, opened), out / task)


def _shared(
    title: str, work: Sequence[Any], do: Callable[[Any], None], rank: int, workers: int, late: Callable[[], bool]
) -> bool:
    """Do this worker's part of some work, and wait for the others; False if time ran out for anybody."""
    mine, stop = work[rank::workers], False
    with Progress(None, len(mine), title=title, unit="file", stream=shown_by(rank)) as bar:
        for place, each in enumerate(mine):
            stop = late()
            if stop:
                break
            do(each)
            bar.update(place)
        stop = agreed(stop, workers)
        if stop:
            bar.note("stopped before all was prepared; the same command continues")
    return not stop


def _voice_pieces(sources: Mapping[str, Sequence[Source]]) -> list[list[str]]:
    """The distinct sentences that the assistant's voice has to speak, in files' worths."""
    sentences = {text for opened in sources.values() for source in opened for text in source.unsaid() if text.strip()}
    ordered = sorted(sentences)
    return [ordered[start : start + VOICE_PIECE] for start in range(0, len(ordered), VOICE_PIECE)]


def _read_voice(out: Path, pieces: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """Sentence -> units, of those that could be spoken."""
    said = {}
    for number, sentences in enumerate(pieces):
        with np.load(_voice_file(out, number)) as content:
            units = np.split(content["units"], np.cumsum(content["counts"])[:-1])
        said |= {sentence: each for sentence, each in zip(sentences, units) if len(each)}
    return said


def _voice_file(out: Path, number: int) -> Path:
    return out / "voice" / f"voice-{number:05}.npz"


def _shards(config: Config, sources: Sequence[Source]) -> int:
    return -(-sum(source.count for source in sources) // config.lessons_per_shard)


def _finish(config: Config, task: str, shards: int, folder: Path) -> None:
    """Write the manifest, once all shards are there."""
    if (folder / MANIFEST).is_file():
        return
    infos = [describe_lessons(folder / f"lessons-{number:05}.arrow") for number in range(shards)]
    units = sha256_of(config.ears / "units.safetensors")
    sources = [str(path) for path in config.tasks[task]]
    write_manifest(folder, infos, {"command": "prepare", "task": task, "sources": sources, "units_sha256": units})
    rows, hours = sum(info.rows for info in infos), sum(info.seconds for info in infos) / 3600
    print(f"{task}: {rows} lessons, {hours:.2f} hours, {sum(info.bytes for info in infos) / 1e6:.0f} MB", flush=True)


def _dry_run(config: Config, sources: Mapping[str, Sequence[Source]]) -> int:
    """Show what there is, and the first lesson of each task."""
    tokenizer = _tokenizer(config, islice(_texts(sources), DRY_TEXTS))
    maker = _maker(config, tokenizer, sources)
    for task, opened in sources.items():
        print(f"{task}: {sum(source.count for source in opened)} items in {', '.join(str(s.path) for s in opened)}")
        for lesson in maker.lessons(task, [next(source for source in opened if source.count).item(0)]):
            said = int(put_together(lesson, Form(), maker.processor.tokens).targets.sum())
            spelled = tokenizer.decode(lesson.ids.tolist()).replace("\n", " ")
            print(f"  {lesson.tokens} tokens, {said} of them to be said: {spelled[:200]}")
    return 0
