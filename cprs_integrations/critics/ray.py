"""A critic on a Ray cluster: the windows of one huge context, or of many, are scored by replicas on any number of machines.

Needs the extra "ray".
"""

import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Self

from cprs_integrations.critics import load_critic
from cprs_integrations.critics.base import Critic, TokenScores
from cprs_integrations.critics.spread import LostError, SpreadCritic, Worker
from cprs_integrations.errors import ArgumentError, CriticError, require
from cprs_integrations.windows import Window


class RayCritic(SpreadCritic):
    """Has windows scored by replicas of a critic: Ray actors, each with its own loaded model.

    Windows are cut where this object is, sent in calls of some thousand tokens, a few calls ahead, and answered in order.
    A replica that dies is replaced, and its windows are sent again. Errors of the critic itself are raised as they are.
    Results are the same to the byte as those of the critic alone, if its scores do not depend on what shares a batch (the
    shipped critic's never do).

    Safe to share between threads. Close it, use it in a `with` statement, or let go of it: its replicas end with it.

    Args:
        load: makes the critic, in each replica. If that has a method `reader` (`critics.tokenizing.Sendable`), no model is
            loaded here; else `load` is called here too.
        replicas: how many; None: as many as the cluster has room for. Those that find no room yet join when they do.
        num_cpus, num_gpus: what each reserves, fractions included.
        batch_tokens: tokens of a call; a larger window is a call of its own. None: four windows, at least 2,048.
        tries: how often a call is sent, or a replica started, before its death is taken for the call's own fault.
        start_seconds: how long to wait for a first replica.

    Raises:
        ArgumentError: an argument has a value it cannot have.
        CriticError: no replica could be started.
        MissingExtraError: Ray is not installed.
    """

    def __init__(
        self,
        load: Callable[[], Critic],
        *,
        replicas: int | None = None,
        num_cpus: float = 1,
        num_gpus: float = 0,
        batch_tokens: int | None = None,
        tries: int = 3,
        start_seconds: float = 600,
    ) -> None:
        for name, value in (("replicas", replicas), ("batch_tokens", batch_tokens), ("tries", tries)):
            if (type(value) is not int or value < 1) and not (value is None and name != "tries"):
                raise ArgumentError(f"{name} must be a whole number from 1, not {value!r}")
        resources = checked_resources(num_cpus, num_gpus)
        connect()
        count = replicas or room(resources)
        self._pool = _Pool(load, count, resources, tries, start_seconds)
        self._finalizer = weakref.finalize(self, self._pool.close)
        try:
            reader = self._pool.reader() or load()
        except BaseException:
            self.close()
            raise
        super().__init__(self._pool, reader, count=count, batch_tokens=batch_tokens, tries=tries)

    @classmethod
    def from_pretrained(
        cls,
        critic: str | None = None,
        *,
        replicas: int | None = None,
        num_cpus: float = 1,
        num_gpus: float = 0,
        batch_tokens: int | None = None,
        tries: int = 3,
        start_seconds: float = 600,
        **options: Any,
    ) -> Self:
        """Load a critic in each replica.

        Args:
            critic: the `model` of `load_critic`; a folder must be there on every machine.
            replicas: as this and the next five are in the constructor.
            num_cpus: see there.
            num_gpus: see there.
            batch_tokens: see there.
            tries: see there.
            start_seconds: see there.
            **options: the other arguments of `load_critic`, e.g. `device="cuda"`.

        Raises:
            ModelError: files are missing, damaged or foreign.
            ArgumentError, CriticError, MissingExtraError: as in the constructor, or as the critic does.
        """
        return cls(
            partial(load_critic, critic, **options),
            replicas=replicas,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            batch_tokens=batch_tokens,
            tries=tries,
            start_seconds=start_seconds,
        )

    @property
    def ready(self) -> int:
        """How many replicas have loaded their critic."""
        return len(self._pool.ready())

    def close(self) -> None:
        """End the replicas. Scoring raises a CriticError from then on."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def connect() -> Any:
    """Import Ray, and start or join a cluster, as RAY_ADDRESS says, unless that has been done.

    A cluster that is started here reports no usage statistics, unless RAY_USAGE_STATS_ENABLED says so.
    """
    ray = require("ray", "ray")
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init()
    return ray


def checked_resources(num_cpus: float, num_gpus: float) -> dict[str, float]:
    """What a replica reserves, in Ray's words.

    Raises:
        ArgumentError: no number, negative, or nothing at all.
    """
    for name, value in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise ArgumentError(f"{name} must be a number from 0, not {value!r}")
    if not num_cpus and not num_gpus:
        raise ArgumentError("num_cpus and num_gpus are both 0: reserve some of either")
    return {"num_cpus": num_cpus, "num_gpus": num_gpus}


def room(resources: dict[str, float]) -> int:
    """How many replicas the machines of the cluster have room for, at least one."""
    ray = require("ray", "ray")
    needs = [(name, amount) for name, amount in zip(("CPU", "GPU"), resources.values(), strict=True) if amount]
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return max(1, sum(int(min(machine.get(name, 0) // amount for name, amount in needs)) for machine in machines))


def losses() -> tuple[type[Exception], ...]:
    """What Ray raises where an answer is lost with its process or machine."""
    errors = require("ray", "ray").exceptions
    return errors.RayActorError, errors.NodeDiedError, errors.ObjectLostError, errors.OutOfMemoryError


@dataclass(eq=False)
class _Replica:
    """An actor, the promise that it has loaded its critic, and the calls that it has not answered yet."""

    actor: Any
    started: Any
    place: int
    is_ready: bool = False
    running: set[Any] = field(default_factory=set)


@dataclass(frozen=True)
class _Call:
    replica: _Replica
    answer: Any


class _Pool:
    """The replicas: calls go to the one with the least to do; one that died is replaced."""

    def __init__(
        self, load: Callable[[], Critic], count: int, resources: dict[str, float], tries: int, start_seconds: float
    ) -> None:
        self._ray = require("ray", "ray")
        self._losses = losses()
        self._actor = self._ray.remote(**resources)(Worker)
        self._load, self._resources, self._tries, self._start_seconds = load, resources, tries, start_seconds
        self._lock = threading.Lock()
        self._failed_starts = [0] * count
        self._is_closed = False
        self._replicas = [self._new(place) for place in range(count)]

    def _new(self, place: int) -> _Replica:
        actor = self._actor.remote()
        return _Replica(actor, actor.start.remote(self._load), place)

    def reader(self) -> Critic | None:
        """The critic without its model, or None if it cannot be sent so; waits for the first replica."""
        found: Critic | None = self._ray.get(self.ready()[0].started)
        return found

    def send(self, windows: list[Window]) -> _Call:
        """Send a call to the replica with the least to do."""
        replicas = self.ready()
        with self._lock:
            for replica in replicas:
                if replica.running:
                    _, running = self._ray.wait(list(replica.running), num_returns=len(replica.running), timeout=0)
                    replica.running = set(running)
            replica = min(replicas, key=lambda replica: len(replica.running))
            answer = replica.actor.score.remote(windows)
            replica.running.add(answer)
        return _Call(replica, answer)

    def answers(self, call: _Call) -> list[TokenScores]:
        """Wait for the answers of a call.

        Raises:
            LostError: its replica died; there is another now.
            Exception: the critic failed.
        """
        try:
            found: list[TokenScores] = self._ray.get(call.answer)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._losses as error:
            self._replace(call.replica)
            raise LostError from error
        with self._lock:
            call.replica.running.discard(call.answer)
        return found

    def ready(self) -> list[_Replica]:
        """The replicas that have loaded their critic; waits until there is one.

        Raises:
            CriticError: none was there in time, one died again and again while it started, or the critic is closed.
            Exception: the critic could not be loaded.
        """
        end = time.monotonic() + self._start_seconds
        while True:
            with self._lock:
                if self._is_closed:
                    raise CriticError("this RayCritic is closed; make another")
                replicas = list(self._replicas)
            starting = {replica.started: replica for replica in replicas if not replica.is_ready}
            ready = [replica for replica in replicas if replica.is_ready]
            if not starting:
                return ready
            patience = 0 if ready else max(0, end - time.monotonic())
            started, _ = self._ray.wait(list(starting), num_returns=1, timeout=patience)
            for promise in started:
                self._note_start(starting[promise])
            if started:
                continue
            if ready:
                return ready
            raise CriticError(
                f"no replica could start within {self._start_seconds:g} s: each reserves {self._resources}, "
                f"and of {self._ray.cluster_resources()} there is left {self._ray.available_resources()}"
            )

    def _note_start(self, replica: _Replica) -> None:
        try:
            self._ray.get(replica.started)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._losses as error:
            self._failed_starts[replica.place] += 1
            if self._failed_starts[replica.place] >= self._tries:
                raise CriticError(f"a replica died {self._tries} times while it loaded its critic: {error}") from error
            self._replace(replica)
        else:
            self._failed_starts[replica.place] = 0
            replica.is_ready = True

    def _replace(self, replica: _Replica) -> None:
        with self._lock:
            if not self._is_closed and replica in self._replicas:
                self._replicas[replica.place] = self._new(replica.place)
        self._end(replica)

    def close(self) -> None:
        """End all replicas."""
        with self._lock:
            self._is_closed = True
            replicas, self._replicas = self._replicas, []
        for replica in replicas:
            self._end(replica)

    def _end(self, replica: _Replica) -> None:
        if self._ray.is_initialized():
            with suppress(Exception):  # of another cluster than this one, or dead: there is nothing left to end
                self._ray.kill(replica.actor)
