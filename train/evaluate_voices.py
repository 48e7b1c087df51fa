"""`python -m train evaluate voices`: which synthetic voice a vocoder should learn.

The held-out sentences of `evaluate mouth`, spoken by each voice, and nothing made of them: how well PocketSphinx
understands the voice, how much of its sound the units tell (the more, the less is left for a vocoder to guess), how
lively its melody is, and how fast it is synthesized.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from most_core.loading import choose_device
from most_core.speech import SAMPLE_RATE, SpeechEncoder
from train.config import RunOptions
from train.data.mouth_texts import held_out_sentences
from train.data.unit_speech import best_shift
from train.data.voices import Synthesizer, Voice
from train.evaluate_mouth import measure_words
from train.language_model import vocabulary
from train.pitch import pitch
from train.recognizer import dictionary
from train.scoreboard import Scoreboard

VOICES = {
    "slt": Voice("flite", "slt"),
    "awb": Voice("flite", "awb"),
    "kal16": Voice("flite", "kal16"),
    "slt_hts": Voice("festival", "cmu_us_slt_arctic_hts"),
}


def run(model: Path, as_json: bool, options: RunOptions, out: Path | None = None) -> int:
    """Compare the voices by the ears in the folder `model`; `out` is the `figures.json` to put the figures into."""
    encoder = SpeechEncoder.load(model, choose_device(options.device))
    board = Scoreboard("voices")
    known = vocabulary() & set(dictionary())
    sentences, _ = held_out_sentences(known)
    board.figures["n_sentences"] = len(sentences)
    spoken = {}
    with Synthesizer() as synthesizer:
        for name, voice in VOICES.items():
            synthesizer.speak(sentences[0].text, voice)  # starts the engine
            started = time.perf_counter()
            spoken[name] = [synthesizer.speak(sentence.text, voice) for sentence in sentences]
            seconds = sum(map(len, spoken[name])) / SAMPLE_RATE
            board.figures[f"x_real_time_{name}"] = seconds / (time.perf_counter() - started)
    for name, waves in spoken.items():
        units = [encoder.units(wave) for wave in waves]
        longest = encoder.first_frame_samples - encoder.samples_per_frame
        told = best_shift(waves, units, encoder.num_units, encoder.samples_per_frame, longest)[1]
        board.figures[f"units_tell_{name}"] = told
        contours = [pitch(wave) for wave in waves]
        board.figures[f"pitch_hz_{name}"] = float(np.nanmedian(np.concatenate(contours)))
        semitones = [12 * float(np.nanstd(np.log2(contour))) for contour in contours if np.isfinite(contour).any()]
        board.add_mean(f"melody_semitones_{name}", np.array(semitones))
    measure_words(board, sentences, known, spoken, options.threads or 2)
    board.notes.append(
        "wer: by PocketSphinx; units_tell: share of the variance of the log-mel spectrum between units; "
        "melody_semitones: how far the pitch strays within a sentence"
    )
    board.report("synthetic voices", as_json, out)
    return 0
