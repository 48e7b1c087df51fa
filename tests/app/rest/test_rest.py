"""The REST routes over a real server: OpenAI's own client talks to them, and raw requests try to break them."""

import asyncio
import base64
import contextlib
import dataclasses
import io
import json
import shutil
import socket
import threading
import time

import httpx
import numpy as np
import openai
import pytest
import soundfile
import torch
import uvicorn
from fastapi import FastAPI, Request

import most_core
from app.audio import Resampler, encode, from_pcm16, read_sound, to_pcm16
from app.engine import Engine
from app.metrics import Metrics
from app.rest import BodyLimit, chat, router, transcription, work
from app.rest.api import Pieces, Service
from app.settings import Settings
from most_core import Word
from most_core.speech import CtcHead, check_waveform

SETTINGS = Settings(requests=3, upload_mb=1, seconds=20, characters=300)
TONE = (0.3 * np.sin(2 * np.pi * 300 * np.arange(16000) / 16000)).astype(np.float32)  # a second
LONG = "a. " * 100  # sentences that take the tiny model many seconds
FORMATS = ["mp3", "opus", pytest.param("aac", marks=pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg"))]
FORMATS += ["flac", "wav"]


@dataclasses.dataclass
class Server:
    url: str
    engine: Engine
    metrics: Metrics

    def count(self, route, status):
        return self.metrics.registry.get_sample_value("most_requests_total", {"route": route, "status": status}) or 0

    def counted(self, route, status, expected):
        """Waits for the count: a client has its answer a moment before it is counted."""
        start = time.perf_counter()
        while self.count(route, status) != expected:
            assert time.perf_counter() - start < 5, f"{self.count(route, status)} times {status}, not {expected}"
            time.sleep(0.005)

    def idle(self, within_s=20.0):
        """Waits until nothing runs and requests are let in; the seconds that took."""
        start = time.perf_counter()
        while self.engine.load != (0, 0) or httpx.get(f"{self.url}/v1/models").status_code != 200:
            assert time.perf_counter() - start < within_s, f"{self.engine.load} still run or wait"
            time.sleep(0.005)
        return time.perf_counter() - start


@contextlib.contextmanager
def served(most, settings=SETTINGS, **options):
    engine, metrics = Engine(most, **options), Metrics()
    app = FastAPI()
    app.include_router(router(engine, settings, metrics, "tiny"))
    app.add_middleware(BodyLimit, megabytes=settings.upload_mb)
    running = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    try:
        port = running.servers[0].sockets[0].getsockname()[1]
        yield Server(f"http://127.0.0.1:{port}", engine, metrics)
    finally:
        engine.close()
        running.should_exit = True
        thread.join(timeout=10)


@pytest.fixture(scope="module")
def server(most):
    with served(most) as running:
        yield running


@pytest.fixture(scope="module")
def listener():
    """A server whose encoder spells words: random ones."""
    most = most_core.untrained("tiny")
    most.encoder.ctc = CtcHead(
        torch.randn(6, most.encoder.feature_size, generator=torch.Generator().manual_seed(1)),
        torch.tensor([0.5, 1.0, 0.0, 0.0, 0.0, 0.0]),
        {"<pad>": 0, "|": 1, "a": 2, "n": 3, "o": 4, "s": 5},
        layer=2,
    )
    with served(most) as running:
        running.most = most
        yield running


def sdk(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, http_client=httpx.Client())


@pytest.fixture
def client(server):
    with sdk(server) as made:
        yield made


@pytest.fixture
def raw(server):
    with httpx.Client(base_url=server.url, timeout=30) as made:
        yield made


def recording(sound=TONE, format="wav"):
    return encode(sound, 16000, format)


NOISE = recording(np.random.default_rng(3).uniform(-0.3, 0.3, 48000).astype(np.float32))


def spoken(data, format):
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": format}}


def ask(content="what time is it", **more):
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 20, **more}


# Chat


def test_a_question_is_answered_as_the_model_answers_it(client, most):
    made = client.chat.completions.create(**ask())
    settings = dataclasses.replace(most.usual_settings, max_new_tokens=20, speak=False)
    reply = most.answer("what time is it", settings=settings)
    assert made.choices[0].message.content == reply.text
    assert made.choices[0].finish_reason == reply.finish_reason == "length"
    assert (made.object, made.model, made.choices[0].message.role) == ("chat.completion", "tiny", "assistant")
    assert made.most["confidence"] == pytest.approx(reply.confidence, abs=1e-3)
    assert made.most["timings"]["total"] > 0
    assert made.usage.prompt_tokens == len(most.processor.prompt([{"role": "user", "content": "what time is it"}]).ids)
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens


def test_a_conversation_with_a_recording_reaches_the_model_whole(client, most):
    history = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [{"type": "text", "text": "now"}, spoken(recording(), "wav")]},
    ]
    made = client.chat.completions.create(model="most", messages=history, max_tokens=150)
    sound = check_waveform(*read_sound(recording()))
    given = [
        {"role": "system", "content": "be brief"},
        *history[1:3],
        {"role": "user", "content": [history[3]["content"][0], {"type": "audio", "audio": sound}]},
    ]
    settings = dataclasses.replace(most.usual_settings, max_new_tokens=150, speak=False)
    reply = most.answer(given, settings=settings)
    assert reply.heard
    assert made.most["heard"] == reply.heard
    assert made.choices[0].message.content == reply.text
    frames = made.usage.prompt_tokens_details.audio_tokens
    assert frames == len(most.encoder.units(sound))
    assert made.usage.prompt_tokens == len(most.processor.prompt(given).ids)
    assert made.usage.completion_tokens > len(most.processor.text_ids(reply.text))


