"""The app: routes, and what a request goes through from its body to its answer."""

import asyncio
import base64
import hashlib
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, ValidationError

from cprs_integrations.engine import CPRSEngine, Job
from cprs_integrations.errors import CPRSError
from cprs_integrations.result import CompressedContext
from cprs_integrations.scored import Scored
from cprs_integrations.selection import Bounds
from cprs_integrations.serving.guard import Guard
from cprs_integrations.serving.kept import Kept
from cprs_integrations.serving.metrics import Metrics
from cprs_integrations.serving.refusal import HUNG_UP, Refusal
from cprs_integrations.serving.scheduler import Scheduler, Ticket
from cprs_integrations.serving.settings import Settings
from cprs_integrations.serving.wire import Compression, ReferenceRequest, Reselection, parsed

_Body = TypeVar("_Body", bound=BaseModel)
_BEAT = 0.25  # seconds between two looks at whether the client is still there

log = logging.getLogger("cprs_integrations.serving")


def create_app(engine: CPRSEngine, settings: Settings | None = None) -> FastAPI:
    """Make the app that serves an engine.

    Args:
        engine: loaded already; threads share it.
        settings: limits and the token; None: those of the environment (`Settings.from_environment`).

    Returns:
        The app; `app.state.desk.is_stopping = True` makes it refuse new work with 503.

    Raises:
        ArgumentError: the environment has a wrong setting.
    """
    desk = Desk(engine, settings or Settings.from_environment())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        desk.is_stopping = True
        await asyncio.to_thread(desk.scheduler.close)

    app = FastAPI(
        title="cprs_integrations",
        summary="Compress long contexts to what answers a question, word for word.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.desk = desk
    _add_routes(app, desk)
    app.add_exception_handler(Exception, _unforeseen)
    paths = {getattr(route, "path", "") for route in app.routes}
    app.add_middleware(Guard, settings=desk.settings, metrics=desk.metrics, paths=paths)
    return app


class Desk:
    """Takes requests in the words of the wire, and gives back results.

    Args:
        engine: does the work.
        settings: limits.
    """

    def __init__(self, engine: CPRSEngine, settings: Settings) -> None:
        self.engine, self.settings = engine, settings
        self.scheduler, self.kept, self.metrics = Scheduler(engine), Kept(settings), Metrics()
        self.is_stopping = False
        self.waiting = 0

    @property
    def is_ready(self) -> bool:
        """Whether another request would be taken."""
        return not self.is_stopping and self.waiting < self.settings.max_queue

    async def read(self, request: Request, kind: type[_Body]) -> _Body:
        """Read the JSON of a request, off the event loop: it can be megabytes."""
        body = await request.body()
        return await asyncio.to_thread(lambda: kind.model_validate(parsed(body)))

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place in the queue.

        Raises:
            Refusal: there is none.
        """
        if self.is_stopping:
            raise Refusal(
                503, "Stopping", "this server is stopping; ask again, or ask another one", headers={"Retry-After": "5"}
            )
        if self.waiting >= self.settings.max_queue:
            full = f"{self.waiting} requests are waiting already; ask again later"
            raise Refusal(429, "QueueFull", full, headers={"Retry-After": "1"})
        self.waiting += 1
        self.metrics.queue.set(self.waiting)
        try:
            yield
        finally:
            self.waiting -= 1
            self.metrics.queue.set(self.waiting)

    async def ticket(self, texts: list[str], question: dict[str, Any]) -> Ticket:
        """Check what is asked, and queue it.

        Raises:
            ArgumentError: the engine does not take it.
            Refusal: too many documents.
        """
        most = self.settings.max_documents
        if len(texts) > most:
            message = f"documents: {len(texts):,} in one request; this server takes {most:,}: ask several times"
            raise Refusal(413, "TooManyDocuments", message, "documents")

        def make() -> Job:
            return self.engine.job(texts, **question)

        return await asyncio.to_thread(self.scheduler.take, make)

    async def scored(self, ticket: Ticket, request: Request) -> Scored:
        """Wait for a ticket's scores, as long as the client does.

        Raises:
            CriticError: the critic failed.
            Refusal: it took too long, or the client hung up.
        """
        try:
            async with asyncio.timeout(self.settings.request_seconds):
                ready = asyncio.wrap_future(ticket.ready)
                while not ready.done():
                    await asyncio.wait([ready], timeout=_BEAT)
                    if not ready.done() and await request.is_disconnected():
                        raise Refusal(HUNG_UP, "HungUp", "the client hung up")
                job = ready.result()
                return await asyncio.to_thread(job.scored, self.engine.count_tokens)
        except TimeoutError as error:
            seconds = self.settings.request_seconds
            message = f"not done within {seconds:g} seconds; ask for less at once, or with prefilter"
            raise Refusal(504, "Timeout", message) from error
        finally:
            ticket.cancel()

    async def compressed(
        self, scored: Scored, bounds: dict[str, Any], facts: dict[str, Any], name: str | None = None, is_kept: bool = False
    ) -> bytes:
        """Select from scores; return the JSON of the result, and note its sizes for the log.

        Args:
            scored: the scores.
            bounds: arguments of `Scored.select`.
            facts: what the log tells of the request.
            name: the id under which these scores are kept, if they were read for another request.
            is_kept: whether to keep them now.
        """

        def work() -> bytes:
            context = scored.select(**bounds)
            stats = context.stats
            facts.update(documents=len(context.documents), characters=stats.original_chars, kept=stats.kept_chars)
            if name is None:
                facts.update(windows=stats.windows)
                self.metrics.compressed(stats)
            found = {"id": name or self._keep(scored)} if name or is_kept else {}
            return json.dumps(context.to_dict() | found).encode()

        return await asyncio.to_thread(work)

    def _keep(self, scored: Scored) -> str | None:
        name = self.kept.put(scored)
        self.metrics.kept.set(self.kept.bytes)
        return name


def _add_routes(app: FastAPI, desk: Desk) -> None:
    page = files("cprs_integrations.serving").joinpath("playground.html").read_text(encoding="utf-8")
    style, script = (_digest(page, name) for name in ("style", "script"))
    policy = f"default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; img-src data:; base-uri 'none'"

    @app.get("/", include_in_schema=False)
    async def playground() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": f"{policy}; frame-ancestors 'none'"})

    @app.get("/healthz", summary="The process is alive.")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", summary="Another request would be taken.", responses={503: {"description": "It would not."}})
    async def readyz() -> JSONResponse:
        return JSONResponse({"status": "ready" if desk.is_ready else "busy"}, 200 if desk.is_ready else 503)

    app.add_api_route("/liveness", healthz, include_in_schema=False)
    app.add_api_route("/readiness", readyz, include_in_schema=False)

    @app.get("/metrics", summary="For Prometheus.", response_class=Response)
    async def metrics() -> Response:
        return Response(desk.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.post("/v1/compress", **_described(Compression, "Keep of some documents what answers a question."))
    async def compress(request: Request) -> Response:
        return await _told(request, lambda: _compress(desk, request))

    @app.post("/v1/select", **_described(Reselection, "Keep another share of documents that were scored before."))
    async def select(request: Request) -> Response:
        return await _told(request, lambda: _select(desk, request))

    @app.post("/qwen_long_compress_server", **_described(ReferenceRequest, "The wire format of the reference's server."))
    async def reference(request: Request) -> Response:
        return await _reference(desk, request)


async def _compress(desk: Desk, request: Request) -> Response:
    asked = await desk.read(request, Compression)
    bounds = asked.bounds(is_python=desk.settings.python_patterns)
    Bounds(**{name: value for name, value in bounds.items() if name != "granularity"})
    if asked.stream or "text/event-stream" in request.headers.get("accept", ""):
        return await _stream(desk, request, asked, bounds)
    async with desk.place():
        ticket = await desk.ticket(asked.texts, asked.question())
        scored = await desk.scored(ticket, request)
        body = await desk.compressed(scored, bounds, request.state.facts, is_kept=asked.keep)
    return Response(body, media_type="application/json")


async def _stream(desk: Desk, request: Request, asked: Compression, bounds: dict[str, Any]) -> Response:
    """Progress while the critic reads, and the result as the last event; what is wrong from the start has its own status."""
    place = desk.place()
    await place.__aenter__()
    try:
        ticket = await desk.ticket(asked.texts, asked.question())
    except BaseException:
        await place.__aexit__(None, None, None)
        raise

    async def events() -> AsyncIterator[bytes]:
        waiting = asyncio.ensure_future(desk.scored(ticket, request))
        try:
            yield _event("progress", json.dumps({"done": 0, "total": ticket.total}).encode())
            while not waiting.done():
                await asyncio.wait([waiting], timeout=_BEAT)
                yield _event("progress", json.dumps({"done": ticket.done, "total": ticket.total}).encode())
            scored = waiting.result()
            yield _event("result", await desk.compressed(scored, bounds, request.state.facts, is_kept=asked.keep))
        except Exception as error:  # noqa: BLE001 - the answer has begun, so an event tells it
            refusal = _noted(request, error)
            yield _event("error", json.dumps(refusal.body(request.state.request_id)).encode())
        finally:
            waiting.cancel()
            ticket.cancel()
            await place.__aexit__(None, None, None)

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _select(desk: Desk, request: Request) -> Response:
    asked = await desk.read(request, Reselection)
    bounds = asked.bounds(is_python=desk.settings.python_patterns)
    scored = desk.kept.get(asked.id)
    if scored is None:
        raise Refusal(404, "NotKept", "there are no scores under this id, or no longer; compress again with keep: true", "id")
    body = await desk.compressed(scored, bounds, request.state.facts, name=asked.id)
    return Response(body, media_type="application/json")


async def _reference(desk: Desk, request: Request) -> Response:
    """As the reference's server answers: the request, with an output and a status; HTTP says 200 whatever comes."""
    sent: Any = {}
    try:
        body = await request.body()
        sent = await asyncio.to_thread(parsed, body)
        asked = ReferenceRequest.model_validate(sent)
        system, question, context = (message.content for message in asked.payload.input.messages)
        parameters = asked.payload.parameters
        granularity = "sentence" if parameters.get("complete_sentence") else None
        async with desk.place():
            ticket = await desk.ticket([context], {"query": question, "instruction": system, "granularity": granularity})
            scored = await desk.scored(ticket, request)
            found = await asyncio.to_thread(scored.select)
        desk.metrics.compressed(found.stats)
        output = {"text": _spans(found) if parameters.get("return_offset") else found.text}
        return _as_reference(sent, 200, "Success", "", output, found.stats.original_tokens)
    except ValidationError:
        return _as_reference(sent, 440, "SchemaError", "the request is not in the reference's format", None)
    except (Refusal, CPRSError) as error:
        refusal = _noted(request, error)
        if sent == {}:  # no JSON
            return _as_reference(sent, 440, "SchemaError", refusal.message, None)
        return _as_reference(sent, 500 if refusal.status >= 500 else refusal.status, "BackendError", refusal.message, None)
    except Exception as error:  # noqa: BLE001 - so the reference's format wants it
        return _as_reference(sent, 500, "InternalError", _noted(request, error).message, None)


def _spans(found: CompressedContext) -> list[tuple[str, int, int]]:
    (source,), (document,) = found.context.documents, found.documents
    return [(source[span.start : span.end], span.start, span.end) for span in document.spans]


def _as_reference(
    sent: Any, code: int, name: str, message: str, output: dict[str, Any] | None, tokens: int = -1
) -> JSONResponse:
    answer = sent if isinstance(sent, dict) else {}
    header, payload = (part if isinstance(part := answer.get(name), dict) else {} for name in ("header", "payload"))
    status = {"status_code": code, "status_name": name, "status_message": message, "finished": True}
    usage = {"input_tokens": tokens, "output_tokens": -1}
    payload = {**payload, "output": output if output is not None else {"is_match": False}, "usage": usage}
    return JSONResponse({**answer, "header": {**header, **status}, "payload": payload})


async def _told(request: Request, answer: Callable[[], Any]) -> Response:
    """An answer, or what is wrong in the form that all errors have."""
    try:
        response: Response = await answer()
        return response
    except Exception as error:  # noqa: BLE001 - every error has an answer
        return _noted(request, error).response(request.state.request_id)


def _noted(request: Request, error: Exception) -> Refusal:
    """What to tell of an error; what broke here goes to the log, without a word of the documents."""
    refusal = Refusal.of(error)
    if refusal.status == HUNG_UP:
        request.state.facts["status"] = HUNG_UP
    if refusal.status >= 500 and not isinstance(error, Refusal):
        cause = error.__cause__ or error
        trail = cause.__traceback__
        while trail and trail.tb_next:
            trail = trail.tb_next
        place = f"{trail.tb_frame.f_code.co_filename}:{trail.tb_lineno}" if trail else "?"
        log.error(json.dumps({"request_id": request.state.request_id, "error": type(cause).__name__, "at": place}))
    return refusal


async def _unforeseen(request: Request, error: Exception) -> Response:
    return _noted(request, error).response(request.state.request_id)


def _digest(page: str, name: str) -> str:
    """The hash by which a content security policy knows the one style, or script, of a page."""
    (inside,) = re.findall(f"<{name}>(.*?)</{name}>", page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"


def _event(name: str, data: bytes) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


def _described(kind: type[BaseModel], summary: str) -> dict[str, Any]:
    """What OpenAPI says of a route whose body is read here and not by FastAPI: it would parse it on the event loop."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    inlined = _inlined(schema, schema.pop("$defs", {}))
    error = {"type": "object", "required": ["error"], "properties": {"error": {"type": "object"}}}
    refused = {
        "description": "`error`: type, message, request_id, and argument where one was wrong.",
        "content": {"application/json": {"schema": error}},
    }
    codes = (400, 401, 404, 408, 413, 422, 429, 500, 503, 504)
    return {
        "summary": summary,
        "response_class": JSONResponse,
        "responses": dict.fromkeys(codes, refused),
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": {"schema": inlined}}}},
    }


def _inlined(schema: Any, known: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_inlined(part, known) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(known[schema["$ref"].rsplit("/", 1)[-1]], known)
    return {name: _inlined(part, known) for name, part in schema.items()}
