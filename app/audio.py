"""Sound as the outside has it: files of every kind, PCM at 24 kHz, other sampling rates. Only here, formats are known.

Inside, sound is float32 in [-1, 1], and the model's is mono at 16 kHz.
"""

from __future__ import annotations

import io
import math
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import firwin, kaiser_beta

WIRE_RATE = 24_000  # of PCM16 wherever clients send or get it
ENCODINGS = ("wav", "flac", "mp3", "opus", "aac", "pcm16")
LARGEST_RATE = 96_000  # with a limit on seconds, more samples a second are refused, or more channels than two
FFMPEG_S = 60  # longest that it may take
# Playlists and the like, by which a file could make ffmpeg open others, are not among these.
FFMPEG_READS = "aac,ac3,aiff,amr,ape,asf,au,caf,flac,matroska,webm,mov,mp4,m4a,mp3,ogg,opus,rm,w64,wav,wv,flv,mpegts"
BLOCK = 16_384  # samples that are computed at a time


def read_sound(source: str | Path | bytes, hint: str = "", longest_s: float | None = None) -> tuple[np.ndarray, int]:
    """(samples [n] or [n, channels] float32, sampling rate) of any file that soundfile, or else ffmpeg, can read.

    ValueError with one line otherwise; `hint` is what that calls the sound, by default the file's name. A sound of more
    than `longest_s` is refused, and no more than that is ever decoded.
    """
    name = hint or ("the sound" if isinstance(source, bytes) else Path(source).name)
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not data:
        raise ValueError(f"{name} is empty: give wav, flac, ogg or mp3")
    try:
        return _decoded(data, name, longest_s)
    except soundfile.SoundFileError:
        pass
    try:
        return _decoded(_wav_by_ffmpeg(data, longest_s), name, longest_s, cut=True)
    except FileNotFoundError:
        raise ValueError(f"{name} needs ffmpeg to be read: install it, or give wav, flac, ogg or mp3") from None
    except (subprocess.SubprocessError, soundfile.SoundFileError):
        raise ValueError(f"{name} is not a sound that can be read: give wav, flac, ogg or mp3") from None


def _decoded(data: bytes, name: str, longest_s: float | None, cut: bool = False) -> tuple[np.ndarray, int]:
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        rate = file.samplerate
        if longest_s is None:
            return file.read(dtype="float32"), rate
        if file.channels > 2:
            raise ValueError(f"{name} has {file.channels} channels: give one or two")
        if rate > LARGEST_RATE:
            raise ValueError(f"{name} has {rate} samples a second: give at most {LARGEST_RATE}")
        samples = file.read(math.ceil(longest_s * rate) + 1, dtype="float32")  # headers need not tell the truth
        if len(samples) > longest_s * rate:
            long = file.frames / rate
            raise ValueError(f"{name} is {long:.1f} s long{' or more' * cut}, the limit is {longest_s:g} s: cut it")
        return samples, rate


def _wav_by_ffmpeg(data: bytes, longest_s: float | None) -> bytes:
    limits = []
    if longest_s is not None:  # a moment more, so that what is too long is seen to be
        most_bytes = int((longest_s + 1) * LARGEST_RATE * 2 * 4)
        limits = ["-t", f"{longest_s + 1:g}", "-fs", str(most_bytes)]
    with tempfile.NamedTemporaryFile() as file:  # not a pipe: m4a may keep its index at the end
        file.write(data)
        file.flush()
        source = ["-protocol_whitelist", "file", "-format_whitelist", FFMPEG_READS, "-i", f"file:{file.name}"]
        return _ffmpeg([*source, "-vn", *limits, "-c:a", "pcm_f32le", "-f", "wav", "pipe:1"])


def _ffmpeg(arguments: list[str], given: bytes | None = None) -> bytes:
    """What ffmpeg writes. FileNotFoundError without ffmpeg, SubprocessError where it fails or takes too long."""
    command = ["ffmpeg", "-v", "error", "-nostdin", "-threads", "1", *arguments]
    stdin = {"stdin": subprocess.DEVNULL} if given is None else {"input": given}
    return subprocess.run(command, capture_output=True, check=True, timeout=FFMPEG_S, **stdin).stdout


