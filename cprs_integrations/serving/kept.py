"""Scores that are kept for a while, so that another budget costs no forward pass."""

import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import fields

import numpy as np

from cprs_integrations.scored import Scored
from cprs_integrations.serving.settings import Settings


class Kept:
    """Scored contexts by ids that nobody guesses; bounded in time and memory."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[Scored, int, float]] = OrderedDict()
        self.bytes = 0

    def put(self, scored: Scored) -> str | None:
        """Keep scores; return their id, or None if they alone are over the bound."""
        size = size_of(scored)
        if size > self._settings.kept_bytes:
            return None
        name = secrets.token_urlsafe(18)
        with self._lock:
            self._known[name] = (scored, size, time.monotonic())
            self.bytes += size
            self._forget()
        return name

    def get(self, name: str) -> Scored | None:
        """Return the scores of an id, if they are still there."""
        with self._lock:
            self._forget()
            if name not in self._known:
                return None
            scored, size, _ = self._known.pop(name)
            self._known[name] = (scored, size, time.monotonic())
            return scored

    def _forget(self) -> None:
        """Drop what is too old, and the oldest while all is too large."""
        latest = time.monotonic() - self._settings.kept_seconds
        while self._known:
            name, (_, size, used) = next(iter(self._known.items()))
            if used >= latest and self.bytes <= self._settings.kept_bytes:
                return
            del self._known[name]
            self.bytes -= size


def size_of(scored: Scored) -> int:
    """Bytes of memory of a scored context: its arrays, and its texts at the most that Python takes for them."""
    arrays = (getattr(scored, known.name) for known in fields(scored))
    texts = sum(len(text) * (1 if text.isascii() else 4) for text in scored.context.documents)
    return texts + sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
