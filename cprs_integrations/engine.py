"""The engine: the one path of a context, from documents to what is worth reading of them.

documents ─► LongContext ─► units ─► windows ─► critic ─► Ledger ─► Scored ─► select ─► CompressedContext
"""

import asyncio
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from tqdm.auto import tqdm

from cprs_integrations.context import LongContext, readable, utf8_length
from cprs_integrations.critics import load_critic
from cprs_integrations.critics.base import Critic, Tokens
from cprs_integrations.errors import ArgumentError, CPRSError, CriticError
from cprs_integrations.instructions import Granularity, check_question, resolve
from cprs_integrations.ledger import Ledger
from cprs_integrations.result import CompressedContext
from cprs_integrations.scored import Scored
from cprs_integrations.selection import Bounds, TokenCounter, check_granularity
from cprs_integrations.units import Unit, segment
from cprs_integrations.windows import NO_TOKENS, Ints, Piece, Prompt, Window, largest_piece, largest_title, pack

Documents = str | Sequence[str]

_BATCH = 65_536  # characters that are tokenized in one call
_LINE_BREAKS = re.compile(r"\s*[\r\n]")


class Engine(Protocol):
    """What the adapters need of an engine, local or served: the calls of `CPRSEngine` by these names."""

    def compress(self, documents: Documents, *args: Any, **options: Any) -> CompressedContext:
        """Compress, as `CPRSEngine.compress` does."""
        ...

    async def acompress(self, documents: Documents, *args: Any, **options: Any) -> CompressedContext:
        """Compress without holding the event loop."""
        ...


