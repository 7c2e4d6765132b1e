"""The long context: documents in a row, every position in it traceable back to its document."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from cprs_integrations.errors import ArgumentError

_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_CHARACTERS = 2**31 - 1


@dataclass(frozen=True)
class LongContext:
    """Documents laid end to end; nothing is copied.

    Attributes:
        documents: the texts, as they came.
        titles: one a document, "" where there is none.
        starts: where each document starts in the whole, in characters; one more for the end of the last.
    """

    documents: tuple[str, ...]
    titles: tuple[str, ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, documents: str | Sequence[str], titles: Sequence[str | None] | None = None) -> "LongContext":
        """Check and lay out documents.

        Args:
            documents: one text or a sequence of texts; empty and blank ones are allowed.
            titles: one a document, None or "" where there is none.

        Raises:
            ArgumentError: something among the documents or titles is no text, their numbers differ, or the whole is
                longer than 2**31 - 1 characters.
        """
        texts = (documents,) if isinstance(documents, str) else documents
        if isinstance(texts, bytes | bytearray) or not isinstance(texts, Sequence):
            raise ArgumentError(f"documents must be a str or a sequence of str, not {type(documents).__name__}")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise ArgumentError(f"documents[{index}] must be a str, not {type(text).__name__}; decode or extract its text")
        if titles is None:
            titles = ("",) * len(texts)
        elif isinstance(titles, str) or not isinstance(titles, Sequence) or len(titles) != len(texts):
            raise ArgumentError(f"titles must be a sequence of one title (or None) for each of the {len(texts)} documents")
        for index, title in enumerate(titles):
            if not isinstance(title, str | None):
                raise ArgumentError(f"titles[{index}] must be a str or None, not {type(title).__name__}")
        starts = tuple(accumulate((len(text) for text in texts), initial=0))
        if starts[-1] > _MAX_CHARACTERS:
            raise ArgumentError(
                f"documents: {starts[-1]:,} characters in one context; pass at most {_MAX_CHARACTERS:,} at once"
            )
        return cls(tuple(texts), tuple(title or "" for title in titles), starts)

    def __len__(self) -> int:
        """Characters of all documents together."""
        return self.starts[-1]

    def document_at(self, position: int) -> int:
        """Index of the document in which a position of the whole lies."""
        return bisect_right(self.starts, position) - 1

    def slice(self, start: int, end: int) -> str:
        """The text between two positions of the whole that lie in one document."""
        index = self.document_at(start)
        base = self.starts[index]
        return self.documents[index][start - base : end - base]


def readable(text: str) -> str:
    """Replace lone surrogates, which no tokenizer takes, by U+FFFD: the same length, so every offset holds."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def utf8_length(text: str) -> int:
    """Bytes of a text in UTF-8, lone surrogates counted as three."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
