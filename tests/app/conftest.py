"""A model whose replies are over in a moment, and sound like speech, for the tests of the realtime server."""

import numpy as np
import pytest
import torch
from scipy.signal import lfilter

import most_core
from app.audio import WIRE_RATE, to_pcm16
from most_core import GenerationSettings

torch.set_num_threads(1)


def babbled(seconds, seed=0, rate=WIRE_RATE):
    """Buzz with the ups and downs of syllables: what every detector takes for speech."""
    time = np.arange(round(seconds * rate)) / rate
    random = np.random.default_rng(seed)
    buzz = (time * 120 % 1 < 0.1) - 0.1 + 0.02 * random.standard_normal(len(time))
    for formant in (500, 1500):
        radius, angle = 0.97, 2 * np.pi * formant / rate
        buzz = lfilter([1], [1, -2 * radius * np.cos(angle), radius**2], buzz)
    syllables = 0.2 + np.abs(np.sin(2 * np.pi * 2 * time))
    return (0.3 * buzz / np.abs(buzz).max() * syllables).astype(np.float32)


@pytest.fixture(scope="session")
def babble():
    """`babble(seconds, seed=0)`: speech for a socket, PCM16 at 24 kHz."""
    return lambda seconds, seed=0: to_pcm16(babbled(seconds, seed))


@pytest.fixture(scope="session")
def quick():
    """A tiny assistant that says little: two words heard, two said, a little sound; read only."""
    most = most_core.untrained("tiny")
    most.usual_settings = GenerationSettings(
        max_new_tokens=16, max_heard_tokens=2, max_sentence_tokens=2, max_sentence_units=6
    )
    return most
