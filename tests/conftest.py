"""Expensive objects that several test files share. All of them are made once and must not be changed by a test."""

import numpy as np
import pytest
import torch

import most_core
from most_core import GenerationSettings, MostConfig, MostForCausalLM

torch.set_num_threads(1)


def seeded_model(seed=0, **overrides):
    """A tiny random decoder in eval mode; the same for the same arguments."""
    torch.manual_seed(seed)
    return MostForCausalLM(MostConfig.tiny(**overrides)).eval()


@pytest.fixture(scope="session")
def make_model():
    """`make_model(**config)`: a seeded tiny decoder of its own for this test."""
    return seeded_model


@pytest.fixture(scope="session")
def model():
    """The shared tiny decoder; read only."""
    return seeded_model()


@pytest.fixture(scope="session")
def most():
    """The shared tiny assistant: hears, answers, speaks; read only."""
    return most_core.untrained("tiny")


@pytest.fixture(scope="session")
def wave():
    """0.6 seconds of a rising tone, float32 at 16 kHz."""
    time = np.arange(9600) / 16000
    return (0.4 * np.sin(2 * np.pi * (200 + 400 * time) * time)).astype(np.float32)


@pytest.fixture(scope="session")
def short():
    """Settings for a reply of a few words and a little sound."""
    return GenerationSettings(
        max_new_tokens=40, max_heard_tokens=6, max_sentence_tokens=5, max_sentence_units=12, temperature=1.0, seed=3
    )
