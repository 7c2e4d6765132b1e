"""Documents cut into units, with their tokens, in batches: what the ledger notes and windows are packed of."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cprs_integrations.caching import DocumentCache, Part
from cprs_integrations.context import LongContext, readable
from cprs_integrations.critics.base import Critic, Tokens
from cprs_integrations.units import Unit, segment
from cprs_integrations.windows import Ints, largest_title

_BATCH = 65_536  # characters that are tokenized in one call
_LINE_BREAKS = re.compile(r"\s*[\r\n]")


@dataclass
class Cut:
    """Units that follow each other, of one document or several.

    Attributes:
        documents: the number of each unit's document.
        units: their places in their documents.
        texts: their texts.
        tokens: those of all units; none is without.
    """

    documents: list[int]
    units: list[Unit]
    texts: list[str]
    tokens: Tokens


def cuts(critic: Critic, documents: Iterable[str], cache: DocumentCache | None = None) -> Iterator[Cut]:
    """Cut documents into units and tokenize these, a batch at a time: short documents share one, unless a cache keeps each."""
    if cache is None:
        yield from _fresh(critic, enumerate(documents))
        return
    for number, text in enumerate(documents):
        parts: Iterable[Part] | None = cache.get(critic, text)
        if parts is None:
            made = (Part.of(cut.units, cut.tokens) for cut in _fresh(critic, [(0, text)]))
            parts = cache.recorded(critic, text, made)
        for part in parts:
            units = part.units
            yield Cut([number] * len(units), units, [text[unit.start : unit.end] for unit in units], part.tokens)


def _fresh(critic: Critic, documents: Iterable[tuple[int, str]]) -> Iterator[Cut]:
    reads_white_space, read = getattr(critic, "reads_white_space", False), (-1, 0)
    for batch in _batches((number, unit, text) for number, text in documents for unit in segment(text)):
        numbers, units, sources = map(list, zip(*batch, strict=True))
        texts = [text[unit.start : unit.end] for unit, text in zip(units, sources, strict=True)]
        if reads_white_space:
            stops = [_stop(unit, text) for unit, text in zip(units, sources, strict=True)]
            before = [read, *zip(numbers, stops, strict=True)]
            begins = [stop if number == last else 0 for number, (last, stop) in zip(numbers, before, strict=False)]
            read = before[-1]
            tokens = _with_white_space(critic, units, sources, begins, stops)
        else:
            tokens = critic.encode(texts)
        if not tokens.counts.all():  # control characters alone: a unit of no tokens can be neither scored nor kept
            filled = np.flatnonzero(tokens.counts).tolist()
            numbers, units, texts = ([column[place] for place in filled] for column in (numbers, units, texts))
            tokens = Tokens(tokens.ids, tokens.starts, tokens.ends, tokens.counts[tokens.counts > 0])
        if units:
            yield Cut(numbers, units, texts, tokens)


def titles(critic: Critic, context: LongContext, documents: Iterable[int], room: int) -> dict[int, Ints]:
    """Tokenize the titles of some documents, those that have one, cut to what windows of a room show of them."""
    known = {number: title for number in documents if (title := readable(context.titles[number])).strip()}
    if not known:
        return {}
    tokens = critic.encode([title + ":" for title in known.values()])
    return {number: part[: largest_title(room)] for number, part in zip(known, parted(tokens), strict=True)}


def parted(tokens: Tokens) -> list[Ints]:
    """The token ids of each text."""
    return np.split(tokens.ids, np.cumsum(tokens.counts)[:-1])


def _batches(found: Iterable[tuple[int, Unit, str]]) -> Iterator[list[tuple[int, Unit, str]]]:
    batch: list[tuple[int, Unit, str]] = []
    size = 0
    for number, unit, text in found:
        batch.append((number, unit, text))
        size += unit.end - unit.start
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _stop(unit: Unit, text: str) -> int:
    """Where reading of a unit ends: line breaks go with the unit before them, as byte-level tokenizers join them."""
    found = _LINE_BREAKS.match(text, unit.end)
    return found.end() if found else unit.end


def _with_white_space(
    critic: Critic, units: Sequence[Unit], sources: Sequence[str], begins: Sequence[int], stops: Sequence[int]
) -> Tokens:
    """Tokenize units with the white space around them, each from where it is read to where that ends.

    Tokens of white space alone have no width.
    """
    found = critic.encode([text[begin:stop] for text, begin, stop in zip(sources, begins, stops, strict=True)])
    shift = np.repeat([unit.start - begin for unit, begin in zip(units, begins, strict=True)], found.counts)
    size = np.repeat([unit.end - unit.start for unit in units], found.counts)
    starts, ends = np.clip(found.starts - shift, 0, size), np.clip(found.ends - shift, 0, size)
    places = zip(starts.tolist(), np.repeat(np.arange(len(units)), found.counts).tolist(), strict=True)
    opens_with_space = np.array(
        [sources[unit][units[unit].start + start : units[unit].start + start + 1].isspace() for start, unit in places], bool
    )
    starts += (ends - starts > 1) & opens_with_space  # a span is to begin with a word
    return Tokens(found.ids, starts.astype(np.int32), ends.astype(np.int32), found.counts)
