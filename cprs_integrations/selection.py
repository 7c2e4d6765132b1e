"""Selection: which scored pieces of the documents are kept, under a threshold, a ratio, a token budget.

One budget is shared by all documents. What is counted is what is returned, separators included.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real
from typing import NamedTuple, Protocol, get_args

import numpy as np

from cprs_integrations.context import LongContext
from cprs_integrations.errors import ArgumentError
from cprs_integrations.instructions import Granularity
from cprs_integrations.result import BLANK_LINE, SEPARATOR, LeftOut, Span
from cprs_integrations.tags import Floats, Places
from cprs_integrations.units import clauses

TokenCounter = Callable[[str], int]


class Finder(Protocol):
    """Finds what is protected in another way than Python's `re`, as a server does with patterns of strangers."""

    def finditer(self, text: str) -> Iterator["Match"]:
        """The places in a text, in order."""
        ...


class Match(Protocol):
    """A place in a text, as `re.Match` tells it."""

    def start(self) -> int:
        """Where it starts."""
        ...

    def end(self) -> int:
        """Where it ends."""
        ...


_MAX_GAP = 64  # characters of white space up to which two kept neighbours stay one slice
_PATIENCE = 12  # candidates that may fail to fit: beyond them, what fits is small rather than good
_WORTH_KEEPING = 24  # characters of a part of a unit that does not fit, beside others that do: a shorter one says nothing
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Bounds:
    """What limits a selection.

    Attributes:
        threshold: candidates below this score are not kept; in [0, 1].
        max_ratio: upper bound of returned characters to all characters; in (0, 1].
        max_tokens: upper bound of returned tokens; at least 1.
        protect: regular expressions, or a `Finder`, whose matches are kept first, whole or not at all.
        token_counter: counts the tokens of a text for `max_tokens`; None leaves it to the critic.

    Raises:
        ArgumentError: a value is out of its range, or a pattern does not compile.
    """

    threshold: float | None = None
    max_ratio: float | None = None
    max_tokens: int | None = None
    protect: Sequence[str | re.Pattern[str] | Finder] = ()
    token_counter: TokenCounter | None = None

    def __post_init__(self) -> None:
        if self.token_counter is not None and not callable(self.token_counter):
            raise ArgumentError(f"token_counter must be a function from str to int, not {self.token_counter!r}")
        if self.threshold is not None and not (_is_number(self.threshold) and 0 <= self.threshold <= 1):
            raise ArgumentError(f"threshold must be a number from 0 to 1, not {self.threshold!r}")
        if self.max_ratio is not None and not (_is_number(self.max_ratio) and 0 < self.max_ratio <= 1):
            raise ArgumentError(f"max_ratio must be a number above 0 and up to 1, not {self.max_ratio!r}")
        if self.max_tokens is not None and (not _is_number(self.max_tokens, Integral) or self.max_tokens < 1):
            raise ArgumentError(f"max_tokens must be a whole number from 1, not {self.max_tokens!r}")
        if isinstance(self.protect, str | re.Pattern) or not isinstance(self.protect, Sequence):
            raise ArgumentError(f"protect must be a sequence of regular expressions, not {self.protect!r}")
        for pattern in self.protect:
            _compiled(pattern)

    @property
    def is_open(self) -> bool:
        """Whether nothing was asked for: the critic's threshold decides."""
        return self.threshold is None and self.max_ratio is None and self.max_tokens is None

    def matches(self, context: LongContext) -> list[tuple[int, int]]:
        """Protected stretches of the whole context; matches that overlap are one."""
        found = sorted(
            (base + match.start(), base + match.end())
            for pattern in self.protect
            for text, base in zip(context.documents, context.starts, strict=False)
            for match in _compiled(pattern).finditer(text)
            if match.end() > match.start()
        )
        merged: list[tuple[int, int]] = []
        for start, end in found:
            if merged and start < merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return merged


