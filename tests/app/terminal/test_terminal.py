"""The conversation in the terminal: a speaker's buffer, the choice of devices, lines, and whole conversations through
devices that are threads."""

import contextlib
import importlib.util
import io
import os
import signal
import sys
import threading
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

import app
import most_core
from app.audio import Resampler
from app.engine import Engine
from app.outputs import (
    Committed,
    Heard,
    HeardAll,
    Item,
    Level,
    Playback,
    Removed,
    ReplyEnded,
    ReplyStarted,
    Shortened,
    Sound,
    StateChanged,
    Text,
    Timed,
)
from app.settings import Settings
from app.terminal import devices, talk
from app.terminal.devices import Device, Streams
from app.terminal.screen import Line, Screen, Transcript, Typing, key_by_key, meter
from app.terminal.speaker import Speaker
from app.terminal.talk import Player
from app.turn import State

ROOT = Path(app.__file__).parent.parent
_spec = importlib.util.spec_from_file_location("start", ROOT / "app.py")
start = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(start)


def recording(name):
    return soundfile.read(ROOT / f"assets/samples/{name}.wav", dtype="float32")[0]


def numbered(start, stop):
    return np.arange(start, stop, dtype=np.float32)


# The speaker's buffer


def test_what_is_written_is_taken_in_order_whatever_the_pieces_then_silence():
    speaker = Speaker(1000)
    for first, last in ((1, 4), (4, 4), (4, 11)):
        speaker.write(numbered(first, last))
    taken = np.concatenate([speaker.take(count) for count in (2, 4, 0, 1, 6)])
    np.testing.assert_array_equal(taken, [*range(1, 11), 0, 0, 0])
    assert speaker.empty
    assert speaker.position_ms == 10


def test_a_pause_is_silent_at_once_and_loses_nothing():
    speaker = Speaker(1000)
    speaker.write(numbered(1, 6))
    speaker.take(2)
    speaker.pause()
    speaker.write(numbered(6, 8))
    assert not speaker.take(50).any()
    assert speaker.position_ms == 2
    speaker.resume()
    np.testing.assert_array_equal(speaker.take(6), [3, 4, 5, 6, 7, 0])


def test_a_flush_is_silent_at_once_and_begins_anew():
    speaker = Speaker(1000)
    speaker.write(numbered(1, 100))
    speaker.take(5)
    speaker.pause()
    speaker.flush()
    assert not speaker.take(10).any()
    assert speaker.position_ms == 0
    speaker.write(numbered(1, 3))
    np.testing.assert_array_equal(speaker.take(2), [1, 2])


def test_waiting_for_more_sound_does_not_count_as_played():
    speaker = Speaker(16_000)
    speaker.write(np.ones(160, np.float32))
    for _ in range(5):
        speaker.take(320)
    assert speaker.position_ms == 10


def test_threads_that_write_take_and_pause_at_once_lose_and_mix_nothing():
    speaker, total, taken, done = Speaker(16_000), 200_000, [], threading.Event()
    sizes = np.random.default_rng(0)

    def write():
        at = 1
        while at <= total:
            until = min(at + int(sizes.integers(1, 500)), total + 1)
            speaker.write(np.arange(at, until, dtype=np.float64))
            at = until

    def disturb():
        while not done.is_set():
            speaker.pause()
            speaker.resume()

    def take():
        while not (taken and taken[-1].max() == total):
            taken.append(speaker.take(320))

    threads = [threading.Thread(target=work, daemon=True) for work in (write, disturb, take)]
    for thread in threads:
        thread.start()
    for thread in (threads[0], threads[2]):
        thread.join(timeout=30)
        assert not thread.is_alive()
    done.set()
    sound = np.concatenate(taken)
    np.testing.assert_array_equal(sound[sound > 0], numbered(1, total + 1))


# The player


class Listener:
    def __init__(self):
        self.told = []

    def played(self, turn, ms, *, ended=False, delay_ms=0.0):
        self.told.append((turn, ms, ended))
        self.delay_ms = delay_ms


