"""Who is let in: by token, by the page a request comes from, by the name the server is called; nothing odd crashes."""

import asyncio
import json

import pytest

from app.guard import OWN_NAMES, Guard
from app.metrics import Metrics

TOKEN = "open-sesame"
SITE = "https://friend.example"


async def inner(scope, receive, send):
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


class Answer:
    """What came of one request."""

    def __init__(self, messages):
        first = messages[0]
        self.accepted = first["type"] == "websocket.accept"
        self.code = first.get("code")
        self.status = first.get("status")
        self.headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in first.get("headers", [])}
        self.body = b"".join(m.get("body", b"") for m in messages)
        self.let_in = self.accepted or self.body == b"inside"


def ask(guard, path="/", method="GET", kind="http", query="", scheme="http", **headers):
    sent = []
    headers = {"host": "localhost:7860"} | headers

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request" if kind == "http" else "websocket.connect"}

    lines = [(k.replace("_", "-").encode(), v if isinstance(v, bytes) else v.encode()) for k, v in headers.items()]
    scope = {"type": kind, "path": path, "query_string": query.encode(), "headers": lines, "scheme": scheme}
    asyncio.run(guard(scope | ({"method": method} if kind == "http" else {}), receive, send))
    return Answer(sent)


@pytest.fixture
def guarded():
    return Guard(inner, Metrics(), TOKEN)


@pytest.fixture
def local():
    return Guard(inner, Metrics(), names=OWN_NAMES)


def test_without_a_token_everybody_on_this_machine_comes_in(local):
    assert ask(local).let_in
    assert ask(local, kind="websocket").let_in


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {TOKEN}"},
        {"authorization": f"bearer  {TOKEN} "},
        {"cookie": f"most_token={TOKEN}"},
        {"cookie": f"theme=dark; most_token={TOKEN}; other=1"},
        {"sec_websocket_protocol": f"realtime, openai-insecure-api-key.{TOKEN}, openai-beta.realtime-v1"},
    ],
)
def test_the_token_is_taken_wherever_clients_put_it(guarded, kind, headers):
    assert ask(guarded, kind=kind, **headers).let_in


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": TOKEN},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer "},
        {"cookie": "most_token=wrong"},
        {"cookie": f"other={TOKEN}"},
        {"cookie": "most_token="},
        {"sec_websocket_protocol": TOKEN},
        {"sec_websocket_protocol": "openai-insecure-api-key."},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Bearer {TOKEN[:-1]}"},
    ],
)
def test_without_the_right_token_nobody_comes_in(guarded, kind, headers):
    answer = ask(guarded, kind=kind, **headers)
    assert not answer.let_in
    assert answer.status == 401 or answer.code == 1008
    if kind == "http":
        assert json.loads(answer.body)["error"]["code"] == "wrong_token"


def test_a_token_in_the_address_moves_to_a_cookie(guarded):
    answer = ask(guarded, path="/page", query=f"a=1&token={TOKEN}&b=x%26y")
    assert answer.status == 303
    assert answer.headers["location"] == "/page?a=1&b=x%26y"
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"most_token={TOKEN};")
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "Secure" not in cookie
    assert "Secure" in ask(guarded, query=f"token={TOKEN}", scheme="https").headers["set-cookie"]
    assert ask(guarded, cookie=cookie.split(";")[0]).let_in


def test_a_socket_may_bring_the_token_in_its_address(guarded):
    assert ask(guarded, kind="websocket", path="/v1/realtime", query=f"token={TOKEN}").let_in
    assert not ask(guarded, kind="websocket", path="/v1/realtime", query="token=wrong").let_in


@pytest.mark.parametrize("path", ["//evil.example/", "/\r\nset-cookie: a=b", "/\\evil.example", "/ä/模"])
def test_the_redirect_leads_to_this_site_alone_and_is_one_header(guarded, path):
    answer = ask(guarded, path=path, query=f"token={TOKEN}")
    assert answer.status == 303
    target = answer.headers["location"]
    assert target.startswith("/")
    assert not target.startswith(("//", "/\\"))
    assert target.isascii()
    assert target.isprintable()


def test_health_is_open_and_nothing_that_only_looks_like_it(guarded):
    assert ask(guarded, path="/health").let_in
    for path in ("/health/", "/healthy", "/v1/../health", "//health", "/metrics"):
        assert not ask(guarded, path=path).let_in


