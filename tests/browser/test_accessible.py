"""What axe-core finds wrong with the page: nothing serious, in no state, light or dark, wide or narrow. Nothing moves
for those who ask for that."""

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from talk_page import TalkPage

QUESTION = "What is the capital of France?"


def violations(page):
    """Serious ones, as 'rule: where'."""
    found = Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in found if v["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1440, 900), (390, 844)], ids=["wide", "phone"])
def test_axe_finds_nothing_serious(browser_for, app_url, scheme, size):
    viewport = {"width": size[0], "height": size[1]}
    with browser_for(microphone=False, color_scheme=scheme, viewport=viewport) as page:
        talk = TalkPage(page, app_url)
        assert ("dark" in (page.get_attribute("body", "class") or "")) == (scheme == "dark")
        assert violations(page) == []
        talk.press("start")
        talk.wait_state("typing_only")
        assert violations(page) == []
        talk.ask(QUESTION)
        talk.wait_turns(1)
        assert violations(page) == []
        talk.press("settings")
        page.wait_for_selector("dialog[open]")
        assert violations(page) == []
        page.keyboard.press("Escape")
        for tab in page.get_by_role("tab").and_(page.locator(":not(#most *)")).all()[1:]:  # Gradio's
            tab.click()
            page.wait_for_timeout(300)
            assert violations(page) == []


def test_the_theme_is_switched_and_kept(browser_for, app_url):
    with browser_for(microphone=False, color_scheme="light") as page:
        talk = TalkPage(page, app_url)

        def dark():
            return "dark" in (page.get_attribute("body", "class") or "")

        assert not dark()
        talk.press("theme")
        assert dark()
        page.reload()
        talk.wait_ready()
        page.wait_for_selector(".gradio-container #most [data-ready]")  # Gradio has its own mind about colours
        page.wait_for_timeout(500)
        assert dark()
        page.emulate_media(color_scheme="dark")
        page.emulate_media(color_scheme="light")
        assert dark()
        assert page.get_attribute('[data-action="theme"]', "aria-label") == "Light colours"


@pytest.mark.parametrize("voice", [True, False], ids=["aloud", "as text"])
def test_screen_readers_are_told_what_was_heard_and_said(browser_for, app_url, voice):
    with browser_for(microphone=False) as page:
        talk = TalkPage(page, app_url, voice=voice)
        page.evaluate(
            "globalThis.told = []; const live = document.getElementById('most-live');"
            "new MutationObserver(() => told.push(live.textContent)).observe(live, { childList: true });"
        )
        talk.press("sample")
        talk.until(lambda: any("You said: Can I have a latte" in text for text in page.evaluate("told")))
        talk.until(lambda: any("MoST: One latte" in text for text in page.evaluate("told")))
        talk.ask(QUESTION)
        talk.until(lambda: any("Paris" in text for text in page.evaluate("told")))
        assert page.get_attribute("#most-live", "aria-live") == "polite"


def test_nothing_moves_for_those_who_ask(browser_for, app_url):
    with browser_for(microphone=False, reduced_motion="reduce") as page:
        talk = TalkPage(page, app_url)
        talk.ask(QUESTION)
        talk.wait_state("speaking")
        moving = page.evaluate("document.getAnimations().filter((a) => a.playState === 'running').length")
        frames = page.evaluate(
            """async () => {
              let drawn = 0;
              const clear = CanvasRenderingContext2D.prototype.clearRect;
              CanvasRenderingContext2D.prototype.clearRect = function (...a) { drawn++; return clear.apply(this, a); };
              const still = () => drawn;
              await new Promise((done) => setTimeout(done, 500));
              return still();
            }"""
        )
        assert talk.state == "speaking"
        assert moving == 0
        assert frames <= 3, "the circle moves"


def test_a_phone_scrolls_in_one_direction_only(browser_for, microphone_wav, app_url):
    wav, _ = microphone_wav([np.zeros(16_000, np.float32)])
    with browser_for(wav, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True) as page:
        talk = TalkPage(page, app_url)
        page.tap('[data-action="start"]')
        talk.wait_state("listening", "hearing")
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0
        assert page.locator('[data-action="end"]').bounding_box()["x"] < 390 - 30
        assert page.locator("#most-text").is_visible()
        for count in (1, 2, 3, 4):
            talk.ask(QUESTION)
            talk.wait_turns(count)
        reply = page.locator(".turn").last.locator(".its").bounding_box()
        stage, composer = (page.locator(place).bounding_box() for place in (".stage", ".compose"))
        assert reply["y"] >= stage["y"] + stage["height"] - 1, "what was said last is out of sight"
        assert reply["y"] + reply["height"] <= composer["y"] + 1
