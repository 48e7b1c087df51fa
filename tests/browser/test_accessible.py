"""What axe-core finds wrong with the page: nothing serious, in no state, light or dark, wide or narrow. Nothing moves
for those who ask for that."""

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
        for tab in page.get_by_role("tab").all()[1:]:
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
        assert dark()


def test_screen_readers_are_told_what_was_heard_and_said(browser_for, app_url):
    with browser_for(microphone=False) as page:
        talk = TalkPage(page, app_url)
        page.evaluate(
            "globalThis.told = []; const live = document.getElementById('most-live');"
            "new MutationObserver(() => told.push(live.textContent)).observe(live, { childList: true });"
        )
        talk.ask(QUESTION)
        talk.wait_turns(1)
        talk.until(lambda: any("Paris" in text for text in page.evaluate("told")))
        assert page.get_attribute("#most-live", "aria-live") == "polite"


def test_nothing_moves_for_those_who_ask(browser_for, app_url):
    with browser_for(microphone=False, reduced_motion="reduce") as page:
        talk = TalkPage(page, app_url)
        talk.ask(QUESTION)
        talk.wait_turns(1)
        moving = page.evaluate("document.getAnimations().filter((a) => a.playState === 'running').length")
        frames = page.evaluate(
            """async () => {
              let drawn = 0;
              const clear = CanvasRenderingContext2D.prototype.clearRect;
              CanvasRenderingContext2D.prototype.clearRect = function (...a) { drawn++; return clear.apply(this, a); };
              await new Promise((done) => setTimeout(done, 500));
              return drawn;
            }"""
        )
        assert (moving, frames) == (0, 0)


def test_a_phone_scrolls_in_one_direction_only(browser_for, app_url):
    with browser_for(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True) as page:
        talk = TalkPage(page, app_url)
        page.tap('[data-action="start"]')
        talk.wait_state("listening", "hearing")
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0
        assert page.locator('[data-action="end"]').bounding_box()["x"] < 390 - 30
        assert page.locator("#most-text").is_visible()
