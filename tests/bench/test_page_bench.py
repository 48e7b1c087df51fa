"""The arithmetic of the page's bench: where speech ended, when the answer began, what it cost."""

import argparse

import numpy as np
import pytest
from scipy.signal import lfilter

from bench import page as bench_page
from bench.page import QUANTUM, Recording, Turn, answered, envelope, place, quiet, scheduled, share, turns_in

RATE = 48_000
ROW_S = QUANTUM / RATE


def clip(seconds, seed):
    """Noise with syllables, at 16 kHz."""
    random = np.random.default_rng(seed)
    loudness = np.abs(lfilter([1], [1, -0.999], random.standard_normal(round(seconds * 16_000))))
    return (0.2 * random.standard_normal(len(loudness)) * loudness / loudness.max()).astype(np.float32)


def rows_of(microphone, speaker):
    """What the tee makes of two sounds."""
    count = min(len(microphone), len(speaker)) // QUANTUM
    microphone = microphone[: count * QUANTUM].reshape(count, QUANTUM)
    speaker = np.abs(speaker[: count * QUANTUM].reshape(count, QUANTUM))
    loud = speaker > 10 ** (-50 / 20)
    first = np.where(loud.any(1), loud.argmax(1), -1)
    return np.stack([np.square(microphone).sum(1), speaker.max(1), first], 1).astype(np.float32)


def conversation(waits, late_s=0.0, drift=0.0, rate=RATE):
    """(recording, schedule) of a page that answers each question after so many seconds, or not at all (None)."""
    clips = [clip(1.0 + 0.2 * number, number) for number in range(len(waits))]
    schedule = scheduled(clips, 4.0)
    file = np.concatenate([np.zeros(round(late_s * RATE)), schedule.sound])
    heard = np.interp(np.arange(0, len(file) * rate / RATE) * RATE / rate * (1 + drift), np.arange(len(file)), file)
    said = np.zeros(len(heard))
    for (_, end), wait in zip(schedule.times, waits):
        if wait is not None:
            start = round(((end + late_s) / (1 + drift) + wait) * rate)
            said[start : start + rate] = 0.1
    return Recording(rows_of(heard, said), rate), schedule


@pytest.mark.parametrize(
    ("late_s", "drift", "rate"), [(0, 0, RATE), (0, 2e-4, RATE), (1, -2e-4, RATE), (0.7, 0, 44_100)]
)
def test_waits_are_from_the_true_end_of_speech_to_the_first_sound(late_s, drift, rate):
    waits = [0.4, 0.5501, None, 0.7]
    turns = turns_in(*conversation(waits, late_s, drift, rate))
    assert [turn.sound is None for turn in turns] == [False, False, True, False]
    for turn, wait in zip(turns, waits):
        if wait is not None:
            assert turn.sound[0] - turn.end == pytest.approx(wait, abs=0.003)
            assert turn.sound[1] - turn.sound[0] == pytest.approx(1, abs=2 * QUANTUM / rate)
            assert turn.gaps == 0


def test_a_recording_that_is_too_short_is_refused():
    recording, schedule = conversation([0.4, 0.5])
    with pytest.raises(ValueError, match="ends before"):
        turns_in(Recording(recording.rows[:2500], RATE), schedule)


def test_a_clip_is_found_between_rows():
    wave = np.concatenate([np.zeros(RATE), clip(1.0, 5).repeat(3), np.zeros(RATE)])
    for shift in (0, 40, 64, 100):
        moved = np.concatenate([np.zeros(shift), wave])
        found = place(envelope(moved, ROW_S), envelope(wave[RATE : 2 * RATE], ROW_S))
        assert found == pytest.approx((RATE + shift) / QUANTUM, abs=0.4)


def rows(*peaks):
    """A speaker that peaks so in each row; the first audible sample is the tenth."""
    return np.array([[0.0, peak, 10 if peak > 0.0032 else -1] for peak in peaks])


def test_the_answer_is_what_is_audible_and_its_gaps_are_digital_silence():
    quiet_row = 0.001  # below -50 dBFS, but a speaker that is fed
    peaks = [0] * 5 + [quiet_row, 0.1, 0.1, 0, 0, 0.1, quiet_row, 0.1, 0, 0.1, quiet_row] + [0] * 10
    sound, gaps = answered(Recording(rows(*peaks), RATE), 2 * ROW_S, 20 * ROW_S)
    assert sound == pytest.approx((6 * ROW_S + 10 / RATE, 15 * ROW_S))
    assert gaps == 2


def test_who_sounded_before_the_question_was_over_has_not_answered_it():
    assert answered(Recording(rows(0, 0.1, 0.1, 0, 0, 0.1), RATE), 3 * ROW_S, 6 * ROW_S) == (None, 0)
    assert answered(Recording(rows(0, 0, 0, 0, 0, 0.1), RATE), 3 * ROW_S, 5 * ROW_S) == (None, 0)


def test_shares_of_a_core_are_those_of_the_given_times():
    wall = np.arange(100, 120, 0.2)
    spent = np.interp(wall, [100, 110, 112, 120], [5, 5, 6.5, 6.5])  # .75 of a core for two seconds
    cpu = np.stack([wall, spent], 1)
    assert share(cpu, [(8.0, 10.0)], began=102.0) == pytest.approx(0.75, abs=0.02)
    assert share(cpu, [(2.0, 6.0), (12.0, 14.0)], began=102.0) == 0
    assert np.isnan(share(cpu, [], began=102.0))


def test_quiet_is_between_an_answer_and_the_next_question():
    turns = [Turn(1, 2, (2.5, 4)), Turn(8, 9), Turn(12, 13, (13.5, 14.5)), Turn(15, 16, (17, 18))]
    assert quiet(turns) == [(4.5, 7.5)]


def test_questions_are_laid_out_with_gaps_over_a_quiet_room():
    schedule = scheduled([clip(1.0, 1), clip(0.5, 2)], 6.0)
    assert schedule.times == [(5.0, 6.0), (12.0, 12.5)]
    assert schedule.seconds == pytest.approx(18.5)
    silence = schedule.sound[round(6.1 * RATE) : round(11.9 * RATE)]
    assert 20 * np.log10(silence.std()) == pytest.approx(-62, abs=0.2)
    assert schedule.sound[round(5.0 * RATE) : round(6.0 * RATE)].std() > 0.01


def test_what_cannot_be_measured_is_said(monkeypatch):
    with pytest.raises(ValueError, match="ask at least once"):
        bench_page.run(argparse.Namespace(replies=0))
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ValueError, match="no chromium"):
        bench_page.run(argparse.Namespace(replies=1))
    with pytest.raises(ValueError, match="2 sound contexts"):
        bench_page.recording_of({"contexts": 2, "rate": 48_000, "began": 0, "rows": ""})
