"""Windows spread over replicas of a critic in other processes: in calls of some thousand tokens, answered in order.

What the replicas are, `critics/ray.py` and `serving/ray_app.py` say.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from cprs_integrations.critics.base import Critic, Tokens, TokenScores
from cprs_integrations.errors import CriticError
from cprs_integrations.windows import Ints, Window

_AHEAD = 3  # calls a replica: one that runs, one that waits there, one whose answer waits for its turn
_BATCH_WINDOWS, _BATCH_TOKENS = 4, 2_048  # a call has at least so many windows or tokens, so that it outweighs its sending
_OPTIONAL = ("blends", "reach", "reads_white_space")  # what a critic may have besides the protocol
_log = logging.getLogger(__name__)
_Call = TypeVar("_Call")


class LostError(Exception):
    """The answer of a call was lost with its replica; the cause tells how."""


class Replicas(Protocol[_Call]):
    """Where the model is: in processes that may die at any time."""

    def send(self, windows: list[Window]) -> _Call:
        """Send a call, to the replica with the least to do."""
        ...

    def answers(self, call: _Call) -> list[TokenScores]:
        """Wait for the answers of a call.

        Raises:
            LostError: its replica died.
            Exception: what the critic raised.
        """
        ...


class Worker:
    """What runs in a replica: a critic, loaded by `start`."""

    _critic: Critic

    def start(self, load: Callable[[], Critic]) -> Critic | None:
        """Load the critic, and return it without its model, if it can be sent so."""
        self._critic = load()
        return self.reader()

    def reader(self) -> Critic | None:
        """The critic without its model, or None."""
        reader = getattr(self._critic, "reader", None)
        return reader() if reader else None

    def score(self, windows: list[Window]) -> list[TokenScores]:
        """Score the windows of a call."""
        answers = list(self._critic.score(windows))
        if len(answers) != len(windows):
            raise CriticError(f"{type(self._critic).__name__} returned {len(answers)} answers for {len(windows)} windows")
        return answers


class SpreadCritic:
    """Cuts windows here and has them scored by replicas.

    Args:
        replicas: where the model is.
        reader: the same critic, to encode here.
        count: how many replicas there are, or may be.
        batch_tokens: tokens of a call; a larger window is a call of its own. None: four windows, at least 2,048.
        tries: how often a call is sent before the death of its replica is taken for the call's own fault.
    """

    def __init__(
        self, replicas: Replicas[Any], reader: Critic, *, count: int, batch_tokens: int | None = None, tries: int = 3
    ) -> None:
        self._replicas, self._reader, self._tries, self._ahead = replicas, reader, tries, _AHEAD * count
        self.limits, self.threshold, self.separator = reader.limits, reader.threshold, reader.separator
        self._batch_tokens = batch_tokens or max(_BATCH_TOKENS, _BATCH_WINDOWS * self.limits.window)
        for name in _OPTIONAL:
            if hasattr(reader, name):
                setattr(self, name, getattr(reader, name))

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Tokenize texts here, as the critic does."""
        return self._reader.encode(texts)

    def encode_prompt(self, instruction: str, query: str) -> Ints:
        """Return the ids of the critic's prompt."""
        return self._reader.encode_prompt(instruction, query)

    def score(self, windows: Iterable[Window]) -> Iterator[TokenScores]:
        """Score windows on all replicas, in order, reading a few calls ahead.

        Raises:
            CriticError: a call was lost with its replica as often as it may be; the last loss is the cause.
        """
        calls: deque[tuple[list[Window], Any]] = deque()
        for batch in _batches(windows, self._batch_tokens):
            calls.append((batch, self._replicas.send(batch)))
            if len(calls) >= self._ahead:
                yield from self._answers(*calls.popleft())
        while calls:
            yield from self._answers(*calls.popleft())

    def _answers(self, batch: list[Window], call: Any) -> list[TokenScores]:
        sent = 1
        while True:
            try:
                return self._replicas.answers(call)
            except LostError as lost:
                if sent == self._tries:
                    raise CriticError(
                        f"{len(batch)} windows were sent {sent} times, and each time their replica died; if it runs out of "
                        "memory, reserve more for it, or make calls smaller with batch_tokens"
                    ) from lost.__cause__
            sent += 1
            _log.warning("a replica died; its %s windows are sent again, for the %s. time", len(batch), sent)
            call = self._replicas.send(batch)


def _batches(windows: Iterable[Window], tokens: int) -> Iterator[list[Window]]:
    batch: list[Window] = []
    size = 0
    for window in windows:
        length = len(window.prompt.ids) + len(window.ids)
        if batch and size + length > tokens:
            yield batch
            batch, size = [], 0
        batch.append(window)
        size += length
    if batch:
        yield batch
