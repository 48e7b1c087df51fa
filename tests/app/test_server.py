"""The shipped model behind the real server, through OpenAI's own client: spoken, interrupted and typed turns."""

import asyncio
import base64
import threading
import time
from dataclasses import dataclass, field

import httpx
import numpy as np
import pytest
import soundfile
import uvicorn
from openai import APIStatusError, AsyncOpenAI, OpenAI

import most_core
from app import server
from app.audio import Resampler, encode, from_pcm16, to_pcm16
from app.settings import Settings
from most_core.speech import SAMPLE_RATE

WIRE = 24_000
SETTINGS = Settings(port=0)
real_time = pytest.mark.flaky(reruns=2)  # speaks in real time, which a machine may miss that others keep busy


def recording(name):
    """A sample question at the wire's rate, without the silence at its ends."""
    wave, rate = soundfile.read(f"assets/samples/{name}.wav", dtype="float32")
    assert rate == SAMPLE_RATE
    loud = np.flatnonzero(np.abs(wave) > 0.005)
    up = Resampler(SAMPLE_RATE, WIRE)
    return np.concatenate([up.push(wave[loud[0] : loud[-1] + 1]), up.finish()])


def quiet(seconds, seed=0):
    return (0.0005 * np.random.default_rng(seed).standard_normal(int(seconds * WIRE))).astype(np.float32)


@pytest.fixture(scope="module")
def address():
    most = most_core.load("assets/nano", device="cpu", slots=server.places(SETTINGS))
    listener = server.listen(SETTINGS)
    running = uvicorn.Server(server.config(server.create(most, SETTINGS), SETTINGS))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    running.should_exit = True
    thread.join(timeout=20)


@pytest.fixture(scope="module")
def client(address):
    return OpenAI(api_key="none", base_url=f"http://{address}/v1", max_retries=0)


@dataclass
class Talk:
    """What came of talking: events with their times, in seconds since the first sound was sent."""

    events: list = field(default_factory=list)

    def of(self, kind):
        return [(at, event) for at, event in self.events if event["type"] == kind]

    def last(self, kind):
        return self.of(kind)[-1][1]

    def sound(self, response_id):
        pieces = [e["delta"] for _, e in self.of("response.output_audio.delta") if e["response_id"] == response_id]
        return np.concatenate([from_pcm16(base64.b64decode(piece)) for piece in pieces])


def talk(address, wave, *, session=None, until=lambda talk: False, seconds=30, then=None):
    """Speak in real time through the SDK's realtime connection; `then(connection, talk)` is awaited at the end."""
    found = Talk()

    async def converse():
        async with (
            AsyncOpenAI(api_key="none", base_url=f"http://{address}/v1") as openai,
            openai.realtime.connect(model="most-nano") as connection,
        ):
            if session is not None:
                await connection.session.update(session=session)
            start = time.perf_counter()

            async def microphone():
                for first in range(0, len(wave), 480):
                    await asyncio.sleep(max(start + (first + 480) / WIRE - time.perf_counter(), 0))
                    data = base64.b64encode(to_pcm16(wave[first : first + 480])).decode()
                    await connection.input_audio_buffer.append(audio=data)
                if then is not None:
                    await then(connection, found)

            speaking = asyncio.create_task(microphone())
            try:
                async with asyncio.timeout(seconds):
                    async for event in connection:
                        found.events.append((time.perf_counter() - start, event.to_dict()))
                        if until(found):
                            break
            finally:
                speaking.cancel()
                await asyncio.gather(speaking, return_exceptions=True)

    asyncio.run(converse())
    return found


def done(times):
    return lambda talk: len(talk.of("response.done")) >= times


@real_time
def test_a_spoken_question_is_answered_in_words_and_sound(address):
    question = recording("capital")
    end = 0.5 + len(question) / WIRE
    found = talk(address, np.concatenate([quiet(0.5), question, quiet(4)]), until=lambda t: t.of("most.timings"))
    kinds = [event["type"] for _, event in found.events]
    order = [
        "session.created",
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "response.created",
        "conversation.item.input_audio_transcription.completed",
        "response.output_audio.delta",
        "response.output_audio.done",
        "response.done",
    ]
    assert [kinds.index(kind) for kind in order] == sorted(kinds.index(kind) for kind in order)
    assert "Wales" in found.last("conversation.item.input_audio_transcription.completed")["transcript"]
    response = found.last("response.done")["response"]
    assert response["status"] == "completed"
    assert "Cardiff" in response["output"][0]["content"][0]["transcript"]
    sound = found.sound(response["id"])
    assert 0.5 < len(sound) / WIRE < 8
    assert np.abs(sound).max() > 0.05
    # Where the time went, as told, is what this client measured.
    waited = 1000 * (found.of("response.output_audio.delta")[0][0] - end)
    timings = found.last("most.timings")
    assert sum(stage["ms"] for stage in timings["stages"]) == pytest.approx(timings["total_ms"], abs=0.1)
    assert timings["total_ms"] == pytest.approx(waited, rel=0.05, abs=60)  # the rest is how exactly speech ends


