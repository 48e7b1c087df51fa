"""A conversation without sockets and devices: real speech, real engine, tiny model, a clock that the tests turn."""

import gc
import queue
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from app import conversation
from app import outputs as out
from app.conversation import Conversation, Item, _Recent
from app.engine import Engine
from app.turn import State, TurnSettings
from app.vad import VadSettings
from most_core import GenerationSettings

QUESTION = soundfile.read(Path("assets/samples/capital.wav"), dtype="float32")[0]
BLOCK = 320
SHORT = GenerationSettings(max_new_tokens=60, max_heard_tokens=4, max_sentence_tokens=4, max_sentence_units=40)


@pytest.fixture(scope="module")
def engine(most):
    engine = Engine(most)
    yield engine
    engine.close()


class Stage:
    """A conversation whose time is the test's, and all that came out of it."""

    def __init__(self, engine, **options):
        self.now, self.told, self.posted = 100.0, [], queue.SimpleQueue()
        self.noise = np.random.default_rng(0)
        self.engine = engine
        self.conversation = Conversation(engine, self.told.append, self.posted.put, wall=lambda: self.now, **options)
        self.conversation.talk = replace(self.conversation.talk, generation=SHORT)

    def settle(self):
        """Let the model finish all it does."""
        while self.working() or not self.posted.empty():
            try:
                self.posted.get(timeout=0.01)()
            except queue.Empty:
                continue

    def working(self):
        with self.engine._change:
            return self.engine._running or self.engine._waiting

    def hear(self, wave, settle=True):
        """Through the microphone, in real time by the test's clock."""
        for start in range(0, len(wave), BLOCK):
            block = wave[start : start + BLOCK]
            self.now += len(block) / 16000
            self.conversation.hear(block)
            if settle:
                self.settle()
            self.conversation.tick()

    def quiet(self, seconds, settle=True):
        self.hear((0.0005 * self.noise.standard_normal(int(16000 * seconds))).astype(np.float32), settle)

    def wait(self, seconds, step=0.04):
        """Time passes, and no sound comes."""
        for _ in range(round(seconds / step)):
            self.now += step
            self.conversation.tick()
            self.settle()

    def of(self, *kinds):
        return [output for output in self.told if isinstance(output, kinds)]

    def states(self):
        return [output.state for output in self.of(out.StateChanged)]

    def actions(self):
        return [(output.turn, output.action) for output in self.of(out.Playback)]


@pytest.fixture
def stage(engine):
    stage = Stage(engine)
    yield stage
    stage.conversation.close()
    stage.settle()


def test_a_spoken_turn_is_heard_answered_and_played_to_its_end(stage):
    stage.quiet(1)
    stage.hear(QUESTION)
    stage.quiet(1)
    stage.quiet(4)
    assert stage.states() == [State.HEARING, State.SPEAKING, State.LISTENING]
    kinds = [type(o).__name__ for o in stage.told if not isinstance(o, out.Level)]
    order = ["SpeechStarted", "SpeechStopped", "Committed", "ReplyStarted", "HeardAll", "Playback", "Sound"]
    assert [kinds.index(kind) for kind in order] == sorted(kinds.index(kind) for kind in order)
    assert kinds.index("ReplyEnded") > len(kinds) - 1 - kinds[::-1].index("Sound")  # after all of its sound
    (ended,) = stage.of(out.ReplyEnded)
    assert ended.reply.text == ended.item.transcript
    (committed,) = stage.of(out.Committed)
    assert committed.item.transcript == ended.reply.heard
    assert list(stage.conversation.items.values()) == [committed.item, ended.item]


def test_the_sound_that_is_answered_is_what_was_said_with_a_little_before(stage):
    stage.quiet(1)
    stage.hear(QUESTION)
    stage.quiet(1)
    (committed,) = stage.of(out.Committed)
    (started,) = stage.of(out.SpeechStarted)
    said = committed.item.sound
    heard = np.concatenate([np.zeros(16000, np.float32), QUESTION])[round(started.at_ms * 16) :]
    length = min(len(said), len(heard))
    assert np.corrcoef(said[:length], heard[:length])[0, 1] > 0.99
    assert len(QUESTION) / 16000 - 0.3 < len(said) / 16000 < len(QUESTION) / 16000 + 0.8


