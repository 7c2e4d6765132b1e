"""Training targets: a text as tokens, and the BIOE tags of its sentences with evidence and of the words that answer."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from cprs_integrations.critics.base import B, E, I, O
from cprs_integrations.examples import Marked, Spans
from cprs_integrations.units import segment

IGNORED = -100
Ints = npt.NDArray[np.int32]
_LONG = 8  # tokens


@dataclass(frozen=True)
class Encoded:
    """A document as tokens, with the unit of each."""

    ids: Ints
    starts: Ints
    ends: Ints
    units: Ints


def encode(tokenizer: Tokenizer, text: str) -> Encoded:
    """Tokenize a text unit by unit."""
    units = list(segment(text))
    found = tokenizer.encode_batch([text[unit.start : unit.end] for unit in units], add_special_tokens=False)
    units, found = [unit for unit, tokens in zip(units, found, strict=True) if tokens.ids], [t for t in found if t.ids]
    counts = [len(tokens.ids) for tokens in found]
    bases = np.repeat(np.array([unit.start for unit in units], dtype=np.int32), counts)
    offsets = np.array([offset for tokens in found for offset in tokens.offsets], dtype=np.int32).reshape(-1, 2)
    return Encoded(
        ids=np.array([token for tokens in found for token in tokens.ids], dtype=np.int32),
        starts=offsets[:, 0] + bases,
        ends=offsets[:, 1] + bases,
        units=np.repeat(np.arange(len(units), dtype=np.int32), counts),
    )


def long_units(ids: Ints, units: Ints) -> frozenset[bytes]:
    """The units of a text, given as its tokens and the unit of each, but for short ones, which recur by chance."""
    borders = np.flatnonzero(np.diff(units, prepend=-1, append=-1))
    return frozenset(ids[start:end].tobytes() for start, end in pairwise(borders.tolist()) if end - start >= _LONG)


def overlap(own: frozenset[bytes], other: frozenset[bytes]) -> bool:
    """Whether more than a quarter of the long units of another text are among one's own, as in windows that slide."""
    return 4 * len(own & other) > len(other)


def sentences(tokens: Encoded, document: Marked) -> Ints:
    """BIOE of a document's units: each with evidence is one span."""
    inside = _covered(tokens, document.evidence)
    return _tags(np.isin(tokens.units, np.unique(tokens.units[inside])), tokens.units)


def words(tokens: Encoded, document: Marked) -> Ints:
    """BIOE of a document's answers."""
    inside = _covered(tokens, document.answers)
    return _tags(inside, np.cumsum(np.diff(inside.astype(np.int32), prepend=0) == 1))


def _tags(inside: npt.NDArray[np.bool_], groups: npt.NDArray[np.integer]) -> Ints:
    """BIOE of the tokens that are inside; each group of them is one span, a single token a B."""
    tags = np.full(len(inside), O, dtype=np.int32)
    if not len(inside):
        return tags
    fresh = groups[1:] != groups[:-1]
    tags[inside] = I
    tags[inside & np.concatenate((fresh | ~inside[1:], [True]))] = E
    tags[inside & np.concatenate(([True], fresh | ~inside[:-1]))] = B
    return tags


def _covered(tokens: Encoded, spans: Spans) -> npt.NDArray[np.bool_]:
    inside = np.zeros(len(tokens.ids), dtype=np.bool_)
    for start, end in spans:
        inside |= (tokens.starts < end) & (tokens.ends > start)
    return inside
