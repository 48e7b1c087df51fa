"""The truth about where speech is, the counting of what a detector gets wrong, and the bench as a whole."""

import json

import numpy as np
import pytest
import webrtcvad

from bench import voice_activity
from bench.report import Report
from bench.voice_activity import (
    AROUND,
    FRAME,
    LONGEST_GAP,
    SPEECH_DB,
    Decisions,
    Stream,
    Tally,
    compared,
    count,
    figures,
    heard,
    in_noise,
    laid_out,
    main,
    markdown,
    smoothed,
    speech_of,
    stretches,
)
from train.data.noise import active_level
from train.data.voices import MissingEngine, Synthesizer


def levels(*parts):
    """A tone of (frames, dB) parts, -inf for silence."""
    gains = np.concatenate([np.full(frames * FRAME, 10 ** (level / 20)) for frames, level in parts])
    return (gains * np.sin(np.arange(len(gains)) * 2 * np.pi * 10 / FRAME)).astype(np.float32)


def runs(total, *spans):
    found = np.zeros(total, dtype=bool)
    for start, end in spans:
        found[start:end] = True
    return found


def tallied(truth, said, clips, onsets=None):
    stream = Stream(np.zeros(len(truth) * FRAME, np.float32), truth, clips)
    onset_ms = np.full(len(truth), np.nan)
    for frame, onset in (onsets or {}).items():
        onset_ms[frame] = onset
    tally = Tally()
    count(stream, Decisions(said, onset_ms), tally)
    return tally


def test_truth_is_what_lies_within_40_db_of_the_loudest_frame():
    silence = -np.inf
    clip = levels((7, silence), (10, -10), (20, -55), (10, -45), (20, silence), (10, -20), (9, -60))
    assert stretches(speech_of(clip)) == [(7, 17), (37, 47), (67, 77)]


def test_truth_closes_closures_and_leaves_pauses():
    for gap, expected in ((LONGEST_GAP - 1, 1), (LONGEST_GAP, 2)):
        assert len(stretches(speech_of(levels((10, -20), (gap, -np.inf), (10, -20))))) == expected


def test_a_click_is_no_speech_but_belongs_to_the_word_beside_it():
    clip = levels((4, -20), (30, -np.inf), (3, -20), (5, -np.inf), (10, -20))
    assert stretches(speech_of(clip)) == [(34, 52)]
    assert not speech_of(np.zeros(10 * FRAME, np.float32)).any()


def test_runs_of_frames():
    said = runs(30, (0, 3), (5, 9), (20, 30))
    assert stretches(said) == [(0, 3), (5, 9), (20, 30)]
    assert stretches(said, 3) == [(0, 9), (20, 30)]
    assert stretches(runs(5)) == []


def test_clips_are_cut_to_speech_made_equally_loud_and_surrounded_by_silence():
    loud, faint = levels((9, -np.inf), (30, -3)), levels((40, -40), (11, -np.inf))
    stream = laid_out([loud, faint])
    assert stream.clips == ((AROUND, AROUND + 30), (3 * AROUND + 30, 3 * AROUND + 70))
    assert len(stream.sound) == FRAME * len(stream.speech) == FRAME * (4 * AROUND + 70)
    for first, end in stream.clips:
        assert stream.speech[first:end].all()
        assert 20 * np.log10(active_level(stream.sound[first * FRAME : end * FRAME])) == pytest.approx(SPEECH_DB)
    assert stream.speech.sum() == 70
    assert not stream.sound[: AROUND * FRAME].any()
    with pytest.raises(ValueError, match="no speech"):
        laid_out([np.zeros(6400, np.float32)])


@pytest.mark.parametrize("snr", [20, 0, -5])
def test_noise_lies_below_active_speech_by_the_ratio_asked_for(snr):
    stream = laid_out([levels((30, -10), (20, -np.inf), (30, -10))])
    noise = np.random.default_rng(0).normal(0, 3, len(stream.sound)).astype(np.float32)
    added = in_noise(stream, noise, snr) - stream.sound
    first, end = stream.clips[0]
    speech = active_level(stream.sound[first * FRAME : end * FRAME])
    assert 20 * np.log10(speech / np.sqrt(np.mean(added**2))) == pytest.approx(snr, abs=0.05)


