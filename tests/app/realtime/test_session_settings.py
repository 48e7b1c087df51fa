"""Wishes of a session: granted and told back, or refused by name in one line, and then nothing changes."""

import contextlib
import json
import math
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.realtime.session_settings import Refused, SessionSettings
from app.turn import TurnSettings
from app.vad import VadSettings
from most_core import GenerationSettings

USUAL = GenerationSettings(max_new_tokens=1024)
FRESH = SessionSettings()


def wish(path, value):
    """{"a": {"b": value}} for "a.b"."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


def told(settings, path):
    found = settings.to_wire("sess_1", "most-nano")
    for name in path.split("."):
        found = found[name]
    return found


GRANTED = [
    ("instructions", "Be brief.", "Be brief."),
    ("instructions", "", ""),
    ("output_modalities", ["text"], ["text"]),
    ("output_modalities", ["audio"], ["audio"]),
    ("max_output_tokens", 7, 7),
    ("max_output_tokens", "inf", "inf"),
    ("audio.output.voice", "marin", "marin"),
    ("audio.output.speed", 1, 1.0),
    ("audio.output.format", {"type": "audio/pcm", "rate": 24000}, {"type": "audio/pcm", "rate": 24000}),
    ("audio.input.format", {"type": "audio/pcm"}, {"type": "audio/pcm", "rate": 24000}),
    ("audio.input.transcription", None, None),
    ("audio.input.transcription", {"model": "whisper-1"}, {"model": "most-nano", "language": "en"}),
    ("audio.input.noise_reduction", None, None),
    ("audio.input.turn_detection", None, None),
    ("tools", [], []),
    ("tool_choice", "none", "auto"),
    ("most.routing", True, True),
    ("most.record", True, True),
    ("most.captions", True, True),
    ("most.half_duplex", True, True),
    ("most.hands_free", False, False),
    ("most.history", 5, 5),
    ("most.temperature", 0.7, 0.7),
    ("most.seed", 42, 42),
    ("most.seed", None, None),
]
for name, value in (
    ("threshold", 0.8),
    ("prefix_padding_ms", 120),
    ("silence_duration_ms", 700),
    ("create_response", False),
    ("interrupt_response", False),
):
    GRANTED.append((f"audio.input.turn_detection.{name}", value, value))
for name, value in (("tentative_ms", 150), ("interrupt_ms", 300), ("longest_ms", 20_000), ("echo_guard_ms", 0)):
    GRANTED.append((f"most.turns.{name}", value, value))
for name, value in (("aggressiveness", 3), ("hangover_ms", 60), ("start_window", 5), ("background_s", 2)):
    GRANTED.append((f"most.vad.{name}", value, value))


@pytest.mark.parametrize(("path", "value", "back"), GRANTED)
def test_a_wish_is_granted_and_told_back(path, value, back):
    settings = FRESH.updated(wish(path, value))
    assert told(settings, path) == back
    json.dumps(settings.to_wire("sess_1", "most-nano"), allow_nan=False)
    assert settings.updated({}) == settings


NESTED = {"a": [{"b": [[[{}]]]}]}
REFUSED = [
    (path, value)
    for path, values in {
        "instructions": (5, None, True, [], NESTED, "x" * 4001, "\ud800"),
        "output_modalities": ("audio", [], ["audio", "text"], None, 1, [["audio"]], NESTED),
        "max_output_tokens": (0, -1, 1.5, True, "5", math.nan, math.inf, 10**400, 100_001, [], NESTED),
        "type": ("transcription", None, 1, NESTED),
        "model": (1, None, "x" * 201, NESTED),
        "tools": ([{"type": "function"}], {}, "x"),
        "tool_choice": ("required", {"type": "function"}, 1),
        "tracing": ("auto", {}),
        "truncation": ("disabled", {}),
        "include": (["item.input_audio_transcription.logprobs"], "x"),
        "audio": (None, 1, [], "pcm"),
        "audio.input": (None, [], 1),
        "audio.input.format": (None, "pcm16", []),
        "audio.input.format.rate": (16000, 44100, "24000", True, math.nan, 10**400),
        "audio.input.format.type": ("audio/pcmu", "audio/pcma", None, 1),
        "audio.output.format.rate": (8000,),
        "audio.output.speed": (1.5, "1", True, math.nan),
        "audio.output.voice": (None, 1, {"id": "x"}, "x" * 65, "\udfff"),
        "audio.input.noise_reduction": ({"type": "near_field"}, 1),
        "audio.input.transcription": ("whisper-1", 1, []),
        "audio.input.transcription.language": ("de", 1),
        "audio.input.transcription.prompt": ("names", 1),
        "audio.input.turn_detection": ("server_vad", 1, [], True),
        "audio.input.turn_detection.type": ("none", 1, NESTED),
        "audio.input.turn_detection.threshold": (-0.1, 1.1, "0.5", True, math.nan, math.inf, 10**400, NESTED),
        "audio.input.turn_detection.prefix_padding_ms": (-1, 5001, 0.5, "300", True, math.nan, 10**400),
        "audio.input.turn_detection.silence_duration_ms": (199, 10_001, 300.5, "500", True, math.inf, -(10**400)),
        "audio.input.turn_detection.create_response": (1, "true", 0, []),
        "audio.input.turn_detection.interrupt_response": (1, "true", 0, []),
        "audio.input.turn_detection.idle_timeout_ms": (5000, True),
        "audio.input.turn_detection.eagerness": ("always", 1),
        "most": (None, 1, []),
        "most.routing": (1, "yes", None),
        "most.record": (1, "yes", None),
        "most.captions": (0, None),
        "most.half_duplex": ("on",),
        "most.hands_free": (None,),
        "most.history": (-1, 1001, 0.5, True, None, math.nan, 10**400),
        "most.temperature": (-0.1, 2.1, None, True, math.nan, math.inf, 10**400, "1"),
        "most.seed": (2**63, -(2**63) - 1, 0.5, True, "1", math.nan, 10**400),
        "most.turns": (None, 1, []),
        "most.turns.tentative_ms": (0, -1, 10**7, "1", True, None, math.nan, 10**400),
        "most.turns.endpoint_max_ms": (1,),
        "most.vad.aggressiveness": (4, 1.5, -1, True, None),
        "most.vad.start_frames": (5, 0, math.inf),
        "most.vad.release_db": (39,),
    }.items()
    for value in values
]


@pytest.mark.parametrize(("path", "value"), REFUSED)
def test_what_cannot_be_granted_is_refused_by_its_name(path, value):
    with pytest.raises(Refused) as refused:
        FRESH.updated(wish(path, value))
    message = str(refused.value)
    assert refused.value.param.startswith("session." + ".".join(path.split(".")[:2]))
    assert path.split(".")[-1] in message
    assert "\n" not in message
    assert len(message) < 900


@pytest.mark.parametrize(
    "where", ["", "audio", "audio.input", "audio.output", "audio.input.turn_detection", "most", "most.turns"]
)
@pytest.mark.parametrize("name", ["volume", "", "x" * 10_000, "Instructions", "\n"])
def test_unknown_fields_are_refused(where, name):
    unknown = {name: 1}
    with pytest.raises(Refused) as refused:
        FRESH.updated(wish(where, unknown) if where else unknown)
    assert refused.value.code == "unknown"
    assert len(refused.value.param) <= 80
    assert len(str(refused.value)) < 900
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("given", [None, 1, "x", [], True, math.nan])
def test_only_an_object_holds_wishes(given):
    with pytest.raises(Refused):
        FRESH.updated(given)


def test_nothing_changes_when_one_of_several_wishes_is_refused():
    before = FRESH.to_wire("s", "m")
    with pytest.raises(Refused):
        FRESH.updated({"instructions": "Be brief.", "most": {"routing": True, "seed": "x"}})
    with pytest.raises(Refused):
        FRESH.updated({"most": {"turns": {"endpoint_min_ms": 700}, "routing": True}})  # alone they do not go together
    assert FRESH.to_wire("s", "m") == before
    assert SessionSettings() == FRESH


def test_the_silence_that_is_named_ends_every_turn():
    turns = FRESH.updated(wish("audio.input.turn_detection.silence_duration_ms", 900)).turn_settings()
    assert (turns.endpoint_min_ms, turns.endpoint_start_ms, turns.endpoint_max_ms) == (900, 900, 900)
    assert turns.short_extra_ms == 0
    assert FRESH.turn_settings() == TurnSettings()


@pytest.mark.parametrize("silence", [200, 201, 350, 500, 800, 10_000])
def test_any_silence_that_may_be_named_goes_with_the_other_settings(silence):
    turns = FRESH.updated(wish("audio.input.turn_detection.silence_duration_ms", silence)).turn_settings()
    assert turns.endpoint_min_ms == silence
    assert turns.tentative_ms <= silence


def test_padding_and_threshold_reach_the_ears():
    wished = FRESH.updated(wish("audio.input.turn_detection", {"prefix_padding_ms": 40, "threshold": 1}))
    assert wished.turn_settings().preroll_ms == 40
    assert wished.vad_settings().margin_db == 2 * VadSettings.margin_db
    assert FRESH.vad_settings() == VadSettings()
    for threshold in (0, 0.01, 0.25, 0.5, 0.75, 1):
        FRESH.updated(wish("audio.input.turn_detection.threshold", threshold)).vad_settings()


def test_our_own_settings_win_over_what_openais_imply():
    wished = FRESH.updated(
        {"audio": {"input": {"turn_detection": {"prefix_padding_ms": 40}}}, "most": {"turns": {"preroll_ms": 90}}}
    )
    assert wished.turn_settings().preroll_ms == 90


def test_generation_follows_the_wishes_but_never_beyond_the_models_limit():
    talk = FRESH.updated(
        {"max_output_tokens": 5, "output_modalities": ["text"], "most": {"temperature": 1, "seed": 3}}
    ).talk(USUAL)
    assert (talk.generation.max_new_tokens, talk.generation.speak) == (5, False)
    assert (talk.generation.temperature, talk.generation.seed) == (1, 3)
    assert FRESH.updated({"max_output_tokens": 100_000}).talk(USUAL).generation.max_new_tokens == 1024
    assert FRESH.talk(USUAL).generation.max_new_tokens == 1024


def test_speech_is_answered_by_itself_only_where_that_is_wished():
    assert FRESH.talk(USUAL).answer_speech
    assert not FRESH.updated(wish("audio.input.turn_detection", None)).talk(USUAL).answer_speech
    assert not FRESH.updated(wish("audio.input.turn_detection.create_response", False)).talk(USUAL).answer_speech


def test_detection_that_was_switched_off_comes_back_with_usual_settings_and_keeps_what_it_had_else():
    tuned = FRESH.updated(wish("audio.input.turn_detection", {"threshold": 0.9, "silence_duration_ms": 600}))
    kept = tuned.updated(wish("audio.input.turn_detection.create_response", False))
    assert (kept.detection.threshold, kept.detection.silence_duration_ms) == (0.9, 600)
    other = kept.updated(wish("audio.input.turn_detection", {"type": "semantic_vad", "eagerness": "high"}))
    assert other.detection.threshold == 0.5
    assert told(other, "audio.input.turn_detection.type") == "semantic_vad"
    again = kept.updated(wish("audio.input.turn_detection", None)).updated(wish("audio.input.turn_detection", {}))
    assert again.detection == FRESH.detection


NAMES = sorted(
    {name for path, _, _ in GRANTED for name in path.split(".")}
    | {i.name for k in (TurnSettings, VadSettings) for i in fields(k)}
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from([200, 500, 10**400, -(10**400), "auto", "inf", "server_vad", "audio/pcm", 24000, 1, ["audio"]]),
    st.text(max_size=5),
)
ANY = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@hypothesis_settings(max_examples=400, deadline=None)
@given(st.one_of(ANY, st.builds(wish, st.sampled_from([path for path, _, _ in GRANTED]), ANY)))
def test_any_wish_is_granted_or_refused(given):
    with contextlib.suppress(Refused):
        settings = FRESH.updated(given)
        json.dumps(settings.to_wire("sess_1", "most-nano"), allow_nan=False)
        settings.talk(USUAL)
