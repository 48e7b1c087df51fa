"""Files of every kind become samples, or one line that says why not; and what sound goes out as."""

import io
import shutil
import struct
import time

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from pydub import AudioSegment

from app import audio
from app.audio import ENCODINGS, Resampler, encode, from_pcm16, read_sound, to_pcm16, wav_header

TONE = (0.5 * np.sin(np.arange(8000) * 0.2)).astype(np.float32)
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def exported(ending, name, samples=TONE, rate=48000):
    pcm = (np.stack([samples, samples], axis=1) * 32767).astype(np.int16)
    written = io.BytesIO()
    AudioSegment(pcm.tobytes(), frame_rate=rate, sample_width=2, channels=2).export(written, name)
    return written.getvalue()


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
def test_what_soundfile_knows_keeps_its_rate_and_level(ending, tmp_path):
    soundfile.write(tmp_path / f"tone.{ending}", TONE, 8000)
    samples, rate = read_sound(tmp_path / f"tone.{ending}")
    assert (rate, len(samples)) == (8000, 8000)
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.05)
    again, _ = read_sound((tmp_path / f"tone.{ending}").read_bytes())
    np.testing.assert_array_equal(again, samples)


@needs_ffmpeg
@pytest.mark.parametrize(("ending", "name"), [("m4a", "ipod"), ("webm", "webm")])
def test_what_only_ffmpeg_knows_is_read_too(ending, name, tmp_path):
    (tmp_path / f"t.{ending}").write_bytes(exported(ending, name))
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
    with pytest.raises(ValueError, match="the question"):
        read_sound(content, "the question")


def test_noise_is_no_file_and_takes_no_time():
    start = time.perf_counter()
    for seed in range(3):
        with pytest.raises(ValueError, match="the sound"):
            read_sound(b"\x00" + np.random.default_rng(seed).bytes(100_000))
    assert time.perf_counter() - start < 10


@needs_ffmpeg
@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{secret}'\n",
    ],
)
def test_a_playlist_opens_no_other_file(playlist, tmp_path):
    secret = tmp_path / "secret.mp3"
    secret.write_bytes(encode(np.tile(TONE, 4), 24000, "mp3"))
    with pytest.raises(ValueError, match="is not a sound"):
        read_sound(playlist.format(secret=secret).encode())


def wav(seconds, rate=16000, channels=1):
    written = io.BytesIO()
    soundfile.write(written, np.zeros((int(seconds * rate), channels)), rate, format="WAV")
    return written.getvalue()


def test_what_is_too_long_is_refused_with_both_lengths():
    assert len(read_sound(wav(2), longest_s=2)[0]) == 32000
    with pytest.raises(ValueError, match=r"call is 2\.5 s long, the limit is 2 s: cut it"):
        read_sound(wav(2.5), "call", longest_s=2)


@needs_ffmpeg
def test_what_ffmpeg_finds_too_long_is_refused():
    three = np.tile(TONE, 18)
    assert len(read_sound(exported("webm", "webm", three), longest_s=4)[0]) == pytest.approx(144000, rel=0.02)
    with pytest.raises(ValueError, match=r"s long or more, the limit is 1 s"):
        read_sound(exported("webm", "webm", three), longest_s=1)


def test_no_more_is_decoded_than_the_limit_allows(monkeypatch):
    """An hour of silence is 40 kB of FLAC."""
    bomb = io.BytesIO()
    soundfile.write(bomb, np.zeros(3600 * 8000, np.int16), 8000, format="FLAC")
    assert len(bomb.getvalue()) < 2_000_000
    decoded = []
    read = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *a, **k: decoded.append(read(*a, **k)) or decoded[-1])
    with pytest.raises(ValueError, match=r"3600\.0 s long, the limit is 120 s"):
        read_sound(bomb.getvalue(), longest_s=120)
    assert sum(map(len, decoded)) <= 120 * 8000 + 1


@pytest.mark.parametrize(
    ("data", "message"), [(wav(0.1, channels=3), "3 channels: give one or two"), (wav(0.01, 384000), "384000 samples")]
)
def test_with_a_limit_shapes_that_would_burst_it_are_refused(data, message):
    assert len(read_sound(data)[0])
    with pytest.raises(ValueError, match=message):
        read_sound(data, longest_s=10)


def test_pcm_comes_back_as_it_was_and_is_clipped():
    values = np.arange(-32768, 32768) / 32768
    np.testing.assert_array_equal(from_pcm16(to_pcm16(values)), values.astype(np.float32))
    assert struct.unpack("<4h", to_pcm16(np.array([2.0, -2.0, 1.0, 0.6 / 32768]))) == (32767, -32768, 32767, 1)


def test_half_a_sample_is_refused():
    with pytest.raises(ValueError, match="2 bytes a sample, but here are 3 bytes"):
        from_pcm16(b"abc")


