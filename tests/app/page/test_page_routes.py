"""What the page fetches, from the real server: its modules, samples and facts, and files turned into others."""

import base64
import importlib.metadata
import io
import json
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import session_zips as zips
import soundfile

import most_core
from app.audio import encode, from_pcm16
from app.page import exact_trace, routes, session_file
from app.page.words import words
from app.settings import Settings
from most_core import MostConfig, RoutingTrace
from most_core.metrics import report

STATIC = Path(routes.__file__).with_name("static")


def raw(site, path, head="", method="GET"):
    """The first line of the answer to a path that no client would send so."""
    host, port = site.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{head}Connection: close\r\n\r\n".encode())
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
    return int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2]


def error(answer):
    told = answer.json()["error"]["message"]
    assert "\n" not in told
    return told


def asked(site, path, **body):
    return httpx.post(site.url + path, json=body, headers=site.headers, timeout=60)


def in_base64(data):
    return base64.b64encode(data).decode()


def tables_of(trace):
    return {name: in_base64(data) for name, data in trace.to_bytes().items()}


def test_every_file_of_the_page_is_served_as_what_it_is_and_asked_for_anew(site):
    for file in STATIC.rglob("*"):
        if file.is_dir():
            continue
        answer = site.get(f"/page/static/{file.relative_to(STATIC).as_posix()}")
        assert answer.content == file.read_bytes()
        assert answer.headers["content-type"] == routes.KINDS[file.suffix]
        assert answer.headers["cache-control"] == "no-cache"
        again = site.get(answer.url.path, headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
        assert again.headers["cache-control"] == "no-cache"
    assert (STATIC / "favicon.svg").is_file()
    assert site.get("/favicon.ico").content == (STATIC / "favicon.svg").read_bytes()


def test_modules_are_called_javascript(tmp_path):
    (tmp_path / "main.js").write_text("export {}")
    served = routes._Modules(directory=tmp_path)
    answer = served.file_response(tmp_path / "main.js", (tmp_path / "main.js").stat(), {"headers": [], "method": "GET"})
    assert answer.headers["content-type"].startswith("text/javascript")


@pytest.mark.parametrize(
    "path",
    [
        "../routes.py",
        "%2e%2e/routes.py",
        "..%2froutes.py",
        "%2e%2e%2froutes.py",
        "..%5croutes.py",
        "..\\routes.py",
        "/etc/passwd",
        "//etc/passwd",
        "sound/../../routes.py",
        "../words/en.json",
        "../../../assets/nano/config.json",
        "favicon.svg%00.js",
    ],
)
@pytest.mark.parametrize("folder", ["/page/static/", "/page/samples/"])
def test_nothing_outside_of_the_folders_is_served(site, folder, path):
    status, body = raw(site, folder + path)
    assert status in (400, 404, 405)
    assert b"import" not in body
    assert b"root:" not in body
    assert len(body) < 1000


def test_samples_are_those_of_the_folder(site):
    told = site.get("/page/facts.json").json()["samples"]
    assert {sample["file"] for sample in told} == {path.name for path in Path("assets/samples").glob("*.wav")}
    assert {"file": "latte.wav", "says": "Can I have a latte, please?"} in told
    for sample in told:
        answer = site.get(f"/page/samples/{sample['file']}")
        assert answer.content == Path("assets/samples", sample["file"]).read_bytes()
        assert answer.headers["content-type"] == "audio/wav"
    missing = site.get("/page/samples/README.md")
    assert missing.status_code == 404
    assert "README.md" in error(missing)


def test_a_folder_without_samples_has_none(tmp_path):
    assert routes.read_samples(tmp_path) == []
    (tmp_path / "README.md").write_text("| `gone.wav` | Hello? | somebody |\n")
    assert routes.read_samples(tmp_path) == []


def test_the_facts_are_true(site):
    answer = site.get("/page/facts.json")
    assert answer.headers["cache-control"] == "no-cache"
    told, config = answer.json(), site.most.config
    assert told["model"]["name"] == "most-nano"
    assert told["model"]["hash"] == site.most.model_hash
    assert 16e6 < told["model"]["parameters"] < 18e6  # 8.8, 5.3 and 2.75 million
    assert told["model"]["device"] == "cpu"
    assert (told["model"]["hears"], told["model"]["speaks"]) == (True, True)
    experts = told["model"]["experts"]
    assert (experts["layers"], experts["routed"], experts["per_token"]) == (config.moe_layers, 16, 4)
    assert len(experts["groups"]) == len(experts["layers"])
    assert experts["apart"] is True
    assert told["versions"]["gradio"] == importlib.metadata.version("gradio")
    assert set(told["versions"]) == {"most", "trace", "torch", "transformers", "gradio", "python"}
    expected = {"seconds": 20, "characters": 300, "upload_mb": 20, "minutes": 60, "turns": 500, "history": 1}
    assert told["limits"] == expected
    figures = json.loads(Path("assets/nano/figures.json").read_text())["nano"]["figures"]
    assert told["figures"]["qa_text_seen"] == figures["qa_text_seen"]
    assert told["figures"]["orders_human"] == figures["orders_human"]
    assert told["words"] == words()


def test_what_a_model_lacks_is_told(monkeypatch):
    plain = MostConfig.tiny(use_modality_aware_routing=False)
    monkeypatch.setattr(MostConfig, "preset", lambda name: plain)
    most = most_core.untrained("tiny")
    most.encoder = most.vocoder = None
    service = SimpleNamespace(most=most, settings=Settings(model="tiny"), name="most-tiny")
    model = routes.facts(service, [])["model"]
    assert (model["hears"], model["speaks"], model["experts"]["apart"]) == (False, False, False)


FORMATS = [
    "wav",
    "flac",
    "mp3",
    "opus",
    pytest.param("aac", marks=pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg")),
]


@pytest.mark.parametrize("format", FORMATS)
def test_a_sound_of_any_kind_becomes_that_of_the_socket(site, format):
    time = np.arange(24_000) / 24_000
    tone = (0.4 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    answer = site.post(f"/page/sound?name=tone.{format}", encode(tone, 24_000, format))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    heard = from_pcm16(answer.content)
    assert 0.95 < len(heard) / 24_000 < 1.15
    middle = heard[6000:18_000]
    loudest = np.abs(np.fft.rfft(middle)).argmax() * 24_000 / len(middle)
    assert loudest == pytest.approx(440, abs=3)
    assert np.abs(middle).max() == pytest.approx(0.4, abs=0.03)


def test_both_channels_of_a_recording_are_heard(site):
    file = io.BytesIO()
    loud = np.zeros((44_100, 2), np.float32)
    loud[:, 1] = 0.5 * np.sin(np.arange(44_100) / 20)
    soundfile.write(file, loud, 44_100, format="WAV")
    heard = from_pcm16(site.post("/page/sound?name=a.wav", file.getvalue()).content)
    assert len(heard) == pytest.approx(24_000, abs=2)
    assert np.abs(heard).max() > 0.2


def test_what_is_no_sound_is_refused_in_one_line(site):
    assert error(site.post("/page/sound?name=cv.mp3", b"this is no sound")).startswith("cv.mp3")
    assert "send a sound file" in error(site.post("/page/sound", b""))
    assert "the file" in error(site.post("/page/sound", b"nothing"))
    assert len(error(site.post("/page/sound?name=" + "a" * 5000, b"nothing"))) < 300
    assert "<b>" in error(site.post("/page/sound?name=%3Cb%3E%0A", b"nothing"))  # as it is: who shows it, escapes it
    long = encode(np.zeros(21 * 16_000, np.float32), 16_000, "flac")
    assert "limit is 20 s" in error(site.post("/page/sound?name=long.flac", long))


def test_a_session_is_opened(site):
    answer = site.post("/page/session", zips.zipped())
    assert answer.status_code == 200
    told = answer.json()
    assert told["session"] == zips.ABOUT
    files = zips.files()
    assert {name: base64.b64decode(sound) for name, sound in told["sounds"].items()} == {
        name: data for name, data in files.items() if name.endswith(".wav")
    }
    assert list(told["traces"]) == ["1"]
    given = told["traces"]["1"]
    assert {name: base64.b64decode(table) for name, table in given["tables"].items()} == {
        name: files[file] for name, file in zips.TABLES.items()
    }
    assert given["exact"] == asked(site, "/page/trace", tables=given["tables"]).json()


def test_what_is_no_session_is_refused_in_one_line(site):
    assert "no zip" in error(site.post("/page/session", b"hello"))
    assert "send a session" in error(site.post("/page/session", b""))
    assert "only 1 is read" in error(site.post("/page/session", zips.zipped(zips.about() | {"version": 2}), params={}))


def test_sessions_may_be_larger_than_other_requests_but_not_without_end(site):
    large = bytes(21_000_000)
    assert "no zip" in error(site.post("/page/session", large))
    refused = site.post("/page/sound", large)
    assert refused.status_code == 413
    assert "larger than 20 MB" in error(refused)
    status, body = raw(site, "/page/session", "Content-Length: 100000001\r\n", "POST")
    assert status == 413
    assert b"larger than 100 MB" in body


def test_a_trace_is_told_exactly(site):
    trace = zips.trace()
    trace.chosen[2, 0, 0] = 255
    trace.chosen_probs[2, 0, 0] = 0
    trace.chosen[1, 1, 0] = 0  # a text expert, for a token of audio
    trace.logprob[3], trace.start_s[3], trace.end_s[3] = -1.5, 0.04, 0.08
    answer = asked(site, "/page/trace", tables=tables_of(trace))
    assert answer.status_code == 200
    told, expected = answer.json(), RoutingTrace.from_bytes(trace.to_bytes())
    T, L, K, W = 7, 2, 2, 8
    assert (told["k"], told["wide"], told["model_hash"]) == (K, W, "0123456789abcdef")
    assert told["experts"] == exact_trace.experts(MostConfig.tiny())
    assert told["experts"]["groups"][0] == {"text": [0, 1, 2, 3], "audio": [4, 5, 6, 7]}
    tokens = told["tokens"]
    assert set(tokens) == {"token", "turn", "role", "modality", "id", "text", "start_ms", "end_ms", "logprob"}
    for name in ("token", "turn", "role", "modality", "id", "text"):
        assert tokens[name] == getattr(trace, name).tolist(), name
    assert (tokens["start_ms"][3], tokens["end_ms"][3], tokens["logprob"][3]) == (40, 80, -1.5)
    assert tokens["start_ms"][0] is None
    assert tokens["logprob"][:3] == [None] * 3
    bytes_of = {"chosen": ("chosen", K), "ranked": ("experts", W), "unmasked": ("unmasked_experts", W)}
    for name, (array, width) in bytes_of.items():
        given = np.frombuffer(base64.b64decode(told[name]), np.uint8).reshape(T, L, width)
        np.testing.assert_array_equal(given, getattr(expected, array), name)
    floats = {"chosen_probs": "chosen_probs", "ranked_probs": "probs", "unmasked_probs": "unmasked_probs"}
    for name, array in (floats | {"removed": "removed_mass", "entropy": "entropy"}).items():
        given = np.frombuffer(base64.b64decode(told[name]), "<f4")
        np.testing.assert_array_equal(given, getattr(expected, array).ravel(), name)
    assert told["leakage"] == {"outside": 1, "decisions": T * L * K - 1}


def test_a_trace_comes_with_its_metrics_where_they_are_asked_for(site):
    trace = zips.trace()
    told = asked(site, "/page/trace", tables=tables_of(trace), report=True).json()
    assert told.pop("report") == json.loads(json.dumps(report(RoutingTrace.from_bytes(trace.to_bytes()))))
    assert told == asked(site, "/page/trace", tables=tables_of(trace)).json()


def test_a_report_that_would_fill_the_memory_is_refused(site, monkeypatch):
    monkeypatch.setattr(routes, "MOST_PAIRS", 60)
    answer = asked(site, "/page/trace", tables=tables_of(zips.trace()), report=True)
    assert answer.status_code == 400
    assert "64 pairs of experts is too large (60 at most)" in answer.json()["error"]["message"]
    assert asked(site, "/page/trace", tables=tables_of(zips.trace())).status_code == 200


def test_a_trace_of_more_choices_than_fit_is_refused(site, monkeypatch):
    monkeypatch.setattr(session_file, "MOST_CELLS", 100)
    answer = asked(site, "/page/trace", tables=tables_of(zips.trace()))
    assert answer.status_code == 400
    assert "holds more than 100 choices" in answer.json()["error"]["message"]


def test_a_trace_of_no_tokens_is_told(site):
    told = asked(site, "/page/trace", tables=tables_of(zips.trace().slice(0, 0))).json()
    assert (told["chosen"], told["tokens"]["id"]) == ("", [])
    assert told["leakage"] == {"outside": 0, "decisions": 0}


GOOD = tables_of(zips.trace())
NO_TRACES = [
    ({}, "tables is missing"),
    ({"tables": None}, "tables is None"),
    ({"tables": {}}, "tables.tokens is missing"),
    ({"tables": {**GOOD, "tokens": 3}}, "tables.tokens is 3"),
    ({"tables": {**GOOD, "more": "x"}}, "tables.more is not known"),
    ({"tables": GOOD, "count": 3}, "count is not known"),
    ({"tables": {**GOOD, "tokens": "%%%"}}, "tables.tokens is no base64"),
    ({"tables": {**GOOD, "tokens": "é"}}, "tables.tokens is no base64"),
    ({"tables": {**GOOD, "tokens": ""}}, "tokens.parquet is damaged"),
    ({"tables": {**GOOD, "tokens": GOOD["layers"]}}, "tokens.parquet has other columns"),
    ({"tables": {**GOOD, "routing": GOOD["routing"][:400]}}, "routing.parquet is damaged"),
    ({"tables": {**GOOD, "layers": tables_of(zips.trace(8))["layers"]}}, "do not fit together"),
    ({"tables": {**GOOD, "tokens": in_base64(zips.wav())}}, "damaged or no Parquet"),
]


@pytest.mark.parametrize(("body", "match"), NO_TRACES, ids=[match for _, match in NO_TRACES])
def test_what_is_no_trace_is_refused_in_one_line(site, body, match):
    answer = asked(site, "/page/trace", **body)
    assert answer.status_code == 400
    assert match in error(answer)
    assert len(error(answer)) < 500


def test_a_trace_of_another_schema_is_refused(site):
    table = pq.read_table(io.BytesIO(zips.trace().to_bytes()["layers"]))
    file = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"schema_version": "2"}), file)
    answer = asked(site, "/page/trace", tables={**GOOD, "layers": in_base64(file.getvalue())})
    assert answer.status_code == 400
    assert "schema version 2, not 1" in error(answer)


