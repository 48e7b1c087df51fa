"""What a conversation looks like in a terminal: finished lines that scroll, one live line below them, typed lines."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TextIO

from app.outputs import (
    Committed,
    Heard,
    HeardAll,
    Item,
    Level,
    Output,
    Playback,
    Removed,
    ReplyEnded,
    ReplyStarted,
    Shortened,
    SpeechStarted,
    StateChanged,
    Text,
    Timed,
)
from app.turn import State

QUIT = "/quit"
MARGIN = 6  # columns for who says it
METER, QUIETEST_DB, LOUDEST_DB = 20, -70.0, -10.0
ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|O.)?")  # cursor keys and the like
CLEAR, DIM, PLAIN, NO_WRAP, WRAP = "\r\x1b[2K", "\x1b[2m", "\x1b[0m", "\x1b[?7l", "\x1b[?7h"


@dataclass(frozen=True)
class Line:
    """A finished one. `who`: you, most, or nobody. `dim`: a remark."""

    who: str
    text: str
    dim: bool = False


@dataclass(eq=False)
class _Turn:
    """What is known of the turn that goes on."""

    turn: int
    asked: Item | None = None
    item: Item | None = None
    heard: str = ""
    said: str = ""
    asked_told: bool = False
    playing: bool = False
    cut: bool = False
    joined: bool = False
    over: bool = False
    ended: ReplyEnded | None = None
    timed: Timed | None = None


class Transcript:
    """Makes lines of what comes out of a conversation. `tell` is called with each finished one: what was heard as
    soon as it is, the reply when its playback is over, since only then it is known how much of it was heard."""

    def __init__(self, tell: Callable[[Line], None]) -> None:
        self.tell = tell
        self.state = State.LISTENING
        self.level: Level | None = None
        self._caption = ""
        self._typed = ""
        self._turn: _Turn | None = None

    def take(self, output: Output) -> None:
        match output:
            case StateChanged(state=state):
                self.state = state
            case Level():
                self.level = output
            case SpeechStarted():
                self._caption = ""
            case Heard(text=text, provisional=True):
                self._caption = text
            case Committed(turn=turn, item=item):
                self._begin(turn).asked = item
            case ReplyStarted(turn=turn, item=item):
                now = self._turn if self._turn and self._turn.turn == turn else self._begin(turn)
                now.item = item
                if self._typed:
                    self.tell(Line("you", self._typed))
                    self._typed, now.asked_told = "", True
            case Removed():
                if self._turn:
                    self._turn.joined = True
            case _ if self._turn and getattr(output, "turn", None) == self._turn.turn:
                self._follow(output, self._turn)

    def typed(self, text: str) -> None:
        """The next reply answers this."""
        self._typed = text

    def played_out(self, turn: int) -> None:
        """All of the turn's reply was played."""
        if self._turn and self._turn.turn == turn:
            self._turn.over = True

    def settle(self) -> None:
        """Tell what can be told by now: call it when the conversation has emitted all that belongs together."""
        if self._turn and self._turn.over:
            self._finish()

    def live(self, draft: str, width: int) -> str:
        """The one line that changes: what goes on, how loud it is, and what is typed, heard or said, at its end."""
        front = f"{self.state:10} {meter(self.level)}  "
        words = {
            State.HEARING: self._caption,
            State.THINKING: self._turn.heard if self._turn else "",
            State.SPEAKING: self._turn.said if self._turn else "",
        }
        text = f"> {draft}" if draft else printable(words.get(self.state, ""))
        room = max(width - len(front) - 1, 10)
        return front + (text if len(text) <= room else "..." + text[3 - room :])

    def _begin(self, turn: int) -> _Turn:
        if self._turn:
            self._finish()
        self._turn = _Turn(turn)
        return self._turn

    def _follow(self, output: Output, now: _Turn) -> None:
        match output:
            case Heard(text=text):
                now.heard += text
            case HeardAll():
                self._tell_asked(now)
            case Text(text=text):
                now.said += text
            case Playback(action=action):
                now.playing = True
                now.over = now.over or action == "stop"
            case ReplyEnded():
                now.ended = output
                now.over = now.over or not now.playing
            case Shortened():
                now.cut = now.over = True
            case Timed():
                now.timed = output

    def _tell_asked(self, now: _Turn) -> None:
        if now.asked and not now.asked_told:
            now.asked_told = True
            self.tell(Line("you", now.asked.transcript.strip() or "(no words)"))

    def _finish(self) -> None:
        now, self._turn = self._turn, None
        if now.joined:  # what was said comes again, as part of what is being said
            if now.asked_told:
                self.tell(Line("", "(you went on: it is heard again, as a whole)", dim=True))
            return
        self._tell_asked(now)
        words = now.item.transcript.strip() if now.item else ""
        if now.cut:
            self.tell(Line("most", f"{words} [interrupted]" if words else "[interrupted before the first word]"))
        elif words or not (now.ended and now.ended.error):
            limit = " [cut: too long]" if now.ended and now.ended.status == "incomplete" else ""
            self.tell(Line("most", (words or "(no words)") + limit))
        if now.ended and now.ended.error:
            self.tell(Line("", f"error: {now.ended.error}"))
        if note := _note(now):
            self.tell(Line("", note, dim=True))


