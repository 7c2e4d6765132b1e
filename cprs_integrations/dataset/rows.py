"""Rows of a dataset through the engine: what to read of them, and a result or an error for each."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cprs_integrations.engine import CPRSEngine, Job
from cprs_integrations.errors import ArgumentError, CPRSError
from cprs_integrations.instructions import check_question
from cprs_integrations.result import CompressedContext
from cprs_integrations.scored import Scored
from cprs_integrations.selection import Bounds, check_granularity

_OWN = ("self", "documents", "query", "titles", "show_progress")  # arguments of `compress` that rows give, or that are ours
_SELECTION = frozenset(inspect.signature(Scored.select).parameters) - {"self", "granularity"}


@dataclass(frozen=True)
class Question:
    """What is asked of every row.

    Attributes:
        documents: the column of the documents: a text, or a list of texts.
        query: the query of all rows, if `query_column` is None.
        query_column: the column of each row's query.
        titles: the column of the titles: one a document.
        options: the other arguments of `CPRSEngine.compress`.
    """

    documents: str = "documents"
    query: str | None = None
    query_column: str | None = None
    titles: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = [name for name in inspect.signature(CPRSEngine.compress).parameters if name not in _OWN]
        if strange := [name for name in self.options if name not in known]:
            raise ArgumentError(f"{strange[0]!r} is no option; there are {', '.join(known)}")
        if self.query is not None and self.query_column is not None:
            raise ArgumentError("query is the same for all rows, query_column names the column that has it: give one of them")
        if self.query_column is None:
            check_question(self.query, self.options.get("instruction"))
        Bounds(**self.selection)
        check_granularity(self.options.get("granularity"))

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        return [name for name in (self.documents, self.query_column, self.titles) if name is not None]

    @property
    def selection(self) -> dict[str, Any]:
        """Those options that come into play when scores are there."""
        return {name: value for name, value in self.options.items() if name in _SELECTION}

    def job(self, engine: CPRSEngine, row: Mapping[str, Any]) -> Job:
        """What the engine is to do for a row.

        Raises:
            ArgumentError: a column is missing or has a value it cannot have.
        """
        if missing := [name for name in self.columns if name not in row]:
            raise ArgumentError(f"the row has no column {missing[0]!r}; it has {', '.join(map(str, row)) or 'none'}")
        documents, titles = row[self.documents], row[self.titles] if self.titles is not None else None
        if isinstance(documents, str) and isinstance(titles, str):
            titles = [titles]
        query = self.query if self.query_column is None else row[self.query_column]
        asked = {name: value for name, value in self.options.items() if name not in _SELECTION}
        return engine.job(documents, query, titles=titles, **asked)


def compress_rows(
    engine: CPRSEngine, question: Question, rows: Sequence[Mapping[str, Any] | CPRSError]
) -> list[CompressedContext | CPRSError]:
    """Compress rows together, so that windows of short ones share the critic's batches.

    Args:
        engine: does it.
        question: what is asked of every row.
        rows: by column; or why there is none, which is passed on.

    Returns:
        One result a row, in order: the same as compressing them one by one; or why there is none.
    """
    outcomes: list[CompressedContext | CPRSError | None] = [row if isinstance(row, CPRSError) else None for row in rows]
    jobs: dict[int, Job] = {}
    for place, row in enumerate(rows):
        if not isinstance(row, CPRSError):
            try:
                jobs[place] = question.job(engine, row)
            except CPRSError as error:
                outcomes[place] = error
    try:
        _drive(engine, list(jobs.values()))
    except CPRSError:  # of one row, perhaps: each gets what is its own
        for place in jobs:
            row = rows[place]
            assert not isinstance(row, CPRSError)
            outcomes[place] = _alone(engine, question, row)
    else:
        for place, job in jobs.items():
            outcomes[place] = _selected(engine, question, job)
    return [outcome for outcome in outcomes if outcome is not None]


def _drive(engine: CPRSEngine, jobs: Sequence[Job]) -> None:
    for _ in engine.drive((job, window) for job in jobs for window in job.windows()):
        pass


def _alone(engine: CPRSEngine, question: Question, row: Mapping[str, Any]) -> CompressedContext | CPRSError:
    try:
        job = question.job(engine, row)
        _drive(engine, [job])
    except CPRSError as error:
        return error
    return _selected(engine, question, job)


def _selected(engine: CPRSEngine, question: Question, job: Job) -> CompressedContext | CPRSError:
    try:
        return job.scored(engine.count_tokens).select(**question.selection)
    except CPRSError as error:
        return error
