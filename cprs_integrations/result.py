"""What a compression returns: verbatim spans for each document, the text for the prompt, and what was measured."""

import html
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cprs_integrations.context import LongContext

SEPARATOR = "\n"
"""Between two spans of a document."""
BLANK_LINE = "\n\n"
"""Between two documents of the text for the prompt."""


@dataclass(frozen=True)
class Span:
    """A kept slice of a document: `document[start:end]`, with its score in [0, 1] and the critic's label, if any."""

    start: int
    end: int
    score: float
    label: str | None = None


@dataclass(frozen=True)
class CompressedDocument:
    """What is left of one document: `text` is its spans, joined by a line break; "" if nothing is left."""

    text: str
    spans: tuple[Span, ...]
    original_chars: int

    @classmethod
    def of(cls, source: str, spans: tuple[Span, ...]) -> "CompressedDocument":
        """Cut sorted, disjoint spans out of a document."""
        return cls(SEPARATOR.join(source[span.start : span.end] for span in spans), spans, len(source))

    @property
    def metadata(self) -> dict[str, Any]:
        """The JSON that adapters put under the metadata key "cprs"."""
        return {
            "spans": [asdict(span) for span in self.spans],
            "original_chars": self.original_chars,
            "kept_chars": len(self.text),
        }


@dataclass(frozen=True)
class LeftOut:
    """Something that was to be kept and did not fit: `documents[document][start:end]`, and why."""

    document: int
    start: int
    end: int
    reason: str


@dataclass(frozen=True)
class Stats:
    """What a compression did.

    Attributes:
        original_chars, kept_chars: characters of the documents, and of the text that is returned.
        original_tokens, kept_tokens: the same in tokens of the token counter.
        windows: how many windows the critic read.
        skipped_windows: how many were left unread: by a prefilter, or because the critic can read no unit in them.
        unread_units: units of a script that the critic cannot read, or all if it is the query's: characters shared with the
            query alone decided on them.
        seconds: by step: "score" (with "segment", the part of it spent on units and tokens) and "select".
        left_out: protected matches, or the best unit, that did not fit the bounds.
    """

    original_chars: int
    kept_chars: int
    original_tokens: int
    kept_tokens: int
    windows: int
    skipped_windows: int = 0
    unread_units: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()

    @property
    def compression(self) -> float:
        """Original over kept characters: 20.0 is a twentieth left; infinity if nothing of something is left."""
        if self.kept_chars:
            return self.original_chars / self.kept_chars
        return float("inf") if self.original_chars else 1.0


@dataclass(frozen=True)
class CompressedContext:
    """A compressed context.

    Attributes:
        text: the texts of the documents that have any left, joined by a blank line: ready for the prompt.
        documents: one for each document that came in, in the same order.
        stats: sizes, times, and what did not fit.
        context: the documents it was made from.
        query, instruction: what the critic was asked.
    """

    text: str
    documents: tuple[CompressedDocument, ...]
    stats: Stats
    context: LongContext = field(repr=False)
    query: str
    instruction: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON: text, documents with their spans, statistics, query and instruction."""
        stats = asdict(self.stats)
        stats["seconds"] = dict(self.stats.seconds)
        stats["left_out"] = list(stats["left_out"])
        # JSON has no infinity
        stats["compression"] = self.stats.compression if self.stats.kept_chars else None
        return {
            "query": self.query,
            "instruction": self.instruction,
            "text": self.text,
            "documents": [{"text": document.text, **document.metadata} for document in self.documents],
            "stats": stats,
        }

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return highlight(self)


_STYLE = (
    "<style>.cprs{font:14px/1.55 system-ui,sans-serif;max-width:60em}"
    ".cprs mark{background:rgba(255,196,0,calc(.25 + .45*var(--s)));color:inherit;border-radius:3px}"
    ".cprs .cut{opacity:.5}.cprs .sum{opacity:.75}"
    ".cprs .doc{white-space:pre-wrap;margin:.6em 0;padding-left:.8em;border-left:3px solid #8884}</style>"
)
_AROUND = 160  # characters of dropped text shown beside a span


def highlight(compressed: CompressedContext) -> str:
    """Return HTML that shows what was kept, deeper where the score is higher, and a little of what was dropped around it."""
    stats = compressed.stats
    parts = [
        f'{_STYLE}<div class="cprs"><div class="sum"><b>{_escape(compressed.query or compressed.instruction)}</b><br>'
        f"{stats.original_chars:,} → {stats.kept_chars:,} characters</div>"
    ]
    for source, title, document in zip(
        compressed.context.documents, compressed.context.titles, compressed.documents, strict=True
    ):
        if not document.spans:
            continue
        body, end = [f"<b>{_escape(title)}</b>\n"] if title else [], 0
        for span in document.spans:
            body.append(_dropped(source[end : span.start], has_left=end > 0))
            hint = f"{span.score:.3f}" + (f" {span.label}" if span.label else "")
            kept = _escape(source[span.start : span.end])
            body.append(f'<mark style="--s:{span.score:.2f}" title="{_escape(hint)}">{kept}</mark>')
            end = span.end
        body.append(_dropped(source[end:], has_left=True, has_right=False))
        parts.append(f'<div class="doc">{"".join(body)}</div>')
    return "".join([*parts, "</div>"])


def _dropped(text: str, *, has_left: bool, has_right: bool = True) -> str:
    left, right = (_AROUND if has_left else 0), (_AROUND if has_right else 0)
    if len(text) > left + right + 40:
        omitted = len(text) - left - right
        text = f"{text[:left]} […{omitted:,}…] {text[len(text) - right :] if right else ''}"
    return f'<span class="cut">{_escape(text)}</span>'


def _escape(text: str) -> str:
    return html.escape(text.encode("utf-8", "replace").decode())