@dataclass(frozen=True)
class Candidates:
    """Stretches of the whole context that can be kept: disjoint, in order, each with its score and label."""

    starts: Places
    ends: Places
    scores: Floats
    labels: Sequence[str | None] | None = None

    def label(self, index: int) -> str | None:
        """Return the label of a candidate, if it has one."""
        return self.labels[index] if self.labels is not None else None


@dataclass(frozen=True)
class Closeup:
    """A stretch of the context from near: its score, and its units and tokens with their probabilities.

    Attributes:
        score: in [0, 1].
        units: where its units start.
        starts, ends: where its tokens stand.
        keep: probability of each token.
    """

    score: float
    units: Places
    starts: Places
    ends: Places
    keep: Floats


@dataclass(frozen=True)
class Chosen:
    """Kept spans for each document, and what did not fit."""

    spans: tuple[tuple[Span, ...], ...]
    left_out: tuple[LeftOut, ...]


def check_granularity(granularity: str | None) -> None:
    """Raise an ArgumentError if there is no such granularity."""
    if granularity is not None and granularity not in get_args(Granularity):
        allowed = ", ".join(map(repr, get_args(Granularity)))
        raise ArgumentError(f"granularity must be None or one of {allowed}, not {granularity!r}")


def choose(
    context: LongContext,
    candidates: Candidates,
    bounds: Bounds,
    count_tokens: TokenCounter,
    look: Callable[[int, int], Closeup],
) -> Chosen:
    """Keep protected matches, then candidates from the best score down, as long as they fit.

    The first that does not fit is cut to what is left; after it, only what fits whole is kept.

    Args:
        context: the documents.
        candidates: what can be kept.
        bounds: what limits it.
        count_tokens: counts the tokens of a text, for `max_tokens`.
        look: what stands in a stretch of the context, to rank protected matches and to cut a unit that does not fit.
    """
    budget = _Budget(context, bounds, count_tokens)
    kept = _Kept(context)
    left_out = []
    protected = [(start, end, look(start, end).score) for start, end in bounds.matches(context)]
    protected.sort(key=lambda match: -match[2])
    for start, end, score in protected:
        if not budget.admit(kept, start, end, score, None):
            left_out.append(_left_out(context, start, end, f"protected: {end - start} characters do not fit {budget.name}"))
    order = np.argsort(-candidates.scores, kind="stable")
    threshold = np.float32(bounds.threshold if bounds.threshold is not None else 0.0)
    misses, first, is_cut = 0, True, False
    for index in order.tolist():
        if candidates.scores[index] < threshold or misses > _PATIENCE or budget.is_spent(kept):
            break
        start, end = int(candidates.starts[index]), int(candidates.ends[index])
        score, label = round(float(candidates.scores[index]), 6), candidates.label(index)
        if not budget.admit(kept, start, end, score, label):
            misses += 1
            if not is_cut:
                is_cut = _cut(context, budget, kept, Span(start, end, score, label), look, 1 if first else _WORTH_KEEPING)
            if first and not is_cut:
                left_out.append(_left_out(context, start, end, f"the best unit: no part of it fits {budget.name}"))
        first = False
    budget.settle(kept)
    return Chosen(kept.spans(), tuple(left_out))


def _cut(
    context: LongContext, budget: "_Budget", kept: "_Kept", unit: Span, look: Callable[[int, int], Closeup], least: int
) -> bool:
    """Keep the best part of a stretch that fits: whole sentences, else clauses, else words, else tokens.

    It has at least `least` characters. Coarser parts are preferred unless a finer one is worth more than twice as much.
    """
    closeup = look(unit.start, unit.end)
    coarse: list[list[int]] = []
    start, end = unit.start, unit.end
    if len(closeup.units) > 1:
        coarse = [[*closeup.units.tolist(), end]]
        start, end = max(pairwise(coarse[0]), key=lambda borders: look(*borders).score)
    text = context.slice(start, end)
    by_clauses = [*(start + offset for offset in clauses(text)), end]
    by_words = [*(start + word.start() for word in _WORD.finditer(text)), end]
    by_tokens = [*np.unique(look(start, end).starts).tolist(), end]
    finer = ([*coarse, by_clauses, by_words], [by_tokens])
    return any(
        _cut_at(budget, kept, unit, [_Borders.of(context, points, closeup) for points in kinds], least) for kinds in finer
    )


