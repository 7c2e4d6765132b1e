"""The protocol of a critic, and what passes through it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from cprs_integrations.windows import Ints, Limits, Window

B, I, O, E = range(4)
"""Columns of `TokenScores.bioe`: begin, inside, outside and end of something worth keeping."""


@dataclass(frozen=True)
class Tokens:
    """Texts as tokens, end to end.

    Attributes:
        ids: token ids of all texts, in order.
        starts, ends: where each token stands in its own text, in characters.
        counts: tokens of each text.
    """

    ids: Ints
    starts: Ints
    ends: Ints
    counts: Ints


@dataclass(frozen=True)
class TokenScores:
    """A critic's answer for one window.

    Attributes:
        bioe: float [rows, 4], the probabilities of B, I, O and E of each scored token (`Window.rows`); rows sum to 1.
        labels: the words that `label` counts through, if the critic names what it marks.
        label: int [rows], index into `labels` of each token's label.
        units: float [pieces], the log-odds of each piece's being worth keeping as a whole; None: the mean of its tokens'.
        words: float [rows], the log-odds of each token's being one of the words that answer, whatever the instruction asks
            for, if the critic can tell: a unit that must be cut is cut around them.
        asked: float [3], how likely the instruction asks for words, for sentences, for paragraphs, if the critic can tell.
    """

    bioe: npt.NDArray[np.floating]
    labels: tuple[str, ...] = ()
    label: npt.NDArray[np.integer] | None = None
    units: npt.NDArray[np.floating] | None = None
    words: npt.NDArray[np.floating] | None = None
    asked: npt.NDArray[np.floating] | None = None


@runtime_checkable
class Critic(Protocol):
    """Anything that scores the tokens of windows. It knows nothing of documents, units of others, or budgets.

    Attributes:
        limits: the size of its windows.
        threshold: in [0, 1]; the score that a unit reaches if it is worth keeping when the user gives no bound.
        separator: token ids put between two documents in one window; may be empty.

    A critic may also have `blends` (`cprs_integrations.lexical.Blends`): how its scores join the count of shared words, and a
    second reading; `reach` (`cprs_integrations.tags.phrases`): how far a phrase goes on around its best words; and
    `reads_white_space`: True hands it the white space between units too, for models that were trained on text as it stands;
    and `reader()`: a copy without the model, to be sent to where windows are made (`critics.tokenizing.Sendable`).
    """

    @property
    def limits(self) -> Limits: ...

    @property
    def threshold(self) -> float: ...

    @property
    def separator(self) -> Ints: ...

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Tokenize texts one by one. Control tokens in them are plain text."""
        ...

    def encode_prompt(self, instruction: str, query: str) -> Ints:
        """Token ids of what stands before every window."""
        ...

    def score(self, windows: Iterable[Window]) -> Iterator[TokenScores]:
        """Score windows: one answer each, in order, whatever else is in the iterable. Reads ahead as far as it likes."""
        ...


def unit_scores(window: Window, scores: Sequence[float]) -> TokenScores:
    """Answer with one score a piece of the window: all its tokens are kept with that probability, as one span."""
    sizes = np.diff(window.borders)
    keep = np.repeat(np.clip(np.asarray(scores, dtype=np.float64), 0.0, 1.0), sizes)
    bioe = np.zeros((len(keep), 4))
    bioe[:, O] = 1.0 - keep
    bioe[:, I] = keep
    for place, column in ((window.borders[1:] - 1, E), (window.borders[:-1], B)):
        bioe[place, I] = bioe[place, B] = bioe[place, E] = 0.0
        bioe[place, column] = keep[place]
    return TokenScores(bioe)
