"""The output of an agent's tool, shortened once, when it enters the conversation. Shared by the adapters for agents.

Needs pydantic, which comes with either framework.
"""

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from cprs_integrations.adapters import CPRSOptions, passed_through
from cprs_integrations.context import LongContext
from cprs_integrations.engine import Engine
from cprs_integrations.errors import ArgumentError
from cprs_integrations.lines import abridge, line_starts, written_in_lines
from cprs_integrations.result import BLANK_LINE, CompressedContext, CompressedDocument, LeftOut, Span
from cprs_integrations.selection import Bounds

_UNASKED = "nothing is asked: no message of the user, no wording among the arguments, and no instruction"
_LONGEST_WORDING = 200  # characters of an argument that may be a wording; what is longer is a payload


@dataclass(frozen=True)
class Shortened:
    """What is left of the texts of one output: as many texts, and the JSON that tells what was done."""

    texts: tuple[str, ...]
    metadata: dict[str, Any]


@dataclass(frozen=True)
class _Piece:
    """A stretch that the engine kept, of the text with this number; of a text in lines, a part of one line."""

    text: int
    span: Span
    is_protected: bool

    @property
    def left_out(self) -> LeftOut:
        return LeftOut(self.text, self.span.start, self.span.end, "protected: its lines and their markers do not fit")


class ToolOutputOptions(CPRSOptions):
    """The options of an adapter for tool outputs: those of all adapters, and two more.

    Bounds count the text that the model reads: markers and separators included.
    """

    min_chars: int = Field(2_000, strict=True, ge=0, description="Outputs of fewer characters are left as they are.")
    whole_lines: bool | None = Field(
        None,
        strict=True,
        description="Keep whole lines and mark the gaps (True), or sentences (False); None: lines of what is written in lines.",
    )

    @classmethod
    def checked(cls, options: Mapping[str, Any]) -> Self:
        """Return the options, or raise an ArgumentError that names the wrong one."""
        try:
            return cls(**options)
        except ValidationError as error:
            wrong = "; ".join(_told(found["loc"], found["msg"]) for found in error.errors())
            raise ArgumentError(f"{wrong} (options: {', '.join(cls.model_fields)})") from error

    @model_validator(mode="after")
    def _check_counter(self) -> Self:
        uncounted = self.max_tokens is not None and self.token_counter is None
        if uncounted and self.engine is not None and not hasattr(self.engine, "count_tokens"):
            raise ArgumentError("max_tokens with an engine that has no count_tokens needs a token_counter: pass one")
        return self

    def wants(self, texts: Sequence[str]) -> bool:
        """Whether an output is long enough to be shortened."""
        return sum(map(len, texts)) >= max(self.min_chars, 1)

    def shorten(self, texts: Sequence[str], query: str) -> Shortened:
        """Shorten the texts of one output, which share one budget. Where nothing is asked of them, they stay as they are.

        Raises:
            CPRSError: it failed, and `on_error` is "raise".
        """
        if self._asks_nothing(query):
            return self._unasked(texts)
        try:
            engine = self._engine()
            return self._fitted(texts, engine.compress(**self._request(texts, query)), engine)
        except Exception as error:  # noqa: BLE001 - on_error decides
            return self._untouched(texts, error)

    async def ashorten(self, texts: Sequence[str], query: str) -> Shortened:
        """`shorten` without holding the event loop."""
        if self._asks_nothing(query):
            return self._unasked(texts)
        try:
            engine = self._engine()
            compressed = await engine.acompress(**self._request(texts, query))
            return await asyncio.to_thread(self._fitted, texts, compressed, engine)
        except Exception as error:  # noqa: BLE001 - on_error decides
            return self._untouched(texts, error)

    def _asks_nothing(self, query: str) -> bool:
        return not query.strip() and not (self.instruction or "").strip()

    def _unasked(self, texts: Sequence[str]) -> Shortened:
        """No fault of the agent's run, so that `on_error` has no say: a call without arguments may be its first step."""
        return Shortened(tuple(texts), passed_through(_UNASKED, "".join(texts)))

    def _untouched(self, texts: Sequence[str], error: Exception) -> Shortened:
        return Shortened(tuple(texts), passed_through(self._reason(error), "".join(texts)))

    def _fitted(self, texts: Sequence[str], compressed: CompressedContext, engine: Engine) -> Shortened:
        """Write out what the engine kept, as much of it as the bounds allow once whole lines and markers are counted."""
        by_line = [written_in_lines(text) if self.whole_lines is None else self.whole_lines for text in texts]
        pieces = sorted(
            (
                piece
                for index, text in enumerate(texts)
                for piece in self._pieces(index, text, compressed.documents[index].spans, by_line[index])
            ),
            key=lambda piece: (not piece.is_protected, -piece.span.score),
        )

        def written(count: int) -> list[_Written]:
            kept: list[list[Span]] = [[] for _ in texts]
            for piece in pieces[:count]:
                kept[piece.text].append(piece.span)
            return list(map(_write, texts, kept, by_line))

        fits = self._limit(texts, engine)
        count = _most(len(pieces), lambda count: fits([found.text for found in written(count)]))
        if count > 0 or (count == 0 and not pieces):
            found = written(count)
        else:
            # not even one whole line with its markers fits: the engine's own spans do
            count = len(pieces)
            found = [_Written(document.text, document.spans, None) for document in compressed.documents]
        left_out = [*compressed.stats.left_out, *(piece.left_out for piece in pieces[count:] if piece.is_protected)]
        return Shortened(
            tuple(one.text for one in found),
            {
                "query": compressed.query,
                "original_chars": sum(map(len, texts)),
                "kept_chars": sum(len(one.text) for one in found),
                "texts": [one.metadata(text) for one, text in zip(found, texts, strict=True)],
                "left_out": [asdict(one) for one in left_out],
            },
        )

    def _pieces(self, number: int, text: str, spans: Sequence[Span], by_line: bool) -> Iterator[_Piece]:
        """Cut the spans of a text in lines at line breaks, but no protected match that the engine kept."""
        begins = [span.start for span in spans]

        def is_kept(start: int, end: int) -> bool:
            index = bisect_right(begins, start) - 1
            return index >= 0 and end <= spans[index].end

        matches = [match for match in Bounds(protect=self.protect).matches(LongContext.of(text)) if is_kept(*match)]
        ends = [end for _, end in matches]

        def has_match(place: int, limit: int) -> bool:
            """Whether a match reaches beyond `place` that begins before `limit`."""
            index = bisect_right(ends, place)
            return index < len(matches) and matches[index][0] < limit

        starts = line_starts(text) if by_line else []
        for span in spans:
            inside = starts[bisect_right(starts, span.start) : bisect_left(starts, span.end)]
            borders = [span.start, *(border for border in inside if not has_match(border, border)), span.end]
            for start, end in pairwise(borders):
                yield _Piece(number, replace(span, start=start, end=end), has_match(start, end))

    def _limit(self, texts: Sequence[str], engine: Any) -> Callable[[Sequence[str]], bool]:
        """Whether written texts are within the bounds together."""
        characters = sum(map(len, texts))

        def fits(written: Sequence[str]) -> bool:
            whole = BLANK_LINE.join(text for text in written if text)
            if self.max_ratio is not None and len(whole) > int(characters * self.max_ratio):
                return False
            return self.max_tokens is None or (self.token_counter or engine.count_tokens)(whole) <= self.max_tokens

        return fits


