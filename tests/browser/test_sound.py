"""What runs on sound in the page, in a real browser: against numpy's truth, sample by sample where that can be."""

import base64
import functools
import http.server
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import correlate

from app.audio import Resampler, to_pcm16

STATIC = Path("app/page/static")
WIRE = 24_000
QUANTUM = 128
FADE_MS = 5

# Plays a script of (frame, message) into the playback worklet, frame by frame of an offline context.
RENDER = """async ({rate, frames, script}) => {
  const context = new OfflineAudioContext(1, frames, rate);
  await context.audioWorklet.addModule("/sound/playback.js");
  const node = new AudioWorkletNode(context, "most-playback", {numberOfInputs: 0, outputChannelCount: [1]});
  const told = [];
  node.port.onmessage = ({data}) => told.push(data);
  node.connect(context.destination);
  const at = new Map();
  for (const [frame, message] of script) at.set(frame, [...(at.get(frame) ?? []), message]);
  for (const [frame, messages] of at)
    context.suspend(frame / rate).then(async () => {
      for (const message of messages) {
        if (message.pcm) message.pcm = Uint8Array.from(atob(message.pcm), (c) => c.charCodeAt(0)).buffer;
        node.port.postMessage(message);
      }
      await new Promise((done) => setTimeout(done, 30));  // the worklet takes its messages while it stands still
      context.resume();
    });
  const wave = (await context.startRendering()).getChannelData(0);
  await new Promise((done) => setTimeout(done, 30));
  const bytes = new Uint8Array(wave.buffer);
  let text = "";
  for (let n = 0; n < bytes.length; n += 8192) text += String.fromCharCode(...bytes.subarray(n, n + 8192));
  return {wave: btoa(text), told};
}"""

RESAMPLE = """async ({samples, from, to, pieces}) => {
  const {Resampler} = await import("/sound/resampler.js");
  const resampler = new Resampler(from, to), wave = Float32Array.from(samples), made = [];
  let at = 0;
  for (const size of pieces) {
    made.push(...resampler.push(wave.subarray(at, at + size)));
    at += size;
  }
  made.push(...resampler.push(wave.subarray(at)));
  const streamed = made.length;
  made.push(...resampler.finish());
  return {made, streamed};
}"""


@pytest.fixture(scope="module")
def site():
    """A page of nothing, beside the page's own modules: the port at which it is."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path != "/":
                return super().do_GET()
            body = b"<!doctype html><title>sound</title><button>tap</button>"
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=str(STATIC))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(scope="module")
def page(browser_for, site):
    """A page that all tests share which need nothing of a browser but JavaScript and worklets."""
    with browser_for(autoplay=True) as page:
        page.goto(f"http://localhost:{site}/")
        yield page


def resampled(page, samples, source, target, pieces=()):
    given = {"samples": np.asarray(samples, float).tolist(), "from": source, "to": target}
    given["pieces"] = [int(size) for size in pieces]
    found = page.evaluate(RESAMPLE, given)
    return np.array(found["made"]), found["streamed"]


def sine(hertz, rate, seconds=0.3):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def in_decibels(share):
    return 20 * np.log10(max(share, 1e-9))


class Rendering:
    """What the playback worklet made of a script: `script` is [(frame, message)], sound in messages float at 24 kHz."""

    def __init__(self, page, script, frames, rate=48_000):
        ready = []
        for frame, message in script:
            assert frame % QUANTUM == 0
            given = dict(message)
            if "pcm" in given:
                given["pcm"] = base64.b64encode(to_pcm16(given["pcm"])).decode()
            ready.append((frame, given))
        found = page.evaluate(RENDER, {"rate": rate, "frames": frames, "script": ready})
        self.rate = rate
        self.wave = np.frombuffer(base64.b64decode(found["wave"]), np.float32)
        self.told = found["told"]

    def messages(self, kind):
        return [message for message in self.told if message["type"] == kind]

    @property
    def begin(self):
        """Frame of the first sound."""
        return int(np.flatnonzero(self.wave)[0])


def frame(ms, rate=48_000):
    """The quantum's begin at or before so many milliseconds."""
    return round(ms * rate / 1000) // QUANTUM * QUANTUM


def sound(turn, wave):
    return {"type": "sound", "turn": turn, "pcm": wave}


def said(kind, turn=1):
    return {"type": kind, "turn": turn}


