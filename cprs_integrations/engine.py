"""The engine: the one path of a context, from documents to what is worth reading of them.

documents ─► LongContext ─► units ─► windows ─► critic ─► Ledger ─► Scored ─► select ─► CompressedContext

A critic that wants it reads the best units twice: once several windows are all in the ledger, one more goes to the critic.
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

from cprs_integrations.caching import DocumentCache
from cprs_integrations.context import LongContext, readable, utf8_length
from cprs_integrations.critics import load_critic
from cprs_integrations.critics.base import Critic
from cprs_integrations.cutting import Cut, cuts, titles
from cprs_integrations.errors import ArgumentError, CPRSError, CriticError
from cprs_integrations.instructions import Granularity, check_question, resolve
from cprs_integrations.ledger import Ledger, Settled
from cprs_integrations.lexical import Blends
from cprs_integrations.prefilter import check_prefilter, worth_reading
from cprs_integrations.rereading import second_window
from cprs_integrations.result import CompressedContext
from cprs_integrations.scored import Scored
from cprs_integrations.selection import Bounds, TokenCounter, check_granularity
from cprs_integrations.tags import REACH
from cprs_integrations.windows import NO_TOKENS, Ints, Piece, Prompt, Window, largest_piece, pack

Documents = str | Sequence[str]


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
        cache: remembers the units and tokens of documents for the next question about them (`caching.DocumentCache`).
    """

    def __init__(self, critic: Critic | None = None, cache: DocumentCache | None = None) -> None:
        if critic is not None and not isinstance(critic, Critic):
            raise ArgumentError(f"critic must have the Critic protocol (cprs_integrations.critics.base), not {critic!r}")
        self.critic: Critic = load_critic() if critic is None else critic
        self.cache = cache

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
        prefilter: float | None = None,
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
            prefilter: share of the windows that the critic reads, in (0, 1]: those that share most with the query's words
                (`prefilter.worth_reading`), for contexts that are too long to be read whole; None: all are read.
            show_progress: show a progress bar.

        Raises:
            ArgumentError: an argument has a value it cannot have.
            CriticError: the critic failed; its own error is the cause.
        """
        Bounds(threshold, max_ratio, max_tokens, protect, token_counter)
        scored = self.score(
            documents,
            query,
            instruction=instruction,
            granularity=granularity,
            titles=titles,
            prefilter=prefilter,
            show_progress=show_progress,
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
        prefilter: float | None = None,
        show_progress: bool = False,
        **selection: Any,
    ) -> list[CompressedContext]:
        """Compress many contexts, each with its own query and its own budget; windows of all share the critic's batches.

        Args:
            items: pairs of documents and query.
            instruction: as in `compress`, for all items.
            granularity: as in `compress`, for all items.
            prefilter: as in `compress`, for all items.
            show_progress: show one progress bar for all.
            **selection: the other arguments of `Scored.select`, for all items.

        Returns:
            One result an item, in order: the same, to the byte, as compressing them one by one.
        """
        Bounds(**selection)
        asked: dict[str, Any] = {"instruction": instruction, "granularity": granularity, "prefilter": prefilter}
        jobs = [self.job(documents, query, **asked) for documents, query in items]
        return [scored.select(**selection) for scored in self._run(jobs, show_progress)]

    def score(
        self,
        documents: Documents,
        query: str | None = None,
        *,
        instruction: str | None = None,
        granularity: Granularity | None = None,
        titles: Sequence[str | None] | None = None,
        prefilter: float | None = None,
        show_progress: bool = False,
    ) -> Scored:
        """Score a context once, to select from it as often as needed. Arguments and errors as in `compress`."""
        job = self.job(documents, query, instruction=instruction, granularity=granularity, titles=titles, prefilter=prefilter)
        (scored,) = self._run([job], show_progress)
        return scored

    def count_tokens(self, text: str) -> int:
        """Tokens of a text as the critic counts them, but at least one for four bytes: unknown words are no bargain."""
        count = sum(len(cut.tokens.ids) for cut in cuts(self.critic, [readable(text)]))
        return max(count, -(-utf8_length(text) // 4))

    def job(
        self,
        documents: Documents,
        query: str | None = None,
        *,
        instruction: str | None = None,
        granularity: Granularity | None = None,
        titles: Sequence[str | None] | None = None,
        prefilter: float | None = None,
    ) -> "Job":
        """Make a context ready for `drive`, which many jobs can share. Arguments and errors as in `compress`."""
        check_granularity(granularity)
        check_prefilter(prefilter, query)
        prompt = self._prompt(query, instruction, granularity)
        return Job(self.critic, LongContext.of(documents, titles), prompt, granularity, prefilter, self.cache)

    def drive(self, sent: Iterable[tuple["Job", Window]]) -> Iterator[tuple["Job", Window]]:
        """Send windows of any jobs through the critic, as one stream, and note its scores in their ledgers.

        Args:
            sent: windows with their jobs, those of a job in its own order. It may go on growing while it is read: the critic
                reads as far ahead as it likes.

        Yields:
            Each pair once its scores are noted, in the order in which they were sent.

        Raises:
            CriticError: the critic failed, or its answers do not fit the windows.
        """
        name = type(self.critic).__name__
        waiting: deque[tuple[Job, Window]] = deque()

        def windows() -> Iterator[Window]:
            for job, window in sent:
                waiting.append((job, window))
                yield window

        answers = _answers(self.critic, windows())
        while (scores := _next_answer(answers, name)) is not None:
            if not waiting:
                raise CriticError(f"{name} returned more answers than it got windows")
            job, window = waiting.popleft()
            job.ledger.add_scores(window, scores, name)
            yield job, window
        if waiting:
            raise CriticError(f"{name} returned no answer for {len(waiting)} of its windows")

    def _prompt(self, query: str | None, instruction: str | None, granularity: Granularity | None) -> Prompt:
        check_question(query, instruction)
        asked = resolve(instruction, granularity)
        return Prompt(asked, query or "", self.critic.encode_prompt(readable(asked), readable(query or "")))

    def _run(self, jobs: Sequence["Job"], show_progress: bool) -> Iterator[Scored]:
        """Send the windows of all jobs through the critic; yield each job's scores as soon as they are there."""
        finished, total = 0, sum(len(job.context) for job in jobs)
        with tqdm(total=total, unit="char", unit_scale=True, desc="compress", disable=not show_progress) as progress:
            for _, window in self.drive((job, window) for job in jobs for window in job.windows()):
                progress.update(window.characters)
                while finished < len(jobs) and jobs[finished].is_complete:
                    yield jobs[finished].scored(self.count_tokens)
                    finished += 1
            progress.update(total - progress.n)  # what was not read
        for job in jobs[finished:]:
            yield job.scored(self.count_tokens)