@real_time
def test_speech_over_a_reply_pauses_it_ends_it_and_is_answered(address):
    first, second = recording("repeat"), recording("opposite")
    wave = np.concatenate([quiet(0.5), first, quiet(1.6), second, quiet(4)])
    onset = 0.5 + len(first) / WIRE + 1.6
    found = talk(address, wave, until=done(2))
    actions = [(e["turn_id"], e["action"]) for _, e in found.of("most.playback")]
    assert actions[:3] == [(1, "play"), (1, "pause"), (1, "stop")]
    assert actions[3] == (2, "play")
    paused = found.of("most.playback")[1][0]
    assert -0.02 < paused - onset < 0.8  # the guard of a session's first seconds included
    (_, truncated), *_ = found.of("conversation.item.truncated")
    assert truncated["audio_end_ms"] > 300
    assert "opposite" in found.last("conversation.item.input_audio_transcription.completed")["transcript"]
    stop = next(at for at, e in found.of("most.playback") if e["action"] == "stop")
    late = [e for at, e in found.of("response.output_audio.delta") if at > stop and e["turn_id"] == 1]
    assert not late
    assert found.last("response.done")["response"]["status"] == "completed"


@real_time
def test_a_typed_question_is_answered_and_followed_up_in_text_alone(address):
    async def ask(connection, _):
        text = {"type": "input_text", "text": "What is the capital of Wales?"}
        await connection.conversation.item.create(item={"type": "message", "role": "user", "content": [text]})
        await connection.response.create(response={"output_modalities": ["text"], "metadata": {"topic": "capitals"}})

    found = talk(address, quiet(0.1), until=done(1), then=ask)
    response = found.last("response.done")["response"]
    assert "Cardiff" in response["output"][0]["content"][0]["text"]
    assert response["metadata"] == {"topic": "capitals"}
    assert not found.of("response.output_audio.delta")
    assert (
        "".join(e["delta"] for _, e in found.of("response.output_text.delta"))
        in response["output"][0]["content"][0]["text"]
    )


@real_time
def test_a_turn_committed_by_hand_is_answered_when_asked(address):
    async def commit(connection, _):
        await connection.input_audio_buffer.commit()
        await connection.response.create()

    session = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
    found = talk(address, recording("latte"), session=session, until=done(1), then=commit)
    assert not found.of("input_audio_buffer.speech_started")
    assert found.last("session.updated")["session"]["audio"]["input"]["turn_detection"] is None
    assert "latte" in found.last("conversation.item.input_audio_transcription.completed")["transcript"]
    response = found.last("response.done")["response"]
    assert "latte" in response["output"][0]["content"][0]["transcript"]
    assert np.abs(found.sound(response["id"])).max() > 0.05


def test_chat_takes_sound_and_gives_sound(client):
    wave = np.concatenate([quiet(0.2), recording("capital")])
    data = base64.b64encode(encode(wave, WIRE, "wav")).decode()
    answer = client.chat.completions.create(
        model="most-nano",
        modalities=["text", "audio"],
        audio={"voice": "default", "format": "wav"},
        messages=[
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]}
        ],
    )
    audio = answer.choices[0].message.audio
    assert "Cardiff" in audio.transcript
    assert base64.b64decode(audio.data)[:4] == b"RIFF"


def test_what_it_says_it_can_write_down(client):
    spoken = client.audio.speech.create(
        model="most-nano", voice="default", input="Tuesday comes after Monday.", response_format="wav"
    )
    written = client.audio.transcriptions.create(model="most-nano-ears", file=("said.wav", spoken.content))
    assert {"tuesday", "monday"} & set(written.text.lower().replace(".", "").split())


def test_health_metrics_and_models(address, client):
    assert [model.id for model in client.models.list()] == ["most-nano", "most-nano-ears"]
    health = httpx.get(f"http://{address}/health").json()
    assert health["status"] == "ok"
    assert health["model"] == "most-nano"
    assert "most_turns_total" in httpx.get(f"http://{address}/metrics").text
    assert httpx.get(f"http://{address}/docs").status_code == 404  # it would load from elsewhere


def test_an_unknown_model_is_refused(address, client):
    with pytest.raises(APIStatusError, match="most-nano"):
        client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "hello"}])

    async def connect():
        openai = AsyncOpenAI(api_key="none", base_url=f"http://{address}/v1")
        async with openai.realtime.connect(model="gpt-9") as connection:
            return (await connection.recv()).to_dict()

    assert asyncio.run(connect())["error"]["code"] == "model_not_found"


def test_the_page_is_served_at_the_root_and_asks_no_other_host(address):
    page = httpx.get(f"http://{address}/")
    assert page.status_code == 200
    assert "MoST" in page.text
    assert "https://cdn" not in page.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(host="0.0.0.0"), "--host 0.0.0.0 lets others in"),
        (Settings(ssl_certfile="cert.pem"), "both --ssl-certfile and --ssl-keyfile"),
        (Settings(ssl_certfile="no.pem", ssl_keyfile="no.key"), "--ssl-certfile: there is no file no.pem"),
        (Settings(token="a b"), "--token takes plain letters"),
    ],
)
def test_what_cannot_be_served_is_told_before_the_model_is_loaded(settings, message):
    with pytest.raises((ValueError, OSError), match=message):
        server.check(settings)


def test_an_address_of_another_machine_is_told():
    with pytest.raises(OSError, match=r"--host 203\.0\.113\.7 .* cannot be listened on"):
        server.listen(Settings(host="203.0.113.7", port=0, token="x"))


def test_a_port_that_is_taken_is_told():
    first = server.listen(Settings(port=0))
    try:
        with pytest.raises(OSError, match="choose another with --port"):
            server.listen(Settings(port=first.getsockname()[1]))
    finally:
        first.close()
