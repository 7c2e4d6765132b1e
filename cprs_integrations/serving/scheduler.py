"""One thread that reads the windows of all requests, in turns: a book holds up no question about a page.

Windows carry their own prompts, so those of many requests go through the critic as one stream, in which every request that has
windows left gives one a round. A request that comes while the stream runs joins it.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from cprs_integrations.engine import CPRSEngine, Job
from cprs_integrations.errors import CPRSError
from cprs_integrations.windows import Window


class Ticket:
    """A request's place in the stream.

    Attributes:
        make: makes its job; called again if the stream broke, to find out whose fault it was.
        job: what is read for it now.
        ready: the job, once all its windows have their scores.
        done: characters that have been read.
    """

    def __init__(self, make: Callable[[], Job]) -> None:
        self.make, self.job = make, make()
        self.ready: Future[Job] = Future()
        self.done = 0

    @property
    def total(self) -> int:
        """Characters that are to be read."""
        return len(self.job.context)

    def cancel(self) -> None:
        """Read no further: nobody waits for it any more."""
        self.ready.cancel()

    def finish(self) -> None:
        """Hand over the job, unless nobody waits for it."""
        if not self.ready.done():
            self.ready.set_result(self.job)

    def fail(self, error: Exception) -> None:
        """Hand over an error instead."""
        if not self.ready.done():
            self.ready.set_exception(error)


class Scheduler:
    """Takes tickets from any thread, and reads for them until it is closed.

    Args:
        engine: whose critic reads.
    """

    def __init__(self, engine: CPRSEngine) -> None:
        self._engine = engine
        self._changed = threading.Condition()
        self._arrived: deque[Ticket] = deque()
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="cprs-scheduler", daemon=True)
        self._thread.start()

    def take(self, make: Callable[[], Job]) -> Ticket:
        """Queue a job.

        Raises:
            ArgumentError: what `make` raises.
        """
        ticket = Ticket(make)
        with self._changed:
            if self._is_closing:
                raise CPRSError("the server is stopping; ask another one")
            self._arrived.append(ticket)
            self._changed.notify()
        return ticket

    def close(self) -> None:
        """Finish what was taken, then stop."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._arrived or self._is_closing)
                if not self._arrived:
                    return
            self._stream()

    def _stream(self) -> None:
        """Read until no request has a window left."""
        tickets: dict[Job, Ticket] = {}
        try:
            for job, window in self._engine.drive(self._turns(tickets)):
                tickets[job].done += window.characters
                self._finish(tickets, job)
        except Exception:  # noqa: BLE001 - each is asked again below, and its own error is told
            pass
        for ticket in tickets.values():
            self._read_alone(ticket)

    def _turns(self, tickets: dict[Job, Ticket]) -> Iterator[tuple[Job, Window]]:
        """A window of each request in turn; `tickets` are those whose scores are not all there."""
        turns: deque[tuple[Ticket, Iterator[Window]]] = deque()
        while True:
            while self._arrived:
                ticket = self._arrived.popleft()
                tickets[ticket.job] = ticket
                turns.append((ticket, ticket.job.windows()))
            if not turns:
                return
            ticket, windows = turns.popleft()
            if ticket.ready.done():  # nobody waits for it
                tickets.pop(ticket.job, None)
            elif window := next(windows, None):
                turns.append((ticket, windows))
                yield ticket.job, window
            else:
                self._finish(tickets, ticket.job)

    def _finish(self, tickets: dict[Job, Ticket], job: Job) -> None:
        if job.is_complete and (ticket := tickets.pop(job, None)):
            ticket.finish()

    def _read_alone(self, ticket: Ticket) -> None:
        """Read once more for a request whose stream broke: what fails now is its own fault."""
        if ticket.ready.done():
            return
        try:
            ticket.job, ticket.done = ticket.make(), 0
            for _, window in self._engine.drive((ticket.job, window) for window in ticket.job.windows()):
                ticket.done += window.characters
                if ticket.ready.done():
                    return
            ticket.finish()
        except Exception as error:  # noqa: BLE001 - the request's handler tells it
            ticket.fail(error)
