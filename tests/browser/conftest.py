"""A real Chromium with a fake microphone, the real app, and a guard: no page may ask another host for anything."""

import contextlib
import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile

from app.audio import Resampler
from bench.app import serving

SAMPLES = Path("assets/samples")
MICROPHONE_RATE = 48_000  # Chromium reads it as it is
OWN_HOSTS = {"localhost", "127.0.0.1"}
HERE = Path(__file__).parent
QUIET = [  # nothing of a browser's own business
    "--no-sandbox",  # roots of containers have none
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def pytest_collection_modifyitems(items):
    """Sound and pages run in real time: where others keep the machine busy for a moment, a test may have to be run
    again. One that fails every time still fails."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.flaky(reruns=2))


@pytest.fixture(scope="module")  # its event loop runs as long as it does, and others' tests want loops of their own
def chromium():
    """(playwright, path of Chromium); without it tests are skipped, but not in continuous integration."""
    path = shutil.which("chromium")
    if path is None:
        why = "there is no chromium: apt-get install chromium"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        yield started, path


@pytest.fixture(scope="module")
def browser_for(chromium):
    """`with browser_for(wav, ...) as page:` a page whose microphone hears the WAV file once.

    `wav` None: a microphone that beeps. `microphone` False: no device at all. `allowed` False: permission is not given.
    `autoplay` True: pages may sound without a tap. `hosts`: more names of this machine. It fails if anything was asked
    of another host.
    """
    started, path = chromium

    @contextlib.contextmanager
    def open_page(wav=None, *, microphone=True, allowed=True, autoplay=False, hosts=(), flags=(), **context):
        arguments = [*QUIET, *flags]
        if microphone:
            arguments.append("--use-fake-device-for-media-stream")
        if microphone and allowed:
            arguments.append("--use-fake-ui-for-media-stream")
        if wav is not None:
            arguments.append(f"--use-file-for-fake-audio-capture={Path(wav).resolve()}%noloop")
        if autoplay:
            arguments.append("--autoplay-policy=no-user-gesture-required")
        if hosts:
            arguments.append(f"--host-resolver-rules={','.join(f'MAP {host} 127.0.0.1' for host in hosts)}")
        browser = started.chromium.launch(executable_path=path, headless=True, args=arguments)
        asked = set()
        try:
            opened = browser.new_context(**context)
            opened.on("request", lambda request: asked.add(request.url))
            page = opened.new_page()
            page.on("websocket", lambda socket: asked.add(socket.url))
            yield page
        finally:
            browser.close()
        strangers = foreign(asked, {*OWN_HOSTS, *hosts})
        assert not strangers, f"the page asked others: {strangers}"

    return open_page


def foreign(urls, own):
    """Those of the URLs that lead to other hosts."""
    return sorted(url for url in urls if (host := urlsplit(url).hostname) and host not in own)


@pytest.fixture(scope="session")
def microphone_wav(tmp_path_factory):
    """`microphone_wav(["latte.wav", "clock.wav"], gap_s=4)`: a file for the fake microphone of samples, or of arrays at
    16 kHz, each after a gap; and the seconds at which each of them begins and ends."""

    def write(sounds, gap_s=1.0, lead_s=None, rate=16_000):
        pieces, times, at = [], [], 0.0
        for number, sound in enumerate(sounds):
            wave = sound if isinstance(sound, np.ndarray) else soundfile.read(SAMPLES / sound, dtype="float32")[0]
            up = Resampler(rate, MICROPHONE_RATE)
            wave = np.concatenate([up.push(wave), up.finish()])
            gap = gap_s if number or lead_s is None else lead_s
            pieces += [np.zeros(round(gap * MICROPHONE_RATE), np.float32), wave]
            at += gap
            times.append((at, at + len(wave) / MICROPHONE_RATE))
            at += len(wave) / MICROPHONE_RATE
        path = tmp_path_factory.mktemp("microphone") / "said.wav"
        pieces.append(np.zeros(MICROPHONE_RATE, np.float32))
        soundfile.write(path, np.concatenate(pieces), MICROPHONE_RATE, subtype="PCM_16")
        return path, times

    return write


@pytest.fixture(scope="session")
def app_url():
    """The real app with the shipped model, in a process of its own as users start it."""
    with serving(Path("assets/nano")) as (socket, _):
        yield socket.replace("ws", "http", 1).removesuffix("/v1/realtime")
