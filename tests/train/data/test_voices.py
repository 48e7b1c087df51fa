import os
import signal
import time
from collections import Counter
from shutil import which

import numpy as np
import pytest

from train.data import voices
from train.data.engine_processes import EngineProcess
from train.data.voices import (
    ESPEAK_ACCENTS,
    ESPEAK_VARIANTS,
    MissingEngine,
    SynthesisError,
    Synthesizer,
    Voice,
    finish,
    speakable,
    training_voices,
    unseen_voices,
)

RATE = 16_000
SENTENCE = "Please bring me a long yellow rain coat, and nine or more onions."
ONE_EACH = [
    Voice("espeak-ng", "en-gb+f3"),
    Voice("flite", "slt"),
    Voice("flite", "kal"),  # 8 kHz
    Voice("festival", "kal_diphone"),
    Voice("festival", "cmu_us_slt_arctic_hts"),  # 32 kHz
    *unseen_voices(),
]


def needs(engine):
    if which(engine) is None:
        pytest.skip(f"{engine} is not installed")


@pytest.fixture(scope="module")
def synthesizer():
    with Synthesizer() as one:
        yield one


def median_pitch(wave):
    """Hz, by autocorrelation of the voiced frames."""
    found = []
    for start in range(0, len(wave) - 800, 160):
        frame = wave[start : start + 800] - wave[start : start + 800].mean()
        if np.sqrt(np.square(frame).mean()) < 0.05:
            continue
        similar = np.correlate(frame, frame, "full")[799:]
        lag = 40 + int(np.argmax(similar[40:267]))
        if similar[lag] > 0.6 * similar[0]:
            found.append(RATE / lag)
    return float(np.median(found))


def centroid(wave):
    """Mean frequency of the sound: what formants move."""
    power = np.abs(np.fft.rfft(wave)) ** 2
    return float((np.fft.rfftfreq(len(wave), 1 / RATE) * power).sum() / power.sum())


@pytest.mark.parametrize("voice", ONE_EACH, ids=lambda voice: voice.name)
def test_speaks_16_khz_with_headroom(synthesizer, voice):
    needs(voice.engine)
    wave = synthesizer.speak(SENTENCE, voice)
    assert wave.dtype == np.float32
    assert wave.ndim == 1
    assert np.abs(wave).max() == pytest.approx(0.7, abs=1e-3)
    assert 2.5 < len(wave) / RATE < 6


@pytest.mark.parametrize("voice", ONE_EACH[:5], ids=lambda voice: voice.name)
def test_sound_depends_on_nothing_said_before(synthesizer, voice):
    needs(voice.engine)
    first = synthesizer.speak("It is half past ten.", voice)
    synthesizer.speak(SENTENCE, Voice(voice.engine, voice.name, pitch=1.2, rate=1.3, formants=0.9))
    assert np.array_equal(synthesizer.speak("It is half past ten.", voice), first)


@pytest.mark.parametrize("name", ["espeak-ng/en-us+m3", "flite/slt", "flite/kal16", "festival/kal_diphone"])
def test_pitch_rate_and_formants_do_what_they_say(synthesizer, name):
    engine, voice = name.split("/")
    needs(engine)
    plain = synthesizer.speak(SENTENCE, Voice(engine, voice))
    higher = synthesizer.speak(SENTENCE, Voice(engine, voice, pitch=1.2))
    faster = synthesizer.speak(SENTENCE, Voice(engine, voice, rate=1.25))
    smaller = synthesizer.speak(SENTENCE, Voice(engine, voice, formants=1.2))
    assert median_pitch(higher) / median_pitch(plain) == pytest.approx(1.2, abs=0.08)
    assert len(plain) / len(faster) == pytest.approx(1.25, abs=0.08)
    assert median_pitch(smaller) / median_pitch(plain) == pytest.approx(1, abs=0.1)
    assert len(smaller) / len(plain) == pytest.approx(1, abs=0.05)
    assert centroid(smaller) / centroid(plain) > 1.05


@pytest.mark.parametrize("engine", ["espeak-ng", "flite", "festival"])
@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP], ids=["crash", "hang"])
def test_engine_that_crashes_or_hangs_is_started_again(engine, harm):
    needs(engine)
    voice = next(voice for voice in ONE_EACH if voice.engine == engine)
    with Synthesizer(timeout=6.0) as synthesizer:  # festival takes seconds to start on a busy machine
        expected = synthesizer.speak("Good morning.", voice)
        pid = synthesizer._processes[engine].pid
        os.kill(pid, harm)
        assert np.array_equal(synthesizer.speak("Good morning.", voice), expected)
        assert synthesizer._processes[engine].pid != pid


def test_engine_killed_while_it_speaks(monkeypatch):
    needs("flite")
    write = EngineProcess.write
    struck = []

    def write_and_kill(process, data):
        write(process, data)
        if not struck:
            struck.append(process.pid)
            time.sleep(0.1)  # the forked copy is speaking now
            os.killpg(process.pid, signal.SIGKILL)

    monkeypatch.setattr(EngineProcess, "write", write_and_kill)
    with Synthesizer() as synthesizer:
        assert len(synthesizer.speak(" and ".join([SENTENCE[:-1]] * 4), Voice("flite", "slt"))) > 8 * RATE
    assert struck