def speech(seconds, seed=0, rate=WIRE):
    """Noise below 5 kHz which differs everywhere, so that its place can be told."""
    random = np.random.default_rng(seed)
    spectrum = np.zeros(round(seconds * rate) // 2 + 1, complex)
    band = slice(1, int(5000 * seconds))
    spectrum[band] = random.standard_normal(band.stop - 1) + 1j * random.standard_normal(band.stop - 1)
    wave = np.fft.irfft(spectrum)
    return 0.2 * wave / wave.std() / 4


def at_rate(page, wave, rate=48_000):
    """The truth: what comes out of nothing but the resampler."""
    rounded = np.frombuffer(to_pcm16(wave), "<i2") / 32768
    return resampled(page, rounded, WIRE, rate)[0]


@pytest.mark.parametrize(("source", "target"), [(48_000, 24_000), (44_100, 24_000), (24_000, 48_000), (24_000, 44_100)])
def test_a_tone_stays_what_it_was_at_another_rate(page, source, target):
    for hertz in (100, 1000, 0.89 * min(source, target) / 2):
        made, _ = resampled(page, sine(hertz, source), source, target)
        middle = slice(len(made) // 4, -len(made) // 4)
        assert np.abs(made - sine(hertz, target))[middle].max() < 0.5 * 0.002


@pytest.mark.parametrize("source", [48_000, 44_100, 96_000, 16_000])
def test_what_cannot_be_kept_is_gone_and_nothing_appears_in_its_place(page, source):
    down, _ = resampled(page, sine(1.1 * min(source, WIRE) / 2, source), source, WIRE if source != 16_000 else 8_000)
    if source != 16_000:
        middle = down[len(down) // 4 : -len(down) // 4]
        assert in_decibels(np.abs(middle).max() / 0.5) < -60
    up, _ = resampled(page, sine(2000, WIRE), WIRE, source)
    spectrum = np.abs(np.fft.rfft(up * np.hanning(len(up))))
    hertz = np.fft.rfftfreq(len(up), 1 / source)
    strange = spectrum[np.abs(hertz - 2000) > 100].max() / spectrum.max()
    assert in_decibels(strange) < -60


@pytest.mark.parametrize("target", [48_000, 44_100, 24_000])
def test_pieces_make_no_difference_and_no_sample_is_lost(page, target):
    wave = speech(0.25)
    whole, streamed = resampled(page, wave, WIRE, target)
    random = np.random.default_rng(1)
    cut, _ = resampled(page, wave, WIRE, target, [1, 1, 700, *random.integers(1, 300, 12)])
    assert len(whole) == round(len(wave) * target / WIRE)
    assert np.array_equal(whole, cut)
    assert len(whole) - streamed <= 20 * target / WIRE + 1  # how much it lags


def test_the_resampler_is_the_servers(page):
    wave = speech(0.2)
    for source, target in ((44_100, WIRE), (WIRE, 48_000)):
        ours = Resampler(source, target)
        truth = np.concatenate([ours.push(wave), ours.finish()])
        assert np.abs(resampled(page, wave, source, target)[0] - truth).max() < 1e-5


@pytest.mark.parametrize("rate", [48_000, 44_100])
def test_what_is_played_is_what_was_given(page, rate):
    wave = speech(0.5)
    pieces = np.array_split(wave, 7)
    script = [(0, said("play")), *((0, sound(1, piece)) for piece in pieces), (0, said("end"))]
    heard = Rendering(page, script, rate, rate)
    truth = at_rate(page, wave, rate)
    played = heard.wave[: len(truth)]
    assert np.abs(played - truth).max() < 1e-6
    assert not heard.wave[len(truth) :].any()
    assert heard.messages("ended") == [
        {"type": "ended", "turn": 1, "played_ms": pytest.approx(500, abs=0.1)},
    ]
    assert not heard.messages("underrun")


def test_it_begins_when_enough_is_there_or_all_of_it(page):
    wave = speech(0.2)
    little, rest = wave[: 20 * 24], wave[20 * 24 :]
    late = Rendering(page, [(0, said("play")), (0, sound(1, little)), (frame(200), sound(1, rest))], 24_000)
    assert frame(200) <= late.begin <= frame(200) + QUANTUM
    assert late.messages("started")[0]["delay_ms"] == pytest.approx(200, abs=6)
    short = Rendering(page, [(0, said("play")), (0, sound(1, little)), (frame(100), said("end"))], 24_000)
    assert frame(100) <= short.begin <= frame(100) + QUANTUM
    assert short.messages("ended")[0]["played_ms"] == pytest.approx(20, abs=0.1)


def test_sound_that_comes_unevenly_is_played_evenly(page):
    wave = speech(0.6)
    pieces = np.split(wave, 30)  # of 20 ms
    random = np.random.default_rng(3)
    coming = [(frame(20 * number + random.uniform(0, 20)), sound(1, piece)) for number, piece in enumerate(pieces)]
    heard = Rendering(page, [(0, said("play")), *coming, (coming[-1][0], said("end"))], 48_000)
    truth = at_rate(page, wave)
    start = heard.begin - int(np.flatnonzero(truth)[0])
    assert np.abs(heard.wave[start : start + len(truth)] - truth).max() < 1e-6
    assert not heard.messages("underrun")


def test_who_starves_falls_silent_without_a_click_loses_nothing_and_waits_for_more_next_time(page):
    time = np.arange(WIRE // 2) / WIRE
    wave = 0.5 * np.sin(2 * np.pi * 200 * time)  # a cut in a slow tone is heard as a click
    first, second = wave[: 100 * 24], wave[100 * 24 :]
    script = [(0, said("play")), (0, sound(1, first)), (frame(300), sound(1, second[: 60 * 24]))]
    script += [(frame(350), sound(1, second[60 * 24 :])), (frame(350), said("end"))]
    heard = Rendering(page, script, 48_000)
    assert heard.messages("underrun") == [{"type": "underrun", "turn": 1, "underruns": 1, "target_ms": 120}]
    gap = heard.wave[frame(110) : frame(340)]
    assert not gap.any()  # 60 ms are less than the new target of 80
    assert np.abs(np.diff(heard.wave)).max() < 1.2 * 0.5 * 2 * np.pi * 200 / 48_000
    assert heard.messages("ended")[0]["played_ms"] == pytest.approx(500, abs=0.1)
    truth = at_rate(page, wave)
    # Each sample is heard once, or twice with weights that sum to one, at two places that the fade joins.
    resumed = frame(350)
    held = 1000 * np.flatnonzero(heard.wave[: frame(300)])[-1] / 48_000 - FADE_MS
    place = round(held * 48)
    whole = np.zeros(len(truth))
    whole[: frame(300)] += heard.wave[: frame(300)][: len(whole)]
    rest = heard.wave[resumed : resumed + len(truth)]
    shifts = range(place - 20, place + 20)
    best = min(shifts, key=lambda at: np.abs((whole[at:] + rest[: len(whole) - at]) - truth[at:]).max())
    whole[best:] += rest[: len(whole) - best]
    assert np.abs(whole - truth).max() < 1e-4


def test_a_reply_that_is_merely_over_is_no_underrun(page):
    wave = speech(0.2)
    heard = Rendering(page, [(0, said("play")), (0, sound(1, wave)), (frame(400), said("end"))], 24_000)
    assert not heard.messages("underrun")
    assert heard.messages("ended")[0]["played_ms"] == pytest.approx(200, abs=0.1)
    assert not heard.wave[frame(210) :].any()  # no blip when the end is told at last


def test_the_buffer_grows_to_a_limit_and_shrinks_again(page):
    script, at = [(0, said("play"))], 0
    for _ in range(7):
        script.append((frame(at), sound(1, speech(0.9))))
        at += 1000
    script.append((frame(at), said("end")))
    at += 1000
    calm = 6
    for turn in range(2, 2 + calm):
        script += [(frame(at), m) for m in (said("play", turn), sound(turn, speech(0.05)), said("end", turn))]
        at += 100
    last = 2 + calm
    script += [(frame(at), said("play", last)), (frame(at), sound(last, speech(0.3)))]
    script += [(frame(at + 600), sound(last, speech(0.9))), (frame(at + 600), said("end", last))]
    heard = Rendering(page, script, frame(at + 2000))
    assert [message["target_ms"] for message in heard.messages("underrun")][:6] == [120, 240, 480, 800, 800, 800]
    begun = [message for message in heard.messages("started") if message["turn"] == last]
    assert begun[0]["delay_ms"] == pytest.approx(0, abs=3)  # 300 ms were enough again: 800 * .8^6 = 210


def test_a_pause_keeps_its_place(page):
    wave = speech(0.5)
    script = [(0, said("play")), (0, sound(1, wave)), (0, said("end"))]
    paused, resumed = frame(200), frame(400)
    script += [(paused, said("pause")), (resumed, said("resume"))]
    heard = Rendering(page, script, 48_000)
    assert not heard.wave[paused + frame(FADE_MS) + QUANTUM : resumed].any()
    truth = at_rate(page, wave)
    whole = np.zeros(len(truth))
    whole[:resumed] += heard.wave[:resumed][: len(whole)]
    whole[paused:] += heard.wave[resumed : resumed + len(whole) - paused]
    assert np.abs(whole - truth).max() < 1e-6  # what fades out is heard again as it fades in
    assert heard.messages("ended")[0]["played_ms"] == pytest.approx(500, abs=0.1)


def tone_of(seconds, hertz=150):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * WIRE)) / WIRE)


def test_a_stop_is_silence_at_once_without_a_click(page):
    stop = frame(203)
    script = [(0, said("play")), (0, sound(1, tone_of(1))), (stop, {"type": "stop"}), (stop, sound(1, tone_of(1)))]
    heard = Rendering(page, script, 48_000)
    assert np.abs(heard.wave[:stop]).max() > 0.49
    assert not heard.wave[stop + frame(10) :].any()
    steepest = 0.5 * 2 * np.pi * 150 / 48_000 + 0.5 / (48 * FADE_MS)  # of the tone, and of the fade
    assert np.abs(np.diff(heard.wave)).max() < steepest
    assert heard.messages("stopped")[0]["played_ms"] == pytest.approx(1000 * stop / 48_000, abs=0.1)
    assert not heard.messages("ended")


def test_another_turn_begins_whole_while_the_former_fades_out(page):
    script = [(0, said("play")), (0, sound(1, tone_of(1)))]
    change = frame(300)
    fresh = speech(0.2)
    script += [(change, said("play", 2)), (change, sound(2, fresh)), (change, said("end", 2))]
    heard = Rendering(page, script, 48_000)
    truth = at_rate(page, fresh)
    late = change + frame(FADE_MS) + QUANTUM
    assert np.abs(heard.wave[late : change + len(truth)] - truth[late - change :]).max() < 1e-6
    assert [message["turn"] for message in heard.messages("ended")] == [2]


def test_sound_of_another_turn_is_never_played(page):
    mine = speech(0.2)
    script = [(0, sound(1, tone_of(1))), (0, said("play", 2)), (0, sound(1, tone_of(1))), (0, sound(3, tone_of(1)))]
    script += [(0, said("end", 1)), (0, sound(2, mine)), (0, said("pause", 1)), (0, said("end", 2))]
    script += [(0, sound(2, tone_of(1))), (frame(300), sound(2, tone_of(1)))]  # after its end
    heard = Rendering(page, script, 48_000)
    truth = at_rate(page, mine)
    assert np.abs(heard.wave[: len(truth)] - truth).max() < 1e-6
    assert not heard.wave[len(truth) :].any()


def test_a_turn_that_is_told_to_play_twice_goes_on(page):
    wave = speech(0.3)
    script = [(0, said("play")), (0, sound(1, wave)), (0, said("end")), (frame(100), said("play"))]
    truth = at_rate(page, wave)
    assert np.abs(Rendering(page, script, 24_000).wave[: len(truth)] - truth).max() < 1e-6


def test_progress_is_told_ten_times_a_second_with_the_level(page):
    script = [(0, said("play")), (0, sound(1, tone_of(1))), (0, said("end"))]
    told = Rendering(page, script, 96_000).messages("progress")
    assert len(told) in (9, 10)
    assert np.allclose(np.diff([message["played_ms"] for message in told]), 100, atol=3)
    for message in told:
        assert message["level_db"] == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.2)
        assert message["played_ms"] + message["buffered_ms"] == pytest.approx(1000, abs=1.5)


