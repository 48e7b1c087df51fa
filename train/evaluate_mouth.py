"""`python -m train evaluate mouth`: how well the vocoder is understood, how near it comes to its voice, how fast it is.

Held-out sentences are spoken by the synthesizer whose voice the vocoder learned, turned into units, and into sound
again. PocketSphinx, which nobody here trained, writes down both: `original_wer` and `resynth_wer`, whose ratio is
`resynth_ratio`. Further words of a name say which part of the sentences is meant (`_answers`, `_sentences`).
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
import torch

from most_core.loading import choose_device
from most_core.speech import SAMPLE_RATE, SpeechEncoder
from most_core.vocoder import Vocoder, receptive_field_samples
from train.config import RunOptions
from train.data.mouth_texts import Sentence, held_out_sentences
from train.data.voices import Synthesizer, Voice
from train.language_model import language_model, vocabulary
from train.pitch import contour_likeness, pitch
from train.progress import Progress
from train.recognizer import dictionary, hear_all
from train.scoreboard import Scoreboard
from train.vocoder_export import voice_of
from train.vocoder_losses import SpectralLoss
from train.word_errors import word_errors

TIMED, ROUNDS = 20, 5
TIMED_UNITS = (50, 150)
FULL_SCALE = 0.999
LONG_UNITS, LONG_CHUNK = 15_000, 8  # ten minutes


def run(model: Path, as_json: bool, options: RunOptions, out: Path | None = None) -> int:
    """Measure the vocoder in the folder `model` and print the figures; 0 once that is done.

    `out` is the `figures.json` to put the figures into.
    """
    if out and not out.parent.is_dir():
        raise FileNotFoundError(f"--out {out}: {out.parent} is no folder; make it first")
    board = Scoreboard("mouth")
    device = choose_device(options.device)
    encoder, vocoder = SpeechEncoder.load(model, device), Vocoder.load(model, device)
    if encoder.num_units > vocoder.config.num_units:
        raise ValueError(
            f"{model}: the encoder has {encoder.num_units} units, the vocoder {vocoder.config.num_units}: "
            "they do not belong together"
        )
    voice, shift = voice_of(model)
    known = vocabulary() & set(dictionary())
    sentences, passed = held_out_sentences(known)
    board.figures["n_sentences"] = len(sentences)
    board.notes.append(
        f"{passed} sentences with a word outside of the recognizer's {len(known)} were passed over; PocketSphinx, "
        "US English, trigram of the training split without these sentences"
    )
    originals = _spoken(sentences, voice)
    units, made = _resynthesized(encoder, vocoder, originals)
    measure_words(board, sentences, known, {"original": originals, "resynth": made}, options.threads or 2)
    if board.figures.get("original_wer"):
        board.figures["resynth_ratio"] = board.figures["resynth_wer"] / board.figures["original_wer"]
    _measure_likeness(board, originals, made, shift)
    _measure_streams(board, vocoder, units)
    _measure_long_stream(board, vocoder, units)
    _measure_cost(board, model, units)
    board.report(f"the mouth of {model}", as_json, out)
    return 0


def measure_words(
    board: Scoreboard,
    sentences: Sequence[Sentence],
    known: frozenset[str],
    sounds: dict[str, list[np.ndarray]],
    workers: int,
) -> None:
    """Put into `board` how many words PocketSphinx gets wrong of each kind of sound, by the names that `sounds` has.

    `known` are the words that it may expect, `workers` its processes.
    """
    said = [" ".join(sentence.words) for sentence in sentences]
    heard = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trigram.arpa"
        model = language_model(known, [sentence.text for sentence in sentences])
        board.figures["language_model_perplexity"] = model.perplexity([sentence.words for sentence in sentences])
        model.write(path)
        for name, waves in sounds.items():
            print(f"PocketSphinx listens to {len(waves)} sentences ({name})", file=sys.stderr)
            heard[name] = hear_all(path, waves, workers)
    for name, texts in heard.items():
        errors, words = word_errors(said, texts)
        board.add_rate(f"{name}_wer", errors, words)
        for kind in sorted({sentence.kind for sentence in sentences}):
            rows = np.array([sentence.kind == kind for sentence in sentences])
            board.add_rate(f"{name}_wer_{kind}", errors[rows], words[rows])


def _spoken(sentences: Sequence[Sentence], voice: Voice) -> list[np.ndarray]:
    with Synthesizer() as synthesizer:
        return [synthesizer.speak(sentence.text, voice) for sentence in sentences]


def _resynthesized(
    encoder: SpeechEncoder, vocoder: Vocoder, waves: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    units, made = [], []
    with Progress(None, len(waves), title="resynthesis", unit="sentence") as progress:
        for row, wave in enumerate(waves):
            units.append(encoder.units(wave))
            made.append(vocoder.synthesize(units[-1]))
            progress.update(row)
    return units, made


def _measure_likeness(
    board: Scoreboard, originals: Sequence[np.ndarray], made: Sequence[np.ndarray], shift: int
) -> None:
    """How far spectra and pitch are from those of the voice, and whether the sound is cut off at full scale."""
    spectral, distances, contours = SpectralLoss(), [], []
    for wave, ours in zip(originals, made):
        real = wave[shift : shift + len(ours)]
        ours = ours[: len(real)]
        with torch.no_grad():
            pair = (torch.from_numpy(np.ascontiguousarray(sound))[None] for sound in (ours, real))
            distances.append(spectral.mel_distance(*pair))
        contours.append(contour_likeness(pitch(ours), pitch(real)))
    board.add_mean("mel_distance", np.array(distances))
    for name, values in zip(("f0_correlation", "voicing_agreement"), zip(*contours)):
        board.add_mean(name, np.array(values))
    samples = np.concatenate(made)
    board.figures["clipping"] = float((np.abs(samples) >= FULL_SCALE).mean())


def _measure_streams(board: Scoreboard, vocoder: Vocoder, units: Sequence[np.ndarray], seed: int = 5) -> None:
    """Sound of random chunks against the same all at once, and how rough it is at the seams.

    `seam_roughness` is the second difference of samples at seams over that of the sound made all at once in the same
    places: 1 is no click at all.
    """
    rng = np.random.default_rng(seed)
    furthest, seams, own = 0.0, [], []
    for row in units[:TIMED]:
        stream, chunks, start = vocoder.stream(), [], 0
        while start < len(row):
            size = int(rng.integers(1, 12))
            chunks.append(stream.push(row[start : start + size]))
            start += size
        chunks.append(stream.finish())
        sound, offline = np.concatenate(chunks), vocoder.synthesize(row)
        furthest = max(furthest, float(np.abs(sound - offline).max()))
        places = np.cumsum([len(chunk) for chunk in chunks if len(chunk)])[:-1]
        around = np.concatenate([places - 2, places - 1])
        for bends, of in ((seams, sound), (own, offline)):
            bends.append(np.square(np.diff(of.astype(np.float64), 2)[around]))
    board.figures["stream_difference"] = furthest
    board.figures["n_seams"] = sum(map(len, seams)) // 2
    if board.figures["n_seams"]:
        ratio = np.concatenate(seams).mean() / max(1e-20, np.concatenate(own).mean())
        board.figures["seam_roughness"] = float(np.sqrt(ratio))


def _measure_long_stream(board: Scoreboard, vocoder: Vocoder, units: Sequence[np.ndarray]) -> None:
    """How much memory ten minutes of one stream take, from its first tenth on."""
    process, stream, sizes = psutil.Process(), vocoder.stream(), []
    said = np.resize(np.concatenate(units), LONG_UNITS)
    for start in range(0, len(said), LONG_CHUNK):
        stream.push(said[start : start + LONG_CHUNK])
        sizes.append(process.memory_info().rss)
    stream.finish()
    board.figures["long_stream_growth_mb"] = (max(sizes) - max(sizes[: len(sizes) // 10])) / 1e6


def _measure_cost(board: Scoreboard, model: Path, units: Sequence[np.ndarray]) -> None:
    """Size, and time on the CPU: of sound over its own length, and until the first sound of a stream."""
    vocoder = Vocoder.load(model)
    files = [file for file in (model / "vocoder").iterdir() if file.is_file()]
    board.figures["vocoder_mb"] = sum(file.stat().st_size for file in files) / 1e6
    board.figures["vocoder_parameters_m"] = sum(p.numel() for p in vocoder.model.parameters()) / 1e6
    board.figures["vocoder_lookahead_ms"] = 1000 * receptive_field_samples(vocoder.config)[1] / SAMPLE_RATE
    low, high = TIMED_UNITS
    fitting = [row for row in units if low <= len(row) <= high] or list(units)
    timed = fitting[:: -(-len(fitting) // TIMED)]
    seconds = sum(map(len, timed)) * vocoder.config.samples_per_unit / SAMPLE_RATE

    def whole() -> None:
        for row in timed:
            vocoder.synthesize(row)

    def streamed() -> None:
        for row in timed:
            stream = vocoder.stream()
            for unit in row:
                stream.push([unit])
            stream.finish()

    def first_chunks() -> None:
        for row in timed:
            stream = vocoder.stream()
            any(len(stream.push([unit])) for unit in row)

    for threads in (1, 2):
        board.figures[f"vocoder_rtf_{threads}t"] = _median_seconds(whole, threads) / seconds
    board.figures["vocoder_stream_rtf_1t"] = _median_seconds(streamed, 1) / seconds
    board.figures["vocoder_first_chunk_ms_1t"] = 1000 * _median_seconds(first_chunks, 1) / len(timed)
    board.notes.append(
        "vocoder_first_chunk_ms_1t is computation from the first unit pushed, one by one, to the first sample; the "
        "units that it looks ahead must be there (vocoder_lookahead_ms)"
    )


def _median_seconds(work: Callable[[], None], threads: int) -> float:
    """Of several rounds, after one to warm up."""
    before, rounds = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        for _ in range(1 + ROUNDS):
            started = time.perf_counter()
            work()
            rounds.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(before)
    return statistics.median(rounds[1:])
