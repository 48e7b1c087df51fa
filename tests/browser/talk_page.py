"""A person at the page, as the browser tests are one: what they press, and what they see."""

import base64
import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np

from app.audio import Resampler
from most_core.speech import SAMPLE_RATE

# Runs before the page's own code, and keeps all that goes to its speaker.
EAR = """(() => {
  const worklet = `registerProcessor("test-ear", class extends AudioWorkletProcessor {
    process([[heard]]) { this.port.postMessage(heard ? heard.slice() : new Float32Array(128)); return true; }
  })`;
  const connect = AudioNode.prototype.connect, ears = new Map();
  const ear = (globalThis.testEar = { rate: 0, pieces: [], began: 0 });
  async function listen(context) {
    await context.audioWorklet.addModule(URL.createObjectURL(new Blob([worklet], { type: "text/javascript" })));
    const node = new AudioWorkletNode(context, "test-ear", { channelCount: 1, channelCountMode: "explicit" });
    connect.call(node, context.destination);
    node.port.onmessage = ({ data }) => {
      ear.began ||= performance.now();
      ear.pieces.push(data);
    };
    ear.rate = context.sampleRate;
    return node;
  }
  AudioNode.prototype.connect = function (to, ...more) {
    if (to instanceof AudioDestinationNode && this.context instanceof AudioContext) {
      if (!ears.has(this.context)) ears.set(this.context, listen(this.context));
      ears.get(this.context).then((node) => connect.call(this, node));
    }
    return connect.call(this, to, ...more);
  };
  ear.read = () => {
    const bytes = new Uint8Array(ear.pieces.length * 512);
    ear.pieces.forEach((piece, n) => bytes.set(new Uint8Array(piece.buffer), 512 * n));
    let text = "";
    for (let n = 0; n < bytes.length; n += 8192) text += String.fromCharCode(...bytes.subarray(n, n + 8192));
    return { rate: ear.rate, wave: btoa(text) };
  };
})();"""

EXACT = {
    "echoCancellation": False,
    "noiseSuppression": False,
    "autoGainControl": False,
}  # a fake microphone has no echo
OVER = ["completed", "cancelled", "incomplete", "failed", "lost"]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def served(port, *flags):
    """The app as users start it, on this port."""
    command = [sys.executable, "app.py", "--port", str(port), *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
                break
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.wait()


class TalkPage:
    """`TalkPage(page, url, mode="push")` opens the page with these settings and waits until it can be used. `ear`: keep
    what it plays."""

    def __init__(self, page, url, ear=False, **settings):
        self.page, self.url = page, url
        self.errors = []
        if ear:
            page.add_init_script(EAR)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        kept = json.dumps(EXACT | settings)
        page.add_init_script(f"if (!localStorage['most.settings']) localStorage['most.settings'] = {json.dumps(kept)}")
        page.goto(url)
        self.wait_ready()

    def wait_ready(self):
        self.page.wait_for_selector('#most [data-ready="true"]', timeout=30_000)

    def press(self, action, nth=0):
        self.page.locator(f'#most [data-action="{action}"]').nth(nth).click()

    @property
    def state(self):
        return self.page.get_attribute(".stage", "data-state")

    def wait_state(self, *states, within_s=15):
        wanted = ", ".join(f'.stage[data-state="{state}"]' for state in states)
        self.page.wait_for_selector(wanted, timeout=1000 * within_s)

    def wait_turns(self, count, within_s=30):
        """Until so many turns are over and nobody speaks."""
        over = ", ".join(f'.turn[data-status="{status}"]' for status in OVER)
        self.page.wait_for_function(
            "([over, count]) => document.querySelectorAll(over).length >= count && "
            "!['speaking', 'thinking', 'hearing', 'paused'].includes(document.querySelector('.stage').dataset.state)",
            arg=[over, count],
            timeout=1000 * within_s,
        )

    def turns(self):
        """[{you, most, status, facts}], as they are read."""
        return self.page.eval_on_selector_all(
            ".turn",
            """(turns) => turns.map((turn) => ({
              you: turn.querySelector(".mine .said").textContent,
              most: turn.querySelector(".its .said").textContent,
              struck: turn.querySelector("s")?.textContent ?? "",
              facts: [...turn.querySelectorAll(".facts")].map((p) => p.textContent).join(" | "),
              status: turn.dataset.status,
              buttons: [...turn.querySelectorAll(".foot .button:not([hidden])")].map((b) => b.dataset.action),
            }))""",
        )

    def ask(self, text):
        self.page.fill("#most-text", text)
        self.page.press("#most-text", "Enter")

    def problem(self):
        """What the page says is wrong; "" if nothing is."""
        alert = self.page.locator(".problem")
        return alert.inner_text() if alert.is_visible() else ""

    def note(self):
        return self.page.inner_text("#most-compose-note")

    def until(self, true, within_s=10):
        """Wait for what the page does not mark; AssertionError if it does not come."""
        end = time.monotonic() + within_s
        while not true():
            assert time.monotonic() < end, f"it did not come within {within_s} s: {self.state}, {self.turns()}"
            self.page.wait_for_timeout(50)

    def heard(self):
        """All that the page played so far, float32 at 16 kHz."""
        given = self.page.evaluate("testEar.read()")
        wave = np.frombuffer(base64.b64decode(given["wave"]), "<f4")
        down = Resampler(round(given["rate"]), SAMPLE_RATE)
        return np.concatenate([down.push(wave), down.finish()])