def ended(turn, item=None, **fields):
    return ReplyEnded(turn, item or Item("a", "assistant"), fields.pop("status", "completed"), None, **fields)


def test_playback_is_told_from_the_first_sample_taken_until_all_of_the_reply_was():
    player, listener = Player(Speaker(1000)), Listener()
    player.latency_ms = 30.0
    player.take(Sound(1, numbered(0, 9), 1000))  # before it may be played
    player.take(Playback(1, "play"))
    player.take(Sound(1, numbered(1, 101), 1000))
    assert player.report(listener) is None
    assert listener.told == []
    time.sleep(0.02)
    player.speaker.take(60)
    player.report(listener)
    assert 30 <= listener.delay_ms < 300
    player.speaker.take(60)
    assert player.report(listener) is None  # more may come
    player.take(ended(1))
    assert player.report(listener) == 1
    assert listener.told == [(1, 60, False), (1, 100, False), (1, 100, True)]
    assert player.report(listener) is None


def test_while_paused_nothing_is_told_and_a_stopped_reply_is_gone():
    player, listener = Player(Speaker(1000)), Listener()
    for output in (Playback(3, "play"), Sound(3, numbered(1, 101), 1000)):
        player.take(output)
    player.speaker.take(10)
    player.take(Playback(3, "pause"))
    assert not player.speaker.take(10).any()
    player.report(listener)
    player.take(Playback(3, "resume"))
    assert player.speaker.take(1) == [11]
    player.report(listener)
    player.take(Playback(3, "stop"))
    player.take(Sound(3, numbered(1, 9), 1000))
    assert not player.speaker.take(10).any()
    player.report(listener)
    assert listener.told == [(3, 11, False)]


def test_at_the_speakers_own_rate_a_reply_is_as_long_as_it_was():
    player = Player(Speaker(44_100))
    player.take(Playback(1, "play"))
    for piece in np.split(np.sin(numbered(0, 16_000)), 10):
        player.take(Sound(1, piece, 16_000))
    player.take(ended(1))
    player.speaker.take(50_000)
    assert player.speaker.position_ms == pytest.approx(1000, abs=0.1)


# The choice of devices


def row(index, name, inputs, outputs, hostapi=0, rate=44_100.0):
    return {
        "index": index,
        "name": name,
        "hostapi": hostapi,
        "max_input_channels": inputs,
        "max_output_channels": outputs,
        "default_samplerate": rate,
    }


TABLE = [
    row(0, "Built-in Audio", 2, 2),
    row(1, "USB Headset", 1, 2, rate=48_000.0),
    row(2, "USB Webcam", 1, 0),
    row(3, "USB Headset", 1, 2, hostapi=1),
    row(4, "Webcam", 2, 0, hostapi=1),
]


@pytest.mark.parametrize(
    ("kind", "wanted", "index"),
    [
        ("microphone", "", 0),
        ("microphone", "2", 2),
        ("microphone", "built", 0),
        ("speaker", "usb", 1),  # the other one belongs to another system than the usual device
        ("microphone", " HEADSET ", 1),
        ("microphone", "webcam", 4),  # its whole name
    ],
)
def test_a_device_is_chosen_by_number_or_part_of_its_name(kind, wanted, index):
    assert devices.choose(TABLE, kind, wanted, usual=0)["index"] == index


@pytest.mark.parametrize(
    ("table", "kind", "wanted", "usual", "error", "message"),
    [
        ([], "microphone", "", -1, OSError, "there is no microphone on this machine"),
        (TABLE[2:3], "speaker", "1", 2, OSError, "there is no speaker on this machine"),
        (TABLE, "microphone", "", -1, OSError, "no microphone is the usual one"),
        (TABLE, "speaker", "9", 0, ValueError, "--speaker 9: no device has this number"),
        (TABLE, "speaker", "2", 0, ValueError, "USB Webcam is no speaker"),
        (TABLE, "speaker", "hdmi", 0, ValueError, "no speaker has a name with this in it"),
    ],
)
def test_what_cannot_be_chosen_is_told_with_where_to_look(table, kind, wanted, usual, error, message):
    with pytest.raises(error, match=message) as told:
        devices.choose(table, kind, wanted, usual)
    assert "--list-devices" in str(told.value)


