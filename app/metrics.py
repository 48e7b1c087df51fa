"""What happens in the server, counted for Prometheus; no words of anybody's."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

MOMENTS_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10)


class Metrics:
    """One server's counters. Every label's values are known beforehand, so that nobody can make them grow."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.sessions = Gauge("most_sessions", "conversations that go on", registry=registry)
        self.waiting = Gauge("most_sessions_waiting", "conversations that wait for their turn", registry=registry)
        self.refused = Counter("most_refused", "who was not let in", ["why"], registry=registry)
        self.turns = Counter("most_turns", "turns by how they ended", ["status"], registry=registry)
        self.requests = Counter("most_requests", "REST requests", ["route", "status"], registry=registry)
        self.errors = Counter("most_errors", "errors told to clients", ["code"], registry=registry)
        self.heard_s = Counter("most_heard_seconds", "sound taken in", registry=registry)
        self.spoken_s = Counter("most_spoken_seconds", "sound given out", registry=registry)
        self.model_s = Counter("most_model_seconds", "time that the model worked", registry=registry)
        self.first_sound_s = Histogram(
            "most_first_sound_seconds",
            "from the end of a turn's speech to its reply's first sound",
            registry=registry,
            buckets=MOMENTS_S,
        )

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