def test_a_reply_begins_with_what_can_be_heard_and_loses_nothing_else(stage):
    stage.quiet(1)
    stage.hear(QUESTION)
    stage.quiet(5)
    sound = np.concatenate([o.pcm for o in stage.of(out.Sound)])
    whole = stage.of(out.ReplyEnded)[0].reply.waveform
    assert np.abs(sound[: round(0.031 * 16000)]).max() > 10 ** (-50 / 20)
    np.testing.assert_array_equal(sound, whole[len(whole) - len(sound) :])
    (play,) = [o for o in stage.of(out.Playback) if o.action == "play"]
    assert play.skipped_ms == pytest.approx((len(whole) - len(sound)) / 16)


def test_what_is_left_out_of_a_quiet_beginning_is_told(stage, monkeypatch):
    monkeypatch.setattr(conversation, "QUIET", 0.1)
    stage.quiet(1)
    stage.hear(QUESTION)
    stage.quiet(5)
    sound = np.concatenate([o.pcm for o in stage.of(out.Sound)])
    whole = stage.of(out.ReplyEnded)[0].reply.waveform
    (play,) = [o for o in stage.of(out.Playback) if o.action == "play"]
    assert play.skipped_ms == pytest.approx((len(whole) - len(sound)) / 16)
    assert play.skipped_ms > 0


def test_timings_add_up_from_the_end_of_speech_to_playback(stage):
    stage.quiet(1)
    stage.hear(QUESTION)
    stage.quiet(4)
    (timed,) = stage.of(out.Timed)
    assert sum(timed.stages.values()) == pytest.approx(timed.total_ms)
    end_ms = 1000 + np.flatnonzero(np.abs(QUESTION) > 0.002)[-1] / 16
    # The model takes no time by this clock, so what is left is waiting, and ends when the turn does.
    waited = timed.stages["endpoint"] + timed.stages["hold"]
    assert end_ms + waited == pytest.approx(stage.of(out.SpeechStopped)[0].at_ms, abs=40)
    assert 150 < timed.stages["endpoint"] < 450


def test_a_cough_pauses_the_reply_and_loses_nothing(stage):
    stage.conversation.talk = replace(
        stage.conversation.talk, generation=replace(SHORT, max_sentence_units=200, max_new_tokens=260)
    )
    stage.quiet(1)
    stage.hear(QUESTION)
    stage.quiet(4.5)  # beyond the guard at the beginning of the session
    assert stage.conversation.state == State.SPEAKING
    turn = stage.of(out.ReplyStarted)[0].turn
    stage.hear(2 * QUESTION[8000:11200])  # a fifth of a second
    stage.quiet(1)
    assert stage.actions() == [(turn, "play"), (turn, "pause"), (turn, "resume")]
    stage.quiet(6)
    assert stage.conversation.state == State.LISTENING
    assert not stage.of(out.Shortened)


def test_speech_over_a_reply_stops_it_and_only_what_was_heard_stays_in_the_conversation(stage):
    stage.conversation.talk = replace(
        stage.conversation.talk, generation=replace(SHORT, max_sentence_units=200, max_new_tokens=260)
    )
    stage.quiet(1)
    stage.hear(QUESTION)
    stage.quiet(4.5)
    first = stage.of(out.ReplyStarted)[0]
    whole = first.item.transcript
    stage.hear(2 * QUESTION)
    assert [a for t, a in stage.actions() if t == first.turn] == ["play", "pause", "stop"]
    (shortened,) = stage.of(out.Shortened)
    assert shortened.item is first.item
    assert whole.startswith(first.item.transcript)
    assert first.item.transcript != whole
    stage.quiet(2)
    assert [s.turn for s in stage.of(out.ReplyStarted)] == [first.turn, first.turn + 1]
    sounds = [s.turn for s in stage.of(out.Sound)]
    assert sounds == sorted(sounds)  # nothing of the old reply after the new one began