@pytest.mark.parametrize("format", ["wav", "flac", "mp3", "opus", pytest.param("aac", marks=needs_ffmpeg), "pcm16"])
def test_each_encoding_is_that_sound_again(format):
    sound = 0.5 * np.sin(2 * np.pi * 440 * np.arange(48000) / 24000)
    sound[:4000] = 0
    data = encode(sound, 24000, format)
    samples, rate = (from_pcm16(data), 24000) if format == "pcm16" else read_sound(data)
    assert len(samples) / rate == pytest.approx(2, abs=0.15)
    spectrum = np.abs(np.fft.rfft(samples))
    assert spectrum.argmax() * rate / len(samples) == pytest.approx(440, abs=2)
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.1)
    assert format in ENCODINGS


def test_what_cannot_be_encoded_is_told(monkeypatch):
    with pytest.raises(ValueError, match="no format 'midi': use wav"):
        encode(TONE, 24000, "midi")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="aac needs ffmpeg"):
        encode(TONE, 24000, "aac")
    with pytest.raises(ValueError, match="needs ffmpeg to be read"):
        read_sound(b"ADTS? no")


def test_a_wav_of_unknown_length_can_be_read():
    samples, rate = read_sound(wav_header(24000) + to_pcm16(TONE))
    assert rate == 24000
    np.testing.assert_allclose(samples, TONE, atol=1e-4)


# Other sampling rates

RATES = [(24000, 16000), (16000, 24000), (48000, 16000), (44100, 16000), (16000, 16000), (8000, 24000)]


def resampled(samples, rates):
    resampler = Resampler(*rates)
    return np.concatenate([resampler.push(samples), resampler.finish()])


def sine(frequency, rate, seconds=0.5):
    return np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


def level_db(samples):
    middle = samples[len(samples) // 5 : -len(samples) // 5]
    return 10 * np.log10(2 * np.mean(middle**2) + 1e-20)


@pytest.mark.parametrize("rates", RATES)
def test_the_band_passes_flat_and_in_time(rates):
    lower = min(rates) / 2
    for frequency in np.linspace(0.02, 0.9, 12) * lower:
        made = resampled(sine(frequency, rates[0]), rates)
        expected = sine(frequency, rates[1])
        assert level_db(made) == pytest.approx(0, abs=0.1)
        assert level_db(made - expected) < -38  # the same moment, not a sample later


@pytest.mark.parametrize("rates", [r for r in RATES if r[0] > r[1]])
def test_nothing_is_folded_into_the_band(rates):
    for frequency in np.linspace(1.1 * rates[1] / 2, rates[0] / 2 - 1, 12):
        assert level_db(resampled(sine(frequency, rates[0]), rates)) < -60


@pytest.mark.parametrize("rates", [r for r in RATES if r[0] < r[1]])
def test_no_images_appear_above_the_band(rates):
    for frequency in np.linspace(0.02, 0.9, 12) * rates[0] / 2:
        made = resampled(sine(frequency, rates[0]), rates)
        spectrum = np.abs(np.fft.rfft(made * np.blackman(len(made)))) / (0.42 * len(made) / 2)
        hertz = np.fft.rfftfreq(len(made), 1 / rates[1])
        assert 20 * np.log10(spectrum[hertz > 1.1 * rates[0] / 2].max()) < -60


@pytest.mark.parametrize("rates", [(24000, 16000), (16000, 24000), (44100, 16000)])
def test_less_than_two_milliseconds_wait_inside(rates):
    resampler, given_s, made_s = Resampler(*rates), 0.0, 0.0
    for _ in range(40):
        made_s += len(resampler.push(np.zeros(37))) / rates[1]
        given_s += 37 / rates[0]
        assert given_s - made_s < 0.002


NOISE = np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 700), max_size=20), st.integers(0, 5000), st.sampled_from(RATES))
def test_the_pieces_do_not_matter(cuts, length, rates):
    whole = resampled(NOISE[:length], rates)
    assert whole.dtype == np.float32
    assert len(whole) == round(length * rates[1] / rates[0])
    resampler = Resampler(*rates)
    for _ in range(2):  # after finish, another stream begins
        pieces = [resampler.push(piece) for piece in np.split(NOISE[:length], np.cumsum(cuts))]
        np.testing.assert_array_equal(np.concatenate([*pieces, resampler.finish()]), whole)


def test_the_same_rate_changes_nothing():
    np.testing.assert_array_equal(resampled(NOISE, (16000, 16000)), NOISE)


def test_a_long_piece_is_as_short_ones():
    long = np.tile(NOISE, 20)
    resampler = Resampler(16000, 24000)
    pieces = [resampler.push(piece) for piece in np.split(long, 100)]
    np.testing.assert_array_equal(np.concatenate([*pieces, resampler.finish()]), resampled(long, (16000, 24000)))
    assert len(long) > audio.BLOCK


def test_a_rate_of_nothing_is_refused():
    with pytest.raises(ValueError, match="sampling rate 0"):
        Resampler(0, 16000)
