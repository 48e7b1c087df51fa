"""MoST: a speech-text mixture of experts. `most_core.load("assets/nano").answer("hello")` is all one needs to know."""

from most_core.assistant import (
    Done,
    Event,
    HeardDelta,
    Listener,
    Most,
    Reply,
    RoutingDelta,
    SpeechDelta,
    TextDelta,
)
from most_core.config import MostConfig
from most_core.generation import GenerationSettings
from most_core.loading import load, untrained
from most_core.model import MostForCausalLM, MostModel
from most_core.processing import Message
from most_core.speech import SpeechEncoder, Word
from most_core.trace import RoutingTrace
from most_core.vocoder import Vocoder

__all__ = [
    "Done",
    "Event",
    "GenerationSettings",
    "HeardDelta",
    "Listener",
    "Message",
    "Most",
    "MostConfig",
    "MostForCausalLM",
    "MostModel",
    "Reply",
    "RoutingDelta",
    "RoutingTrace",
    "SpeechDelta",
    "SpeechEncoder",
    "TextDelta",
    "Vocoder",
    "Word",
    "load",
    "untrained",
]