def test_several_matches_are_named():
    with pytest.raises(ValueError, match=r"1 USB Headset, 2 USB Webcam"):
        devices.choose(TABLE, "microphone", "usb", usual=0)


@pytest.mark.parametrize(
    ("takes", "rate", "channels"),
    [
        ({(16_000, 1), (48_000, 1)}, 16_000, 1),
        ({(48_000, 1), (16_000, 2)}, 48_000, 1),
        ({(48_000, 2)}, 48_000, 2),
    ],
)
def test_a_device_is_opened_at_16_khz_mono_or_as_near_as_it_takes(takes, rate, channels):
    def accepts(rate, channels):
        if (rate, channels) not in takes:
            raise OSError("Invalid sample rate")

    assert devices.fitting(TABLE[1], "speaker", accepts) == Device(1, "USB Headset", rate, channels)


def test_a_device_that_takes_no_rate_is_told():
    def accepts(rate, channels):
        raise OSError("Device unavailable")

    with pytest.raises(OSError, match=r"neither 16000 nor 48000 Hz \(Device unavailable\).*--list-devices"):
        devices.fitting(TABLE[1], "speaker", accepts)


class FakeStream:
    """Runs once when started; does not start where `broken`."""

    latency, active, broken = 0.02, True, False
    opened: list

    def __init__(self, *, callback, blocksize, channels, **given):
        self.run = lambda: callback(self.data, len(self.data), None, None)
        self.data = np.full((blocksize, channels), 0.5, np.float32)
        self.given, self.closed = given, False
        FakeStream.opened.append(self)

    def start(self):
        if self.broken:
            raise FakePortAudioError("Device unavailable [PaErrorCode -9985]")
        self.run()

    def close(self):
        self.closed = True


class FakePortAudioError(Exception):
    pass


@pytest.fixture
def portaudio(monkeypatch):
    """A sounddevice of two devices, which take only their own rates."""

    def accept(device, channels, dtype, samplerate):
        if samplerate != TABLE[device]["default_samplerate"]:
            raise FakePortAudioError("Invalid sample rate")

    fake = SimpleNamespace(
        PortAudioError=FakePortAudioError,
        query_devices=lambda: TABLE,
        query_hostapis=lambda: [{"name": "ALSA"}, {"name": "JACK"}],
        default=SimpleNamespace(device=[0, 1]),
        check_input_settings=accept,
        check_output_settings=accept,
        InputStream=type("InputStream", (FakeStream,), {}),
        OutputStream=type("OutputStream", (FakeStream,), {}),
    )
    FakeStream.opened = []
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    return fake


def test_devices_are_listed_without_a_model(portaudio, capsys):
    assert start.main(Settings(model="not looked at", list_devices=True)) == 0
    listed = capsys.readouterr().out
    microphones, speakers = listed.split("speakers (")
    assert "*   0  Built-in Audio  [ALSA, 44100 Hz]" in microphones
    assert "    2  USB Webcam" in microphones
    assert "*   1  USB Headset  [ALSA, 48000 Hz]" in speakers
    assert "Webcam" not in speakers
    assert "none" in devices.listed([], [], [-1, -1])


def test_open_devices_give_and_take_mono_sound_of_20_ms(portaudio):
    pair = devices.find(Settings(speaker="3"))
    heard, asked = [], []

    def take(count):
        asked.append(count)
        return np.ones(count, np.float32)

    with pair.open(heard.append, take) as streams:
        microphone, speaker = FakeStream.opened
        assert (len(heard[0]), heard[0].shape, asked) == (882, (882,), [882])
        microphone.data[:] = 0
        assert heard[0].all()  # not the device's own memory
        assert (speaker.data == 1).all()
        assert streams.latency_ms == 20
        assert streams.working()
        speaker.active = False
        assert not streams.working()
    assert microphone.closed
    assert speaker.closed


def refused(capsys, **settings):
    assert start.main(Settings(model="not looked at", local=True, **settings)) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    return told.err