@pytest.mark.parametrize("format", ["mp3", "flac", "ogg", "opus", "m4a", "webm", "aac", "pcm16"])
def test_sound_of_every_format_is_heard(format, client):
    sound = np.repeat(TONE, 3)[::2]  # at 24 kHz
    if format in ("ogg", "m4a", "webm"):
        pytest.importorskip("pydub")
        if not shutil.which("ffmpeg"):
            pytest.skip("ffmpeg")
        from pydub import AudioSegment

        written = io.BytesIO()
        container = {"m4a": "ipod"}.get(format, format)
        AudioSegment(to_pcm16(sound), frame_rate=24000, sample_width=2, channels=1).export(written, container)
        data = written.getvalue()
    else:
        data = encode(sound, 24000, format)
    made = client.chat.completions.create(**ask([spoken(data, format)], max_tokens=3))
    assert made.usage.prompt_tokens_details.audio_tokens == pytest.approx(25, abs=3)


@pytest.mark.parametrize("format", [*FORMATS, "pcm16"])
def test_the_answer_is_spoken(format, client, most):
    wanted = ask(modalities=["text", "audio"], audio={"voice": "alloy", "format": format}, max_tokens=120)
    made = client.chat.completions.create(**wanted)
    message = made.choices[0].message
    reply = most.answer("what time is it", settings=dataclasses.replace(most.usual_settings, max_new_tokens=120))
    assert message.content is None
    assert message.audio.transcript == reply.text
    assert message.audio.expires_at == pytest.approx(time.time(), abs=60)
    data = base64.b64decode(message.audio.data)
    samples, rate = (from_pcm16(data), 24000) if format == "pcm16" else read_sound(data)
    assert len(samples) / rate == pytest.approx(len(reply.waveform) / reply.sample_rate, abs=0.15)
    assert np.abs(samples).max() > 0.2 * np.abs(reply.waveform).max() > 0
    assert made.usage.completion_tokens_details.audio_tokens == len(reply.units) > 0