def question(asked: str, arguments: Any) -> str:
    """Return what a tool's output is to answer: the user's words, and the wordings among the call's arguments.

    The user's words alone miss what the model is after in this one call, a later hop of a question that needs several; the
    arguments alone (a path, a number) often say nothing of it. Arguments too long for a wording are payloads: code, a file.
    """
    wordings = [word for word in _leaves(arguments) if word.strip() and len(word) <= _LONGEST_WORDING and word not in asked]
    return "\n".join(filter(str.strip, [asked, *dict.fromkeys(wordings)]))


@dataclass(frozen=True)
class _Written:
    """A shortened text, what was kept of it, and the gaps between its lines, if it is one of lines."""

    text: str
    spans: tuple[Span, ...]
    omitted: tuple[tuple[int, int], ...] | None

    def metadata(self, source: str) -> dict[str, Any]:
        found = CompressedDocument(self.text, self.spans, len(source)).metadata
        return found if self.omitted is None else {**found, "omitted_lines": list(map(list, self.omitted))}


def _write(text: str, kept: list[Span], by_line: bool) -> _Written:
    kept.sort(key=lambda span: span.start)
    if not by_line:
        if not kept and len(marker := f"[{len(text)} characters omitted]") < len(text):
            return _Written(marker, (), None)
        spans = tuple(kept)
        return _Written(CompressedDocument.of(text, spans).text, spans, None)
    abridged = abridge(text, [(span.start, span.end) for span in kept])
    starts = [span.start for span in kept]
    stretches = []
    for start, end in abridged.kept:
        inside = kept[bisect_left(starts, start) : bisect_right(starts, end)]
        best = max(inside, key=lambda span: span.score, default=Span(start, end, 0.0))
        stretches.append(replace(best, start=start, end=end))
    return _Written(abridged.text, tuple(stretches), abridged.omitted)


def _most(count: int, fits: Callable[[int], bool]) -> int:
    """The most of `count` that fit, by halving; -1 if not even none of them do."""
    if fits(count):
        return count
    low, high = -1, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield str(value)


def _told(place: Sequence[int | str], message: str) -> str:
    named = ".".join(map(str, place))
    return f"{named}: {message}" if named else message
