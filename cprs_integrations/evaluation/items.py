"""The plain data of a benchmark: an item with its answers and evidence, a budget, and what a method keeps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from cprs_integrations.errors import ArgumentError
from cprs_integrations.result import BLANK_LINE
from cprs_integrations.selection import Bounds, TokenCounter

TOLERANCE = 0.02
"""How far a generated context may be from the length that was asked for, as a share of it."""

_CLOSE = 0.01  # near enough to stop looking
_TRIES = 16


@dataclass(frozen=True)
class Item:
    """A question, its documents, and what must survive of them.

    Attributes:
        question: what is asked of the documents.
        documents: the context.
        answers: the strings that are expected; empty where only evidence is known.
        evidence: what answers the question: (document, start, end).
        titles: one a document, where the documents have titles of their own; a method may read them, never return them.
        any_answer: whether one of the answers is enough; else each counts.
        depth: where the evidence begins, as a share of the context; None where it has no one place.
        tokens: of the context, as the benchmark counts them.
    """

    question: str
    documents: tuple[str, ...]
    answers: tuple[str, ...]
    evidence: tuple[tuple[int, int, int], ...]
    titles: tuple[str, ...] | None = None
    any_answer: bool = False
    depth: float | None = None
    tokens: int = 0

    @cached_property
    def text(self) -> str:
        """The whole context: the documents, a blank line between two."""
        return BLANK_LINE.join(self.documents)

    @property
    def characters(self) -> int:
        """Characters of the documents, of which `Budget.max_ratio` is a share."""
        return sum(map(len, self.documents))

    @property
    def words(self) -> int:
        """Words of the documents."""
        return sum(len(text.split()) for text in self.documents)

    @property
    def excerpts(self) -> list[str]:
        """The texts of the evidence."""
        return [self.documents[document][start:end] for document, start, end in self.evidence]


@dataclass(frozen=True)
class Budget:
    """How much a method may keep: a share of the characters, or a number of tokens; one of the two.

    Raises:
        ArgumentError: none or both are given, or one is out of its range.
    """

    max_ratio: float | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if (self.max_ratio is None) == (self.max_tokens is None):
            raise ArgumentError("a budget is either max_ratio or max_tokens")
        Bounds(max_ratio=self.max_ratio, max_tokens=self.max_tokens)

    def __str__(self) -> str:
        if self.max_ratio is None:
            return f"{self.max_tokens:,} tokens"
        short, exact = f"{100 * self.max_ratio:.2f}", f"{100 * self.max_ratio:.10g}"
        return f"{short if float(short) == float(exact) else exact}%"

    def ratio(self, item: Item) -> float:
        """The budget as a share of an item."""
        return self.max_ratio if self.max_ratio is not None else min(1.0, (self.max_tokens or 0) / max(1, item.tokens))

    def limit(self, item: Item) -> float:
        """The budget for an item, in what `size` counts."""
        return self.max_ratio * item.characters if self.max_ratio is not None else float(self.max_tokens or 0)

    def size(self, text: str, count: TokenCounter) -> int:
        """What a text takes of the budget: its characters, or its tokens."""
        return len(text) if self.max_ratio is not None else count(text)


@dataclass(frozen=True)
class Kept:
    """What a method keeps of an item.

    Attributes:
        text: what would go into the prompt.
        seconds: by step; empty: the benchmark's own clock decides.
        note: what a reader of the report must know of it.
    """

    text: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


Method = Callable[[Item, Budget], Kept | str]
"""What is compared: keeps some of an item, within a budget. Any function from an item and a budget to a text is one."""


def fit(build: Callable[[int], Item], tokens: int, count: TokenCounter, size: int) -> Item:
    """Build an item of the length that was asked for.

    Args:
        build: makes the item of some size; the same size, the same item. More is longer.
        tokens: the length, within `TOLERANCE` of which the item's is.
        count: counts the tokens of a text.
        size: a first guess.

    Raises:
        ArgumentError: there is no such item: what is hidden is longer than the context.
    """
    item = build(size)
    best = item = replace(item, tokens=count(item.text))
    low, high = (0, 0), (0, 0)  # the largest size that is too short, the smallest that is too long, with their tokens
    for _ in range(_TRIES):
        if abs(item.tokens - tokens) <= _CLOSE * tokens:
            break
        if item.tokens < tokens:
            low = size, item.tokens
        else:
            high = size, item.tokens
        if not high[0]:
            size += max(1, round((tokens - item.tokens) * size / max(1, item.tokens)))
        elif high[0] - low[0] > 1:
            share = (tokens - low[1]) / (high[1] - low[1])
            size = min(max(low[0] + round(share * (high[0] - low[0])), low[0] + 1), high[0] - 1)
        else:
            break
        item = build(size)
        item = replace(item, tokens=count(item.text))
        best = min(best, item, key=lambda found: abs(found.tokens - tokens))
    if abs(best.tokens - tokens) > TOLERANCE * tokens:
        found = f"the nearest has {best.tokens:,}"
        raise ArgumentError(f"lengths: no context of {tokens:,} tokens can be made for this task ({found}); ask for more")
    return best
