"""Talking with the page through a real browser whose microphone says what a file says. What is asked and answered is in
assets/samples and nano's own words."""

import re

import numpy as np
import pytest
from talk_page import TalkPage

import most_core
from app.audio import WIRE_RATE, Resampler
from bench.app import cough
from most_core.speech import SAMPLE_RATE

INTO_REPLY_S = 1.5  # after the end of a question: its reply has begun, and goes on for another second


def pause(seconds):
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


@pytest.fixture(scope="module")
def conversation(browser_for, microphone_wav, app_url):
    """A whole conversation by voice alone: (turns as they are read, sound that was played, states that were seen)."""
    down = Resampler(WIRE_RATE, SAMPLE_RATE)
    coughed = np.concatenate([down.push(cough()), down.finish()])
    wav, _ = microphone_wav(
        [
            "latte.wav",
            pause(4),
            "clock.wav",
            pause(INTO_REPLY_S),
            "sum.wav",
            pause(4),
            "spelling.wav",
            pause(INTO_REPLY_S),
            coughed,
            pause(4),
        ],
        gap_s=0,
        lead_s=1.0,
    )
    with browser_for(wav) as page:
        talk = TalkPage(page, app_url, ear=True)
        page.evaluate(
            """() => {
              globalThis.seen = [];
              const stage = document.querySelector(".stage");
              const said = ".mine[data-partial] .said";
              const look = () => seen.push([stage.dataset.state, document.querySelector(said)?.textContent]);
              new MutationObserver(look).observe(document.querySelector(".talk"), {
                attributes: true, childList: true, characterData: true, subtree: true });
            }"""
        )
        talk.press("start")
        talk.wait_turns(4, within_s=60)
        page.wait_for_timeout(500)
        assert talk.errors == []
        yield talk.turns(), talk.heard(), page.evaluate("seen")


def words(text):
    return re.findall(r"[a-z']+", text.lower())


def test_a_spoken_question_gets_its_answer_to_read(conversation):
    turns, _, _ = conversation
    assert words(turns[0]["you"]) == words("Can I have a latte, please?")
    assert words(turns[0]["most"]) == words("One latte, coming up.")
    assert turns[0]["status"] == "completed"
    assert re.search(r"heard \d+ % sure", turns[0]["facts"])
    assert re.search(r"answer \d+ % sure", turns[0]["facts"])


def test_it_is_heard_too(conversation):
    _, sound, _ = conversation
    encoder = most_core.load("assets/nano").encoder
    heard = [word.text.lower() for word in encoder.words(sound[: 8 * SAMPLE_RATE])]
    assert np.abs(sound).max() > 0.05
    assert heard[-2:] == ["coming", "up"], heard


def test_what_is_said_is_shown_while_it_is_said(conversation):
    _, _, seen = conversation
    partial = {text for state, text in seen if state == "hearing" and text and text != "…"}
    assert any("latte" in text.lower() or "have" in text.lower() for text in partial), partial


def test_states_follow_the_conversation(conversation):
    _, _, seen = conversation
    states = [state for state, _ in seen]
    once = [state for state, before in zip(states, ["", *states], strict=False) if state != before]
    once = [state for state in once if state != "thinking"]  # too short to be seen where replies are quick
    assert once[once.index("listening") :][:4] == ["listening", "hearing", "speaking", "listening"]


def test_speech_over_a_reply_stops_it_and_is_answered(conversation):
    turns, _, _ = conversation
    assert "interrupted after" in turns[1]["facts"]
    assert turns[1]["struck"]
    assert words(turns[2]["you"]) == words("What is six times five?")
    assert words(turns[2]["most"])[:4] == ["six", "times", "five", "is"]  # nano's sums are often wrong


def test_a_cough_over_a_reply_interrupts_nothing(conversation):
    turns, _, seen = conversation
    assert "paused" in {state for state, _ in seen}, "the cough was not heard at all"
    assert len(turns) == 4
    assert turns[3]["status"] == "completed"
    assert not turns[3]["struck"]
    assert "interrupted" not in turns[3]["facts"]
    assert "lemon" in words(turns[3]["most"])


def test_push_to_talk_hears_only_while_the_key_is_held(browser_for, microphone_wav, app_url):
    wav, times = microphone_wav(["sum.wav", "day.wav"], gap_s=3.0, lead_s=1.0)
    with browser_for(wav) as page:
        talk = TalkPage(page, app_url, mode="push")
        talk.press("start")
        talk.wait_state("hold")
        page.wait_for_timeout(1000 * (times[1][0] - 0.5))
        assert talk.turns() == []
        page.keyboard.down("Space")
        talk.wait_state("hearing")
        page.wait_for_timeout(1000 * (times[1][1] - times[1][0] + 0.8))
        page.keyboard.up("Space")
        talk.wait_turns(1)
        (turn,) = talk.turns()
        assert words(turn["you"]) == words("Tell me the day that comes after Monday.")
        assert "tuesday" in words(turn["most"])


def test_holding_the_circle_is_push_to_talk(browser_for, microphone_wav, app_url):
    wav, times = microphone_wav(["day.wav"], lead_s=2.0)
    with browser_for(wav) as page:
        talk = TalkPage(page, app_url, mode="push")
        talk.press("start")
        talk.wait_state("hold")
        page.wait_for_timeout(1000)
        box = page.locator(".circle").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.down()
        talk.wait_state("hearing")
        page.wait_for_timeout(1000 * (times[0][1] - 1.0 + 0.5))
        page.mouse.up()
        talk.wait_turns(1)
        assert "tuesday" in words(talk.turns()[0]["most"])


def test_a_muted_microphone_is_not_heard(browser_for, microphone_wav, app_url):
    wav, times = microphone_wav(["sum.wav", "day.wav"], gap_s=3.0, lead_s=1.5)
    with browser_for(wav) as page:
        talk = TalkPage(page, app_url)
        talk.press("start")
        talk.wait_state("listening")
        page.keyboard.press("m")
        talk.wait_state("muted")
        page.wait_for_timeout(1000 * times[0][1])
        talk.press("mute")
        talk.wait_turns(1)
        (turn,) = talk.turns()
        assert "monday" in words(turn["you"])


def test_esc_silences_a_reply_at_once(browser_for, microphone_wav, app_url):
    wav, _ = microphone_wav(["spelling.wav"], lead_s=1.0)
    with browser_for(wav) as page:
        talk = TalkPage(page, app_url, ear=True)
        talk.press("start")
        talk.wait_state("speaking")
        page.wait_for_timeout(500)
        page.evaluate("addEventListener('keydown', () => (globalThis.pressedAt = performance.now()), true)")
        page.keyboard.press("Escape")
        talk.wait_turns(1)
        page.wait_for_timeout(1500)
        assert "interrupted after" in talk.turns()[0]["facts"]
        sound = np.flatnonzero(np.abs(talk.heard()) > 0.003)
        pressed = page.evaluate("pressedAt - testEar.began") / 1000
        assert sound[-1] / SAMPLE_RATE < pressed + 0.15, "it went on after Esc"
        assert (sound[-1] - sound[0]) / SAMPLE_RATE > 0.2
