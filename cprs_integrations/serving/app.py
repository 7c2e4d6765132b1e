"""The app: routes and nothing else. `create_app` needs no server: uvicorn, Ray Serve or a test runs what it returns."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from pydantic import ValidationError
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from cprs_integrations.engine import CPRSEngine, Job
from cprs_integrations.errors import ArgumentError, CPRSError
from cprs_integrations.scored import Scored
from cprs_integrations.serving.drop_in import DropInAnswer, DropInRequest, add_drop_in
from cprs_integrations.serving.events import MEDIA_TYPE, Events, wanted
from cprs_integrations.serving.guard import OPEN, Guard
from cprs_integrations.serving.metrics import CONTENT_TYPE, Metrics
from cprs_integrations.serving.page import add_page
from cprs_integrations.serving.refusal import Refusal, ascii_json
from cprs_integrations.serving.schemas import CompressedOut, CompressRequest, ErrorBody, SelectRequest
from cprs_integrations.serving.service import Service, parsed
from cprs_integrations.serving.settings import Settings

_EVENT = {  # in OpenAPI 3.1 the schema of a stream is that of each event
    "type": "object",
    "properties": {
        "event": {"enum": ["progress", "result", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "data"],
}
_STREAM = {
    "content": {MEDIA_TYPE: {"schema": _EVENT, "example": 'event: progress\ndata: {"characters": 1583, "of": 8700}\n\n'}}
}


def create_app(engine: CPRSEngine, settings: Settings | None = None) -> FastAPI:
    """Make an app that serves an engine.

    Args:
        engine: loaded already; any critic will do.
        settings: None: the defaults.

    Returns:
        An ASGI app; `app.state.service` is what stands behind its routes.
    """
    if not isinstance(engine, CPRSEngine):
        raise ArgumentError(f"engine must be a CPRSEngine, not {type(engine).__name__}")
    settings = settings or Settings()
    service = Service(engine, settings)
    metrics = Metrics(
        totals={
            "cprs_windows": ("Windows that the critic scored.", lambda: service.scheduler.windows),
            "cprs_tokens": ("Tokens that the critic scored.", lambda: service.scheduler.tokens),
            "cprs_critic_failures": ("Streams of windows that ended in an error.", lambda: service.scheduler.failures),
            "cprs_refused": ("Requests that found the queue full.", lambda: service.refused),
        },
        levels={
            "cprs_queue_requests": ("Requests taken and not yet answered.", lambda: service.taken),
            "cprs_kept_scores": ("Scored contexts kept for /v1/select.", lambda: len(service.kept)),
            "cprs_kept_bytes": ("Memory that they take.", lambda: service.kept.bytes),
        },
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        expiring = asyncio.create_task(service.kept.expire())
        yield
        expiring.cancel()
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="cprs",
        version=version("cprs_integrations"),
        summary="Compress long contexts to the passages that answer a query, word for word.",
        description="The arguments are those of `CPRSEngine.compress`. Texts are counted in Unicode code points.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service, app.state.settings, app.state.metrics = service, settings, metrics
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    for kind in (Refusal, ValidationError, CPRSError):
        app.add_exception_handler(kind, partial(_refused, service))
    app.add_exception_handler(HTTPException, partial(_no_route, service))
    _add_probes(app, service, metrics)
    _add_api(app, service, metrics)
    add_drop_in(app, service, _documented(DropInRequest, 400, 401, 408, 413, 415, 422, 429, 503, 504, answer=DropInAnswer))
    add_page(app)
    _describe(app)
    return app


def _add_probes(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.get("/healthz", tags=["operation"], response_class=PlainTextResponse)
    async def healthz() -> str:
        """Whether the process is alive."""
        return "alive"

    @app.get("/readyz", tags=["operation"], response_class=PlainTextResponse, responses={503: {"model": ErrorBody}})
    async def readyz() -> Response:
        """Whether a request would be taken: the model is loaded, the queue is not full, the server is not going down."""
        if service.is_ready:
            return PlainTextResponse("ready")
        return PlainTextResponse("going down" if service.is_draining else "queue full", 503, {"Retry-After": "1"})

    @app.get("/metrics", tags=["operation"], response_class=PlainTextResponse, responses={401: {"model": ErrorBody}})
    async def read_metrics() -> Response:
        """Counts and times, as Prometheus reads them."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)


