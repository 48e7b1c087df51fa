"""One conversation: sound and wishes go in, what to show and play comes out. Knows neither sockets nor devices.

It joins the ears of the app (`vad`), its manners (`turn`) and its model (`engine`), and remembers what was said. All
methods belong to one thread; what the engine's thread has to tell comes there through `post`.

Time here is the position in the microphone's sound. Where none comes for a while, silence stands in for it.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from app import turn
from app.engine import Busy, Ended, Engine, Job
from app.outputs import (
    Committed,
    Dropped,
    Heard,
    HeardAll,
    Item,
    Level,
    Output,
    Playback,
    Removed,
    ReplyEnded,
    ReplyStarted,
    Routed,
    Shortened,
    Sound,
    SpeechStarted,
    SpeechStopped,
    StateChanged,
    Status,
    Text,
    Timed,
)
from app.turn import State, TurnMachine, TurnSettings
from app.vad import SAMPLE_RATE, VadFrame, VadSettings, VoiceActivity
from most_core import Done, GenerationSettings, HeardDelta, Message, Reply, RoutingDelta, SpeechDelta, TextDelta
from most_core.assistant import STAGES

KEPT_S = 40  # of the microphone's sound: more than the longest utterance
GAP_S = 0.5  # without sound from the microphone, silence is assumed
HUSH_MS = 200  # of silence tell the detector that a gap has begun
MOST_SOUND_S = 600  # of what was said is remembered as sound
LEVEL_MS = 100  # between two reports of the microphone's level
TAIL_MS = 1500  # before a reply is begun, in which speech ended
LEAST_POWER = 1e-9
QUIET = 10 ** (-50 / 20)  # what nobody hears: replies that begin with it would only keep one waiting
LEAD_S = 0.03  # of it is kept before the first sound
CAPTION_MS = 400  # of new sound are worth hearing what was said so far anew
PER_MS = SAMPLE_RATE // 1000


@dataclass(frozen=True)
class TalkSettings:
    """How a conversation is held. `instructions`: what a system says to the model. `history`: earlier exchanges that a
    turn is answered with. `captions`: show what is being said while it is said. `routing`: tell which expert took which
    token. `record`: give that with the end of each reply, as files. `answer_speech`: a turn that ends is answered at
    once, else only when asked."""

    generation: GenerationSettings
    instructions: str = ""
    history: int = 1
    captions: bool = False
    routing: bool = False
    record: bool = False
    answer_speech: bool = True


@dataclass(eq=False)
class _Reply:
    """The live turn's reply."""

    turn: int
    item: Item
    said: Item | None  # the utterance it answers; None for what is in the conversation already
    hears: Item | None  # whose sound is heard first
    begun: float  # perf_counter, as the other moments
    speech_end: float
    answers: bool  # else the utterance is only committed
    speaks: bool
    routing: bool  # is told while it is generated
    job: Job | None = None
    committed: bool = False
    playing: bool = False
    paused: bool = False
    reported: bool = False  # the client tells how far playback is; else it is reckoned
    ended: bool = False
    shown: bool = False  # its text began, so all was heard
    first_sound: float = math.inf
    played_at: float = math.inf  # when playback was told to begin
    reckoned_at: float = 0.0
    played_ms: float = 0.0
    sound_ms: float = 0.0
    skipped_ms: float = 0.0  # of silence before its first sound
    sounds: list[SpeechDelta] = field(default_factory=list)
    held: list[Output] = field(default_factory=list)  # until the turn is committed
    reply: Reply | None = None
    tables: dict[str, bytes] | None = None  # its trace as files, if it is recorded
    last: ReplyEnded | None = None  # comes after all sound
    over: float = math.inf
    network: tuple[float, float] | None = None  # milliseconds to the client and until it plays
    timed: bool = False

    def level_db(self) -> float | None:
        """Of what plays now."""
        end = self.played_ms
        for delta in self.sounds:
            length = 1000 * len(delta.pcm) / delta.sample_rate
            if end <= length:
                stop = max(int(end * delta.sample_rate / 1000), 1)
                piece = delta.pcm[max(stop - delta.sample_rate // 10, 0) : stop]
                power = float(np.square(piece).mean())
                return 10 * math.log10(power) if power > 0 else None
            end -= length
        return None


class Conversation:
    """Call `hear` with what the microphone gives and `tick` some twenty times a second; `emit` is called with what
    comes of it, `post` from any thread with what is to be called on the conversation's own."""

    def __init__(
        self,
        engine: Engine,
        emit: Callable[[Output], None],
        post: Callable[[Callable[[], None]], None],
        *,
        talk: TalkSettings | None = None,
        turns: TurnSettings | None = None,
        vad: VadSettings | None = None,
        wall: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.engine, self.emit, self.post, self._wall = engine, emit, post, wall
        self.talk = talk or TalkSettings(engine.most.usual_settings)
        self.items: dict[str, Item] = {}
        self.machine = TurnMachine(turns)
        self._vad = VoiceActivity(vad or VadSettings())
        self._microphone = _Recent(KEPT_S * SAMPLE_RATE)
        self._lag_ms = 0.0  # of the detector's clock behind the conversation's
        self._arrivals: deque[tuple[float, float]] = deque(maxlen=2048)  # (position, when it came)
        self._heard_at, self._in_gap = wall(), False
        self.listening = True  # set it to False while sound is kept waiting: that is no gap in it
        self._level_at_ms = -math.inf
        self._state = State.LISTENING
        self._floor_ms: float | None = None  # somebody has the floor since then
        self._speech_id = ""  # what they say will be called
        self._reply: _Reply | None = None
        self._caption: Job | None = None
        self._captioned_ms = 0.0
        self._recorded: list[np.ndarray] | None = None  # sound to be committed by hand
        self._recorded_samples = 0
        self._made = 0
        self._events: deque[turn.Event] = deque()
        self._handling = False

    # What goes in

    @property
    def now_ms(self) -> float:
        """The position in the microphone's sound."""
        return self._microphone.end / PER_MS

    @property
    def state(self) -> State:
        return self.machine.state

    @property
    def by_hand(self) -> bool:
        """Speech is committed by the client, not by its ends."""
        return self._recorded is not None

    @property
    def replying(self) -> bool:
        """A reply is being generated, or its end is not told yet because somebody speaks."""
        reply = self._reply
        return reply is not None and reply.committed and not (reply.ended and (reply.playing or reply.last is None))

    def hear(self, samples: np.ndarray) -> None:
        """Sound from the microphone: float32 at 16 kHz, any number of samples."""
        now = self._wall()
        self._in_gap = False
        self._heard_at = now
        if self._recorded is not None:
            self._recorded.append(samples)
            self._recorded_samples += len(samples)
        self._take(samples, now)
        self._caption_speech()

    def tick(self) -> None:
        """Time has passed."""
        now = self._wall()
        if not self.listening and not self._in_gap:
            self._heard_at = now
        if self._in_gap or now - self._heard_at >= GAP_S:
            self._pass_gap(now)
        reply = self._reply
        if reply and reply.playing and not reply.reported:
            self._reckon(reply, now)
        if reply:
            self._tell_times(reply)

    def turn_by_hand(self, on: bool) -> None:
        """Whether the client commits speech itself (`commit`, then `respond`), and no end of speech does."""
        self._recorded, self._recorded_samples = [] if on else None, 0
        self._handle(turn.HandsFree(self.now_ms, not on))

    def hands_free(self, on: bool) -> None:
        self._handle(turn.HandsFree(self.now_ms, on))

    def mute(self, on: bool) -> None:
        self._handle(turn.Mute(self.now_ms, on))

    def half_duplex(self, on: bool) -> None:
        self._handle(turn.HalfDuplex(self.now_ms, on))

    def press(self) -> None:
        """Push-to-talk goes down."""
        self._handle(turn.Press(self.now_ms))

    def release(self) -> None:
        self._handle(turn.Release(self.now_ms))

    def stop(self) -> None:
        """Fall silent."""
        self._handle(turn.Stop(self.now_ms))

    def commit(self) -> Item | None:
        """What was said so far is the whole of it: answered at once, or, by hand, put into the conversation and
        returned. ValueError if there is none."""
        if self._recorded is None:
            self._handle(turn.CommitNow(self.now_ms))
            return None
        sound = np.concatenate(self._recorded) if self._recorded else np.zeros(0, np.float32)
        if len(sound) < SAMPLE_RATE // 10:
            raise ValueError(f"{len(sound) / SAMPLE_RATE:.2f} s of sound are no speech: append at least 0.1 s")
        self._recorded, self._recorded_samples = [], 0
        return self.add(Item(self.new_id(), "user", sound=sound))

    @property
    def recorded_s(self) -> float:
        """Sound that waits to be committed by hand."""
        return self._recorded_samples / SAMPLE_RATE

    def clear(self) -> None:
        """Forget what was said and not committed."""
        if self._recorded is not None:
            self._recorded, self._recorded_samples = [], 0
        elif self.machine.state == State.HEARING:
            self._handle(turn.Stop(self.now_ms))

    def add(self, item: Item, after: str | None = None) -> Item:
        """Put something into the conversation: at its end, after another item, or ("") before all."""
        if after is None:
            self.items[item.id] = item
        else:
            order = list(self.items.values())
            order.insert(list(self.items).index(after) + 1 if after else 0, item)
            self.items = {i.id: i for i in order}
        self._limit_sound(item)
        return item

    def knows(self, name: str) -> bool:
        """Whether an item has this name, or one that is to come."""
        coming = (self._reply.item, self._reply.said) if self._reply else ()
        return name in self.items or name == self._speech_id or any(i is not None and i.id == name for i in coming)

    def new_id(self) -> str:
        """A name that no item has."""
        self._made += 1
        name = f"item_{self._made}"
        return name if not self.knows(name) else self.new_id()

    def respond(self) -> None:
        """Answer the conversation as it stands. ValueError if its last word is not the user's."""
        last = next((i for i in reversed(self.items.values()) if i.role != "system"), None)
        if last is None or last.role != "user":
            raise ValueError("there is nothing to answer: add what the user says first")
        self._handle(turn.Typed(self.now_ms))

    def played(self, of_turn: int, ms: float, *, ended: bool = False, delay_ms: float = 0.0) -> None:
        """A client that plays tells how far it is: at the first sample, at least every second, and at the end.
        `delay_ms`: from receiving the first sound to playing it."""
        reply = self._reply
        if reply is None or reply.turn != of_turn or not reply.playing:
            return
        if not reply.reported and reply.network is None:
            sent_ms = 1000 * (self._wall() - reply.played_at)
            reply.network = (max(sent_ms - delay_ms - ms, 0.0), delay_ms)
        reply.reported = True
        reply.played_ms = min(max(ms, reply.played_ms), reply.sound_ms)
        self._tell_times(reply)
        self._handle(turn.Played(self.now_ms, of_turn, reply.level_db()))
        if ended and reply.ended:
            self._handle(turn.PlaybackEnded(self.now_ms, of_turn))

    def tune(self, turns: TurnSettings | None = None, vad: VadSettings | None = None) -> None:
        """Change when turns change, and what counts as speech."""
        if turns is not None:
            self.machine.adopt(turns)
        if vad is not None:
            self._vad.settings, old = vad, self._vad.settings
            if any(
                getattr(vad, name) != getattr(old, name) for name in ("aggressiveness", "background_s", "start_window")
            ):
                self._lag_ms = self.now_ms
                self._vad.reset()

    def close(self) -> None:
        """The client is gone."""
        self._handle(turn.Disconnect(self.now_ms))
        self._stop_captions()
        # At once, not when Python looks for circles: beside a model's many objects it seldom does.
        self.emit, self.post = _to_nobody, _to_nobody
        self._microphone = _Recent(PER_MS)
        self.items.clear()

    # Hearing

    def _take(self, samples: np.ndarray, arrived: float) -> None:
        self._microphone.append(samples)
        self._arrivals.append((self.now_ms, arrived))
        for frame in self._vad.push(samples):
            self._take_frame(frame)

    def _take_frame(self, frame: VadFrame) -> None:
        at, lag = frame.end_ms + self._lag_ms, self._lag_ms
        if at - self._level_at_ms >= LEVEL_MS:
            self._level_at_ms = at
            self.emit(Level(frame.level_db, frame.threshold_db, frame.speech))
        onset = None if frame.onset_ms is None else frame.onset_ms + lag
        self._handle(turn.Frame(at, frame.speech, frame.level_db, onset))

    def _pass_gap(self, now: float) -> None:
        """Silence stands in for the sound that did not come."""
        elapsed_ms, self._heard_at = 1000 * (now - self._heard_at), now
        if not self._in_gap:
            self._in_gap = True
            hush = np.zeros(min(int(HUSH_MS), int(elapsed_ms)) * PER_MS, np.float32)
            self._take(hush, now)
            elapsed_ms -= len(hush) / PER_MS
        samples = round(elapsed_ms * PER_MS)
        self._microphone.skip(samples)
        self._lag_ms += samples / PER_MS
        self._handle(turn.Tick(self.now_ms))

    def _speech_end(self, from_ms: float, until_ms: float) -> float:
        """Where in a stretch that ends with silence the speech before it ended: finer than the detector, which waits
        in case that more follows, and hears no last "s"."""
        sound = self._microphone.part(max(from_ms, until_ms - TAIL_MS), until_ms)
        powers = np.square(sound[len(sound) % (10 * PER_MS) :]).reshape(-1, 10 * PER_MS).mean(axis=1)
        silence = max(float(powers[-10:].mean()), LEAST_POWER) if len(powers) else 0.0
        louder = np.flatnonzero(powers > 4 * silence)
        return until_ms - 10 * (len(powers) - 1 - louder[-1]) if len(louder) else until_ms

    def _arrival(self, position_ms: float) -> float:
        """When the sound at this position was said, as far as its arrival tells."""
        for end, arrived in self._arrivals:
            if end >= position_ms:
                return arrived - (end - position_ms) / 1000
        return self._wall()

    def _caption_speech(self) -> None:
        """Show what is being said, where the model has time for that."""
        if not (self.talk.captions or self.talk.routing) or self._floor_ms is None or self._reply or self._caption:
            return
        if self.now_ms - max(self._captioned_ms, self._floor_ms) < CAPTION_MS:
            return
        self._captioned_ms = self.now_ms
        item = Item("", "user", sound=self._microphone.part(self._floor_ms, self.now_ms))
        messages, routing = self._messages(item), self.talk.routing

        def tell(event: HeardDelta | RoutingDelta | Ended) -> None:
            self.post(lambda: self._captions(job, event))

        with contextlib.suppress(Busy):
            job = self._caption = self.engine.submit(
                lambda cancel: self.engine.most.hear(messages, cancel=cancel, record_routing=routing), tell, spare=True
            )

    def _captions(self, job: Job, event: HeardDelta | RoutingDelta | Ended) -> None:
        if job is not self._caption:
            return
        if isinstance(event, Ended):
            self._caption = None
        elif isinstance(event, RoutingDelta) and self.talk.routing:
            self.emit(Routed(None, event.tokens, provisional=True))
        elif isinstance(event, HeardDelta) and event.text:
            self.emit(Heard(None, event.text, provisional=True))

    def _stop_captions(self) -> None:
        if self._caption:
            self._caption.cancel()
            self._caption = None

    # Turns

    def _handle(self, event: turn.Event) -> None:
        """One event after the other, also where doing what one asks for brings about the next."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                actions = self.machine.handle(self._events.popleft())
                self._show_state()
                for action in actions:
                    self._do(action)
                if self._reply and self._reply.turn != self.machine.live_turn:  # it was played, or had no sound
                    self._tell_times(self._reply, last=True)
                    self._reply = None
        finally:
            self._handling = False

    def _show_state(self) -> None:
        if self.machine.state != self._state:
            self._state = self.machine.state
            self.emit(StateChanged(self._state))

    def _do(self, action: turn.Action) -> None:
        match action:
            case turn.Hear(from_ms=at):
                self._floor_ms = self._captioned_ms = at
                self._speech_id = self.new_id()
                self.emit(SpeechStarted(at, self._speech_id))
            case turn.Drop(why=why):
                self._end_speech()
                self.emit(Dropped(why))
            case turn.Begin():
                self._begin(action)
            case turn.Discard():
                self._forget()
            case turn.Commit():
                self._commit()
            case turn.Play():
                self._play()
            case turn.Pause() | turn.Resume():
                self._hold(isinstance(action, turn.Pause))
            case turn.Cancel(joined=joined):
                self._cancel(joined)

    def _end_speech(self) -> None:
        self._stop_captions()
        if self._floor_ms is not None:
            self._floor_ms = None
            self.emit(SpeechStopped(self.now_ms, self._speech_id))

    def _begin(self, action: turn.Begin) -> None:
        self._stop_captions()
        said, now = None, self._wall()
        hears, speech_end = next(reversed(self.items.values()), None), now
        if action.from_ms is not None and action.until_ms is not None:
            sound = self._microphone.part(action.from_ms, action.until_ms)
            said = hears = Item(self._speech_id, "user", sound=sound)
            speech_end = min(self._arrival(self._speech_end(action.from_ms, action.until_ms)), now)
        if hears is not None and (hears.sound is None or hears.transcript):
            hears = None
        talk = self.talk
        answers = said is None or talk.answer_speech
        item, speaks = Item(self.new_id(), "assistant"), talk.generation.speak
        reply = self._reply = _Reply(action.turn, item, said, hears, now, speech_end, answers, speaks, talk.routing)
        if not answers:
            return
        messages, most = self._messages(said), self.engine.most
        records = talk.record and bool(most.config.moe_layers)

        def make(cancel: Any) -> Iterator[Any]:
            events = most.stream(
                messages, settings=talk.generation, cancel=cancel, record_routing=talk.routing or records
            )
            return _recorded(events) if records else events

        def tell(event: Any) -> None:
            at = self._wall()
            self.post(lambda: self._generated(reply, event, at))

        try:
            reply.job = self.engine.submit(make, tell)
        except Busy as busy:
            self._generated(reply, Ended(str(busy), fault=True), now)

    def _forget(self) -> None:
        """The live reply was never shown."""
        if self._reply and self._reply.job:
            self._reply.job.cancel()
        self._reply = None

    def _commit(self) -> None:
        reply = self._reply
        self._end_speech()
        reply.committed = True
        if reply.said is not None:
            self.add(reply.said)
            self._drop_old_sound()
            self.emit(Committed(reply.turn, reply.said))
        if not reply.answers:
            self._handle(turn.GenerationEnded(self.now_ms, reply.turn))
            return
        self.add(reply.item)
        self.emit(ReplyStarted(reply.turn, reply.item))
        held, reply.held = reply.held, []
        for output in held:
            self.emit(output)

    def _play(self) -> None:
        reply = self._reply
        reply.playing, reply.played_at = True, self._wall()
        reply.reckoned_at = reply.played_at
        self.emit(Playback(reply.turn, "play", reply.skipped_ms))
        for delta in reply.sounds:
            self.emit(Sound(reply.turn, delta.pcm, delta.sample_rate))
        if reply.last:
            self.emit(reply.last)
        self._handle(turn.Played(self.now_ms, reply.turn, reply.level_db()))

    def _hold(self, paused: bool) -> None:
        reply, now = self._reply, self._wall()
        if paused and not reply.reported:
            self._reckon(reply, now)
        reply.paused, reply.reckoned_at = paused, now
        self.emit(Playback(reply.turn, "pause" if paused else "resume"))

    def _cancel(self, joined: bool) -> None:
        reply, self._reply = self._reply, None
        if reply.playing and not reply.paused and not reply.reported:
            self._reckon(reply, self._wall(), events=False)
        if reply.job:
            reply.job.cancel()
        if reply.playing:
            self.emit(Playback(reply.turn, "stop"))
        cut = not reply.ended or reply.played_ms < reply.sound_ms
        if not reply.ended or (reply.last and not reply.playing):
            self._end_reply(reply, "cancelled")
        if joined:
            for item in (reply.item, reply.said):
                if item is not None and self.items.pop(item.id, None):
                    self.emit(Removed(item))
        elif cut and reply.speaks:  # what was only shown was read
            share = reply.played_ms / reply.sound_ms if reply.sound_ms else 0.0
            words = reply.item.transcript.split()
            reply.item.transcript = " ".join(words[: math.floor(share * len(words))])
            self.emit(Shortened(reply.turn, reply.item, reply.played_ms))

    def _reckon(self, reply: _Reply, now: float, events: bool = True) -> None:
        """How far a client that does not tell must be by now."""
        if not reply.paused:
            reply.played_ms = min(reply.played_ms + 1000 * (now - reply.reckoned_at), reply.sound_ms)
        reply.reckoned_at = now
        if events and not reply.paused:
            self._handle(turn.Played(self.now_ms, reply.turn, reply.level_db()))
            if reply.ended and reply.played_ms >= reply.sound_ms:
                self._handle(turn.PlaybackEnded(self.now_ms, reply.turn))

    # The reply

    def _generated(self, reply: _Reply, event: Any, at: float) -> None:
        """Something of a reply is there, since `at`."""
        if reply is not self._reply:
            return  # it was cancelled, and no more of it is wanted
        match event:
            case HeardDelta(text=text):
                if reply.hears is not None:
                    reply.hears.transcript += text
                    self._show(reply, Heard(reply.turn, text))
            case TextDelta(text=text):
                self._all_heard(reply)
                reply.item.transcript += text
                self._show(reply, Text(reply.turn, text))
            case SpeechDelta():
                self._all_heard(reply)
                if not reply.sounds:
                    whole, event = event, _from_first_sound(event)
                    left = 0 if event is None else len(event.pcm)
                    reply.skipped_ms += 1000 * (len(whole.pcm) - left) / whole.sample_rate
                    if event is None:
                        return
                reply.sounds.append(event)
                reply.sound_ms += 1000 * len(event.pcm) / event.sample_rate
                if reply.playing:
                    self.emit(Sound(reply.turn, event.pcm, event.sample_rate))
                elif reply.first_sound == math.inf:
                    reply.first_sound = at
                    self._handle(turn.FirstAudio(self.now_ms, reply.turn))
            case RoutingDelta() if reply.routing:
                self._show(reply, Routed(reply.turn, event.tokens, provisional=False))
            case Done():
                reply.reply = event.reply
            case _Tables():
                reply.tables = event.files
            case Ended():
                self._all_heard(reply)
                status: Status = "completed"
                if event.error:
                    status = "failed"
                elif reply.reply is not None and reply.reply.finish_reason == "length":
                    status = "incomplete"
                self._end_reply(reply, status, event.error)
                self._handle(turn.GenerationEnded(self.now_ms, reply.turn))

    def _all_heard(self, reply: _Reply) -> None:
        if reply.hears is not None and not reply.shown:
            reply.hears.transcript = reply.hears.transcript.strip()
            self._show(reply, HeardAll(reply.turn, reply.hears))
        reply.shown = True

    def _end_reply(self, reply: _Reply, status: Status, error: str = "") -> None:
        reply.ended, reply.over = True, self._wall()
        reply.item.transcript = reply.item.transcript.strip()
        ended = ReplyEnded(reply.turn, reply.item, status, reply.reply, error, reply.tables)
        if reply.sounds and not reply.playing and status != "cancelled":
            reply.last = ended
        else:
            self._show(reply, ended)

    def _show(self, reply: _Reply, output: Output) -> None:
        if reply.committed:
            self.emit(output)
        else:
            reply.held.append(output)

    def _tell_times(self, reply: _Reply, last: bool = False) -> None:
        """Once, when all of them are known: the model's at its end, the client's if it tells them in decent time."""
        known = reply.network is not None or self._wall() - reply.played_at > GAP_S
        if reply.timed or reply.reply is None or not (last or (reply.playing and known)):
            return
        reply.timed = True
        stages = {"endpoint": 1000 * (reply.begun - reply.speech_end)}
        if reply.sounds and reply.playing:
            model, there = reply.sounds[0].stages, reply.first_sound
        else:
            model, there = {name: reply.reply.timings[name] for name in STAGES}, reply.over
        stages["queue"] = max(1000 * (there - reply.begun) - sum(model.values()), 0.0)
        stages |= model
        if reply.playing:
            stages["hold"] = 1000 * (reply.played_at - there)
            stages["network"], stages["playback"] = reply.network or (0.0, 0.0)
        self.emit(Timed(reply.turn, stages, sum(stages.values())))

    # The conversation so far

    def _messages(self, said: Item | None) -> list[Message]:
        """What the model is given: the system's words, the last exchanges, and what is to be answered."""
        items = [i for i in self.items.values() if i.text or i.transcript or i.sound is not None]
        if said is not None:
            items.append(said)
        recent, replies = [], 0
        for item in reversed(items):
            if item.role == "assistant":
                replies += 1
                if replies > self.talk.history:
                    break
            if item.role != "system":
                recent.append(item)
        recent.reverse()
        while recent and recent[0].role == "assistant":  # its question is not there
            recent.pop(0)
        system = [i for i in items if i.role == "system"]
        if self.talk.instructions:
            system.insert(0, Item("", "system", self.talk.instructions))
        return [i.message() for i in [*system, *self._fitting(recent)]]

    def _fitting(self, items: Sequence[Item]) -> list[Item]:
        """Without the oldest, as far as needed to leave half of the model's context to the reply."""
        room = self.engine.most.loop.decoder.context / 2
        frames, tokenizer = self.engine.most.config.audio_rate_hz / SAMPLE_RATE, self.engine.most.processor.tokenizer
        kept: list[Item] = []
        for item in reversed(items):
            heard = item.sound is not None and not item.transcript
            room -= len(item.sound) * frames if heard else len(tokenizer(item.text + item.transcript).input_ids)
            if room < 0 and kept:
                break
            kept.insert(0, item)
        return kept

    def _drop_old_sound(self) -> None:
        """What was said before the last exchanges is remembered as text alone."""
        spoken = [i for i in self.items.values() if i.sound is not None]
        for item in spoken[: -1 - max(self.talk.history, 1)]:
            item.sound = None

    def _limit_sound(self, newest: Item) -> None:
        """The oldest sound goes first, as far as needed."""
        spoken = [i for i in self.items.values() if i.sound is not None]
        total = sum(len(i.sound) for i in spoken)
        for item in spoken:
            if total > MOST_SOUND_S * SAMPLE_RATE and item is not newest:
                total -= len(item.sound)
                item.sound = None


def _from_first_sound(delta: SpeechDelta) -> SpeechDelta | None:
    """Without the silence that it begins with; None if it is nothing else."""
    loud = np.flatnonzero(np.abs(delta.pcm) > QUIET)
    if not len(loud):
        return None
    return replace(delta, pcm=delta.pcm[max(loud[0] - int(LEAD_S * delta.sample_rate), 0) :])


@dataclass(frozen=True)
class _Tables:
    """A finished reply's trace as files."""

    files: dict[str, bytes]


def _recorded(events: Iterator[Any]) -> Iterator[Any]:
    """The events of a reply, and its trace's files. They are written where the reply is generated: it takes 15 ms for a
    long one of the full model, which nobody who talks may wait for."""
    with contextlib.closing(events):
        for event in events:
            yield event
            if isinstance(event, Done) and event.reply.trace is not None:
                yield _Tables(event.reply.trace.to_bytes())


def _to_nobody(_: Any) -> None:
    """The client is gone."""


class _Recent:
    """The last samples of an endless recording, by their position in it."""

    def __init__(self, capacity: int) -> None:
        self._ring = np.zeros(capacity, np.float32)
        self.end = 0  # samples so far

    def append(self, samples: np.ndarray) -> None:
        size = len(self._ring)
        last = samples[-size:]
        start = (self.end + len(samples) - len(last)) % size
        head = min(size - start, len(last))
        self._ring[start : start + head] = last[:head]
        self._ring[: len(last) - head] = last[head:]
        self.end += len(samples)

    def skip(self, samples: int) -> None:
        """Silence."""
        kept = min(samples, len(self._ring))
        self.end += samples - kept
        self.append(np.zeros(kept, np.float32))

    def part(self, from_ms: float, until_ms: float) -> np.ndarray:
        """What of this stretch is still there."""
        stop = min(round(until_ms * PER_MS), self.end)
        start = min(max(round(from_ms * PER_MS), self.end - len(self._ring), 0), stop)
        return self._ring[np.arange(start, stop) % len(self._ring)]
