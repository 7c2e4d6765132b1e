"""The wire format of the server that was released with QwenLong-CPRS, so that its clients work as they are.

The format is theirs, the answer is the engine's: spans are whole, in order and disjoint, and the text between two offsets is
the text. `complete_sentence` becomes the granularity "sentence"; `split_with_sent` and `batch_size` change nothing here.
As there, errors of a request come over HTTP 200 with a code of their own; limits, the token and the queue are HTTP's.
"""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cprs_integrations.errors import ArgumentError
from cprs_integrations.scored import Scored
from cprs_integrations.serving.refusal import Refusal, ascii_json
from cprs_integrations.serving.schemas import CompressRequest, Items
from cprs_integrations.serving.service import Service, parsed

PATH = "/qwen_long_compress_server"
_MESSAGES = (
    'Messages should len=3 list, the first role should be "system", second role should be "user", '
    'third role should be "context"'
)
_ROLES = ["system", "user", "context"]


class _Lenient(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class Message(_Lenient):
    """One of three: what to keep (system), the question (user), the document (context)."""

    role: str
    content: str


class Input(_Lenient):
    """The messages, in the order system, user, context."""

    messages: Items[Message]


class Parameters(_Lenient):
    """How spans are returned."""

    min_keyword_len: int = Field(default=4, description="Spans of so many tokens or fewer are left out.")
    complete_sentence: bool = Field(default=False, description="Whole sentences.")
    return_offset: bool = Field(default=False, description="Each span as [text, start, end].")
    split_with_sent: bool = True
    batch_size: int = Field(default=1, ge=1)


class Payload(_Lenient):
    """The request proper."""

    input: Input
    parameters: Parameters = Parameters()


class Header(_Lenient):
    """Whose request it is."""

    request_id: str


class DropInRequest(_Lenient):
    """A request as the released server takes it."""

    header: Header
    payload: Payload


class DropInAnswer(BaseModel):
    """The request again, with `payload.output.text`, `payload.usage` and a status in its header."""

    header: dict[str, Any]
    payload: dict[str, Any]


def add_drop_in(app: FastAPI, service: Service, documented: dict[str, Any]) -> None:
    """Add the route, and the two probes that go with it."""

    @app.post(PATH, tags=["drop-in"], **documented)
    async def compress(request: Request) -> Response:
        """Compress a document in the format of the server that was released with QwenLong-CPRS."""
        async with service.place(request) as body:
            sent = await service.in_pool(parsed, body)
            try:
                asked = await service.in_pool(_checked, sent)
                job, selection = await service.in_pool(service.prepare, _translated(asked))
                request.state.log |= {"body_bytes": len(body), "original_chars": len(job.context)}
                work = service.scores(service.scheduler.submit(job))
                scored = await service.answer(request, work)
                result = await service.in_pool(_result, scored, asked, selection, service)
                return await service.in_pool(_answer, sent, (200, "Success", "Success"), *result)
            except (ValidationError, ArgumentError) as error:
                status = (440, "SchemaError", _told(error))
            except Refusal:
                raise
            except Exception as error:  # noqa: BLE001 - told in their format
                refusal = service.reported(error, request)
                status = (500, "BackendError", f"{refusal.message}: {request.state.request_id}")
            request.state.status = status[0]
            return await service.in_pool(_answer, sent, status, {"is_match": False}, {"input_tokens": -1, "output_tokens": -1})

    @app.get("/liveness", tags=["drop-in"], response_class=PlainTextResponse)
    async def liveness() -> str:
        """As /healthz, in the words of the released server."""
        return "success"

    @app.get("/readiness", tags=["drop-in"], response_class=PlainTextResponse)
    async def readiness() -> Response:
        """As /readyz, in the words of the released server."""
        return PlainTextResponse("success") if service.is_ready else PlainTextResponse("not ready", 503, {"Retry-After": "1"})


def _checked(sent: Any) -> DropInRequest:
    asked = DropInRequest.model_validate(sent)
    if [message.role for message in asked.payload.input.messages] != _ROLES:
        raise ArgumentError(_MESSAGES)
    return asked


def _told(error: ValidationError | ArgumentError) -> str:
    """What is wrong with a request, and where in it."""
    if isinstance(error, ArgumentError):
        return str(error)
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _translated(asked: DropInRequest) -> CompressRequest:
    system, user, context = (message.content for message in asked.payload.input.messages)
    whole = asked.payload.parameters.complete_sentence
    return CompressRequest.model_validate(
        {"documents": context, "query": user, "instruction": system, "granularity": "sentence" if whole else None}
    )


def _result(
    scored: Scored, asked: DropInRequest, selection: dict[str, Any], service: Service
) -> tuple[dict[str, Any], dict[str, Any]]:
    parameters = asked.payload.parameters
    source = scored.context.documents[0]
    texts: list[Any] = []
    for span in scored.select(**selection).documents[0].spans:
        text = source[span.start : span.end]
        if service.engine.count_tokens(text) > parameters.min_keyword_len:
            texts.append([text.strip(), span.start, span.end] if parameters.return_offset else text.strip())
    tokens = len(scored.prompt.ids) * scored.windows + len(scored.odds)
    return {"text": texts}, {"input_tokens": tokens}


def _answer(sent: Any, status: tuple[int, str, str], output: dict[str, Any], usage: dict[str, Any]) -> Response:
    """The request again, with what became of it."""
    code, name, message = status
    whole = sent if isinstance(sent, dict) else {}
    header, payload = (found if isinstance(found := whole.get(key), dict) else {} for key in ("header", "payload"))
    header = {**header, "status_code": code, "status_name": name, "status_message": message}
    if code == 200:
        header["finished"] = True
    try:
        content = ascii_json({"header": header, "payload": {**payload, "output": output, "usage": usage}})
    except RecursionError:  # writing needs a few frames more than reading did
        raise Refusal(400, "MalformedRequest", "the body is nested too deeply") from None
    return Response(content, media_type="application/json")