# Below, devices and permissions are real, or as real as the browser's fake ones.

OPEN = """async (wishes) => {
  const {Sound} = await import("/sound/devices.js");
  globalThis.pieces = [];
  globalThis.levels = [];
  globalThis.told = [];
  globalThis.lost = [];
  globalThis.muted = [];
  globalThis.suspended = [];
  globalThis.sound = new Sound({
    onChunk: (pcm, level_db) => {
      pieces.push(new Int16Array(pcm));
      levels.push(level_db);
    },
    onPlayback: (message) => told.push(message),
    onLost: (code) => lost.push(code),
    onMuted: (is) => muted.push(is),
    onSuspended: (is) => suspended.push(is),
  });
  try {
    await sound.unlock();
    if (wishes) await sound.openMicrophone(wishes);
    return "open";
  } catch (problem) {
    return problem.code ?? `${problem}`;
  }
}"""

HEARD = """() => {
  const all = new Int16Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    all.set(piece, at);
    at += piece.length;
  }
  const bytes = new Uint8Array(all.buffer);
  let text = "";
  for (let n = 0; n < bytes.length; n += 8192) text += String.fromCharCode(...bytes.subarray(n, n + 8192));
  return btoa(text);
}"""

KEEP_CONTEXT = """() => {
  const Real = AudioContext;
  globalThis.AudioContext = class extends Real {
    constructor(...given) { super(...given); globalThis.made = this; globalThis.given = given; }
  };
}"""

