"""What is measured of the text that a method keeps, and how sure the means are."""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

from cprs_integrations.errors import require
from cprs_integrations.evaluation.items import Item
from cprs_integrations.units import segment

_RESAMPLES = 2_000
_EVERY = 0.01  # seconds between two looks at the memory

Floats = npt.NDArray[np.float64]


def matched(item: Item, text: str) -> float:
    """RULER's string match, in any case: the share of the answers that stand in a text; of alternatives, whether one does."""
    lowered = text.lower()
    found = [answer.lower() in lowered for answer in item.answers]
    if not found:
        return 0.0
    return float(any(found)) if item.any_answer else sum(found) / len(found)


def retention(item: Item, kept: str) -> float:
    """How much of what is asked for is left: `matched`; without known answers, `evidence_kept`."""
    return matched(item, kept) if item.answers else evidence_kept(item, kept)


def all_kept(item: Item, kept: str) -> float:
    """Whether all evidence stands in the kept text; without any, nothing can."""
    return float(bool(item.evidence) and all(excerpt.strip() in kept for excerpt in item.excerpts))


def evidence_kept(item: Item, kept: str) -> float:
    """Share of the evidence's characters that stand in the kept text: whole excerpts, else those of their units that do."""
    total = sum(len(excerpt.strip()) for excerpt in item.excerpts)
    return min(1.0, _kept_characters(item, kept) / total) if total else 0.0


def precision(item: Item, kept: str) -> float:
    """Share of the kept characters that are evidence; 0 if nothing is kept."""
    return min(1.0, _kept_characters(item, kept) / len(kept)) if kept else 0.0


def _kept_characters(item: Item, kept: str) -> int:
    """Characters of evidence in the kept text, each excerpt as often as it is evidence."""
    found = 0
    for excerpt, times in Counter(excerpt.strip() for excerpt in item.excerpts).items():
        whole = min(times, kept.count(excerpt))
        found += whole * len(excerpt)
        if whole:
            continue
        for unit in segment(excerpt):
            part = excerpt[unit.start : unit.end]
            found += len(part) * min(times, kept.count(part)) if len(part) < len(excerpt) else 0
    return found


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % interval, by bootstrap over the items."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean(values: Sequence[float], seed: int = 0) -> Mean:
    """Mean of some items' values, with the interval that 2,000 resamples of the items give."""
    found: Floats = np.asarray(values, dtype=np.float64)
    if not len(found):
        raise ValueError("a mean of nothing")
    places = np.random.default_rng(seed).integers(len(found), size=(_RESAMPLES, len(found)))
    low, high = np.quantile(found[places].mean(axis=1), (0.025, 0.975))
    return Mean(float(found.mean()), float(low), float(high), len(found))


def difference(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Mean:
    """Mean of the differences on the same items, with its interval: pairs are resampled, not methods."""
    return mean((np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)).tolist(), seed)


class PeakMemory:
    """Watches how much memory this process holds at most, beyond what it held before; needs psutil.

    Looks a hundred times a second, in a thread. Memory that the process holds from before and uses again is not seen, so
    the largest figure of several items counts.
    """

    def __init__(self) -> None:
        self._process = require("psutil", "bench").Process()
        self._done = threading.Event()
        self.megabytes = 0.0

    def __enter__(self) -> "PeakMemory":
        self._before = self._process.memory_info().rss
        self._done.clear()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(_EVERY):
            self._look()

    def _look(self) -> None:
        self.megabytes = max(self.megabytes, (self._process.memory_info().rss - self._before) / 1e6)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        self._look()