def test_a_stream_adds_up_to_the_answer(client):
    whole = client.chat.completions.create(**ask())
    chunks = list(client.chat.completions.create(**ask(stream=True, stream_options={"include_usage": True})))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]).strip() == whole.choices[0].message.content
    assert len([c for c in chunks[:-1] if c.choices[0].delta.content]) > 3
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-2].most["confidence"] == whole.most["confidence"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({c.id for c in chunks}) == 1


def test_without_being_asked_for_usage_is_not_streamed(client, raw):
    assert all(c.choices for c in client.chat.completions.create(**ask(stream=True)))
    answer = raw.post("/v1/chat/completions", json=ask(stream=True))
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.text.endswith("\n\ndata: [DONE]\n\n")


def test_speech_is_streamed_as_pcm_while_it_is_made(server):
    wanted = ask(modalities=["text", "audio"], audio={"voice": "x", "format": "pcm16"}, max_tokens=200)

    async def talk():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            whole = await client.chat.completions.create(**wanted)
            stream = await client.chat.completions.create(**wanted, stream=True)
            return whole, [chunk async for chunk in stream]

    whole, chunks = asyncio.run(talk())
    audio = [chunk.choices[0].delta.audio for chunk in chunks if chunk.choices[0].delta.audio]
    pieces = [base64.b64decode(piece.data) for piece in audio if piece.data]
    assert len(pieces) > 2
    assert b"".join(pieces) == base64.b64decode(whole.choices[0].message.audio.data)
    assert "".join(piece.transcript or "" for piece in audio).strip() == whole.choices[0].message.audio.transcript
    assert audio[-1].expires_at
    assert len({piece.id for piece in audio}) == 1


def test_sampling_obeys_the_seed_the_temperature_and_the_limit(client):
    def said(**more):
        return client.chat.completions.create(**ask(**more)).choices[0].message.content

    hot = {"temperature": 1.5, "max_completion_tokens": 30}
    assert said(seed=1, **hot) == said(seed=1, **hot) != said(seed=2, **hot)
    assert said(temperature=0, max_tokens=30) != said(seed=1, **hot)
    assert said(seed=1, temperature=1.5, top_p=1e-6) == said(temperature=0)
    assert len(said(max_tokens=30)) > len(said(max_tokens=3))


def test_fields_that_ask_for_nothing_change_nothing(client):
    idle = {"n": 1, "stop": None, "tools": [], "logprobs": False, "user": "me", "presence_penalty": 0}
    assert (
        client.chat.completions.create(**ask(**idle)).choices[0].message.content
        == client.chat.completions.create(**ask()).choices[0].message.content
    )


# Transcription


def transcribed(client, data=NOISE, name="noise.wav", **more):
    return client.audio.transcriptions.create(file=(name, data), **{"model": "tiny", **more})


def test_the_model_writes_down_what_it_hears(client, most):
    heard = most.transcribe(*read_sound(NOISE))
    made = transcribed(client)
    assert made.text == heard
    assert (made.usage.type, made.usage.seconds) == ("duration", 3)
    assert transcribed(client, response_format="text") == heard + "\n"
    assert transcribed(client, language="en", temperature=0).text == heard


def test_a_transcript_is_streamed(client, most):
    events = list(transcribed(client, stream=True))
    assert [event.type for event in events] == ["transcript.text.delta"] * (len(events) - 1) + ["transcript.text.done"]
    assert len(events) > 5
    assert (
        "".join(event.delta for event in events[:-1]).strip() == events[-1].text == most.transcribe(*read_sound(NOISE))
    )


def test_without_ears_captions_tell_only_which_stretch_it_was(client, most):
    heard = most.transcribe(*read_sound(NOISE))
    made = transcribed(client, response_format="verbose_json")
    assert (made.text, made.duration, made.language) == (heard, 3, "english")
    assert [(s.start, s.end, s.text, s.avg_logprob) for s in made.segments] == [(0, 3, heard, None)]
    assert made.words is None
    shown = transcribed(client, response_format="srt")
    assert shown.startswith("1\n00:00:00,000 --> 00:00:03,000\n")
    with pytest.raises(openai.BadRequestError, match="knows no times of words"):
        transcribed(client, response_format="verbose_json", timestamp_granularities=["word"])
    with pytest.raises(openai.NotFoundError):
        transcribed(client, model="tiny-ears")


def test_the_ears_write_words_with_their_times(listener):
    words = listener.most.encoder.words(check_waveform(*read_sound(NOISE)))
    assert len(words) > 3
    with sdk(listener) as client:
        made = transcribed(
            client, model="tiny-ears", response_format="verbose_json", timestamp_granularities=["word", "segment"]
        )
        assert made.text == " ".join(word.text for word in words)
        assert [(w.word, w.start, w.end) for w in made.words] == [
            (w.text, pytest.approx(w.start_s, abs=1e-3), pytest.approx(w.end_s, abs=1e-3)) for w in words
        ]
        assert " ".join(segment.text for segment in made.segments) == made.text
        assert made.segments[0].avg_logprob < 0
        assert 0 <= made.segments[0].no_speech_prob <= 1
        assert made.segments[0].start == made.words[0].start
        assert transcribed(client, model="tiny-ears").text == made.text
        events = list(transcribed(client, model="tiny-ears", stream=True))
        assert "".join(event.delta for event in events[:-1]) == events[-1].text == made.text
        shown = transcribed(client, model="tiny-ears", response_format="vtt")
        assert shown.startswith("WEBVTT\n\n00:00:0")
        assert [line for line in shown.splitlines() if "-->" in line]
        assert " ".join(line for line in shown.splitlines()[1:] if line and "-->" not in line) == made.text


def test_the_models_words_get_their_times_from_the_ears(listener):
    with sdk(listener) as client:
        made = transcribed(client, response_format="verbose_json", timestamp_granularities=["word"])
        assert made.text == transcribed(client).text
        assert [w.word for w in made.words] == made.text.split()
        assert made.segments is None
        starts = [w.start for w in made.words]
        assert starts == sorted(starts)
        assert 0 <= starts[0] <= made.words[-1].end <= 3


def test_times_are_shared_where_the_ears_heard_something_else():
    heard = [Word("so", 1.0, 1.2, 0.9), Word("whale", 2.0, 2.4, 0.5), Word("please", 3.0, 3.5, 0.8)]
    timed = transcription.with_times(["Um,", "so", "Wales,", "now", "please!", "Bye."], heard, 0.0, 5.0)
    assert [(w.text, w.start_s, w.end_s) for w in timed] == [
        ("Um,", 0.0, 1.0),
        ("so", 1.0, 1.2),
        ("Wales,", 1.2, pytest.approx(2.1)),
        ("now", pytest.approx(2.1), 3.0),
        ("please!", 3.0, 3.5),
        ("Bye.", 3.5, 5.0),
    ]
    assert [w.confidence > 0 for w in timed] == [False, True, False, False, True, False]


def test_long_sound_is_cut_where_it_is_quiet():
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 40 * 16000)
    for second in (12, 25):
        sound[second * 16000 : second * 16000 + 4800] *= 0.01
    cut = [start / 16000 for start, _ in transcription.windows(sound)]
    assert cut == [0, *(pytest.approx(second + 0.15, abs=0.06) for second in (12, 25))]
    assert all(end - start <= 15 * 16000 for start, end in transcription.windows(sound))
    assert transcription.windows(sound[: 15 * 16000]) == [(0, 15 * 16000)]


