"""What a served engine does with a request: the body within its limits, a place in the queue, scores, a selection."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, NoReturn, TypeVar

from starlette.requests import ClientDisconnect, Request

from cprs_integrations.engine import CPRSEngine, Job
from cprs_integrations.result import CompressedContext
from cprs_integrations.scored import Scored
from cprs_integrations.selection import Bounds
from cprs_integrations.serving.kept import Kept
from cprs_integrations.serving.logs import LOGGER, causes
from cprs_integrations.serving.patterns import linear
from cprs_integrations.serving.refusal import HUNG_UP, Refusal
from cprs_integrations.serving.scheduler import Scheduler, Ticket
from cprs_integrations.serving.schemas import CompressRequest, Selection
from cprs_integrations.serving.settings import Settings

_WORKERS = 4
_T = TypeVar("_T")


class Service:
    """An engine with a queue before it. All that takes long runs in threads: the event loop stays free for probes."""

    def __init__(self, engine: CPRSEngine, settings: Settings) -> None:
        self.engine, self.settings = engine, settings
        self.pool = ThreadPoolExecutor(_WORKERS, "cprs-serve")
        self.scheduler = Scheduler(engine, self.pool)
        self.kept = Kept(settings.kept_seconds, settings.kept_bytes)
        self.taken = self.refused = 0
        self.is_draining = False
        self._places = asyncio.Semaphore(settings.max_queue)  # who waits longest comes first
        self.at_the_door = 0
        self.bytes_at_the_door = 0  # of bodies that are still arriving, too
        self._seconds = 1.0  # of a request, lately

    @property
    def is_full(self) -> bool:
        """Whether one more request would have to wait for a place."""
        return self.taken >= self.settings.max_queue

    @property
    def is_ready(self) -> bool:
        """Whether a request would be taken at once."""
        return not self.is_draining and not self.is_full

    @asynccontextmanager
    async def place(self, request: Request) -> AsyncIterator[bytearray]:
        """The body of a request, and a place in the queue for as long as it takes.

        While there is none, a request waits for its turn for a while: refused at once, clients that come again would find each
        free place taken by those that never had to wait. Who hangs up meanwhile waits no longer. What arrives and waits has
        as much memory as what is taken.
        """
        body = bytearray()
        try:
            self._check_ready()
            await self._read(request, body)
            self._check_ready()
            await self._turn(request)
        finally:
            self.bytes_at_the_door -= len(body)
        self.taken += 1
        began = time.monotonic()
        try:
            self._check_open()
            yield body
        finally:
            self.taken -= 1
            self._places.release()
            self._seconds += 0.2 * (time.monotonic() - began - self._seconds)

    async def _turn(self, request: Request) -> None:
        self.at_the_door += 1
        gone = asyncio.create_task(disconnected(request))
        try:
            async with asyncio.timeout(self.settings.queue_seconds) as patience:
                gone.add_done_callback(lambda _: _end(patience))
                await self._places.acquire()
        except TimeoutError:
            if gone.done():
                _hung_up()
            self._check_open()
            raise self._full() from None
        finally:
            gone.cancel()
            self.at_the_door -= 1

    def _check_ready(self) -> None:
        """Raise what a request gets that need not even send its body: the server goes down, or too many wait already."""
        self._check_open()
        if self.at_the_door >= self.settings.max_queue:
            raise self._full()

    def _check_open(self) -> None:
        if self.is_draining:
            raise Refusal(503, "ShuttingDown", "this server is going down; try another, or later", headers={"Retry-After": "5"})

    def _full(self) -> Refusal:
        self.refused += 1
        wait = str(min(60, max(1, math.ceil(self._seconds))))
        message = f"{self.taken} requests are under way already; try again after the seconds of Retry-After"
        return Refusal(429, "QueueFull", message, headers={"Retry-After": wait})

    async def _read(self, request: Request, body: bytearray) -> None:
        """Read a body within its limits of size and time, and within what all may take together."""
        limit = self.settings.max_body_bytes
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refusal(415, "UnsupportedMediaType", "send JSON, with the header Content-Type: application/json")
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > limit:
            raise _too_large(limit)
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                async for part in request.stream():
                    body += part
                    self.bytes_at_the_door += len(part)
                    if len(body) > limit:
                        raise _too_large(limit)
                    if self.bytes_at_the_door > self.settings.max_queue * limit:
                        raise self._full()
        except TimeoutError:
            message = f"the body took longer than {self.settings.body_seconds:g} seconds to arrive"
            raise Refusal(408, "BodyTooSlow", message, headers={"Connection": "close"}) from None
        except ClientDisconnect:
            _hung_up()

    async def in_pool(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Run what takes long in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, work, *arguments)

    async def answer(self, request: Request, work: Coroutine[Any, Any, _T]) -> _T:
        """Wait for an answer as long as the client waits, and as the settings allow."""
        waiting = asyncio.ensure_future(work)
        hang_up = asyncio.create_task(disconnected(request))
        try:
            await asyncio.wait({waiting, hang_up}, timeout=self.settings.request_seconds, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            if hang_up.done():
                _hung_up()
            raise self.late()
        finally:
            hang_up.cancel()
            if not waiting.done():
                waiting.cancel()
                await asyncio.wait({waiting})  # its place is free when nothing works for it any more

    def reported(self, error: Exception, request: Request) -> Refusal:
        """What to answer after an error; what is no fault of the client's is written into the log."""
        refusal = Refusal.of(error)
        request.state.log["error"] = refusal.type
        if refusal.status == 500:
            fields = {"request_id": request.state.request_id, "causes": causes(error)}
            LOGGER.error("compression failed", extra={"fields": fields})
        return refusal

    def late(self) -> Refusal:
        """What a request gets that took too long."""
        seconds = self.settings.request_seconds
        return Refusal(504, "TooLate", f"not done within {seconds:g} seconds, waiting included; send less, or try again later")

    def prepare(self, asked: CompressRequest) -> tuple[Job, dict[str, Any]]:
        """Check everything that can be checked before the work: the job, and the arguments of its selection."""
        count = 1 if isinstance(asked.documents, str) else len(asked.documents)
        if count > self.settings.max_documents:
            limit = self.settings.max_documents
            raise Refusal(413, "TooManyDocuments", f"{count:,} documents; at most {limit:,} are allowed here", "documents")
        selection = self.selection(asked)
        job = self.engine.job(
            asked.documents,
            asked.query,
            instruction=asked.instruction,
            granularity=asked.granularity,
            titles=asked.titles,
            prefilter=asked.prefilter,
        )
        return job, selection

    def selection(self, asked: Selection) -> dict[str, Any]:
        """The arguments of `Scored.select`, with patterns that cannot hang the server."""
        protect = asked.protect if self.settings.python_patterns else linear(asked.protect)
        selection = {**asked.bounds(), "protect": protect}
        Bounds(**selection)
        return {**selection, "granularity": asked.granularity}

    async def scores(self, ticket: Ticket) -> Scored:
        """Wait for the scores of a job; who stops waiting drops it."""
        try:
            return await asyncio.wrap_future(ticket.future)
        finally:  # not only where the future is not done: asyncio has cancelled it already, and its windows would go on
            self.scheduler.drop(ticket)

    async def compress(self, job: Job, selection: dict[str, Any]) -> tuple[Scored, CompressedContext]:
        """The whole way of a request that has its place."""
        scored = await self.scores(self.scheduler.submit(job))
        return scored, await self.select(scored, selection)

    async def select(self, scored: Scored, selection: dict[str, Any]) -> CompressedContext:
        """Select in a thread."""
        return await self.in_pool(lambda: scored.select(**selection))

    def close(self) -> None:
        """Finish what was taken, and stop."""
        self.is_draining = True
        self.scheduler.close()
        self.pool.shutdown()


def parsed(body: bytearray) -> dict[str, Any]:
    """Read JSON: the strict kind, as the standard has it."""
    try:
        found = json.loads(body, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, OverflowError, RecursionError) as error:
        where = f"{error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise Refusal(400, "MalformedRequest", f"the body is not JSON in UTF-8: {where}") from None
    if not isinstance(found, dict):
        raise Refusal(422, "ArgumentError", 'the body must be a JSON object, as {"documents": [...], "query": "..."}')
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _finite(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise OverflowError(digits)
    return number


def _too_large(limit: int) -> Refusal:
    message = f"the body is larger than the {limit:,} bytes that are allowed here; send less at once"
    # without "Connection: close": what is still to come is read and dropped, where a reset would take the answer with it
    return Refusal(413, "BodyTooLarge", message)


def _end(patience: asyncio.Timeout) -> None:
    """Let a wait time out now, if it is not over yet."""
    with suppress(RuntimeError):
        patience.reschedule(0.0)


def _hung_up() -> NoReturn:
    raise Refusal(HUNG_UP, "HungUp", "the client is gone")


async def disconnected(request: Request) -> None:
    """Wait until the client is gone; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