KEEP_TRACK = """() => {
  const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  navigator.mediaDevices.getUserMedia = async (constraints) => {
    const stream = await ask(constraints);
    [globalThis.track] = stream.getAudioTracks();
    return stream;
  };
}"""

PLAIN = {"echoCancellation": False, "noiseSuppression": False, "autoGainControl": False}


def address(site, host="localhost"):
    return f"http://{host}:{site}/"


def heard_by(page):
    return np.frombuffer(base64.b64decode(page.evaluate(HEARD)), "<i2") / 32768


def at_wire_rate(wave, rate=16_000):
    up = Resampler(rate, WIRE)
    return np.concatenate([up.push(wave), up.finish()])


def test_the_page_hears_what_is_said(browser_for, site, microphone_wav):
    wav, times = microphone_wav(["latte.wav"], gap_s=1.5)
    with browser_for(wav, autoplay=True) as page:
        page.goto(address(site))
        assert page.evaluate(OPEN, PLAIN) == "open"
        page.wait_for_timeout(1000 * times[0][1] + 1000)
        heard = heard_by(page)
        levels = np.array(page.evaluate("levels"))[: len(heard) // 480]
        sizes = page.evaluate("[...new Set(pieces.map((piece) => piece.length))]")
    assert sizes == [480]
    said = at_wire_rate(soundfile.read("assets/samples/latte.wav", dtype="float32")[0])
    place = int(np.argmax(correlate(heard, said, mode="valid")))
    there = heard[place : place + len(said)]
    assert np.corrcoef(there, said)[0, 1] > 0.99
    assert np.sqrt(np.mean(there**2)) == pytest.approx(np.sqrt(np.mean(said**2)), rel=0.1)
    pieces = heard.reshape(-1, 480)
    truth = 10 * np.log10(np.maximum(np.mean(pieces**2, 1), 1e-10))
    assert np.abs(levels - truth)[truth > -70].max() < 0.1
    assert levels.min() >= -100


def test_a_closed_microphone_is_deaf_and_can_be_opened_again(browser_for, site):
    with browser_for(autoplay=True) as page:  # it beeps once a second
        page.goto(address(site))
        assert page.evaluate(OPEN, PLAIN) == "open"
        page.wait_for_function("Math.max(...levels) > -40")
        assert page.evaluate("sound.closeMicrophone(), sound.microphoneOpen") is False
        count = page.evaluate("pieces.length")
        page.wait_for_timeout(300)
        assert page.evaluate("pieces.length") == count
        # An opening that is taken back before the person has allowed it stays closed.
        assert (
            page.evaluate("""async () => {
          const opening = sound.openMicrophone({});
          sound.closeMicrophone();
          await opening;
          return sound.microphoneOpen;
        }""")
            is False
        )
        assert page.evaluate("sound.openMicrophone({}).then(() => sound.microphoneOpen)") is True
        page.wait_for_function("(count) => pieces.length > count + 10", arg=count)
        assert page.evaluate("lost.length") == 0


def test_wishes_reach_the_browser(browser_for, site):
    asked = """async (wishes) => {
      const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
      const all = [];
      navigator.mediaDevices.getUserMedia = (constraints) => (all.push(constraints.audio), ask(constraints));
      await sound.openMicrophone(wishes);
      return all;
    }"""
    with browser_for(autoplay=True) as page:
        page.goto(address(site))
        page.evaluate(OPEN)
        devices = page.evaluate("sound.openMicrophone({}).then(() => sound.devices())")
        assert len(devices["microphones"]) >= 2
        assert all(set(device) == {"id", "label"} and device["label"] for device in devices["microphones"])
        chosen = devices["microphones"][-1]["id"]
        assert "default" not in {device["id"] for device in devices["microphones"] + devices["speakers"]}
        (first,) = page.evaluate(asked, {"deviceId": chosen, **PLAIN})
        assert first == {"channelCount": 1, "deviceId": {"exact": chosen}, **PLAIN}
    with browser_for(autoplay=True) as page:
        page.goto(address(site))
        page.evaluate(OPEN)
        gone, usual = page.evaluate(asked, {"deviceId": "0123456789abcdef"})
        assert gone["deviceId"] == {"exact": "0123456789abcdef"}
        assert usual == {"channelCount": 1, **dict.fromkeys(PLAIN, True)}
        assert page.evaluate("sound.microphoneOpen")


def test_a_phone_is_told_that_sound_goes_both_ways(browser_for, site):
    with browser_for(autoplay=True) as page:
        page.goto(address(site))
        page.evaluate("navigator.audioSession = {type: 'auto'}")
        page.evaluate(OPEN)
        assert page.evaluate("navigator.audioSession.type") == "auto"
        page.evaluate("sound.openMicrophone()")
        assert page.evaluate("navigator.audioSession.type") == "play-and-record"


def test_another_speaker_can_be_chosen_and_one_that_is_gone_is_told(browser_for, site):
    with browser_for(autoplay=True) as page:
        page.goto(address(site))
        page.evaluate(KEEP_CONTEXT)
        assert page.evaluate(OPEN, {}) == "open"
        assert page.evaluate("import('/sound/devices.js').then(({Sound}) => Sound.canChooseSpeaker)") is True
        speakers = page.evaluate("sound.devices().then(({speakers}) => speakers)")
        for speaker in [*speakers, {"id": ""}]:  # "" brings the usual one back
            assert page.evaluate("(id) => sound.setSpeaker(id).then(() => made.sinkId)", speaker["id"]) == speaker["id"]
        assert page.evaluate("sound.setSpeaker('0123456789abcdef').catch(({code}) => code)") == "missing"


def test_a_microphone_that_is_taken_away_is_told(browser_for, site):
    with browser_for(autoplay=True) as page:
        page.goto(address(site))
        # The event of an unplugged device; the browser's fake ones cannot be unplugged.
        page.evaluate(KEEP_TRACK)
        assert page.evaluate(OPEN, {}) == "open"
        page.evaluate("track.dispatchEvent(new Event('ended'))")
        page.wait_for_function("lost.length > 0")
        assert page.evaluate("[lost, sound.microphoneOpen]") == [["missing"], False]


def test_a_microphone_that_others_silence_is_told(browser_for, site):
    with browser_for(autoplay=True) as page:
        page.goto(address(site))
        page.evaluate(KEEP_TRACK)
        assert page.evaluate(OPEN, {}) == "open"
        # The events of a hardware key, which the browser's fake microphones have not.
        page.evaluate("track.dispatchEvent(new Event('mute'))")
        assert page.evaluate("muted") == [True]
        page.evaluate("track.dispatchEvent(new Event('unmute'))")
        assert page.evaluate("muted") == [True, False]
        page.evaluate("globalThis.old = track, track.dispatchEvent(new Event('mute'))")
        page.evaluate("sound.openMicrophone({})")  # this one nobody silenced
        page.evaluate("old.dispatchEvent(new Event('mute'))")
        assert page.evaluate("muted") == [True, False, True, False]
        page.evaluate("""() => {
          const {get} = Object.getOwnPropertyDescriptor(MediaStreamTrack.prototype, "muted");
          Object.defineProperty(MediaStreamTrack.prototype, "muted", {get: () => true, configurable: true});
          return sound.openMicrophone({}).finally(() =>
            Object.defineProperty(MediaStreamTrack.prototype, "muted", {get, configurable: true}));
        }""")
        assert page.evaluate("muted.at(-1)") is True  # it was silent from the beginning


def test_a_silenced_microphone_gives_silence_until_it_is_set_back(browser_for, site):
    with browser_for(autoplay=True) as page:  # it beeps once a second
        page.goto(address(site))
        page.evaluate(KEEP_TRACK)
        assert page.evaluate(OPEN, PLAIN) == "open"
        assert page.evaluate("sound.microphoneMuted") is False
        page.wait_for_function("Math.max(...levels) > -40")
        page.evaluate("sound.microphoneMuted = true")
        assert page.evaluate("[sound.microphoneMuted, track.enabled]") == [True, False]
        page.wait_for_timeout(100)
        page.evaluate("(plain) => sound.openMicrophone(plain)", PLAIN)
        assert page.evaluate("[sound.microphoneMuted, track.enabled]") == [True, False]
        page.evaluate("levels.length = 0")
        page.wait_for_function("levels.length > 60")
        assert page.evaluate("Math.max(...levels)") == -100
        page.evaluate("sound.microphoneMuted = false")
        assert page.evaluate("track.enabled") is True
        page.wait_for_function("Math.max(...levels) > -40")
        assert page.evaluate("muted") == []  # that is of others alone


def test_worklets_that_do_not_come_are_not_waited_for_for_ever(browser_for, site):
    with browser_for(autoplay=True) as page:
        page.clock.install(time=0)
        page.goto(address(site))
        page.evaluate("""() => {
          const add = AudioWorklet.prototype.addModule, come = new Promise((come) => (globalThis.come = come));
          globalThis.asked = 0;
          AudioWorklet.prototype.addModule = async function (...given) {
            asked += 1;
            await come;
            return add.apply(this, given);
          };
        }""")
        page.evaluate(f"globalThis.answer = ({OPEN})().then((is) => (globalThis.is = is)), undefined")
        page.wait_for_function("asked === 2")
        page.clock.run_for(8000)
        assert page.evaluate("globalThis.is") is None
        page.clock.run_for(2000)
        assert page.evaluate("answer") == "unsupported"
        page.evaluate("come()")  # late, they are used at the next tap
        assert page.evaluate("sound.unlock().then(() => sound.openMicrophone({})).then(() => 'open')") == "open"
        assert page.evaluate("asked") == 2


def test_permission_that_is_not_given(browser_for, site):
    with browser_for(allowed=False, autoplay=True) as page:
        page.goto(address(site))
        assert page.evaluate(OPEN, {}) == "denied"
        assert page.evaluate("sound.microphoneOpen") is False


def test_no_microphone_at_all(browser_for, site):
    with browser_for(microphone=False, autoplay=True) as page:
        page.goto(address(site))
        assert page.evaluate(OPEN, {}) == "missing"


def test_http_on_a_host_name_has_no_microphone(browser_for, site):
    with browser_for(autoplay=True, hosts=["talk.example"]) as page:
        page.goto(address(site, "talk.example"))
        assert page.evaluate(OPEN, {}) == "insecure"
        # ... and where worklets are, but no microphone
        page.goto(address(site))
        page.evaluate(OPEN)
        page.evaluate("Object.defineProperty(navigator, 'mediaDevices', {value: undefined})")
        page.evaluate("Object.defineProperty(globalThis, 'isSecureContext', {value: false})")
        assert page.evaluate("sound.openMicrophone({}).catch(({code}) => code)") == "insecure"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("NotAllowedError", "denied"),
        ("SecurityError", "denied"),
        ("NotFoundError", "missing"),
        ("OverconstrainedError", "missing"),
        ("NotReadableError", "busy"),
        ("AbortError", "busy"),
        ("TypeError", "unsupported"),
    ],
)
def test_each_of_a_browsers_errors_has_a_code(page, name, code):
    page.evaluate(OPEN)
    page.evaluate(
        """(name) => {
      navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("no", name); };
    }""",
        name,
    )
    assert page.evaluate("sound.openMicrophone({}).catch(({name, code}) => [name, code])") == ["SoundProblem", code]
    page.evaluate("delete navigator.mediaDevices.getUserMedia; sound.close()")


