"""`python app.py --local`: the conversation in the terminal, through this machine's microphone and speaker.

What is special about it:
- The conversation belongs to one thread. The devices' callbacks, the keyboard and the engine only put calls into its
  inbox; the speaker's callback takes from a buffer (`Speaker`) that the conversation fills, pauses and empties at once.
- How far playback is, it is told from what the speaker really took. So an interruption cuts the history rightly.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import sys
import threading
import time
from collections.abc import Callable

import numpy as np

from app.audio import Resampler
from app.conversation import Conversation, TalkSettings
from app.engine import Engine
from app.outputs import Item, Output, Playback, ReplyEnded, Sound
from app.settings import Settings
from app.terminal import devices
from app.terminal.devices import Pair
from app.terminal.screen import QUIT, Line, Screen, Transcript, Typing, key_by_key
from app.terminal.speaker import Speaker
from app.vad import SAMPLE_RATE
from most_core import GenerationSettings, Most

TICK_S = 0.04
SILENT_S = 5.0  # of nothing at all from the microphone are worth a word


def talk(most: Most, settings: Settings) -> int:
    """Talk until Ctrl-C, Ctrl-D or `/quit`; the exit status. ValueError or OSError if there is no device for it, or
    it goes away."""
    pair, screen = devices.find(settings), Screen(sys.stdout)
    engine = Engine(most)
    try:
        engine.warm_up()
        converse(engine, settings, most.usual_settings, pair, screen, _keyboard())
    except KeyboardInterrupt:
        pass
    finally:
        engine.close()
    return 0


def converse(
    engine: Engine,
    settings: Settings,
    generation: GenerationSettings,
    pair: Pair,
    screen: Screen,
    keyboard: int | None = None,
) -> None:
    """One conversation, until Ctrl-C or `/quit`. `keyboard`: the file descriptor that typed lines come from. OSError if
    a device does not open or goes away."""
    inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    say = TalkSettings(generation, history=settings.history, captions=True)
    talking = _Talking(engine, say, pair, screen, inbox.put, settings.characters)
    for line in _welcome(pair, settings.half_duplex):
        screen.tell(line)
    with contextlib.ExitStack() as stack:
        stack.callback(screen.close)
        stack.callback(talking.close)
        if keyboard is not None:
            stack.enter_context(key_by_key(keyboard))
            _read(keyboard, lambda data: inbox.put(functools.partial(talking.type, data)))
        streams = stack.enter_context(
            pair.open(lambda block: inbox.put(functools.partial(talking.hear, block)), talking.speaker.take)
        )
        talking.player.latency_ms = streams.latency_ms
        talking.conversation.half_duplex(settings.half_duplex)
        with contextlib.suppress(KeyboardInterrupt):
            _work(inbox, talking, streams.working)


def _work(inbox: queue.SimpleQueue[Callable[[], None]], talking: _Talking, working: Callable[[], bool]) -> None:
    """Do what the inbox holds, and tick, until it is over."""
    tick = time.monotonic()
    while not talking.over:
        with contextlib.suppress(queue.Empty):
            inbox.get(timeout=max(tick - time.monotonic(), 0))()
        talking.transcript.settle()
        if time.monotonic() >= tick:
            tick = time.monotonic() + TICK_S
            talking.tick()
            if not working():
                raise OSError("the microphone or the speaker is gone: choose others, see --list-devices")


def _keyboard() -> int | None:
    """Where typed lines come from; None where nobody can type."""
    try:
        return sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):  # there is none, it is no file, it is closed
        return None


def _read(keyboard: int, tell: Callable[[bytes], None]) -> None:
    """Hand on what is typed. The end of a terminal's input (Ctrl-D) is `/quit`; that of a pipe is nothing."""

    def work() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(keyboard, 1024):
                tell(data)
            if os.isatty(keyboard):
                tell(f"{QUIT}\n".encode())

    threading.Thread(target=work, name="keyboard", daemon=True).start()


def _welcome(pair: Pair, half_duplex: bool) -> list[Line]:
    if half_duplex:
        advice = "While it speaks, it does not listen: stop it with Enter."
    else:
        advice = "Headphones are best, for it hears itself from a loudspeaker nearby: else start with --half-duplex."
    return [
        Line("", f"microphone  {pair.microphone.name}, {pair.microphone.rate} Hz"),
        Line("", f"speaker     {pair.speaker.name}, {pair.speaker.rate} Hz"),
        Line("", f"Speak. {advice}"),
        Line("", f"Or type a question and press Enter. Enter alone stops the reply; {QUIT}, Ctrl-D or Ctrl-C ends."),
    ]


