"""`Most` from the outside: events, replies, timings, routing, listening, and odd things people send."""

import dataclasses
import threading
import time
from itertools import chain

import numpy as np
import pytest
import torch

import most_core
from most_core import (
    Done,
    GenerationSettings,
    HeardDelta,
    Most,
    RoutingDelta,
    SpeechDelta,
    TextDelta,
    assistant,
)
from most_core.processing import SPEAK, TRANSCRIBE, MostProcessor

STAGES = ["encode", "prefill", "heard", "text", "units", "vocoder"]
MOMENTS = ["first_unit", "first_sound"]


@pytest.fixture(autouse=True)
def every_slot_comes_back(most):
    yield
    assert sorted(most.loop._free) == [0, 1, 2, 3]


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


def joined(kind, events):
    return "".join(event.text for event in of(kind, events))


def sentences(most, events_reply_units, trace_ids):
    """Units of each [Audio] ... [/Audio] stretch of a reply, from the ids that were routed."""
    groups, current = [], None
    for token in trace_ids:
        if token == most.tokens.audio_start:
            current = []
            groups.append(current)
        elif token == most.tokens.audio_end:
            current = None
        elif current is not None:
            current.append(token - most.tokens.first_unit)
    assert list(chain(*groups)) == events_reply_units[: sum(map(len, groups))]
    return groups


@pytest.fixture(scope="module")
def events(most, wave, short):
    """All events of one spoken question, with routing."""
    return list(most.stream(wave, settings=short, record_routing=True))


@pytest.fixture(scope="module")
def reply(events):
    return events[-1].reply


# -- events ------------------------------------------------------------------------------------------------------------


def test_done_comes_last_and_once(events):
    assert isinstance(events[-1], Done)
    assert len(of(Done, events)) == 1


def test_what_was_heard_comes_before_the_answer_and_text_before_its_sound(events):
    kinds = [type(event) for event in events if not isinstance(event, RoutingDelta | Done)]
    assert {HeardDelta, TextDelta, SpeechDelta} == set(kinds)
    last_heard = max(i for i, kind in enumerate(kinds) if kind is HeardDelta)
    assert last_heard < kinds.index(TextDelta) < kinds.index(SpeechDelta)


def test_deltas_join_to_the_fields_of_the_reply(events, reply):
    assert joined(HeardDelta, events).strip() == reply.heard
    assert joined(TextDelta, events).strip() == reply.text
    assert reply.heard
    assert reply.text
    assert not any(event.provisional for event in of(HeardDelta, events) + of(RoutingDelta, events))


def test_heard_and_text_do_not_begin_with_space(events):
    assert not joined(HeardDelta, events).startswith(" ")
    assert not joined(TextDelta, events).startswith(" ")


def test_sound_deltas_join_to_the_waveform(events, reply):
    sound = of(SpeechDelta, events)
    assert np.array_equal(np.concatenate([event.pcm for event in sound]), reply.waveform)
    assert all(event.pcm.dtype == np.float32 and event.pcm.ndim == 1 and len(event.pcm) for event in sound)
    assert {event.sample_rate for event in sound} == {reply.sample_rate} == {16000}


def test_waveform_is_the_vocoders_sound_of_each_sentences_units(most, reply):
    ids = reply.trace.id[reply.trace.role == "assistant"].tolist()
    groups = sentences(most, reply.units, ids)
    rest = reply.units[sum(map(len, groups)) :]
    if rest:  # the very last token of a reply that ran out of length is never routed
        groups[-1] += rest
    assert len(groups) > 1
    expected = np.concatenate([most.vocoder.synthesize(group) for group in groups])
    assert reply.waveform.shape == expected.shape == (640 * len(reply.units),)
    assert np.abs(reply.waveform - expected).max() < 1e-4


def test_a_written_question_is_answered_without_hearing(most, short):
    events = list(most.stream("hello", settings=short))
    assert not of(HeardDelta, events)
    assert not of(RoutingDelta, events)
    reply = events[-1].reply
    assert reply.heard == "hello"
    assert reply.trace is None
    assert reply.text


def test_answer_is_stream_collected(most, wave, short, reply):
    again = most.answer(wave, settings=short)
    assert (again.text, again.units, again.heard, again.finish_reason) == (
        reply.text,
        reply.units,
        reply.heard,
        reply.finish_reason,
    )
    assert np.array_equal(again.waveform, reply.waveform)