def test_who_goes_on_after_a_long_pause_is_answered_once_to_all_of_it(stage, monkeypatch):
    waiting = []
    monkeypatch.setattr(stage, "settle", lambda: None)  # the model is slow: no reply comes yet
    stage.quiet(1)
    stage.hear(QUESTION)
    stage.quiet(0.9)
    assert len(stage.of(out.Committed)) == 1
    waiting.append(stage.of(out.Committed)[0].item)
    stage.hear(QUESTION)
    stage.quiet(0.9)
    monkeypatch.undo()
    stage.settle()
    removed = [o.item for o in stage.of(out.Removed)]
    assert waiting[0] in removed
    last = stage.of(out.Committed)[-1].item
    assert len(last.sound) > 1.8 * len(QUESTION)
    assert [i for i in stage.conversation.items.values() if i.role == "user"] == [last]


def test_what_is_typed_is_answered(stage):
    stage.conversation.add(Item("a", "user", "what time is it"))
    stage.conversation.respond()
    stage.settle()
    stage.wait(4)
    (ended,) = stage.of(out.ReplyEnded)
    assert ended.status in ("completed", "incomplete")
    assert stage.of(out.Sound)
    assert stage.conversation.state == State.LISTENING  # though no microphone ever gave sound
    assert not stage.of(out.Committed)


def test_there_must_be_something_to_answer(stage):
    with pytest.raises(ValueError, match="nothing to answer"):
        stage.conversation.respond()
    stage.conversation.add(Item("a", "assistant", transcript="hello"))
    with pytest.raises(ValueError, match="nothing to answer"):
        stage.conversation.respond()


def test_speech_committed_by_hand_is_answered_only_when_asked(stage):
    stage.conversation.turn_by_hand(True)
    stage.quiet(0.5)
    stage.hear(QUESTION)
    stage.quiet(2)
    assert not stage.of(out.Committed, out.ReplyStarted)
    item = stage.conversation.commit()
    assert len(item.sound) == pytest.approx(len(QUESTION) + 40000, abs=BLOCK)
    assert not stage.of(out.ReplyStarted)
    stage.conversation.respond()
    stage.settle()
    (heard,) = stage.of(out.HeardAll)
    assert heard.item is item
    assert item.transcript == stage.of(out.ReplyEnded)[0].reply.heard if stage.of(out.ReplyEnded) else True


def test_too_little_sound_is_not_committed_by_hand(stage):
    stage.conversation.turn_by_hand(True)
    stage.quiet(0.05)
    with pytest.raises(ValueError, match=r"at least 0\.1 s"):
        stage.conversation.commit()


def test_push_to_talk_hears_what_is_said_while_the_key_is_down(stage):
    stage.conversation.hands_free(False)
    stage.quiet(0.5)
    stage.hear(QUESTION)
    stage.quiet(1)
    assert not stage.of(out.Committed)
    stage.conversation.press()
    stage.hear(QUESTION)
    stage.conversation.release()
    stage.settle()
    (committed,) = stage.of(out.Committed)
    assert len(committed.item.sound) == pytest.approx(len(QUESTION), abs=2 * BLOCK)


def test_a_muted_microphone_is_not_heard(stage):
    stage.conversation.mute(True)
    stage.quiet(0.5)
    stage.hear(QUESTION)
    stage.quiet(1)
    assert not stage.of(out.SpeechStarted)


def test_stop_silences_a_reply(stage):
    stage.quiet(1)
    stage.hear(QUESTION)
    stage.quiet(1)
    assert stage.conversation.state == State.SPEAKING
    stage.conversation.stop()
    assert stage.conversation.state == State.LISTENING
    assert stage.actions()[-1][1] == "stop"


def test_a_turn_that_is_not_to_be_answered_is_only_committed(stage):
    stage.conversation.talk = replace(stage.conversation.talk, answer_speech=False)
    stage.quiet(1)
    stage.hear(QUESTION)
    stage.quiet(2)
    assert len(stage.of(out.Committed)) == 1
    assert not stage.of(out.ReplyStarted, out.Sound)
    assert stage.conversation.state == State.LISTENING
    stage.conversation.respond()
    stage.settle()
    assert len(stage.of(out.ReplyStarted)) == 1


