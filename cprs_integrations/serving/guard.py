"""What stands before every route: request ids, the token, the size and the pace of bodies, logs and metrics."""

import asyncio
import hmac
import json
import logging
import secrets
import time
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cprs_integrations.serving.metrics import Metrics
from cprs_integrations.serving.refusal import HUNG_UP, Refusal
from cprs_integrations.serving.settings import Settings

OPEN = ("/", "/healthz", "/readyz", "/liveness", "/readiness", "/openapi.json", "/docs")
"""What needs no token: the page asks for one, and probes have none. No text comes in or out here."""

log = logging.getLogger("cprs_integrations.serving")


class Guard:
    """An ASGI app around another: reads the whole body within its limits first, then lets the other one answer.

    Args:
        app: the other one.
        settings: the limits, and the token.
        metrics: where answers are counted.
        paths: the known routes; others are counted together.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, paths: Iterable[str]) -> None:
        self._app, self._settings, self._metrics, self._paths = app, settings, metrics, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, request_id = time.perf_counter(), HUNG_UP, secrets.token_hex(8)
        state = scope.setdefault("state", {})
        state["request_id"], state["facts"] = request_id, {}

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._answer(scope, receive, send_noted)
        finally:
            seconds = time.perf_counter() - began
            status = state["facts"].pop("status", status)
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.answered(path, status, seconds)
            facts = {"request_id": request_id, "method": scope["method"], "path": path, "status": status}
            log.info(json.dumps({**facts, "seconds": round(seconds, 4), **state["facts"]}))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id, headers = scope["state"]["request_id"], dict(scope["headers"])
        try:
            self._check_token(scope["path"], headers)
            body = await asyncio.wait_for(self._body(headers, receive), self._settings.body_seconds)
        except TimeoutError:
            slow = Refusal(
                408, "Timeout", f"the body did not come within {self._settings.body_seconds:g} seconds; send it faster"
            )
            await _closing(slow).response(request_id)(scope, receive, send)
            return
        except Refusal as refusal:
            await _closing(refusal).response(request_id)(scope, receive, send)
            return
        if body is None:  # hung up
            return
        scope["state"]["facts"]["bytes"] = len(body)
        is_given = False

        async def replay() -> Message:
            nonlocal is_given
            if is_given:
                return await receive()
            is_given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    def _check_token(self, path: str, headers: dict[bytes, bytes]) -> None:
        token = self._settings.token
        if token is None or path in OPEN:
            return
        kind, _, sent = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(sent.strip(), token.encode()):
            raise Refusal(
                401,
                "Unauthorized",
                "send the server's token: Authorization: Bearer TOKEN",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        most = self._settings.max_body_bytes
        too_large = Refusal(413, "TooLarge", f"the body has more than {most:,} bytes; send fewer or shorter documents")
        told = headers.get(b"content-length", b"")
        if told.isdigit() and int(told) > most:
            raise too_large
        parts = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts += message.get("body", b"")
            if len(parts) > most:
                raise too_large
            if not message.get("more_body", False):
                return bytes(parts)


def _closing(refusal: Refusal) -> Refusal:
    """The rest of a body that is not wanted would be taken for the next request."""
    refusal.headers["Connection"] = "close"
    return refusal