def test_silent_settings_give_text_alone_as_long_as_it_takes(most):
    settings = GenerationSettings(speak=False, max_sentence_tokens=4, max_new_tokens=30)
    reply = most.answer("hello", settings=settings, record_routing=True)
    assert (reply.units, len(reply.waveform), reply.sample_rate) == ([], 0, 16000)
    assert reply.finish_reason == "length"
    assert np.isfinite(reply.trace.logprob).sum() == 29, "the cap on spoken sentences does not cut it"
    assert reply.text


def test_confidence_is_a_probability(most, wave, short, reply):
    assert 0 < reply.confidence <= 1
    assert 0 < most.answer("hello", settings=short).confidence <= 1


def test_a_reply_without_words_has_no_confidence(most, wave):
    assert most.answer(wave, settings=GenerationSettings(max_new_tokens=1)).confidence == 0


@pytest.mark.parametrize("limit", [1, 2, 7, 12])
def test_length_is_told_and_kept(most, wave, limit):
    options = GenerationSettings(max_new_tokens=limit, max_heard_tokens=2, max_sentence_tokens=2)
    reply = most.answer(wave, settings=options, record_routing=True)
    assert reply.finish_reason == "length"
    assert len(reply.waveform) == 640 * len(reply.units)
    assert np.isfinite(reply.trace.logprob).sum() == limit - 1  # the last token is never routed


def test_a_seed_makes_replies_reproducible(most, short):
    first, second = (most.answer("hello", settings=short) for _ in range(2))
    assert (first.text, first.units, first.confidence) == (second.text, second.units, second.confidence)


# -- timings -----------------------------------------------------------------------------------------------------------


def test_a_spoken_reply_has_all_timings(reply):
    assert set(reply.timings) == {*STAGES, *MOMENTS, "total"}
    assert all(value >= 0 for value in reply.timings.values())
    assert all(reply.timings[stage] > 0 for stage in STAGES)


def test_stages_add_up_to_no_more_than_the_total(reply):
    assert sum(reply.timings[stage] for stage in STAGES) <= reply.timings["total"]


def test_first_unit_comes_before_first_sound_and_the_end(reply):
    assert 0 < reply.timings["first_unit"] <= reply.timings["first_sound"] <= reply.timings["total"]


def test_captions_are_searched_for_when_all_sound_is_out(most, wave, short, monkeypatch):
    searched = []
    encode = most.encoder.encode

    def listened(sound):
        encoded = encode(sound)
        encoded.hear = lambda: searched.append("words") or []
        return encoded

    monkeypatch.setattr(most.encoder, "encode", listened)
    for event in most.stream(wave, settings=short):
        assert bool(searched) == isinstance(event, Done)
    assert searched == ["words"]


def test_a_reply_without_sound_has_all_stages_but_no_moment_of_sound(most):
    timings = most.answer("hello", settings=GenerationSettings(speak=False, max_sentence_tokens=3)).timings
    assert set(timings) == {*STAGES, "total"}
    assert timings["heard"] == timings["units"] == timings["vocoder"] == 0


def test_total_agrees_with_the_wall_clock(most, wave, short):
    start = time.perf_counter()
    timings = most.answer(wave, settings=short).timings
    assert timings["total"] <= 1e3 * (time.perf_counter() - start)


# -- routing -----------------------------------------------------------------------------------------------------------


def test_routing_has_every_prompt_token_and_every_routed_reply_token(most, wave, reply):
    prompt = most.processor.prompt(most_core.processing.as_messages(wave))
    trace = reply.trace
    assert trace.id[: len(prompt.ids)].tolist() == prompt.ids
    units = [i - most.tokens.first_unit for i in trace.id[len(prompt.ids) :] if most.tokens.is_audio(i)]
    assert units == reply.units[: len(units)]
    assert len(reply.units) - len(units) <= 1
    assert trace.num_tokens == len(prompt.ids) + np.isfinite(trace.logprob).sum()


def test_routing_deltas_join_to_the_trace(events, reply):
    pieces = of(RoutingDelta, events)
    for name in ("token", "id", "modality", "chosen"):
        joined = np.concatenate([getattr(piece.tokens, name) for piece in pieces])
        assert np.array_equal(joined, getattr(reply.trace, name))


