"""Turn-taking of a hands-free voice assistant: who speaks when. Pure: events go in, actions come out.

    listening --speech--> hearing --endpoint--> thinking --first audio--> speaking --played--> listening

What is special about it:
- A reply is begun after a short silence and committed at the endpoint: until then it may be thrown away unheard.
- Speech over a reply first pauses it and is judged after that: a cough lets it resume, longer speech cancels it. So an
  echo of the reply cannot cancel it, because the pause silences the echo before the decision.
- The endpoint adapts to the pauses of the person who speaks (`_Endpoint`), the barge-in to the echo (`_Echo`).
- Time is only what events say. All times are milliseconds of one clock, the position in the microphone's audio, from
  0: stamp an event of any other kind with the newest position there is. Only `Frame` and `Tick` let time-outs happen.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Literal


class State(StrEnum):
    """What the assistant does."""

    LISTENING = "listening"
    HEARING = "hearing"
    THINKING = "thinking"
    SPEAKING = "speaking"


@dataclass(frozen=True)
class Event:
    """Something that happened. A time before the newest one counts as the newest."""

    at_ms: float


@dataclass(frozen=True)
class Frame(Event):
    """A frame of microphone audio that ends at `at_ms`, judged by the (smoothed) voice activity detector, its level in
    dB of full scale. `onset_ms` is when the speech that it belongs to truly began; None: unknown, so at `at_ms`."""

    speech: bool
    level_db: float
    onset_ms: float | None = None


@dataclass(frozen=True)
class Tick(Event):
    """Time passed without a frame, which counts as silence: send some every second while no microphone delivers."""


@dataclass(frozen=True)
class FirstAudio(Event):
    """The first sound of `turn`'s reply is ready to play."""

    turn: int


@dataclass(frozen=True)
class GenerationEnded(Event):
    """`turn`'s reply is complete, empty or failed: no more of it will come. What there is of it is played."""

    turn: int


@dataclass(frozen=True)
class Played(Event):
    """Playback of `turn` goes on: send it from the first sample on, at least every second. `level_db` is the level of
    what was just played, after the volume control; None: unknown."""

    turn: int
    level_db: float | None = None


@dataclass(frozen=True)
class PlaybackEnded(Event):
    """All of `turn` was played, and no more will come."""

    turn: int


@dataclass(frozen=True)
class Press(Event):
    """Push-to-talk goes down."""


@dataclass(frozen=True)
class Release(Event):
    """Push-to-talk goes up."""


@dataclass(frozen=True)
class CommitNow(Event):
    """What was said so far is the whole utterance."""


@dataclass(frozen=True)
class Stop(Event):
    """Everything that goes on shall end."""


@dataclass(frozen=True)
class Mute(Event):
    """The microphone is muted (not even push-to-talk is heard) or no longer."""

    on: bool


@dataclass(frozen=True)
class HalfDuplex(Event):
    """The microphone is ignored while a reply plays, or no longer."""

    on: bool


@dataclass(frozen=True)
class HandsFree(Event):
    """Speech alone starts turns and interrupts replies (as at first), or only push-to-talk does."""

    on: bool


@dataclass(frozen=True)
class Typed(Event):
    """A turn was typed."""


@dataclass(frozen=True)
class Disconnect(Event):
    """The person is gone: the machine ends."""


Why = Literal["noise", "too short", "nothing heard", "muted", "hands-free off", "stopped", "typed", "disconnected"]


@dataclass(frozen=True)
class Action:
    """Something to be done now, in the order of the list."""


@dataclass(frozen=True)
class Hear(Action):
    """Somebody speaks: keep the audio from `from_ms` on."""

    from_ms: float


@dataclass(frozen=True)
class Drop(Action):
    """Nothing comes of what was heard, or of a key that was pressed: `why` is worth telling unless it is "noise"."""

    why: Why


@dataclass(frozen=True)
class TurnAction(Action):
    """An action about one turn."""

    turn: int


@dataclass(frozen=True)
class Begin(TurnAction):
    """Start to generate a reply to the audio of this stretch; None: to what was typed. Show and play nothing yet."""

    from_ms: float | None = None
    until_ms: float | None = None


@dataclass(frozen=True)
class Discard(TurnAction):
    """Stop generating and forget this turn: it was never committed, and the user goes on speaking or takes it back."""