def _cut_at(budget: "_Budget", kept: "_Kept", unit: Span, kinds: "list[_Borders]", least: int) -> bool:
    """Keep the best stretch between the borders of one of some kinds, the coarsest first."""
    limit = min(unit.end - unit.start - 1, budget.characters_left(kept))
    while limit >= least:
        stretches = (borders.best_stretch(limit) for borders in kinds)
        found = [stretch for stretch in stretches if stretch is not None and stretch[2] - stretch[1] >= least]
        if not found:
            return False
        enough = max(worth for worth, _, _ in found) / 2
        start, end = next((start, end) for worth, start, end in found if worth >= enough)
        if budget.admit(kept, start, end, unit.score, unit.label):
            return True
        limit = min(end - start - 1, (end - start) * 3 // 4)
    return False


class _Borders(NamedTuple):
    """Where a stretch may begin or end.

    Attributes:
        places: in the context, in order.
        stops: where a stretch that ends there does so without the white space that closes it.
        worth: of all tokens before.
    """

    places: Places
    stops: Places
    worth: Floats

    @classmethod
    def of(cls, context: LongContext, places: list[int], closeup: Closeup) -> "_Borders":
        sums = np.concatenate(([0.0], np.cumsum(closeup.keep, dtype=np.float64)))
        text = context.slice(places[0], places[-1]) if len(places) > 1 else ""
        ends = [place - places[0] for place in places]
        stops = [places[0] + max(0, end - _MAX_GAP) + len(text[max(0, end - _MAX_GAP) : end].rstrip()) for end in ends]
        return cls(np.array(places), np.array(stops), sums[np.searchsorted(closeup.ends, places, side="right")])

    def best_stretch(self, limit: int) -> tuple[float, int, int] | None:
        """Of the stretches from border to border, at most `limit` characters long, the one worth most: `worth, start, end`."""
        if len(self.places) < 2:
            return None
        lows = np.arange(len(self.places) - 1)
        highs = np.maximum(np.searchsorted(self.stops, self.places[:-1] + limit, side="right") - 1, lows)
        worth = np.where(self.stops[highs] > self.places[:-1], self.worth[highs] - self.worth[lows], -1.0)
        best = int(worth.argmax())
        return None if worth[best] < 0 else (float(worth[best]), int(self.places[best]), int(self.stops[highs[best]]))


class _Kept:
    """Kept stretches, in order and disjoint; neighbours with only white space between them are one."""

    def __init__(self, context: LongContext) -> None:
        self.context = context
        self.stretches: list[list[Span]] = [[] for _ in context.documents]
        self.length = 0
        self.open_documents = 0

    def merged(self, document: int, new: Span) -> tuple[int, int, Span]:
        """The stretches `low:high` of a document that `new` joins, and what they become together."""
        stretches = self.stretches[document]
        low = bisect_left(stretches, new.start, key=lambda span: span.end)
        if low and self._touch(stretches[low - 1].end, new.start):
            low -= 1
        high = low
        while high < len(stretches) and (stretches[high].start <= new.end or self._touch(new.end, stretches[high].start)):
            high += 1
        joined = (*stretches[low:high], new)
        best = max(joined, key=lambda span: span.score)
        return low, high, Span(min(s.start for s in joined), max(s.end for s in joined), best.score, best.label)

    def growth(self, document: int, low: int, high: int, whole: Span) -> int:
        """Characters by which the returned text grows when stretches `low:high` become `whole`."""
        replaced = self.stretches[document][low:high]
        length = whole.end - whole.start - sum(span.end - span.start for span in replaced)
        if not self.stretches[document]:
            return length + (len(BLANK_LINE) if self.open_documents else 0)
        return length + (1 - len(replaced)) * len(SEPARATOR)

    def replace(self, document: int, low: int, high: int, whole: Span) -> None:
        self.length += self.growth(document, low, high, whole)
        self.open_documents += not self.stretches[document]
        self.stretches[document][low:high] = [whole]

    def spans(self) -> tuple[tuple[Span, ...], ...]:
        """Spans with offsets of their own documents."""
        return tuple(
            tuple(Span(span.start - base, span.end - base, span.score, span.label) for span in stretches)
            for stretches, base in zip(self.stretches, self.context.starts, strict=False)
        )

    def text(self) -> str:
        documents = (
            SEPARATOR.join(self.context.slice(span.start, span.end) for span in stretches)
            for stretches in self.stretches
            if stretches
        )
        return BLANK_LINE.join(documents)

    def _touch(self, end: int, start: int) -> bool:
        return end >= start or (start - end <= _MAX_GAP and self.context.slice(end, start).isspace())


class _Budget:
    """What may still be kept. Characters are counted exactly; tokens by the pieces, then settled on the whole text."""

    def __init__(self, context: LongContext, bounds: Bounds, count_tokens: TokenCounter) -> None:
        self.context = context
        self.characters = int(len(context) * (bounds.max_ratio if bounds.max_ratio is not None else 1.0))
        self.max_tokens = bounds.max_tokens
        self.count_tokens = count_tokens
        self.tokens = 0
        self.history: list[tuple[int, Span]] = []
        limits = [f"max_ratio={bounds.max_ratio}"] * (bounds.max_ratio is not None)
        limits += [f"max_tokens={bounds.max_tokens}"] * (bounds.max_tokens is not None)
        self.name = " and ".join(limits) or "the length of the documents"

    def is_spent(self, kept: _Kept) -> bool:
        return kept.length >= self.characters or (self.max_tokens is not None and self.tokens >= self.max_tokens)

    def characters_left(self, kept: _Kept) -> int:
        return self.characters - kept.length - (len(BLANK_LINE) if kept.open_documents else 0)

    def admit(self, kept: _Kept, start: int, end: int, score: float, label: str | None) -> bool:
        """Keep a stretch of the context if what is returned stays within the bounds."""
        document = self.context.document_at(start)
        low, high, whole = kept.merged(document, Span(start, end, score, label))
        if kept.length + kept.growth(document, low, high, whole) > self.characters:
            return False
        if self.max_tokens is not None:
            tokens = self.tokens + self.count_tokens(self.context.slice(start, end) + SEPARATOR)
            if tokens > self.max_tokens:
                return False
            self.tokens = tokens
        kept.replace(document, low, high, whole)
        self.history.append((document, Span(start, end, score, label)))
        return True

    def settle(self, kept: _Kept) -> None:
        """Give back what was kept last until the whole text is within `max_tokens`: counts of parts need not add up."""
        while self.max_tokens is not None and self.history and self.count_tokens(kept.text()) > self.max_tokens:
            keep = len(self.history) - max(1, len(self.history) // 32)
            history, self.history = self.history[:keep], []
            fresh, self.tokens = _Kept(self.context), 0
            for document, span in history:
                low, high, whole = fresh.merged(document, span)
                if fresh.length + fresh.growth(document, low, high, whole) <= self.characters:
                    fresh.replace(document, low, high, whole)
                    self.history.append((document, span))
            kept.stretches, kept.length, kept.open_documents = fresh.stretches, fresh.length, fresh.open_documents


def _left_out(context: LongContext, start: int, end: int, reason: str) -> LeftOut:
    document = context.document_at(start)
    base = context.starts[document]
    return LeftOut(document, start - base, end - base, reason)


def _compiled(pattern: str | re.Pattern[str] | Finder) -> Finder:
    if not isinstance(pattern, str | re.Pattern) and callable(getattr(pattern, "finditer", None)):
        return pattern
    if not isinstance(pattern, str | re.Pattern) or (isinstance(pattern, re.Pattern) and not isinstance(pattern.pattern, str)):
        raise ArgumentError(f"protect: {pattern!r} is not a regular expression for str")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ArgumentError(f"protect: {pattern!r} is not a valid regular expression: {error}") from error


def _is_number(value: object, kind: type = Real) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and value == value
