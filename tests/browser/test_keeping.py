"""Nothing that was said is lost: reloads, lost connections, a server that dies and comes back, sessions in files."""

import io
import json
import urllib.request
import zipfile
from pathlib import Path

import pytest
from talk_page import TalkPage, free_port, served

from app.page import session_file

QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."
LONG = "How do you spell lemon?"


def shown_of_turn(page):
    """What stands beside the conversation of the chosen turn. (What was cut off while it was generated has no trace to
    be saved, so that all turns together may count fewer choices.)"""
    return [page.inner_text(part) for part in (".beside > h2", ".counters", ".beside details")]


def sessions(url):
    return json.load(urllib.request.urlopen(f"{url}/health"))["sessions"]


def test_a_reload_in_mid_reply_keeps_the_words_and_frees_the_place(browser_for, app_url):
    with browser_for(microphone=False) as page:
        before = sessions(app_url)  # other tests may still talk
        talk = TalkPage(page, app_url)
        talk.ask(QUESTION)
        talk.wait_turns(1)
        talk.ask(LONG)
        talk.wait_state("speaking")
        page.reload()
        talk.wait_ready()
        assert [turn["you"] for turn in talk.turns()] == [QUESTION, LONG]
        assert talk.turns()[0]["most"] == ANSWER
        assert "words only" in page.inner_text(".turns")
        talk.ask("What day comes after Monday?")
        talk.wait_turns(3)
        assert talk.turns()[2]["most"] == "Tuesday comes after Monday."
        talk.until(lambda: sessions(app_url) == before + 1)
        assert talk.errors == []


def test_a_lost_connection_comes_back_and_says_so(browser_for, app_url):
    with browser_for(microphone=False) as page:
        talk = TalkPage(page, app_url)
        talk.ask(QUESTION)
        talk.wait_turns(1)
        talk.ask(LONG)
        talk.wait_state("speaking")
        page.context.set_offline(True)
        talk.wait_state("offline")
        page.context.set_offline(False)
        page.wait_for_selector(".stage:not([data-state='offline'])")
        assert "The connection is back." in page.inner_text(".turns")
        assert talk.turns()[0]["most"] == ANSWER
        talk.ask("What day comes after Monday?")
        talk.wait_turns(3)
        assert talk.turns()[2]["most"] == "Tuesday comes after Monday."
        assert talk.errors == []


def test_a_server_that_dies_in_mid_speech_and_comes_back(browser_for, microphone_wav):
    port = free_port()
    wav, _ = microphone_wav(["latte.wav", "sum.wav"], gap_s=5.0, lead_s=1.0)
    sent = []
    with browser_for(wav) as page:
        page.on("websocket", lambda opened: opened.on("framesent", lambda frame: sent.append(frame)))
        with served(port) as process:
            talk = TalkPage(page, f"http://localhost:{port}")
            talk.press("start")
            talk.wait_turns(1)
            talk.wait_state("hearing", within_s=20)
            page.wait_for_selector(".mine[data-partial] .said:not(:text('…'))")
            process.kill()
            talk.wait_state("offline")
            assert "connection is lost" in page.inner_text(".state-hint")
            first, cut = talk.turns()
            assert first["most"] == "One latte, coming up."
            assert cut["you"]
            assert "connection was lost" in cut["facts"]
        sent.clear()
        with served(port):
            talk.wait_state("listening", within_s=60)
            assert "The connection is back." in page.inner_text(".turns")
            talk.until(lambda: any(isinstance(frame, bytes) for frame in sent))  # the microphone stayed open
            talk.ask(QUESTION)
            talk.wait_turns(3)
            assert [turn["most"] for turn in talk.turns()] == ["One latte, coming up.", "", ANSWER]
            assert talk.errors == []


def test_who_stands_in_line_sees_it_and_is_answered_when_it_is_their_turn(browser_for):
    port = free_port()
    with served(port, "--sessions", "1"), browser_for(microphone=False) as page:
        first = TalkPage(page, f"http://localhost:{port}")
        first.ask(QUESTION)
        first.wait_turns(1)
        second = TalkPage(page.context.new_page(), f"http://localhost:{port}")
        second.ask("What day comes after Monday?")
        second.wait_state("queue")
        assert "number 1 in line" in second.page.inner_text(".state-hint")
        first.press("end")
        second.wait_turns(1)
        assert second.turns()[0]["most"] == "Tuesday comes after Monday."


@pytest.fixture(scope="module")
def saved(browser_for, microphone_wav, app_url, tmp_path_factory):
    """A conversation of one spoken, one interrupted and one typed turn: (its file, the turns as they were read)."""
    wav, _ = microphone_wav(["latte.wav", "spelling.wav"], gap_s=4.5, lead_s=1.0)
    with browser_for(wav) as page:
        talk = TalkPage(page, app_url)
        talk.press("start")
        talk.wait_turns(1)
        talk.wait_state("hearing", within_s=15)
        talk.wait_state("speaking")
        page.wait_for_timeout(700)
        talk.press("stop")
        talk.wait_turns(2)
        talk.ask(QUESTION)
        talk.wait_turns(3)
        page.wait_for_timeout(300)
        with page.expect_download() as download:
            talk.press("save")
        path = tmp_path_factory.mktemp("saved") / download.value.suggested_filename
        download.value.save_as(path)
        yield path, talk.turns(), shown_of_turn(page)


