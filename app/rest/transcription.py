"""POST /v1/audio/transcriptions: what was said in a recording, as text, or as captions with times.

Two models write it down: the language model, under its own name, and the ears alone (`NAME-ears`), which spell what
they hear and know when each word was. Captions of the language model's words get their times from the ears.
Sound of more than 15 s is taken piece by piece, cut where it is quietest: so nobody else waits long for the model.
The language model learnt from single sentences, so it is given what is between pauses, where the ears know of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from starlette.datastructures import UploadFile
from starlette.requests import Request

from app.rest.api import (
    Answer,
    Asked,
    Pieces,
    Refusal,
    Service,
    Whole,
    checked,
    event,
    read_recording,
    refuse_unsupported,
    shown,
    to_json,
)
from most_core import HeardDelta, Most, Word
from most_core.speech import SAMPLE_RATE

WINDOW_S, LOOK_BACK_S, QUIET_S = 15, 5, 0.2  # a piece at most; where its end is sought; how long a quiet moment is
SENTENCE_S, BREATH_S = 6, 0.1  # what is longer is cut at smaller pauses, too; what is shorter than these is none
CUE_S, CUE_CHARACTERS, PAUSE_S = 6, 80, 0.7  # a caption ends before it is longer, and at a pause
UNSUPPORTED = {"prompt": ("",), "include[]": ([],), "include": ("",), "chunking_strategy": ("auto",)}
LISTS = ("timestamp_granularities", "timestamp_granularities[]", "include[]")
FIELDS = 32  # of a form


class Recording(Asked):
    """What the route takes, beside the file."""

    model: str
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt"] = "json"
    timestamp_granularities: list[Literal["word", "segment"]] | None = None
    language: Literal["en"] | None = None
    stream: Literal["true", "false", "True", "False", "1", "0"] = "false"
    temperature: Literal["0", "0.0"] | None = None


@dataclass(frozen=True)
class Piece:
    """A stretch of the recording, and what was said in it; words only where times were asked for."""

    start_s: float
    end_s: float
    text: str
    words: list[Word]

    def later(self, seconds: float) -> Piece:
        """The same, in a recording that begins so much earlier."""
        words = [word._replace(start_s=word.start_s + seconds, end_s=word.end_s + seconds) for word in self.words]
        return Piece(self.start_s + seconds, self.end_s + seconds, self.text, words)


async def read_form(request: Request) -> tuple[dict[str, Any], bytes, str]:
    """(fields, the file, its name) of a multipart form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise Refusal(415, f"the body is {shown(kind)}: send a form, with Content-Type: multipart/form-data")
    async with request.form(max_files=1, max_fields=FIELDS) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise Refusal(
                400, "file is missing: send the recording in it", param="file", code="missing_required_parameter"
            )
        data = await file.read()
        fields: dict[str, Any] = {}
        for name in form:
            values = form.getlist(name)
            if name != "file":
                fields[name] = list(values) if name in LISTS else values[-1]
    return fields, data, file.filename or "file"


async def transcribe(service: Service, given: tuple[dict[str, Any], bytes, str]) -> Answer:
    fields, data, name = given
    fields = {name: value for name, value in fields.items() if value != "" or name == "model"}
    if "timestamp_granularities[]" in fields:
        fields["timestamp_granularities"] = fields.pop("timestamp_granularities[]")
    asked = checked(Recording, refuse_unsupported(fields, UNSUPPORTED))
    service.check_model(asked.model, service.models)
    by_ears, format = asked.model == service.ears, asked.response_format
    streams = asked.stream.lower() in ("true", "1")
    if streams and format not in ("json", "text"):
        raise _unfit("response_format", format, "a stream is of text only; ask for json")
    wants_words = "word" in (asked.timestamp_granularities or ())
    if asked.timestamp_granularities and format != "verbose_json":
        raise _unfit("timestamp_granularities", asked.timestamp_granularities, "it needs response_format verbose_json")
    if wants_words and not service.hears_words:
        raise _unfit("timestamp_granularities", "word", "this model knows no times of words; ask for segment")
    sound = await asyncio.to_thread(read_recording, service, data, shown(name).strip("'\""))
    service.metrics.heard_s.inc(len(sound) / SAMPLE_RATE)
    if streams:
        return Pieces(_stream(service, sound, by_ears))
    timed = format in ("verbose_json", "srt", "vtt") and service.hears_words
    pieces = await _pieces(service, sound, by_ears, timed)
    return _told(service, asked, sound, pieces, wants_words)


