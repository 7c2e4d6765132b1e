"""Scored contexts: what the critic said of every token, from which any number of selections can be made."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cprs_integrations.context import LongContext, utf8_length
from cprs_integrations.instructions import Granularity
from cprs_integrations.ledger import Ledger, Settled
from cprs_integrations.lexical import is_latin, shared_places
from cprs_integrations.result import BLANK_LINE, CompressedContext, CompressedDocument, Stats
from cprs_integrations.selection import Bounds, Candidates, Closeup, Finder, TokenCounter, check_granularity, choose
from cprs_integrations.tags import Floats, Places, TokenSpans, best_scores, passages, phrases, probability
from cprs_integrations.windows import Ints, Prompt

_NEAR = 10  # characters before and after a shared term: what is asked for stands beside what is asked with
_FAR = 0.02  # what a token counts that no term of the query is near to, where one near to one of them counts 1
_GLUE_BELOW = "\u0e00"  # scripts from here on put no spaces between words


@dataclass(frozen=True)
class Scored:
    """A context with its scores: at most 16 bytes a token, and 24 a unit.

    Attributes:
        context: the documents.
        prompt: what the critic was asked.
        threshold: the critic's own, used when a selection has no bound.
        reach: of phrases, the critic's own (`tags.phrases`).
        documents, starts, ends, paragraphs: of each unit; places are those of the whole context.
        borders: [units + 1] the first token of each unit, and the number of tokens.
        scores: of each unit, in [0, 1].
        marked: the granularity that the critic takes the instruction to ask for; None: whatever it marks, units or more.
        unread: units of a script that the critic cannot read, or all if it is the query's: judged by shared characters alone.
        token_starts, token_ends: of each token, in the whole context.
        odds: log-odds of each token's being kept.
        begin: P(B) of each token, given that it is kept.
        words: log-odds of each token's being one of the words that answer; None if the critic does not tell.
        label: of each token, an index into `labels`; None if the critic names nothing.
    """

    context: LongContext
    prompt: Prompt
    threshold: float
    reach: float
    granularity: Granularity | None
    count_tokens: TokenCounter
    documents: Ints
    starts: Ints
    ends: Ints
    paragraphs: Ints
    borders: Ints
    scores: Floats
    token_starts: Ints
    token_ends: Ints
    odds: npt.NDArray[np.float16]
    begin: npt.NDArray[np.float16]
    windows: int
    marked: Granularity | None
    unread: int
    seconds: dict[str, float]
    words: npt.NDArray[np.float16] | None = None
    labels: tuple[str, ...] = ()
    label: npt.NDArray[np.int16] | None = None
    skipped: int = 0

    @classmethod
    def of(cls, ledger: Ledger, settled: Settled, **known: Any) -> "Scored":
        """Close a ledger whose units all have their scores."""
        borders, tokens = ledger.borders, ledger.token_starts.length
        borders.extend(tokens, 1)
        return cls(
            **known,
            documents=ledger.documents.finish(),
            starts=ledger.starts.finish(),
            ends=ledger.ends.finish(),
            paragraphs=ledger.paragraphs.finish(),
            borders=borders.finish(),
            scores=settled.scores,
            token_starts=ledger.token_starts.finish(),
            token_ends=ledger.token_ends.finish(),
            odds=ledger.odds.finish(),
            begin=ledger.begin.finish(),
            windows=ledger.windows,
            skipped=ledger.skipped,
            marked=settled.marked,
            unread=settled.unread,
            words=ledger.words.finish() if ledger.words.length else None,
            labels=ledger.labels,
            label=ledger.label.finish() if ledger.labels else None,
        )

    def select(
        self,
        *,
        granularity: Granularity | None = None,
        threshold: float | None = None,
        max_ratio: float | None = None,
        max_tokens: int | None = None,
        token_counter: TokenCounter | None = None,
        protect: Sequence[str | re.Pattern[str] | Finder] = (),
    ) -> CompressedContext:
        """Keep the best of the context within bounds; no forward pass is made. Arguments as in `CPRSEngine.compress`.

        Raises:
            ArgumentError: an argument has a value it cannot have.
        """
        check_granularity(granularity)
        bounds = Bounds(threshold, max_ratio, max_tokens, protect, token_counter)
        if bounds.is_open:
            bounds = Bounds(threshold=self.threshold, protect=bounds.protect)
        began = time.perf_counter()
        count_tokens = token_counter or self.count_tokens
        candidates = self.candidates(granularity or self.granularity)
        chosen = choose(self.context, candidates, bounds, count_tokens, self._look)
        documents = tuple(map(CompressedDocument.of, self.context.documents, chosen.spans))
        text = BLANK_LINE.join(document.text for document in documents if document.text)
        stats = Stats(
            original_chars=len(self.context),
            kept_chars=len(text),
            original_tokens=self._original_tokens(token_counter),
            kept_tokens=count_tokens(text),
            windows=self.windows,
            skipped_windows=self.skipped,
            unread_units=self.unread,
            seconds={**self.seconds, "select": time.perf_counter() - began},
            left_out=chosen.left_out,
        )
        return CompressedContext(text, documents, stats, self.context, self.prompt.query, self.prompt.instruction)

    def candidates(self, granularity: Granularity | None) -> Candidates:
        """What a selection can keep: units, groups of units, or the spans that the critic marks."""
        granularity = granularity or self.marked
        if granularity == "sentence":
            return Candidates(self.starts, self.ends, self.scores, self._labels(self.borders[:-1], self.borders[1:]))
        if granularity in ("paragraph", "document"):
            fresh = np.diff(self.documents, prepend=-1) != 0
            if granularity == "paragraph":
                fresh |= np.diff(self.paragraphs, prepend=-1) != 0
            heads = np.flatnonzero(fresh)
            tails = np.append(heads[1:], len(fresh)) - 1 if len(heads) else heads
            scores = np.maximum.reduceat(self.scores, heads) if len(heads) else self.scores
            labels = self._labels(self.borders[heads], self.borders[tails + 1])
            return Candidates(self.starts[heads], self.ends[tails], scores, labels)
        keep, begin = probability(self.odds), self.begin.astype(np.float32)
        if granularity == "keyword":
            keep[self.token_ends <= self.token_starts] = 0.0  # white space around a unit is no phrase, however it is scored
            spans = self._whole_words(phrases(keep, begin, self.borders, self.reach))
            scores = best_scores(keep, spans)
        else:
            joined = (np.diff(self.documents, prepend=-1) == 0) & (np.diff(self.paragraphs, prepend=-1) == 0)
            spans = passages(keep, begin, self.borders, joined)
            scores = np.maximum.reduceat(self.scores, np.searchsorted(self.borders, spans.first)) if len(keep) else self.scores
        starts, ends = self.token_starts[spans.first], self.token_ends[spans.last - 1]
        if not (visible := ends > starts).all():  # white space alone, of a critic that reads it
            spans = TokenSpans(spans.first[visible], spans.last[visible])
            starts, ends, scores = starts[visible], ends[visible], scores[visible]
        return Candidates(starts, ends, scores, self._labels(spans.first, spans.last))

    def _whole_words(self, spans: TokenSpans) -> TokenSpans:
        """Widen phrases that cut a word; what then overlaps is one phrase."""
        unit = np.searchsorted(self.borders, spans.first, side="right")
        limits = zip(self.borders[unit - 1].tolist(), self.borders[unit].tolist(), strict=True)
        merged: list[list[int]] = []
        for low, high, (begin, end) in zip(spans.first.tolist(), spans.last.tolist(), limits, strict=True):
            while low > begin and self._is_glued(low):
                low -= 1
            while high < end and self._is_glued(high):
                high += 1
            if merged and low < merged[-1][1]:
                merged[-1][1] = max(high, merged[-1][1])
            else:
                merged.append([low, high])
        places = np.array(merged, dtype=np.int64).reshape(-1, 2)
        return TokenSpans(places[:, 0], places[:, 1])

    def _is_glued(self, token: int) -> bool:
        """Whether a word goes on from the token before into this one."""
        border = int(self.token_starts[token])
        if self.token_ends[token - 1] < border:
            return False
        pair = self.context.slice(border - 1, border) + self.context.slice(border, border + 1)
        return len(pair) == 2 and pair.isalnum() and max(pair) < _GLUE_BELOW

    def _look(self, start: int, end: int) -> Closeup:
        # of the columns' own type: with any other, numpy converts a whole column at every call
        low = int(np.searchsorted(self.token_ends, self.token_ends.dtype.type(start), side="right"))
        high = max(low, int(np.searchsorted(self.token_starts, self.token_starts.dtype.type(end), side="left")))
        keep = probability(self.odds[low:high])
        score = float(keep.mean(dtype=np.float64)) if len(keep) else 0.0
        text = self.context.slice(start, end) if self.unread else ""
        if not self.unread or (is_latin(self._asked, spaceless=1) and is_latin(text)):
            keep = keep if self.words is None else keep * probability(self.words[low:high])
        elif len(keep):
            # the critic had nothing to say of its tokens: a unit that is cut is cut around those near what the query shares
            shared = np.array(shared_places(self._asked, text)) + start
            first = np.searchsorted(shared, self.token_starts[low:high] - _NEAR)
            last = np.searchsorted(shared, self.token_ends[low:high] + _NEAR)
            keep = keep * (_FAR + last - first).astype(np.float32)
        first, last = np.searchsorted(self.starts, np.array((start, end), self.starts.dtype), side="left")
        return Closeup(
            score=score,
            units=self.starts[first:last].astype(np.int64),
            starts=self.token_starts[low:high].astype(np.int64),
            ends=self.token_ends[low:high].astype(np.int64),
            keep=keep,
        )

    @property
    def _asked(self) -> str:
        return self.prompt.query.strip() or self.prompt.instruction

    def _labels(self, first: Places, last: Places) -> list[str | None] | None:
        """The label of most of what is marked in each stretch of tokens: others have their best word too."""
        if self.label is None:
            return None
        keep, pairs = probability(self.odds), zip(first.tolist(), last.tolist(), strict=True)
        return [self.labels[np.bincount(self.label[low:high], keep[low:high]).argmax()] for low, high in pairs]

    def _original_tokens(self, token_counter: TokenCounter | None) -> int:
        if token_counter:
            return sum(map(token_counter, self.context.documents))
        return max(len(self.odds), -(-sum(map(utf8_length, self.context.documents)) // 4))