class Job:
    """One context with its question, on its way through the critic: it gives windows, and is given their scores."""

    def __init__(
        self,
        critic: Critic,
        context: LongContext,
        prompt: Prompt,
        granularity: Granularity | None,
        prefilter: float | None = None,
        cache: DocumentCache | None = None,
    ) -> None:
        self.critic, self.context, self.prompt, self.granularity = critic, context, prompt, granularity
        self.prefilter, self.cache = prefilter, cache
        # without a query its words stand in the instruction; most critics need no blend, so the protocol asks for none
        self.ledger = Ledger(prompt.query.strip() or prompt.instruction, getattr(critic, "blends", None), prefilter is not None)
        self.room = critic.limits.room(prompt)
        self._sent = 0
        self._is_cut = False
        self._segment_seconds = 0.0
        self._began = time.perf_counter()

    @property
    def is_complete(self) -> bool:
        """Whether all its windows have their scores."""
        return self._is_cut and self.ledger.windows == self._sent

    def windows(self) -> Iterator[Window]:
        """Cut the context into windows, one by one as they are asked for."""
        return (window for window in self.steps() if window is not None)

    def steps(self) -> Iterator[Window | None]:
        """The same with a None for each window that is cut, or looked at, and not read: who has other jobs can turn to them."""
        self._began = began = time.perf_counter()
        windows = self._pack(self._pieces())
        for window in windows if self.prefilter is None else self._worth_reading(windows, self.prefilter):
            # the first is read, whatever it holds: the critic must say what the instruction asks for
            if window is not None and self._sent and self.ledger.is_unread(window):
                self.ledger.skip(window)
                window = None
            self._sent += window is not None
            self._segment_seconds += time.perf_counter() - began
            yield window
            began = time.perf_counter()
        self._is_cut = True

    def _pack(self, pieces: Iterator[Piece]) -> Iterator[Window]:
        return pack(pieces, self.prompt, self.room, self.critic.limits.margin, self.critic.separator)

    def _worth_reading(self, windows: Iterator[Window], share: float) -> Iterator[Window | None]:
        """Cut the whole context first, then once more, giving only the windows that share most with the query."""
        outline = []
        for window in windows:
            outline.append((window.pieces[0].unit, window.pieces[-1].unit, len(window.rows)))
            yield None
        firsts, lasts, sizes = np.array(outline, dtype=np.int64).reshape(-1, 3).T
        is_read = worth_reading(self.ledger.shared, firsts, lasts, sizes, share)
        for window, is_it in zip(self._pack(self._pieces(is_noted=True)), is_read.tolist(), strict=True):
            if not is_it:
                self.ledger.skip(window)
            yield window if is_it else None

    def _pieces(self, is_noted: bool = False) -> Iterator[Piece]:
        """Cut the documents into units, tokenize these in batches, and write both into the ledger, unless that is done."""
        first = 0
        for cut in cuts(self.critic, map(readable, self.context.documents), self.cache):
            if not is_noted:
                bases = [self.context.starts[document] for document in cut.documents]
                self.ledger.add_units(cut.documents, bases, cut.units, cut.texts, cut.tokens)
            yield from self._cut_pieces(cut, first, titles(self.critic, self.context, cut.documents, self.room))
            first += len(cut.units)

    def _cut_pieces(self, cut: Cut, first: int, titles: dict[int, Ints]) -> Iterator[Piece]:
        tokens, ends = cut.tokens, np.cumsum(cut.tokens.counts).tolist()
        places = zip(cut.documents, cut.texts, [0, *ends], ends, strict=False)
        for number, (document, text, begin, end) in enumerate(places, first):
            title = titles.get(document, NO_TOKENS)
            largest = largest_piece(self.room, self.critic.limits.margin, len(title) + len(self.critic.separator))
            if end - begin <= largest:
                yield Piece(document, number, text, tokens.ids[begin:end], title)
                continue
            low = begin
            while low < end:
                high = min(low + largest, end)
                # tokens of bytes: several may share a character
                while low + 1 < high < end and tokens.starts[high] < tokens.ends[high - 1]:
                    high -= 1
                part = text[int(tokens.starts[low]) : int(tokens.ends[high - 1])]
                yield Piece(document, number, part, tokens.ids[low:high], title)
                low = high

    def _read_again(self, settled: Settled) -> Settled:
        """Have the best units read once more, side by side, if the critic wants that and they did not stand so before."""
        blends: Blends | None = getattr(self.critic, "blends", None)
        if blends is None or blends.reread is None or self._sent < 2:
            return settled
        starts, ends = (column.array[: column.length] for column in (self.ledger.starts, self.ledger.ends))
        read = np.where(self.ledger.is_read, settled.odds, -np.inf)
        window = second_window(self.critic, self.context, self.prompt, starts, ends, read, blends.reread.window)
        if window is None:
            return settled
        name = type(self.critic).__name__
        scores = _next_answer(_answers(self.critic, iter([window])), name)
        if scores is None:
            raise CriticError(f"{name} returned no answer for the window of its second reading")
        return self.ledger.reread(settled, window, scores, name)

    def scored(self, count_tokens: TokenCounter) -> Scored:
        """Close the ledger of a complete job, after a second reading if the critic wants one.

        Raises:
            CriticError: the second reading failed.
        """
        settled = self._read_again(self.ledger.settle(self.context))
        seconds = {"segment": self._segment_seconds, "score": time.perf_counter() - self._began}
        return Scored.of(
            self.ledger,
            settled,
            context=self.context,
            prompt=self.prompt,
            threshold=self.critic.threshold,
            reach=getattr(self.critic, "reach", REACH),
            granularity=self.granularity,
            count_tokens=count_tokens,
            seconds=seconds,
        )


def _answers(critic: Critic, windows: Iterator[Window]) -> Iterator[Any]:
    yield from critic.score(windows)  # called when the first answer is taken: `_next_answer` names what fails, there too


def _next_answer(answers: Iterator[Any], name: str) -> Any:
    try:
        return next(answers, None)
    except CPRSError:
        raise
    except Exception as error:
        raise CriticError(f"{name} failed: {type(error).__name__}: {error}") from error