def test_no_token_leaves_its_experts(reply):
    assert reply.trace.leakage == 0
    audio = reply.trace.modality == 1
    assert (reply.trace.chosen[audio] >= 4).all()
    assert (reply.trace.chosen[~audio] < 4).all()
    assert audio.any()


def test_trace_spells_its_tokens_and_knows_their_probability(most, reply):
    trace = reply.trace
    assert trace.text.tolist() == [most.processor.spelling(i) for i in trace.id.tolist()]
    generated = np.isfinite(trace.logprob).tolist()
    assert any(generated)
    assert generated == sorted(generated), "the prompt comes first and has no probabilities"
    assert set(trace.role[generated]) == {"assistant"}


def test_recording_changes_no_token(most, wave, short, reply):
    plain = most.answer(wave, settings=short)
    assert (plain.text, plain.heard, plain.units, plain.confidence) == (
        reply.text,
        reply.heard,
        reply.units,
        reply.confidence,
    )
    assert plain.trace is None


@pytest.mark.parametrize("mode", ["next", "zero"])
def test_a_knocked_out_expert_is_never_used(most, short, mode):
    settings = GenerationSettings(**{**vars(short), "knock_out_mode": mode})
    whole = most.answer("hello", settings=settings, record_routing=True).trace
    off = int(np.bincount(whole.chosen[:, 0].ravel()[whole.chosen[:, 0].ravel() < 8]).argmax())
    knocked = most.answer("hello", settings=settings, record_routing=True, knock_out=[(1, off)]).trace
    assert (whole.chosen[:, 0] == off).any()
    assert not (knocked.chosen[:, 0] == off).any()


def test_a_knock_out_is_forgotten_with_its_reply(most, short):
    before = most.answer("hello", settings=short).text
    most.answer("hello", settings=short, knock_out=[(1, 0), (2, 1)])
    assert most.answer("hello", settings=short).text == before


def test_an_impossible_knock_out_is_refused_in_one_line(most):
    with pytest.raises(ValueError, match="no expert 0 in layer 0") as error:
        most.answer("hello", knock_out=[(0, 0)])
    assert "\n" not in str(error.value)


# -- conversations -----------------------------------------------------------------------------------------------------


def test_history_of_speech_and_text_is_part_of_the_prompt(most, wave, short):
    audio = {"type": "audio", "audio": wave, "sampling_rate": 16000}
    history = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [audio]},
        {"role": "assistant", "content": [{"type": "text", "text": "hi"}, audio]},
    ]
    reply = most.answer("and now?", history=history, settings=short, record_routing=True)
    ids = most.processor.prompt([*history, {"role": "user", "content": "and now?"}]).ids
    assert reply.trace.id[: len(ids)].tolist() == ids
    assert reply.heard == "and now?"


def test_a_string_that_looks_like_a_path_is_text(most, short, tmp_path):
    path = str(tmp_path)
    reply = most.answer(path, settings=short, record_routing=True)
    ids = most.processor.prompt([{"role": "user", "content": path}]).ids
    assert reply.trace.id[: len(ids)].tolist() == ids


def test_sampling_rate_of_a_bare_waveform_can_be_given(most, wave, short):
    at_8k = most.answer(wave[::2], sampling_rate=8000, settings=short, record_routing=True)
    frames = int((at_8k.trace.id == most.tokens.frame).sum())
    assert frames == len(most.processor.encoder.features(wave))


def test_a_conversation_longer_than_the_context_is_refused_in_one_line(most):
    history = [{"role": "user", "content": "x" * 2000}, {"role": "assistant", "content": "y"}]
    with pytest.raises(ValueError, match="tokens long, the context holds 1024: drop the oldest turns") as error:
        most.answer("hello", history=history)
    assert "\n" not in str(error.value)


def test_a_context_that_fills_up_ends_the_reply_with_length(most):
    reply = most.answer("x" * 1010, settings=GenerationSettings(speak=False, stop_ids=(most.tokens.heard_end,)))
    assert reply.finish_reason in ("length", "stop")
    long = most.answer("x" * 1015)
    assert long.finish_reason == "length"


# -- the other verbs ---------------------------------------------------------------------------------------------------


