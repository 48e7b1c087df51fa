"""The page until the voice assistant exists: type or upload a question, read and hear the answer."""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np

from app.audio import read_sound, to_pcm16
from app.engine import Busy, Engine
from app.settings import Settings
from most_core import Done, GenerationSettings, Reply
from most_core.speech import SAMPLE_RATE

CACHE_S = 600  # uploads and answers are deleted then
TITLE = "MoST, a speech-text mixture of experts"


def build(engine: Engine, limits: Settings, settings: GenerationSettings | None = None) -> gr.Blocks:
    """A Blocks page over the shared model, whose replies obey `settings` and whose visitors `limits`."""
    most = engine.most
    options = {"settings": settings, "record_routing": bool(most.config.moe_layers)}

    def reply_to(given: str | np.ndarray, rate: int = SAMPLE_RATE) -> Reply:
        events = engine.run(lambda cancel: most.stream(given, sampling_rate=rate, cancel=cancel, **options))
        return next(event.reply for event in events if isinstance(event, Done))

    def ask(text: str, recording: str | None) -> tuple[str, str, tuple[int, np.ndarray] | None, Any]:
        """Answer a typed or spoken question: (heard, answer, sound, timings)."""
        try:
            if recording is not None:
                reply = reply_to(*read_sound(recording, longest_s=limits.seconds))
            elif len(text) > limits.characters:  # the box stops there, programs do not
                raise gr.Error(f"The text has {len(text)} characters, the limit is {limits.characters}: shorten it.")
            elif text.strip():
                reply = reply_to(text)
            else:
                raise gr.Error("Type a question or give a recording.")
        except (ValueError, OSError, RuntimeError, Busy) as error:
            raise gr.Error(str(error), print_exception=False) from None
        pcm = np.frombuffer(to_pcm16(reply.waveform), np.int16)
        sound = (reply.sample_rate, pcm) if len(pcm) else None
        facts = {f"{name} ms": round(ms, 1) for name, ms in reply.timings.items()}
        if reply.trace is not None:
            leaks = round(reply.trace.leakage * reply.trace.num_tokens)
            facts["tokens routed outside their experts"] = f"{leaks} of {reply.trace.num_tokens}"
        facts["confidence"] = round(reply.confidence, 2)
        return reply.heard, reply.text, sound, facts

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(CACHE_S, CACHE_S)) as page:
        gr.Markdown(f"# {TITLE}")
        with gr.Row():
            with gr.Column():
                text = gr.Textbox(label="Type a question", lines=2, max_length=limits.characters)
                recording = gr.Audio(
                    label="or record or upload one", sources=["microphone", "upload"], type="filepath", buttons=[]
                )
                button = gr.Button("Ask", variant="primary")
            with gr.Column():
                heard = gr.Textbox(label="Heard", interactive=False)
                answer = gr.Textbox(label="Answer", interactive=False, lines=2)
                sound = gr.Audio(label="Spoken answer", interactive=False, autoplay=True, buttons=["download"])
                facts = gr.JSON(label="What it took")
        outputs = [heard, answer, sound, facts]
        gr.on([button.click, text.submit], ask, [text, recording], outputs, api_name="ask")
    return page