def test_a_page_is_silent_until_it_is_tapped(browser_for, site):
    with browser_for() as page:
        # By a script of its own: what a test evaluates counts as a tap.
        page.add_init_script(f"addEventListener('load', () => ({OPEN})().then(console.log))")
        with page.expect_console_message(lambda message: message.type == "log") as console:
            page.goto(address(site))
        assert console.value.text == "blocked"
        page.evaluate("document.querySelector('button').onclick = () => (globalThis.unlocked = sound.unlock())")
        page.click("button")
        assert page.evaluate("unlocked.then(() => 'open')") == "open"


def test_a_context_that_was_taken_away_comes_back_when_the_page_is_seen(browser_for, site):
    with browser_for(autoplay=True) as page:
        page.goto(address(site))
        page.evaluate(KEEP_CONTEXT)
        page.evaluate(OPEN)
        page.evaluate("Object.defineProperty(document, 'visibilityState', {value: 'hidden', configurable: true})")
        assert page.evaluate("made.suspend().then(() => made.state)") == "suspended"
        page.wait_for_timeout(200)
        assert page.evaluate("made.state") == "suspended"
        page.evaluate("delete document.visibilityState; document.dispatchEvent(new Event('visibilitychange'))")
        page.wait_for_function("made.state === 'running'")
        assert page.evaluate("given") == [{"latencyHint": "interactive"}]  # at the device's own rate
        assert page.evaluate("sound.close().then(() => made.state)") == "closed"


