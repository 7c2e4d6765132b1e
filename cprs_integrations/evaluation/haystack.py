"""The text in which things are hidden: a folder of yours, or CPython's own documents."""

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np

from cprs_integrations.errors import ArgumentError
from cprs_integrations.examples import read_haystack
from cprs_integrations.selection import TokenCounter

SENTENCE = re.compile(r"(?<=[.!?])\s+|\n\s*\n")
"""A border between two sentences, or two paragraphs."""
LINE = re.compile(r"\n")

_PARAGRAPH = re.compile(r"\n\s*\n")
_WORD = re.compile(r"\b[a-z]{4,12}\b")
_LONGEST = 40  # characters of a word
_SAMPLE = 200_000  # characters from which tokens a character are guessed

Rng = np.random.Generator


class Haystack:
    """Paragraphs of some texts, to be strung together at any length.

    A stretch begins at a random paragraph and goes on in the order of the texts, from the last to the first again, until
    every paragraph was there once. What is longer goes on with all paragraphs, shuffled anew each time: a long context has
    the same paragraphs several times, but never the same page.

    Args:
        texts: the texts.
        name: what a report calls them.
    """

    def __init__(self, texts: Sequence[str], name: str) -> None:
        self.name = name
        self._paragraphs = [part.strip("\n") for text in texts for part in _PARAGRAPH.split(text) if part.strip()]
        if not self._paragraphs:
            raise ArgumentError(f"haystack: {name} has no text")

    @classmethod
    def of(cls, folder: Path | None) -> "Haystack":
        """Read a folder of texts (.txt, .md, .jsonl.gz with a `text` in each line); None: CPython's language reference.

        Raises:
            ArgumentError: the folder has no text.
        """
        if folder is None:
            return cls(list(topics.values()), "CPython's language reference (pydoc_data.topics)")
        return cls(read_haystack(folder), named(folder))

    @cached_property
    def characters(self) -> int:
        """Of all texts together."""
        return sum(len(paragraph) + 2 for paragraph in self._paragraphs)

    @cached_property
    def digest(self) -> str:
        """What changes when the texts do."""
        return hashlib.sha256("\n\n".join(self._paragraphs).encode("utf-8", "surrogatepass")).hexdigest()[:16]

    @cached_property
    def words(self) -> list[str]:
        """The distinct words of 4 to 12 small letters, sorted."""
        return sorted({word for paragraph in self._paragraphs for word in _WORD.findall(paragraph)})

    def text(self, size: int, rng: Rng) -> str:
        """A stretch of `size` characters, cut at a space."""
        first, count = int(rng.integers(len(self._paragraphs))), len(self._paragraphs)
        order: Sequence[int] = [*range(first, count), *range(first)]
        parts: list[str] = []
        length = 0
        while length < size:
            for number in order:
                parts.append(self._paragraphs[number])
                length += len(parts[-1]) + 2
                if length >= size:
                    break
            order = rng.permutation(count).tolist()
        return cut("\n\n".join(parts), size)

    def guess(self, tokens: int, count: TokenCounter) -> int:
        """About how many characters have so many tokens."""
        if not hasattr(self, "_density"):
            sample = self.text(min(_SAMPLE, self.characters), np.random.default_rng(0))
            self._density = len(sample) / max(1, count(sample))
        return max(1, round(tokens * self._density))


def named(folder: Path) -> str:
    """What a report calls a folder: reports are passed on, and where it lies is nobody's business."""
    return folder.resolve().name or str(folder)


def cut(text: str, size: int) -> str:
    """The first `size` characters of a text, without a word that is cut, unless it is a very long one."""
    if len(text) <= size:
        return text
    near = max(0, size - _LONGEST)
    space = max(text.rfind(" ", near, size + 1), text.rfind("\n", near, size + 1))
    return text[: space if space > 0 else size].rstrip()


def plant(
    text: str, statements: Sequence[str], depths: Sequence[float], border: re.Pattern[str] = SENTENCE
) -> tuple[str, list[tuple[int, int]]]:
    """Hide statements in a text, each at the first border from its depth on: 0 is before the text, 1 behind it.

    Returns:
        The longer text, and the place of each statement in it.
    """
    text = text.rstrip() + "\n"
    places = [_place(text, depth, border) for depth in depths]
    parts: list[str] = []
    spans: list[Any] = [None] * len(statements)
    length = last = 0
    for number in sorted(range(len(statements)), key=lambda number: places[number][0]):
        place, gap = places[number]
        parts += (text[last:place], statements[number], gap)
        start = length + place - last
        spans[number] = (start, start + len(statements[number]))
        length, last = start + len(statements[number]) + len(gap), place
    return "".join([*parts, text[last:]]).rstrip(), spans


def _place(text: str, depth: float, border: re.Pattern[str]) -> tuple[int, str]:
    if depth <= 0:
        return 0, "\n"
    found = border.search(text, round(depth * len(text))) if depth < 1 else None
    return (found.end(), found[0]) if found else (len(text), "\n")
