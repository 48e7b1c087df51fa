"""`python -m train evaluate ears`: how well a speech encoder hears, clean and in noise, and how fast it is.

Judged are the words that its CTC head hears, found by a dictionary and a trigram where the checkpoint has them, as
captions show them (`ctc_wer_SET`), the same words as the letters spell them (`spelled_wer_SET`), and those that a small
reader spells from its units alone (`unit_wer_SET`): of voices like those of training (`seen`), of two kept out of it
(`unseen`), and of people ordering coffee (`human`; `slot_wer_human` counts the words of their orders' slots alone).
Further words of a name say which part of the set (`_questions`, `_rms`), or which noise (`_snr_10`) is meant. Every
set's `n` is in utterances.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from most_core.loading import choose_device
from most_core.speech import SAMPLE_RATE, WORDS, SpeechEncoder, Word, spelled
from train.config import RunOptions
from train.data import noise, orders, test_sets
from train.data.readers import OrderClip
from train.data.test_sets import FOLDER, SETS, Unavailable
from train.data.utterance import Utterance, spoken_letters
from train.progress import Progress
from train.scoreboard import Scoreboard
from train.unit_reader import FILE as READER_FILE
from train.unit_reader import UnitReader
from train.word_errors import verbatim_errors, word_errors

SNRS = (20, 10, 5)
SEED = 5
TALKERS = 16  # of a cafe, chosen for each utterance anew
TIMED, ROUNDS = 20, 7
TIMED_SECONDS = (2.0, 6.0)

Errors = tuple[np.ndarray, np.ndarray]  # of each utterance: word errors, words


@dataclass(frozen=True)
class Spoken:
    """A test set. `texts` are what was said, None where nobody knows; `parts` the rows of what is told apart."""

    name: str
    utterances: list[Utterance]
    texts: list[str | None]
    parts: dict[str, np.ndarray]


def run(
    model: Path,
    as_json: bool,
    options: RunOptions,
    data: Path | None = None,
    only: Sequence[str] | None = None,
    human: Path | None = None,
    out: Path | None = None,
) -> int:
    """Measure the encoder in the folder `model` and print the figures; 0 once that is done.

    `data` keeps the synthesized test sets, `human` holds the recorded orders, `only` names sets, `out` is the
    `figures.json` to put the figures into.
    """
    if unknown := sorted(set(only or ()) - set(SETS)):
        raise ValueError(f"--only {unknown[0]}: there is no such test set; choose from {', '.join(SETS)}")
    if out and not out.parent.is_dir():
        raise FileNotFoundError(f"--out {out}: {out.parent} is no folder; make it first")
    board = Scoreboard("ears")
    encoder = SpeechEncoder.load(model, choose_device(options.device), units_needed=False)
    if encoder.ctc is None:
        raise ValueError(f"{model} has no CTC head (speech_encoder/ctc.safetensors): it spells no words to judge")
    reader = _unit_reader(model, encoder, board)
    sets, talkers = _load_sets(only or SETS, data or FOLDER, human, options.threads or 2, board)
    if encoder.ctc.search is None:
        board.notes.append(
            f"ctc_wer_* is of letters as they are spelled: {model / 'speech_encoder' / WORDS} is not there"
        )
    for spoken in sets:
        board.figures[f"n_{spoken.name}"] = len(spoken.utterances)
        _measure(board, spoken, encoder, reader, talkers)
    _measure_cost(board, model, [utterance.wave for spoken in sets for utterance in spoken.utterances])
    if only:
        board.notes.append(f"only {', '.join(spoken.name for spoken in sets)}, as asked for")
    board.report(f"the ears of {model}", as_json, out)
    return 0


def _unit_reader(model: Path, encoder: SpeechEncoder, board: Scoreboard) -> UnitReader | None:
    reader = UnitReader.load(model)
    if reader is None:
        board.notes.append(f"no unit_wer_*: {model / READER_FILE} is not there")
    elif reader.clusters != encoder.num_units:
        raise ValueError(
            f"{model / READER_FILE} reads {reader.clusters} units, but the encoder has {encoder.num_units}: "
            "they do not belong together"
        )
    return reader


def _load_sets(
    names: Sequence[str], data: Path, human: Path | None, workers: int, board: Scoreboard
) -> tuple[list[Spoken], list[Utterance]]:
    """The sets that this machine can have, and the talkers of the cafe (none where `seen` cannot be had)."""
    found: dict[str, list[Utterance]] = {}
    for name in SETS:
        if name in names or name == "seen":  # the cafe's guests are the seen voices
            try:
                found[name] = test_sets.load(name, data, human, workers)
            except Unavailable as error:
                board.notes.append(f"no figures of {name}: {error}")
    if "seen" not in found:
        board.notes.append("no figures in noise: the talkers in the cafe are the seen voices")
    if not set(found) & set(names):
        raise OSError(f"there is no test set to measure with: {'; '.join(board.notes)}")
    sets = [_spoken(name, utterances, board) for name, utterances in found.items() if name in names]
    return sets, found.get("seen", [])


def _spoken(name: str, utterances: list[Utterance], board: Scoreboard) -> Spoken:
    if name == "human":
        texts = _transcripts(utterances, board)
        labels = [("voice_" + utterance.speaker.removeprefix("barista-"),) for utterance in utterances]
    else:
        texts = [utterance.text for utterance in utterances]
        labels = [_labels(name, utterance) for utterance in utterances]
    every = sorted({label for several in labels for label in several})
    parts = {label: np.array([label in several for several in labels]) for label in every}
    return Spoken(name, utterances, texts, parts)


def _labels(name: str, utterance: Utterance) -> tuple[str, str]:
    engine, voice, *_ = utterance.speaker.split("/")
    kind = "questions" if utterance.task == "question" else "sentences"
    return kind, voice if name == "unseen" else engine.removesuffix("-ng")


def _transcripts(clips: list[OrderClip], board: Scoreboard) -> list[str | None]:
    """What was said in orders of which only the slots are written down, as PocketSphinx hears it in their grammar."""
    print(f"aligning {len(clips)} orders with PocketSphinx: about a minute", file=sys.stderr)
    try:
        found = orders.pocketsphinx_transcripts(clips)
    except ModuleNotFoundError as error:
        board.notes.append(f"no ctc_wer_human: {error}")
        return [None] * len(clips)
    board.notes.append(
        "slot_wer_human counts the words of the slots, which people wrote down; ctc_wer_human counts all words, "
        f"as PocketSphinx recovers them from slots and sound in {len(found)} of {len(clips)} orders"
    )
    return [found[clip.id].text if clip.id in found else None for clip in clips]


def _measure(
    board: Scoreboard,
    spoken: Spoken,
    encoder: SpeechEncoder,
    reader: UnitReader | None,
    talkers: list[Utterance],
) -> None:
    """All figures of one set."""
    clean, letters, read = [], [], []
    loud: dict[int, list[str]] = {snr: [] for snr in SNRS} if talkers else {}
    with Progress(None, len(spoken.utterances), title=spoken.name, unit="utterance") as progress:
        for row, utterance in enumerate(spoken.utterances):
            encoded = encoder.encode(utterance.wave)
            clean.append(_text(encoded.words))
            letters.append(_text(spelled(encoder.letter_log_probs(utterance.wave), encoder.ctc.vocab, 1.0)))
            if reader:
                read.append(reader.read(encoded.units))
            if loud:
                sound = background(row, utterance, talkers)
                for snr, heard in loud.items():
                    heard.append(_text(encoder.words(noise.mix(utterance.wave, sound, snr))))
            progress.update(row)
    for part, rows in spoken.parts.items():
        board.figures[f"n_{spoken.name}_{part}"] = int(rows.sum())
    for by, heard in (("", clean), ("spelled_", letters)):
        main, *others = _errors(spoken, heard, by).items()
        for figure, errors in [main, *others]:
            board.add_rate(figure, *errors)
        for part, rows in spoken.parts.items():
            board.add_rate(f"{main[0]}_{part}", *(counts[rows] for counts in main[1]))
    for snr, heard in loud.items():
        for figure, errors in _errors(spoken, heard).items():
            board.add_rate(f"{figure}_snr_{snr}", *errors)
    if spoken.name != "human":
        board.add_rate(
            f"ctc_wer_{spoken.name}_verbatim", *verbatim_errors([spoken_letters(t) for t in spoken.texts], clean)
        )
    if reader:
        for figure, errors in _errors(spoken, read, "unit_").items():
            board.add_rate(figure, *errors)


def _errors(spoken: Spoken, heard: list[str], by: str = "") -> dict[str, Errors]:
    """Errors under the names of their figures, the set's main one first."""
    known = np.array([text is not None for text in spoken.texts])
    errors, words = word_errors([text or "" for text in spoken.texts], heard)
    whole = {f"{by or 'ctc_'}wer_{spoken.name}": (errors * known, words)}
    if spoken.name != "human":
        return whole
    counts = [orders.slot_errors(text, clip.slots) for text, clip in zip(heard, spoken.utterances)]
    slot_errors, slot_words = np.array(counts, dtype=int).T
    return {f"{by}slot_wer_human": (slot_errors, slot_words)} | whole