@dataclass(frozen=True)
class Commit(TurnAction):
    """The user's turn is over: it belongs to the conversation now, and the text of its reply may be shown."""


@dataclass(frozen=True)
class Play(TurnAction):
    """Play what there is of the reply, and what follows."""


@dataclass(frozen=True)
class Pause(TurnAction):
    """Hold playback, losing nothing. Generation goes on."""


@dataclass(frozen=True)
class Resume(TurnAction):
    """Play on from where it paused."""


@dataclass(frozen=True)
class Cancel(TurnAction):
    """Stop generating and flush playback. `joined`: what the user said comes again as part of the next turn, so take
    this one out of the conversation; else what was said, and what was heard of the reply, stays in it."""

    joined: bool = False


@dataclass(frozen=True)
class TurnSettings:
    """When turns change. Times are in milliseconds, levels in decibels."""

    tentative_ms: float = 200  # silence after which a reply is begun
    endpoint_min_ms: float = 350  # silence that ends an utterance: learned, between these two
    endpoint_max_ms: float = 800
    endpoint_start_ms: float = 500  # before anything is learned
    endpoint_margin_ms: float = 100  # beyond the learned pauses; covers the detector's delay
    short_ms: float = 600  # an utterance with less speech ("er, ...") ...
    short_extra_ms: float = 200  # ... waits this much longer, up to endpoint_max_ms
    least_speech_ms: float = 200  # less speech is noise
    longest_ms: float = 30_000  # an utterance of this length is committed as it is
    preroll_ms: float = 300  # audio kept from before the onset
    pause_after_ms: float = 0  # speech over a reply that pauses it: 0 is at once
    interrupt_ms: float = 400  # speech over a reply that cancels it
    resume_ms: float = 250  # silence after shorter speech, then the reply goes on
    echo_guard_ms: float = 3000  # from the first sound of the session on, the echo canceller converges: meanwhile ...
    guard_extra_ms: float = 300  # ... pausing and cancelling take this much more speech
    echo_margin_db: float = 6  # over the estimated echo, for speech over a reply to count
    echo_start_db: float = -20  # echo relative to the reply, before anything is learned
    echo_rise_db_s: float = 20  # how fast the estimate follows, per second
    echo_fall_db_s: float = 5
    echo_step_db: float = 3  # how much the estimate rises when a pause came to nothing
    echo_tail_ms: float = 200  # how long after a pause or an end the echo may still be heard
    stalled_ms: float = 5000  # without progress of playback, the reply is cancelled
    least_held_ms: float = 200  # push-to-talk held for less is a slip

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{item.name} is {value!r}: make it a finite number")
        for name, low, high in (
            ("tentative_ms", 1, "endpoint_min_ms"),
            ("endpoint_min_ms", "tentative_ms", "endpoint_max_ms"),
            ("endpoint_start_ms", "endpoint_min_ms", "endpoint_max_ms"),
            ("endpoint_max_ms", 0, "longest_ms"),
            ("endpoint_margin_ms", 0, "endpoint_min_ms"),
            ("short_ms", 0, "longest_ms"),
            ("short_extra_ms", 0, "endpoint_max_ms"),
            ("least_speech_ms", 0, "short_ms"),
            ("preroll_ms", 0, "longest_ms"),
            ("pause_after_ms", 0, 100),  # with the detector's delay, 150 are felt as a reaction at once
            ("interrupt_ms", "pause_after_ms", "longest_ms"),
            ("resume_ms", "echo_tail_ms", "stalled_ms"),  # else a speaker hidden by the echo's tail seems silent
            ("echo_guard_ms", 0, math.inf),
            ("guard_extra_ms", 0, "longest_ms"),
            ("echo_margin_db", 0, 60),
            ("echo_start_db", -100, 0),
            ("echo_rise_db_s", 0, 1000),
            ("echo_fall_db_s", 0, 1000),
            ("echo_step_db", 0, 60),
            ("echo_tail_ms", 0, math.inf),
            ("least_held_ms", 0, "longest_ms"),
        ):
            value, least, most = (getattr(self, x) if isinstance(x, str) else x for x in (name, low, high))
            if not least <= value <= most:
                rule = " ".join(
                    f"{word} {limit}" + (f" ({bound})" if isinstance(bound, str) else "")
                    for word, limit, bound in (("at least", least, low), ("and at most", most, high))
                    if limit != math.inf
                )
                raise ValueError(f"{name} is {value}: make it {rule}")


