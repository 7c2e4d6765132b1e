"""Coarse to fine: which windows of a long context are worth reading, told by the words they share with the query.

Counting words takes a small part of the time that a critic takes to read. So where a context is so long that reading all of it
takes too long, the windows that share least with the query can be left unread. It is a choice, not a default: a passage that
answers in other words than those of the question is found by reading alone.
"""

import math

import numpy as np
import numpy.typing as npt

from cprs_integrations.errors import ArgumentError
from cprs_integrations.lexical import Places, SharedWords


def check_prefilter(share: float | None, query: str | None) -> None:
    """Check the share of windows to be read.

    Raises:
        ArgumentError: it is not in (0, 1], or there is no query whose words could be counted.
    """
    if share is None:
        return
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise ArgumentError(f"prefilter must be the share of windows to read, in (0, 1], or None, not {share!r}")
    if not (query or "").strip():
        raise ArgumentError(
            "prefilter looks for the words of the query, and there is none: give a query, or leave prefilter out"
        )


def worth_reading(shared: SharedWords, firsts: Places, lasts: Places, sizes: Places, share: float) -> npt.NDArray[np.bool_]:
    """Say of each window whether it is to be read: the best by BM25 of the query's words in it.

    Args:
        shared: has counted the query's words in all units.
        firsts: [windows] the first unit of each; a unit that is spread over several windows counts for all of them.
        lasts: [windows] the last unit of each.
        sizes: [windows] their tokens.
        share: of the windows are read, rounded up. If no window shares a word with the query, nothing is known and all are.
    """
    groups, group = np.unique(firsts, return_inverse=True)
    values = shared.shares_of_groups(np.bincount(group, sizes, len(groups)), groups)
    value = np.maximum(values[group], values[np.searchsorted(groups, lasts, side="right") - 1]) if len(firsts) else values
    if not value.any():
        return np.ones(len(firsts), dtype=bool)
    is_read = np.zeros(len(firsts), dtype=bool)
    is_read[np.argsort(-value, kind="stable")[: math.ceil(share * len(firsts))]] = True
    return is_read