def test_long_sound_is_heard_in_pieces(listener):
    long = recording(np.tile(read_sound(NOISE)[0], 6))
    with sdk(listener) as client:
        made = transcribed(client, long, model="tiny-ears", response_format="verbose_json")
        texts = [
            event.delta
            for event in transcribed(client, long, model="tiny-ears", stream=True)
            if hasattr(event, "delta")
        ]
        assert len(texts) == 2
        assert "".join(texts) == made.text
        assert made.segments[-1].end > 15
        assert transcribed(client, long).text


def test_the_language_model_is_given_single_sentences(listener, monkeypatch):
    words = [Word("a", 1.0, 1.5, 0.9), Word("b", 1.7, 2.0, 0.9), Word("c", 3.0, 4.0, 0.9), Word("d", 4.3, 7.0, 0.9)]
    cut = transcription.sentences(transcription.Piece(0, 8, "", words))
    assert [(p.start_s, p.end_s, "".join(w.text for w in p.words)) for p in cut] == [(0, 2.5, "ab"), (2.5, 8, "cd")]
    steady = [Word(str(i), i / 2, i / 2 + 0.3 - 0.01 * (i == 10), 0.9) for i in range(20)]
    cut = transcription.sentences(transcription.Piece(0, 10, "", steady))
    assert [len(p.words) for p in cut] == [11, 9]

    lengths, listen = [], listener.most.stream_transcript
    monkeypatch.setattr(
        listener.most,
        "stream_transcript",
        lambda wave, **more: lengths.append(len(wave) / 16000) or listen(wave, **more),
    )
    monkeypatch.setattr(listener.most.encoder, "words", lambda wave: words)
    with sdk(listener) as client:
        eight = recording(np.tile(read_sound(NOISE)[0], 3)[: 8 * 16000])
        made = transcribed(client, eight, response_format="verbose_json", timestamp_granularities=["word"])
        assert lengths == [2.5, 5.5]
        assert [w.word for w in made.words] == made.text.split()
        assert made.words[-1].end == pytest.approx(8)
        assert transcribed(client, eight).text == made.text
        events = list(transcribed(client, eight, stream=True))
        assert events[-1].text == made.text
        assert "".join(event.delta for event in events[:-1]).split() == made.text.split()


def test_captions_are_short_and_escaped():
    words = [Word(f"<w{i}>", 0.5 * i, 0.5 * i + 0.4, 0.5) for i in range(20)]
    words += [Word("late", 20.0, 3700.5, 0.5)]
    cues = transcription.cues_of(transcription.Piece(0, 4000, "", words))
    assert [cue.text.split()[0] for cue in cues] == ["<w0>", "<w12>", "late"]
    vtt, srt = (transcription.captions(cues, format).decode() for format in ("vtt", "srt"))
    assert "00:00:00.000 --> 00:00:05.900\n&lt;w0&gt; &lt;w1&gt;" in vtt
    assert "\n\n3\n00:00:20,000 --> 01:01:40,500\nlate\n" in srt


# Speech


@pytest.fixture(scope="module")
def hello(most):
    samples, rate = most.speak("hello there")
    return samples, len(samples) / rate


@pytest.mark.parametrize("format", FORMATS)
def test_text_is_spoken_in_every_format(format, client, hello):
    made = client.audio.speech.create(model="tiny", voice="alloy", input="hello there", response_format=format)
    samples, rate = read_sound(made.content)
    assert len(samples) / rate == pytest.approx(hello[1], abs=0.15)
    assert np.abs(samples).max() > 0.2 * np.abs(hello[0]).max() > 0
    assert made.response.headers["content-type"].startswith("audio/")


def test_mp3_is_the_default_and_wav_is_pcm_with_a_header(client):
    assert client.audio.speech.create(model="tiny", voice="v", input="a").content[:2] in (
        b"\xff\xf3",
        b"\xff\xfb",
        b"ID",
    )
    wav = client.audio.speech.create(model="tiny", voice="v", input="a", response_format="wav").content
    pcm = client.audio.speech.create(model="tiny", voice="v", input="a", response_format="pcm").content
    assert wav[:4] == b"RIFF"
    assert wav[44:] == pcm


def test_streamed_speech_is_the_whole_of_it(client, most, hello):
    made = client.audio.speech.create(model="tiny", voice="v", input="hello there", response_format="pcm").content
    resampler = Resampler(most.vocoder.sample_rate, 24000)
    assert made == to_pcm16(np.concatenate([resampler.push(hello[0]), resampler.finish()]))


def test_sound_comes_while_more_is_made(client, server):
    started = time.perf_counter()
    with client.audio.speech.with_streaming_response.create(
        model="tiny", voice="v", input="a b c. " * 3, response_format="pcm"
    ) as answer:
        pieces = answer.iter_bytes()
        next(pieces)
        first = time.perf_counter() - started
        assert server.engine.load[0] == 1
        rest = b"".join(pieces)
    assert len(rest) > 24000
    assert first < 0.5 * (time.perf_counter() - started)


