"""Shared words: how much of the query stands in a unit, and how that joins a critic's own score.

A small critic sees one window at a time, so it cannot know which words of the query are rare in this context and which stand
everywhere; and of a script that its vocabulary lacks it knows nothing. Both can be counted. The count is BM25 (Robertson and
Zaragoza, 2009), of words, or of characters and their n-grams in scripts other than Latin.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cprs_integrations.growing import Growing

Floats = npt.NDArray[np.floating]
Places = npt.NDArray[np.integer]

_SATURATION, _LENGTH = 1.2, 0.75  # BM25's k1 and b
_AROUND = 5  # units before and after, of the same document, that count as around a unit

_WORD = re.compile(r"\w+")
_OTHER = re.compile(r"[^\W\d_\u0041-\u024f]+")  # letters of scripts other than Latin
_SPACELESS = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]"
)
_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class Blend:
    """A logistic regression: what a unit's parts say together about its being worth keeping, in log-odds.

    Attributes:
        bias: added to all.
        critic: weight of the critic's mean log-odds.
        shared: weight of the share of the query, by the rarity of its words in this context, that stands in the unit.
        critic_around: weight of the critic's best log-odds among the units around it, itself included.
        shared_around: weight of the best share among the units around it, itself included.
        critic_best: weight of the critic's best log-odds in the whole context: beside something much better, what would do
            elsewhere is not worth keeping.
    """

    bias: float = 0.0
    critic: float = 1.0
    shared: float = 0.0
    critic_around: float = 0.0
    shared_around: float = 0.0
    critic_best: float = 0.0

    def __call__(self, critic: Floats, shared: Floats, documents: Places) -> Floats:
        """Return the log-odds of each unit, from those of the critic, its share of the query, and its document."""
        odds: Floats = self.bias + self.critic * critic + self.shared * shared + self.critic_best * critic.max(initial=-np.inf)
        odds += self.critic_around * best_around(critic, documents) + self.shared_around * best_around(shared, documents)
        return odds


@dataclass(frozen=True)
class Joint:
    """How a second reading (`rereading`) joins what is known of a unit: a logistic regression, in log-odds.

    Attributes:
        window: tokens of the window of a second reading, prompt included.
        bias: added to all.
        first: weight of a unit's log-odds after the first reading.
        again: weight of the critic's log-odds of it in the second.
        first_best, again_best: weights of the best of each in that window.
    """

    window: int
    bias: float = 0.0
    first: float = 1.0
    again: float = 0.0
    first_best: float = 0.0
    again_best: float = 0.0

    def __call__(self, first: Floats, again: Floats) -> Floats:
        """Return the log-odds of the units that were read twice."""
        odds: Floats = self.bias + self.first * first + self.again * again
        odds += self.first_best * first.max(initial=-np.inf) + self.again_best * again.max(initial=-np.inf)
        return odds


@dataclass(frozen=True)
class Blends:
    """How a critic's scores are blended: for units of letters that it reads, and for others, whose critic it ignores.

    `bridge` is the weight of names that lead on from the best units to those of other documents (`bridges.bridges`);
    `reread` says how a second reading of the best units joins, None that there is none.
    """

    read: Blend
    unread: Blend
    bridge: float = 0.0
    reread: Joint | None = None


class SharedWords:
    """Counts the terms of a query in units, as they stream by.

    Args:
        query: its words are the terms; of words in scripts without spaces between them the pairs of characters, and Han
            characters alone, too, for many are words; of other scripts beyond Latin the triples; case aside.
    """

    def __init__(self, query: str) -> None:
        self._terms = {term: number for number, term in enumerate(dict.fromkeys(_terms(query)))}
        self._cells, self._counts = Growing(np.int64), Growing(np.uint16)
        self._units = 0

    def add(self, texts: Sequence[str]) -> None:
        """Count the terms in the next units."""
        terms, found = self._terms, []
        for unit, text in enumerate(texts, self._units):
            first = unit * len(terms)
            found += [first + terms[term] for term in _terms(text) if term in terms]
        cells, counts = np.unique(np.array(found, dtype=np.int64), return_counts=True)
        self._cells.extend(cells, len(cells))
        self._counts.extend(np.minimum(counts, np.iinfo(np.uint16).max), len(cells))
        self._units += len(texts)

    def shares(self, sizes: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """Return for each unit the share of the query that it holds: BM25, over the weight of all terms together.

        Args:
            sizes: [units] their lengths, in any measure.
        """
        units, terms, counts = self._found()
        return self._bm25(units, terms, counts, sizes)

    def shares_of_groups(self, sizes: npt.NDArray[np.integer], firsts: Places) -> npt.NDArray[np.float32]:
        """Return the same for groups of units that follow each other.

        Args:
            sizes: [groups] their lengths, in any measure.
            firsts: [groups] the first unit of each.
        """
        units, terms, counts = self._found()
        cells = (np.searchsorted(firsts, units, side="right") - 1) * max(len(self._terms), 1) + terms
        cells, places = np.unique(cells, return_inverse=True)
        groups, terms = np.divmod(cells, max(len(self._terms), 1))
        return self._bm25(groups, terms, np.bincount(places, counts), sizes)

    def _found(self) -> tuple[Places, Places, Places]:
        """Units and terms of what was found, and how often."""
        units, terms = np.divmod(self._cells.array[: self._cells.length], max(len(self._terms), 1))
        return units, terms, self._counts.array[: self._cells.length]

    def _bm25(self, places: Places, terms: Places, counts: Floats | Places, sizes: Places) -> npt.NDArray[np.float32]:
        if not len(places):
            return np.zeros(len(sizes), np.float32)
        holding = np.bincount(terms, minlength=len(self._terms))
        rarity = np.log1p((len(sizes) - holding + 0.5) / (holding + 0.5))
        length = _SATURATION * (1 - _LENGTH + _LENGTH * sizes / sizes.mean())
        worth = rarity[terms] * counts * (_SATURATION + 1) / (counts + length[places])
        shares: npt.NDArray[np.float32] = (np.bincount(places, worth, len(sizes)) / rarity.sum()).astype(np.float32)
        return shares


def shared_places(query: str, text: str) -> list[int]:
    """Return where the terms of a query start in a text, in order, once for each term; of Han characters the pairs alone."""
    small = text.lower()
    found = []
    for term in set(_terms(query, singles=False)):
        place = small.find(term)
        while place >= 0:
            found.append(place)
            place = small.find(term, place + 1)
    return sorted(found)


def is_latin(text: str, spaceless: int = 3) -> bool:
    """Whether at least half of a text is Latin, by letters; a text without letters counts as Latin.

    Args:
        text: of any script.
        spaceless: letters that a character counts of a script without spaces: it says about as much as three. Of a question
            that is about one foreign name it should count as one.
    """
    if text.isascii():
        return True
    others = _OTHER.findall(text)
    more = (spaceless - 1) * sum(len(_SPACELESS.findall(run)) for run in others)
    return 2 * (sum(map(len, others)) + more) <= len(_LETTER.findall(text)) + more


def best_around(values: Floats, documents: Places) -> Floats:
    """The highest value among each unit and those around it in its document."""
    best = values.copy()
    for shift in range(1, min(_AROUND, len(values) - 1) + 1):
        same = documents[shift:] == documents[:-shift]
        np.maximum(best[shift:], np.where(same, values[:-shift], -np.inf), out=best[shift:])
        np.maximum(best[:-shift], np.where(same, values[shift:], -np.inf), out=best[:-shift])
    return best


def _terms(text: str, *, singles: bool = True) -> list[str]:
    text = text.lower()
    if text.isascii():
        return _WORD.findall(text)
    found: list[str] = _WORD.findall(_OTHER.sub(" ", text))
    for run in _OTHER.findall(text):
        size = 2 if _SPACELESS.search(run) else 3
        found += [run[place : place + size] for place in range(max(1, len(run) - size + 1))]
        found += _HAN.findall(run) if singles and len(run) > 1 else ()
    return found
