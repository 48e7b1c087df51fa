"""Files of every kind become samples, or one line that says why not."""

import shutil

import numpy as np
import pytest
import soundfile
from pydub import AudioSegment

from app.audio import read_sound

TONE = (0.5 * np.sin(np.arange(8000) * 0.2)).astype(np.float32)


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
def test_what_soundfile_knows_keeps_its_rate_and_level(ending, tmp_path):
    soundfile.write(tmp_path / f"tone.{ending}", TONE, 8000)
    samples, rate = read_sound(tmp_path / f"tone.{ending}")
    assert (rate, len(samples)) == (8000, 8000)
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
@pytest.mark.parametrize(("ending", "name"), [("m4a", "ipod"), ("webm", "webm")])
def test_what_only_ffmpeg_knows_is_read_too(ending, name, tmp_path):
    pcm = (np.stack([TONE, TONE], axis=1) * 32767).astype(np.int16)
    AudioSegment(pcm.tobytes(), frame_rate=48000, sample_width=2, channels=2).export(tmp_path / f"t.{ending}", name)
    samples, rate = read_sound(tmp_path / f"t.{ending}")
    assert (rate, samples.shape[1]) == (48000, 2)
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("content", [b"", b"this is no sound", b"RIFF\x00\x00\x00\x00WAVEfmt "])
def test_what_is_no_sound_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "fake.wav"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"fake\.wav") as error:
        read_sound(path)
    assert "\n" not in str(error.value)