def test_speech_as_events(raw):
    wanted = {"model": "tiny", "voice": {"id": "v"}, "input": "hello there"}
    events = {}
    for format in ("pcm", "mp3"):
        answer = raw.post("/v1/audio/speech", json={**wanted, "response_format": format, "stream_format": "sse"})
        assert answer.headers["content-type"] == "text/event-stream"
        events[format] = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line]
        whole = raw.post("/v1/audio/speech", json={**wanted, "response_format": format}).content
        assert b"".join(base64.b64decode(e["audio"]) for e in events[format][:-1]) == whole
    done = events["pcm"][-1]
    assert done["type"] == "speech.audio.done"
    assert done["usage"]["output_tokens"] == events["mp3"][-1]["usage"]["output_tokens"] > 0
    assert len(events["pcm"]) > 3
    assert len(events["mp3"]) == 2


# Models


def test_models_are_listed(client, listener):
    assert [(m.id, m.object, m.owned_by) for m in client.models.list()] == [("tiny", "model", "most")]
    assert client.models.retrieve("tiny").id == client.models.retrieve("most").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="'gpt-4' does not exist here: use tiny"):
        client.models.retrieve("gpt-4")
    with sdk(listener) as other:
        assert [m.id for m in other.models.list()] == ["tiny", "tiny-ears"]
        with pytest.raises(openai.NotFoundError):  # it cannot talk
            other.chat.completions.create(**ask(model="tiny-ears"))


# What is refused


