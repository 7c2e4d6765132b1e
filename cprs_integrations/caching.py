"""A cache of documents that have been cut: the next question about the same ones finds their units and tokens made."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from cprs_integrations.critics.base import Tokens
from cprs_integrations.errors import ArgumentError
from cprs_integrations.units import Unit
from cprs_integrations.windows import Ints

_Key = tuple[int, bytes]
_DOCUMENT, _PART = 300, 1_100  # bytes of a document's key and entry, and of the objects of a part: measured, on CPython 3.11


@dataclass(frozen=True)
class Part:
    """Units of a document that follow each other, with their tokens.

    Attributes:
        places: [units, 3] start, end and paragraph of each.
        tokens: of them all.
    """

    places: Ints
    tokens: Tokens

    @classmethod
    def of(cls, units: Iterable[Unit], tokens: Tokens) -> "Part":
        """Keep what a cut has, in arrays of its own."""
        return cls(np.array(list(units), dtype=np.int32).reshape(-1, 3), tokens)

    @property
    def units(self) -> list[Unit]:
        """The units, as they came."""
        return list(map(Unit._make, self.places.tolist()))

    @property
    def bytes(self) -> int:
        """Of memory that it takes."""
        tokens = self.tokens
        return _PART + sum(column.nbytes for column in (self.places, tokens.ids, tokens.starts, tokens.ends, tokens.counts))


class DocumentCache:
    """Remembers the units and tokens of documents, by a hash of their contents; no text is kept.

    Some 14 bytes a token, and 1,400 a document. What was not used for longest goes first. Threads can share one, and
    engines too.

    Args:
        max_bytes: of all that is remembered; a document that takes more is not.

    Raises:
        ArgumentError: `max_bytes` is no whole number from 1.
    """

    def __init__(self, max_bytes: int = 256 * 2**20) -> None:
        if type(max_bytes) is not int or max_bytes < 1:
            raise ArgumentError(f"max_bytes must be a whole number of bytes from 1, not {max_bytes!r}")
        self.max_bytes = max_bytes
        self.bytes = 0
        # who made them is kept too: an id is another object's once its owner is gone
        self._known: OrderedDict[_Key, tuple[object, tuple[Part, ...]]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many documents it remembers."""
        return len(self._known)

    def get(self, reader: object, text: str) -> tuple[Part, ...] | None:
        """The parts of a document, if they are known.

        Args:
            reader: who made the tokens: another critic makes others.
            text: the document.
        """
        key = _key(reader, text)
        with self._lock:
            if key not in self._known:
                return None
            self._known.move_to_end(key)
            return self._known[key][1]

    def recorded(self, reader: object, text: str, parts: Iterable[Part]) -> Iterator[Part]:
        """Pass on the parts of a document as they are made, and remember them once all are there."""
        made: list[Part] = []
        size = _DOCUMENT
        for part in parts:
            size += part.bytes
            if size <= self.max_bytes:
                made.append(part)
            else:
                made.clear()
            yield part
        if size <= self.max_bytes:
            self._put(reader, text, tuple(made), size)

    def _put(self, reader: object, text: str, parts: tuple[Part, ...], size: int) -> None:
        key = _key(reader, text)
        with self._lock:
            if key in self._known:
                return
            self._known[key] = reader, parts
            self.bytes += size
            while self.bytes > self.max_bytes:
                _, (_, oldest) = self._known.popitem(last=False)
                self.bytes -= _DOCUMENT + sum(part.bytes for part in oldest)


def _key(reader: object, text: str) -> _Key:
    return id(reader), hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
