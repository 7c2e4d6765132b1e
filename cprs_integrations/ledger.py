"""The ledger of a context: what is known of its units and tokens, written down as they stream by."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cprs_integrations.bridges import bridges
from cprs_integrations.context import LongContext
from cprs_integrations.critics.base import B, E, I, O, Tokens, TokenScores
from cprs_integrations.errors import CriticError
from cprs_integrations.growing import Growing
from cprs_integrations.instructions import Granularity
from cprs_integrations.lexical import Blends, SharedWords, is_latin
from cprs_integrations.tags import Floats, marks_phrases, probability
from cprs_integrations.units import Unit
from cprs_integrations.windows import Ints, Window

_EPSILON = 1e-9  # probabilities this near to 0 or 1 count as just so far from it
_TOLERANCE = 1e-3
_GRANULARITIES: tuple[Granularity, ...] = ("keyword", "sentence", "paragraph")
_FARTHEST = 20.0  # log-odds of _EPSILON, and the last that are written down
_STRETCH = 4_096  # units blended at once


@dataclass(frozen=True)
class Settled:
    """What is known of a context once all its windows have been scored.

    Attributes:
        odds: of each unit: the critic's log-odds of it, blended.
        marked: the granularity that the critic takes the instruction to ask for; of a critic that does not say, "keyword" if
            it marks phrases in units, else None: whatever it marks.
        unread: units of a script that the critic cannot read, or all if it is the query's: judged by shared characters alone.
    """

    odds: npt.NDArray[np.float64]
    marked: Granularity | None
    unread: int

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """Of each unit, in [0, 1]: the probability that belongs to its log-odds."""
        return probability(self.odds)


class Answer(NamedTuple):
    """A critic's answer for one window, checked, as log-odds.

    Attributes:
        odds: of each scored token.
        begin: P(B) of each, given that it is kept.
        units: of each piece of the window.
    """

    odds: npt.NDArray[np.float64]
    begin: npt.NDArray[np.float64]
    units: npt.NDArray[np.float64]

    @classmethod
    def of(cls, window: Window, scores: TokenScores, critic: str) -> "Answer":
        """Check what a critic answers.

        Raises:
            CriticError: it is not probabilities of B, I, O and E for each scored token, and log-odds of each piece.
        """
        count = len(window.rows)
        bioe = np.asarray(scores.bioe, dtype=np.float64)
        if bioe.shape != (count, 4):
            raise CriticError(f"{critic} returned scores of shape {bioe.shape} for {count} tokens, not {(count, 4)}")
        if not (bioe.min() >= -_TOLERANCE and np.abs(bioe.sum(axis=1) - 1).max() <= _TOLERANCE):
            raise CriticError(f"{critic} returned scores that are not probabilities of B, I, O and E: rows must sum to 1")
        outside = np.clip(bioe[:, O], _EPSILON, 1 - _EPSILON)
        odds = np.log1p(-outside) - np.log(outside)
        keep = np.maximum(bioe[:, B] + bioe[:, I] + bioe[:, E], _EPSILON)
        if scores.units is None:
            units = np.add.reduceat(odds, window.borders[:-1]) / np.diff(window.borders)
        elif np.shape(scores.units) == (len(window.pieces),) and np.isfinite(scores.units).all():
            units = np.clip(np.asarray(scores.units, dtype=np.float64), -_FARTHEST, _FARTHEST)
        else:
            raise CriticError(
                f"{critic} returned `units` {scores.units!r} for {len(window.pieces)} pieces, not log-odds of each"
            )
        return cls(odds, bioe[:, B] / keep, units)


class Ledger:
    """Collects units and tokens as they are cut, and scores as they come back, both in the order of the context.

    Args:
        query: whose words are counted in the units, if the critic's scores are to be blended with them.
        blends: how; None leaves the critic's scores as they are.
        is_counted: whether to count the query's words even if nothing is blended.
    """

    def __init__(self, query: str = "", blends: Blends | None = None, is_counted: bool = False) -> None:
        self._query, self._blends, self.shared = query, blends, SharedWords(query)
        self._is_counted = is_counted or blends is not None
        self._is_query_read = is_latin(query, spaceless=1)
        self._is_read = Growing(np.bool_)
        self.documents, self.starts, self.ends, self.paragraphs, self.borders = (Growing(np.int32) for _ in range(5))
        self.token_starts, self.token_ends = Growing(np.int32), Growing(np.int32)
        self.odds, self.begin, self.words = (Growing(np.float16) for _ in range(3))
        self.label = Growing(np.int16)
        self.labels: tuple[str, ...] = ()
        self.windows = 0
        self._asked: Floats | None = None
        self._sums = Growing(np.float64)
        self.skipped = 0

    @property
    def is_read(self) -> npt.NDArray[np.bool_]:
        """Of each unit, whether the critic can read it, and the query: their letters are Latin, or they have none."""
        found: npt.NDArray[np.bool_] = self._is_read.array[: self._is_read.length]
        return found

    def add_units(
        self, documents: Sequence[int], bases: Sequence[int], units: Sequence[Unit], texts: Sequence[str], tokens: Tokens
    ) -> None:
        """Note units and their tokens.

        Args:
            documents: the document of each unit.
            bases: where that document starts in the whole context.
            units: their places in their documents.
            texts: their texts.
            tokens: those of all units; none is without.
        """
        if self._is_counted:
            self.shared.add(texts)
        if self._blends:
            self._is_read.extend([self._is_query_read and is_latin(text) for text in texts], len(texts))
        count, places = len(units), np.array(units, dtype=np.int32).reshape(-1, 3)
        places[:, :2] += np.array(bases, dtype=np.int32)[:, None]
        starts = places[:, 0]
        self.documents.extend(documents, count)
        self.starts.extend(starts, count)
        self.ends.extend(places[:, 1], count)
        self.paragraphs.extend(places[:, 2], count)
        self.borders.extend(np.cumsum(tokens.counts) - tokens.counts + self.token_starts.length, count)
        self._sums.extend(0.0, count)
        shift = np.repeat(starts, tokens.counts)
        self.token_starts.extend(tokens.starts + shift, len(tokens.ids))
        self.token_ends.extend(tokens.ends + shift, len(tokens.ids))

    def add_scores(self, window: Window, scores: TokenScores, critic: str) -> None:
        """Note the scores of a window: all of them, or none if there is something wrong with them.

        Raises:
            CriticError: they are not what `Answer.of` takes, or `asked` is not what three things are likely to be asked for.
        """
        answer, count = Answer.of(window, scores, critic), len(window.rows)
        if scores.words is not None and (np.shape(scores.words) != (count,) or not np.isfinite(scores.words).all()):
            raise CriticError(f"{critic} returned `words` {scores.words!r} for {count} tokens, not log-odds of each")
        if scores.asked is not None and np.shape(scores.asked) != (len(_GRANULARITIES),):
            raise CriticError(f"{critic} returned `asked` of shape {np.shape(scores.asked)}, not {(len(_GRANULARITIES),)}")
        self._write(window.start, count, answer.odds, answer.begin, scores.words, scores.label)
        if scores.label is not None:
            self.labels = scores.labels
        if scores.asked is not None:
            self._asked = scores.asked + (self._asked if self._asked is not None else 0.0)
        sums = answer.units * np.diff(window.borders)
        for piece, total in zip(window.pieces, sums.tolist(), strict=True):
            self._sums.array[piece.unit] += total
        self.windows += 1

    def _write(
        self, start: int, count: int, odds: Floats, begin: Floats, words: Floats | None, label: npt.ArrayLike | None
    ) -> None:
        """Write down what is known of tokens; those before them that nobody has read count as not worth keeping."""
        words = None if words is None else np.clip(words, -_FARTHEST, _FARTHEST)
        for (column, unread), values in zip(self._columns(), (odds, begin, words, label), strict=True):
            if values is not None:
                column.extend(unread, start - column.length)
                column.extend(values, count)

    def _columns(self) -> tuple[tuple[Growing, float], ...]:
        """What is known of each token, and what stands there if nobody has read it."""
        return (self.odds, -_FARTHEST), (self.begin, 0.0), (self.words, -_FARTHEST), (self.label, 0.0)

    def is_unread(self, window: Window) -> bool:
        """Whether the critic can read no unit of a window, so that nothing it says of any would be used."""
        return self._blends is not None and not self.is_read[window.pieces[0].unit : window.pieces[-1].unit + 1].any()

    def skip(self, window: Window) -> None:
        """Note that the critic does not read a window: nothing in it is worth keeping, as far as the critic can tell."""
        for piece in window.pieces:
            self._sums.array[piece.unit] -= _FARTHEST * len(piece.ids)
        self.skipped += 1

    def settle(self, context: LongContext) -> Settled:
        """Blend the critic's scores with shared words and names, once all are there."""
        for column, rest in self._columns():
            if column.length:
                column.extend(rest, self.token_starts.length - column.length)
        borders = np.append(self.borders.array[: self.borders.length], self.token_starts.length)
        sizes, odds = np.diff(borders), self.odds.array[: self.odds.length]
        means = self._sums.array[: self._sums.length] / np.maximum(sizes, 1)
        marked = self._marked(odds, borders)
        if self._blends is None or not len(sizes):
            return Settled(means, marked, 0)
        is_read = self.is_read
        shares, documents = self.shared.shares(sizes), self.documents.array[: self.documents.length]
        read, unread = self._blends.read, self._blends.unread
        known = np.where(is_read, means, -_FARTHEST)
        blended = np.where(is_read, read(known, shares, documents), unread(known, shares, documents))
        if self._blends.bridge:
            starts = self.starts.array[: self.starts.length]
            blended += self._blends.bridge * bridges(context, self._query, documents, starts, probability(blended))
        _shift(odds, borders, is_read, blended - np.where(is_read, means, 0.0))
        return Settled(blended, marked, int((~is_read).sum()))

    def reread(self, settled: Settled, window: Window, scores: TokenScores, critic: str) -> Settled:
        """Join what a second reading says of the best units to what is known of them, token by token.

        Raises:
            CriticError: as in `add_scores`.
        """
        joins = self._blends and self._blends.reread
        if not joins:
            return settled
        units, odds = np.array([piece.unit for piece in window.pieces]), settled.odds.copy()
        odds[units] = joins(odds[units], Answer.of(window, scores, critic).units)
        for unit in units.tolist():
            end = int(self.borders.array[unit + 1]) if unit + 1 < self.borders.length else self.token_starts.length
            part = self.odds.array[int(self.borders.array[unit]) : end]
            part[:] = np.clip(part + (odds[unit] - settled.odds[unit]), -_FARTHEST, _FARTHEST)
        self.windows += 1
        return replace(settled, odds=odds)

    def _marked(self, odds: Floats, borders: Ints) -> Granularity | None:
        if self._asked is not None:
            return _GRANULARITIES[int(self._asked.argmax())]
        return "keyword" if marks_phrases(probability(odds), borders) else None


def _shift(odds: npt.NDArray[np.float16], borders: Ints, is_read: npt.NDArray[np.bool_], shift: Floats) -> None:
    """Shift the log-odds of the tokens of each unit, in place, a stretch at a time; unread tokens had better have none."""
    for low in range(0, len(shift), _STRETCH):
        high = min(low + _STRETCH, len(shift))
        counts = np.diff(borders[low : high + 1])
        part = odds[borders[low] : borders[high]]
        shifted = np.where(np.repeat(is_read[low:high], counts), part, 0.0) + np.repeat(shift[low:high], counts)
        part[:] = np.clip(shifted, -_FARTHEST, _FARTHEST)
