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
_SEED = 0.5  # share of its unit's best token that starts a phrase where nothing is marked
REACH = 0.5
"""Share of that level down to which a phrase goes on, if the critic has no reach of its own."""
_WHOLE = 0.58  # coverage from which whole units are marked, not phrases in them


@dataclass(frozen=True)
class TokenSpans:
    """Spans of tokens `first[i]:last[i]` (last excluded), disjoint and in order."""

    first: Places
    last: Places


def probability(odds: Floats) -> npt.NDArray[np.float32]:
    """Return the probabilities that belong to some log-odds."""
    return np.float32(1) / (np.float32(1) + np.exp(-odds.astype(np.float32)))


def marks_phrases(keep: Floats, borders: Places) -> bool:
    """Whether the critic marks phrases inside units rather than whole units.

    Measured over the whole context, where one unit alone would be a matter of luck: how much of a unit's best token the
    others have, on average over the units, those weighing most that are marked most.

    Args:
        keep: [tokens] probability of being kept.
        borders: [units + 1] the first token of each unit, and the number of tokens; no unit is empty.
    """
    if len(keep) == 0:
        return False
    peak = np.maximum.reduceat(keep, borders[:-1]).astype(np.float64)
    total = np.add.reduceat(keep.astype(np.float64), borders[:-1])
    return float(peak @ total) < _WHOLE * float((peak * peak) @ np.diff(borders))


def phrases(keep: Floats, begin: Floats, borders: Places, reach: float = REACH) -> TokenSpans:
    """Decode phrases inside units, at least one a unit, so that they can be ranked even where nothing is marked.

    A phrase starts at a token that is marked, or is the best of its unit or nearly so; it goes on over tokens with
    a share `reach` of what that takes, until one that begins another.

    Args:
        keep: [tokens] probability of being kept, P(B) + P(I) + P(E).
        begin: [tokens] P(B) / keep.
        borders: [units + 1] the first token of each unit, and the number of tokens; no unit is empty.
        reach: in (0, 1].
    """
    if len(keep) == 0:
        return TokenSpans(np.zeros(0, np.int64), np.zeros(0, np.int64))
    peak = np.maximum.reduceat(keep, borders[:-1])
    level = np.repeat(np.minimum(np.float32(MARKED), _SEED * peak), np.diff(borders))
    inside = keep >= np.float32(reach) * level
    before = np.concatenate(([False], inside[:-1]))
    starts = inside & (~before | ((begin > 0.5) & (np.concatenate(([0], begin[:-1])) <= 0.5)))
    starts[borders[:-1]] = inside[borders[:-1]]
    run = np.cumsum(starts)
    places = np.flatnonzero(inside)
    first = np.flatnonzero(starts).astype(np.int64)
    last = np.zeros(len(first), np.int64)
    last[run[places] - 1] = places + 1  # of the assignments to one run the last holds
    seeded = np.maximum.reduceat(np.where(inside, keep - level, np.float32(-1.0)), first) >= 0
    return TokenSpans(first[seeded], last[seeded])


def passages(keep: Floats, begin: Floats, borders: Places, joined: npt.NDArray[np.bool_]) -> TokenSpans:
    """Decode whole units, and join those that the critic marks as one: both marked, and no new span begun.

    Args:
        keep: [tokens] probability of being kept.
        begin: [tokens] P(B) / keep.
        borders: [units + 1] the first token of each unit, and the number of tokens; no unit is empty.
        joined: [units] whether a passage may come into the unit from the one before (the same paragraph).
    """
    heads = borders[:-1].astype(np.int64)
    if len(heads) == 0:
        return TokenSpans(heads, heads)
    goes_on = joined & (keep[heads] >= MARKED) & (keep[heads - 1] >= MARKED) & (begin[heads] <= 0.5)
    first = heads[~goes_on]
    return TokenSpans(first, np.append(first[1:], borders[-1]))


def best_scores(keep: Floats, spans: TokenSpans) -> Floats:
    """The probability of the best token of each span: a phrase is no less worth for reaching on to the words around it."""
    if len(spans.first) == 0:
        return np.zeros(0, np.float32)
    borders = np.stack((spans.first, spans.last), axis=1).ravel()
    best: Floats = np.maximum.reduceat(np.append(keep, np.float32(0.0)), borders)[::2]
    return best