REMEMBERED = 8  # utterances that the endpoint is learned from


class _Endpoint:
    """How long a silence ends an utterance of this person.

    Of each utterance that ended by itself, the longest pause inside counts (0 where there was none), also a pause that
    outlasted the endpoint but after which the person went on (`_Speech.joined`). The endpoint is the second longest of
    the last eight utterances' pauses, plus a margin: about one utterance in eight may still be cut, and a single
    hesitation costs nothing. So it grows with two long pauses and shrinks only after seven utterances without. A pause
    longer than any endpoint may be teaches nothing. Until eight were heard, `endpoint_start_ms` stands for the others.
    """

    def __init__(self, settings: TurnSettings) -> None:
        self.settings = settings
        self._pauses = deque([settings.endpoint_start_ms - settings.endpoint_margin_ms] * REMEMBERED, REMEMBERED)

    def learn(self, longest_pause_ms: float) -> None:
        if longest_pause_ms <= self.settings.endpoint_max_ms:
            self._pauses.append(longest_pause_ms)

    @property
    def usual_ms(self) -> float:
        settings = self.settings
        wished = sorted(self._pauses)[-2] + settings.endpoint_margin_ms
        return min(max(wished, settings.endpoint_min_ms), settings.endpoint_max_ms)

    def wait_ms(self, spoken_ms: float) -> float:
        """A short utterance is often only the start of one, so it waits longer."""
        extra = self.settings.short_extra_ms if spoken_ms < self.settings.short_ms else 0
        return min(self.usual_ms + extra, self.settings.endpoint_max_ms)


REPLY_DB = -20  # the level of replies whose level nobody tells


class _Echo:
    """How loud the microphone hears the reply: the reply's level plus the gain of the path from speaker to microphone.

    The path is learned from every frame while the reply sounds, whoever speaks in it, but slowly: it rises by at most
    `echo_rise_db_s` and falls by at most `echo_fall_db_s`. A person who speaks over the reply hardly raises it, since
    the pause ends the learning. A pause that came to nothing raises it by `echo_step_db`: an echo that is taken for a
    person is soon taken for one no more, and a single "mhm" is forgotten in less than a second. The reply's level
    follows a louder reply at once and falls as slowly as the path, because an echo comes later than its report.
    """

    def __init__(self, settings: TurnSettings) -> None:
        self.settings = settings
        self.path_db = settings.echo_start_db
        self.reply_db: float = REPLY_DB

    def follow_reply(self, level_db: float | None, elapsed_ms: float) -> None:
        if level_db is not None and math.isfinite(level_db):
            self.reply_db = max(level_db, self.reply_db - self.settings.echo_fall_db_s * elapsed_ms / 1000)

    def follow_frame(self, level_db: float, elapsed_ms: float) -> None:
        if math.isfinite(level_db):  # digital silence tells nothing
            step = level_db - self.reply_db - self.path_db
            fall, rise = (x * elapsed_ms / 1000 for x in (self.settings.echo_fall_db_s, self.settings.echo_rise_db_s))
            self.path_db += min(max(step, -fall), rise)

    def raise_path(self) -> None:
        self.path_db += self.settings.echo_step_db

    def explains(self, level_db: float) -> bool:
        return not level_db > self.reply_db + self.path_db + self.settings.echo_margin_db


@dataclass
class _Speech:
    """What somebody says: an utterance, or words over a reply which may become one."""

    from_ms: float  # where its audio starts
    onset_ms: float
    end_ms: float  # of its last speech
    spoken_ms: float = 0  # without the pauses
    longest_pause_ms: float = 0
    pressed_ms: float | None = None  # push-to-talk holds it since then, and no silence ends it

    def go_on(self, onset_ms: float, now_ms: float) -> None:
        """There is speech since its last end, or since a later onset."""
        start = max(onset_ms, self.end_ms)
        self.longest_pause_ms = max(self.longest_pause_ms, start - self.end_ms)
        self.spoken_ms += now_ms - start
        self.end_ms = now_ms

    def joined(self, later: _Speech) -> _Speech:
        """Both as one utterance: somebody went on after a long pause in mid-sentence."""
        pause = max(self.longest_pause_ms, later.onset_ms - self.end_ms, later.longest_pause_ms)
        return _Speech(self.from_ms, self.onset_ms, later.end_ms, self.spoken_ms + later.spoken_ms, pause)