def test_captions_show_what_is_being_said_before_it_ends(stage):
    stage.conversation.talk = replace(stage.conversation.talk, captions=True)
    stage.quiet(1)
    stage.hear(QUESTION)
    provisional = [o for o in stage.of(out.Heard) if o.provisional]
    assert provisional
    assert all(o.turn is None and o.text for o in provisional)
    stage.quiet(1)
    kinds = [o for o in stage.told if isinstance(o, out.Heard | out.Committed)]
    assert all(not o.provisional for o in kinds[kinds.index(stage.of(out.Committed)[0]) + 1 :])


def test_routing_is_told_if_wanted_provisionally_and_then_for_good(stage):
    stage.quiet(1)
    stage.hear(QUESTION)
    stage.quiet(3)
    assert not stage.of(out.Routed)
    stage.conversation.talk = replace(stage.conversation.talk, routing=True)
    stage.hear(QUESTION)
    stage.quiet(3)
    routed = stage.of(out.Routed)
    assert {r.provisional for r in routed} == {True, False}
    final = [r.rows for r in routed if not r.provisional]
    tokens = np.concatenate([rows.token for rows in final])
    assert (np.diff(tokens) > 0).all()
    reply = stage.of(out.ReplyEnded)[-1].reply
    assert len(tokens) == reply.trace.num_tokens


def test_a_gap_in_the_sound_ends_a_turn_like_silence(stage):
    stage.quiet(1)
    stage.hear(QUESTION)
    stage.wait(2)
    assert len(stage.of(out.Committed)) == 1
    assert stage.conversation.now_ms == pytest.approx(1000 + len(QUESTION) / 16 + 2000, abs=60)


def test_a_short_stall_of_the_network_is_no_gap(stage):
    stage.quiet(1)
    stage.hear(QUESTION[:24000])
    before = stage.conversation.now_ms
    stage.wait(0.4)
    assert stage.conversation.now_ms == before
    stage.hear(QUESTION[24000:])
    stage.quiet(1)
    (committed,) = stage.of(out.Committed)
    assert len(committed.item.sound) / 16000 > len(QUESTION) / 16000 - 0.3


def test_sound_that_is_kept_waiting_is_no_gap(stage):
    stage.quiet(1)
    stage.hear(QUESTION[:24000])
    before = stage.conversation.now_ms
    stage.conversation.listening = False
    stage.wait(3)
    stage.conversation.listening = True
    stage.wait(0.4)
    assert stage.conversation.now_ms == before
    stage.hear(QUESTION[24000:])
    stage.quiet(1)
    assert len(stage.of(out.Committed)) == 1


def test_a_client_that_tells_its_playback_is_believed(stage):
    stage.quiet(1)
    stage.hear(QUESTION)
    stage.quiet(0.8)
    turn = stage.of(out.ReplyStarted)[0].turn
    stage.conversation.played(turn, 10, delay_ms=5)
    stage.quiet(4)  # longer than the reply: a client that does not tell would be done
    assert stage.conversation.state == State.SPEAKING
    stage.conversation.played(turn + 1, 1e6, ended=True)
    assert stage.conversation.state == State.SPEAKING  # another turn's
    stage.conversation.played(turn, 1e6, ended=True)
    assert stage.conversation.state == State.LISTENING
    (timed,) = stage.of(out.Timed)
    assert timed.stages["playback"] == 5


def test_a_client_that_stops_telling_does_not_hold_the_floor_for_ever(stage):
    stage.quiet(1)
    stage.hear(QUESTION)
    stage.quiet(0.8)
    stage.conversation.played(stage.of(out.ReplyStarted)[0].turn, 10)
    stage.quiet(6)
    assert stage.conversation.state == State.LISTENING


def test_earlier_exchanges_are_read_not_heard_again(stage):
    c = stage.conversation
    c.talk = replace(c.talk, history=1, instructions="be brief")
    for number in range(3):
        c.add(Item(f"u{number}", "user", sound=QUESTION, transcript=f"question {number}"))
        c.add(Item(f"a{number}", "assistant", transcript=f"answer {number}"))
    messages = c._messages(Item("new", "user", sound=QUESTION))
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"] == [{"type": "text", "text": "be brief"}]
    assert messages[1]["content"] == [{"type": "text", "text": "question 2"}]
    assert messages[-1]["content"][0]["type"] == "audio"
    c.talk = replace(c.talk, history=0, instructions="")
    assert [m["role"] for m in c._messages(Item("new", "user", sound=QUESTION))] == ["user"]


