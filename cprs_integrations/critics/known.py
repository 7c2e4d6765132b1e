"""A critic whose scores you know beforehand, for tests of your own chains: no model, no surprise."""

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from cprs_integrations.critics.base import B, I, O, Tokens, TokenScores, unit_scores
from cprs_integrations.errors import ArgumentError
from cprs_integrations.windows import NO_TOKENS, Ints, Limits, Window

_TOKEN = re.compile(r"\w+|[^\w\s]")


class KnownCritic:
    """Gives each unit the score of the best phrase that stands in it; every word and symbol is a token.

    Args:
        scores: phrases and their scores in [0, 1]; found as they are written.
        default: the score of all else.
        threshold: from which score a unit is worth keeping.
        whole_units: False marks the words of the phrases alone, for tests of keywords.
        window: tokens of a window.

    Raises:
        ArgumentError: a score lies outside [0, 1].
    """

    separator = NO_TOKENS

    def __init__(
        self,
        scores: Mapping[str, float],
        *,
        default: float = 0.0,
        threshold: float = 0.5,
        whole_units: bool = True,
        window: int = 128,
    ) -> None:
        for phrase, score in (*scores.items(), ("default", default), ("threshold", threshold)):
            if not 0 <= score <= 1:
                raise ArgumentError(f"the score of {phrase!r} must be from 0 to 1, not {score!r}")
        self._scores, self._default, self._whole_units = dict(scores), default, whole_units
        self.threshold = threshold
        self.limits = Limits(window, 8 * window, window // 16)

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Take every word and every symbol for a token."""
        found = [list(_TOKEN.finditer(text)) for text in texts]
        ids = [zlib.crc32(match[0].encode("utf-8", "replace")) >> 1 for matches in found for match in matches]
        places = np.array([match.span() for matches in found for match in matches], dtype=np.int32).reshape(-1, 2)
        counts = np.array([len(matches) for matches in found], dtype=np.int32)
        return Tokens(np.array(ids, dtype=np.int32), places[:, 0], places[:, 1], counts)

    def encode_prompt(self, instruction: str, query: str) -> Ints:
        """Return no tokens: this critic does not read its question."""
        return NO_TOKENS

    def score(self, windows: Iterable[Window]) -> Iterator[TokenScores]:
        """Look the phrases up."""
        for window in windows:
            if self._whole_units:
                yield unit_scores(window, [self._best(piece.text) for piece in window.pieces])
            else:
                yield TokenScores(np.concatenate([self._phrases(piece.text) for piece in window.pieces]))

    def _best(self, text: str) -> float:
        return max((score for phrase, score in self._scores.items() if phrase in text), default=self._default)

    def _phrases(self, text: str) -> np.ndarray:
        tokens = [match.span() for match in _TOKEN.finditer(text)]
        bioe = np.zeros((len(tokens), 4))
        bioe[:, I] = self._default
        for phrase, score in sorted(self._scores.items(), key=lambda item: item[1]):
            for match in re.finditer(re.escape(phrase), text):
                inside = [i for i, (start, end) in enumerate(tokens) if start < match.end() and end > match.start()]
                bioe[inside] = 0.0
                bioe[inside, I] = score
                bioe[inside[:1], I], bioe[inside[:1], B] = 0.0, score
        bioe[:, O] = 1.0 - bioe.sum(axis=1)
        return bioe
