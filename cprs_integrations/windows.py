"""Windows: the pieces of a long context that a critic reads at once, each with its own prompt.

Units are packed into windows whole. Every window shows some tokens before and after those it scores, so that no token
is judged without its context; a unit too long for a window is spread over several.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cprs_integrations.errors import ArgumentError

Ints = npt.NDArray[np.int32]
NO_TOKENS: Ints = np.zeros(0, dtype=np.int32)


@dataclass(frozen=True)
class Prompt:
    """What a critic is asked: the instruction, the query, and both as the token ids that stand before every window."""

    instruction: str
    query: str
    ids: Ints


@dataclass(frozen=True)
class Piece:
    """A unit, or a part of one that is too long for a window, on its way into a window.

    Attributes:
        document: index of its document.
        unit: index of its unit in the whole context.
        text: its text.
        ids: its token ids.
        title: token ids of its document's title, empty if there is none.
    """

    document: int
    unit: int
    text: str
    ids: Ints
    title: Ints = field(default_factory=lambda: NO_TOKENS)


@dataclass(frozen=True)
class Window:
    """What a critic reads at once.

    Attributes:
        prompt: the question, with its token ids.
        ids: token ids of titles, separators, context and scored text, in reading order (without the prompt's).
        rows: the places in `ids` of the tokens that are scored here: `ids[rows]` are consecutive tokens of the context.
        pieces: the scored units or parts of units, in order.
        borders: where each piece begins among `rows`; one more for the end of the last.
        start: the number of its first scored token in the whole context.
    """

    prompt: Prompt
    ids: Ints
    rows: npt.NDArray[np.intp]
    pieces: tuple[Piece, ...]
    borders: Ints
    start: int = 0

    @property
    def characters(self) -> int:
        """Characters that are scored here."""
        return sum(len(piece.text) for piece in self.pieces)


@dataclass(frozen=True)
class Limits:
    """How a critic wants its windows.

    Attributes:
        window: tokens of a window, its prompt included.
        longest: tokens up to which a window grows to make room for a long prompt.
        margin: tokens of context that a window shows on either side of what it scores.
    """

    window: int
    longest: int
    margin: int

    def room(self, prompt: Prompt) -> int:
        """Return the tokens that remain for a window's text.

        Raises:
            ArgumentError: the prompt would leave less than half a window.
        """
        needed = max(self.window // 2, 4 * self.margin + 4)
        size = min(self.longest, max(self.window, len(prompt.ids) + needed))
        if size - len(prompt.ids) < needed:
            raise ArgumentError(
                f"query and instruction are {len(prompt.ids)} tokens together; this critic takes at most "
                f"{self.longest - needed}: shorten them, or use a critic with larger windows"
            )
        return size - len(prompt.ids)


class _Draft:
    """A window in the making: filled with pieces, then with the context after them."""

    def __init__(self, room: int, margin: int, separator: Ints, start: int) -> None:
        self.room, self.margin, self.separator, self.start = room, margin, separator, start
        self.parts: list[Ints] = []
        self.length = self.document = 0
        self.pieces: list[Piece] = []
        self.rows: list[npt.NDArray[np.intp]] = []
        self.after = 0
        self.closed = self.done = False

    def take(self, piece: Piece, before: Ints) -> bool:
        """Add a piece to be scored, if there is room for it and for the context after it."""
        opening = self._opening(piece, before)
        if self.pieces and self.length + len(opening) + len(piece.ids) + self.margin > self.room:
            return False
        self._show(opening)
        self.rows.append(np.arange(self.length, self.length + len(piece.ids)))
        self._show(piece.ids)
        self.pieces.append(piece)
        self.document = piece.document
        return True

    def show_after(self, piece: Piece) -> None:
        """Show the context that follows; done when the margin is full or the document ends."""
        if piece.document == self.document:
            wanted = piece.ids[: self.margin - self.after]
            self._show(wanted)
            self.after += len(wanted)
        self.done = piece.document != self.document or self.after == self.margin

    def _opening(self, piece: Piece, before: Ints) -> Ints:
        if self.pieces and piece.document == self.document:
            return NO_TOKENS
        separator = self.separator if self.pieces else NO_TOKENS
        return np.concatenate((separator, piece.title, NO_TOKENS if self.pieces else before))

    def _show(self, ids: Ints) -> None:
        self.parts.append(ids)
        self.length += len(ids)

    def window(self, prompt: Prompt) -> Window:
        return Window(
            prompt=prompt,
            ids=np.concatenate(self.parts),
            rows=np.concatenate(self.rows),
            pieces=tuple(self.pieces),
            borders=np.cumsum([0, *(len(piece.ids) for piece in self.pieces)], dtype=np.int32),
            start=self.start,
        )


def largest_title(room: int) -> int:
    """Tokens of a title that windows show: a long one must not crowd out the text."""
    return min(24, room // 4)


def largest_piece(room: int, margin: int, extra: int) -> int:
    """Tokens that a piece may have so that it fits a window with the context on both sides and `extra` tokens."""
    return room - 2 * margin - extra


def pack(pieces: Iterable[Piece], prompt: Prompt, room: int, margin: int, separator: Ints) -> Iterator[Window]:
    """Pack pieces into windows, in order and lazily: a window is ready once the context after it has been seen.

    Args:
        pieces: no one larger than `largest_piece`.
        prompt: stands before every window.
        room: tokens of a window, prompt not counted.
        margin: tokens of context on either side, from the same document.
        separator: token ids between two documents in one window.
    """
    waiting: list[_Draft] = []
    before = NO_TOKENS
    document, start = -1, 0
    for piece in pieces:
        if piece.document != document:
            before, document = NO_TOKENS, piece.document
        for draft in waiting:
            if draft.closed and not draft.done:
                draft.show_after(piece)
        if not waiting or waiting[-1].closed or not waiting[-1].take(piece, before):
            if waiting and not waiting[-1].closed:
                waiting[-1].closed = True
                waiting[-1].show_after(piece)
            waiting.append(_Draft(room, margin, separator, start))
            waiting[-1].take(piece, before)
        start += len(piece.ids)
        while waiting[0].done:
            yield waiting.pop(0).window(prompt)
        before = np.concatenate((before, piece.ids))[-margin:] if margin else NO_TOKENS
    for draft in waiting:
        yield draft.window(prompt)
