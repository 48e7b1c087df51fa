"""Asking the page without talking: typed, as a file, with a microphone that cannot be had, in two tabs, by keyboard."""

import subprocess

import pytest
import soundfile
from talk_page import TalkPage, free_port, served

from app.audio import encode

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
MEAN = "${alert(1)}</script><img src=x onerror=alert(1)> {{7*7}}"


def test_what_is_typed_is_answered(browser_for, app_url):
    with browser_for(microphone=False) as page:
        talk = TalkPage(page, app_url, ear=True)
        talk.ask(QUESTION)
        talk.wait_turns(1)
        (turn,) = talk.turns()
        assert (turn["you"], turn["most"], turn["status"]) == (QUESTION, ANSWER, "completed")
        assert abs(talk.heard()).max() > 0.05, "it was not said aloud"
        assert {"play-reply", "times"} <= set(turn["buttons"])
        assert talk.errors == []


@pytest.fixture(scope="module")
def open_url():
    """The app, let in under any name: over http, other machines see it so."""
    port = free_port()
    with served(port, "--token", "none"):
        yield f"http://most.test:{port}"


@pytest.mark.parametrize(
    ("where", "how", "told"),
    [
        ("app_url", {"allowed": False}, "blocked for this page"),
        ("app_url", {"microphone": False}, "No microphone was found"),
        ("open_url", {"hosts": ["most.test"]}, "https"),
    ],
    ids=["denied", "absent", "http"],
)
def test_without_a_microphone_it_says_why_and_answers_all_the_same(browser_for, request, where, how, told):
    url = request.getfixturevalue(where)
    with browser_for(**how) as page:
        talk = TalkPage(page, url)
        talk.press("start")
        talk.wait_state("typing_only")
        assert told in talk.problem()
        talk.ask(QUESTION)
        talk.wait_turns(1)
        assert talk.turns()[0]["most"] == ANSWER
        page.set_input_files("#most-file", "assets/samples/day.wav")
        talk.wait_turns(2)
        assert talk.turns()[1]["most"] == "Tuesday comes after Monday."
        assert talk.errors == []


def test_files_of_every_kind_are_answered(browser_for, app_url, tmp_path):
    samples, rate = soundfile.read("assets/samples/latte.wav", dtype="float32")
    names = []
    for kind, ending in (("wav", "wav"), ("flac", "flac"), ("mp3", "mp3"), ("opus", "opus"), ("aac", "aac")):
        (tmp_path / f"latte.{ending}").write_bytes(encode(samples, rate, kind))
        names.append(f"latte.{ending}")
    for ending in ("m4a", "webm"):
        to = tmp_path / f"latte.{ending}"
        subprocess.run(["ffmpeg", "-v", "error", "-i", "assets/samples/latte.wav", str(to)], check=True)
        names.append(to.name)
    with browser_for(microphone=False) as page:
        talk = TalkPage(page, app_url, voice=False)
        for count, name in enumerate(names, 1):
            page.set_input_files("#most-file", tmp_path / name)
            talk.wait_turns(count)
        turns = talk.turns()
        assert [turn["most"] for turn in turns] == ["One latte, coming up."] * len(names)
        assert all(f"from {name}" in turn["facts"] for turn, name in zip(turns, names, strict=True))


def test_a_file_that_is_no_sound_is_refused_in_words(browser_for, app_url, tmp_path):
    (tmp_path / "notes.wav").write_bytes(b"no sound at all")
    (tmp_path / "large.wav").write_bytes(bytes(21_000_000))
    with browser_for(microphone=False) as page:
        talk = TalkPage(page, app_url)
        page.set_input_files("#most-file", tmp_path / "notes.wav")
        talk.until(lambda: "not a sound that can be read" in talk.note())
        page.set_input_files("#most-file", tmp_path / "large.wav")
        talk.until(lambda: "it has 21 MB; the limit is 20 MB" in talk.note())
        assert talk.turns() == []
        assert talk.errors == []


def test_strange_text_stays_text_and_long_text_stays_in_its_field(browser_for, app_url):
    with browser_for(microphone=False) as page:
        dialogs = []
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        talk = TalkPage(page, app_url, voice=False)
        talk.ask(MEAN)
        talk.wait_turns(1)
        assert talk.turns()[0]["you"] == MEAN
        assert page.locator("#most img").count() == 0
        talk.ask("a" * 100_000)
        assert "100000 characters; the limit is 4000" in talk.note()
        assert len(page.input_value("#most-text")) == 100_000, "nothing that was typed is lost"
        assert len(talk.turns()) == 1
        assert dialogs == []
        assert talk.errors == []


def test_a_chip_and_a_recording_ask_with_one_tap(browser_for, app_url):
    with browser_for(microphone=False) as page:
        talk = TalkPage(page, app_url)
        talk.press("ask")
        talk.wait_turns(1)
        talk.press("sample")
        talk.wait_turns(2)
        turns = talk.turns()
        assert turns[0]["you"] == page.locator('[data-action="ask"]').first.inner_text()
        assert all(turn["status"] == "completed" and turn["most"] for turn in turns)
        assert {"play-user", "play-reply"} <= set(turns[1]["buttons"])


def test_both_voices_are_heard_again(browser_for, app_url):
    with browser_for(microphone=False) as page:
        talk = TalkPage(page, app_url, ear=True)
        talk.press("sample")
        talk.wait_turns(1)
        for who in ("play-user", "play-reply"):
            page.evaluate("testEar.pieces.length = 0")
            talk.press(who)
            assert page.locator(f'[data-action="{who}"]').inner_text() == "Stop playing"
            talk.until(lambda who=who: page.locator(f'[data-action="{who}"]').inner_text() != "Stop playing")
            assert abs(talk.heard()).max() > 0.05