def test_misses_false_starts_and_silence_called_speech():
    truth = runs(400, (100, 150), (250, 300))
    said = runs(400, (10, 20), (40, 41), (90, 120), (130, 155), (180, 200), (260, 300), (302, 304))
    tally = tallied(truth, said, ((100, 150), (250, 300)))
    assert (tally.speech, tally.missed, tally.silence) == (100, 10 + 10, 300)
    assert tally.false_starts == 4  # what touches speech is none, though it began before or ends after
    assert tally.false == 10 + 1 + 10 + 5 + 20 + 2
    found = tally.figures()
    assert found["miss"] == 0.2
    assert found["false"] == 0.16
    assert found["false_start"] == pytest.approx(4 / 0.1)  # 300 frames are 6 seconds
    assert (found["lost"], found["endless"]) == (0, 0)


def test_onsets_are_known_at_the_end_of_the_first_frame_called_speech():
    truth, clips = runs(600, (100, 150), (400, 450)), ((100, 150), (400, 450))
    tally = tallied(truth, runs(600, (103, 120), (130, 150), (390, 450)), clips, {103: 1960, 130: 2500, 390: 7800})
    assert tally.onsets == [80, -180]
    assert tally.onset_errors == [40, 200]
    assert tallied(truth, runs(600, (103, 150), (400, 450)), clips).onset_errors == []  # a detector that tells none
    assert tallied(truth, runs(600, (0, 600)), clips).onsets == [-1500, -1500]


@pytest.mark.parametrize(
    ("said", "endpoint_ms"),
    [
        ([(100, 156)], 120),
        ([(100, 140)], -200),
        ([(100, 120), (145, 155)], 100),
        ([(100, 155), (160, 170)], 400),  # no end yet: it goes on after 100 ms
        ([(100, 155), (190, 200)], 100),  # a start for nothing, after the end
        ([(100, 140), (151, 158)], 160),
        ([(100, 300)], 1500),
    ],
)
def test_endpoints(said, endpoint_ms):
    tally = tallied(runs(300, (100, 150)), runs(300, *said), ((100, 150),))
    assert tally.endpoints == [endpoint_ms]
    assert tally.endless == (endpoint_ms == 1500)


def test_a_lost_clip_has_neither_onset_nor_endpoint():
    tally = tallied(runs(600, (100, 150), (400, 450)), runs(600, (102, 150), (460, 470)), ((100, 150), (400, 450)))
    assert (tally.clips, tally.lost, len(tally.onsets), len(tally.endpoints)) == (2, 1, 1, 1)
    assert tally.figures()["lost"] == 0.5
    assert "endpoint_ms" not in tallied(runs(300, (100, 150)), runs(300), ((100, 150),)).figures()


def test_smoothing_is_that_of_the_app():
    voiced = runs(60, (5, 7), (10, 12), (13, 20), (25, 27), (33, 35))
    # 11 and 13 make three of four; 20-24 is a pause of 100 ms, 27-32 one of 120
    assert stretches(smoothed(voiced)) == [(13, 32)]


@pytest.mark.parametrize("seed", range(20))
def test_where_the_gate_is_open_the_app_decides_as_webrtcvad_alone_with_its_smoothing(seed, monkeypatch):
    """For a second a loud tone passes the gate: it could be a word that the stream began in."""
    rng = np.random.default_rng(seed)
    pattern = np.repeat(rng.random(12) > 0.4, rng.integers(1, 9, 12))[:49]
    answers = iter(pattern.tolist())
    monkeypatch.setattr(webrtcvad.Vad, "is_speech", lambda self, sound, rate: next(answers))
    found = heard(levels((len(pattern), -20)))
    assert found[""].speech.tolist() == found["_webrtc"].speech.tolist() == smoothed(pattern).tolist()
    assert (np.isfinite(found[""].onset_ms) == found[""].speech).all()
    assert np.isnan(found["_webrtc"].onset_ms).all()