def test_no_device_is_told_in_one_line_before_the_model_is_loaded(portaudio, capsys):
    assert "--microphone 7: no device has this number" in refused(capsys, microphone="7")
    portaudio.query_devices = lambda: []
    assert "there is no microphone on this machine" in refused(capsys)

    def fail():
        raise FakePortAudioError("Error querying device")

    portaudio.query_devices = fail
    assert "cannot list the devices: Error querying device" in refused(capsys)


def test_a_device_that_does_not_open_is_told(portaudio, most, monkeypatch, capsys):
    monkeypatch.setattr(start, "_load", lambda settings: most)
    monkeypatch.setattr(Engine, "warm_up", lambda engine: None)
    monkeypatch.setattr(sys, "stdin", None)
    portaudio.OutputStream.broken = True
    assert "USB Headset does not open (Device unavailable" in refused(capsys)
    assert all(stream.closed for stream in FakeStream.opened)


def test_the_command_opens_the_devices_answers_and_ends(portaudio, most, short, monkeypatch, capsys):
    monkeypatch.setattr(start, "_load", lambda settings: most)
    monkeypatch.setattr(type(most), "usual_settings", short)
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        os.write(writing, b"hello\n\n/quit\n")
        assert start.main(Settings(model="not looked at", local=True, half_duplex=True)) == 0
        os.close(writing)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["      microphone  Built-in Audio, 44100 Hz", "      speaker     USB Headset, 48000 Hz"]
    assert lines[4:] == ["you   hello", "most  [interrupted before the first word]"]
    assert all(stream.closed for stream in FakeStream.opened)


def test_a_missing_portaudio_or_sounddevice_is_told_with_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert "pip install sounddevice" in refused(capsys)
    monkeypatch.delitem(sys.modules, "sounddevice")
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "Debian: apt install libportaudio2" in refused(capsys)
    assert start.main(Settings(list_devices=True)) == 2
    assert "libportaudio2" in capsys.readouterr().err


# What is shown


class Transcribed:
    def __init__(self):
        self.lines = []
        self.transcript = Transcript(self.lines.append)

    def take(self, *outputs):
        for output in outputs:
            self.transcript.take(output)
        self.transcript.settle()
        told, self.lines[:] = [(line.who, line.text) for line in self.lines], []
        return told


def exchange(turn, asked="what is it", answer="it is a cat"):
    said, item = Item(f"u{turn}", "user", transcript=asked), Item(f"a{turn}", "assistant", transcript=answer)
    return said, item, [Committed(turn, said), ReplyStarted(turn, item), HeardAll(turn, said), Text(turn, answer)]


def test_a_reply_is_told_when_it_was_played_with_where_the_time_went():
    seen = Transcribed()
    _, item, outputs = exchange(1)
    reply = most_core.untrained("tiny").answer("hi", settings=most_core.GenerationSettings(speak=False))
    assert seen.take(*outputs) == [("you", "what is it")]
    done = ReplyEnded(1, item, "completed", replace(reply, confidence=0.75))
    assert seen.take(Playback(1, "play"), done, Timed(1, {"endpoint": 200.2, "queue": 0.1, "text": 50}, 250.3)) == []
    seen.transcript.played_out(1)
    assert seen.take() == [
        ("most", "it is a cat"),
        ("", "confidence 0.75; first sound after 250 ms (endpoint 200, text 50)"),
    ]


def test_an_interrupted_reply_is_told_as_far_as_it_was_heard():
    seen = Transcribed()
    _, item, outputs = exchange(1)
    seen.take(*outputs, Playback(1, "play"), ended(1, item))
    item.transcript = "it is"
    assert seen.take(Playback(1, "stop"), Shortened(1, item, 300)) == [("most", "it is [interrupted]")]
    _, item, outputs = exchange(2)
    seen.take(*outputs, Playback(2, "play"))
    item.transcript = ""
    told = seen.take(Playback(2, "stop"), ended(2, item, status="cancelled"), Shortened(2, item, 0), *exchange(3)[2])
    assert told == [("most", "[interrupted before the first word]"), ("you", "what is it")]