def test_failing_twice_names_engine_voice_and_text(synthesizer):
    needs("espeak-ng")
    with pytest.raises(SynthesisError, match=r"espeak-ng .*'Hello\.'.*en-xx") as raised:
        synthesizer.speak("Hello.", Voice("espeak-ng", "en-xx"))
    assert "\n" not in str(raised.value)
    assert len(synthesizer.speak("Hello.", Voice("espeak-ng", "en-us"))) > 0.15 * RATE


def test_a_text_too_long_to_speak_is_a_synthesis_error(synthesizer):
    needs("espeak-ng")
    with pytest.raises(SynthesisError, match=r"lasts .* s, not 0.15..20"):
        synthesizer.speak("This goes on and on. " * 30, Voice("espeak-ng", "en-us"))


def test_missing_engine_names_its_package(monkeypatch):
    monkeypatch.setattr(voices, "which", lambda _: None)
    with Synthesizer() as synthesizer, pytest.raises(MissingEngine, match="apt install flite"):
        synthesizer.speak("Hello.", Voice("flite", "slt"))


def test_festival_without_a_voice_is_missing_too(monkeypatch, tmp_path):
    (tmp_path / "us" / "cmu_us_slt_arctic_hts").mkdir(parents=True)
    monkeypatch.setattr(voices, "which", lambda engine: f"/usr/bin/{engine}")
    monkeypatch.setattr(voices, "FESTIVAL_FOLDER", tmp_path)
    with pytest.raises(MissingEngine, match="festvox-kallpc16k"):
        voices.check_engine("festival")
    voices.check_engine("flite")


@pytest.mark.parametrize("text", ["", " ...", "I am 7", "one + one", "ten %", "hello 🙂", "привет", "a/b", "x = y"])
def test_text_whose_sound_its_letters_do_not_tell_is_refused(text):
    with pytest.raises(ValueError, match=r"^['\"]"):
        speakable(text)


def test_engines_get_plain_letters_and_the_punctuation_that_shapes_speech():
    assert speakable("Don’t — well, “twenty-one” cafés?") == "Don't , well, twenty one cafes?"


def test_letters_spelled_one_by_one_are_read_as_letters(synthesizer):
    """A capital A before a comma is "ay", much longer than the article's "uh"."""
    needs("flite")
    for voice in (Voice("espeak-ng", "en-us"), Voice("flite", "slt"), Voice("festival", "kal_diphone")):
        needs(voice.engine)
        letter, name = (synthesizer.speak(text, voice) for text in ("It is A, T.", "It is ay, T."))
        assert len(letter) / len(name) == pytest.approx(1, abs=0.15)


def test_silence_is_cut_short_and_speech_kept():
    tone = (8000 * np.sin(np.arange(RATE) / 10)).astype(np.int16)
    quiet = np.zeros(2 * RATE, np.int16)
    wave = finish(np.concatenate([quiet, tone, quiet]), RATE)
    assert len(wave) / RATE == pytest.approx(1.6, abs=0.05)
    with pytest.raises(ValueError, match="silent"):
        finish(quiet, RATE)
    with pytest.raises(ValueError, match="silent"):
        finish(quiet[:0], RATE)
    with pytest.raises(ValueError, match="lasts"):
        finish(tone[: RATE // 10], RATE)


def test_training_draws_many_voices_and_never_an_unseen_one():
    drawn = [training_voices(3, index) for index in range(20_000)]
    names = {(voice.engine, voice.name) for voice in drawn}
    assert not names & {(voice.engine, voice.name) for voice in unseen_voices()}
    assert not names & {("flite", "rms"), ("festival", "ked_diphone")}
    share = {engine: count / len(drawn) for engine, count in Counter(voice.engine for voice in drawn).items()}
    assert share == pytest.approx({"espeak-ng": 0.5, "flite": 0.42, "festival": 0.08}, abs=0.02)
    assert len(names) > 600
    assert all(0.82 <= voice.formants <= 1.22 and 1 / 1.36 <= voice.rate <= 1.26 for voice in drawn)
    assert drawn[:50] == [training_voices(3, index) for index in range(50)]
    assert drawn[:50] != [training_voices(4, index) for index in range(50)]


def test_weights_choose_engines():
    assert {training_voices(0, index, {"flite": 1.0, "festival": 0.0}).engine for index in range(200)} == {"flite"}
    with pytest.raises(ValueError, match="pico"):
        training_voices(0, 0, {"pico": 1.0})


def test_every_espeak_voice_speaks_and_differs(synthesizer):
    needs("espeak-ng")
    names = [*ESPEAK_ACCENTS, *(f"en-us+{variant}" for variant in ESPEAK_VARIANTS)]
    # An unknown variant is not an error for espeak-ng: it speaks as if none had been asked for
    sounds = {name: synthesizer.speak("Good morning to you.", Voice("espeak-ng", name)).tobytes() for name in names}
    assert [name for name in names[1:] if sounds[name] == sounds["en-us"]] == []


def test_closing_ends_the_engines():
    needs("festival")
    with Synthesizer() as synthesizer:
        synthesizer.speak("Hello.", Voice("festival", "kal_diphone"))
        process = synthesizer._processes["festival"]
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