def test_the_app_is_compared_with_webrtcvad_alone():
    with Synthesizer() as synthesizer:
        try:
            clips = list(
                voice_activity._spoken(synthesizer, ["what time is it", "a small latte with oat milk please"], 3)
            )
        except MissingEngine as error:
            pytest.skip(str(error))
    stream = laid_out(clips)
    noises = {"white": lambda samples: np.random.default_rng(5).standard_normal(samples)}
    found = compared(stream, noises, (20, 5))
    assert list(found) == ["20", "5", "clean"]
    for tallies in found.values():
        for tally in tallies.values():
            assert (tally.clips, tally.lost) == (2, 0)
            assert tally.speech == stream.speech.sum()
    ours = {snr: tallies[""].figures() for snr, tallies in found.items()}
    assert ours["clean"]["miss"] < 0.15
    assert ours["clean"]["false_start"] == 0
    assert 40 <= ours["clean"]["endpoint_ms"] <= 140
    assert 20 <= ours["clean"]["onset_ms"] <= 240
    assert ours["clean"]["onset_error_ms"] <= 160
    assert max(tallies["miss"] for tallies in ours.values()) < 0.4
    assert found["clean"]["_webrtc"].false > found["clean"][""].false  # it falls silent later


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(voice_activity, "QUESTIONS", 2)
    monkeypatch.setattr(voice_activity, "BABBLERS", 8)
    monkeypatch.setattr(voice_activity, "SNRS", (20, 0))
    monkeypatch.setattr(voice_activity, "NOISE_S", 10)


def test_the_bench_runs_alone_and_says_that_people_are_missing(small, capsys, tmp_path):
    assert main(["--people", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = report["figures"]
    for snr in ("20", "0", "clean"):
        for name in ("miss", "false", "false_start", "endpoint_ms", "onset_ms"):
            assert {f"vad_{name}_{snr}", f"vad_{name}_{snr}_webrtc"} <= set(found)
        assert 0 <= found[f"vad_miss_{snr}"] <= 1
        assert -1500 <= found[f"vad_endpoint_ms_{snr}"] <= 1500
    assert found["vad_noise_starts_per_min_fan"] <= 6  # once, until it is known
    assert found["vad_noise_starts_per_min_webrtc"] >= 0
    assert not any("human" in name for name in found)
    assert any(str(tmp_path / "barista") in note for note in report["notes"])


def test_people_have_figures_of_their_own_and_a_table_has_both(small, monkeypatch):
    monkeypatch.setattr(voice_activity, "_recorded", lambda people, report: [levels((40, -20), (9, -30))])
    found = []
    for _ in range(2):
        report = Report("voice_activity")
        figures(report)
        found.append(report.figures)
    assert found[0] == found[1]  # nothing is left to chance
    assert {"vad_miss_0_human", "vad_endpoint_ms_clean_human_webrtc"} <= set(found[0])
    rows = markdown(report).splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["20 dB", "0 dB", "clean", "noise alone"]
    assert len({row.count("|") for row in rows}) == 1
    assert f"{report.figures['vad_miss_clean']:.1%} ({report.figures['vad_miss_clean_human']:.1%})" in rows[4]


def test_without_engines_the_samples_are_heard(monkeypatch):
    monkeypatch.setenv("PATH", "")
    report = Report("voice_activity")
    spoken, babblers = voice_activity._synthetic(report)
    assert len(spoken) == len(babblers) == len(list(voice_activity.SAMPLES.glob("*.wav")))
    assert "not (wholly) installed" in report.notes[0]


def test_clips_are_cut_to_their_speech_and_equally_loud():
    speech = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    for gain in (0.01, 0.1):
        wave = np.concatenate([np.zeros(8000), gain * speech, np.zeros(4000)]).astype(np.float32)
        cut, truth = voice_activity.trimmed(wave)
        assert len(cut) == pytest.approx(16_000, abs=800)
        assert len(truth) * FRAME == len(cut)
        assert truth.all()
        assert 20 * np.log10(np.sqrt(np.square(cut).mean())) == pytest.approx(voice_activity.SPEECH_DB, abs=0.5)
    with pytest.raises(ValueError, match="no speech"):
        voice_activity.trimmed(np.zeros(16_000, np.float32))
