"""Who may come in: a token that everybody must know, and pages of this site alone.

Wraps the whole server, Gradio's page and our routes alike. Browsers say from which page a request comes (`Origin`), and
without this check any page that somebody visits could use their assistant. The `Host` check does the same for names
that are made to point at this machine.
"""

from __future__ import annotations

import hmac
import html
import json
from collections.abc import Sequence
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from app.metrics import Metrics

COOKIE = "most_token"
SUBPROTOCOL = "openai-insecure-api-key."  # how OpenAI's clients in browsers send a token with a socket
OPEN_PATHS = ("/health",)
OWN_NAMES = ("localhost", "127.0.0.1", "::1")
ASK = """<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>MoST</title><style>body{font:18px/1.5 system-ui;margin:20vh auto;max-width:28rem;padding:0 1rem}
input,button{font:inherit;padding:.4em .6em}</style>
<h1>This assistant asks for a token</h1><p>%s</p>
<form><label>Token <input name="token" type="password" autofocus></label> <button>Enter</button></form>"""


class Guard:
    """ASGI middleware. `token`: "" lets everybody in. `origins`: other sites whose pages may connect. `names`: by which
    this server may be called; empty: by any."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, token: str = "", origins: Sequence[str] = (), names: Sequence[str] = ()
    ) -> None:
        self.app, self.metrics, self.token = app, metrics, token
        self.origins = {origin.rstrip("/").lower() for origin in origins}
        self.names = set(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if problem := self._strange(scope, headers):
            return await self._refuse(scope, send, headers, 403, "origin", problem)
        if not self.token or scope["path"] in OPEN_PATHS or self._asks_beforehand(scope, headers):
            return await self.app(scope, receive, send)
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        if not any(hmac.compare_digest(word.encode(), self.token.encode()) for word in _words(headers, query)):
            problem = "The token is wrong." if "token" in query else "Whoever started it knows the token."
            return await self._refuse(scope, send, headers, 401, "token", problem)
        if scope["type"] == "http" and scope["method"] == "GET" and "token" in query:
            return await self._remember(scope, send, query)
        await self.app(scope, receive, send)

    def _strange(self, scope: Scope, headers: dict[str, str]) -> str:
        """Why this request cannot be meant by whoever sits at the browser; "" if it can."""
        host = headers.get("host", "")
        if self.names and _name(f"//{host}") not in self.names:
            return f"This server is not called {host[:80]!r}: use localhost, or name the site with --origins."
        origin = headers.get("origin")
        reads = scope["type"] == "http" and scope["method"] in ("GET", "HEAD", "OPTIONS")
        if origin is None or reads or origin.lower() in self.origins:
            return ""
        if host and origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}"):
            return ""
        return f"Pages of {origin[:80]!r} may not use this server: allow them with --origins."

    def _asks_beforehand(self, scope: Scope, headers: dict[str, str]) -> bool:
        """Whether a browser asks for a page of a named site what it may send: it sends no token with that."""
        asks = scope["type"] == "http" and scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        return asks and headers.get("origin", "").lower() in self.origins

    async def _remember(self, scope: Scope, send: Send, query: dict[str, str]) -> None:
        """To the same page without the token in its address."""
        rest = urlencode({k: v for k, v in query.items() if k != "token"})
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        cookie = f"{COOKIE}={self.token}; Path=/; HttpOnly; SameSite=Strict{secure}"
        path = "/" + quote(scope["path"].lstrip("/\\"))  # of this site, whatever the path looks like
        headers = [("location", path + (f"?{rest}" if rest else "")), ("set-cookie", cookie)]
        await _respond(send, 303, b"", headers)

    async def _refuse(
        self, scope: Scope, send: Send, headers: dict[str, str], status: int, why: str, problem: str
    ) -> None:
        self.metrics.refused.labels(why).inc()
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": problem[:120]})
        elif status == 401 and "text/html" in headers.get("accept", ""):
            await _respond(send, status, (ASK % html.escape(problem)).encode(), [("content-type", "text/html")])
        else:
            kind = "authentication_error" if status == 401 else "permission_error"
            error = {"message": problem, "type": kind, "param": None, "code": f"wrong_{why}"}
            body = json.dumps({"error": error}).encode()
            await _respond(send, status, body, [("content-type", "application/json")])


def _words(headers: dict[str, str], query: dict[str, str]) -> list[str]:
    """Whatever may be a token."""
    kind, _, word = headers.get("authorization", "").partition(" ")
    words = [query.get("token", ""), word.strip() if kind.lower() == "bearer" else ""]
    for cookie in headers.get("cookie", "").split(";"):  # SimpleCookie forgets all where one of them is odd
        name, _, value = cookie.partition("=")
        if name.strip() == COOKIE:
            words.append(value.strip())
    offered = headers.get("sec-websocket-protocol", "").split(",")
    words += [p.strip().removeprefix(SUBPROTOCOL) for p in offered if p.strip().startswith(SUBPROTOCOL)]
    return [word for word in words if word]


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


async def _respond(send: Send, status: int, body: bytes, headers: Sequence[tuple[str, str]]) -> None:
    lines = [(k.encode("latin-1"), v.encode("latin-1", "replace")) for k, v in headers]
    lines.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})
