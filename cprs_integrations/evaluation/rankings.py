"""Methods that cut documents into pieces, rank these, and keep the best: BM25, MiniLM, both, plain RAG."""

import re
from bisect import bisect, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, pairwise, zip_longest

import numpy as np
import numpy.typing as npt

from cprs_integrations.errors import require
from cprs_integrations.evaluation.embeddings import LONGEST, Clock, MiniLM
from cprs_integrations.evaluation.haystack import cut
from cprs_integrations.evaluation.items import Budget, Item, Kept
from cprs_integrations.selection import TokenCounter
from cprs_integrations.units import segment

CHUNK = 600
"""Tokens of a chunk of plain RAG, as in the paper (arXiv 2505.18092)."""

Scores = npt.NDArray[np.floating]
Scorer = Callable[[str, list[str], list[int]], Scores]
Cutter = Callable[[str], Sequence[tuple[int, int]]]
Orderer = Callable[[str, list[str], list[int]], list[int]]

_WORD = re.compile(r"\w+")
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


def sentences(text: str) -> list[tuple[int, int]]:
    """Places of the sentences and lines of a text."""
    return [(unit.start, unit.end) for unit in segment(text)]


@dataclass(frozen=True, order=True)
class _Piece:
    document: int
    start: int
    end: int


@dataclass(frozen=True)
class _Ranking:
    item: Item
    pieces: list[_Piece]
    order: list[int]
    seconds: dict[str, float]


class Ranked:
    """Keeps the best pieces of an item, in the order of the text.

    Between neighbours stands what stands between them in the document, so that what spans both is kept verbatim; elsewhere
    a line break. At least one piece is kept, even if it overshoots the budget; with `is_cut` the piece that no longer fits is
    cut to what is left of it instead. The ranking of the last item is remembered: another budget does not rank again, and is
    told the seconds that the ranking took.

    Args:
        order: returns the numbers of the pieces, the best first, for a question, the pieces and the document of each.
        count: counts tokens.
        cutter: cuts a document into pieces.
        is_cut: whether the last piece is cut to fit.
        model: the model whose cache must not make a difference to the seconds.
    """

    def __init__(
        self,
        order: Orderer,
        count: TokenCounter,
        cutter: Cutter = sentences,
        *,
        is_cut: bool = False,
        model: MiniLM | None = None,
    ) -> None:
        self._order, self._count, self._cutter, self._is_cut, self._model = order, count, cutter, is_cut, model
        self._last: _Ranking | None = None

    def __call__(self, item: Item, budget: Budget) -> Kept:
        """Keep the best of an item."""
        if self._last is None or self._last.item is not item:
            self._last = self._rank(item)
        clock = Clock()
        text = self._fill(self._last, budget, item)
        return Kept(text, {**self._last.seconds, "select": clock.seconds})

    def _rank(self, item: Item) -> _Ranking:
        clock = Clock(self._model)
        pieces = [_Piece(number, low, high) for number, text in enumerate(item.documents) for low, high in self._cutter(text)]
        texts, owners = [_text(piece, item) for piece in pieces], [piece.document for piece in pieces]
        seconds = {"segment": clock.seconds}
        order = self._order(item.question, texts, owners) if pieces else []
        return _Ranking(item, pieces, order, {**seconds, "score": clock.seconds - seconds["segment"]})

    def _fill(self, ranking: _Ranking, budget: Budget, item: Item) -> str:
        kept = _Joined(item, budget, self._count)
        for place in ranking.order:
            piece = ranking.pieces[place]
            size = kept.size_with(piece)
            if (kept.pieces or self._is_cut) and size > kept.limit:
                if self._is_cut:
                    kept.add_beginning(piece)
                break
            kept.add(piece)
        return kept.text


