"""Sound on its way to a speaker: one thread writes and steers, the device takes. Knows no device."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np


class Speaker:
    """A buffer that is played at `rate`. Any thread may call anything; nothing waits for anything longer than the
    copy of a few samples takes, so a device's callback may call `take`."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._lock = threading.Lock()
        self._waiting: deque[np.ndarray] = deque()
        self._taken = 0
        self._paused = False

    def write(self, samples: np.ndarray) -> None:
        """Play these, float32, after all that waits."""
        if len(samples):
            with self._lock:
                self._waiting.append(samples)

    def pause(self) -> None:
        """Silence from the next sample on; what waits is kept, and more may be written."""
        with self._lock:
            self._paused = True

    def resume(self) -> None:
        """Play on from where it paused."""
        with self._lock:
            self._paused = False

    def flush(self) -> None:
        """Throw away what waits and begin anew: not paused, at position 0."""
        with self._lock:
            self._waiting.clear()
            self._taken, self._paused = 0, False

    def take(self, count: int) -> np.ndarray:
        """The next samples for the device; silence where there are none."""
        samples, filled = np.zeros(count, np.float32), 0
        with self._lock:
            while self._waiting and filled < count and not self._paused:
                piece = self._waiting.popleft()
                part, rest = piece[: count - filled], piece[count - filled :]
                samples[filled : filled + len(part)] = part
                filled += len(part)
                if len(rest):
                    self._waiting.appendleft(rest)
            self._taken += filled
        return samples

    @property
    def position_ms(self) -> float:
        """How much was taken since the last flush, without silence."""
        return 1000 * self._taken / self.rate

    @property
    def empty(self) -> bool:
        """Nothing waits."""
        return not self._waiting