def test_traces_may_be_larger_than_other_requests_but_not_without_end(site):
    large = json.dumps({"tables": {**GOOD, "tokens": "A" * 21_000_000}})
    answer = site.post("/page/trace", large)
    assert answer.status_code == 415  # no word of JSON
    kind = {"Content-Type": "application/json"}
    answer = httpx.post(site.url + "/page/trace", content=large, headers=kind, timeout=60)
    assert answer.status_code == 400
    assert "damaged" in error(answer)
    status, body = raw(site, "/page/trace", "Content-Type: application/json\r\nContent-Length: 40000001\r\n", "POST")
    assert status == 413
    assert b"larger than 40 MB" in body


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/page/static/favicon.svg"),
        ("GET", "/page/samples/latte.wav"),
        ("GET", "/page/facts.json"),
        ("POST", "/page/sound"),
        ("POST", "/page/session"),
        ("POST", "/page/trace"),
        ("POST", "/page/knock_out"),
        ("POST", "/page/importance"),
        ("POST", "/gradio_api/mcp/"),
    ],
)
def test_without_the_token_there_is_nothing(guarded, method, path):
    assert httpx.request(method, guarded.url + path).status_code == 401
    other = {"Origin": "http://evil.example", **guarded.headers}
    if method == "POST":
        assert httpx.request(method, guarded.url + path, headers=other).status_code == 403