def test_failed_cut_wordless_and_joined_replies_are_told_as_such():
    seen = Transcribed()
    _, item, outputs = exchange(1, answer="")
    assert seen.take(*outputs[:2], ended(1, item, status="failed", error="it is too long")) == [
        ("you", "what is it"),
        ("", "error: it is too long"),
    ]
    _, item, outputs = exchange(2, asked="")
    assert seen.take(*outputs, ended(2, item, status="incomplete")) == [
        ("you", "(no words)"),
        ("most", "it is a cat [cut: too long]"),
    ]
    said, item, outputs = exchange(3)
    seen.take(*outputs)
    joined = seen.take(ended(3, item, status="cancelled"), Removed(item), Removed(said))
    assert joined == [("", "(you went on: it is heard again, as a whole)")]


def test_a_typed_question_stands_before_its_answer_and_after_the_one_it_ends():
    seen = Transcribed()
    _, old, outputs = exchange(1)
    seen.take(*outputs, Playback(1, "play"))
    seen.transcript.typed("and now?")
    new = Item("a2", "assistant")
    assert seen.take(Playback(1, "stop"), Shortened(1, old, 9), ReplyStarted(2, new)) == [
        ("most", "it is a cat [interrupted]"),
        ("you", "and now?"),
    ]


def test_the_live_line_shows_what_goes_on_how_loud_and_the_newest_words():
    transcript = Transcript([].append)
    assert transcript.live("", 80) == "listening  [....................]  "
    transcript.take(Level(-40.0, -55.0, True))
    transcript.take(StateChanged(State.HEARING))
    transcript.take(Heard(None, "one two three four five six", provisional=True))
    assert transcript.live("", 80) == "hearing    [#####|####..........]  one two three four five six"
    assert transcript.live("", 46) == "hearing    [#####|####..........]  ...ive six"
    assert transcript.live("what", 80).endswith("]  > what")
    said, item, _ = exchange(1)
    for output in (Committed(1, said), ReplyStarted(1, item), Heard(1, "what"), StateChanged(State.THINKING)):
        transcript.take(output)
    assert transcript.live("", 80).endswith("]  what")
    transcript.take(StateChanged(State.SPEAKING))
    transcript.take(Text(1, "a\x1b[2Jcat"))
    assert transcript.live("", 80).endswith("]  a [2Jcat")


@pytest.mark.parametrize(("level", "shown"), [(-120.0, "[..|"), (0.0, "[##|#################]")])
def test_the_meter_shows_the_threshold_at_every_level(level, shown):
    assert meter(Level(level, -64.0, False)).startswith(shown)
    assert meter(Level(level, 0.0, False)).endswith("|]")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_finished_lines_scroll_above_the_live_one(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "30")
    out = Terminal()
    screen = Screen(out)
    screen.show("listening")
    screen.show("listening")
    screen.tell(Line("most", "a reply that is longer than the terminal"))
    screen.tell(Line("", "aside", dim=True))
    screen.close()
    clear, live = "\r\x1b[2K", "\x1b[?7llistening\x1b[?7h"
    assert out.getvalue() == (
        f"{clear}{live}{clear}most  a reply that is longer\n      than the terminal\n"
        f"{clear}{live}{clear}\x1b[2m      aside\x1b[0m\n{clear}{live}{clear}\x1b[?7l\x1b[?7h"
    )


def test_where_there_is_no_terminal_only_finished_lines_are_written():
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    screen = Screen(out)
    screen.show("listening")
    screen.tell(Line("most", "un café\x1b[2J\nhere"))
    screen.close()
    assert out.buffer.getvalue() == b"most  un caf? [2J here\n"


def test_keys_make_lines():
    typing = Typing()
    assert typing.take(b"what is\x7f\x7fwas") == []
    assert typing.draft == "what was"
    first, second = "é".encode()[:1], "é".encode()[1:]
    assert typing.take(b"\x1b[A it \x17caf" + first) == []
    assert typing.take(second + b"?\n\n") == ["what was café?", ""]
    typing.take(b"a draft")
    assert typing.take(b"\x04") == []
    assert typing.take(b"\x15\x04") == ["/quit"]