def test_transcribe_decodes_freely_under_the_asr_prompt(most, wave, monkeypatch):
    seen = []
    inner = most.processor.prompt
    monkeypatch.setattr(
        most.processor, "prompt", lambda messages, **options: seen.append(messages) or inner(messages, **options)
    )
    said = most.transcribe(wave)
    assert isinstance(said, str)
    [[message]] = seen
    assert message["content"][0] == {"type": "text", "text": TRANSCRIBE}
    assert message["content"][1]["audio"] is wave
    assert most.transcribe(wave) == said


def test_a_transcript_comes_piece_by_piece_and_stops_when_cancelled(most, wave):
    whole = most.transcribe(wave)
    pieces = [event.text for event in most.stream_transcript(wave)]
    assert len(pieces) > 1
    assert "".join(pieces).strip() == whole
    cancel = threading.Event()
    stream = most.stream_transcript(wave, cancel=cancel)
    next(stream)
    cancel.set()
    assert list(stream) == []
    assert len(most.loop._free) == most.loop.decoder.slots


def test_speech_comes_piece_by_piece_and_stops_when_cancelled(most):
    whole, _ = most.speak("One. Two.")
    np.testing.assert_array_equal(np.concatenate([event.pcm for event in most.stream_speech("One. Two.")]), whole)
    cancel = threading.Event()
    stream = most.stream_speech("One. Two.", cancel=cancel)
    next(stream)
    cancel.set()
    assert list(stream) == []
    assert len(most.loop._free) == most.loop.decoder.slots


def test_stages_up_to_a_sound_explain_when_it_came(events, reply):
    sounds = [event for event in events if isinstance(event, SpeechDelta)]
    first, last = sounds[0].stages, sounds[-1].stages
    assert list(first) == list(STAGES)
    assert sum(first.values()) == pytest.approx(reply.timings["first_sound"], rel=0.05, abs=2)
    assert first["units"] < last["units"] <= reply.timings["units"]


def test_speak_reads_each_sentence_and_joins_the_sound(most, monkeypatch):
    seen = []
    inner = most.processor.prompt

    def watch(messages, **options):
        seen.append(messages[0]["content"])
        return inner(messages, **options)

    monkeypatch.setattr(most.processor, "prompt", watch)
    one, rate = most.speak("Hello there.")
    assert rate == 16000
    assert one.dtype == np.float32
    assert len(one) % 640 == 0
    assert len(one)
    both, _ = most.speak("Hello there. How are you?")
    assert np.array_equal(both[: len(one)], one)
    assert len(both) > len(one)
    assert seen == [f"{SPEAK} Hello there."] * 2 + [f"{SPEAK} How are you?"]


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_there_must_be_something_to_speak(most, text):
    with pytest.raises(ValueError, match="no text to speak"):
        most.speak(text)


# -- cancelling --------------------------------------------------------------------------------------------------------


def test_cancelling_ends_with_a_cancelled_reply_that_keeps_what_was_said(most, short):
    cancel, texts = threading.Event(), []
    for event in most.stream("hello", settings=GenerationSettings(), cancel=cancel):
        if isinstance(event, TextDelta):
            texts.append(event.text)
            if len(texts) == 3:
                cancel.set()
    assert event.reply.finish_reason == "cancelled"
    assert event.reply.text == "".join(texts).strip()
    assert len(texts) == 3


def test_closing_the_iterator_frees_its_place_at_once(most):
    running = [most.stream("hello") for _ in range(4)]
    for stream in running:
        next(stream)
    assert most.loop._free == []
    for stream in running:
        stream.close()
    assert len(most.loop._free) == 4


def test_who_is_cancelled_while_waiting_for_a_place_gets_an_empty_cancelled_reply(most):
    running = [most.stream("hello") for _ in range(4)]
    for stream in running:
        next(stream)
    cancel = threading.Event()
    cancel.set()
    reply = most.answer("hello", cancel=cancel, record_routing=True)
    for stream in running:
        stream.close()
    assert (reply.finish_reason, reply.text, reply.units) == ("cancelled", "", [])
    assert reply.trace.num_tokens == 0


