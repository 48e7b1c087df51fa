"""Takes the pictures of the page in docs/pictures: `python docs/take_pictures.py`, with the app at its usual address.

A real Chromium, whose microphone plays samples, is photographed in each state, so that pictures never show what the
page does not do.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from playwright.sync_api import Browser, Page, sync_playwright
from scipy.signal import resample_poly

URL = "http://localhost:7860"
PICTURES = Path(__file__).with_name("pictures")
SAMPLES = Path(__file__).parents[1] / "assets/samples"
QUESTIONS, PAUSE_S, RATE = ("latte.wav", "capital.wav", "spelling.wav"), 4.5, 48_000
WIDE, SMALLER, PHONE = {"width": 1440, "height": 900}, {"width": 1280, "height": 800}, {"width": 390, "height": 844}
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        said = Path(folder, "said.wav")
        pieces = [np.zeros(RATE)]
        for name in QUESTIONS:
            pieces += [resample_poly(soundfile.read(SAMPLES / name)[0], 3, 1), np.zeros(round(PAUSE_S * RATE))]
        soundfile.write(said, np.concatenate(pieces), RATE, subtype="PCM_16")
        chromium = shutil.which("chromium")
        microphone = f"--use-file-for-fake-audio-capture={said}%noloop"
        browser = playwright.chromium.launch(executable_path=chromium, args=[*FLAGS, microphone])
        for scheme in ("light", "dark"):
            talk(browser, scheme, WIDE if scheme == "light" else SMALLER)
            phone(browser, scheme)
        browser.close()
        deaf = playwright.chromium.launch(executable_path=chromium, args=FLAGS[:3])
        refused(deaf, "light")
        deaf.close()


def opened(browser: Browser, scheme: str, size: dict[str, int], **more: object) -> Page:
    page = browser.new_context(viewport=size, color_scheme=scheme, **more).new_page()
    page.goto(URL)
    page.wait_for_selector('#most [data-ready="true"]')
    return page


def take(page: Page, name: str, scheme: str) -> None:
    page.wait_for_timeout(300)  # motion settles, levels rise
    page.screenshot(path=PICTURES / f"{name}-{scheme}.png")


def talk(browser: Browser, scheme: str, size: dict[str, int]) -> None:
    page = opened(browser, scheme, size)
    take(page, "idle", scheme)
    page.click('#most [data-action="start"]')
    page.wait_for_selector(".turn:nth-child(2)", timeout=30_000)
    page.wait_for_selector('.stage[data-state="hearing"]')
    page.wait_for_selector(".mine[data-partial] .said:not(:text('…'))")
    if scheme == "light":
        take(page, "hearing", scheme)
    page.wait_for_selector('.stage[data-state="thinking"], .stage[data-state="speaking"]')
    page.wait_for_selector('.stage[data-state="speaking"]')
    page.wait_for_selector(".turn:nth-child(2) [data-action=times]:not([hidden])")
    take(page, "speaking", scheme)
    page.wait_for_selector('.stage[data-state="listening"]')
    take(page, "listening", scheme)
    page.click('#most [data-action="end"]')
    closely(page, scheme)
    if scheme == "light":
        page.click('#most [data-action="settings"]')
        take(page, "settings", scheme)
    page.context.close()


def closely(page: Page, scheme: str) -> None:
    """The routing of what was said: a token's card, and an answer without one expert."""
    page.click('#most [data-action="wide"]')
    page.wait_for_timeout(500)
    box = page.locator(".ribbon-overview").bounding_box()
    page.mouse.click(box["x"] + 0.83 * box["width"], box["y"] + 0.5 * box["height"])  # where words become speech
    box = page.locator(".ribbon-canvas").bounding_box()
    page.mouse.click(box["x"] + 0.55 * box["width"], box["y"] + 0.7 * box["height"])
    page.mouse.move(0, 0)
    take(page, "routing", scheme)
    page.click(".bars tr[data-expert] button")
    page.click('[data-action="knock-out-expert"]')
    page.click('[data-action="knock-out"]')
    page.wait_for_selector(".compared", timeout=60_000)
    page.locator(".compared").scroll_into_view_if_needed()
    take(page, "knock-out", scheme)
    page.click('#most [data-action="wide"]')


def phone(browser: Browser, scheme: str) -> None:
    page = opened(browser, scheme, PHONE, device_scale_factor=2, is_mobile=True, has_touch=True)
    page.tap('#most [data-action="start"]')
    page.wait_for_selector('.stage[data-state="hearing"]')
    page.wait_for_selector(".mine[data-partial] .said:not(:text('…'))")
    take(page, "phone", scheme)
    page.context.close()


def refused(browser: Browser, scheme: str) -> None:
    page = opened(browser, scheme, WIDE)
    page.click('#most [data-action="start"]')
    page.wait_for_selector(".problem:not([hidden])")
    take(page, "error", scheme)
    page.context.close()


if __name__ == "__main__":
    main()
