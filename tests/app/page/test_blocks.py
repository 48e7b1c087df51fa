"""The page through its real doors: a served Gradio app, Gradio's own client, and an MCP client."""

import asyncio
import base64
import copy
import dataclasses
import html
import importlib.util
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import gradio as gr
import httpx
import numpy as np
import pytest
import soundfile
from gradio_client import Client, handle_file
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

import most_core
from app.engine import Engine
from app.metrics import Metrics
from app.page import blocks as page
from app.page import card
from app.page.words import words
from app.rest.api import Service
from app.settings import Settings

# app.py shares its name with the package app/, so it is loaded by its path.
_spec = importlib.util.spec_from_file_location("start", Path(page.__file__).parents[2] / "app.py")
start = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(start)


@pytest.fixture(scope="module")
def client():
    short = most_core.GenerationSettings(max_sentence_units=75, max_sentence_tokens=12)
    engine = Engine(most_core.untrained("tiny"))
    blocks = page.build(engine, Settings(seconds=3, characters=200), short)
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", share=False)
    yield Client(url, verbose=False)
    blocks.close()
    engine.close()


def test_a_typed_question_is_answered_in_text_and_sound(client):
    heard, text, sound, facts = client.predict("what time is it", None, api_name="/ask")
    assert heard == "what time is it"
    assert text
    samples, rate = soundfile.read(sound)
    assert rate == 16000
    assert np.abs(samples).max() > 0
    assert facts["tokens routed outside their experts"].startswith("0 of ")


def test_a_recording_in_stereo_at_44_kilohertz_is_heard(client, tmp_path):
    path = tmp_path / "question.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal((44100, 2)), 44100)
    heard, text, _, _ = client.predict("", handle_file(path), api_name="/ask")
    assert heard
    assert text


def test_nothing_given_says_what_to_do(client):
    with pytest.raises(Exception, match="Type a question or give a recording"):
        client.predict("  ", None, api_name="/ask")


def test_what_is_too_long_is_refused_in_words(client, tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(4 * 16000), 16000)
    with pytest.raises(Exception, match=r"4\.0 s long, the limit is 3 s"):
        client.predict("", handle_file(path), api_name="/ask")
    with pytest.raises(Exception, match="1000000 characters, the limit is 200"):
        client.predict("a" * 1_000_000, None, api_name="/ask")


def test_eight_channels_are_refused_in_words(client, tmp_path):
    path = tmp_path / "surround.wav"
    soundfile.write(path, np.zeros((1600, 8)), 16000)
    with pytest.raises(Exception, match="channels"):
        client.predict("", handle_file(path), api_name="/ask")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(port=0), "there is no folder assets/nano"),
        (Settings(model="nowhere", port=0), "there is no folder nowhere"),
        (Settings(model="ears", port=0), "no config.json in ears"),
    ],
)
def test_what_cannot_be_opened_is_told_in_one_line(settings, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ears/speech_encoder").mkdir(parents=True)
    assert start.main(settings) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(quantize="int4", port=0), "int4"),
        (Settings(device="abacus", port=0), "unknown device 'abacus'"),
    ],
)
def test_impossible_settings_are_told_in_one_line(settings, message, capsys, tmp_path):
    most_core.untrained("tiny").save(tmp_path / "tiny")
    capsys.readouterr()  # saving draws a bar
    assert start.main(dataclasses.replace(settings, model=str(tmp_path / "tiny"))) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_an_upload_that_is_no_sound_is_refused_in_words(client, tmp_path):
    path = tmp_path / "fake.wav"
    path.write_bytes(b"this is no sound")
    with pytest.raises(Exception, match=r"fake\.wav (is not a sound|needs ffmpeg)"):
        client.predict("", handle_file(path), api_name="/ask")


# The page as it is served


OWN = re.compile(r"https?://(127\.0\.0\.1|localhost)[:/]")