def test_several_conversations_at_once_do_not_mix(most, short):
    questions = ["hello", "what time is it", "one two three", "jump"]
    alone = [most.answer(question, settings=short) for question in questions]
    streams = [most.stream(question, settings=short) for question in questions]
    replies = [None] * 4
    while any(reply is None for reply in replies):
        for i, stream in enumerate(streams):
            event = next(stream, None)
            if isinstance(event, Done):
                replies[i] = event.reply
    assert [(r.text, r.units) for r in replies] == [(r.text, r.units) for r in alone]


# -- listening ---------------------------------------------------------------------------------------------------------


def pushed(listener, wave, size=1600):
    events = []
    for start in range(0, len(wave), size):
        events += listener.push(wave[start : start + size])
    return events


def test_listening_to_all_and_committing_equals_answer(most, wave, short, reply):
    listener = most.listen(settings=short)
    pushed(listener, wave)
    committed = list(listener.commit())[-1].reply
    assert (committed.text, committed.heard, committed.units) == (reply.text, reply.heard, reply.units)
    assert np.array_equal(committed.waveform, reply.waveform)


def test_listening_with_history_equals_answer_with_history(most, wave, short):
    history = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    listener = most.listen(history, settings=short)
    pushed(listener, wave)
    expected = most.answer(wave, history=history, settings=short)
    assert list(listener.commit())[-1].reply.units == expected.units


def test_what_is_heard_while_listening_is_provisional(most, wave):
    listener = most.listen(record_routing=True)
    events = pushed(listener, wave)
    assert of(HeardDelta, events)
    assert of(RoutingDelta, events)
    assert all(event.provisional for event in events)
    assert {type(event) for event in events} == {HeardDelta, RoutingDelta}


def test_routing_while_listening_is_sent_only_if_asked_for(most, wave):
    assert {type(event) for event in pushed(most.listen(), wave)} == {HeardDelta}


def test_little_sound_is_not_yet_worth_hearing(most, wave):
    assert most.listen().push(wave[:1600]) == []


def test_a_provisional_hearing_is_the_answers_own(most, wave):
    [event] = most.listen().push(wave)
    whole = most.answer(wave, settings=GenerationSettings(max_new_tokens=64, speak=False))
    assert event.text == whole.heard[: len(event.text)]


def test_discarded_sound_is_forgotten(most, wave, short, reply):
    listener = most.listen(settings=short)
    pushed(listener, -wave[::-1])
    listener.discard()
    pushed(listener, wave)
    assert list(listener.commit())[-1].reply.units == reply.units


@pytest.mark.parametrize("discarded", [False, True])
def test_commit_without_sound_is_refused(most, wave, discarded):
    listener = most.listen()
    if discarded:
        listener.push(wave)
        listener.discard()
    with pytest.raises(ValueError, match="nothing was said: push sound before commit"):
        listener.commit()


# -- parts that are missing --------------------------------------------------------------------------------------------


def test_a_model_without_encoder_answers_text_and_refuses_speech(most, wave, short):
    reader = Most(most.model, most.loop.decoder, MostProcessor(most.config, most.processor.tokenizer), most.vocoder)
    assert reader.answer("hello", settings=short).text == most.answer("hello", settings=short).text
    with pytest.raises(ValueError, match="loaded without a speech encoder"):
        reader.answer(wave)
    with pytest.raises(ValueError, match="loaded without a speech encoder"):
        reader.transcribe(wave)


def test_a_model_without_vocoder_only_writes(most, short):
    mute = Most(most.model, most.loop.decoder, most.processor)
    reply, written = (m.answer("hello", settings=dataclasses.replace(short, speak=m is mute)) for m in (mute, most))
    assert (reply.text, reply.units) == (written.text, [])
    assert (len(reply.waveform), reply.sample_rate) == (0, 16000)
    assert not {"first_unit", "first_sound"} & set(reply.timings)
    with pytest.raises(ValueError, match="without a vocoder"):
        mute.speak("hello")


# -- odd things that people send ---------------------------------------------------------------------------------------

TONE = np.sin(np.arange(4000) * 0.3)