class _Joined:
    """Pieces that are kept, in the order of the item: between neighbours the white space that is there, else a line break.

    What stands between two counts where a budget is a share of the characters; in one of tokens it is next to nothing.
    """

    def __init__(self, item: Item, budget: Budget, count: TokenCounter) -> None:
        self._item, self._budget, self._count = item, budget, count
        self.pieces: list[_Piece] = []
        self.size, self.limit = 0, budget.limit(item)

    def size_with(self, piece: _Piece) -> int:
        """The size of all, if one more were kept."""
        return self.size + self._budget.size(_text(piece, self._item), self._count) + self._gaps(piece)

    def add(self, piece: _Piece) -> None:
        """Keep one more."""
        self.size = self.size_with(piece)
        insort(self.pieces, piece)

    def add_beginning(self, piece: _Piece) -> None:
        """Keep as much of one more as fits."""
        text = _text(piece, self._item)
        room = self.limit - self.size - self._gaps(replace(piece, end=piece.start + 1))
        share = room / self._budget.size(text, self._count)
        length = len(cut(text, min(int(len(text) * share), len(text) - 1))) if share > 0 else 0
        if length:
            self.add(replace(piece, end=piece.start + length))

    @property
    def text(self) -> str:
        """All of it."""
        texts = (_text(piece, self._item) for piece in self.pieces)
        return "".join(chain.from_iterable(zip_longest(texts, self._between(self.pieces), fillvalue="")))

    def _gaps(self, piece: _Piece) -> int:
        """What one more adds to what stands between pieces."""
        if self._budget.max_ratio is None:
            return 0
        place = bisect(self.pieces, piece)
        near = self.pieces[max(0, place - 1) : place + 1]
        return len("".join(self._between(sorted([*near, piece])))) - len("".join(self._between(near)))

    def _between(self, pieces: Sequence[_Piece]) -> list[str]:
        gaps = []
        for first, second in pairwise(pieces):
            gap = self._item.documents[first.document][first.end : second.start]
            gaps.append(gap if first.document == second.document and not gap.strip() else "\n")
        return gaps


def _text(piece: _Piece, item: Item) -> str:
    return item.documents[piece.document][piece.start : piece.end]


def best_first(scorer: Scorer, query: str, pieces: list[str], owners: list[int]) -> list[int]:
    """Order by scores; what scores alike stays in the order of the text."""
    order: list[int] = np.argsort(-scorer(query, pieces, owners), kind="stable").tolist()
    return order


def by_scores(scorer: Scorer, count: TokenCounter, model: MiniLM | None = None) -> Ranked:
    """Keep the sentences that score best."""
    return Ranked(partial(best_first, scorer), count, model=model)


def plain_rag(model: MiniLM, count: TokenCounter) -> Ranked:
    """Keep the chunks of 600 tokens most similar to the question, up to the budget, the last one cut to fit.

    A chunk is longer than the model reads. So that none of it is lost, its vector is the mean of those of its parts.
    """

    def score(query: str, pieces: list[str], owners: list[int]) -> Scores:
        parts = [[piece[low:high] for low, high in model.chunks(piece, LONGEST - 2)] or [piece] for piece in pieces]
        flat = model.vectors([query, *(part for several in parts for part in several)])
        means = np.add.reduceat(flat[1:], np.cumsum([0, *map(len, parts)])[:-1], axis=0)
        found: Scores = (means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)) @ flat[0]
        return found

    return Ranked(partial(best_first, score), count, lambda text: list(model.chunks(text, CHUNK)), is_cut=True, model=model)


def terms(text: str) -> list[str]:
    """Words, and pairs of characters where a script has no spaces."""
    words = []
    for word in _WORD.findall(text.lower()):
        words += [word[at : at + 2] for at in range(max(1, len(word) - 1))] if _WIDE.search(word) else [word]
    return words


def bm25(query: str, pieces: list[str], owners: list[int]) -> Scores:
    """Okapi BM25 over the pieces of one context; needs rank-bm25."""
    scores = require("rank_bm25", "bench").BM25Okapi([terms(piece) or [""] for piece in pieces])
    return np.asarray(scores.get_scores(terms(query)))


def both(similarity: Scorer, query: str, pieces: list[str], owners: list[int]) -> Scores:
    """Cosine + 0.3 x BM25 (scaled to 1) + 0.15 x the best such score in the document: 25 lines that a user would write."""
    lexical = bm25(query, pieces, owners)
    scores = similarity(query, pieces, owners) + 0.3 * lexical / max(float(lexical.max()), 1e-9)
    best = np.full(max(owners) + 1, -np.inf)
    np.maximum.at(best, owners, scores)
    summed: Scores = scores + 0.15 * best[owners]
    return summed
