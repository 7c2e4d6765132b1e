"""The ledger of a context: what is known of its units and tokens, written down as they stream by."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cprs_integrations.critics.base import B, E, I, O, Tokens, TokenScores
from cprs_integrations.errors import CriticError
from cprs_integrations.units import Unit
from cprs_integrations.windows import Window

_EPSILON = 1e-9  # probabilities this near to 0 or 1 count as just so far from it
_TOLERANCE = 1e-3


class Growing:
    """An array that grows at its end and is never held twice."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self.array = np.empty(256, dtype)
        self.length = 0

    def extend(self, values: npt.ArrayLike, count: int) -> None:
        """Append `count` values, or one value `count` times."""
        needed = self.length + count
        if needed > len(self.array):
            self.array.resize(max(needed, len(self.array) * 9 // 8), refcheck=False)
        self.array[self.length : needed] = values
        self.length = needed

    def finish(self) -> npt.NDArray[Any]:
        """Return the array, cut to its length. Nothing may be appended after."""
        self.array.resize(self.length, refcheck=False)
        return self.array


class Ledger:
    """Collects units and tokens as they are cut, and scores as they come back, both in the order of the context."""

    def __init__(self) -> None:
        self.documents, self.starts, self.ends, self.paragraphs, self.borders = (Growing(np.int32) for _ in range(5))
        self.token_starts, self.token_ends = Growing(np.int32), Growing(np.int32)
        self.odds, self.begin, self.end = (Growing(np.float16) for _ in range(3))
        self.label = Growing(np.int16)
        self.labels: tuple[str, ...] = ()
        self.windows = 0
        self._sums = Growing(np.float64)

    def add_units(self, document: int, base: int, units: Sequence[Unit], tokens: Tokens) -> None:
        """Note units of one document, which starts at `base`, and their tokens; no unit is without tokens."""
        count, starts = len(units), np.array([unit.start for unit in units], dtype=np.int32) + base
        self.documents.extend(document, count)
        self.starts.extend(starts, count)
        self.ends.extend(np.array([unit.end for unit in units], dtype=np.int32) + base, count)
        self.paragraphs.extend([unit.paragraph for unit in units], count)
        self.borders.extend(np.cumsum(tokens.counts) - tokens.counts + self.token_starts.length, count)
        self._sums.extend(0.0, count)
        shift = np.repeat(starts, tokens.counts)
        self.token_starts.extend(tokens.starts + shift, len(tokens.ids))
        self.token_ends.extend(tokens.ends + shift, len(tokens.ids))

    def add_scores(self, window: Window, scores: TokenScores, critic: str) -> None:
        """Note the scores of a window.

        Raises:
            CriticError: they are not probabilities of B, I, O and E for each scored token.
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
        self.odds.extend(odds, count)
        self.begin.extend(bioe[:, B] / keep, count)
        self.end.extend(bioe[:, E] / keep, count)
        if scores.label is not None:
            self.labels = scores.labels
            self.label.extend(scores.label, count)
        sums = np.add.reduceat(odds, window.borders[:-1])
        for piece, total in zip(window.pieces, sums.tolist(), strict=True):
            self._sums.array[piece.unit] += total
        self.windows += 1

    def unit_scores(self) -> npt.NDArray[np.float32]:
        """Score of each unit, in [0, 1]: the probability that belongs to the mean log-odds of its tokens."""
        borders = self.borders.array[: self.borders.length]
        sizes = np.diff(borders, append=self.token_starts.length)
        odds = self._sums.array[: self._sums.length] / np.maximum(sizes, 1)
        return (1 / (1 + np.exp(-odds))).astype(np.float32)
