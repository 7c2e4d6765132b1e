"""What stands before every route: an id for each request, the token, one line in the log, and answers for what breaks."""

import hmac
import logging
import re
import secrets
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cprs_integrations.serving.logs import LOGGER, causes
from cprs_integrations.serving.metrics import Metrics
from cprs_integrations.serving.refusal import HUNG_UP, Refusal
from cprs_integrations.serving.settings import Settings

OPEN = frozenset({"/", "/healthz", "/readyz", "/liveness", "/readiness", "/openapi.json"})
"""What needs no token: it tells nothing and costs nothing."""
_PROBES = frozenset({"/healthz", "/readyz", "/liveness", "/readiness", "/metrics"})
_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class Guard:
    """An ASGI middleware. What a request's log line is to tell besides is put into `scope["state"]["log"]`."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics
        self._token = settings.token.encode() if settings.token is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else secrets.token_hex(8)
        state = scope.setdefault("state", {})
        state["request_id"], state["log"] = request_id, {}
        sent = _Sent(send, request_id)
        began = time.perf_counter()
        try:
            if scope["path"] not in OPEN and not self._admits(headers):
                await self._refuse(_UNAUTHORIZED, scope, receive, sent)
            else:
                await self.app(scope, receive, sent)
        except Exception as error:  # noqa: BLE001 - nothing of it may reach the client
            LOGGER.error("request failed", extra={"fields": {"request_id": request_id, "causes": causes(error)}})
            if sent.status is None:
                await self._refuse(Refusal.of(error), scope, receive, sent)
            else:
                sent.status = 500  # the answer had begun: the server cuts the connection, so that nobody takes it for whole
                raise _Cut from None
        finally:
            self._note(scope, sent, time.perf_counter() - began)

    async def _refuse(self, refusal: Refusal, scope: Scope, receive: Receive, send: "_Sent") -> None:
        await refusal.response(scope["state"]["request_id"])(scope, receive, send)

    def _admits(self, headers: Headers) -> bool:
        if self._token is None:
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        return hmac.compare_digest(token.strip().encode(), self._token) and scheme.lower() == "bearer"

    def _note(self, scope: Scope, sent: "_Sent", seconds: float) -> None:
        # the client's own paths are not labels: they would fill Prometheus
        path = getattr(scope.get("route"), "path", "other")
        status = scope["state"].get("status") or sent.status or HUNG_UP
        self.metrics.requests.labels(path, str(status)).inc()
        self.metrics.seconds.labels(path).observe(seconds)
        fields: dict[str, Any] = {
            "request_id": scope["state"]["request_id"],
            "method": scope["method"],
            "path": path,
            "status": status,
            "seconds": round(seconds, 6),
            "answer_bytes": sent.size,
            **scope["state"]["log"],
        }
        LOGGER.log(logging.DEBUG if path in _PROBES else logging.INFO, "request", extra={"fields": fields})


class _Cut(Exception):  # noqa: N818 - it has no words on purpose
    """Ends a connection whose answer had begun."""


class _Sent:
    """Passes an answer on, with its headers, and notes its status and size."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self._request_id = send, request_id
        self.status: int | None = None
        self.size = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self._request_id
            headers["X-Content-Type-Options"] = "nosniff"
            headers.setdefault("Cache-Control", "no-store")
        elif message["type"] == "http.response.body":
            self.size += len(message.get("body", b""))
        await self._send(message)


_UNAUTHORIZED = Refusal(
    401,
    "Unauthorized",
    "this server wants a token: send it as `Authorization: Bearer TOKEN`",
    headers={"WWW-Authenticate": 'Bearer realm="cprs"'},
)
