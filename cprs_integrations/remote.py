"""The client of a served engine: the calls and results of `CPRSEngine`, from a thin worker. Needs the extra "remote"."""

import asyncio
import json
import os
import random
import re
import ssl
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from cprs_integrations.context import LongContext
from cprs_integrations.errors import ArgumentError, CPRSError, CriticError, ServerError, require
from cprs_integrations.instructions import Granularity, check_question
from cprs_integrations.prefilter import check_prefilter
from cprs_integrations.result import BLANK_LINE, CompressedContext, CompressedDocument, LeftOut, Span, Stats
from cprs_integrations.selection import Bounds, TokenCounter, check_granularity

if TYPE_CHECKING:
    import httpx

    from cprs_integrations.engine import Documents

TOKEN = "CPRS_TOKEN"
"""The environment variable that holds the token unless one is given."""

_AT_ONCE = 8  # requests of a batch that are under way at the same time
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 30.0  # seconds before the second try, and between any two
_CONNECTING = 10.0  # seconds for a connection
_BUSY = (429, 503)
_Selection = dict[str, Any]


class RemoteEngine:
    """An engine behind a URL (`cprs serve`): the same calls, and results equal to the local ones but for their seconds.

    A call opens its own connection, so there is nothing to close, and an engine may be shared by threads, event loops and
    processes, copied and pickled. A pickle has the token in it, if one was given.

    Args:
        url: of the server, as "http://127.0.0.1:8000".
        token: what the server asks for; None: the environment variable `CPRS_TOKEN`, read at each call.
        timeout: seconds without a sign from the server after which a call fails; at least the server's own limit. For a
            connection it has ten at most: it is made at once or not at all, and then tried again.
        retries: how often a call is tried again when the server is busy (429, 503) or cannot be reached, before a byte of
            an answer has come: after a while that doubles each time, with some chance in it, and as long as the server asks.

    Raises:
        ArgumentError: an argument has a value it cannot have.
        MissingExtraError: httpx is not installed.
    """

    def __init__(self, url: str, token: str | None = None, *, timeout: float = 630.0, retries: int = 5) -> None:
        if not isinstance(url, str) or not re.match(r"https?://[^/\s]", url):
            raise ArgumentError(f"url must be as 'http://host:port', not {url!r}")
        if token is not None and not (isinstance(token, str) and token.isascii() and token.isprintable() and token.strip()):
            raise ArgumentError("token must be printable ASCII and not blank: it travels in a header")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
            raise ArgumentError(f"timeout must be a number of seconds above 0, not {timeout!r}")
        if type(retries) is not int or retries < 0:
            raise ArgumentError(f"retries must be a whole number from 0, not {retries!r}")
        httpx = require("httpx", "remote")
        try:
            httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ArgumentError(f"url must be as 'http://host:port', not {url!r}: {error}") from error
        self.url, self.timeout, self.retries = url.rstrip("/"), timeout, retries
        self._token = token

    def __repr__(self) -> str:
        return f"RemoteEngine({self.url!r})"

    def compress(
        self,
        documents: "Documents",
        query: str | None = None,
        *,
        instruction: str | None = None,
        granularity: Granularity | None = None,
        threshold: float | None = None,
        max_ratio: float | None = None,
        max_tokens: int | None = None,
        token_counter: TokenCounter | None = None,
        titles: Sequence[str | None] | None = None,
        protect: Sequence[str | re.Pattern[str]] = (),
        prefilter: float | None = None,
        show_progress: bool = False,
    ) -> CompressedContext:
        """Compress, as `CPRSEngine.compress` does; arguments as there, but for the following.

        Args:
            documents: as there.
            query: as there.
            instruction: as there.
            granularity: as there.
            threshold: as there.
            max_ratio: as there.
            max_tokens: as there.
            token_counter: cannot travel: None, which counts the critic's tokens.
            titles: as there.
            protect: patterns travel as text, without flags of `re.compile`, and run in linear time: the server refuses
                look-around, back-references, and what else that excludes.
            prefilter: as there.
            show_progress: as there.

        Raises:
            ArgumentError: an argument has a value it cannot have, or cannot travel.
            CriticError: the critic failed over there.
            ServerError: the server cannot be reached, refuses the request, or answers with what is no result.
        """
        asked = _Asked.of(documents, query, instruction, granularity, titles, prefilter)
        selection = _selection(threshold, max_ratio, max_tokens, token_counter, protect)
        return asked.context(self._post("compress", {**asked.body, **selection}, asked if show_progress else None))

    async def acompress(
        self,
        documents: "Documents",
        query: str | None = None,
        *,
        instruction: str | None = None,
        granularity: Granularity | None = None,
        titles: Sequence[str | None] | None = None,
        prefilter: float | None = None,
        show_progress: bool = False,
        **selection: Any,
    ) -> CompressedContext:
        """`compress` without holding the event loop; cancelling it hangs up. Arguments and errors as there."""
        asked = _Asked.of(documents, query, instruction, granularity, titles, prefilter)
        body = {**asked.body, **_selection(**selection)}
        return asked.context(await self._apost("compress", body, asked if show_progress else None))

    def compress_batch(
        self,
        items: Iterable[tuple["Documents", str | None]],
        *,
        instruction: str | None = None,
        granularity: Granularity | None = None,
        prefilter: float | None = None,
        show_progress: bool = False,
        **selection: Any,
    ) -> list[CompressedContext]:
        """Compress many contexts, some at a time. Arguments, results and errors as `CPRSEngine.compress_batch` has them."""
        bounds = _selection(**selection)
        asked = [_Asked.of(documents, query, instruction, granularity, None, prefilter) for documents, query in items]
        with ThreadPoolExecutor(_AT_ONCE, "cprs-remote") as pool:
            calls = [pool.submit(self._post, "compress", {**one.body, **bounds}) for one in asked]
            try:
                with tqdm(total=len(asked), desc="compress", disable=not show_progress) as progress:
                    found = []
                    for one, call in zip(asked, calls, strict=True):
                        found.append(one.context(call.result()))
                        progress.update()
                    return found
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def score(
        self,
        documents: "Documents",
        query: str | None = None,
        *,
        instruction: str | None = None,
        granularity: Granularity | None = None,
        titles: Sequence[str | None] | None = None,
        prefilter: float | None = None,
        show_progress: bool = False,
    ) -> "RemoteScored":
        """Have a context scored once, to select from it as often as needed. Arguments and errors as in `compress`."""
        asked = _Asked.of(documents, query, instruction, granularity, titles, prefilter)
        answer = self._post("compress", {**asked.body, "keep": True}, asked if show_progress else None)
        return RemoteScored(self, asked, answer.get("id"))

    def _post(self, path: str, body: dict[str, Any], shown: "_Asked | None" = None) -> dict[str, Any]:
        import httpx

        call = _Call(self, path, body, shown)
        for wait in call.waits():
            time.sleep(wait)
            try:
                with (
                    httpx.Client(timeout=call.timeout, verify=_verify(self.url)) as client,
                    client.stream("POST", call.url, content=call.content, headers=call.headers()) as response,
                    call.begins(response),
                ):
                    if call.is_events:
                        for line in response.iter_lines():
                            call.read_line(line)
                    else:
                        call.body = response.read()
            except httpx.TransportError as error:
                call.failed(error)
        return call.result()

    async def _apost(self, path: str, body: dict[str, Any], shown: "_Asked | None" = None) -> dict[str, Any]:
        import httpx

        call = _Call(self, path, body, shown)
        for wait in call.waits():
            await asyncio.sleep(wait)
            try:
                async with (
                    httpx.AsyncClient(timeout=call.timeout, verify=_verify(self.url)) as client,
                    client.stream("POST", call.url, content=call.content, headers=call.headers()) as response,
                ):
                    with call.begins(response):
                        if call.is_events:
                            async for line in response.aiter_lines():
                                call.read_line(line)
                        else:
                            call.body = await response.aread()
            except httpx.TransportError as error:
                call.failed(error)
        return call.result()