@dataclass
class _Reply:
    """The one live turn. Uncommitted exactly while its utterance is still being heard."""

    turn: int
    said: _Speech | None = None  # the committed utterance; None for a typed one
    ready: bool = False  # its first audio is there
    over: bool = False  # no more of it will come
    playing: bool = False
    paused: bool = False
    sound_ms: float | None = None  # when it was first heard
    progress_ms: float = 0


class TurnMachine:
    """Takes every event of one session in `handle`; `state` is what the assistant does after the last one.

    Rules for what is not obvious:
    - A preemptive reply does not end `hearing`: only the commit does.
    - Speech over a reply that was committed but never sounded before that speech began, joins the earlier utterance if
      it cancels the reply (unless both together exceed `longest_ms`): the person just went on. `Play` waits while
      somebody speaks. Once the reply was heard, the speech is an utterance of its own.
    - An explicit end (commit, release, stop, typed turn, longest utterance) makes deaf until `tentative_ms` of silence:
      what is still being said, or a noise that never ends, starts nothing.
    - A reply that ends without any sound is over at once; speech over it goes on as an utterance of its own.
    - Muting, and any other way to stop hearing, drops an unfinished utterance, but only that: a paused reply resumes.
    - Push-to-talk takes over what is being said already, else audio starts at the press. It cancels a live reply and
      never joins. Its audio is committed at the release, or after `longest_ms`.
    - Speaking ends by `PlaybackEnded`, interruption, press, typed turn, stop, disconnect, or without a `Played` for
      `stalled_ms` (not counting pauses). A failed reply plays what there is of it. Thinking has no time limit here.
    - Events about any but the live turn are ignored. Turns count from 1.
    """

    def __init__(self, settings: TurnSettings | None = None) -> None:
        self.settings = settings or TurnSettings()
        self.muted, self.half_duplex, self.hands_free, self.ended = False, False, True, False
        self._endpoint, self._echo = _Endpoint(self.settings), _Echo(self.settings)
        self._utterance: _Speech | None = None  # the user has the floor
        self._aside: _Speech | None = None  # speech over a committed reply, not yet an utterance
        self._reply: _Reply | None = None
        self._turn = 0
        self._actions: list[Action] = []
        self._now: float = 0
        self._frame_ms: float = 0  # the end of the last frame
        self._speech_ms = -math.inf  # the end of the last frame with speech, heeded or not
        self._deaf = False  # until there was silence
        self._open_ms: float = 0  # no audio from before may be used
        self._refused_ms: float = 0  # until here, speech was explained by the echo
        self._first_sound_ms: float | None = None  # of the session
        self._echo_until_ms = -math.inf  # the last reply may be heard till then

    @property
    def state(self) -> State:
        if self._utterance:
            return State.HEARING
        if self._reply is None:
            return State.LISTENING
        return State.SPEAKING if self._reply.playing else State.THINKING

    @property
    def endpoint_ms(self) -> float:
        """The silence that ends an utterance of usual length, as learned so far."""
        return self._endpoint.usual_ms

    @property
    def live_turn(self) -> int | None:
        """The turn whose reply is being made, waits or plays."""
        return self._reply.turn if self._reply else None

    def adopt(self, settings: TurnSettings) -> None:
        """Go on with other settings; what was learned stays."""
        self.settings = self._endpoint.settings = self._echo.settings = settings

    def handle(self, event: Event) -> list[Action]:
        """What to do now, in this order. Nothing after a disconnect."""
        if not isinstance(event, Event):
            raise TypeError(f"{event!r} is no event of a turn: pass one of the events of {__name__}")
        if self.ended:
            return []
        self._actions = []
        if math.isfinite(event.at_ms):
            self._now = max(self._now, event.at_ms)
        match event:
            case Frame():
                self._take_frame(event)
                self._pass_time()
            case Tick():
                self._pass_time()
            case FirstAudio() | GenerationEnded() | Played() | PlaybackEnded():
                if self._reply and self._reply.turn == event.turn:
                    self._follow_reply(event, self._reply)
            case Press():
                self._press()
            case Release():
                self._release()
            case CommitNow():
                if self._aside and self._reply:
                    self._interrupt(self._aside, self._reply)
                if self._utterance:
                    self._commit()
                else:
                    self._do(Drop("nothing heard"))
            case Stop():
                self._clear("stopped")
            case Typed():
                self._clear("typed")
                self._commit()
            case Disconnect():
                self._clear("disconnected")
                self.ended = True
            case Mute(on=on):
                self.muted = on
                if on:
                    self._stop_hearing("muted")
                self._open_ms = self._now
            case HandsFree(on=on):
                self.hands_free = on
                if not on and not self._held:
                    self._stop_hearing("hands-free off")
                self._open_ms = self._now
            case HalfDuplex(on=on):
                self.half_duplex = on
                if on and self.state == State.SPEAKING:
                    self._forget_aside()
        return self._actions

    # What the microphone hears

    def _take_frame(self, frame: Frame) -> None:
        elapsed, self._frame_ms = self._now - self._frame_ms, self._now
        if frame.speech:
            self._speech_ms = self._now
        reply = self._reply
        sounding = reply is not None and reply.playing and not reply.paused
        if not self._listens():
            self._open_ms = self._now
        elif frame.speech and self._is_echo(frame, sounding):
            self._refused_ms = self._now
        elif frame.speech:
            self._hear(frame)
        if sounding and reply.sound_ms is not None:
            self._echo.follow_frame(frame.level_db, elapsed)

    def _listens(self) -> bool:
        closed = self.muted or self._deaf or not self.hands_free or self._held
        return not closed and not (self.half_duplex and self.state == State.SPEAKING)

    def _is_echo(self, frame: Frame, sounding: bool) -> bool:
        """The reply, and not somebody over it, may be what the detector took for speech."""
        echoing = (sounding or self._now < self._echo_until_ms) and not self._utterance
        return echoing and self._echo.explains(frame.level_db)

    @property
    def _held(self) -> bool:
        return self._utterance is not None and self._utterance.pressed_ms is not None

    def _hear(self, frame: Frame) -> None:
        onset = self._now if frame.onset_ms is None else frame.onset_ms
        # What was refused or not heard belongs to nobody's speech, even if the detector sees one stretch.
        onset = min(self._now, max(self._open_ms, self._refused_ms, onset))
        speech = self._utterance or self._aside
        if speech is None:
            speech = _Speech(max(self._open_ms, onset - self.settings.preroll_ms), onset, onset)
            if self._reply is None:
                self._open_floor(speech)
            else:
                self._aside = speech
        elif self._utterance and self._reply:
            self._discard(self._reply)
        speech.go_on(onset, self._now)

    def _pass_time(self) -> None:
        settings, reply = self.settings, self._reply
        if self._now - self._speech_ms >= settings.tentative_ms:
            self._deaf = False
        if self._utterance:
            self._time_utterance(self._utterance)
        elif self._aside and reply:
            self._weigh_aside(self._aside, reply)
        elif reply and reply.playing and self._now - reply.progress_ms >= settings.stalled_ms:
            self._cancel(reply)

    def _time_utterance(self, speech: _Speech) -> None:
        settings, quiet = self.settings, self._now - speech.end_ms
        if self._now - speech.from_ms >= settings.longest_ms:
            self._commit()
        elif self._held:
            pass
        elif quiet >= self._endpoint.wait_ms(speech.spoken_ms):
            if speech.spoken_ms < settings.least_speech_ms:
                self._drop("noise")
            else:
                self._endpoint.learn(speech.longest_pause_ms)
                self._commit()
        elif quiet >= settings.tentative_ms and not self._reply and speech.spoken_ms >= settings.least_speech_ms:
            self._begin()

    def _weigh_aside(self, aside: _Speech, reply: _Reply) -> None:
        settings = self.settings
        first = self._first_sound_ms
        converging = reply.playing and (first is None or aside.onset_ms < first + settings.echo_guard_ms)
        extra = settings.guard_extra_ms if converging else 0
        quiet = self._now - aside.end_ms
        if aside.spoken_ms >= settings.interrupt_ms + extra:
            self._interrupt(aside, reply)
        elif quiet >= settings.resume_ms:
            if reply.paused:
                self._echo.raise_path()
            self._forget_aside()
        elif reply.playing and not reply.paused and aside.spoken_ms >= settings.pause_after_ms + extra:
            self._fade(reply)
            reply.paused = True
            self._do(Pause(reply.turn))

    def _interrupt(self, aside: _Speech, reply: _Reply) -> None:
        """The speech over the reply takes the floor."""
        said = reply.said
        unheard = reply.sound_ms is None or aside.onset_ms <= reply.sound_ms
        joined = unheard and said is not None and aside.end_ms - said.from_ms < self.settings.longest_ms
        self._cancel(reply, joined)
        self._open_floor(said.joined(aside) if said and joined else aside)

    def _forget_aside(self) -> None:
        """Somebody coughed or agreed, or may not be heard any more: the reply goes on."""
        reply, self._aside = self._reply, None
        if reply and reply.paused:
            reply.paused, reply.progress_ms = False, self._now
            self._do(Resume(reply.turn))
        elif reply:
            self._answer(reply)

    def _press(self) -> None:
        if self.muted:
            self._do(Drop("muted"))
        elif not self._held:
            speech = self._utterance or self._aside or _Speech(self._now, self._now, self._now)
            speech.pressed_ms = self._now
            if self._reply and self._utterance:
                self._discard(self._reply)
            elif self._reply:
                self._cancel(self._reply)
            if not self._utterance:
                self._open_floor(speech)

    def _release(self) -> None:
        if self._utterance and self._utterance.pressed_ms is not None:
            if self._now - self._utterance.pressed_ms < self.settings.least_held_ms:
                self._drop("too short")
            else:
                self._commit()

    # Turns

    def _open_floor(self, speech: _Speech) -> None:
        self._utterance, self._aside = speech, None
        self._do(Hear(speech.from_ms))

    def _begin(self) -> _Reply:
        self._turn += 1
        speech = self._utterance
        self._do(Begin(self._turn, speech.from_ms, self._now) if speech else Begin(self._turn))
        self._reply = _Reply(self._turn)
        return self._reply

    def _commit(self) -> None:
        """The utterance, or what was typed, is the user's turn."""
        reply = self._reply or self._begin()
        reply.said, self._utterance = self._utterance, None
        self._close_ears()
        self._do(Commit(reply.turn))
        self._answer(reply)

    def _answer(self, reply: _Reply) -> None:
        """Play a committed reply as soon as it is there and nobody speaks; end one that has no sound."""
        if reply.over and not reply.ready:
            self._finish(reply)
        elif reply.ready and not reply.playing and not self._aside:
            reply.playing, reply.progress_ms = True, self._now
            self._do(Play(reply.turn))

    def _follow_reply(self, event: FirstAudio | GenerationEnded | Played | PlaybackEnded, reply: _Reply) -> None:
        match event:
            case FirstAudio():
                reply.ready = True
            case GenerationEnded():
                reply.over = True
            case Played() if reply.playing:
                self._echo.follow_reply(event.level_db, self._now - reply.progress_ms)
                reply.progress_ms = self._now
                reply.sound_ms = self._now if reply.sound_ms is None else reply.sound_ms
                self._first_sound_ms = reply.sound_ms if self._first_sound_ms is None else self._first_sound_ms
            case PlaybackEnded() if reply.playing:
                self._finish(reply)
                return
        if not self._utterance:
            self._answer(reply)

    def _finish(self, reply: _Reply) -> None:
        """The reply is over; who speaks already has the floor."""
        self._fade(reply)
        self._reply = None
        if self._aside:
            self._open_floor(self._aside)

    def _cancel(self, reply: _Reply, joined: bool = False) -> None:
        self._fade(reply)
        self._reply = self._aside = None
        self._do(Cancel(reply.turn, joined))

    def _discard(self, reply: _Reply) -> None:
        self._reply = None
        self._do(Discard(reply.turn))

    def _drop(self, why: Why) -> None:
        if self._reply:
            self._discard(self._reply)
        self._utterance = None
        self._do(Drop(why))

    def _stop_hearing(self, why: Why) -> None:
        if self._utterance:
            self._drop(why)
        elif self._aside:
            self._forget_aside()

    def _clear(self, why: Why) -> None:
        """End whatever goes on."""
        if self._utterance:
            self._drop(why)
        elif self._reply:
            self._cancel(self._reply)
        self._close_ears()

    def _close_ears(self) -> None:
        """What was said until now is dealt with, and what is still being said belongs to it."""
        self._open_ms = self._now
        self._deaf = self._now - self._speech_ms < self.settings.tentative_ms

    def _fade(self, reply: _Reply) -> None:
        """If the reply sounds now, its echo lasts a little longer."""
        if reply.playing and not reply.paused:
            self._echo_until_ms = self._now + self.settings.echo_tail_ms

    def _do(self, action: Action) -> None:
        self._actions.append(action)