def encode(samples: np.ndarray, rate: int, format: str) -> bytes:
    """Mono samples as a file of one of ENCODINGS (opus in Ogg, aac as ADTS, pcm16 without any header). ValueError
    where that cannot be had."""
    if format == "pcm16":
        return to_pcm16(samples)
    if format == "aac":
        raw = ["-f", "s16le", "-ar", str(rate), "-ac", "1", "-i", "pipe:0"]
        try:
            return _ffmpeg([*raw, "-c:a", "aac", "-f", "adts", "pipe:1"], to_pcm16(samples))
        except FileNotFoundError:
            raise ValueError("aac needs ffmpeg, which is not installed here: ask for mp3, opus, flac or wav") from None
    kinds = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "mp3": ("MP3", None), "opus": ("OGG", "OPUS")}
    if format not in kinds:
        raise ValueError(f"there is no format {format!r}: use {', '.join(ENCODINGS)}")
    container, subtype = kinds[format]
    written = io.BytesIO()
    with soundfile.SoundFile(written, "w", rate, 1, subtype, format=container) as file:
        for start in range(0, len(samples), BLOCK):  # some codecs keep what is given at once on the stack
            file.write(np.clip(samples[start : start + BLOCK], -1, 1))
    return written.getvalue()


def wav_header(rate: int) -> bytes:
    """Of a mono WAV of 16 bits whose length is not known yet: PCM16 may follow for as long as it likes."""
    unknown = (0xFFFFFFFF).to_bytes(4, "little")
    numbers = [(16, 4), (1, 2), (1, 2), (rate, 4), (2 * rate, 4), (2, 2), (16, 2)]
    form = b"".join(number.to_bytes(size, "little") for number, size in numbers)
    return b"RIFF" + unknown + b"WAVEfmt " + form + b"data" + unknown


def to_pcm16(samples: np.ndarray) -> bytes:
    """Little endian; what exceeds full scale is clipped."""
    return np.clip(np.round(np.asarray(samples, np.float32) * 32768), -32768, 32767).astype("<i2").tobytes()


def from_pcm16(data: bytes) -> np.ndarray:
    """float32 [n]; ValueError for half a sample."""
    if len(data) % 2:
        raise ValueError(f"PCM of 16 bits has 2 bytes a sample, but here are {len(data)} bytes: send whole samples")
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768


class Resampler:
    """A stream of mono sound at another sampling rate: `push` pieces of any size, then `finish`. What comes out does
    not depend on the pieces, is as long as what went in, and lags by 20 samples of the lower rate (1.25 ms at 16 kHz).

    Flat up to 0.9 of the lower rate's band, and 65 dB down from 1.1 of it.
    """

    def __init__(self, from_rate: int, to_rate: int) -> None:
        for rate in (from_rate, to_rate):
            if rate < 1:
                raise ValueError(f"sampling rate {rate}: give samples per second")
        common = math.gcd(from_rate, to_rate)
        self.up, self.down = up, down = to_rate // common, from_rate // common
        slower = max(up, down)
        if slower == 1:
            taps = np.ones(1)
        else:  # at the rate that both rates divide; the transition is a fifth of the lower band
            taps = up * firwin(40 * slower + 1, 1 / slower, window=("kaiser", kaiser_beta(65)))
        self._delay = (len(taps) - 1) // 2
        reach = -(-len(taps) // up)
        phases = np.zeros((reach, up))
        phases.reshape(-1)[: len(taps)] = taps
        self._phases = phases[::-1].T.copy()  # [up, reach]: for each phase, weights of the last `reach` samples
        self._begin()

    def push(self, samples: np.ndarray) -> np.ndarray:
        """What is ready by now, float32."""
        samples = np.asarray(samples, np.float64)
        self._given += len(samples)
        self._kept = np.concatenate([self._kept, samples])
        # output m needs the input up to number (m down + delay) // up
        return self._up_to((self._given * self.up - 1 - self._delay) // self.down + 1)

    def finish(self) -> np.ndarray:
        """The rest; silence is what follows. The next `push` begins another stream."""
        total = round(self._given * self.up / self.down)
        self._kept = np.concatenate([self._kept, np.zeros(self._phases.shape[1] + self.down)])
        rest = self._up_to(total)
        self._begin()
        return rest

    def _begin(self) -> None:
        reach = self._phases.shape[1]
        self._given = self._made = 0
        self._kept, self._first = np.zeros(reach), -reach  # of the input, from sample number `first`

    def _up_to(self, end: int) -> np.ndarray:
        reach = self._phases.shape[1]
        made = [np.zeros(0, np.float32)]
        while self._made < end:
            places = np.arange(self._made, min(end, self._made + BLOCK)) * self.down + self._delay
            windows = np.lib.stride_tricks.sliding_window_view(self._kept, reach)
            heard = windows[places // self.up - (reach - 1) - self._first]
            made.append(np.einsum("mt,mt->m", heard, self._phases[places % self.up]).astype(np.float32))
            self._made += len(places)
        needed = (self._made * self.down + self._delay) // self.up - (reach - 1)
        self._kept, self._first = self._kept[needed - self._first :], needed
        return np.concatenate(made)


def resampled(samples: np.ndarray, rate: int, to: int) -> np.ndarray:
    """A whole sound at another sampling rate."""
    resampler = Resampler(rate, to)
    return np.concatenate([resampler.push(samples), resampler.finish()])
