"""OpenAI's Realtime protocol: a spoken conversation over a WebSocket."""