class Fetched(HTMLParser):
    """What a browser fetches of a page by itself."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        name = {"link": "href", "script": "src", "img": "src", "iframe": "src", "audio": "src", "source": "src"}.get(
            tag
        )
        if given.get(name):
            self.found.append(given[name])


def foreign(addresses):
    return [a for a in addresses if re.match(r"(https?:)?//", a) and not OWN.match(a)]


def styled(css):
    return re.findall(r"@import\s+[\"']([^\"']+)", css) + re.findall(r"url\(\s*[\"']?([^\"')]+)", css)


def config_of(page):
    return json.loads(re.search(r"window\.gradio_config = (\{.*?\});</script>", page, re.S)[1])


def test_the_page_fetches_nothing_from_elsewhere(site):
    page = site.get("/").text
    fetched = Fetched()
    fetched.feed(page)
    fetched.feed(config_of(page)["head"])
    assert "/page/static/main.js" in fetched.found
    assert "/page/static/page.css" in fetched.found
    assert not foreign(fetched.found)
    assert not foreign(config_of(page).get("stylesheets") or [])
    sheets = [page, site.get("/theme.css").text]
    sheets += [site.get("/" + a.lstrip("./")).text for a in fetched.found if a.endswith(".css") and "/page/" not in a]
    assert len(sheets) > 2
    for sheet in sheets:
        assert not foreign(styled(sheet))
    assert "fonts.googleapis.com" not in page
    assert "cdnjs" not in page


def test_gradio_tells_nobody_about_its_use(site):
    config = config_of(site.get("/").text)
    assert config["analytics_enabled"] is False
    assert config["run_history"] is False if "run_history" in config else True
    assert config["footer_links"] == []


def test_there_are_three_tabs_and_a_place_for_the_conversation(site):
    components = config_of(site.get("/").text)["components"]
    tabs = [c["props"] for c in components if c["type"] == "tabitem"]
    assert [tab["label"] for tab in tabs] == ["Talk", "Tools", "The model"]
    assert tabs[0]["elem_id"] == "tab-talk"
    (mount,) = [c["props"] for c in components if c["type"] == "html" and 'id="most"' in str(c["props"]["value"])]
    assert mount["value"] == f'<div id="most"><p>{words()["tabs"]["loading"]}</p></div>'
    assert not mount["padding"]
    assert not mount["container"]


def test_words_are_strings_and_lists_of_them():
    def check(value):
        assert isinstance(value, str | dict | list)
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(inner)

    check(words())


# The tools


def test_gradio_clients_call_the_tools(site, guarded):
    recording = handle_file("assets/samples/latte.wav")
    for one in (site, guarded):
        client = Client(one.url, verbose=False, headers=one.headers)
        assert "latte" in client.predict(recording, api_name="/transcribe")
        said = client.predict("Tuesday comes after Monday.", api_name="/speak")
        samples, rate = soundfile.read(said)
        assert rate == 24_000
        assert 0.5 < len(samples) / rate < 10
        heard, text, _, _ = client.predict(recording=recording, api_name="/ask")
        assert "latte" in heard
        assert text


def test_what_is_wrong_with_a_call_is_told_in_one_line(site, tmp_path):
    client = Client(site.url, verbose=False)
    soundfile.write(tmp_path / "long.wav", np.zeros(21 * 16_000), 16_000)
    (tmp_path / "fake.wav").write_bytes(b"this is no sound")
    with pytest.raises(Exception, match=r"long\.wav is 21\.0 s long, the limit is 20 s"):
        client.predict(handle_file(tmp_path / "long.wav"), api_name="/transcribe")
    with pytest.raises(Exception, match=r"fake\.wav (is not a sound|needs ffmpeg)"):
        client.predict(handle_file(tmp_path / "fake.wav"), api_name="/transcribe")
    with pytest.raises(Exception, match="Give a recording"):
        client.predict(None, api_name="/transcribe")
    with pytest.raises(Exception, match="Type a text"):
        client.predict(" ", api_name="/speak")
    with pytest.raises(Exception, match="301 characters, the limit is 300"):
        client.predict("a" * 301, api_name="/speak")


def test_no_more_tools_work_at_a_time_than_requests_may(most):
    engine = Engine(most)
    service = Service(engine, Settings(requests=1), Metrics(), "tiny")
    tools = page.Tools(service, None)

    async def both():
        first = asyncio.create_task(tools.speak("hello there"))
        await asyncio.sleep(0)
        with pytest.raises(gr.Error, match="1 requests are in work already: try again"):
            await tools.speak("hello")
        return await first

    assert asyncio.run(both())[0] == 24_000
    assert service.in_work == 0
    engine.close()


def test_what_a_model_lacks_is_told(most):
    reader = most_core.Most(most.model, most.loop.decoder, copy.copy(most.processor))
    reader.encoder = None
    engine = Engine(reader)
    tools = page.Tools(Service(engine, Settings(), Metrics(), "tiny"), None)
    with pytest.raises(gr.Error, match="no ears"):
        asyncio.run(tools.transcribe("assets/samples/latte.wav"))
    with pytest.raises(gr.Error, match="no ears"):
        asyncio.run(tools.ask("", "assets/samples/latte.wav"))
    with pytest.raises(gr.Error, match="no voice"):
        asyncio.run(tools.speak("hello"))
    assert words()["card"]["reads"] in card.sentences(reader, {})
    engine.close()


def told(result):
    return [part.text for part in result.content]


async def call_all(one):
    async with (
        streamable_http_client(f"{one.url}/gradio_api/mcp/", http_client=httpx.AsyncClient(headers=one.headers)) as (
            read,
            write,
            *_,
        ),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        tools = {tool.name: tool for tool in (await session.list_tools()).tools}
        assert set(tools) == {"ask", "transcribe", "speak"}
        for tool in tools.values():
            assert len(tool.description) > 50
            assert all(field["description"] for field in tool.inputSchema["properties"].values())
        assert "required" not in tools["ask"].inputSchema
        sound = base64.b64encode(Path("assets/samples/latte.wav").read_bytes()).decode()
        recording = f"data:audio/wav;base64,{sound}"
        typed = await session.call_tool("ask", {"text": "What is the capital of Wales?"})
        spoken = await session.call_tool("ask", {"recording": recording})
        written = await session.call_tool("transcribe", {"recording": recording})
        said = await session.call_tool("speak", {"text": "Tuesday comes after Monday."})
        nothing = await session.call_tool("speak", {"text": " "})
    assert not any(result.isError for result in (typed, spoken, written, said))
    assert "Cardiff" in told(typed)[1]
    assert "latte" in told(spoken)[0]
    assert "latte" in told(written)[0]
    assert nothing.isError
    assert "Type a text" in told(nothing)[0]
    answer = httpx.get(told(said)[0], headers=one.headers)
    samples, rate = soundfile.read(io.BytesIO(answer.content))
    assert rate == 24_000
    assert np.abs(samples).max() > 0.05


def test_mcp_clients_call_the_tools(site):
    asyncio.run(call_all(site))


def test_mcp_clients_come_in_with_the_token_alone(guarded):
    asyncio.run(call_all(guarded))
    assert httpx.post(f"{guarded.url}/gradio_api/mcp/", json={}).status_code == 401


# The model's card


def test_the_card_of_the_shipped_model_tells_its_figures_and_claims(site):
    page = str(config_of(site.get("/").text)["components"])
    figures = json.loads(Path("assets/nano/figures.json").read_text())["nano"]["figures"]
    assert f"{100 * figures['qa_text_seen']:.1f} %" in page
    assert "coffee orders" in page
    assert "What it cannot do" in page
    assert "MoST nano</h1>" in page
    assert "license: apache-2.0" not in page


@pytest.mark.parametrize(
    "broken", [None, "", "{", "[]", "3", '{"nano": 3}', '{"nano": {"figures": []}}', "[" * 100_000, "\udcff"]
)
def test_a_checkpoint_without_figures_or_readme_says_so(tmp_path, most, broken):
    if broken is not None:
        (tmp_path / "figures.json").write_text(broken, errors="surrogateescape")
    figures = card.read_figures(tmp_path)
    assert card.read_readme(tmp_path) == ""
    assert words()["card"]["no_figures"] in card.table(figures)
    assert words()["card"]["no_readme"] in card.readme("")
    shown = html.unescape(card.sentences(most, figures))
    assert words()["card"]["unknown"] in shown
    assert words()["card"]["nano_can"][0] not in shown
    assert words()["card"]["hears_and_speaks"] in shown


def test_figures_are_shown_as_they_are_and_what_is_none_is_left_out(tmp_path):
    given = {"qa_text_seen": 0.5, "qa_text_seen_low": 0.25, "qa_text_seen_high": 0.75, "n_qa_text_seen": 1200}
    odd = {"asr_wer_seen": "<b>", "orders_human": None, "qa_text_unseen": True}
    (tmp_path / "figures.json").write_text(json.dumps({"other": {"figures": given | odd}}))
    shown = card.table(card.read_figures(tmp_path))
    assert "<td>50.0 %</td><td>25.0 to 75.0 %</td><td>1,200</td>" in shown
    assert shown.count("<tr>") == 2


def test_a_readme_of_anybody_does_no_harm(tmp_path):
    text = """---\nlicense: x\n---\n# Title\n<script>alert(1)</script>\n\n![pic](https://evil.example/x.png)
[a](javascript:alert) [b](../secrets) [c](https://good.example) <img src=x onerror=y>\n\n| a | b |\n|---|---|\n| 1 | 2 |
"""
    (tmp_path / "README.md").write_text(text)
    shown = card.readme(card.read_readme(tmp_path))
    assert "license" not in shown
    assert "<h1>Title</h1>" in shown
    assert "<td>1</td>" in shown
    assert not re.search(r"<(script|img)", shown)
    assert "evil.example" not in shown
    assert re.findall(r'href="([^"]*)"', shown) == ["https://good.example"]
