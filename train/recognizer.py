"""A recognizer that nobody here made: PocketSphinx with its US English voices and dictionary."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from most_core.speech import Word
from train.data.shards import FULL_SCALE, SAMPLE_RATE, to_pcm
from train.workers import end_with_parent

LANGUAGE_WEIGHT = 7.5  # of the trigram's logarithms beside those of sound; PocketSphinx's own is 6.5
WIDTH_ALONE = 5000  # paths it follows with its own language model: a sixth of the usual, and a third faster
CHOICE_BEAMS = (1e-60, 1e-80)
SILENCE_S = 0.2  # before and after, which sentences in its training had


@cache
def dictionary() -> frozenset[str]:
    """The words, in lower case, that it knows how to pronounce."""
    lines = Path(_pocketsphinx().get_model_path("en-us/cmudict-en-us.dict")).read_text(encoding="utf-8").splitlines()
    return frozenset(line.split(maxsplit=1)[0] for line in lines if line and "(" not in line.split(maxsplit=1)[0])


def hear_all(language_model: Path, waves: Sequence[np.ndarray], workers: int = 2) -> list[str]:
    """The words heard in each sound, float32 at 16 kHz, by several processes."""
    return [" ".join(word.text for word in words) for words in _heard(language_model, waves, workers)]


def choose_all(candidates: Sequence[str], waves: Sequence[np.ndarray], workers: int = 2) -> list[str]:
    """Which of the candidates, words in lower case between spaces, is heard in each sound: "" where it is none.

    It knows nothing but that one of them is said. Their words must all be in its dictionary.
    """
    _pocketsphinx()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start_choice, initargs=(tuple(candidates),)) as pool:
        return list(pool.map(_choose, waves, chunksize=4))


def words_of_all(waves: Sequence[np.ndarray], workers: int = 2) -> list[list[Word]]:
    """The same with its own, larger language model: each word's time and how sure it is, 0..1."""
    return _heard(None, waves, workers)


def _heard(language_model: Path | None, waves: Sequence[np.ndarray], workers: int) -> list[list[Word]]:
    _pocketsphinx()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(language_model,)) as pool:
        return list(pool.map(_hear, waves, chunksize=4))


def _pocketsphinx() -> Any:
    try:
        import pocketsphinx
    except ImportError:
        raise ModuleNotFoundError("an independent recognizer is needed: pip install pocketsphinx") from None
    return pocketsphinx


_decoder: Any = None


def _start(language_model: Path | None) -> None:
    global _decoder
    end_with_parent()
    given = {"lm": str(language_model), "lw": LANGUAGE_WEIGHT} if language_model else {"maxhmmpf": WIDTH_ALONE}
    _decoder = _pocketsphinx().Decoder(**given, cmn="batch", loglevel="FATAL")


_choices: tuple[list[Any], frozenset[str]]


def _start_choice(candidates: tuple[str, ...]) -> None:
    """Two decoders of one grammar: what the narrow beam loses, and few sounds are, the wide one looks for anew."""
    global _choices
    end_with_parent()
    grammar = f"#JSGF V1.0;\ngrammar answers;\npublic <answer> = {_branches(candidates)};\n"
    decoders = []
    for beam in CHOICE_BEAMS:
        wide = {"beam": beam, "pbeam": beam, "wbeam": beam}
        decoders.append(_pocketsphinx().Decoder(lm=None, **wide, cmn="batch", loglevel="FATAL"))
        decoders[-1].add_jsgf_string("answers", grammar)
        decoders[-1].activate_search("answers")
    _choices = decoders, frozenset(candidates)


def _branches(candidates: Sequence[str]) -> str:
    """The candidates in JSGF, beginnings in common written once: a seventh of the time of a plain list."""
    following: dict[str, list[str]] = {}
    for candidate in candidates:
        first, _, rest = candidate.partition(" ")
        following.setdefault(first, []).append(rest)
    ways = []
    for word, rests in following.items():
        more = [rest for rest in rests if rest]
        tail = f" ( {_branches(more)} )" if more else ""
        ways.append(word + (tail if len(more) == len(rests) else f" [{tail} ]" if more else ""))
    return " | ".join(ways)


def _choose(wave: np.ndarray) -> str:
    decoders, candidates = _choices
    for decoder in decoders if len(wave) else ():
        decoder.start_utt()
        decoder.process_raw(prepared(wave), full_utt=True)
        decoder.end_utt()
        heard = decoder.hyp()
        if heard is not None and heard.hypstr in candidates:  # not only the beginning of one
            return heard.hypstr
    return ""


def _hear(wave: np.ndarray) -> list[Word]:
    _decoder.start_utt()
    _decoder.process_raw(prepared(wave), full_utt=True)
    _decoder.end_utt()
    if _decoder.hyp() is None:
        return []
    frames = _decoder.config["frate"]
    return [
        Word(
            part.word.split("(")[0],  # "read(2)" is another pronunciation
            max(0.0, part.start_frame / frames - SILENCE_S),
            (part.end_frame + 1) / frames - SILENCE_S,
            min(1.0, part.prob),
        )
        for part in _decoder.seg()
        if part.word[0] not in "<["  # silence and noises
    ]


def prepared(wave: np.ndarray) -> bytes:
    """What it is given: 16-bit samples with a breath of noise, for the logarithm of digital silence says nothing."""
    margin = np.zeros(round(SILENCE_S * SAMPLE_RATE), np.float32)
    padded = np.concatenate([margin, wave, margin])
    noise = np.random.default_rng(len(wave)).standard_normal(len(padded)) / FULL_SCALE
    return to_pcm(padded + noise).tobytes()
