"""Turn-taking, scenario by scenario with the default settings, and what must hold whatever happens."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.turn import (
    Begin,
    Cancel,
    Commit,
    CommitNow,
    Discard,
    Disconnect,
    Drop,
    FirstAudio,
    Frame,
    GenerationEnded,
    HalfDuplex,
    HandsFree,
    Hear,
    Mute,
    Pause,
    Play,
    PlaybackEnded,
    Played,
    Press,
    Release,
    Resume,
    State,
    Stop,
    Tick,
    TurnMachine,
    TurnSettings,
    Typed,
)

FRAME = 20
DETECTED = 60  # a detector says speech so long after the true onset
VOICE, ECHO, QUIET = -20.0, -38.0, -65.0  # dB of full scale


class Room:
    """Somebody at a microphone, from frame to frame; what the machine did is logged with its time."""

    def __init__(self, settings=None):
        self.machine = TurnMachine(settings)
        self.now, self.onset, self.log = 0, None, []

    def send(self, event):
        actions = self.machine.handle(event)
        self.log += [(self.now, action) for action in actions]
        return actions

    def event(self, kind, *values):
        return self.send(kind(self.now, *values))

    def _frames(self, ms, level_db, playing):
        for _ in range(ms // FRAME):
            self.now += FRAME
            detected = self.onset is not None and self.now - self.onset >= DETECTED
            self.send(Frame(self.now, detected, level_db, self.onset if detected else None))
            if playing and self.now % 100 == 0:
                self.send(Played(self.now, playing, VOICE))

    def talk(self, ms, level_db=VOICE, playing=None):
        self.onset = self.now if self.onset is None else self.onset
        self._frames(ms, level_db, playing)

    def quiet(self, ms, playing=None):
        self.onset = None
        self._frames(ms, QUIET, playing)

    def tick(self, ms):
        for _ in range(ms // 100):
            self.now += 100
            self.send(Tick(self.now))


def talk(ms, level_db=VOICE, playing=None):
    return lambda room: room.talk(ms, level_db, playing)


def quiet(ms, playing=None):
    return lambda room: room.quiet(ms, playing)


def tick(ms):
    return lambda room: room.tick(ms)


def do(kind, *values):
    return lambda room: room.event(kind, *values)


def be(state):
    def check(room):
        assert room.machine.state == state

    return check


# At 2000 a question ended that began at 1000; at 2500 it was committed.
QUESTION = [quiet(1000), talk(1000), quiet(500), be("thinking")]
ASKED = [(1060, Hear(700)), (2200, Begin(1, 700, 2200)), (2500, Commit(1))]
# Its reply sounds from 2500 on, and at 6000 the echo canceller has long converged.
SPEAKING = [*QUESTION, do(FirstAudio, 1), do(Played, 1), quiet(3500, playing=1), be("speaking")]
ANSWERED = [*ASKED, (2500, Play(1))]
HEARING = [quiet(1000), talk(1000), be("hearing")]
TENTATIVE = [*HEARING, quiet(300), be("hearing")]
PAUSED = [*SPEAKING, talk(200), be("speaking")]
# Somebody who takes a breath of 200 ms every 5 seconds, from 6000 on.
BREATHS = [
    entry
    for turn, at in enumerate(range(6200, 30_000, 5200), start=1)
    for entry in ((at, Begin(turn, 700, at)), (at + DETECTED, Discard(turn)))
]

CASES = {
    "nothing happens": ([quiet(60_000), be("listening")], []),
    "plain turn": (
        [
            *HEARING,
            quiet(500),
            do(FirstAudio, 1),
            be("speaking"),
            do(Played, 1),
            quiet(900, playing=1),
            do(GenerationEnded, 1),
            quiet(600, playing=1),
            be("speaking"),
            do(PlaybackEnded, 1),
            be("listening"),
        ],
        ANSWERED,
    ),
    "a reply that is ready before the endpoint waits for it": (
        [*TENTATIVE, do(FirstAudio, 1), be("hearing"), quiet(180), be("hearing"), quiet(20), be("speaking")],
        [*ASKED, (2500, Play(1))],
    ),
    "two turns": (
        [*SPEAKING, do(PlaybackEnded, 1), quiet(500), talk(1000), quiet(1000)],
        [*ANSWERED, (6560, Hear(6200)), (7700, Begin(2, 6200, 7700)), (8000, Commit(2))],
    ),
    "two utterances share no audio": (
        [*QUESTION, do(GenerationEnded, 1), be("listening"), quiet(100), talk(1000)],
        [*ASKED, (2660, Hear(2500))],
    ),
    "a short utterance waits longer": (
        [quiet(1000), talk(400), quiet(680), be("hearing"), quiet(20), be("thinking")],
        [(1060, Hear(700)), (1600, Begin(1, 700, 1600)), (2100, Commit(1))],
    ),
    "cough while listening": (
        [quiet(1000), talk(180), quiet(680), be("hearing"), quiet(20), be("listening"), quiet(2000)],
        [(1060, Hear(700)), (1880, Drop("noise"))],
    ),
    "pause in mid-sentence": (
        [*HEARING, quiet(400), talk(1000), be("hearing"), quiet(500), be("thinking")],
        [*ASKED[:2], (2460, Discard(1)), (3600, Begin(2, 700, 3600)), (3900, Commit(2))],
    ),
    "a word's gap begins nothing": ([*HEARING, quiet(120), talk(200), be("hearing")], ASKED[:1]),
    "extended utterance": (
        [*QUESTION, quiet(300), talk(380), be("thinking"), talk(620), be("hearing"), quiet(500), be("thinking")],
        [*ASKED, (3200, Cancel(1, joined=True)), (3200, Hear(700)), (4000, Begin(2, 700, 4000)), (4300, Commit(2))],
    ),
    "cough while thinking": (
        [
            *QUESTION,
            quiet(300),
            talk(200),
            do(FirstAudio, 1),
            be("thinking"),
            quiet(240),
            be("thinking"),
            quiet(20),
            be("speaking"),
        ],
        [*ASKED, (3260, Play(1))],
    ),
    "going on just before the reply sounds": (
        [*QUESTION, talk(40), do(FirstAudio, 1), do(Played, 1), talk(660), be("hearing")],
        [*ASKED, (2540, Play(1)), (2800, Pause(1)), (3200, Cancel(1, joined=True)), (3200, Hear(700))],
    ),
    "mhm while speaking": (
        [*SPEAKING, talk(300), quiet(240), be("speaking"), quiet(20), quiet(300, playing=1), do(PlaybackEnded, 1)],
        [*ANSWERED, (6060, Pause(1)), (6560, Resume(1))],
    ),
    "talk-over": (
        [*SPEAKING, talk(380), be("speaking"), talk(20), be("hearing"), talk(800), quiet(500), be("thinking")],
        [
            *ANSWERED,
            (6060, Pause(1)),
            (6400, Cancel(1)),
            (6400, Hear(5700)),
            (7400, Begin(2, 5700, 7400)),
            (7700, Commit(2)),
        ],
    ),
    "talk-over with gaps between the words": (
        [*SPEAKING, talk(200), quiet(200), talk(200), be("hearing")],
        [*ANSWERED, (6060, Pause(1)), (6600, Cancel(1)), (6600, Hear(5700))],
    ),
    "talk-over in the warm-up takes longer": (
        [*QUESTION, do(FirstAudio, 1), do(Played, 1), quiet(1000, playing=1), talk(680), be("speaking"), talk(20)],
        [*ANSWERED, (3800, Pause(1)), (4200, Cancel(1)), (4200, Hear(3200))],
    ),
    "mhm in the warm-up": (
        [*QUESTION, do(FirstAudio, 1), do(Played, 1), quiet(1000, playing=1), talk(280), quiet(1000)],
        ANSWERED,
    ),
    "who speaks when the reply ends has the floor": (
        [*PAUSED, do(PlaybackEnded, 1), be("hearing"), talk(600), quiet(500)],
        [*ANSWERED, (6060, Pause(1)), (6200, Hear(5700)), (7000, Begin(2, 5700, 7000)), (7300, Commit(2))],
    ),
    "repeated and foreign events": (
        [*SPEAKING, do(FirstAudio, 1), do(GenerationEnded, 1), do(FirstAudio, 7), do(PlaybackEnded, 7), be("speaking")],
        ANSWERED,
    ),
    "late events of a cancelled turn": (
        [
            *SPEAKING,
            do(Stop),
            do(FirstAudio, 1),
            do(Played, 1),
            do(GenerationEnded, 1),
            do(PlaybackEnded, 1),
            be("listening"),
        ],
        [*ANSWERED, (6000, Cancel(1))],
    ),
    "echo": (
        [
            *QUESTION,
            do(FirstAudio, 1),
            do(Played, 1),
            talk(6000, ECHO, playing=1),
            do(PlaybackEnded, 1),
            talk(180, ECHO),
            quiet(2000),
            be("listening"),
        ],
        ANSWERED,
    ),
    "loud echo of the first reply never cancels it": (
        [*QUESTION, do(FirstAudio, 1), do(Played, 1), talk(500, VOICE, playing=1), quiet(260), be("speaking")],
        [*ANSWERED, (2800, Pause(1)), (3260, Resume(1))],
    ),
    "talk-over louder than the echo": (
        [*QUESTION, do(FirstAudio, 1), do(Played, 1), talk(4000, ECHO, playing=1), talk(440), be("hearing")],
        [*ANSWERED, (6520, Pause(1)), (6900, Cancel(1)), (6900, Hear(6200))],
    ),
    "a louder reply has a louder echo": (
        [
            *QUESTION,
            do(FirstAudio, 1),
            do(Played, 1),
            talk(4000, ECHO, playing=1),
            do(Played, 1, VOICE + 15),
            talk(1000, ECHO + 15, playing=1),
            be("speaking"),
        ],
        ANSWERED,
    ),
    "noise onset": (
        [
            quiet(1000),
            talk(31_000),
            be("thinking"),
            do(GenerationEnded, 1),
            be("listening"),
            talk(9000),
            quiet(120),
            talk(100),
            quiet(200),
            be("listening"),
            talk(100),
            be("hearing"),
        ],
        [(1060, Hear(700)), (30_700, Begin(1, 700, 30_700)), (30_700, Commit(1)), (41_480, Hear(41_420))],
    ),
    "longest utterance": (
        [quiet(1000), *[talk(5000), quiet(200)] * 6, be("thinking")],
        [(1060, Hear(700)), *BREATHS, (30_700, Begin(6, 700, 30_700)), (30_700, Commit(6))],
    ),
    "microphone lost while hearing": (
        [*HEARING, tick(500), be("thinking")],
        ASKED,
    ),
    "microphone lost in a barge-in": ([*PAUSED, tick(300)], [*ANSWERED, (6060, Pause(1)), (6500, Resume(1))]),
    "mute while listening": ([do(Mute, True), quiet(1000), talk(2000), be("listening")], []),
    "unmuted in mid-speech": (
        [do(Mute, True), talk(1000), do(Mute, False), talk(1000), be("hearing")],
        [(1020, Hear(1000))],
    ),
    "mute while hearing": ([*HEARING, do(Mute, True), talk(100), be("listening")], [ASKED[0], (2000, Drop("muted"))]),
    "mute after the tentative end": (
        [*TENTATIVE, do(Mute, True), quiet(1000), be("listening")],
        [*ASKED[:2], (2300, Discard(1)), (2300, Drop("muted"))],
    ),
    "mute while thinking": (
        [*QUESTION, do(Mute, True), talk(1000), be("thinking"), do(FirstAudio, 1), be("speaking")],
        [*ASKED, (3500, Play(1))],
    ),
    "mute while thinking and somebody adds something": (
        [*QUESTION, talk(200), do(FirstAudio, 1), do(Mute, True), talk(1000), be("speaking")],
        [*ASKED, (2700, Play(1))],
    ),
    "mute while speaking": ([*SPEAKING, do(Mute, True), talk(1000), be("speaking")], ANSWERED),
    "mute in a barge-in": (
        [*PAUSED, do(Mute, True), talk(1000), be("speaking")],
        [*ANSWERED, (6060, Pause(1)), (6200, Resume(1))],
    ),
    "stop while listening": ([quiet(1000), do(Stop), be("listening")], []),
    "stop while hearing": (
        [*HEARING, do(Stop), be("listening"), talk(1000), be("listening"), quiet(200), talk(100), be("hearing")],
        [ASKED[0], (2000, Drop("stopped")), (3260, Hear(3200))],
    ),
    "stop after the tentative end": (
        [*TENTATIVE, do(Stop), quiet(1000), be("listening")],
        [*ASKED[:2], (2300, Discard(1)), (2300, Drop("stopped"))],
    ),
    "stop while thinking": ([*QUESTION, do(Stop), be("listening")], [*ASKED, (2500, Cancel(1))]),
    "stop while speaking": ([*SPEAKING, do(Stop), be("listening")], [*ANSWERED, (6000, Cancel(1))]),
    "stop in a barge-in": (
        [*PAUSED, do(Stop), talk(1000), be("listening")],
        [*ANSWERED, (6060, Pause(1)), (6200, Cancel(1))],
    ),
    "disconnect while listening": ([do(Disconnect), talk(1000), do(Typed), be("listening")], []),
    "disconnect while hearing": (
        [*HEARING, do(Disconnect), talk(1000), quiet(2000), be("listening")],
        [ASKED[0], (2000, Drop("disconnected"))],
    ),
    "disconnect after the tentative end": (
        [*TENTATIVE, do(Disconnect), quiet(1000)],
        [*ASKED[:2], (2300, Discard(1)), (2300, Drop("disconnected"))],
    ),
    "disconnect while thinking": ([*QUESTION, do(Disconnect), do(FirstAudio, 1)], [*ASKED, (2500, Cancel(1))]),
    "disconnect while speaking": ([*SPEAKING, do(Disconnect), do(Typed)], [*ANSWERED, (6000, Cancel(1))]),
    "typed while listening": (
        [quiet(1000), do(Typed), be("thinking"), do(FirstAudio, 1), be("speaking")],
        [(1000, Begin(1)), (1000, Commit(1)), (1000, Play(1))],
    ),
    "typed while hearing": (
        [*HEARING, do(Typed), talk(1000), be("thinking")],
        [ASKED[0], (2000, Drop("typed")), (2000, Begin(1)), (2000, Commit(1))],
    ),
    "typed while thinking": ([*QUESTION, do(Typed)], [*ASKED, (2500, Cancel(1)), (2500, Begin(2)), (2500, Commit(2))]),
    "typed while speaking": (
        [*SPEAKING, do(Typed), be("thinking"), do(FirstAudio, 1), do(FirstAudio, 2), be("speaking")],
        [*ANSWERED, (6000, Cancel(1)), (6000, Begin(2)), (6000, Commit(2)), (6000, Play(2))],
    ),
    "speech over a typed turn's reply to come does not join it": (
        [do(Typed), quiet(1000), talk(1000), be("hearing")],
        [(0, Begin(1)), (0, Commit(1)), (1400, Cancel(1)), (1400, Hear(700))],
    ),
    "typed while muted": ([do(Mute, True), do(Typed), be("thinking")], [(0, Begin(1)), (0, Commit(1))]),
    "push-to-talk": (
        [
            do(HandsFree, False),
            quiet(1000),
            do(Press),
            be("hearing"),
            quiet(3000),
            be("hearing"),
            do(Release),
            be("thinking"),
        ],
        [(1000, Hear(1000)), (4000, Begin(1, 1000, 4000)), (4000, Commit(1))],
    ),
    "push-to-talk while speaking": (
        [*SPEAKING, do(Press), be("hearing"), talk(500), do(Press), do(Release), talk(500), be("thinking")],
        [*ANSWERED, (6000, Cancel(1)), (6000, Hear(6000)), (6500, Begin(2, 6000, 6500)), (6500, Commit(2))],
    ),
    "push-to-talk takes over what is being said": (
        [*TENTATIVE, do(Press), quiet(1000), be("hearing"), do(Release), be("thinking")],
        [*ASKED[:2], (2300, Discard(1)), (3300, Begin(2, 700, 3300)), (3300, Commit(2))],
    ),
    "push-to-talk in a barge-in": (
        [*PAUSED, do(Press), talk(300), do(Release)],
        [
            *ANSWERED,
            (6060, Pause(1)),
            (6200, Cancel(1)),
            (6200, Hear(5700)),
            (6500, Begin(2, 5700, 6500)),
            (6500, Commit(2)),
        ],
    ),
    "push-to-talk for a moment": (
        [do(Press), talk(180), do(Release), be("listening")],
        [(0, Hear(0)), (180, Drop("too short"))],
    ),
    "push-to-talk that is never released": (
        [do(Press), quiet(30_000), be("thinking"), do(Release), be("thinking")],
        [(0, Hear(0)), (30_000, Begin(1, 0, 30_000)), (30_000, Commit(1))],
    ),
    "push-to-talk while muted": ([do(Mute, True), do(Press), quiet(500), do(Release)], [(0, Drop("muted"))]),
    "mute under push-to-talk": (
        [do(Press), quiet(500), do(Mute, True), do(Release), be("listening")],
        [(0, Hear(0)), (500, Drop("muted"))],
    ),
    "release without press": ([do(Release), be("listening")], []),
    "hands-free off": (
        [do(HandsFree, False), talk(2000), be("listening"), do(HandsFree, True), talk(500), be("hearing")],
        [(2020, Hear(2000))],
    ),
    "hands-free off while hearing": (
        [*TENTATIVE, do(HandsFree, False), quiet(1000), be("listening")],
        [*ASKED[:2], (2300, Discard(1)), (2300, Drop("hands-free off"))],
    ),
    "hands-free off while speaking": ([*SPEAKING, do(HandsFree, False), talk(1000), be("speaking")], ANSWERED),
    "hands-free off in a barge-in": (
        [*PAUSED, do(HandsFree, False), talk(1000)],
        [*ANSWERED, (6060, Pause(1)), (6200, Resume(1))],
    ),
    "commit": (
        [*HEARING, do(CommitNow), be("thinking"), talk(1000), be("thinking")],
        [ASKED[0], (2000, Begin(1, 700, 2000)), (2000, Commit(1))],
    ),
    "commit after the tentative end": ([*TENTATIVE, do(CommitNow)], [*ASKED[:2], (2300, Commit(1))]),
    "commit in a barge-in": (
        [*PAUSED, do(CommitNow)],
        [
            *ANSWERED,
            (6060, Pause(1)),
            (6200, Cancel(1)),
            (6200, Hear(5700)),
            (6200, Begin(2, 5700, 6200)),
            (6200, Commit(2)),
        ],
    ),
    "commit of nothing": ([quiet(1000), do(CommitNow)], [(1000, Drop("nothing heard"))]),
    "half-duplex": (
        [do(HalfDuplex, True), *SPEAKING, talk(2000), be("speaking"), do(PlaybackEnded, 1), talk(500), be("hearing")],
        [*ANSWERED, (8200, Hear(8000))],
    ),
    "half-duplex while thinking": (
        [do(HalfDuplex, True), *QUESTION, talk(420), be("hearing")],
        [*ASKED, (2900, Cancel(1, joined=True)), (2900, Hear(700))],
    ),
    "half-duplex in a barge-in": (
        [*PAUSED, do(HalfDuplex, True), talk(1000), be("speaking")],
        [*ANSWERED, (6060, Pause(1)), (6200, Resume(1))],
    ),
    "half-duplex off while speaking": (
        [do(HalfDuplex, True), *SPEAKING, talk(500), do(HalfDuplex, False), talk(500), be("hearing")],
        [*ANSWERED, (6520, Pause(1)), (6900, Cancel(1)), (6900, Hear(6500))],
    ),
    "empty reply": ([*QUESTION, quiet(500), do(GenerationEnded, 1), be("listening"), quiet(9000)], ASKED),
    "empty reply while somebody adds something": (
        [*QUESTION, talk(200), do(GenerationEnded, 1), be("hearing"), quiet(700)],
        [*ASKED, (2700, Hear(2500)), (2900, Begin(2, 2500, 2900)), (3400, Commit(2))],
    ),
    "reply that failed before the endpoint": (
        [*TENTATIVE, do(GenerationEnded, 1), be("hearing"), quiet(200), be("listening")],
        ASKED,
    ),
    "reply that fails while speaking plays what there is": (
        [*SPEAKING, do(GenerationEnded, 1), be("speaking"), do(PlaybackEnded, 1), be("listening")],
        ANSWERED,
    ),
    "stalled playback": (
        [*SPEAKING, quiet(4980), be("speaking"), quiet(20), be("listening")],
        [*ANSWERED, (11_000, Cancel(1))],
    ),
    "playback that never starts, without a microphone": (
        [do(Typed), do(FirstAudio, 1), tick(5000), be("listening")],
        [(0, Begin(1)), (0, Commit(1)), (0, Play(1)), (5000, Cancel(1))],
    ),
    "a pause is no stall": (
        [*SPEAKING, quiet(4800), talk(300), quiet(260), be("speaking"), quiet(4980), be("speaking"), quiet(20)],
        [*ANSWERED, (10_860, Pause(1)), (11_360, Resume(1)), (16_360, Cancel(1))],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_scenario(name):
    steps, expected = CASES[name]
    room = Room()
    for step in steps:
        step(room)
    assert room.log == expected


def test_a_barge_in_pauses_the_reply_within_150_ms_of_its_onset():
    room = Room()
    for step in SPEAKING:
        step(room)
    onset = room.now
    room.talk(200)
    assert [(at - onset < 150, action) for at, action in room.log if at > onset] == [(True, Pause(1))]


def test_an_echo_that_grows_louder_stops_interrupting_by_itself():
    """As if the canceller failed: while the reply sounds, the microphone hears it as loud as a voice."""
    room = Room()
    for step in SPEAKING:
        step(room)
    sounding, room.log = True, []
    for _ in range(10_000 // FRAME):
        (room.talk if sounding else room.quiet)(FRAME, playing=1 if sounding else None)
        sounding = not room.log or isinstance(room.log[-1][1], Resume)
    assert {type(action) for _, action in room.log} == {Pause, Resume}
    pauses = [at for at, action in room.log if action == Pause(1)]
    assert 1 <= len(pauses) <= 12
    assert pauses[-1] < 12_000
    assert room.machine.state == State.SPEAKING
    room.talk(FRAME, VOICE + 15)
    assert room.log[-1] == (room.now, Pause(1))


def say(room, *pauses):
    """An utterance with these pauses, and its empty reply; how long it took to be committed."""
    for pause in pauses:
        room.talk(700)
        room.quiet(pause)
    room.talk(700)
    ended, turn = room.now, None
    while turn is None:
        room.quiet(FRAME)
        turn = next((action.turn for at, action in room.log if at == room.now and isinstance(action, Commit)), None)
    waited = room.now - ended
    room.event(GenerationEnded, turn)
    room.quiet(1000)
    return waited


def test_the_endpoint_grows_with_long_pauses_within_utterances():
    room = Room()
    assert [say(room, 420), say(room), say(room, 420), say(room)] == [500, 500, 500, 520]


def test_the_endpoint_grows_when_it_cut_somebody_off():
    room = Room()
    for _ in range(2):
        room.talk(1000)
        room.quiet(600)
        room.talk(1000)
        room.quiet(1000)
        room.event(GenerationEnded, room.log[-1][1].turn)
        room.quiet(1000)
    assert [type(action) for _, action in room.log].count(Cancel) == 2
    assert room.machine.endpoint_ms == 700
    assert say(room, 600) == 700


def test_the_endpoint_shrinks_for_who_never_pauses_and_stays_within_its_bounds():
    room = Room()
    waits = [say(room) for _ in range(9)]
    assert waits == [500] * 7 + [360] * 2  # 350 between two frames
    for _ in range(9):
        say(room, 300)
    assert say(room) == 400
    room = Room(TurnSettings(endpoint_start_ms=780))
    assert [say(room, 760), say(room, 760), say(room)] == [780, 780, 800]


def test_one_long_hesitation_changes_nothing():
    room = Room()
    say(room, 440)
    assert {say(room) for _ in range(6)} == {500}


def test_a_long_pause_that_no_endpoint_outwaits_teaches_nothing():
    room = Room()
    for _ in range(4):
        room.talk(1000)
        room.quiet(1500)
        room.talk(1000)
        room.quiet(1000)
        room.event(GenerationEnded, room.log[-1][1].turn)
        room.quiet(500)
    assert room.machine.endpoint_ms == 500


def test_what_would_grow_too_long_is_not_joined():
    room = Room()
    room.talk(29_000)
    room.quiet(700)
    room.talk(1000)
    assert [action for _, action in room.log][-2:] == [Cancel(1, joined=False), Hear(29_500)]


def test_time_never_runs_backwards():
    machine = TurnMachine()
    assert machine.handle(Frame(1000, True, VOICE, 940)) == [Hear(640)]
    assert machine.handle(Frame(1500, True, VOICE, 940)) == []
    for at in (0, -5, 1500, math.nan, -math.inf, math.inf, 1699):
        assert machine.handle(Frame(at, False, QUIET)) == []
    assert machine.handle(Tick(1700)) == [Begin(1, 640, 1700)]
    assert machine.handle(Typed(3)) == [Discard(1), Drop("typed"), Begin(2), Commit(2)]
    assert machine.handle(Press(3)) == [Cancel(2), Hear(1700)]


def test_a_late_start_and_an_unknown_onset():
    machine = TurnMachine()
    assert machine.handle(Frame(90_000, True, VOICE)) == [Hear(89_700)]
    assert machine.handle(Frame(90_100, True, VOICE)) == []
    assert machine.handle(Tick(90_200)) == []
    assert machine.handle(Tick(91_000)) == [Drop("noise")]


def test_levels_that_are_no_numbers_are_no_barge_in_and_teach_nothing():
    room = Room()
    for step in SPEAKING:
        step(room)
    room.talk(500, math.nan, playing=1)
    room.quiet(200)
    room.talk(500, -math.inf, playing=1)
    room.event(Played, 1, math.nan)
    room.event(Played, 1, -math.inf)
    room.quiet(200)
    assert room.log == ANSWERED
    room.talk(DETECTED)
    assert room.log[-1] == (room.now, Pause(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tentative_ms": 0}, "tentative_ms is 0: make it at least 1 and at most 350 (endpoint_min_ms)"),
        ({"tentative_ms": 400}, "tentative_ms is 400: make it at least 1 and at most 350 (endpoint_min_ms)"),
        (
            {"endpoint_min_ms": 900},
            "endpoint_min_ms is 900: make it at least 200 (tentative_ms) and at most 800 (endpoint_max_ms)",
        ),
        (
            {"endpoint_start_ms": 100},
            "endpoint_start_ms is 100: make it at least 350 (endpoint_min_ms) and at most 800 (endpoint_max_ms)",
        ),
        (
            {"longest_ms": 700},
            "endpoint_max_ms is 800: make it at least 0 and at most 700 (longest_ms)",
        ),
        ({"pause_after_ms": 150}, "pause_after_ms is 150: make it at least 0 and at most 100"),
        (
            {"echo_tail_ms": 300},
            "resume_ms is 250: make it at least 300 (echo_tail_ms) and at most 5000 (stalled_ms)",
        ),
        ({"echo_guard_ms": -1}, "echo_guard_ms is -1: make it at least 0"),
        ({"interrupt_ms": math.nan}, "interrupt_ms is nan: make it a finite number"),
        ({"longest_ms": math.inf}, "longest_ms is inf: make it a finite number"),
        ({"resume_ms": "250"}, "resume_ms is '250': make it a finite number"),
        ({"preroll_ms": True}, "preroll_ms is True: make it a finite number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        TurnSettings(**changes)
    assert str(refused.value) == message


def test_settings_cannot_change_and_every_one_is_checked():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TurnSettings().longest_ms = 1
    for item in dataclasses.fields(TurnSettings):
        with pytest.raises(ValueError, match=item.name):
            TurnSettings(**{item.name: -1000})


def test_what_is_no_event_is_refused():
    with pytest.raises(TypeError, match="no event of a turn"):
        TurnMachine().handle(Hear(0))


class Auditor:
    """Follows one session by its actions alone, and complains about whatever must never be."""

    def __init__(self):
        self.machine = TurnMachine()
        self.now = 0
        self.turn, self.ended = 0, {}  # the last turn begun; how each one ended
        self.committed = self.playing = self.paused = self.floor = False
        self.sound_ready, self.generated = set(), set()

    @property
    def live(self):
        return self.turn > 0 and self.turn not in self.ended

    def end(self, how):
        assert self.live
        self.ended[self.turn] = how
        self.committed = self.playing = self.paused = False

    def handle(self, event):
        self.now = max(self.now, event.at_ms) if math.isfinite(event.at_ms) else self.now
        over = Disconnect in self.ended.values()
        actions = self.machine.handle(event)
        if over:
            assert actions == []
            return actions
        turn = getattr(event, "turn", None)
        if turn == self.turn and self.live:
            if isinstance(event, FirstAudio):
                self.sound_ready.add(turn)
            elif isinstance(event, GenerationEnded):
                self.generated.add(turn)
            if isinstance(event, PlaybackEnded) and self.playing:
                self.end("finished")
        for action in actions:
            self.check(event, action)
        if self.live and self.committed and not self.playing and self.turn in self.generated - self.sound_ready:
            self.end("finished")
        if isinstance(event, Disconnect):
            assert not self.live
            self.ended[-1] = Disconnect
        if self.floor:
            expected = State.HEARING
        elif not self.live:
            expected = State.LISTENING
        else:
            assert self.committed
            expected = State.SPEAKING if self.playing else State.THINKING
        assert self.machine.state == expected
        return actions

    def check(self, event, action):
        match action:
            case Hear(from_ms=start):
                assert not self.floor
                assert 0 <= start <= self.now
                self.finish_silently()
                assert not self.live
                self.floor = True
            case Drop(why=why):
                if why == "nothing heard":
                    assert isinstance(event, CommitNow)
                    assert not self.floor
                elif not (why == "muted" and isinstance(event, Press)):
                    assert self.floor
                    assert not self.live
                    self.floor = False
            case Begin(turn=turn, from_ms=start, until_ms=until):
                assert not self.live
                assert turn > self.turn
                assert (start is not None) == self.floor == (until is not None)
                assert start is None or 0 <= start <= until == self.now
                self.turn = turn
            case Commit(turn=turn):
                assert turn == self.turn
                assert self.live
                assert not self.committed
                self.committed, self.floor = True, False
            case Discard(turn=turn):
                assert turn == self.turn
                assert self.floor
                assert not self.committed
                self.end(Discard)
            case Cancel(turn=turn):
                assert turn == self.turn
                assert self.committed
                self.end(Cancel)
            case Play(turn=turn):
                assert turn == self.turn
                assert turn in self.sound_ready
                assert self.live
                assert self.committed
                assert not self.playing
                self.playing = True
            case Pause(turn=turn):
                assert turn == self.turn
                assert self.playing
                assert not self.paused
                self.paused = True
            case Resume(turn=turn):
                assert turn == self.turn
                assert self.paused
                self.paused = False
            case _:
                pytest.fail(f"unknown action {action}")
        if isinstance(action, Play | Resume):
            assert not self.floor
            assert not (isinstance(event, Frame) and event.speech)

    def finish_silently(self):
        """A reply without sound ended while somebody spoke."""
        if self.live and self.committed and self.turn in self.generated - self.sound_ready:
            self.end("finished")


LEVELS = st.sampled_from([VOICE, ECHO, QUIET, -10.0])
STRETCHES = st.tuples(
    st.sampled_from(["talk", "talk", "quiet", "tick"]),
    st.one_of(st.sampled_from([60, 200, 260, 400, 500, 900]), st.integers(1, 120).map(lambda n: n * FRAME)),
    LEVELS,
)
# Which turn an event of a reply is about, counted from the last one begun.
REPLIES = st.tuples(
    st.sampled_from([FirstAudio, GenerationEnded, Played, PlaybackEnded]), st.sampled_from([0, 0, 0, 0, -1, 1])
)
PLAIN = st.sampled_from([Press, Release, CommitNow, Stop, Typed])
SWITCHES = st.tuples(st.sampled_from([Mute, HalfDuplex, HandsFree]), st.booleans())
STEPS = st.lists(st.one_of(STRETCHES, STRETCHES, REPLIES, REPLIES, PLAIN, SWITCHES), min_size=4, max_size=20)
# A reply that sounds at once, so that many sequences get as far as interrupting one.
START = st.sampled_from([[], [(FirstAudio, 0), (Played, 0)], [(FirstAudio, 0), (Played, 0), ("quiet", 4000, QUIET)]])


class Party(Room):
    """A room whose machine is audited, in which steps of a random sequence are taken."""

    def __init__(self):
        super().__init__()
        self.auditor = Auditor()
        self.machine = self.auditor.machine

    def send(self, event):
        return self.auditor.handle(event)

    def take(self, step):
        match step:
            case ("talk", ms, level):
                self.talk(ms, level)
            case ("quiet", ms, _):
                self.quiet(ms)
            case ("tick", ms, _):
                self.tick(ms)
            case (kind, bool(on)):
                self.event(kind, on)
            case (kind, int(offset)):
                self.event(kind, self.auditor.turn + offset)
            case kind:
                self.event(kind)


@hypothesis_settings(max_examples=120, deadline=None)
@given(START, STEPS)
def test_whatever_happens_turns_are_taken_in_order(start, steps):
    party = Party()
    if start:
        party.event(Typed)
    for step in [*start, *steps]:
        party.take(step)
    # Left alone, nobody speaks for ever: at last it listens, or waits for a reply to come.
    party.tick(40_000)
    assert party.machine.state in (State.LISTENING, State.THINKING)
    party.auditor.handle(GenerationEnded(party.now, party.auditor.turn))
    party.tick(6000)
    assert party.machine.state == State.LISTENING
    auditor = party.auditor
    assert not auditor.live
    assert sorted(auditor.ended) == list(range(1, auditor.turn + 1))


@hypothesis_settings(max_examples=15, deadline=None)
@given(STEPS, STEPS)
def test_nothing_comes_after_a_disconnect(before, after):
    party = Party()
    for step in before:
        party.take(step)
    party.event(Disconnect)
    assert party.machine.state == State.LISTENING
    for step in after:
        party.take(step)
    assert party.machine.state == State.LISTENING


TIMES = st.one_of(st.floats(), st.floats(0, 5000), st.integers(-100, 40_000))


@hypothesis_settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.builds(Frame, TIMES, st.booleans(), st.one_of(LEVELS, st.floats()), st.one_of(st.none(), TIMES)),
            st.tuples(st.sampled_from([FirstAudio, GenerationEnded, Played, PlaybackEnded]), TIMES),
            st.builds(
                lambda kind, at: kind(at), st.sampled_from([Tick, Press, Release, CommitNow, Stop, Typed]), TIMES
            ),
            st.builds(lambda kind, at, on: kind(at, on), st.sampled_from([Mute, HalfDuplex]), TIMES, st.booleans()),
        ),
        max_size=40,
    )
)
def test_no_time_and_no_level_breaks_it(events):
    auditor = Auditor()
    for event in events:
        auditor.handle(event[0](event[1], auditor.turn) if isinstance(event, tuple) else event)