def _text(words: Sequence[Word]) -> str:
    return " ".join(word.text for word in words).lower()


def background(row: int, utterance: Utterance, talkers: Sequence[Utterance]) -> np.ndarray:
    """What else is heard during utterance `row` of any set: a kitchen, or a cafe in which nobody says the same.

    They take turns by fours, since questions take turns with sentences by twos.
    """
    rng = np.random.default_rng((SEED, row))
    samples = len(utterance.wave)
    if row // 4 % 2 == 0:
        return noise.kitchen(samples, rng)
    others = [other for other in rng.permutation(len(talkers)) if talkers[other].text != utterance.text]
    return noise.cafe([talkers[other].wave for other in others[:TALKERS]], samples, rng)


def _measure_cost(board: Scoreboard, model: Path, waves: Sequence[np.ndarray]) -> None:
    """Size of the encoder, and its time over the time of what it hears, on one thread of the CPU."""
    encoder = SpeechEncoder.load(model)
    files = [model / "units.safetensors", *(model / "speech_encoder").iterdir()]
    board.figures["encoder_mb"] = sum(file.stat().st_size for file in files if file.is_file()) / 1e6
    tensors = [*encoder.model.parameters(), encoder.ctc.weight, encoder.ctc.bias]
    board.figures["encoder_parameters_m"] = sum(tensor.numel() for tensor in tensors) / 1e6
    low, high = (seconds * SAMPLE_RATE for seconds in TIMED_SECONDS)
    fitting = [wave for wave in waves if low <= len(wave) <= high]
    if not fitting:
        board.notes.append("no encoder_rtf_1t: no utterance lasts {:g} to {:g} seconds".format(*TIMED_SECONDS))
        return
    timed = fitting[:: -(-len(fitting) // TIMED)]
    board.figures["encoder_rtf_1t"] = _seconds_on_one_thread(encoder, timed) * SAMPLE_RATE / sum(map(len, timed))


def _seconds_on_one_thread(encoder: SpeechEncoder, waves: Sequence[np.ndarray]) -> float:
    """Seconds to encode all, words included, one at a time: the median of several rounds after one to warm up."""
    threads, rounds = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for _ in range(1 + ROUNDS):
            started = time.perf_counter()
            for wave in waves:
                _ = encoder.encode(wave).words
            rounds.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(rounds[1:])