@dataclass(frozen=True)
class RemoteScored:
    """A context whose scores are kept by the server for some minutes after their last use.

    When they are gone, the next `select` has the context scored again: it takes longer, and returns the same.
    """

    _engine: RemoteEngine = field(repr=False)
    _asked: "_Asked" = field(repr=False)
    _id: str | None

    def select(
        self,
        *,
        granularity: Granularity | None = None,
        threshold: float | None = None,
        max_ratio: float | None = None,
        max_tokens: int | None = None,
        token_counter: TokenCounter | None = None,
        protect: Sequence[str | re.Pattern[str]] = (),
    ) -> CompressedContext:
        """Keep the best of the context within bounds. Arguments and errors as in `RemoteEngine.compress`."""
        check_granularity(granularity)
        selection = _selection(threshold, max_ratio, max_tokens, token_counter, protect)
        if granularity is not None:
            selection["granularity"] = granularity
        for _ in range(2):
            if self._id is not None:
                try:
                    return self._asked.context(self._engine._post("select", {"id": self._id, **selection}))
                except ServerError as error:
                    if error.status != 404:
                        raise
            again = self._engine._post("compress", {**self._asked.body, "keep": True})
            object.__setattr__(self, "_id", again.get("id"))
            if self._id is None:
                break
        raise ServerError("the server cannot keep the scores of so long a context; call compress with the bounds instead")