def _unfit(param: str, value: Any, why: str) -> Refusal:
    return Refusal(400, f"{param} is {shown(value)}: {why}", param=param, code="invalid_value")


# Hearing


def windows(sound: np.ndarray) -> list[tuple[int, int]]:
    """(start, end) in samples: the whole sound in stretches of at most 15 s, cut in the quietest moments."""
    quiet = int(QUIET_S * SAMPLE_RATE)
    bounds = [0]
    while len(sound) - bounds[-1] > WINDOW_S * SAMPLE_RATE:
        latest = bounds[-1] + WINDOW_S * SAMPLE_RATE
        earliest = latest - LOOK_BACK_S * SAMPLE_RATE
        energy = np.cumsum(np.square(sound[earliest:latest], dtype=np.float64))
        loudness = energy[quiet:] - energy[:-quiet]
        bounds.append(earliest + int(loudness.argmin()) + quiet // 2)
    return list(pairwise([*bounds, len(sound)]))


def hear(
    most: Most, sound: np.ndarray, by_ears: bool, timed: bool, cancel: threading.Event
) -> Iterator[HeardDelta | Piece]:
    """A job for the engine: text as it is made out, and each piece when it is done."""
    spells = most.encoder is not None and most.encoder.ctc is not None
    between = ""
    for start, end in windows(sound):
        wave = sound[start:end]
        seconds = len(wave) / SAMPLE_RATE
        words = most.encoder.words(wave) if spells else []
        if by_ears:
            text = " ".join(word.text for word in words)
            if text:
                yield HeardDelta(between + text)
                between = " "
            yield Piece(0, seconds, text, words).later(start / SAMPLE_RATE)
            continue
        for piece in sentences(Piece(0, seconds, "", words)):
            text = ""
            first, last = round(piece.start_s * SAMPLE_RATE), round(piece.end_s * SAMPLE_RATE)
            for delta in most.stream_transcript(wave[first:last], cancel=cancel):
                more = delta.text if text else delta.text.lstrip()
                if more:
                    yield HeardDelta(more if text else between + more)
                    text += more
            between = " " if text else between
            text = text.strip()
            timed_words = with_times(text.split(), piece.words, piece.start_s, piece.end_s) if timed else []
            yield Piece(piece.start_s, piece.end_s, text, timed_words).later(start / SAMPLE_RATE)


def sentences(piece: Piece) -> list[Piece]:
    """The piece, cut in the middle of the pauses between its words."""
    pauses = [after.start_s - before.end_s for before, after in pairwise(piece.words)]
    widest = max(pauses, default=0.0)
    if widest < (PAUSE_S if piece.end_s - piece.start_s <= SENTENCE_S else BREATH_S):
        return [piece]
    count = pauses.index(widest) + 1
    before, after = piece.words[:count], piece.words[count:]
    middle = before[-1].end_s + widest / 2
    return sentences(Piece(piece.start_s, middle, "", before)) + sentences(Piece(middle, piece.end_s, "", after))


def with_times(texts: list[str], heard: list[Word], start_s: float, end_s: float) -> list[Word]:
    """Words with the times of the same ones that the ears heard; what these did not hear shares the time between.

    The confidence of those is nan.
    """
    letters = [_letters(text) for text in texts]
    matches = SequenceMatcher(None, letters, [_letters(word.text) for word in heard], autojunk=False)
    known = {m.a + i: heard[m.b + i] for m in matches.get_matching_blocks() for i in range(m.size)}
    timed: list[Word] = []
    place = 0
    while place < len(texts):
        if place in known:
            word = known[place]
            timed.append(Word(texts[place], word.start_s, word.end_s, word.confidence))
            place += 1
            continue
        after = next((i for i in range(place, len(texts)) if i in known), len(texts))
        begin = timed[-1].end_s if timed else start_s
        each = max(0.0, (known[after].start_s if after in known else end_s) - begin) / (after - place)
        for i, text in enumerate(texts[place:after]):
            timed.append(Word(text, begin + i * each, begin + (i + 1) * each, math.nan))
        place = after
    return timed


def _letters(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


async def written(service: Service, sound: np.ndarray) -> str:
    """What was said in a sound, by the language model."""
    service.metrics.heard_s.inc(len(sound) / SAMPLE_RATE)
    return _text(await _pieces(service, sound, by_ears=False, timed=False))


async def _pieces(service: Service, sound: np.ndarray, by_ears: bool, timed: bool) -> list[Piece]:
    job = service.engine.stream(lambda cancel: hear(service.most, sound, by_ears, timed, cancel))
    async with contextlib.aclosing(job) as events:
        return [made async for made in events if isinstance(made, Piece)]


async def _stream(service: Service, sound: np.ndarray, by_ears: bool) -> AsyncIterator[bytes]:
    pieces: list[Piece] = []
    job = service.engine.stream(lambda cancel: hear(service.most, sound, by_ears, False, cancel))
    async with contextlib.aclosing(job) as events:
        async for made in events:
            if isinstance(made, HeardDelta):
                yield event({"type": "transcript.text.delta", "delta": made.text})
            else:
                pieces.append(made)
    yield event({"type": "transcript.text.done", "text": _text(pieces)})


# Writing down


def _told(service: Service, asked: Recording, sound: np.ndarray, pieces: list[Piece], wants_words: bool) -> Answer:
    text = _text(pieces)
    if asked.response_format == "text":
        return Whole(f"{text}\n".encode("utf-8", "replace"), "text/plain; charset=utf-8")
    cues = [cue for piece in pieces for cue in cues_of(piece)]
    if asked.response_format in ("srt", "vtt"):
        return Whole(
            captions(cues, asked.response_format),
            f"text/{'vtt' if asked.response_format == 'vtt' else 'plain'}; charset=utf-8",
        )
    duration = len(sound) / SAMPLE_RATE
    told: dict[str, Any] = {"text": text, "usage": {"type": "duration", "seconds": math.ceil(duration)}}
    if asked.response_format == "verbose_json":
        told |= {"task": "transcribe", "language": "english", "duration": round(duration, 3)}
        if wants_words:
            words = [word for piece in pieces for word in piece.words]
            told["words"] = [{"word": w.text, "start": round(w.start_s, 3), "end": round(w.end_s, 3)} for w in words]
        if not wants_words or "segment" in (asked.timestamp_granularities or ()):
            told["segments"] = [_segment(service.most, number, cue) for number, cue in enumerate(cues)]
    return Whole(to_json(told))


def _text(pieces: list[Piece]) -> str:
    return " ".join(piece.text for piece in pieces if piece.text)


def cues_of(piece: Piece) -> list[Piece]:
    """A piece as captions of a few words each; as one, where its words have no times."""
    if not piece.words:
        return [piece] if piece.text else []
    cues: list[list[Word]] = []
    for word in piece.words:
        cue = cues[-1] if cues else []
        fits = (
            cue
            and word.start_s - cue[-1].end_s < PAUSE_S
            and word.end_s - cue[0].start_s <= CUE_S
            and sum(len(w.text) + 1 for w in cue) + len(word.text) <= CUE_CHARACTERS
        )
        if fits:
            cue.append(word)
        else:
            cues.append([word])
    return [Piece(cue[0].start_s, cue[-1].end_s, " ".join(w.text for w in cue), cue) for cue in cues]


def captions(cues: list[Piece], format: str) -> bytes:
    """As a file for players: "srt" or "vtt"."""
    mark = "," if format == "srt" else "."
    blocks = ["WEBVTT"] if format == "vtt" else []
    for number, cue in enumerate(cues, start=1):
        times = f"{clock(cue.start_s, mark)} --> {clock(cue.end_s, mark)}"
        text = " ".join(cue.text.split())
        if format == "vtt":
            text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append("\n".join([str(number), times, text] if format == "srt" else [times, text]))
    return ("\n\n".join(blocks) + "\n").encode("utf-8", "replace")


def clock(seconds: float, mark: str) -> str:
    """00:01:02.345, with `mark` before the milliseconds."""
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{mark}{ms % 1000:03}"


def _segment(most: Most, number: int, cue: Piece) -> dict[str, Any]:
    """Its probabilities are those of the words that the ears heard too; null where there are none."""
    sure = [word.confidence for word in cue.words if word.confidence > 0]
    packed = zlib.compress(cue.text.encode("utf-8", "replace"))
    return {
        "id": number,
        "seek": 0,
        "start": round(cue.start_s, 3),
        "end": round(cue.end_s, 3),
        "text": cue.text,
        "tokens": most.processor.text_ids(cue.text),
        "temperature": 0.0,
        "avg_logprob": sum(map(math.log, sure)) / len(sure) if sure else None,
        "compression_ratio": len(cue.text.encode("utf-8", "replace")) / len(packed),
        "no_speech_prob": 1 - max(sure) if sure else None,
    }
