"""Scores that the server keeps for a while, so that another budget costs no forward pass."""

import asyncio
import secrets
import sys
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from cprs_integrations.scored import Scored

_OBJECTS = 16_384  # bytes that the objects of an entry take besides its texts and arrays


@dataclass
class _Entry:
    scored: Scored
    size: int
    until: float


class Kept:
    """Scored contexts under ids that nobody guesses; the least recently used go when memory or time runs out.

    Args:
        seconds: how long one is kept after its last use.
        size: bytes that all may take together.
    """

    def __init__(self, seconds: float, size: int) -> None:
        self._seconds, self._size = seconds, size
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, scored: Scored) -> str | None:
        """Keep scores; return their id, or None if they alone are larger than what may be kept."""
        size = _size(scored)
        if size > self._size:
            return None
        key = secrets.token_urlsafe(24)
        with self._lock:
            self._entries[key] = _Entry(scored, size, time.monotonic() + self._seconds)
            self.bytes += size
            self._tidy()
        return key

    def get(self, key: str) -> Scored | None:
        """Return what is kept under an id, if it still is."""
        with self._lock:
            self._tidy()
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            entry.until = time.monotonic() + self._seconds
            return entry.scored

    async def expire(self) -> None:
        """Let go of each that has had its time, for as long as the server runs: texts stay no longer in an idle one, either."""
        while True:
            with self._lock:
                self._tidy()
                until = next((entry.until for entry in self._entries.values()), time.monotonic() + self._seconds)
            await asyncio.sleep(max(0.05, until - time.monotonic()))

    def _tidy(self) -> None:
        now = time.monotonic()
        while self._entries:
            key, entry = next(iter(self._entries.items()))
            if self.bytes <= self._size and entry.until > now:
                break
            del self._entries[key]
            self.bytes -= entry.size


def _size(scored: Scored) -> int:
    arrays = sum(value.nbytes for value in vars(scored).values() if isinstance(value, np.ndarray))
    texts = (*scored.context.documents, *scored.context.titles, scored.prompt.query, scored.prompt.instruction)
    return _OBJECTS + arrays + sum(map(sys.getsizeof, texts))
