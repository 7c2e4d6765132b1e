"""BIOE tags: from the critic's probabilities to spans of tokens, in linear time.

The critic says for each token how likely it begins a span (B), continues one (I), ends one (E) or stands outside (O).
Decoding follows what it marks, at whatever granularity the instruction asked for: a few words, a sentence, a paragraph.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Places = npt.NDArray[np.integer]

MARKED = 0.5
"""Probability from which a token counts as marked, whatever stands around it."""
_SEED = 0.5  # share of its unit's best token that starts a span where nothing is marked
_GROW = 0.5  # share of that level down to which a span goes on
_WHOLE = 0.5  # share of a unit's tokens from which a span takes the whole unit


@dataclass(frozen=True)
class TokenSpans:
    """Spans of tokens `first[i]:last[i]` (last excluded), disjoint and in order."""

    first: Places
    last: Places


def decode(keep: Floats, begin: Floats, borders: Places, joined: npt.NDArray[np.bool_], *, within_units: bool) -> TokenSpans:
    """Decode spans, every unit giving at least one, so that spans can be ranked even where nothing is marked.

    A span starts at a token that is marked, or is the best of its unit or nearly so, and goes on over tokens half as
    probable, until a token that begins another. It crosses from one unit into the next only where both sides are marked
    and no new span begins; a span that holds half of a unit takes the whole of it.

    Args:
        keep: [tokens] probability of being kept, P(B) + P(I) + P(E).
        begin: [tokens] P(B) / keep.
        borders: [units + 1] the first token of each unit, and the number of tokens; no unit is empty.
        joined: [units] whether a span may come into the unit from the one before (the same document).
        within_units: decode words and phrases: no span crosses a unit's border or is widened to the whole unit.
    """
    total = len(keep)
    if total == 0:
        return TokenSpans(np.zeros(0, np.int64), np.zeros(0, np.int64))
    sizes = np.diff(borders)
    peak = np.maximum.reduceat(keep, borders[:-1])
    level = np.repeat(np.minimum(np.float32(MARKED), _SEED * peak), sizes)
    inside = keep >= _GROW * level
    before = np.concatenate(([False], inside[:-1]))
    starts = inside & (~before | ((begin > 0.5) & (np.concatenate(([0], begin[:-1])) <= 0.5)))
    heads = borders[:-1]
    crossed = joined & (keep[heads] >= MARKED) & (keep[heads - 1] >= MARKED) & (begin[heads] <= 0.5)
    if within_units:
        crossed = np.zeros_like(crossed)
    starts[heads] = inside[heads] & ~crossed
    run = np.cumsum(starts)
    places = np.flatnonzero(inside)
    first = np.flatnonzero(starts).astype(np.int64)
    last = np.zeros(len(first), np.int64)
    last[run[places] - 1] = places + 1  # the last assignment to a run wins
    seeded = np.maximum.reduceat(np.where(inside, keep - level, -1.0), first) >= 0
    first, last = first[seeded], last[seeded]
    return TokenSpans(first, last) if within_units else _widened(first, last, borders)


def _widened(first: Places, last: Places, borders: Places) -> TokenSpans:
    """Widen spans to the units of which they hold half; what then overlaps is one span."""
    unit = np.searchsorted(borders, first, side="right") - 1
    held = np.minimum(last, borders[unit + 1]) - first
    first = np.where(held >= _WHOLE * (borders[unit + 1] - borders[unit]), borders[unit], first)
    unit = np.searchsorted(borders, last - 1, side="right") - 1
    held = last - np.maximum(first, borders[unit])
    last = np.where(held >= _WHOLE * (borders[unit + 1] - borders[unit]), borders[unit + 1], last)
    reach = np.maximum.accumulate(last)
    fresh = np.concatenate(([True], first[1:] >= reach[:-1]))
    return TokenSpans(first[fresh], np.maximum.reduceat(last, np.flatnonzero(fresh)))


def mean_scores(keep: Floats, spans: TokenSpans) -> Floats:
    """Mean probability of the tokens of each span."""
    sums = np.concatenate(([0.0], np.cumsum(keep, dtype=np.float64)))
    means = (sums[spans.last] - sums[spans.first]) / np.maximum(spans.last - spans.first, 1)
    clipped: Floats = np.clip(means, 0.0, 1.0).astype(np.float32)
    return clipped