def told(answer, status=400):
    """The error, once it has OpenAI's shape and is one line."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    assert "Traceback" not in error["message"]
    assert len(error["message"]) < 600
    return error


def user(part, role="user"):
    return {"messages": [{"role": role, "content": [part]}]}


def heard(sound):
    return user({"type": "input_audio", "input_audio": sound})


SOUND = "messages[0].content[0].input_audio"
TOO_LONG = encode(np.zeros(21 * 8000), 8000, "flac")
B64_TEXT = base64.b64encode(b"this is no sound at all").decode()
WITH_NAN = io.BytesIO()
soundfile.write(WITH_NAN, np.array([0.1, np.nan] * 4000), 16000, format="WAV", subtype="FLOAT")
B64_NAN = base64.b64encode(WITH_NAN.getvalue()).decode()


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"messages": None}, "messages", "list"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": "hi"}, "messages", "'hi'"),
        ({"messages": ["hi"]}, "messages[0]", "give an object"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role", "use system"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role", "'robot'"),
        ({"messages": [{"role": ["user"], "content": "hi"}]}, "messages[0].role", "use system"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content", "give a text"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", "7"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content", "None"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, None, "the last message is the assistant's"),
        ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages[0].audio", "is not kept here"),
        ({"messages": [{"role": "assistant", "tool_calls": [1]}]}, "messages[0].tool_calls", "calls no tools"),
        ({"messages": [{"role": "user", "content": "x" * 301}]}, "the text of messages", "301 characters long"),
        (user("hi"), "messages[0].content[0].type", "use 'text' or 'input_audio'"),
        (user({"type": "image_url"}), "messages[0].content[0].type", "'image_url'"),
        (user({"type": "text", "text": 3}), "messages[0].content[0].text", "give a string"),
        (user({"type": "input_audio"}), "messages[0].content[0].input_audio", "data and format"),
        (heard({"data": "", "format": "wav"}), f"{SOUND}.data", "base64"),
        (heard({"data": "AAAA", "format": "midi"}), f"{SOUND}.format", "'midi'"),
        (heard({"data": "!" * 999, "format": "wav"}), f"{SOUND}.data", "no base64"),
        (heard({"data": B64_TEXT, "format": "wav"}), f"{SOUND}.data", "not a sound"),
        (heard({"data": B64_NAN, "format": "wav"}), f"{SOUND}.data", "nan"),
        (user(spoken(b"abc", "pcm16")), f"{SOUND}.data", "3 bytes"),
        (user(spoken(recording(np.zeros(0)), "wav")), f"{SOUND}.data", "empty"),
        (user(spoken(TOO_LONG, "flac")), f"{SOUND}.data", "21.0 s long, the limit is 20 s"),
        (user(spoken(recording(), "wav"), "assistant"), "messages[0].content[0].type", "not the assistant's"),
        ({"model": 5}, "model", "5"),
        ({"n": 2}, "n", "is 2"),
        ({"n": True}, "n", "True"),
        ({"stop": ["."]}, "stop", "leave stop out"),
        ({"tools": [{"type": "function"}]}, "tools", "cannot do"),
        ({"logprobs": True}, "logprobs", "True"),
        ({"response_format": {"type": "json_object"}}, "response_format", "json_object"),
        ({"frobnicate": 1}, "frobnicate", "not known"),
        ({"temperature": "hot"}, "temperature", "'hot'"),
        ({"temperature": 2.5}, "temperature", "2.5"),
        ({"temperature": True}, "temperature", "True"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "0"),
        ({"max_tokens": 1.5}, "max_tokens", "1.5"),
        ({"seed": 2**70}, "seed", "less than"),
        ({"stream": "yes"}, "stream", "'yes'"),
        ({"stream_options": {"x": 1}}, "stream_options.x", "not known"),
        ({"modalities": ["video"]}, "modalities.0", "'video'"),
        ({"modalities": ["audio"]}, "audio", "audio is missing"),
        ({"modalities": ["audio"], "audio": {"voice": "v", "format": "midi"}}, "audio.format", "'midi'"),
        ({"modalities": ["audio"], "audio": {"voice": "v" * 65, "format": "wav"}}, "audio.voice", "64"),
        ({"modalities": ["audio"], "audio": {"voice": "v", "format": "wav"}, "stream": True}, "audio.format", "pcm16"),
    ],
)  # fmt: skip
def test_what_chat_cannot_do_is_told(change, param, words, raw):
    error = told(raw.post("/v1/chat/completions", json={**ask(), **change}))
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert words in error["message"]


def test_recordings_count_together(raw):
    half = spoken(encode(np.zeros(11 * 8000), 8000, "flac"), "flac")
    error = told(raw.post("/v1/chat/completions", json=ask([half, half])))
    assert "messages hold 22.0 s of sound, the limit is 20 s" in error["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[1]", "send a JSON object"),
        (b'{"model": "tiny", "temperature": NaN}', "NaN is no number"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "temperature": 1e999}', "finite"),
        (b'"\xff\xfe"', "no JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "no JSON"),
    ],
)
def test_what_is_no_json_is_told(body, words, raw):
    for path in ("/v1/chat/completions", "/v1/audio/speech"):
        error = told(raw.post(path, content=body, headers={"Content-Type": "application/json"}))
        if words == "finite" and path != "/v1/chat/completions":
            continue
        assert words in error["message"]


def test_what_is_missing_is_named(raw):
    error = told(raw.post("/v1/chat/completions", json={"messages": []}))
    assert (error["param"], error["code"]) == ("model", "missing_required_parameter")
    assert told(raw.post("/v1/audio/speech", json={"model": "tiny", "voice": "v"}))["param"] == "input"
    assert told(raw.post("/v1/audio/transcriptions", data={"model": "tiny"}, files={"x": b""}))["param"] == "file"
    assert told(raw.post("/v1/audio/transcriptions", files={"file": NOISE}))["param"] == "model"


def test_half_a_surrogate_pair_is_just_text(raw):
    body = b'{"model": "tiny", "max_tokens": 5, "messages": [{"role": "user", "content": "a \\ud800 b"}]}'
    kind = {"Content-Type": "application/json"}
    assert raw.post("/v1/chat/completions", content=body, headers=kind).status_code == 200
    error = told(raw.post("/v1/chat/completions", content=body.replace(b'"tiny"', b'"\\ud800"'), headers=kind), 404)
    assert error["code"] == "model_not_found"


def test_other_models_addresses_methods_and_types(raw):
    for path, body in (("/v1/chat/completions", ask()), ("/v1/audio/speech", {"voice": "v", "input": "hi"})):
        error = told(raw.post(path, json={**body, "model": "gpt-4o"}), 404)
        assert (error["param"], error["code"]) == ("model", "model_not_found")
    error = told(raw.post("/v1/audio/transcriptions", data={"model": "whisper-1"}, files={"file": NOISE}), 404)
    assert error["code"] == "model_not_found"
    assert told(raw.post("/v1/embeddings", json={}), 404)["code"] == "unknown_url"
    assert told(raw.get("/v1/chat/completions"), 405)["code"] == "method_not_allowed"
    assert told(raw.delete("/v1/models/tiny"), 405)["code"] == "method_not_allowed"
    told(raw.post("/v1/chat/completions", content=b"hi", headers={"Content-Type": "text/plain"}), 415)
    told(raw.post("/v1/audio/transcriptions", json={"model": "tiny"}), 415)


@pytest.mark.parametrize(
    ("fields", "data", "words"),
    [
        ({"language": "de"}, NOISE, "language is 'de': it must be 'en'"),
        ({"prompt": "Wales"}, NOISE, "leave prompt out"),
        ({"temperature": "0.7"}, NOISE, "temperature is '0.7'"),
        ({"response_format": "xml"}, NOISE, "response_format is 'xml'"),
        ({"response_format": "srt", "stream": "true"}, NOISE, "a stream is of text only"),
        ({"timestamp_granularities[]": "word"}, NOISE, "response_format verbose_json"),
        ({"timestamp_granularities[]": "letter", "response_format": "verbose_json"}, NOISE, "'letter'"),
        ({"include[]": "logprobs"}, NOISE, "leave include[] out"),
        ({"known_speaker_names[]": "me"}, NOISE, "not known here"),
        ({}, b"", "talk.wav is empty"),
        ({}, b"this is no sound", "talk.wav is not a sound"),
        ({}, recording(np.zeros(0)), "the waveform is empty"),
        ({}, TOO_LONG, "talk.wav is 21.0 s long, the limit is 20 s: cut it"),
    ],
)
def test_what_cannot_be_transcribed_is_told(fields, data, words, raw):
    form = {"model": "tiny", **fields}
    error = told(raw.post("/v1/audio/transcriptions", data=form, files={"file": ("talk.wav", data)}))
    assert words in error["message"]


def test_a_form_that_is_none_is_told(raw):
    for boundary in ("", "; boundary=x"):
        kind = {"Content-Type": f"multipart/form-data{boundary}"}
        told(raw.post("/v1/audio/transcriptions", content=b"no form", headers=kind))
    many = [("file", (f"{i}.wav", NOISE)) for i in range(2)]
    told(raw.post("/v1/audio/transcriptions", data={"model": "tiny"}, files=many))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input": ""}, "no text to speak"),
        ({"input": "x" * 301}, "input is 301 characters long, the limit is 300"),
        ({"input": 5}, "input is 5"),
        ({"voice": ""}, "voice is ''"),
        ({"voice": "v" * 65}, "at most 64"),
        ({"speed": 1.5}, "speed is 1.5"),
        ({"instructions": "whisper"}, "leave instructions out"),
        ({"response_format": "ogg"}, "response_format is 'ogg'"),
        ({"pitch": 2}, "pitch is not known here"),
    ],
)
def test_what_cannot_be_spoken_is_told(change, words, raw):
    error = told(raw.post("/v1/audio/speech", json={"model": "tiny", "voice": "v", "input": "hi", **change}))
    assert words in error["message"]


def test_aac_without_ffmpeg_is_refused(raw, monkeypatch):
    monkeypatch.setenv("PATH", "")
    wanted = {"model": "tiny", "voice": "v", "input": "hi", "response_format": "aac"}
    assert "aac needs ffmpeg" in told(raw.post("/v1/audio/speech", json=wanted))["message"]


def test_a_failure_here_is_no_fault_of_the_request(server, raw, monkeypatch):
    def broken(*_, **__):
        raise KeyError("inside")
        yield

    monkeypatch.setattr(server.engine.most, "stream", broken)
    error = told(raw.post("/v1/chat/completions", json=ask()), 500)
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    monkeypatch.setattr(chat, "read_messages", lambda *_: 1 / 0)
    assert "ZeroDivisionError" in told(raw.post("/v1/chat/completions", json=ask()), 500)["message"]


def test_a_failure_in_a_stream_is_an_event_or_a_broken_end(server, client, raw, monkeypatch):
    stream, stream_speech = server.engine.most.stream, server.engine.most.stream_speech

    def breaks(whole):
        def broken(*given, **options):
            yield next(whole(*given, **options))
            raise ZeroDivisionError("inside")

        return broken

    monkeypatch.setattr(server.engine.most, "stream", breaks(stream))
    with pytest.raises(openai.APIError, match="ZeroDivisionError"):
        list(client.chat.completions.create(**ask(stream=True)))
    monkeypatch.setattr(server.engine.most, "stream_speech", breaks(stream_speech))
    with pytest.raises(httpx.RemoteProtocolError):
        raw.post("/v1/audio/speech", json={"model": "tiny", "voice": "v", "input": "hi", "response_format": "pcm"})


# Limits


def chunks(megabytes, sent):
    yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    for _ in range(megabytes * 10):
        sent.append(100_000)
        yield b" " * 100_000


def test_a_body_may_not_be_larger_than_the_limit(server):
    kind = {"Content-Type": "application/json"}
    for path in ("/v1/chat/completions", "/v1/audio/transcriptions"):
        before, sent = server.count(path, "413"), []
        headers = kind if "chat" in path else {"Content-Type": "multipart/form-data; boundary=x"}
        answer = httpx.post(server.url + path, content=b" " * 1_000_001, headers=headers)
        assert "larger than 1 MB" in told(answer, 413)["message"]
        answer = httpx.post(server.url + path, content=chunks(200, sent), headers=headers)
        assert told(answer, 413)["code"] == "request_too_large"
        assert sum(sent) < 100_000_000  # the rest was never read
        server.counted(path, "413", before + 2)
    almost = json.dumps(ask("x")).encode().ljust(1_000_000)
    assert httpx.post(f"{server.url}/v1/chat/completions", content=almost, headers=kind, timeout=30).status_code == 200


def test_a_body_of_some_other_route_is_limited_too():
    async def app(scope, receive, send):
        try:
            while (await receive())["more_body"]:
                pass
            status = 200
        except Exception:
            status = 418
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"mine"})

    def called(*sizes, declared=None):
        pieces = [{"type": "http.request", "body": b"x" * size, "more_body": True} for size in sizes]
        pieces[-1]["more_body"] = False
        left, sent = iter(pieces), []

        async def receive():
            return next(left)

        async def send(message):
            sent.append(message)

        headers = [] if declared is None else [(b"content-length", str(declared).encode())]
        asyncio.run(BodyLimit(app, 1)({"type": "http", "headers": headers}, receive, send))
        return sent[0]["status"], len(list(left))

    assert called(500_000, 500_000) == (200, 0)
    assert called(600_000, 600_000, 1, 1) == (413, 2)
    assert called(1, 1, declared=1_000_001) == (413, 2)


def hold(server, count, stack):
    """That many requests in work, until the stack is closed."""
    wanted = {"model": "tiny", "voice": "v", "input": LONG, "response_format": "pcm"}
    for _ in range(count):
        made = stack.enter_context(httpx.Client(timeout=30))
        answer = stack.enter_context(made.stream("POST", f"{server.url}/v1/audio/speech", json=wanted))
        assert answer.status_code == 200


def test_more_requests_than_allowed_are_sent_away(server, client, raw):
    server.idle()
    before = server.count("/v1/chat/completions", "429")
    with contextlib.ExitStack() as stack:
        hold(server, SETTINGS.requests, stack)
        answer = raw.post("/v1/chat/completions", json=ask())
        error = told(answer, 429)
        assert answer.headers["Retry-After"] == "2"
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(**ask())
        server.counted("/v1/chat/completions", "429", before + 2)
    server.idle()
    assert client.chat.completions.create(**ask()).choices


def test_an_engine_with_a_full_line_sends_away(most):
    with served(most, waiting=0) as server:
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=ask())
        assert "wait already" in told(answer, 429)["message"]
        assert answer.headers["Retry-After"]


def submitted(engine, monkeypatch):
    """The jobs that the engine is given from now on."""
    jobs, submit = [], engine.submit
    monkeypatch.setattr(engine, "submit", lambda *a, **k: jobs.append(submit(*a, **k)) or jobs[-1])
    return jobs


@pytest.mark.parametrize("format", ["pcm", "mp3"])
def test_who_hangs_up_stops_the_model(format, server, monkeypatch):
    """While sound is sent, and while nothing is sent yet."""
    server.idle()
    jobs, gone = submitted(server.engine, monkeypatch), server.count("/v1/audio/speech", "499")
    wanted = {"model": "tiny", "voice": "v", "input": LONG, "response_format": format}
    url = f"{server.url}/v1/audio/speech"
    with contextlib.suppress(httpx.ReadTimeout), httpx.stream("POST", url, json=wanted, timeout=0.4):
        assert format == "pcm"
    deadline = time.perf_counter() + 2  # usually 0.02 s; the whole would take far longer
    while not jobs[0].cancelled.is_set():
        assert time.perf_counter() < deadline
        time.sleep(0.005)
    assert server.idle() < 3
    server.counted("/v1/audio/speech", "499", gone + 1)


def test_who_sends_too_slowly_is_given_up(server, monkeypatch):
    monkeypatch.setattr(work, "READ_S", 0.2)
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        assert b" 408 " in connection.recv(4096)
    server.counted("/v1/chat/completions", "408", 1)


def test_who_takes_too_long_to_read_is_given_up(monkeypatch):
    monkeypatch.setattr(work, "SEND_S", 0.1)
    service, closed = Service(None, SETTINGS, Metrics(), "tiny"), []

    async def pieces():
        try:
            while True:
                yield b"x"
        finally:
            closed.append(service.in_work)

    async def handle(*_):
        return Pieces(pieces())

    async def never(*_):
        await asyncio.Event().wait()

    async def send(message):
        if message["type"] == "http.response.body":
            await never()

    scope = {"type": "http", "method": "POST", "headers": [], "path": "/"}
    answer = work.Work(service, Request(scope, never), "/", lambda request: asyncio.sleep(0), handle)
    asyncio.run(asyncio.wait_for(answer(scope, never, send), 5))
    assert (closed, service.in_work) == ([1], 0)


def test_others_are_answered_while_somebody_is_read_to(server, client):
    server.idle()
    with contextlib.ExitStack() as stack:
        hold(server, 1, stack)
        assert client.chat.completions.create(**ask()).choices
        assert server.engine.load[0] == 1
    server.idle()


def test_requests_and_sound_are_counted(most):
    with served(most) as server:
        with sdk(server) as client:
            client.chat.completions.create(**ask([spoken(recording(), "wav")], max_tokens=5))
            client.audio.speech.create(model="tiny", voice="v", input="hi", response_format="pcm")
            transcribed(client)
            with pytest.raises(openai.NotFoundError):
                client.models.retrieve("gpt-4")
        value = server.metrics.registry.get_sample_value
        server.counted("/v1/chat/completions", "200", 1)
        server.counted("/v1/models/{model:path}", "404", 1)
        assert value("most_errors_total", {"code": "model_not_found"}) == 1
        assert value("most_heard_seconds_total") == pytest.approx(4)
        assert value("most_spoken_seconds_total") > 0.1