@pytest.mark.parametrize(
    ("given", "rate", "message"),
    [
        (np.full(4000, np.nan), 16000, "the waveform holds nan at sample 0"),
        (np.where(np.arange(4000) == 7, np.inf, TONE), 16000, "the waveform holds inf at sample 7"),
        (np.zeros(0, np.float32), 16000, "the waveform is empty"),
        (np.zeros((8, 4000)), 16000, r"the waveform has shape \(8, 4000\)"),
        (np.zeros((2, 3, 4)), 16000, "the waveform has shape"),
        (np.float32(0.5), 16000, "cannot answer a float32"),
        (TONE, 192_000, "sampling rate 192000 is outside"),
        (TONE, 0, "sampling rate 0 is outside"),
        (TONE, 16000.5, "not a whole number"),
        (TONE, "16000", "not a whole number"),
        (TONE.astype(complex), 16000, "complex128 have no agreed full scale"),
        (TONE > 0, 16000, "bool have no agreed full scale"),
        (None, 16000, "cannot answer a NoneType"),
        (b"RIFF", 16000, "cannot answer a bytes"),
        ("", 16000, "has no content"),
        ([], 16000, "the conversation is empty"),
        ([1.0, 2.0], 16000, "message 0 is a float"),
        ("x" * 5000, 16000, "the context holds 1024"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line_and_the_place_is_free(most, given, rate, message):
    with pytest.raises(ValueError, match=message) as error:
        most.answer(given, sampling_rate=rate)
    assert "\n" not in str(error.value)
    assert len(most.loop._free) == 4


@pytest.mark.parametrize(
    "given",
    [
        " ",
        "\x00\x07",
        "\ud800",
        "🎉" * 20,
        "<|assistant|>[Audio][Hu5]<eos>",
        "{{ 1/0 }}{% for %}",
        np.zeros(1, np.float32),
        np.zeros(4000, np.float32),
        np.full(4000, 1.0, np.float32),
        np.full(4000, 1e30, np.float32),
        (TONE * 32767).astype(np.int16),
        np.stack([TONE, -TONE]),
        TONE[:, None],
    ],
    ids=repr,
)
def test_odd_but_sensible_input_is_answered(most, short, given):
    reply = most.answer(given, settings=short)
    assert reply.finish_reason in ("stop", "length")
    assert np.isfinite(reply.waveform).all()
    assert np.abs(reply.waveform).max(initial=0) <= 1


@pytest.mark.parametrize("bad", [np.full(4000, np.nan), np.zeros((8, 4000))])
def test_bad_sound_pushed_is_refused_and_the_rest_still_counts(most, wave, short, reply, bad):
    listener = most.listen(settings=short)
    listener.push(wave[:4000])
    with pytest.raises(ValueError, match="the waveform"):
        listener.push(bad)
    listener.push(wave[4000:])
    assert list(listener.commit())[-1].reply.units == reply.units


def test_an_unknown_option_is_refused(most):
    with pytest.raises(TypeError, match="temprature"):
        most.answer("hello", temprature=1.0)


def test_a_consumer_that_fails_leaves_no_place_taken(most):
    def consume():
        for _ in most.stream("hello"):
            raise KeyError("the consumer's own")

    with pytest.raises(KeyError):
        consume()
    assert len(most.loop._free) == 4


def test_a_vocoder_that_fails_leaves_no_place_taken(most, short, monkeypatch):
    def broken(*_args, **_options):
        raise RuntimeError("broken vocoder")

    monkeypatch.setattr(most.vocoder, "stream", broken)
    with pytest.raises(RuntimeError, match="broken vocoder"):
        most.answer("hello", settings=short)
    assert len(most.loop._free) == 4


def test_stages_named_in_the_module_are_the_interfaces(reply):
    assert list(assistant.STAGES) == STAGES


def test_pieces_at_another_rate_and_level_are_heard_as_the_whole(most, short):
    loud = (2.0 * np.random.default_rng(1).standard_normal(24000)).astype(np.float32)
    whole = most.answer(loud, sampling_rate=24000, settings=short)
    listener = most.listen(settings=short)
    for piece in np.split(loud, 10):
        listener.push(piece, 24000)
    *_, done = listener.commit()
    assert (done.reply.heard, done.reply.units) == (whole.heard, whole.units)


def test_a_rate_that_changes_in_mid_utterance_is_refused(most):
    listener = most.listen()
    listener.push(np.zeros(800, np.float32))
    with pytest.raises(ValueError, match="changed from 16000 to 8000"):
        listener.push(np.zeros(400, np.float32), 8000)


def test_pieces_in_stereo_integers_and_empty_ones_are_heard_as_the_whole(most, short, wave):
    stereo = (np.stack([wave, 0.5 * wave], axis=1) * 32767).astype(np.int16)
    whole = most.answer(stereo, settings=short)
    listener = most.listen(settings=short)
    for piece in (stereo[:1000], stereo[:0], torch.from_numpy(stereo[1000:])):
        listener.push(piece)
    *_, done = listener.commit()
    assert (done.reply.heard, done.reply.units) == (whole.heard, whole.units)


def test_unknown_options_are_refused_when_listening_begins(most):
    with pytest.raises(TypeError, match="tempo"):
        most.listen(tempo=2)


def test_a_clip_longer_than_the_context_is_refused_before_it_is_encoded(most, monkeypatch):
    monkeypatch.setattr(most.encoder, "encode", lambda wave: pytest.fail("the encoder ran"))
    seconds = most.loop.decoder.context / most.config.audio_rate_hz + 1
    with pytest.raises(ValueError, match="does not fit the context") as error:
        most.answer(np.zeros(int(seconds * 16000), np.float32))
    assert "\n" not in str(error.value)


def test_confidence_is_about_words_not_about_the_end(most, short, monkeypatch):
    picks = iter([(70, -1.0), (71, -3.0), (most.config.eos_token_id, -50.0)])
    monkeypatch.setattr("most_core.generation.Sampler.pick", lambda *_: next(picks))
    reply = most.answer("hello", settings=dataclasses.replace(short, speak=False))
    assert reply.confidence == pytest.approx(np.exp(-3.0))


def test_who_heard_badly_is_not_sure(most, wave, short, monkeypatch):
    picks = iter([(70, -5.0), (most.tokens.heard_end, -1.0), (71, -0.1), (most.config.eos_token_id, -50.0)])
    monkeypatch.setattr("most_core.generation.Sampler.pick", lambda *_: next(picks))
    reply = most.answer(wave, settings=dataclasses.replace(short, speak=False))
    assert reply.confidence == pytest.approx(np.exp(-5.0))


def test_a_spoken_question_may_be_answered_without_telling_what_was_heard(most, wave, short):
    reply = most.answer(wave, settings=dataclasses.replace(short, say_heard=False))
    assert reply.heard == ""
    assert reply.text
    assert most.answer(wave, settings=short).heard


def test_a_vocoder_that_predicts_durations_still_says_one_unit_a_frame(most, short):
    from most_core.vocoder import UnitHifiGan, Vocoder

    config = dataclasses.replace(most.vocoder.config, duration_predictor=True)
    torch.manual_seed(0)
    stretching = Most(most.model, most.loop.decoder, most.processor, Vocoder(UnitHifiGan(config)))
    reply = stretching.answer("hello", settings=short)
    assert reply.units
    assert len(reply.waveform) == 640 * len(reply.units)


def test_the_trace_tells_turns_roles_and_times_apart(most, short, wave):
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "audio", "audio": wave, "sampling_rate": 16000}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}, {"type": "audio", "audio": wave}]},
        {"role": "user", "content": [{"type": "audio", "audio": wave, "sampling_rate": 16000}]},
    ]
    trace = most.answer(conversation, settings=short, record_routing=True).trace
    parts = [(turn, role) for turn, role in dict.fromkeys(zip(trace.turn.tolist(), trace.role.tolist()))]
    assert parts == [(0, "system"), (1, "user"), (2, "assistant"), (3, "user"), (4, "assistant")]
    frames = len(most.encoder.features(wave))
    for turn in (1, 2, 3):
        heard = (trace.turn == turn) & (trace.modality == 1)
        assert heard.sum() == frames
        assert trace.start_s[heard].tolist() == pytest.approx([i / 25 for i in range(frames)])
    assert np.isfinite(trace.logprob[trace.turn == 4]).any()
    assert np.isnan(trace.logprob[trace.turn < 4]).all()


def test_transcribing_knows_no_grammar(most, wave, monkeypatch):
    unit, eos = most.tokens.first_unit, most.config.eos_token_id
    picks = iter([(70, 0.0), (unit, 0.0), (71, 0.0), (eos, 0.0)])
    biases = []
    monkeypatch.setattr(
        "most_core.generation.Sampler.pick", lambda self, logits, bias: biases.append(bias) or next(picks)
    )
    assert most.transcribe(wave) == most.processor.text([70, 71]).strip()
    assert biases == [None] * 4
