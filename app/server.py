"""The server: one model, the page, the realtime socket and the REST routes, on one port."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Response, WebSocket
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from app import rest
from app.engine import Engine
from app.guard import OWN_NAMES, Guard
from app.metrics import Metrics
from app.page import blocks, routes
from app.realtime.sockets import LONGEST_EVENT, Realtime
from app.rest.api import Service
from app.settings import Settings
from most_core import Most

SPARE_PLACES = 4  # in the model, for REST beside the conversations
GONE_MS = 20_000  # without a sign of taking what was sent, a connection is given up
NO_TOKEN = "none"


def places(settings: Settings) -> int:
    """How many conversations the model must be loaded for."""
    return settings.sessions + SPARE_PLACES


def model_name(settings: Settings) -> str:
    """By which clients name the model: most-nano for assets/nano."""
    return f"most-{Path(settings.model).resolve().name}"


def create(most: Most, settings: Settings) -> ASGIApp:
    """The whole server as an ASGI application. Its model is warm, and its engine ends with the application."""
    metrics, name = Metrics(), model_name(settings)
    engine = Engine(most, watch=metrics.model_s.inc)
    engine.warm_up()
    realtime = Realtime(engine, settings, metrics, name)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()

    app = FastAPI(title="MoST", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)  # they load a CDN

    @app.websocket("/v1/realtime")
    async def converse(connection: WebSocket) -> None:
        await realtime.serve(connection)

    @app.get("/health")
    async def health() -> dict[str, str | int]:
        running, waiting = engine.load
        return {
            "status": "ok",
            "model": name,
            "sessions": realtime.lobby.inside,
            "sessions_waiting": len(realtime.lobby.line),
            "jobs": running,
            "jobs_waiting": waiting,
        }

    @app.get("/metrics")
    async def counters() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    app.include_router(rest.router(engine, settings, metrics, name))
    # After our routes: what is mounted at / takes all that is left.
    service = Service(engine, settings, metrics, name)
    routes.add(app, service)
    blocks.mount(app, blocks.build(engine, settings, service=service), settings)
    origins = [o.strip() for o in settings.origins.split(",") if o.strip()]
    inner: ASGIApp = rest.BodyLimit(app, settings.upload_mb, routes.LARGEST_MB)
    if origins:
        inner = CORSMiddleware(inner, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    return Guard(inner, metrics, _token(settings), origins, _names(settings, origins))


def serve(load: Callable[[], Most], settings: Settings) -> int:
    """Serve until interrupted; the exit status. ValueError or OSError if that cannot be done, most of it before the
    model is loaded, which `load` does, for `places(settings)` conversations."""
    if settings.token == "auto":
        settings = replace(settings, token=secrets.token_urlsafe(16))
    check(settings)
    listener = listen(settings)
    try:
        server = uvicorn.Server(config(create(load(), settings), settings))
    except BaseException:
        listener.close()
        raise
    scheme = "https" if settings.ssl_certfile else "http"
    host, port = listener.getsockname()[:2]
    host = "localhost" if host in ("0.0.0.0", "::", "127.0.0.1", "::1") else host
    key = _token(settings)
    print(f"MoST is at {scheme}://{host}:{port}/{f'?token={key}' if key else ''}  (stop with Ctrl-C)", flush=True)
    if scheme == "http" and settings.host not in OWN_NAMES:
        print("note: browsers give other machines no microphone over http: serve https with --ssl-certfile", flush=True)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    return 0


def check(settings: Settings) -> None:
    """ValueError or OSError if it cannot be served so."""
    if settings.host not in OWN_NAMES and not settings.token:
        raise ValueError(
            f"--host {settings.host} lets others in: give them a word with --token WORD (or auto), or say --token none"
        )
    if bool(settings.ssl_certfile) != bool(settings.ssl_keyfile):
        raise ValueError("https needs both --ssl-certfile and --ssl-keyfile: give both, or neither")
    for name in ("ssl_certfile", "ssl_keyfile"):
        path = getattr(settings, name)
        if path and not Path(path).is_file():
            raise FileNotFoundError(f"--{name.replace('_', '-')}: there is no file {path}")
    word = settings.token
    if not word.isascii() or (word and not word.isprintable()) or any(character in word for character in ' ;,"\\'):
        raise ValueError("--token takes plain letters, digits and signs, but no blank, comma, semicolon or quote")


class _WebSockets(WebSocketsSansIOProtocol):
    """Each message waits for the one before it alone: asyncio's own 64 KiB between them would have to go first, which
    slow links do not do in the time that one message has."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(0)


def config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves it."""
    return uvicorn.Config(
        app,
        log_level="warning",
        ws=_WebSockets,
        ws_max_size=LONGEST_EVENT,
        ws_per_message_deflate=False,  # sound does not shrink, and it costs time
        ssl_certfile=settings.ssl_certfile or None,
        ssl_keyfile=settings.ssl_keyfile or None,
        timeout_graceful_shutdown=2,
    )


def listen(settings: Settings) -> socket.socket:
    """A socket that listens; OSError in words if the address cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(128)  # who comes before the server is ready waits
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise OSError(f"port {settings.port} on {settings.host} is taken: choose another with --port") from None
        told = f"--host {settings.host} --port {settings.port} cannot be listened on ({error.strerror}): choose others"
        raise OSError(told) from None
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # whoever is accepted inherits it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GONE_MS)
    listener.set_inheritable(True)
    return listener


def _token(settings: Settings) -> str:
    return "" if settings.token == NO_TOKEN else settings.token


def _names(settings: Settings, origins: Sequence[str]) -> list[str]:
    """By which the server may be called: its own, where nobody else is meant to come."""
    if settings.host not in OWN_NAMES or settings.token:
        return []
    return [*OWN_NAMES, *(o.split("//")[-1].split(":")[0] for o in origins)]