@dataclass(frozen=True)
class _Asked:
    """What is asked, checked here before it travels: errors are those of the local engine."""

    source: LongContext
    body: dict[str, Any]

    @classmethod
    def of(
        cls,
        documents: "Documents",
        query: str | None,
        instruction: str | None,
        granularity: Granularity | None,
        titles: Sequence[str | None] | None,
        prefilter: float | None,
    ) -> "_Asked":
        check_granularity(granularity)
        check_prefilter(prefilter, query)
        source = LongContext.of(documents, titles)
        check_question(query, instruction)
        given = {"query": query, "instruction": instruction, "granularity": granularity, "prefilter": prefilter}
        body: dict[str, Any] = {"documents": source.documents, **{k: v for k, v in given.items() if v is not None}}
        if any(source.titles):
            body["titles"] = source.titles
        return cls(source, body)

    def context(self, answer: dict[str, Any]) -> CompressedContext:
        """The result, cut out of the documents here: what the server says must be in them word for word."""
        try:
            documents = tuple(
                CompressedDocument.of(text, tuple(Span(**span) for span in found["spans"]))
                for text, found in zip(self.source.documents, answer["documents"], strict=True)
            )
            stats = {name: value for name, value in answer["stats"].items() if name != "compression"}
            left_out = tuple(LeftOut(**found) for found in stats.pop("left_out"))
            text = BLANK_LINE.join(document.text for document in documents if document.text)
            if text != answer["text"]:
                raise ValueError("text")
            return CompressedContext(
                text, documents, Stats(**stats, left_out=left_out), self.source, answer["query"], answer["instruction"]
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError(f"the answer is no result of these documents ({type(error).__name__}: {error})") from error


class _Call:
    """One call, whichever way its bytes travel: when to try again, and what an answer means."""

    def __init__(self, engine: RemoteEngine, path: str, body: dict[str, Any], shown: _Asked | None) -> None:
        self._engine, self._shown = engine, shown
        self.url = f"{engine.url}/v1/{path}"
        self.content = json.dumps(body).encode()
        self.body: bytes | None = None
        self._status = 0
        self._asked_to_wait = 0.0
        self._error: Exception | None = None
        self._has_begun = False
        self._event = ""
        self._progress: Any = None

    def headers(self) -> dict[str, str]:
        token = self._engine._token or os.environ.get(TOKEN)
        accepted = "text/event-stream" if self._shown else "application/json"
        return {"Content-Type": "application/json", "Accept": accepted} | (
            {"Authorization": f"Bearer {token}"} if token else {}
        )

    def waits(self) -> Iterator[float]:
        """Seconds to wait before each try, for as long as trying again makes sense."""
        yield 0.0
        for number in range(self._engine.retries):
            if not self._is_worth_another:
                return
            wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2**number)
            wait = max(wait * random.uniform(0.5, 1.0), self._asked_to_wait * random.uniform(1.0, 1.25))
            self._status, self._error, self._asked_to_wait = 0, None, 0.0
            yield wait

    @property
    def _is_worth_another(self) -> bool:
        return self._status in _BUSY or (self._error is not None and not self._has_begun and not _is_timeout(self._error))

    @property
    def timeout(self) -> "httpx.Timeout":
        import httpx

        return httpx.Timeout(self._engine.timeout, connect=min(self._engine.timeout, _CONNECTING))

    @property
    def is_events(self) -> bool:
        return self._shown is not None and self._status == 200

    @contextmanager
    def begins(self, response: "httpx.Response") -> Iterator[None]:
        """Note how an answer begins; its progress is shown while it is read."""
        self._status = response.status_code
        self._has_begun = self._status not in _BUSY
        wait = response.headers.get("retry-after", "")
        self._asked_to_wait = min(float(wait), _LONGEST_WAIT) if wait.isdecimal() else 0.0
        total = len(self._shown.source) if self._shown else 0
        with tqdm(total=total, unit="char", unit_scale=True, desc="compress", disable=not self.is_events) as self._progress:
            yield

    def failed(self, error: Exception) -> None:
        if self._status not in _BUSY:
            self._error = error

    def read_line(self, line: str) -> None:
        """Take a line of an event: progress is shown, what comes last is the answer."""
        kind, _, value = line.partition(": ")
        if kind == "event":
            self._event = value
        elif kind == "data" and self._event == "progress":
            self._progress.update(json.loads(value)["characters"] - self._progress.n)
        elif kind == "data":
            self._progress.update(self._progress.total - self._progress.n)
            self.body = value.encode()
            self._status = 200 if self._event == "result" else 500

    def result(self) -> dict[str, Any]:
        """The answer, or the error that it means.

        Raises:
            ArgumentError, CriticError, ServerError: as `RemoteEngine.compress` says.
        """
        if self._error is not None:
            what = f"{type(self._error).__name__}: {self._error}".rstrip(": ")
            state = "answered, and then broke off" if self._has_begun else "does not answer"
            raise ServerError(f"{self._engine.url} {state} ({what}); is `cprs serve` running there?") from self._error
        try:
            answer = json.loads(self.body or b"")
            if not isinstance(answer, dict):
                raise TypeError
            if self._status == 200:
                return answer
            told = answer["error"]
            kind, message, request_id = told["type"], told["message"], told["request_id"]
        except (ValueError, KeyError, TypeError) as error:
            message = f"{self._engine.url} answered with status {self._status} and no JSON of ours: is it `cprs serve`?"
            raise ServerError(message, self._status) from error
        raise _meant(kind, f"{message} (request {request_id})", self._status, request_id)


