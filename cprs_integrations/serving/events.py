"""Progress as server-sent events: the answer to a request that asked for a stream."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cprs_integrations.serving.refusal import HUNG_UP, ascii_json
from cprs_integrations.serving.scheduler import Ticket
from cprs_integrations.serving.service import Service, disconnected

MEDIA_TYPE = "text/event-stream"
_TICK = 0.25  # seconds between two events of progress
_QUIET = 15.0  # seconds without news after which a comment keeps proxies from hanging up


class Events(Response):
    """Sends `progress` while a request is worked on, then `result` or `error`.

    Args:
        service: does the work.
        ticket: the request's, whose progress is told.
        work: comes to the JSON of the result.
        request: for whose client it is.
        place: the request's place in the queue, given back at the end.
    """

    media_type = MEDIA_TYPE

    def __init__(
        self, service: Service, ticket: Ticket, work: Callable[[], Awaitable[bytes]], request: Request, place: AsyncExitStack
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._service, self._ticket, self._work, self._request, self._place = service, ticket, work, request, place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        async with self._place:
            work = asyncio.ensure_future(self._work())
            hang_up = asyncio.create_task(disconnected(self._request))
            try:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                if (last := await self._progress(work, hang_up, send)) is not None:
                    await send({"type": "http.response.body", "body": _event(*last)})
            finally:
                hang_up.cancel()
                work.cancel()
                self._service.scheduler.drop(self._ticket)  # work that was cancelled before it began drops nothing

    async def _progress(
        self, work: "asyncio.Future[bytes]", hang_up: "asyncio.Task[None]", send: Send
    ) -> tuple[str, bytes] | None:
        """Tell how far it is; return the last event, or None if nobody is there to read it."""
        both: set[asyncio.Future[Any]] = {work, hang_up}
        told, last = -1, time.monotonic()
        until = last + self._service.settings.request_seconds
        while not work.done():
            await asyncio.wait(both, timeout=_TICK, return_when=asyncio.FIRST_COMPLETED)
            if hang_up.done():
                self._request.state.status = HUNG_UP
                return None
            now = time.monotonic()
            if now > until and not work.done():
                return self._error(self._service.late())
            done = self._ticket.characters
            if done == told and now - last < _QUIET:
                continue
            body = _event("progress", self._told(done)) if done != told else b": still at it\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})
            told, last = done, now
        try:
            return "result", work.result()
        except Exception as error:  # noqa: BLE001 - told to the client by its kind
            return self._error(error)

    def _told(self, done: int) -> bytes:
        return json.dumps({"characters": done, "of": len(self._ticket.job.context)}).encode()

    def _error(self, error: Exception) -> tuple[str, bytes]:
        refusal = self._service.reported(error, self._request)
        self._request.state.status = refusal.status
        return "error", ascii_json(refusal.body(self._request.state.request_id))


def _event(name: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)


def wanted(request: Request, asked: Any) -> bool:
    """Whether the client wants a stream."""
    return bool(asked.stream) or MEDIA_TYPE in request.headers.get("accept", "")
