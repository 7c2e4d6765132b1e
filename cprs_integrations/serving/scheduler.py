"""Batches across requests: the windows of all of them go through one critic as one stream, and no book holds up a question.

A window carries its own prompt, so it does not matter whose window comes next; results are those of the local engine, to the
byte. One thread cuts and sends. The stream ends when nothing is left to send, and begins anew with the next request.
"""

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from cprs_integrations.engine import CPRSEngine, Job
from cprs_integrations.errors import CPRSError, CriticError
from cprs_integrations.scored import Scored
from cprs_integrations.windows import Window

_LOOK = 12  # what cutting a window costs that is not read, in tokens that are
_EVERY = 4  # one window in so many goes to the request that came first, so that the long ones come to an end, too


class Ticket:
    """A request on its way through the critic.

    Attributes:
        job: its context and question.
        future: its scores, or why there are none.
        tokens: how many tokens of it were sent, about: what it has had.
        characters: how many characters of it have their scores.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.future: Future[Scored] = Future()
        self.tokens = self.characters = 0
        self.steps = job.steps()
        self._is_closed = False

    @property
    def need(self) -> tuple[int, int]:
        """What has had least comes first; of those that had the same, the shortest."""
        return self.tokens, len(self.job.context)

    def close(self) -> bool:
        """Return True once: for the one who brings this request to its end."""
        is_first, self._is_closed = not self._is_closed, True
        return is_first

    def fail(self, error: BaseException) -> None:
        """End without scores."""
        if self.close() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class Scheduler:
    """Sends the windows of many requests through the critic of one engine, fairly.

    Args:
        engine: whose critic reads them.
        pool: where requests are brought to their end: blended with shared words, and read a second time.
    """

    def __init__(self, engine: CPRSEngine, pool: ThreadPoolExecutor) -> None:
        self.engine, self._pool = engine, pool
        self.windows = self.tokens = self.failures = 0
        self._active: list[Ticket] = []
        self._news = threading.Condition()
        self._turn = 0
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def submit(self, job: Job) -> Ticket:
        """Take a request. The thread that sends is started with the first one."""
        ticket = Ticket(job)
        with self._news:
            if self._is_closed:
                raise CPRSError("the scheduler is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="cprs-scheduler", daemon=True)
                self._thread.start()
            self._active.append(ticket)
            self._news.notify()
        return ticket

    def drop(self, ticket: Ticket) -> None:
        """Forget a request: no more of its windows are sent."""
        with self._news:
            ticket.future.cancel()
            ticket.close()
            if ticket in self._active:
                self._active.remove(ticket)

    def close(self) -> None:
        """Finish what was taken, and stop."""
        with self._news:
            self._is_closed = True
            self._news.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._active or self._is_closed)
                if not self._active:
                    return
            self._stream()

    def _stream(self) -> None:
        """Send windows for as long as there are any."""
        sent: deque[tuple[Ticket, Window]] = deque()

        def windows() -> Iterator[tuple[Job, Window]]:
            while (found := self._next()) is not None:
                ticket, window = found
                if window is not None:
                    sent.append((ticket, window))
                    yield ticket.job, window
                elif any(other is not ticket for other, _ in sent):
                    return  # what is cut and not read may be long: at the end of a stream all that was sent is answered

        try:
            for _ in self.engine.drive(windows()):
                self._note(*sent.popleft())
            return
        except Exception:  # noqa: BLE001 - found out below whose window it was
            self.failures += 1
        self._send_alone(sent)

    def _send_alone(self, sent: deque[tuple[Ticket, Window]]) -> None:
        """After a failure: send what has no answer yet one by one, so that nobody fails for his neighbour's window."""
        while not sent and (found := self._next()) is not None:  # it failed before it took any: somebody has to be told
            sent += [(ticket, window) for ticket, window in [found] if window is not None]
        for ticket, window in sent:
            if ticket.future.done():
                continue
            try:
                for _ in self.engine.drive([(ticket.job, window)]):
                    self._note(ticket, window)
            except Exception as error:  # noqa: BLE001 - told to its request
                self._remove(ticket)
                ticket.fail(error)

    def _next(self) -> tuple[Ticket, Window | None] | None:
        """The next step of the request whose turn it is; None if there is no request."""
        while (ticket := self._choose()) is not None:
            try:
                window = next(ticket.steps)
            except StopIteration:
                self._remove(ticket)
                self._finish_if_complete(ticket)
                continue
            except Exception as error:  # noqa: BLE001 - told to its request
                self._remove(ticket)
                ticket.fail(error if isinstance(error, CPRSError) else _wrapped(error))
                continue
            ticket.tokens += _LOOK if window is None else len(window.prompt.ids) + len(window.ids)
            return ticket, window
        return None

    def _choose(self) -> Ticket | None:
        with self._news:
            if not self._active:
                return None
            self._turn += 1
            return self._active[0] if self._turn % _EVERY == 0 else min(self._active, key=lambda ticket: ticket.need)

    def _note(self, ticket: Ticket, window: Window) -> None:
        self.windows += 1
        self.tokens += len(window.rows)
        ticket.characters += window.characters
        self._finish_if_complete(ticket)

    def _finish_if_complete(self, ticket: Ticket) -> None:
        if ticket.job.is_complete and ticket.close():
            self._pool.submit(self._finish, ticket)

    def _finish(self, ticket: Ticket) -> None:
        if not ticket.future.set_running_or_notify_cancel():
            return
        try:
            ticket.future.set_result(ticket.job.scored(self.engine.count_tokens))
        except Exception as error:  # noqa: BLE001 - told to its request
            ticket.future.set_exception(error if isinstance(error, CPRSError) else _wrapped(error))

    def _remove(self, ticket: Ticket) -> None:
        with self._news:
            if ticket in self._active:
                self._active.remove(ticket)


def _wrapped(error: Exception) -> CriticError:
    wrapped = CriticError(f"{type(error).__name__} while a context was cut or scored")
    wrapped.__cause__ = error
    return wrapped
