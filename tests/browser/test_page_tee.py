"""The bench's tee, in a page that is no more than its sound: what it hears is so, on one clock; and a whole turn."""

import threading

import numpy as np
import pytest
import soundfile
import uvicorn
from scipy.signal import correlate
from starlette.responses import HTMLResponse
from starlette.routing import Match, Mount
from starlette.staticfiles import StaticFiles

import most_core
from app.server import config, create, listen, places
from app.settings import Settings
from bench.page import SETTINGS, START, TEE, recording_of, scheduled, turns_in
from bench.voice_activity import trimmed

# The least that can hold a conversation: what the page does with sound, and nothing else.
TALK = """<!doctype html><title>talk</title>
<div id="most"><div data-ready="true"><button data-action="start">talk</button></div></div>
<script type="module">
  import { Sound } from "/page/static/sound/devices.js";
  const socket = new WebSocket(`ws://${location.host}/v1/realtime`);
  const sound = new Sound({ onChunk: (pcm) => socket.readyState === 1 && socket.send(pcm) });
  const told = (globalThis.told = []);
  socket.onmessage = ({ data }) => {
    const event = JSON.parse(data);
    told.push(event.type);
    if (event.type === "response.output_audio.delta")
      sound.enqueue(event.turn_id, Uint8Array.from(atob(event.delta), (c) => c.charCodeAt(0)).buffer);
    else if (event.type === "response.output_audio.done") sound.end(event.turn_id);
    else if (event.type === "most.playback")
      ({ play: () => sound.play(event.turn_id), pause: () => sound.pause(event.turn_id),
         resume: () => sound.resume(event.turn_id), stop: () => sound.stop() })[event.action]();
  };
  document.querySelector("button").onclick = async () => {
    await sound.unlock();
    await sound.openMicrophone(JSON.parse(localStorage.getItem("most.settings")));
  };
</script>"""
# The microphone comes out of the speaker a quarter of a second later.
ECHO = """<!doctype html><title>echo</title><button>start</button><script>
  document.querySelector("button").onclick = async () => {
    const context = new AudioContext();
    const stream = await navigator.mediaDevices.getUserMedia({audio: {
      echoCancellation: false, noiseSuppression: false, autoGainControl: false}});
    const source = new MediaStreamAudioSourceNode(context, {mediaStream: stream});
    source.connect(new DelayNode(context, {delayTime: .25})).connect(context.destination);
  };
</script>"""


@pytest.fixture(scope="module")
def pages_url():
    """The app with these pages in front of it; worklets are fetched past whatever a test could put in their way."""
    settings = Settings(port=0)
    most = most_core.load(settings.model, slots=places(settings))
    app = create(most, settings)
    pages = {"/talk": HTMLResponse(TALK), "/echo": HTMLResponse(ECHO)}
    static = Mount("/page/static", StaticFiles(directory="app/page/static"))

    async def front(scope, receive, send):
        if scope["type"] == "http" and scope["path"] in pages:
            await pages[scope["path"]](scope, receive, send)
        elif static.matches(scope)[0] is Match.FULL:
            scope.update(static.matches(scope)[1])
            await static.handle(scope, receive, send)
        else:  # the app's own start and end too
            await app(scope, receive, send)

    listener = listen(settings)
    server = uvicorn.Server(config(front, settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://localhost:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=20)


def heard(page):
    return recording_of(page.evaluate("benchTee.read()"))


def test_microphone_and_speaker_are_heard_on_one_clock(browser_for, pages_url, microphone_wav):
    wav, _ = microphone_wav(["latte.wav"], gap_s=1.0)
    with browser_for(wav) as page:
        page.add_init_script(path=TEE)
        page.goto(f"{pages_url}/echo")
        page.click("button")
        page.wait_for_timeout(5000)
        recording = heard(page)
        now = page.evaluate("Date.now()") / 1000
    microphone, speaker = np.sqrt(recording.rows[:, 0]), recording.rows[:, 1]
    assert microphone.max() > 0.1
    likeness = correlate(speaker - speaker.mean(), microphone - microphone.mean())
    delay = (int(np.argmax(likeness)) - len(microphone) + 1) * recording.row_s
    assert abs(delay - 0.25) < 0.004
    assert ((recording.rows[:, 2] >= 0) == (speaker > 10 ** (-50 / 20))).all()
    assert 0 < now - recording.began - len(recording.rows) * recording.row_s < 1.5


def test_a_turn_with_the_real_app_is_measured(browser_for, pages_url, tmp_path):
    names = ["capital", "latte"]
    clips = [trimmed(soundfile.read(f"assets/samples/{name}.wav", dtype="float32")[0])[0] for name in names]
    schedule = scheduled(clips, 6.0)
    soundfile.write(tmp_path / "said.wav", schedule.sound, 48_000, subtype="PCM_16")
    with browser_for(tmp_path / "said.wav") as page:
        page.add_init_script(SETTINGS)
        page.add_init_script(path=TEE)
        page.goto(f"{pages_url}/talk")
        page.click(START)
        page.wait_for_timeout(1000 * schedule.seconds + 1000)
        turns = turns_in(heard(page), schedule)
        told = page.evaluate("told")
    assert told.count("response.done") == len(names)
    for turn in turns:
        assert turn.sound is not None
        assert 0.2 < turn.sound[0] - turn.end < 5
        assert turn.sound[1] - turn.sound[0] > 0.5
        assert turn.gaps == 0
