"""Sound files to samples: the one place of the app that knows of formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile


def read_sound(path: str | Path) -> tuple[np.ndarray, int]:
    """(samples [n] or [n, channels] float32, sampling rate) of any file that soundfile, or else ffmpeg, can read."""
    try:
        return soundfile.read(path, dtype="float32")
    except soundfile.SoundFileError:
        pass
    from pydub import AudioSegment  # imported late: it looks for ffmpeg and warns where there is none
    from pydub.exceptions import CouldntDecodeError

    try:
        segment = AudioSegment.from_file(path)
    except FileNotFoundError:
        raise ValueError(
            f"{Path(path).name} needs ffmpeg to be read: install it, or give wav, flac, ogg or mp3"
        ) from None
    except (CouldntDecodeError, IndexError, KeyError):
        raise ValueError(f"{Path(path).name} is not a sound that can be read: give wav, flac, ogg or mp3") from None
    samples = np.array(segment.get_array_of_samples(), np.float32).reshape(-1, segment.channels)
    return samples / float(1 << (8 * segment.sample_width - 1)), segment.frame_rate
