"""OpenAI's REST routes over one shared model: chat, transcription, speech, models; and the limit on what they take in.

`chat`, `transcription` and `speaking` say what each of them can do; `api` is what they share, `work` what happens to
each request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.engine import Engine
from app.metrics import Metrics
from app.rest import chat, speaking, transcription
from app.rest.api import Answer, Refusal, Service, Whole, read_json, shown, to_json
from app.rest.work import endpoint
from app.settings import Settings

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def router(engine: Engine, settings: Settings, metrics: Metrics, name: str) -> APIRouter:
    """The routes under /v1, for a model called `name`. Include it after all other routes under /v1: it answers for
    those that do not exist, too. Its limit on bodies is `BodyLimit`, to be added to the whole app."""
    service, routes = Service(engine, settings, metrics, name), APIRouter()
    known = [
        ("POST", "/v1/chat/completions", read_json, chat.complete),
        ("POST", "/v1/audio/transcriptions", transcription.read_form, transcription.transcribe),
        ("POST", "/v1/audio/speech", read_json, speaking.speak),
        ("GET", "/v1/models", _nothing, _models),
        ("GET", "/v1/models/{model:path}", _model_name, _model),
    ]
    for method, path, read, handle in known:
        routes.add_api_route(path, endpoint(service, path, read, handle), methods=[method], response_model=None)
    for method, path, _, _ in known:
        others = [other for other in METHODS if other != method]
        refuse = endpoint(service, path, _nothing, _other_method(method))
        routes.add_api_route(path, refuse, methods=others, response_model=None, include_in_schema=False)
    unknown = endpoint(service, "/v1", _path, _unknown)
    routes.add_api_route("/v1/{path:path}", unknown, methods=METHODS, response_model=None, include_in_schema=False)
    return routes


async def _nothing(request: Request) -> None:
    return None


async def _path(request: Request) -> str:
    return request.url.path


async def _model_name(request: Request) -> str:
    return request.path_params["model"]


async def _models(service: Service, given: None) -> Answer:
    return Whole(to_json({"object": "list", "data": [_described(service, model) for model in service.models]}))


async def _model(service: Service, given: str) -> Answer:
    return Whole(to_json(_described(service, service.check_model(given, service.models))))


def _described(service: Service, model: str) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": service.created, "owned_by": "most"}


def _other_method(method: str) -> Any:
    async def refuse(service: Service, given: None) -> Answer:
        raise Refusal(405, f"this address takes {method} only: use that", code="method_not_allowed")

    return refuse


async def _unknown(service: Service, given: str) -> Answer:
    raise Refusal(404, f"there is nothing at {shown(given)}: correct the address", code="unknown_url")


class BodyLimit:
    """ASGI middleware: no request brings more than so many megabytes, whether it says its size or not. `elsewhere`:
    how many where the path is another."""

    def __init__(self, app: ASGIApp, megabytes: int, elsewhere: Mapping[str, int] | None = None) -> None:
        self.app, self.megabytes, self.elsewhere = app, megabytes, elsewhere or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What is too large is refused before the whole of it is read, whatever the app makes of it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        megabytes = self.elsewhere.get(scope.get("path", ""), self.megabytes)
        limit = megabytes * 1_000_000
        refusal = Refusal(413, f"the request is larger than {megabytes} MB: send less", code="request_too_large")
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        taken, exceeded, started = 0, False, False

        async def limited() -> Message:
            nonlocal taken, exceeded
            if not exceeded and not (declared.isdigit() and int(declared[:20]) > limit):
                message = await receive()
                taken += len(message.get("body", b""))
                if taken <= limit:
                    return message
            exceeded = True
            raise refusal

        async def guarded(message: Message) -> None:
            nonlocal started
            if exceeded and not started:
                return  # the app's own words about a body that it could not read
            started = True
            await send(message)

        try:
            await self.app(scope, limited, guarded)
        except Refusal:
            if not exceeded or started:
                raise
        if exceeded and not started:
            response = refusal.response()
            response.headers["Connection"] = "close"  # or the rest would be read after all
            await response(scope, receive, send)
