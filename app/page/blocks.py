"""Gradio's part of the page: the tabs, and three tools that people, programs and MCP clients call alike."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from fastapi import FastAPI

from app.audio import WIRE_RATE, read_sound, to_pcm16
from app.engine import Busy, Engine
from app.metrics import Metrics
from app.page import card
from app.page.words import words
from app.rest.api import Refusal, Service, busy, read_recording
from app.rest.speaking import Spoken
from app.rest.transcription import written
from app.settings import Settings
from most_core import Done, GenerationSettings, Reply
from most_core.speech import SAMPLE_RATE

CACHE_S = 600  # uploads and answers are deleted then
STATIC = Path(__file__).with_name("static")
HEAD = """<link rel="stylesheet" href="/page/static/page.css">
<script type="module" src="/page/static/main.js"></script>"""
SYSTEM_FONTS = ["ui-sans-serif", "system-ui", "sans-serif"], ["ui-monospace", "Consolas", "monospace"]
Sound = tuple[int, np.ndarray]


def mount(app: FastAPI, blocks: gr.Blocks, limits: Settings) -> None:
    """At /, with the tools for MCP clients at /gradio_api/mcp/. After all other routes: it takes all that is left."""
    text, code = ([gr.themes.Font(name) for name in names] for names in SYSTEM_FONTS)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        max_file_size=f"{limits.upload_mb}mb",
        run_history=False,
        ssr_mode=False,
        mcp_server=True,
        footer_links=[],
        theme=gr.themes.Default(primary_hue="blue", font=text, font_mono=code),  # fonts of the visitor's own machine
        head=HEAD,
        favicon_path=str(STATIC / "favicon.svg"),
    )


def build(
    engine: Engine, limits: Settings, settings: GenerationSettings | None = None, service: Service | None = None
) -> gr.Blocks:
    """The page over the shared model. Answers of its tools obey `settings`, its visitors `limits`; `service` counts
    what they do."""
    service = service or Service(engine, limits, Metrics(), Path(limits.model).name)
    tools, text, folder = Tools(service, settings), words(), Path(limits.model)
    figures = card.read_figures(folder)
    page = gr.Blocks(title=text["tabs"]["title"], analytics_enabled=False, delete_cache=(CACHE_S, CACHE_S))
    with page, gr.Tabs():
        with gr.Tab(text["tabs"]["talk"], elem_id="tab-talk"):
            place = f'<div id="most"><p>{escape(text["tabs"]["loading"])}</p></div>'
            gr.HTML(place, js_on_load=None, apply_default_css=False, padding=False)
        with gr.Tab(text["tabs"]["tools"], elem_id="tab-tools"):
            _show_tools(tools, text["tools"], limits)
        with gr.Tab(text["tabs"]["model"], elem_id="tab-model"):
            gr.HTML(card.sentences(engine.most, figures) + card.table(figures), js_on_load=None)
            with gr.Accordion(text["card"]["readme"], open=False):
                gr.HTML(card.readme(card.read_readme(folder)), js_on_load=None)
    return page


def _show_tools(tools: Tools, text: dict[str, str], limits: Settings) -> None:
    # Not queued: what may be in work at a time is counted here, and MCP calls then need no way back to this server,
    # which a token or a certificate would bar.
    def on(listeners: list[Any], tool: Callable[..., Awaitable[Any]], inputs: list[Any], outputs: list[Any]) -> None:
        gr.on(listeners, tool, inputs, outputs, api_name=tool.__name__, queue=False)

    gr.Markdown(f"### {text['ask']}\n{text['ask_about']}")
    with gr.Row():
        with gr.Column():
            question = gr.Textbox("", label=text["question"], lines=2, max_length=limits.characters)
            recording = gr.Audio(label=text["recording"], sources=["microphone", "upload"], type="filepath", buttons=[])
            button = gr.Button(text["ask"], variant="primary")
        with gr.Column():
            heard = gr.Textbox(label=text["heard"], interactive=False)
            answer = gr.Textbox(label=text["answer"], interactive=False, lines=2)
            sound = gr.Audio(label=text["answer_sound"], interactive=False, autoplay=True, buttons=["download"])
            took = gr.JSON(label=text["took"])
    on([button.click, question.submit], tools.ask, [question, recording], [heard, answer, sound, took])
    gr.Markdown(f"### {text['transcribe']}\n{text['transcribe_about']}")
    with gr.Row():
        with gr.Column():
            speech = gr.Audio(label=text["speech"], sources=["microphone", "upload"], type="filepath", buttons=[])
            button = gr.Button(text["transcribe"], variant="primary")
        transcript = gr.Textbox(label=text["transcript"], interactive=False, lines=3, buttons=["copy"])
    on([button.click], tools.transcribe, [speech], [transcript])
    gr.Markdown(f"### {text['speak']}\n{text['speak_about']}")
    with gr.Row():
        with gr.Column():
            said = gr.Textbox(label=text["text"], lines=2, max_length=limits.characters)
            button = gr.Button(text["speak"], variant="primary")
        spoken = gr.Audio(label=text["spoken"], interactive=False, autoplay=True, buttons=["download"])
    on([button.click, said.submit], tools.speak, [said], [spoken])


class Tools:
    """What can be called. Their docstrings are what MCP clients read."""

    def __init__(self, service: Service, settings: GenerationSettings | None) -> None:
        self.service = service
        self.options = {"settings": settings, "record_routing": bool(service.most.config.moe_layers)}

    async def ask(self, text: str | None = "", recording: str | None = None) -> tuple[str, str, Sound | None, Any]:
        """Answer one question, typed or spoken, in words and in speech. Give either the text or the recording.

        Args:
            text: The question, in English.
            recording: A sound file with the spoken question: its URL, or a data: URL with the file itself.

        Returns:
            What was heard, the answer, the spoken answer as a sound file, and what took how many milliseconds.
        """
        with self._working():
            if recording is not None:
                if self.service.most.encoder is None:
                    raise ValueError(_error("deaf"))
                sound, rate = await asyncio.to_thread(read_sound, recording, longest_s=self.service.settings.seconds)
                reply = await self._reply(sound, rate)
            else:
                reply = await self._reply(self._text(text, "nothing_asked"))
        facts = {f"{name} ms": round(ms, 1) for name, ms in reply.timings.items()}
        if reply.trace is not None:
            leaks = round(reply.trace.leakage * reply.trace.num_tokens)
            facts["tokens routed outside their experts"] = f"{leaks} of {reply.trace.num_tokens}"
        facts["confidence"] = round(reply.confidence, 2)
        return reply.heard, reply.text, _sound(reply.waveform, reply.sample_rate), facts

    async def transcribe(self, recording: str | None) -> str:
        """Write down what is said in a recording, in English, by the language model.

        Args:
            recording: A sound file with speech: its URL, or a data: URL with the file itself.

        Returns:
            What was said.
        """
        with self._working():
            if recording is None:
                raise ValueError(_error("nothing_recorded"))
            if self.service.most.encoder is None:
                raise ValueError(_error("deaf"))
            data = await asyncio.to_thread(Path(recording).read_bytes)
            wave = await asyncio.to_thread(read_recording, self.service, data, Path(recording).name)
            return await written(self.service, wave)

    async def speak(self, text: str) -> Sound | None:
        """Read an English text aloud, in the model's one voice.

        Args:
            text: What is to be said.

        Returns:
            The speech as a sound file.
        """
        with self._working():
            if self.service.most.vocoder is None:
                raise ValueError(_error("mute"))
            spoken = Spoken(self.service, self._text(text, "nothing_written"))
            async with contextlib.aclosing(spoken.pieces()) as pieces:
                made = [piece async for piece in pieces]
            return _sound(np.concatenate(made), WIRE_RATE) if made else None

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        """One more is in work, if there may be; whatever goes wrong is told in one line."""
        service = self.service
        try:
            if service.in_work >= service.settings.requests:
                service.metrics.refused.labels("requests").inc()
                raise busy(f"{service.settings.requests} requests are in work already")
            service.in_work += 1
            try:
                yield
            finally:
                service.in_work -= 1
        except (ValueError, OSError, RuntimeError, Busy, Refusal) as error:
            raise gr.Error(str(error), print_exception=False) from None

    def _text(self, text: str | None, missing: str) -> str:
        text = text or ""
        limit = self.service.settings.characters  # the box stops there, programs do not
        if len(text) > limit:
            raise ValueError(_error("too_long").format(given=len(text), limit=limit))
        if not text.strip():
            raise ValueError(_error(missing))
        return text

    async def _reply(self, given: str | np.ndarray, rate: int = SAMPLE_RATE) -> Reply:
        most = self.service.most
        job = self.service.engine.stream(
            lambda cancel: most.stream(given, sampling_rate=rate, cancel=cancel, **self.options)
        )
        async with contextlib.aclosing(job) as events:
            replies = [event.reply async for event in events if isinstance(event, Done)]
        if not replies:  # the engine ends its jobs when it is closed
            raise RuntimeError("the server is closing")
        return replies[0]


def _sound(samples: np.ndarray, rate: int) -> Sound | None:
    return (rate, np.frombuffer(to_pcm16(samples), np.int16)) if len(samples) else None


def _error(key: str) -> str:
    return words()["errors_server"][key]