class CPRSEngine:
    """Compresses long contexts to what a critic finds relevant (arXiv 2505.18092).

    Safe to share between threads.

    Args:
        critic: any object with the `Critic` protocol; None is the critic that ships with the package.
    """

    def __init__(self, critic: Critic | None = None) -> None:
        if critic is not None and not isinstance(critic, Critic):
            raise ArgumentError(f"critic must have the Critic protocol (cprs_integrations.critics.base), not {critic!r}")
        self.critic: Critic = load_critic() if critic is None else critic

    @classmethod
    def from_pretrained(
        cls, model: str | None = None, *, device: str | None = None, dtype: str | None = None, **options: Any
    ) -> "CPRSEngine":
        """Load a critic; engines of one process that name the same one share it.

        Args:
            model: None for the critic that ships with the package; the folder of a model; or the id of a QwenLong-CPRS
                checkpoint on the hub, such as "Tongyi-Zhiwen/QwenLong-CPRS-7B".
            device: "cpu", "cuda", ...; None lets the critic choose.
            dtype: "float32", "bfloat16", ...; None lets the critic choose.
            **options: of the critic, e.g. `threads=1`.

        Raises:
            ModelError: files are missing, damaged or foreign.
            ArgumentError: the critic has no such option.
        """
        return cls(load_critic(model, device=device, dtype=dtype, **options))

    def compress(
        self,
        documents: Documents,
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
        show_progress: bool = False,
    ) -> CompressedContext:
        """Keep of some documents what helps with a query.

        Without a bound the critic's calibrated threshold decides. A bound without a threshold is filled from the best
        unit down; a threshold and a bound both hold. Bounds count what is returned, separators included.

        Args:
            documents: one text or a sequence of texts.
            query: the user's question; may be empty when there is an instruction.
            instruction: what to keep, in natural language, or a name from `INSTRUCTIONS`; None: sentences that help to
                answer the query (with the granularity "keyword": words that answer it).
            granularity: None: as the critic marks it, guided by the instruction; or "keyword", "sentence", "paragraph",
                "document": units are snapped to it.
            threshold: keep units whose score reaches it, in [0, 1].
            max_ratio: upper bound of returned characters to characters of the documents, in (0, 1].
            max_tokens: upper bound of the returned text in tokens of the token counter, at least 1.
            token_counter: counts the tokens of a text; None: the critic's tokens, but at least one for four bytes.
            titles: one a document, read by the critic as context, never part of the text.
            protect: regular expressions whose matches are kept first, whole or not at all, inside the bounds.
            show_progress: show a progress bar.

        Raises:
            ArgumentError: an argument has a value it cannot have.
            CriticError: the critic failed; its own error is the cause.
        """
        Bounds(threshold, max_ratio, max_tokens, protect, token_counter)
        scored = self.score(
            documents, query, instruction=instruction, granularity=granularity, titles=titles, show_progress=show_progress
        )
        return scored.select(
            threshold=threshold, max_ratio=max_ratio, max_tokens=max_tokens, token_counter=token_counter, protect=protect
        )

    async def acompress(self, documents: Documents, query: str | None = None, **options: Any) -> CompressedContext:
        """`compress` in a thread of its own: the event loop goes on meanwhile. Arguments and errors as there."""
        return await asyncio.to_thread(partial(self.compress, documents, query, **options))

    def compress_batch(
        self,
        items: Iterable[tuple[Documents, str | None]],
        *,
        instruction: str | None = None,
        granularity: Granularity | None = None,
        show_progress: bool = False,
        **selection: Any,
    ) -> list[CompressedContext]:
        """Compress many contexts, each with its own query and its own budget; windows of all share the critic's batches.

        Args:
            items: pairs of documents and query.
            instruction: as in `compress`, for all items.
            granularity: as in `compress`, for all items.
            show_progress: show one progress bar for all.
            **selection: the other arguments of `Scored.select`, for all items.

        Returns:
            One result an item, in order: the same, to the byte, as compressing them one by one.
        """
        Bounds(**selection)
        jobs = [self._job(documents, query, instruction, granularity) for documents, query in items]
        return [scored.select(**selection) for scored in self._run(jobs, show_progress)]

    def score(
        self,
        documents: Documents,
        query: str | None = None,
        *,
        instruction: str | None = None,
        granularity: Granularity | None = None,
        titles: Sequence[str | None] | None = None,
        show_progress: bool = False,
    ) -> Scored:
        """Score a context once, to select from it as often as needed. Arguments and errors as in `compress`."""
        (scored,) = self._run([self._job(documents, query, instruction, granularity, titles)], show_progress)
        return scored

    def count_tokens(self, text: str) -> int:
        """Tokens of a text as the critic counts them, but at least one for four bytes: unknown words are no bargain."""
        count = sum(len(tokens.ids) for _, _, tokens in _tokenized(self.critic, readable(text)))
        return max(count, -(-utf8_length(text) // 4))

    def _job(
        self,
        documents: Documents,
        query: str | None,
        instruction: str | None,
        granularity: Granularity | None,
        titles: Sequence[str | None] | None = None,
    ) -> "_Job":
        check_granularity(granularity)
        return _Job(self.critic, LongContext.of(documents, titles), self._prompt(query, instruction, granularity), granularity)

    def _prompt(self, query: str | None, instruction: str | None, granularity: Granularity | None) -> Prompt:
        check_question(query, instruction)
        asked = resolve(instruction, granularity)
        return Prompt(asked, query or "", self.critic.encode_prompt(readable(asked), readable(query or "")))

    def _run(self, jobs: Sequence["_Job"], show_progress: bool) -> Iterator[Scored]:
        """Send the windows of all jobs through the critic; yield each job's scores as soon as they are there."""
        name = type(self.critic).__name__
        sent: deque[tuple[_Job, Window]] = deque()
        finished = 0

        def windows() -> Iterator[Window]:
            for job in jobs:
                for window in job.windows():
                    sent.append((job, window))
                    yield window

        total = sum(len(job.context) for job in jobs)
        with tqdm(total=total, unit="char", unit_scale=True, desc="compress", disable=not show_progress) as progress:
            answers = self.critic.score(windows())
            while (scores := _next_answer(answers, name)) is not None:
                if not sent:
                    raise CriticError(f"{name} returned more answers than it got windows")
                job, window = sent.popleft()
                job.ledger.add_scores(window, scores, name)
                progress.update(sum(len(piece.text) for piece in window.pieces))
                while finished < len(jobs) and jobs[finished].is_complete:
                    yield jobs[finished].scored(self.count_tokens)
                    finished += 1
        if sent:
            raise CriticError(f"{name} returned no answer for {len(sent)} of its windows")
        for job in jobs[finished:]:
            yield job.scored(self.count_tokens)


class _Job:
    """One context with its question, on its way through the critic."""

    def __init__(self, critic: Critic, context: LongContext, prompt: Prompt, granularity: Granularity | None) -> None:
        self.critic, self.context, self.prompt, self.granularity = critic, context, prompt, granularity
        # without a query its words stand in the instruction; most critics need no blend, so the protocol asks for none
        self.ledger = Ledger(prompt.query.strip() or prompt.instruction, getattr(critic, "blends", None))
        self.room = critic.limits.room(prompt)
        self._sent = 0
        self._is_cut = False
        self._segment_seconds = 0.0
        self._began = time.perf_counter()

    @property
    def is_complete(self) -> bool:
        return self._is_cut and self.ledger.windows == self._sent

    def windows(self) -> Iterator[Window]:
        self._began = began = time.perf_counter()
        windows = pack(self._pieces(), self.prompt, self.room, self.critic.limits.margin, self.critic.separator)
        for window in windows:
            self._sent += 1
            self._segment_seconds += time.perf_counter() - began
            yield window
            began = time.perf_counter()
        self._is_cut = True

    def _pieces(self) -> Iterator[Piece]:
        """Cut the documents into units, tokenize these in batches, and write both into the ledger."""
        for document, (text, title) in enumerate(zip(self.context.documents, self.context.titles, strict=True)):
            text = readable(text)
            title_ids = NO_TOKENS
            if title.strip():
                title_ids = self.critic.encode([readable(title) + ":"]).ids[: largest_title(self.room)]
            for units, texts, tokens in _tokenized(self.critic, text):
                yield from self._noted(document, units, texts, tokens, title_ids)

    def _noted(self, document: int, units: list[Unit], texts: list[str], tokens: Tokens, title: Ints) -> Iterator[Piece]:
        first = self.ledger.starts.length
        self.ledger.add_units(document, self.context.starts[document], units, texts, tokens)
        largest = largest_piece(self.room, self.critic.limits.margin, len(title) + len(self.critic.separator))
        ends = np.cumsum(tokens.counts).tolist()
        for number, (text, begin, end) in enumerate(zip(texts, [0, *ends], ends, strict=False), first):
            if end - begin <= largest:
                yield Piece(document, number, text, tokens.ids[begin:end], title)
                continue
            for low in range(begin, end, largest):
                high = min(low + largest, end)
                part = text[int(tokens.starts[low]) : int(tokens.ends[high - 1])]
                yield Piece(document, number, part, tokens.ids[low:high], title)

    def scored(self, count_tokens: TokenCounter) -> Scored:
        seconds = {"segment": self._segment_seconds, "score": time.perf_counter() - self._began}
        return Scored.of(
            self.ledger,
            context=self.context,
            prompt=self.prompt,
            threshold=self.critic.threshold,
            granularity=self.granularity,
            count_tokens=count_tokens,
            seconds=seconds,
        )


def _tokenized(critic: Critic, text: str) -> Iterator[tuple[list[Unit], list[str], Tokens]]:
    """Cut a text into units and tokenize these, a batch at a time."""
    reads_white_space, read = getattr(critic, "reads_white_space", False), 0
    for units in _batches(segment(text)):
        texts = [text[unit.start : unit.end] for unit in units]
        if reads_white_space:
            tokens, read = _with_white_space(critic, text, units, read)
        else:
            tokens = critic.encode(texts)
        if not tokens.counts.all():  # control characters alone: a unit of no tokens can be neither scored nor kept
            filled = np.flatnonzero(tokens.counts).tolist()
            units, texts = [units[place] for place in filled], [texts[place] for place in filled]
            tokens = Tokens(tokens.ids, tokens.starts, tokens.ends, tokens.counts[tokens.counts > 0])
        if units:
            yield units, texts, tokens


def _with_white_space(critic: Critic, text: str, units: list[Unit], read: int) -> tuple[Tokens, int]:
    """Tokenize units with the white space around them, read from `read` on; return where reading ended, too.

    Line breaks go with the unit before them, other white space with the one after, as byte-level tokenizers join them.
    Tokens of white space alone have no width.
    """
    stops = [match.end() if (match := _LINE_BREAKS.match(text, unit.end)) else unit.end for unit in units]
    begins = [read, *stops[:-1]]
    found = critic.encode([text[begin:stop] for begin, stop in zip(begins, stops, strict=True)])
    shift = np.repeat([unit.start - begin for unit, begin in zip(units, begins, strict=True)], found.counts)
    size = np.repeat([unit.end - unit.start for unit in units], found.counts)
    starts, ends = np.clip(found.starts - shift, 0, size), np.clip(found.ends - shift, 0, size)
    places = starts + np.repeat([unit.start for unit in units], found.counts)
    opens_with_space = [text[place].isspace() for place in np.minimum(places, len(text) - 1).tolist()]
    starts += (ends - starts > 1) & opens_with_space  # a span is to begin with a word
    return Tokens(found.ids, starts.astype(np.int32), ends.astype(np.int32), found.counts), stops[-1]


def _batches(units: Iterable[Unit]) -> Iterator[list[Unit]]:
    batch: list[Unit] = []
    size = 0
    for unit in units:
        batch.append(unit)
        size += unit.end - unit.start
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _next_answer(answers: Iterator[Any], name: str) -> Any:
    try:
        return next(answers, None)
    except CPRSError:
        raise
    except Exception as error:
        raise CriticError(f"{name} failed: {type(error).__name__}: {error}") from error