def test_a_history_longer_than_the_context_loses_its_oldest(stage):
    c = stage.conversation
    c.talk = replace(c.talk, history=1000)
    for number in range(100):
        c.add(Item(f"u{number}", "user", "word " * 200))
        c.add(Item(f"a{number}", "assistant", transcript=f"answer {number}"))
    c.add(Item("last", "user", "what now"))
    messages = c._messages(None)
    assert messages[-1]["content"] == [{"type": "text", "text": "what now"}]
    c.respond()
    stage.settle()
    assert stage.of(out.ReplyStarted)
    stage.wait(5)
    assert stage.of(out.ReplyEnded)[0].status != "failed"


def test_old_sound_is_forgotten(stage):
    c = stage.conversation
    for _ in range(4):
        stage.quiet(1)
        stage.hear(QUESTION)
        stage.quiet(4)
    spoken = [i for i in c.items.values() if i.role == "user"]
    assert len(spoken) == 4
    assert [i.sound is not None for i in spoken] == [False, False, True, True]


def test_a_model_that_fails_ends_the_turn_with_a_sentence(stage, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of cheese")

    monkeypatch.setattr(stage.engine.most, "stream", fail)
    stage.quiet(1)
    stage.hear(QUESTION)
    stage.quiet(1)
    (ended,) = stage.of(out.ReplyEnded)
    assert ended.status == "failed"
    assert "out of cheese" in ended.error
    assert stage.conversation.state == State.LISTENING
    monkeypatch.undo()
    stage.hear(QUESTION)
    stage.quiet(1)
    assert stage.of(out.Sound)


def test_an_engine_with_too_much_to_do_is_told(engine, most):
    busy = Engine(most, waiting=0)
    try:
        stage = Stage(busy)
        stage.quiet(1)
        stage.hear(QUESTION)
        stage.quiet(1)
        (ended,) = stage.of(out.ReplyEnded)
        assert ended.status == "failed"
        assert "try again" in ended.error
    finally:
        busy.close()


def test_settings_can_change_while_it_goes_on(stage):
    stage.quiet(1)
    stage.conversation.tune(
        TurnSettings(endpoint_min_ms=750, endpoint_start_ms=800, endpoint_max_ms=800), VadSettings(3)
    )
    stage.quiet(0.5)
    stage.hear(QUESTION)
    stage.quiet(0.2)
    assert not stage.of(out.Committed)
    stage.quiet(0.5)
    assert len(stage.of(out.Committed)) == 1
    (committed,) = stage.of(out.Committed)
    assert len(committed.item.sound) / 16000 > len(QUESTION) / 16000 - 0.3  # its place is known after the change, too


def test_nothing_comes_after_the_client_is_gone(stage):
    stage.quiet(1)
    stage.hear(QUESTION)
    stage.quiet(0.8)
    stage.conversation.close()
    stage.settle()
    count = len(stage.of(out.Sound, out.Text, out.Committed))
    stage.hear(QUESTION)
    stage.quiet(1)
    assert len(stage.of(out.Sound, out.Text, out.Committed)) == count


def test_a_conversation_is_forgotten_at_once_when_it_is_over(engine):
    stage = Stage(engine)
    stage.quiet(1)
    stage.hear(QUESTION)
    stage.quiet(1)
    stage.conversation.close()
    stage.settle()
    alive = weakref.ref(stage.conversation)
    stage.conversation._wall = time.perf_counter  # not the stage's own, which holds the stage
    gc.disable()
    try:
        del stage
        assert alive() is None
    finally:
        gc.enable()


def test_the_recent_sound_is_kept_by_its_position():
    recent = _Recent(160)
    recent.append(np.arange(100, dtype=np.float32))
    recent.skip(16)
    recent.append(np.arange(116, 216, dtype=np.float32))
    np.testing.assert_array_equal(recent.part(9, 12), np.arange(144, 192))
    np.testing.assert_array_equal(recent.part(5, 8), [*range(80, 100), *[0] * 16, *range(116, 128)])
    assert len(recent.part(0, 3)) == 0  # gone
    assert len(recent.part(12, 99)) == 216 - 192
    recent.skip(10_000)
    assert recent.end == 10_216
    assert not recent.part(0, 1e6).any()