def test_a_saved_session_holds_everything(saved):
    path, turns, _ = saved
    session = session_file.read(path.read_bytes())
    assert [turn["user"]["text"] for turn in session.about["turns"]] == [turn["you"] for turn in turns]
    assert session.about["model"]["name"] == "most-nano"
    first, cut, typed = session.about["turns"]
    assert [first["kind"], cut["kind"], typed["kind"]] == ["spoken", "spoken", "typed"]
    assert {"turn-01-user.wav", "turn-01-reply.wav", "turn-02-user.wav", "turn-03-reply.wav"} <= set(session.sounds)
    assert typed["user"]["wav"] is None
    assert cut["reply"]["cut"]
    assert 0 < cut["reply"]["played_ms"] < cut["reply"]["sound_ms"]
    assert abs(sum(s["ms"] for s in first["timings"]["stages"]) - first["timings"]["total_ms"]) < 1
    trace = session.traces[1]
    assert trace.num_tokens > 20
    assert trace.leakage == 0
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_an_opened_session_reads_and_sounds_as_it_did(saved, browser_for, app_url):
    path, turns, beside = saved
    with browser_for(microphone=False) as page:
        sockets = []
        page.on("websocket", lambda socket: sockets.append(socket.url))
        talk = TalkPage(page, app_url, ear=True)
        page.set_input_files("#most-open", path)
        talk.wait_state("saved")
        assert talk.turns() == turns
        assert shown_of_turn(page) == beside
        assert "3 turns with most-nano" in page.inner_text(".banner")
        talk.press("play-user")
        talk.until(lambda: page.locator('[data-action="play-user"]').first.inner_text() != "Stop playing")
        assert abs(talk.heard()).max() > 0.05
        assert sockets == [], "a saved session needs no model"
        with page.expect_download() as again:
            talk.press("save")
        assert Path(again.value.path()).read_bytes() == path.read_bytes()
        talk.press("back")
        talk.wait_state("idle")
        assert talk.turns() == []


def spoilt(path):
    """Name, content, and what it is refused with."""
    whole = path.read_bytes()

    def rewritten(change):
        made = io.BytesIO()
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
            files = {name: old.read(name) for name in old.namelist()}
            change(files)
            for name, content in files.items():
                new.writestr(name, content)
        return made.getvalue()

    def newer(files):
        files["session.json"] = json.dumps(json.loads(files["session.json"]) | {"version": 99}).encode()

    yield "cut.zip", whole[: len(whole) // 2]
    yield "climbs.zip", rewritten(lambda files: files.update({"../../evil.wav": b"x"}))
    yield "bomb.zip", rewritten(lambda files: files.update({"turn-01-user.wav": bytes(300_000_000)}))
    yield "newer.zip", rewritten(newer)
    yield "table.zip", rewritten(lambda f: f.update({"turn-01.routing.parquet": f["turn-01.routing.parquet"][:500]}))
    yield "photo.zip", b"\x89PNG" * 100


def test_spoilt_sessions_are_refused_in_words_and_nothing_is_lost(saved, browser_for, app_url, tmp_path):
    path, _, _ = saved
    with browser_for(microphone=False) as page:
        talk = TalkPage(page, app_url, voice=False)
        talk.ask(QUESTION)
        talk.wait_turns(1)
        for name, content in spoilt(path):
            (tmp_path / name).write_bytes(content)
            page.set_input_files("#most-open", tmp_path / name)
            talk.until(lambda name=name: f"{name} could not be opened: " in talk.note())
            why = talk.note().partition("opened: ")[2]
            assert len(why) > 10, name
            assert "Traceback" not in why
            assert "\n" not in why
            assert [turn["most"] for turn in talk.turns()] == [ANSWER]
        assert talk.errors == []


def test_clear_asks_then_forgets_all(saved, browser_for, app_url):
    with browser_for(microphone=False) as page:
        answers = iter([False, True])
        page.on("dialog", lambda dialog: dialog.accept() if next(answers) else dialog.dismiss())
        talk = TalkPage(page, app_url, voice=False)
        talk.ask(QUESTION)
        talk.wait_turns(1)
        talk.press("clear")
        assert len(talk.turns()) == 1
        page.set_input_files("#most-open", saved[0])
        talk.wait_state("saved")
        talk.press("clear")  # puts the file away, without a question
        assert [turn["you"] for turn in talk.turns()] == [QUESTION]
        talk.press("clear")
        assert talk.turns() == []
        page.reload()
        talk.wait_ready()
        assert talk.turns() == []
