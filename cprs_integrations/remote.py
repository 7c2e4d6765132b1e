"""RemoteEngine: the client of a served engine, with the calls and results of a local one. Needs the extra "remote"."""

import asyncio
import json
import os
import random
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm.auto import tqdm

from cprs_integrations.context import LongContext
from cprs_integrations.engine import Documents
from cprs_integrations.errors import ArgumentError, ServerError, require
from cprs_integrations.instructions import Granularity, check_question, resolve
from cprs_integrations.result import CompressedContext, CompressedDocument, LeftOut, Span, Stats
from cprs_integrations.selection import Bounds, check_granularity

_AGAIN = (429, 503)
_LONGEST_WAIT = 30.0
_AT_ONCE = 8  # requests of a batch


class RemoteEngine:
    """Compresses on another machine, where `cprs serve` runs: same calls and results as `CPRSEngine`.

    Safe to share between threads. What a server cannot do is refused: a `token_counter` of this process, and compiled
    patterns in `protect`; patterns are RE2's (`docs/deploy.md`).

    Args:
        url: of the server, e.g. "http://127.0.0.1:8000".
        token: the server's; None: the environment variable CPRS_TOKEN, if it is set.
        timeout: seconds that one answer may take.
        retries: how often a request is sent again if the server is full (429), stopping (503) or cannot be reached, with
            growing pauses, or those that it asks for.

    Raises:
        ArgumentError: an argument has a value it cannot have.
        MissingExtraError: httpx is not installed.
    """

    def __init__(self, url: str, token: str | None = None, *, timeout: float = 600.0, retries: int = 4) -> None:
        if not isinstance(url, str) or not re.match(r"https?://[^\s/]", url):
            raise ArgumentError(f'url must be the address of a server, such as "http://127.0.0.1:8000", not {url!r}')
        if type(retries) is not int or retries < 0:
            raise ArgumentError(f"retries must be a whole number from 0, not {retries!r}")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
            raise ArgumentError(f"timeout must be a number of seconds above 0, not {timeout!r}")
        self._httpx = require("httpx", "remote")
        self.url, self.timeout, self.retries = url.rstrip("/"), timeout, retries
        token = os.environ.get("CPRS_TOKEN") if token is None else token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._options: dict[str, Any] = {"base_url": self.url, "headers": headers, "timeout": timeout}
        self._client = self._httpx.Client(**self._options)

    def __repr__(self) -> str:
        return f"RemoteEngine({self.url!r})"

    def close(self) -> None:
        """Close the connections; a call afterwards fails."""
        self._client.close()

    def compress(
        self, documents: Documents, query: str | None = None, *, show_progress: bool = False, **options: Any
    ) -> CompressedContext:
        """Compress, as `CPRSEngine.compress` does.

        Args:
            documents: one text or a sequence of texts.
            query: the user's question.
            show_progress: show a progress bar.
            **options: the other arguments of `CPRSEngine.compress`.

        Raises:
            ArgumentError: an argument has a value it cannot have, or cannot travel.
            ServerError: the server cannot be reached, is full, refuses the token, or failed.
        """
        context, asked = _asked(documents, query, options)
        if show_progress:
            return _result(context, asked, self._streamed(asked))
        return _result(context, asked, self._post("/v1/compress", asked))

    async def acompress(self, documents: Documents, query: str | None = None, **options: Any) -> CompressedContext:
        """`compress` on the event loop. Arguments and errors as there."""
        options.pop("show_progress", None)
        context, asked = await asyncio.to_thread(_asked, documents, query, options)
        body = await asyncio.to_thread(_encoded, asked)
        async with self._httpx.AsyncClient(**self._options) as client:
            for pause in self._pauses():
                try:
                    answer = await client.post("/v1/compress", content=body, headers=_JSON)
                    if answer.status_code not in _AGAIN or pause is None:
                        return await asyncio.to_thread(lambda: _result(context, asked, self._read(answer)))  # noqa: B023
                    wait = _wait(answer.headers, pause)
                except self._httpx.TransportError as error:
                    if pause is None or not self._is_unsent(error):
                        raise self._unreachable(error) from error
                    wait = pause
                await asyncio.sleep(wait)
        raise AssertionError("the last pause is None")

    def compress_batch(
        self, items: Iterable[tuple[Documents, str | None]], *, show_progress: bool = False, **options: Any
    ) -> list[CompressedContext]:
        """Compress many contexts, a few requests at once. Arguments, results and errors as `CPRSEngine.compress_batch`."""
        asked = [(documents, query) for documents, query in items]
        with ThreadPoolExecutor(_AT_ONCE, "cprs-remote") as pool:
            answers = pool.map(lambda item: self.compress(*item, **options), asked)
            return list(tqdm(answers, total=len(asked), desc="compress", disable=not show_progress))

    def score(
        self,
        documents: Documents,
        query: str | None = None,
        *,
        instruction: str | None = None,
        granularity: Granularity | None = None,
        titles: Sequence[str | None] | None = None,
        prefilter: float | None = None,
    ) -> "RemoteScored":
        """Have a context scored once, to select from it as often as needed, as long as the server keeps the scores.

        Arguments and errors as in `CPRSEngine.score`.
        """
        options = {"instruction": instruction, "granularity": granularity, "titles": titles, "prefilter": prefilter}
        context, asked = _asked(documents, query, options)
        answer = self._post("/v1/compress", asked | {"keep": True})
        if answer.get("id") is None:
            raise ServerError(f"{self.url}: the scores are larger than the server keeps; raise CPRS_KEPT_BYTES there")
        return RemoteScored(self, str(answer["id"]), context, asked)

    def _post(self, path: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        body = _encoded(asked)
        for pause in self._pauses():
            try:
                answer = self._client.post(path, content=body, headers=_JSON)
                if answer.status_code not in _AGAIN or pause is None:
                    return self._read(answer)
                wait = _wait(answer.headers, pause)
            except self._httpx.TransportError as error:
                if pause is None or not self._is_unsent(error):
                    raise self._unreachable(error) from error
                wait = pause
            time.sleep(wait)
        raise AssertionError("the last pause is None")

    def _streamed(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The result, with a progress bar while the server reads."""
        body = _encoded({**asked, "stream": True})
        for pause in self._pauses():
            try:
                with self._client.stream("POST", "/v1/compress", content=body, headers=_JSON) as answer:
                    if answer.status_code == 200:
                        return self._last_event(answer.iter_lines())
                    answer.read()
                    if answer.status_code not in _AGAIN or pause is None:
                        return self._read(answer)
                    wait = _wait(answer.headers, pause)
            except self._httpx.TransportError as error:
                if pause is None or not self._is_unsent(error):
                    raise self._unreachable(error) from error
                wait = pause
            time.sleep(wait)
        raise AssertionError("the last pause is None")

    def _last_event(self, lines: Iterable[str]) -> dict[str, Any]:
        name = ""
        with tqdm(unit="char", unit_scale=True, desc="compress") as progress:
            for line in lines:
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: "):
                    found: dict[str, Any] = json.loads(line[6:])
                    if name == "result":
                        progress.update((progress.total or progress.n) - progress.n)
                        return found
                    if name == "error":
                        raise self._error(500, found)
                    progress.total = found["total"]
                    progress.update(found["done"] - progress.n)
        raise ServerError(f"{self.url}: the connection ended before the result")

    def _pauses(self) -> Iterator[float | None]:
        """Seconds to wait after each attempt that fails; None after the last one."""
        for attempt in range(self.retries):
            yield min(_LONGEST_WAIT, 0.5 * 2**attempt) * random.uniform(0.75, 1.25)
        yield None

    def _is_unsent(self, error: Exception) -> bool:
        """Whether a request can be sent again: nothing of an answer has come, nor has the time run out."""
        return not isinstance(error, self._httpx.ReadTimeout | self._httpx.WriteTimeout)

    def _unreachable(self, error: Exception) -> ServerError:
        if isinstance(error, self._httpx.TimeoutException):
            return ServerError(f"{self.url}: no answer within {self.timeout:g} seconds; raise timeout, or ask for less at once")
        return ServerError(f"{self.url} cannot be reached ({error}); is `cprs serve` running there?")

    def _read(self, answer: Any) -> dict[str, Any]:
        try:
            found = answer.json()
        except ValueError as error:
            raise ServerError(f"{self.url}: answered {answer.status_code} and no JSON; is it `cprs serve`?") from error
        if answer.status_code == 200 and isinstance(found, dict):
            return found
        raise self._error(answer.status_code, found)

    def _error(self, status: int, found: Any) -> Exception:
        told = found.get("error") if isinstance(found, dict) else None
        if not isinstance(told, dict):
            return ServerError(f"{self.url}: answered {status}; is it `cprs serve`?")
        if told.get("type") == "ArgumentError":
            return ArgumentError(str(told.get("message")))
        return ServerError(f"{self.url}: {told.get('message')} ({status} {told.get('type')}, request {told.get('request_id')})")


class RemoteScored:
    """Scores that a server keeps; `select` takes the arguments of `Scored.select`."""

    def __init__(self, engine: RemoteEngine, name: str, context: LongContext, asked: Mapping[str, Any]) -> None:
        self._engine, self._name, self._context, self._asked = engine, name, context, asked

    def select(self, **selection: Any) -> CompressedContext:
        """Keep the best of the context within bounds; no forward pass is made.

        Raises:
            ArgumentError: an argument has a value it cannot have, or cannot travel.
            ServerError: the scores are no longer kept, or what `RemoteEngine.compress` raises.
        """
        found = self._engine._post("/v1/select", {"id": self._name, **_bounds(selection)})
        return _result(self._context, self._asked, found)


_JSON = {"Content-Type": "application/json"}


def _asked(documents: Documents, query: str | None, options: Mapping[str, Any]) -> tuple[LongContext, dict[str, Any]]:
    """Check arguments as the engine does, before they travel."""
    options = dict(options)
    titles = options.pop("titles", None)
    context = LongContext.of(documents, titles)
    check_question(query, options.get("instruction"))
    question: dict[str, Any] = {name: options.pop(name) for name in ("instruction", "prefilter") if name in options}
    asked: dict[str, Any] = {"documents": list(context.documents), "query": query, **question, **_bounds(options)}
    if titles is not None:
        asked["titles"] = list(titles)
    return context, {name: value for name, value in asked.items() if value is not None}


def _bounds(options: Mapping[str, Any]) -> dict[str, Any]:
    known = ("granularity", "threshold", "max_ratio", "max_tokens", "protect", "token_counter")
    for name in options:
        if name not in known:
            raise ArgumentError(f"{name} is no argument of this call; there are {', '.join(known)}")
    check_granularity(options.get("granularity"))
    bounds: dict[str, Any] = {name: value for name, value in options.items() if name != "granularity"}
    Bounds(**bounds)
    if options.get("token_counter") is not None:
        raise ArgumentError(
            "token_counter is a function of this process and cannot travel; give max_tokens alone, or max_ratio"
        )
    if any(not isinstance(pattern, str) for pattern in options.get("protect") or ()):
        raise ArgumentError("protect: a compiled pattern cannot travel; give it as a str")
    found: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if "protect" in found:
        found["protect"] = list(found["protect"])
    return found


def _encoded(asked: Mapping[str, Any]) -> bytes:
    return json.dumps(asked).encode()  # in ASCII: lone surrogates travel too


def _wait(headers: Mapping[str, str], pause: float) -> float:
    """As long as the server asks for, if it does, and never quite as long as everybody else."""
    told = headers.get("retry-after", "")
    return min(_LONGEST_WAIT, float(told)) * random.uniform(1, 1.25) if told.isdigit() else pause


def _result(context: LongContext, asked: Mapping[str, Any], found: Mapping[str, Any]) -> CompressedContext:
    """Put together what came back with the documents that are here."""
    try:
        documents = tuple(
            CompressedDocument.of(source, tuple(Span(**span) for span in document["spans"]))
            for source, document in zip(context.documents, found["documents"], strict=True)
        )
        stats = {name: value for name, value in found["stats"].items() if name != "compression"}
        stats["left_out"] = tuple(LeftOut(**left_out) for left_out in stats["left_out"])
        instruction = resolve(asked.get("instruction"), asked.get("granularity"))
        return CompressedContext(found["text"], documents, Stats(**stats), context, asked.get("query") or "", instruction)
    except (KeyError, TypeError, ValueError) as error:
        raise ServerError(f"the server's answer is of another version of cprs_integrations ({error!r})") from error