def _add_api(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.post(
        "/v1/compress",
        tags=["compress"],
        **_documented(CompressRequest, 400, 401, 408, 413, 415, 422, 429, 500, 503, 504, stream=_STREAM),
    )
    async def compress(request: Request) -> Response:
        """Keep of some documents what helps with a query.

        With `stream` or the header `Accept: text/event-stream` the answer is a stream of server-sent events: `progress` with
        the characters done, then `result` with this JSON, or `error` with that of an error.
        """
        async with AsyncExitStack() as place:
            body = await place.enter_async_context(service.place(request))
            asked, job, selection = await service.in_pool(_prepared, service, body)
            request.state.log |= {
                "body_bytes": len(body), "documents": len(job.context.documents), "original_chars": len(job.context)
            }  # fmt: skip
            metrics.received.inc(len(body))
            ticket = service.scheduler.submit(job)

            async def work() -> bytes:
                scored = await service.scores(ticket)
                key = service.kept.put(scored) if asked.keep else None
                return await service.in_pool(_selected, scored, selection, request, metrics, key)

            if wanted(request, asked):
                return Events(service, ticket, work, request, place.pop_all())
            return Response(await service.answer(request, work()), media_type="application/json")

    @app.post(
        "/v1/select", tags=["compress"], **_documented(SelectRequest, 400, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504)
    )
    async def select(request: Request) -> Response:
        """Keep more or less of what `/v1/compress` with `keep` has scored: no forward pass is made.

        Scores are kept for some minutes after their last use; 404 says that they are gone.
        """
        async with service.place(request) as body:
            asked = await service.in_pool(lambda: SelectRequest.model_validate(parsed(body)))
            scored = service.kept.get(asked.id)
            if scored is None:
                raise Refusal(404, "NotKept", "nothing is kept under this id (any more); compress again", "id")
            selection = await service.in_pool(service.selection, asked)
            work = service.in_pool(_selected, scored, selection, request, metrics, asked.id)
            return Response(await service.answer(request, work), media_type="application/json")


def _prepared(service: Service, body: bytearray) -> tuple[CompressRequest, Job, dict[str, Any]]:
    asked = CompressRequest.model_validate(parsed(body))
    return asked, *service.prepare(asked)


def _selected(scored: Scored, selection: dict[str, Any], request: Request, metrics: Metrics, key: str | None) -> bytes:
    """Select, and write the result as JSON."""
    context = scored.select(**selection)
    stats = context.stats
    request.state.log |= {"kept_chars": stats.kept_chars, "windows": stats.windows}
    metrics.characters.labels("original").inc(stats.original_chars)
    metrics.characters.labels("kept").inc(stats.kept_chars)
    return ascii_json({"id": key, "request_id": request.state.request_id, **context.to_dict()})


async def _refused(service: Service, request: Request, error: Exception) -> Response:
    return service.reported(error, request).response(request.state.request_id)


async def _no_route(service: Service, request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kinds = {404: ("NotFound", "there is no such path here"), 405: ("MethodNotAllowed", "this path has other methods")}
    kind, message = kinds.get(error.status_code, ("HTTPError", error.detail))
    return await _refused(service, request, Refusal(error.status_code, kind, message, headers=error.headers))


def _documented(
    model: type[Any], *statuses: int, answer: type[Any] = CompressedOut, stream: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What OpenAPI tells of a route that reads its body itself, within limits and off the event loop."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {
        "response_model": None,
        "responses": {200: {"model": answer, **(stream or {})}, **{status: {"model": ErrorBody} for status in statuses}},
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
    }


def _describe(app: FastAPI) -> None:
    """Add to OpenAPI what the routes read themselves, and the token."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = made()
            template = "#/components/schemas/{model}"
            bodies = [(CompressRequest, "validation"), (SelectRequest, "validation"), (DropInRequest, "validation")]
            _, found = models_json_schema(bodies, ref_template=template)  # type: ignore[arg-type]
            document["components"]["schemas"] |= found["$defs"]
            document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            for path, methods in document["paths"].items():
                for operation in methods.values():
                    operation["security"] = [] if path in OPEN else [{"token": []}, {}]
                    operation["responses"].pop("422", None) if "requestBody" not in operation else None
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