def test_a_turns_times_add_up(browser_for, app_url):
    with browser_for(microphone=False) as page:
        talk = TalkPage(page, app_url)
        talk.ask(QUESTION)
        talk.wait_turns(1)
        page.wait_for_selector(".waterfall")
        rows = page.eval_on_selector_all(
            ".waterfall tr", "rows => rows.map(r => [r.dataset.stage, parseInt(r.querySelector('td').textContent)])"
        )
        stages, (_, total) = rows[:-1], rows[-1]
        assert sum(ms for _, ms in stages) == pytest.approx(total, abs=len(stages) + 1)
        assert {"text", "vocoder"} <= {name for name, _ in stages}


def test_quick_questions_are_answered_one_after_the_other(browser_for, app_url):
    with browser_for(microphone=False) as page:
        talk = TalkPage(page, app_url, voice=False)
        page.evaluate(
            """(questions) => questions.forEach((question) => {
              document.querySelector("#most-text").value = question;
              document.querySelector(".composer").requestSubmit();
            })""",
            [QUESTION, "What day comes after Monday?"],  # the second before the first could be sent
        )
        assert [turn["you"] for turn in talk.turns()] == [QUESTION, "What day comes after Monday?"]
        talk.wait_turns(2)
        assert [turn["most"] for turn in talk.turns()] == [ANSWER, "Tuesday comes after Monday."]


def test_a_typed_question_ends_a_reply_that_is_still_said(browser_for, app_url):
    with browser_for(microphone=False) as page:
        talk = TalkPage(page, app_url)
        talk.ask("How do you spell lemon?")
        talk.wait_state("speaking")
        talk.ask(QUESTION)
        talk.wait_turns(2)
        first, second = talk.turns()
        assert "interrupted after" in first["facts"]
        assert second["most"] == ANSWER


def test_what_waits_is_given_up_when_the_conversation_is_ended(browser_for, app_url):
    with browser_for(microphone=False) as page:
        talk = TalkPage(page, app_url)
        talk.ask(QUESTION)
        talk.wait_turns(1)
        page.context.set_offline(True)
        talk.wait_state("offline")
        talk.ask("What day comes after Monday?")
        talk.press("end")
        talk.wait_state("idle")
        assert "ended before this was asked" in talk.turns()[1]["facts"]
        page.context.set_offline(False)
        talk.ask("What is the opposite of hot?")
        talk.wait_turns(3)
        assert [turn["most"] for turn in talk.turns()] == [ANSWER, "", "The opposite of hot is cold."]


def test_two_tabs_talk_at_once(browser_for, app_url):
    with browser_for(microphone=False) as page:
        first, second = TalkPage(page, app_url), TalkPage(page.context.new_page(), app_url)
        first.ask(QUESTION)
        second.ask("What day comes after Monday?")
        for talk, answer in ((first, ANSWER), (second, "Tuesday comes after Monday.")):
            talk.wait_turns(1)
            assert [turn["most"] for turn in talk.turns()] == [answer]


def test_the_keyboard_alone_is_enough(browser_for, microphone_wav, app_url):
    wav, _ = microphone_wav(["sum.wav"], lead_s=2.0)
    with browser_for(wav) as page:
        talk = TalkPage(page, app_url)

        def tab_to(selector):
            for _ in range(60):
                page.keyboard.press("Tab")
                if page.evaluate("s => document.activeElement.matches(s)", selector):
                    return
            raise AssertionError(f"no Tab leads to {selector}")

        tab_to('[data-action="start"]')
        page.keyboard.press("Enter")
        talk.wait_turns(1)
        tab_to("#most-text")
        page.keyboard.type(f"{QUESTION} m")
        assert talk.state != "muted", "a letter that is typed is no command"
        page.keyboard.press("Backspace")
        page.keyboard.press("Enter")
        talk.wait_turns(2)
        tab_to('[data-action="settings"]')
        page.keyboard.press("Enter")
        page.wait_for_selector("dialog[open]")
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog[open]", state="hidden")
        tab_to('.turn [data-action="times"]')
        page.keyboard.press("Enter")
        assert page.inner_text(".beside h2") == "Turn 1"
        assert len(talk.turns()) == 2


def test_settings_last_and_change_the_session(browser_for, app_url):
    with browser_for(microphone=False) as page:
        sent = []
        page.on("websocket", lambda socket: socket.on("framesent", lambda frame: sent.append(str(frame))))
        talk = TalkPage(page, app_url)
        talk.ask(QUESTION)
        talk.wait_turns(1)
        talk.press("settings")
        page.check('input[value="push"]')
        page.fill("#most-history", "3")
        page.keyboard.press("Tab")
        page.select_option("#most-endpoint", "1000")
        talk.until(lambda: any('"endpoint_max_ms":1000' in frame for frame in sent))
        assert any('"hands_free":false' in frame and '"history":3' in frame for frame in sent)
        page.reload()
        talk.wait_ready()
        talk.press("settings")
        assert page.is_checked('input[value="push"]')
        assert page.input_value("#most-history") == "3"
        assert page.input_value("#most-endpoint") == "1000"


def test_a_browser_that_lets_nothing_sound_still_shows_answers(browser_for, app_url):
    with browser_for(microphone=False) as page:
        page.add_init_script(
            "Object.defineProperty(AudioContext.prototype, 'state', { get: () => 'suspended' });"
            "AudioContext.prototype.resume = () => new Promise(() => {});"
        )
        talk = TalkPage(page, app_url)
        talk.press("start")
        talk.wait_state("typing_only")
        assert "blocks sound" in talk.problem()
        talk.press("dismiss")
        assert page.locator('[data-action="start"]').is_visible()
        talk.ask(QUESTION)
        talk.wait_turns(1)
        assert talk.turns()[0]["most"] == ANSWER