def test_sound_that_is_taken_away_for_longer_is_told(browser_for, site):
    with browser_for(autoplay=True) as page:
        page.goto(address(site))
        page.evaluate(KEEP_CONTEXT)
        assert page.evaluate(OPEN, {}) == "open"
        page.evaluate("made.suspend()")  # for a moment only
        page.wait_for_function("made.state === 'running'")
        page.wait_for_timeout(400)
        assert page.evaluate("suspended") == []
        took = page.evaluate("""async () => {
          made.resume = async () => { throw new DOMException("a call goes on", "InvalidStateError"); };
          const begun = performance.now();
          await made.suspend();
          while (!suspended.length) await new Promise((done) => setTimeout(done, 10));
          return performance.now() - begun;
        }""")
        assert 290 < took < 1000
        page.evaluate("delete made.resume")
        assert page.evaluate("sound.unlock().then(() => suspended)") == [True, False]
        page.evaluate("sound.close()")
        page.wait_for_timeout(400)
        assert page.evaluate("suspended") == [True, False]


def test_a_reply_goes_through_the_devices_and_a_replay_beside_it(browser_for, site):
    peak = """() => {  // what reaches the speaker
      const connect = AudioNode.prototype.connect;
      AudioNode.prototype.connect = function (to, ...more) {
        if (to instanceof AudioDestinationNode && !globalThis.meter) {
          globalThis.meter = new AnalyserNode(this.context, {fftSize: 2048});
          connect.call(meter, to);
        }
        return connect.call(this, to instanceof AudioDestinationNode ? meter : to, ...more);
      };
      globalThis.peak = () => {
        const wave = new Float32Array(2048);
        meter.getFloatTimeDomainData(wave);
        return Math.max(...wave);
      };
    }"""
    with browser_for(autoplay=True) as page:
        page.goto(address(site))
        page.evaluate(peak)
        page.evaluate(OPEN)
        page.evaluate("""() => {
          globalThis.flat = (ms) => new Int16Array(24 * ms).fill(16384);
          sound.play(7);
          for (let n = 0; n < 20; n++) sound.enqueue(7, flat(100).buffer);
          sound.end(7);
        }""")
        page.wait_for_function("Math.abs(peak() - .5) < .01")
        page.evaluate("sound.volume = .5")
        page.wait_for_function("Math.abs(peak() - .25) < .005")
        page.evaluate("sound.pause(7)")
        page.wait_for_function("peak() === 0")
        page.evaluate("sound.resume(7)")
        page.wait_for_function("told.some(({type}) => type === 'ended')")
        kinds = page.evaluate("[...new Set(told.map(({type}) => type))]")
        assert kinds == ["started", "progress", "ended"]
        assert page.evaluate("told.at(-1)") == {"type": "ended", "turn": 7, "played_ms": pytest.approx(2000, abs=0.1)}
        # A replay: whole, then cut by another.
        took = page.evaluate("""async () => {
          const begun = performance.now();
          await sound.replay(flat(300), 24000).ended;
          return performance.now() - begun;
        }""")
        assert 280 < took < 900
        page.evaluate("globalThis.long = sound.replay(flat(9000).buffer, 16000)")
        page.wait_for_function("Math.abs(peak() - .25) < .005")
        page.evaluate("globalThis.short = sound.replay(flat(200), 24000)")
        assert page.evaluate("Promise.race([long.ended.then(() => 1), new Promise((d) => setTimeout(d, 2000))])") == 1
        page.evaluate("short.ended")
        page.wait_for_function("peak() === 0")


def test_a_page_that_asks_another_host_is_found_out(browser_for, site):
    def visit(asks):
        with browser_for() as page:
            page.goto(address(site))
            page.evaluate(asks)

    visit("fetch('/sound/devices.js').then(() => 1)")
    with pytest.raises(AssertionError, match="elsewhere"):
        visit("fetch('http://elsewhere.example/font.css').catch(() => 1)")
    with pytest.raises(AssertionError, match="elsewhere"):
        visit("new Promise((done) => (new WebSocket('ws://elsewhere.example/').onerror = () => done()))")