def test_browsers_are_asked_for_the_token_in_a_form(guarded):
    answer = ask(guarded, accept="text/html,*/*")
    assert answer.status == 401
    assert b"<form>" in answer.body
    assert b'name="token"' in answer.body
    evil = ask(guarded, accept="text/html", host="<script>", origin="http://<script>", method="POST")
    assert b"<script>" not in evil.body
    wrong = ask(guarded, accept="text/html", query="token=%3Cscript%3E")
    assert b"<script>" not in wrong.body
    assert b"wrong" in wrong.body


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://localhost:1234", "null", "http://localhost.evil:7860"]
)
@pytest.mark.parametrize(("kind", "method"), [("http", "POST"), ("http", "DELETE"), ("websocket", "")])
def test_pages_of_other_sites_may_not_use_it(local, kind, method, origin):
    answer = ask(local, kind=kind, method=method, origin=origin)
    assert not answer.let_in
    assert answer.status == 403 or answer.code == 1008


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_its_own_page_may_and_clients_that_are_no_browsers(local, kind):
    assert ask(local, kind=kind, method="POST", origin="http://localhost:7860").let_in
    assert ask(local, kind=kind, method="POST", origin="HTTP://LOCALHOST:7860").let_in
    assert ask(local, kind=kind, method="POST").let_in


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_sites_that_were_named_may(kind):
    guard = Guard(inner, Metrics(), origins=[SITE + "/"])
    assert ask(guard, kind=kind, method="POST", origin=SITE).let_in
    assert not ask(guard, kind=kind, method="POST", origin="https://friend.example.evil").let_in
    assert not ask(guard, kind=kind, method="POST", origin="http://friend.example").let_in


def test_a_token_does_not_let_other_sites_in(guarded):
    assert not ask(guarded, kind="websocket", origin="https://evil.example", cookie=f"most_token={TOKEN}").let_in


def test_a_named_site_may_ask_beforehand_whether_it_may_use_a_token():
    guard = Guard(inner, Metrics(), TOKEN, origins=[SITE])
    asks = {"method": "OPTIONS", "access_control_request_method": "POST"}
    assert ask(guard, origin=SITE, **asks).let_in
    assert not ask(guard, origin="https://evil.example", **asks).let_in
    assert not ask(guard, origin=SITE, method="OPTIONS").let_in
    assert not ask(guard, origin=SITE, method="POST", access_control_request_method="POST").let_in


@pytest.mark.parametrize("host", ["localhost", "localhost:7860", "127.0.0.1:7860", "[::1]:7860", "LOCALHOST"])
def test_this_machine_is_called_by_its_own_names(local, host):
    assert ask(local, host=host).let_in
    assert ask(local, host=host, kind="websocket", origin=f"http://{host}").let_in


@pytest.mark.parametrize(
    "host", ["evil.example:7860", "localhost.evil.example", "", "[", "[::1", "a@localhost@b", "127.0.0.1.evil"]
)
def test_names_that_others_made_point_here_are_refused(local, host):
    assert not ask(local, host=host).let_in
    assert not ask(local, host=host, kind="websocket", origin=f"http://{host}").let_in


ODD = [
    b"\xff\xfe",
    b"http://[::1",
    b"http://[",
    b"http://a:b:c",
    b"//",
    b"",
    b"\x00",
    b"a=\xe4; most_token",
    b'"',
    b"{[}]" * 2000,
]


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize(
    "name",
    ["origin", "host", "cookie", "authorization", "sec_websocket_protocol", "accept", "access_control_request_method"],
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_odd_headers_are_answered(guarded, local, kind, name, value):
    for guard in (guarded, Guard(inner, Metrics(), TOKEN, [SITE])):
        assert not ask(guard, kind=kind, method="POST", **{name: value}).let_in
    ask(local, kind=kind, method="POST", **{name: value})


def test_a_request_without_a_host_and_from_nowhere_is_refused():
    guard = Guard(inner, Metrics())
    assert not ask(guard, method="POST", host="", origin="null").let_in


@pytest.mark.parametrize(
    "other", ['a={"x": 1}', "a=b c", 'a="', "a[1]=2", "=", ";;", "ä=ö", "a=b,c=d", "most_token=old"]
)
def test_whatever_other_cookies_there_are_the_right_one_is_found(guarded, other):
    for cookies in (f"{other}; most_token={TOKEN}", f"most_token={TOKEN}; {other}"):
        assert ask(guarded, cookie=cookies).let_in


@pytest.mark.parametrize(
    "query", ["token", "token=", "&&&", "token=%", "token=%ff%fe", "=&=", "a" * 10_000, "token=a&token=b"]
)
def test_odd_addresses_are_answered(guarded, query):
    assert not ask(guarded, query=query).let_in


def test_what_is_refused_is_counted():
    metrics = Metrics()
    guard = Guard(inner, metrics, TOKEN)
    ask(guard)
    ask(guard, method="POST", origin="https://evil.example")
    assert b'most_refused_total{why="token"} 1.0' in metrics.text()
    assert b'most_refused_total{why="origin"} 1.0' in metrics.text()


def test_a_lifespan_goes_through():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    asyncio.run(Guard(app, Metrics(), TOKEN)({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"]
