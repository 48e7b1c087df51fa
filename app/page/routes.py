"""What the page fetches beside the socket: its modules, sample questions, facts, and conversions of files."""

from __future__ import annotations

import asyncio
import platform
import re
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.audio import WIRE_RATE, read_sound, resampled, to_pcm16
from app.page import exact_trace, replays, session_file
from app.page.card import count_parameters, read_figures
from app.page.words import words
from app.rest.api import Answer, Asked, Refusal, Service, Whole, checked, read_json, shown, to_json, waveform
from app.rest.work import endpoint
from most_core.metrics import report
from most_core.speech import SAMPLE_RATE
from most_core.trace_files import SCHEMA_VERSION

SESSION, TRACE = "/page/session", "/page/trace"
KNOCK_OUT, IMPORTANCE = "/page/knock_out", "/page/importance"
LARGEST_MB = {SESSION: session_file.LARGEST_MB} | dict.fromkeys((TRACE, KNOCK_OUT, IMPORTANCE), exact_trace.LARGEST_MB)
ROOT = Path(__file__).parents[2]
STATIC, SAMPLES = Path(__file__).with_name("static"), ROOT / "assets/samples"
FRESH = {"Cache-Control": "no-cache"}  # asked for anew each time; the tag of an unchanged file saves sending it
KINDS = {  # not left to the machine's own table, which may call a module plain text
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".html": "text/html; charset=utf-8",
    ".wav": "audio/wav",
    ".png": "image/png",
    ".woff2": "font/woff2",
}
SPOKEN = re.compile(r"\| `([a-z0-9_-]+\.wav)` \| ([^|]+?) \|")  # a row of the samples' README
MOST_PAIRS = 1_000_000  # of experts that a report may set against each other: what is many times the full model
FIGURES = ("asr_wer_", "qa_text_", "qa_written", "orders_")  # those that a person wants to know


@dataclass(frozen=True)
class Sample:
    file: str
    says: str


def add(app: FastAPI, service: Service) -> None:
    """The routes under /page; add them before Gradio. Bodies may be as large as LARGEST_MB says."""
    samples = read_samples(SAMPLES)
    known = {"/page/facts.json": to_json(facts(service, samples))}

    async def sample(name: str) -> Response:
        if name not in {one.file for one in samples}:
            return Refusal(404, words()["errors_server"]["no_file"].format(path=shown(name))).response()
        return FileResponse(SAMPLES / name, headers=FRESH, media_type=KINDS[".wav"])

    async def tell(request: Request) -> Response:
        return Response(known[request.url.path], headers=FRESH, media_type="application/json")

    app.mount("/page/static", _Modules(directory=STATIC))
    app.add_api_route("/page/samples/{name}", sample, methods=["GET"], response_model=None)
    app.add_api_route("/page/facts.json", tell, methods=["GET"], response_model=None)
    for path, read, handle in (
        ("/page/sound", _sound_file, _as_pcm),
        (SESSION, _body, _session),
        (TRACE, read_json, _trace),
        (KNOCK_OUT, read_json, replays.knock_out),
        (IMPORTANCE, read_json, replays.rank_experts),
    ):
        app.add_api_route(path, endpoint(service, path, read, handle), methods=["POST"], response_model=None)


class _Modules(StaticFiles):
    """Files of one folder alone, which Starlette sees to."""

    def file_response(self, full_path: Any, stat_result: Any, scope: Scope, status_code: int = 200) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(FRESH)
        if kind := KINDS.get(Path(full_path).suffix):
            response.headers["Content-Type"] = kind
        return response


# What there is to know


def read_samples(folder: Path) -> list[Sample]:
    """The recordings that the table in the folder's README tells of, as far as they are there."""
    try:
        told = (folder / "README.md").read_text(encoding="utf-8")
    except OSError:
        return []
    return [Sample(*row) for row in SPOKEN.findall(told) if (folder / row[0]).is_file()]


def facts(service: Service, samples: list[Sample]) -> dict[str, Any]:
    """What the page is told once."""
    most, settings = service.most, service.settings
    limits = ("seconds", "characters", "upload_mb", "minutes", "turns", "history")
    merged = {name: value for bench in read_figures(Path(settings.model)).values() for name, value in bench.items()}
    return {
        "model": {
            "name": service.name,
            "hash": most.model_hash,
            "parameters": count_parameters(most),
            "hears": most.encoder is not None,
            "speaks": most.vocoder is not None,
            "experts": exact_trace.experts(most.config),
            "device": str(most.model.device),
            "quantize": settings.quantize,
        },
        "versions": {
            "most": _own_version(),
            "trace": SCHEMA_VERSION,
            **{name: metadata.version(name) for name in ("torch", "transformers", "gradio")},
            "python": platform.python_version(),
        },
        "limits": {name: getattr(settings, name) for name in limits},
        "figures": {name: value for name, value in merged.items() if name.startswith(FIGURES)},
        "samples": [vars(sample) for sample in samples],
        "words": words(),
    }


def _own_version() -> str:
    """Of the checkout that runs, or else of what is installed."""
    try:
        return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    except (OSError, ValueError, KeyError):
        return metadata.version("most")


# Conversions


async def _body(request: Request) -> bytes:
    data = await request.body()
    if not data:
        raise Refusal(400, words()["errors_server"]["no_session"])
    return data


async def _sound_file(request: Request) -> tuple[bytes, str]:
    data = await request.body()
    if not data:
        raise Refusal(400, words()["errors_server"]["no_sound"])
    return data, shown(request.query_params.get("name") or "the file").strip("'\"")


async def _as_pcm(service: Service, given: tuple[bytes, str]) -> Answer:
    return Whole(await asyncio.to_thread(_pcm, service, *given), "application/octet-stream")


def _pcm(service: Service, data: bytes, name: str) -> bytes:
    """As clients of the socket send it."""
    heard = waveform(service, *read_sound(data, name, service.settings.seconds), name)
    return to_pcm16(resampled(heard, SAMPLE_RATE, WIRE_RATE))


async def _session(service: Service, given: bytes) -> Answer:
    return Whole(await asyncio.to_thread(_opened, given))


def _opened(data: bytes) -> bytes:
    session = session_file.read(data)
    sounds = {name: exact_trace.in_base64(sound) for name, sound in session.sounds.items()}
    traces = {
        str(turn): {"exact": exact_trace.exact(trace), "tables": exact_trace.in_base64_each(session.tables[turn])}
        for turn, trace in session.traces.items()
    }
    return to_json({"session": session.about, "sounds": sounds, "traces": traces})


class _OneTrace(Asked):
    tables: exact_trace.Tables
    report: bool = False  # a megabyte at full size, so only where it is asked for


async def _trace(service: Service, given: dict[str, Any]) -> Answer:
    asked = checked(_OneTrace, given)
    return Whole(await asyncio.to_thread(_told, asked))


def _told(asked: _OneTrace) -> bytes:
    trace = exact_trace.read_tables(asked.tables)
    pairs = sum(len(group) ** 2 for groups in trace.config.expert_groups() for group in groups)
    if asked.report and pairs > MOST_PAIRS:
        raise Refusal(400, f"the report of {pairs} pairs of experts is too large ({MOST_PAIRS} at most): leave it out")
    return to_json(exact_trace.exact(trace) | ({"report": report(trace)} if asked.report else {}))
