"""Speech is found where it is, at any level; noise, tones and damaged sound are not taken for it for long."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from app.vad import FRAME, FRAME_MS, SAMPLE_RATE, VadFrame, VadSettings, VoiceActivity

SAMPLES = Path(__file__).parents[2] / "assets" / "samples"
NAMES = ("animal", "clock", "day", "espresso", "latte", "spelling", "unknown")
ADAPTED_MS = 1500  # from the beginning of a steady noise until it must not be called speech any more
LONGEST_PAUSE_MS = 300  # within a sentence: less than what ends a turn


def decibels(level_db: float) -> float:
    return 10 ** (level_db / 20)


def noise(seconds: float, level_db: float, seed: int = 0) -> np.ndarray:
    return decibels(level_db) * np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE))


def tone(seconds: float, level_db: float, *frequencies: float) -> np.ndarray:
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    sound = sum(np.sin(2 * np.pi * frequency * time + frequency) for frequency in frequencies)
    return decibels(level_db) * sound / np.sqrt(np.mean(sound**2))


def spoken(name: str, level_db: float = -20) -> np.ndarray:
    """One of the samples, cut to the speech: from its first to its last 10 ms within 30 dB of the loudest."""
    sound, _ = soundfile.read(SAMPLES / f"{name}.wav")
    power = (sound[: len(sound) // 160 * 160].reshape(-1, 160) ** 2).mean(axis=1)
    loud = np.flatnonzero(power > power.max() / 1000)
    sound = sound[loud[0] * 160 : (loud[-1] + 1) * 160]
    return sound * decibels(level_db) / np.sqrt(np.mean(sound**2))


def in_room(speech: np.ndarray, room_db: float = -75, before_s: float = 2, after_s: float = 1) -> np.ndarray:
    padded = np.pad(speech, (round(before_s * SAMPLE_RATE), round(after_s * SAMPLE_RATE)))
    return padded + noise(len(padded) / SAMPLE_RATE, room_db)


def frames_of(sound: np.ndarray, chosen: VadSettings | None = None) -> list[VadFrame]:
    return VoiceActivity(chosen or VadSettings()).push(sound.astype(np.float32))


def stretches(frames: list[VadFrame], longest_pause_ms: float = LONGEST_PAUSE_MS) -> list[tuple[float, float]]:
    """(start, end) in ms of what is called speech; shorter pauses are passed over."""
    found: list[tuple[float, float]] = []
    for frame in frames:
        if frame.speech:
            joins = found and frame.end_ms - FRAME_MS - found[-1][1] <= longest_pause_ms
            start = found.pop()[0] if joins else frame.end_ms - FRAME_MS
            found.append((start, frame.end_ms))
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("level_db", "room_db"), [(-12, -70), (-26, -70), (-45, -90)])
def test_a_sentence_is_one_stretch_of_speech_at_any_level(name, level_db, room_db):
    speech = spoken(name, level_db)
    frames = frames_of(in_room(speech, room_db))
    [(start, end)] = stretches(frames)
    true_end = 2000 + 1000 * len(speech) / SAMPLE_RATE
    assert 2000 <= start <= 2100  # called speech within 100 ms of the first sound
    assert true_end - 150 <= end <= true_end + 150
    onset = next(frame.onset_ms for frame in frames if frame.speech)
    assert onset == pytest.approx(2000, abs=60)


@pytest.mark.parametrize("name", NAMES)
def test_a_sentence_is_found_in_a_noisy_room(name):
    frames = frames_of(in_room(spoken(name, -20), room_db=-35))
    found = stretches(frames, longest_pause_ms=350)
    assert found[0][1] < 2000  # the noise itself, before it is known
    [(start, end)] = [stretch for stretch in found if stretch[0] > ADAPTED_MS]
    assert 1980 <= start <= 2160
    assert 2000 + 1000 * len(spoken(name)) / SAMPLE_RATE - 350 <= end
    assert not any(frame.speech for frame in frames[-40:])


STEADY = {
    "white": lambda level: noise(6, level),
    "hum": lambda level: tone(6, level, 50, 100, 150, 200, 250, 300),
    "whistle": lambda level: tone(6, level, 1000),
    "low tone": lambda level: tone(6, level, 220),
    "fan": lambda level: noise(6, level) + tone(6, level - 6, 95, 190),
}


@pytest.mark.parametrize("level_db", [-50, -30, -10])
@pytest.mark.parametrize("kind", STEADY)
def test_steady_sound_is_called_speech_only_until_it_is_known(kind, level_db):
    from_the_start = frames_of(STEADY[kind](level_db))
    switched_on = frames_of(np.concatenate([noise(3, -80), STEADY[kind](level_db)]))[150:]
    for frames in (from_the_start, switched_on):
        assert not any(frame.speech for frame in frames[round(ADAPTED_MS / FRAME_MS) :])


def test_what_webrtcvad_refuses_is_no_speech_however_loud_to_the_gate():
    frames = frames_of(noise(0.9, -35))[15:]  # too short to be known as steady
    assert all(frame.level_db > frame.threshold_db and not frame.voiced for frame in frames)
    assert not any(frame.speech for frame in frames)


def test_quiet_after_noise_is_known_at_once():
    speech = in_room(spoken("latte", -45), room_db=-85, before_s=0.5)
    frames = frames_of(np.concatenate([noise(5, -20), speech]))
    [(start, _)] = [stretch for stretch in stretches(frames) if stretch[0] > ADAPTED_MS]
    assert 5500 <= start <= 5640


@pytest.mark.parametrize("change_db", [-20, 20])
def test_speech_is_found_after_the_level_of_everything_changes(change_db):
    before, after = in_room(spoken("day", -35), -65), in_room(spoken("clock", -35), -65)
    frames = frames_of(np.concatenate([before, after * decibels(change_db)]))
    change = 1000 * len(before) / SAMPLE_RATE
    start, end = [stretch for stretch in stretches(frames) if stretch[0] > change + ADAPTED_MS][-1]
    assert change + 1980 <= start <= change + 2100
    assert end - start == pytest.approx(1000 * len(spoken("clock")) / SAMPLE_RATE, abs=200)


def test_a_slammed_door_is_over_soon_and_hides_no_speech():
    slam = noise(0.4, -6) * np.exp(-np.arange(6400) / SAMPLE_RATE * 25)
    sound = np.concatenate([noise(2, -75), slam, in_room(spoken("latte"), before_s=1)])
    found = stretches(frames_of(sound))
    assert all(end < 2500 for _, end in found[:-1])
    assert found[-1][0] == pytest.approx(3460, abs=60)


@pytest.mark.parametrize("seconds", [0.01, 0.03])
def test_a_click_is_no_speech(seconds):
    click = tone(seconds, -10, 300, 500, 700)
    assert not stretches(frames_of(np.concatenate([noise(2, -75), click, noise(1, -75)])))


def test_short_closures_do_not_end_speech():
    def pauses(name: str, hangover_ms: float) -> int:
        frames = frames_of(in_room(spoken(name), -60), VadSettings(hangover_ms=hangover_ms))
        return len(stretches(frames, longest_pause_ms=0)) - 1

    assert sum(pauses(name, 100) for name in NAMES) <= 2
    assert sum(pauses(name, 0) for name in NAMES) >= 6


def test_hangover_is_how_long_speech_outlasts_the_sound():
    sound = in_room(tone(0.5, -20, 200, 400, 600), room_db=-80, before_s=2)
    ends = [stretches(frames_of(sound, VadSettings(hangover_ms=ms)))[-1][1] for ms in (0, 60, 100, 300)]
    assert np.diff(ends).tolist() == [60, 40, 200]


def test_noise_that_hides_weak_ends_of_words_makes_pauses_last():
    def outlasts(level_db: float, seconds: float = 0.5, noisy_ms: float = 200) -> float:
        sound = in_room(tone(seconds, level_db, 200, 400, 600), room_db=-60, before_s=2)  # -69.5 dB of it in the band
        return stretches(frames_of(sound, VadSettings(noisy_hangover_ms=noisy_ms)))[-1][1] - 2000 - 1000 * seconds

    def more(level_db: float, seconds: float = 0.5, noisy_ms: float = 200) -> float:
        return outlasts(level_db, seconds, noisy_ms) - outlasts(level_db, seconds, noisy_ms=0)

    assert more(-20) == 0
    assert more(-38) == pytest.approx(40, abs=20)
    assert more(-47) == pytest.approx(90, abs=20)
    assert more(-47, noisy_ms=400) == pytest.approx(260, abs=40)
    assert more(-44, seconds=0.1, noisy_ms=400) <= 40  # a clatter does not earn what words do


@pytest.mark.parametrize(("fainter_db", "goes_on"), [(4, True), (18, False)])
def test_after_a_pause_that_lasts_only_in_noise_what_is_much_fainter_does_not_go_on(fainter_db, goes_on):
    """Voices in the background, over the gate's threshold, are not to make an utterance last."""
    later = np.concatenate([np.zeros(round(0.16 * SAMPLE_RATE)), tone(0.06, -25 - fainter_db, 200, 400, 600)])
    frames = frames_of(in_room(np.concatenate([tone(0.5, -25, 200, 400, 600), later]), room_db=-45, before_s=2))
    assert any(frame.voiced and frame.level_db > -51 for frame in frames[133:136])  # 6 dB over the band's -54.5
    start, end = stretches(frames, longest_pause_ms=0)[-1]
    assert start < 2100
    assert (end > 2720) == goes_on


