"""OpenAI's REST routes: chat, transcription, speech, models."""

from app.rest.routes import BodyLimit, router

__all__ = ["BodyLimit", "router"]