class Player:
    """Does with a speaker what the conversation wants, and tells it how far playback is."""

    def __init__(self, speaker: Speaker) -> None:
        self.speaker = speaker
        self.latency_ms = 0.0  # of the device
        self._turn: int | None = None
        self._resampler: Resampler | None = None
        self._given = 0.0  # when the turn's first sound was
        self._delay_ms: float | None = None  # from then until it sounded
        self._whole = self._paused = False

    def take(self, output: Output) -> None:
        match output:
            case Playback(turn=turn, action="play"):
                self.speaker.flush()
                self._turn, self._resampler, self._delay_ms = turn, None, None
                self._whole = self._paused = False
            case Playback(action="stop"):
                self.speaker.flush()
                self._turn = None
            case Playback(action=action):
                self._paused = action == "pause"
                (self.speaker.pause if self._paused else self.speaker.resume)()
            case Sound(turn=turn) if turn == self._turn:
                if self._resampler is None:
                    self._resampler, self._given = Resampler(output.sample_rate, self.speaker.rate), time.perf_counter()
                self.speaker.write(self._resampler.push(output.pcm))
            case ReplyEnded(turn=turn) if turn == self._turn:
                self._whole = True
                if self._resampler is not None:
                    self.speaker.write(self._resampler.finish())

    def report(self, conversation: Conversation) -> int | None:
        """Tell how far it is. Returns the turn whose reply was played to its end just now."""
        turn, position = self._turn, self.speaker.position_ms
        if turn is None or self._paused or not position:
            return None
        if self._delay_ms is None:
            waited = 1000 * (time.perf_counter() - self._given) - position
            self._delay_ms = max(waited, 0.0) + self.latency_ms
        ended = self._whole and self.speaker.empty
        if ended:
            self._turn = None
        conversation.played(turn, position, ended=ended, delay_ms=self._delay_ms)
        return turn if ended else None


class _Talking:
    """One conversation with what it is heard, seen and typed by. All methods belong to its thread."""

    def __init__(
        self,
        engine: Engine,
        say: TalkSettings,
        pair: Pair,
        screen: Screen,
        post: Callable[[Callable[[], None]], None],
        longest: int,
    ) -> None:
        self.over = False
        self.screen, self.longest = screen, longest
        self.speaker = Speaker(pair.speaker.rate)
        self.player = Player(self.speaker)
        self.transcript = Transcript(screen.tell)
        self.conversation = Conversation(engine, self._emit, post, talk=say)
        self._typing = Typing()
        self._resampler = Resampler(pair.microphone.rate, SAMPLE_RATE)
        self._silent_until: float | None = time.monotonic() + SILENT_S

    def hear(self, block: np.ndarray) -> None:
        """The microphone's sound."""
        if self._silent_until is not None and block.any():
            self._silent_until = None
        self.conversation.hear(self._resampler.push(block))

    def type(self, data: bytes) -> None:
        """Keys."""
        for line in self._typing.take(data):
            text = line.strip()
            if text == QUIT:
                self.over = True
            elif not text:
                self.conversation.stop()
            elif len(text) > self.longest:
                self._remark(f"that has {len(text)} characters: type at most {self.longest} (--characters)")
            else:
                self.transcript.typed(text)
                self.conversation.add(Item(self.conversation.new_id(), "user", text=text))
                self.conversation.respond()
            self.transcript.settle()

    def tick(self) -> None:
        """Time has passed."""
        ended = self.player.report(self.conversation)
        if ended is not None:
            self.transcript.played_out(ended)
        self.conversation.tick()
        self.transcript.settle()
        self.screen.show(self.transcript.live(self._typing.draft, self.screen.width))
        if self._silent_until is not None and time.monotonic() > self._silent_until:
            self._silent_until = None
            self._remark("no sound from the microphone: is it muted, or may this terminal not use it?")

    def close(self) -> None:
        """Nobody is there any more."""
        self.conversation.close()
        self.transcript.settle()

    def _emit(self, output: Output) -> None:
        self.player.take(output)
        self.transcript.take(output)

    def _remark(self, text: str) -> None:
        self.screen.tell(Line("", text, dim=True))
