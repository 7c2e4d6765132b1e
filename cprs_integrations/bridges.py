"""Bridges: the names that lead on from the best units of a context to units of its other documents.

Some questions take two steps: "Where was the director of the film born?" One document names the director; another, which
shares no word with the question, tells where the director was born. What they share is the name.
"""

import re
from collections.abc import Iterator

import numpy as np

from cprs_integrations.context import LongContext
from cprs_integrations.lexical import Floats, Places

_BEST = 3  # units whose names are followed
_NAMES = 16  # of each of them, at most

_WORD = re.compile(r"\w+")


def bridges(context: LongContext, query: str, documents: Places, starts: Places, chances: Floats) -> Floats:
    """Return how much each unit holds of the names in the best units of other documents: the log of 1 + their rarity.

    A name is a word that begins with a capital or a digit, and is neither in the query nor, written small, in the context. A
    title is in every unit of its document.

    Args:
        context: the documents.
        query: its words have been counted already.
        documents: [units] the document of each.
        starts: [units] where each starts in the whole context.
        chances: [units] how likely each is worth keeping: what its names count.
    """
    worth = np.zeros(len(starts))
    best = np.argsort(-chances, kind="stable")[:_BEST]
    known = {word.lower() for word in _WORD.findall(query)}
    sources: dict[str, dict[int, float]] = {}
    for unit in sorted(best.tolist()):
        document = int(documents[unit])
        for name in _names(_text(context, starts, unit), known):
            counts = sources.setdefault(name, {})
            counts[document] = max(counts.get(document, 0.0), float(chances[unit]))
    for name, counts in sources.items():
        if name[0].isupper() and _stands_in(context, name.lower()):
            continue
        units = _holding(context, name, documents, starts)
        rarity = np.log1p((len(starts) - len(units) + 0.5) / (len(units) + 0.5))
        own = documents[units]
        leads = np.full(len(units), max(counts.values()))
        for document in counts:
            others = [chance for other, chance in counts.items() if other != document]
            leads[own == document] = max(others, default=0.0)
        worth[units] += rarity * leads
    found: Floats = np.log1p(worth)
    return found


def _names(text: str, known: set[str]) -> list[str]:
    found = dict.fromkeys(word for word in _WORD.findall(text) if word[0].isupper() or word[0].isdigit())
    return [name for name in found if name.lower() not in known][:_NAMES]


def _text(context: LongContext, starts: Places, unit: int) -> str:
    """The text from a unit to the next one of its document."""
    start = int(starts[unit])
    border = context.starts[context.document_at(start) + 1]
    return context.slice(start, min(border, int(starts[unit + 1])) if unit + 1 < len(starts) else border)


def _stands_in(context: LongContext, word: str) -> bool:
    return any(_is_in(text, word) for text in context.documents)


def _holding(context: LongContext, name: str, documents: Places, starts: Places) -> Places:
    """The units with a name, in themselves or in the title of their document."""
    pairs = zip(context.starts, context.documents, strict=False)
    places = [base + place for base, text in pairs if name in text for place in _places(text, name)]
    inside = np.unique(np.searchsorted(starts, np.array(places, dtype=np.int64), side="right") - 1)
    titled = [number for number, title in enumerate(context.titles) if _is_in(title, name)]
    found = inside[inside >= 0]
    return np.union1d(found, np.flatnonzero(np.isin(documents, titled))) if titled else found


def _is_in(text: str, word: str) -> bool:
    return word in text and next(_places(text, word), None) is not None


def _places(text: str, word: str) -> Iterator[int]:
    """Where a word stands in a text, as a whole word."""
    place = text.find(word)
    while place >= 0:
        end = place + len(word)
        before, after = text[place - 1 : place], text[end : end + 1]
        if not (before.isalnum() or before == "_" or after.isalnum() or after == "_"):
            yield place
        place = text.find(word, end)