def test_a_terminal_hands_on_key_by_key_only_meanwhile():
    termios = pytest.importorskip("termios")
    master, terminal = os.openpty()

    def flags():
        return termios.tcgetattr(terminal)[3] & (termios.ICANON | termios.ECHO)

    before = flags()
    with key_by_key(terminal):
        assert flags() == 0
    assert flags() == before
    for end in (master, terminal):
        os.close(end)


# Whole conversations


class Room:
    """A microphone and a speaker in one thread, in real time or `speed` times as fast. `say` puts a voice into the
    room, over what plays."""

    def __init__(self, speed=1.0, rate=16_000):
        self.microphone, self.speaker = Device(0, "a microphone", rate, 1), Device(1, "a speaker", rate, 1)
        self.speed, self.rate, self.works = speed, rate, True
        self.played = []
        self._voice = deque()
        self._noise = np.random.default_rng(0)
        self._ended = threading.Event()

    def say(self, sound):
        sound = Resampler(16_000, self.rate).push(np.concatenate([sound, np.zeros(400, np.float32)]))
        self._voice.extend(np.array_split(sound, len(sound) * 50 // self.rate))

    @property
    def silent(self):
        return not self._voice

    def sounded(self, last=None):
        """Seconds of the speaker's sound that were not silent, of the last so many blocks."""
        return sum(block.any() for block in self.played[-last if last else None :]) / 50

    @contextlib.contextmanager
    def open(self, hear, take):
        def work():
            begun, blocks = time.monotonic(), 0
            while not self._ended.wait(max(begun + blocks / 50 / self.speed - time.monotonic(), 0)):
                blocks += 1
                hush = self._noise.normal(0, 1e-4, self.rate // 50).astype(np.float32)
                hear(self._voice.popleft() if self._voice else hush)
                self.played.append(take(self.rate // 50))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield Streams(10.0, lambda: self.works)
        finally:
            self._ended.set()
            thread.join()


class Evening:
    """A conversation on the main thread, and on another what is done in it: a function given this."""

    def __init__(self, most, generation, room, act, **options):
        self.out, self.room, self.error = io.StringIO(), room, None
        keyboard, self._keys = os.pipe()
        engine = Engine(most)
        actor = threading.Thread(target=self._act, args=(act,), daemon=True)
        try:
            actor.start()
            talk.converse(engine, Settings(**options), generation, room, Screen(self.out), keyboard)
        finally:
            actor.join(timeout=40)
            engine.close()
            os.close(self._keys)  # ends the keyboard's thread
        if self.error:
            raise self.error
        assert not actor.is_alive()

    def _act(self, act):
        try:
            act(self)
        except BaseException as error:
            self.error = error
        finally:
            self.type("/quit\n")

    @property
    def lines(self):
        return self.out.getvalue().splitlines()

    def said(self, who):
        return [line[6:] for line in self.lines if line.startswith(who)]

    def type(self, text):
        os.write(self._keys, text.encode())

    def wait(self, condition, seconds=30):
        give_up = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < give_up, self.out.getvalue()
            time.sleep(0.005)


@pytest.fixture
def long(short):
    """A reply that takes long enough to be interrupted."""
    return replace(short, max_new_tokens=400, max_sentence_units=300)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_spoken_question_is_answered_with_sound(most, short, rate):
    room = Room(speed=2, rate=rate)

    def act(evening):
        evening.wait(lambda: "ends." in evening.out.getvalue())
        room.say(recording("where"))
        evening.wait(lambda: evening.said("most") and "first sound after" in evening.lines[-1])

    evening = Evening(most, short, room, act)
    assert evening.lines[0] == f"      microphone  a microphone, {rate} Hz"
    assert "Headphones" in evening.out.getvalue()
    assert [line[:4] for line in evening.lines[4:]] == ["you ", "most", "    "]
    assert room.sounded() > 0.2
    assert "interrupted" not in evening.out.getvalue()


def test_a_voice_over_the_reply_pauses_and_then_ends_it(most, long):
    room = Room()

    def act(evening):
        room.say(recording("where"))
        evening.wait(lambda: room.sounded() > 0.6)
        room.say(recording("capital"))
        evening.wait(lambda: evening.said("most"))
        assert not room.silent  # while it still speaks
        assert room.sounded(last=8) == 0
        evening.wait(lambda: len(evening.said("you")) == 2)

    evening = Evening(most, long, room, act)
    assert evening.said("most")[0].endswith("[interrupted]") or "before the first word" in evening.said("most")[0]


def test_a_cough_only_pauses_it_and_enter_stops_it(most, long):
    room = Room()

    def act(evening):
        evening.type("tell me all\n")
        evening.wait(lambda: room.sounded() > 0.4)
        room.say(recording("where")[3200:11_200])
        evening.wait(lambda: room.sounded(last=5) == 0, 2)
        before = room.sounded()
        evening.wait(lambda: room.sounded() > before + 0.3)
        assert not evening.said("most")
        evening.type("\n")
        evening.wait(lambda: evening.said("most"))
        evening.wait(lambda: room.sounded(last=5) == 0, 1)

    evening = Evening(most, long, room, act)
    assert evening.said("you") == ["tell me all"]
    assert "interrupted" in evening.said("most")[0]


def test_with_half_duplex_nothing_interrupts_but_keys(most, long):
    room = Room()

    def act(evening):
        evening.type("tell me all\n")
        evening.wait(lambda: room.sounded() > 0.4)
        room.say(recording("where"))
        evening.wait(lambda: room.silent)
        assert not evening.said("most")
        assert room.sounded(last=20) > 0.3
        evening.type("that is enough\n")
        evening.wait(lambda: len(evening.said("you")) == 2)

    evening = Evening(most, long, room, act, half_duplex=True)
    assert "does not listen" in evening.out.getvalue()
    assert evening.said("you") == ["tell me all", "that is enough"]


def test_what_is_typed_is_answered_and_what_is_too_long_is_not(most, short):
    room = Room(speed=2)

    def act(evening):
        evening.type("hello there\n")
        evening.wait(lambda: evening.said("most"))
        evening.type("hello " * 10 + "\n")
        evening.wait(lambda: "type at most 20" in evening.out.getvalue())

    evening = Evening(most, short, room, act, characters=20)
    assert evening.said("you") == ["hello there"]
    assert room.sounded() > 0.2


def test_ctrl_c_ends_even_while_it_speaks(most, long):
    room = Room()

    def act(evening):
        evening.type("hello\n")
        evening.wait(lambda: room.sounded() > 0.2)
        os.kill(os.getpid(), signal.SIGINT)

    evening = Evening(most, long, room, act)
    assert "interrupted" in evening.said("most")[0]


def test_a_device_that_goes_away_ends_it_with_a_word(most, short):
    room = Room()

    def act(evening):
        time.sleep(0.2)
        room.works = False
        time.sleep(0.5)

    with pytest.raises(OSError, match=r"is gone.*--list-devices"):
        Evening(most, short, room, act)


def test_a_microphone_without_any_sound_is_told(most, short, monkeypatch):
    monkeypatch.setattr(talk, "SILENT_S", 0.2)
    room = Room()
    room._noise = SimpleNamespace(normal=lambda mean, spread, count: np.zeros(count))
    Evening(most, short, room, lambda evening: evening.wait(lambda: "is it muted" in evening.out.getvalue()))


def test_nano_knows_the_capital_of_wales():
    nano = most_core.load(ROOT / "assets/nano")
    room = Room()

    def act(evening):
        room.say(recording("capital"))
        evening.wait(lambda: evening.said("most"), 120)

    evening = Evening(nano, nano.usual_settings, room, act)
    assert "Wales" in evening.said("you")[0]
    assert "Cardiff" in evening.said("most")[0]
    assert room.sounded() > 1
    assert np.sqrt(np.mean(np.concatenate(room.played) ** 2)) > 0.005