def test_fewer_pauses_are_found_in_sentences_in_noise_than_without_the_longer_hangover():
    def missed(**changed: float) -> float:
        decisions = [frames_of(in_room(spoken(name), room_db=-30), VadSettings(**changed)) for name in NAMES]
        return sum(
            not frame.speech
            for name, frames in zip(NAMES, decisions)
            for frame in frames[100 : 100 + len(spoken(name)) // FRAME]
        )

    assert missed() < 0.7 * missed(noisy_hangover_ms=0)


def test_silence_direct_current_and_overload():
    silence = frames_of(np.zeros(SAMPLE_RATE))
    assert not any(frame.speech or frame.voiced for frame in silence)
    assert {frame.level_db for frame in silence} == {-120.0}
    assert not stretches(frames_of(np.full(3 * SAMPLE_RATE, 0.5)))[1:]  # at most its beginning
    sentence = in_room(spoken("day"), -70)
    [(start, end)] = stretches(frames_of(sentence))
    for damaged in (sentence + 0.3, sentence * 100, np.clip(sentence * 5, -0.9, 0.9)):
        damaged_start, damaged_end = stretches(frames_of(damaged))[-1]
        assert damaged_start == pytest.approx(start, abs=40)
        assert damaged_end == pytest.approx(end, abs=240)


def test_what_exceeds_full_scale_is_clipped():
    assert frames_of(SENTENCE * 100) == frames_of(np.clip(SENTENCE * 100, -1, 1))


def test_the_onset_is_found_however_long_the_decision_takes():
    slow = VadSettings(start_frames=8, start_window=8)
    onset = next(frame.onset_ms for frame in frames_of(in_room(spoken("latte")), slow) if frame.speech)
    assert onset == pytest.approx(2000, abs=60)


def test_speech_after_long_digital_silence():
    frames = frames_of(np.concatenate([np.zeros(6 * SAMPLE_RATE), spoken("latte"), np.zeros(SAMPLE_RATE)]))
    [(start, _)] = stretches(frames)
    assert start == pytest.approx(6060, abs=40)


def test_a_stream_that_begins_within_a_word_is_speech():
    speech = spoken("espresso")[SAMPLE_RATE // 2 :]
    frames = frames_of(speech[: round(0.8 * SAMPLE_RATE)])
    assert frames[4].speech
    assert frames[4].onset_ms == 0
    assert np.mean([frame.speech for frame in frames]) > 0.9


def test_frames_tell_what_they_were_decided_by():
    sound = in_room(spoken("day"), -60)
    frames = frames_of(sound)
    assert [frame.end_ms for frame in frames] == [(i + 1) * 20.0 for i in range(len(sound) // FRAME)]
    assert np.median([frame.level_db for frame in frames[:80]]) == pytest.approx(-60 - 9.5, abs=1.5)  # 900 of 8000 Hz
    for before, frame in pairwise(frames):
        assert (frame.onset_ms is not None) == frame.speech
        assert not frame.speech or frame.onset_ms <= frame.end_ms
        if before.speech and frame.speech:
            assert frame.onset_ms == before.onset_ms
        if frame.speech and not before.speech:
            assert frame.voiced
            assert frame.level_db > frame.threshold_db
    quiet = [frame.threshold_db for frame in frames[60:80]]
    assert quiet == pytest.approx([-60 - 9.5 + VadSettings().margin_db] * 20, abs=2)
    assert min(frame.threshold_db for frame in frames) >= VadSettings().least_level_db


def test_settings_do_what_they_say():
    def begins(**changed: float) -> float:
        return stretches(frames_of(in_room(spoken("unknown"), -60), VadSettings(**changed)))[-1][0]

    def lasts(**changed: float) -> float:
        return sum(frame.speech for frame in frames_of(in_room(spoken("unknown"), -38), VadSettings(**changed)))

    assert begins(start_frames=1, start_window=1) < begins() < begins(start_frames=8, start_window=8)
    assert lasts(margin_db=20) < lasts()
    assert lasts(release_db=0) <= lasts() < lasts(release_db=6)
    assert lasts(least_level_db=-15) < lasts(least_level_db=-30) < lasts()
    assert not stretches(frames_of(in_room(spoken("unknown")), VadSettings(least_level_db=0)))
    voiced = [
        sum(frame.voiced for frame in frames_of(in_room(spoken("day")), VadSettings(aggressiveness=mode)))
        for mode in (0, 3)
    ]
    assert voiced[0] > voiced[1]


def test_the_background_is_remembered_for_as_long_as_asked():
    """Unsteady noise, which only the memory of a quieter moment tells from the background."""
    unsteady = noise(8, -40) * np.repeat(decibels(np.random.default_rng(1).uniform(-12, 0, 400)), FRAME)
    sound = np.concatenate([noise(2, -80), unsteady])
    thresholds = [[f.threshold_db for f in frames_of(sound, VadSettings(background_s=s))] for s in (2, 6)]
    risen = [next(i for i, t in enumerate(ts) if i > 100 and t > -55) * FRAME_MS for ts in thresholds]
    assert risen[0] == pytest.approx(2000 + 2000, abs=400)
    assert risen[1] == pytest.approx(2000 + 6000, abs=400)


SENTENCE = in_room(spoken("where"), before_s=0.5, after_s=0.3).astype(np.float32)
WHOLE = frames_of(SENTENCE)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=40))
def test_blocks_of_any_size_give_the_same_frames(sizes):
    assert any(frame.speech for frame in WHOLE)
    voice = VoiceActivity()
    frames = [frame for block in np.split(SENTENCE, np.cumsum(sizes)) for frame in voice.push(block)]
    assert frames == WHOLE


def test_single_samples_give_the_same_frames():
    voice = VoiceActivity()
    frames = [frame for sample in SENTENCE[: 10 * FRAME] for frame in voice.push(np.array([sample]))]
    assert frames == WHOLE[:10]


def test_reset_begins_a_new_stream():
    voice = VoiceActivity()
    voice.push(np.concatenate([noise(3, -15), SENTENCE])[:-100])
    voice.reset()
    assert voice.push(SENTENCE) == WHOLE


def test_sixteen_bit_samples_are_the_same_sound():
    pcm = np.round(SENTENCE * 32768).astype(np.int16)
    assert VoiceActivity().push(pcm) == VoiceActivity().push(pcm.astype(np.float32) / 32768)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((2, 320), np.float32), r"shape \(2, 320\)"),
        (np.float32(0), r"shape \(\)"),
        (np.array([0, np.nan], np.float32), "nan at sample 1"),
        (np.array([-np.inf], np.float32), "-inf at sample 0"),
        (np.zeros(320, np.int32), "int32"),
        (np.zeros(320, np.uint8), "uint8"),
        (np.zeros(320, complex), "complex"),
    ],
)
def test_what_is_no_sound_is_refused_in_one_line_and_changes_nothing(samples, message):
    voice = VoiceActivity()
    voice.push(SENTENCE[:1000])
    with pytest.raises(ValueError, match=message) as error:
        voice.push(samples)
    assert "\n" not in str(error.value)
    assert voice.push(SENTENCE[1000:]) == WHOLE[3:]


def test_nothing_gives_nothing():
    assert VoiceActivity().push(np.zeros(0, np.float32)) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"aggressiveness": 4},
        {"aggressiveness": 1.5},
        {"aggressiveness": True},
        {"margin_db": -1},
        {"margin_db": float("nan")},
        {"margin_db": "6"},
        {"release_db": 7},
        {"least_level_db": 1},
        {"start_frames": 0},
        {"start_frames": 5},
        {"start_window": 51},
        {"hangover_ms": -20},
        {"noisy_hangover_ms": 2001},
        {"background_s": 0.5},
        {"background_s": float("inf")},
    ],
)
def test_impossible_settings_are_refused_in_one_line(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))) as error:
        VadSettings(**wrong)
    assert "\n" not in str(error.value)