def _meant(kind: str, message: str, status: int, request_id: str) -> CPRSError:
    if kind == "ArgumentError":
        return ArgumentError(message)
    if kind == "CriticError":
        return CriticError(message)
    hint = "; give RemoteEngine a token, or set CPRS_TOKEN" if status == 401 else ""
    return ServerError(message + hint, status, request_id)


def _selection(
    threshold: float | None = None,
    max_ratio: float | None = None,
    max_tokens: int | None = None,
    token_counter: TokenCounter | None = None,
    protect: Sequence[str | re.Pattern[str]] = (),
) -> _Selection:
    """The bounds that travel. Raises an ArgumentError for what does not."""
    Bounds(threshold, max_ratio, max_tokens, protect, token_counter)
    if token_counter is not None:
        raise ArgumentError("token_counter cannot travel to a served engine: leave it out, and max_tokens counts its critic's")
    for pattern in protect:
        if isinstance(pattern, re.Pattern) and pattern.flags != _flags_of(pattern):
            raise ArgumentError(f"protect: flags of {pattern!r} cannot travel; write them into the pattern, as in '(?i)...'")
    texts = [pattern.pattern if isinstance(pattern, re.Pattern) else pattern for pattern in protect]
    given: _Selection = {"threshold": threshold, "max_ratio": max_ratio, "max_tokens": max_tokens, "protect": texts or None}
    return {name: value for name, value in given.items() if value is not None}


def _flags_of(pattern: re.Pattern[str]) -> int:
    """The flags that its text alone gives it."""
    try:
        return re.compile(pattern.pattern).flags
    except re.error:  # with re.X, say
        return -1


def _is_timeout(error: Exception) -> bool:
    import httpx

    return isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout)


def _verify(url: str) -> ssl.SSLContext | bool:
    """One context for all calls: making one takes longer than a short call."""
    global _context
    if not url.startswith("https"):
        return False
    if _context is None:
        import httpx

        _context = httpx.create_ssl_context()
    return _context


_context: ssl.SSLContext | None = None