def _note(now: _Turn) -> str:
    """How sure the model was, and where the time went."""
    parts = []
    if now.ended and now.ended.reply:
        parts.append(f"confidence {now.ended.reply.confidence:.2f}")
    if now.timed:
        stages = ", ".join(f"{name} {ms:.0f}" for name, ms in now.timed.stages.items() if round(ms))
        parts.append(f"{'first sound' if now.playing else 'answered'} after {now.timed.total_ms:.0f} ms ({stages})")
    return "; ".join(parts)


def meter(level: Level | None) -> str:
    """The microphone's level as a bar, in which `|` is what speech must exceed."""
    cells = ["."] * METER
    if level is not None:
        loud, least = (
            round(METER * min(max((db - QUIETEST_DB) / (LOUDEST_DB - QUIETEST_DB), 0), 1))
            for db in (level.level_db, level.threshold_db)
        )
        cells[:loud] = "#" * loud
        cells[min(least, METER - 1)] = "|"
    return f"[{''.join(cells)}]"


def printable(text: str) -> str:
    """Without what would steer the terminal: a model may write anything."""
    return "".join(c if c.isprintable() else " " for c in text)


class Screen:
    """Writes lines. Where `out` is no terminal, only finished ones, and no escape sequences."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.live = out.isatty() and os.environ.get("TERM") != "dumb"
        self._shown = ""

    @property
    def width(self) -> int:
        return shutil.get_terminal_size().columns

    def tell(self, line: Line) -> None:
        """Add a finished line, above the live one."""
        text = f"{line.who:{MARGIN}}{printable(line.text)}".rstrip()
        if not self.live:
            return self._write(text + "\n")
        indent = " " * MARGIN
        text = textwrap.fill(text, max(self.width - 1, 20), subsequent_indent=indent, drop_whitespace=True)
        shown, self._shown = self._shown, ""
        self._write(CLEAR + (f"{DIM}{text}{PLAIN}" if line.dim else text) + "\n")
        self.show(shown)

    def show(self, text: str) -> None:
        """Make this the live line."""
        if self.live and text != self._shown:
            self._shown = text
            self._write(CLEAR + NO_WRAP + text + WRAP)

    def close(self) -> None:
        """Take the live line away."""
        self.show("")

    def _write(self, text: str) -> None:
        encoding = self._out.encoding or "utf-8"
        self._out.write(text.encode(encoding, "replace").decode(encoding))
        self._out.flush()


class Typing:
    """Collects typed characters into lines; `draft` is the one that is not finished."""

    def __init__(self) -> None:
        self.draft = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def take(self, data: bytes) -> list[str]:
        """The lines that are finished by these keys. Ctrl-D in an empty line is `/quit`."""
        lines = []
        for key in ESCAPES.sub("", self._decoder.decode(data)):
            if key in "\r\n":
                lines.append(self.draft)
                self.draft = ""
            elif key in "\b\x7f":
                self.draft = self.draft[:-1]
            elif key == "\x15":  # Ctrl-U
                self.draft = ""
            elif key == "\x17":  # Ctrl-W
                self.draft = "".join(self.draft.rstrip().rpartition(" ")[:2])
            elif key == "\x04" and not self.draft:
                lines.append(QUIT)
            elif key.isprintable():
                self.draft += key
        return lines


@contextlib.contextmanager
def key_by_key(keyboard: int) -> Iterator[None]:
    """Meanwhile a terminal hands on each key at once, and shows none itself: the live line does. Where that cannot be
    had, keys come by lines."""
    try:
        import termios
        import tty
    except ImportError:  # Windows
        yield
        return
    if not os.isatty(keyboard):
        yield
        return
    before = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)
    try:
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
