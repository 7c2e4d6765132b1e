"""A run over a corpus: Ray Data hands parts to workers, each with a loaded critic; a run that was killed goes on.

Every part has a file of its own in the output, written as a whole or not at all, and a line in `parts.jsonl` once it is
there. `run.json` says what was asked: what is asked otherwise, or of other files, needs a folder of its own.
"""

import hashlib
import json
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from cprs_integrations.critics import load_critic
from cprs_integrations.critics.mini import SHIPPED
from cprs_integrations.critics.ray import checked_resources, connect, room
from cprs_integrations.dataset.files import Part, Path_, Reader, Rows, parts, source_files, write
from cprs_integrations.dataset.rows import Question, compress_rows
from cprs_integrations.engine import CPRSEngine
from cprs_integrations.errors import ArgumentError, CPRSError, require
from cprs_integrations.result import CompressedContext

RUN, PARTS = "run.json", "parts.jsonl"
_TRIES = 3  # a part that killed so many workers is given up
_MOST_PARTS = 100_000  # what Ray Data lays out at once without ado
Outcomes = Sequence[CompressedContext | CPRSError]


@dataclass(frozen=True)
class Summary:
    """What a folder of results holds.

    Attributes:
        rows: how many.
        failed: how many of them have an error instead of a result.
        original_chars, kept_chars: of the others.
        parts: files.
    """

    rows: int = 0
    failed: int = 0
    original_chars: int = 0
    kept_chars: int = 0
    parts: int = 0

    def __add__(self, other: "Summary") -> "Summary":
        return Summary(*(getattr(self, known.name) + getattr(other, known.name) for known in fields(self)))

    @classmethod
    def of(cls, outcomes: Outcomes) -> "Summary":
        """What a part comes to."""
        stats = [outcome.stats for outcome in outcomes if isinstance(outcome, CompressedContext)]
        original, kept = sum(found.original_chars for found in stats), sum(found.kept_chars for found in stats)
        return cls(len(outcomes), len(outcomes) - len(stats), original, kept, 1)


def compress_dataset(
    source: Path_ | Sequence[Path_],
    out: Path_,
    *,
    documents: str = "documents",
    query: str | None = None,
    query_column: str | None = None,
    titles: str | None = None,
    critic: str | None = None,
    critic_options: Mapping[str, Any] | None = None,
    on_error: Literal["raise", "record"] = "raise",
    workers: int | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    part_bytes: int = 2_000_000,
    show_progress: bool = False,
    **options: Any,
) -> Summary:
    """Compress every row of a corpus, each within the bounds, on all machines of a Ray cluster.

    Rows of JSONL or Parquet files come out as they went in, in the same order and kind of file, with four columns more:
    `cprs_text`, `cprs_documents` (texts, spans), `cprs_stats`, `cprs_error`. Results are those of `CPRSEngine.compress`.

    The same call again goes on where a run was stopped; of a run that was killed, the parts under way are done anew. Run
    one at a time for a folder. `ray.init()` is called if it has not been: call it before to choose a cluster.

    Args:
        source: a file, a folder or several: all `.jsonl`, or all `.parquet`. Every machine must see them, and `out`, under
            the same path.
        out: folder of the results, `part-000000.jsonl` and so on; made if it is not there.
        documents: the column of a row's documents: a text, or a list of texts.
        query: the query of all rows; None: they have their own, or there is an instruction.
        query_column: the column of each row's query.
        titles: the column of a row's titles: one a document.
        critic: as the `model` of `CPRSEngine.from_pretrained`.
        critic_options: its other arguments, e.g. `{"device": "cuda"}`.
        on_error: "raise" stops at a row with bad input (what is done stays done); "record" writes it with its error.
        workers: processes with a critic; None: as many as the cluster has room for.
        num_cpus: reserved by each.
        num_gpus: reserved by each.
        part_bytes: rows that are read, done and written together, and done again if they are lost: about so many bytes.
        show_progress: show a progress bar.
        **options: the other arguments of `CPRSEngine.compress`.

    Returns:
        What the folder holds now.

    Raises:
        ArgumentError: an argument or a file has a value it cannot have, or `out` has results of another run.
        CPRSError: what a row raised, with `on_error="raise"`; or a part that killed its worker again and again.
        MissingExtraError: Ray is not installed.
    """
    question = Question(documents, query, query_column, titles, options)
    if on_error not in ("raise", "record"):
        raise ArgumentError(f'on_error must be "raise" or "record", not {on_error!r}')
    for name, value in (("workers", workers), ("part_bytes", part_bytes)):
        if (type(value) is not int or value < 1) and not (value is None and name == "workers"):
            raise ArgumentError(f"{name} must be a whole number from 1, not {value!r}")
    resources = checked_resources(num_cpus, num_gpus)
    files = source_files(source)
    folder = Path(out).resolve()
    if any(file.parent == folder for file in files):
        raise ArgumentError("out must be another folder than that of the source")
    asked = _identity(question, files, critic, critic_options or {}, on_error, part_bytes)
    all_parts = list(parts(files, part_bytes, question.columns))
    if len(all_parts) > _MOST_PARTS:
        raise ArgumentError(f"{len(all_parts):,} parts of {part_bytes:,} bytes are too many; make part_bytes larger")
    _note(folder, asked)
    _forget(folder)
    done = _done(folder)
    left = [part for part in all_parts if part.number not in done]
    summary = sum(done.values(), Summary())
    with tqdm(total=sum(part.size for part in all_parts), unit="B", unit_scale=True, disable=not show_progress) as progress:
        progress.update(sum(part.size for part in all_parts if part.number in done))
        if left:
            task = _Task(question, critic, dict(critic_options or {}), on_error, str(folder))
            for part, found in _results(task, left, workers, resources):
                _append(folder / PARTS, {"part": part.number, **asdict(found)})
                summary += found
                progress.update(part.size)
                progress.set_postfix_str(f"{summary.rows:,} rows, {summary.failed:,} failed")
    return summary


@dataclass(frozen=True)
class _Task:
    """What a worker needs to know."""

    question: Question
    critic: str | None
    critic_options: dict[str, Any]
    on_error: str
    folder: str


class _Worker:
    """Does parts, in a process of Ray Data."""

    def __init__(self, task: _Task) -> None:
        self._task = task
        self._engine: CPRSEngine | None = None
        self._reader = Reader(task.question.columns)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Read, compress and write a part; an error is returned, so that it arrives as it is."""
        part = Part(**row)
        try:
            return {"part": part.number, "found": pickle.dumps(self._do(part))}
        except CPRSError as error:
            return {"part": part.number, "found": pickle.dumps(error)}

    def _do(self, part: Part) -> Summary:
        task = self._task
        if self._engine is None:
            self._engine = CPRSEngine(load_critic(task.critic, **task.critic_options))
        tries = Path(task.folder) / f".{part.output}.tries"
        with tries.open("ab") as file:
            file.write(b".")
            if file.tell() > _TRIES:
                raise CPRSError(
                    f"{part.file}, rows from {part.first} on: {_TRIES} workers died of them. What is done stays done; if "
                    "memory ran out, reserve more for each worker (num_cpus), or take a smaller part_bytes and another folder"
                )
        rows = self._reader.read(part)
        outcomes = compress_rows(self._engine, task.question, rows.values)
        if task.on_error == "raise":
            _raise_first(part, rows, outcomes)
        write(part, rows, outcomes, Path(task.folder))
        tries.unlink(missing_ok=True)
        return Summary.of(outcomes)


def _raise_first(part: Part, rows: Rows, outcomes: Outcomes) -> None:
    for number, outcome in zip(rows.numbers, outcomes, strict=True):
        if isinstance(outcome, CPRSError):
            kind = type(outcome) if type(outcome) in (ArgumentError, CPRSError) else CPRSError
            raise kind(f'{part.file}, row {number}: {outcome} (on_error="record" goes on)') from outcome


def _results(
    task: _Task, left: Sequence[Part], workers: int | None, resources: dict[str, float]
) -> Iterator[tuple[Part, Summary]]:
    """Have parts done; yield each with what it came to."""
    ray = connect()
    data = require("ray.data", "ray")
    by_number = {part.number: part for part in left}
    count = min(len(left), workers or room(resources))
    rows = data.from_items([asdict(part) for part in left], override_num_blocks=len(left))
    rows.context.enable_progress_bars = False
    pool = data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2)
    try:
        for row in rows.map(_Worker, fn_constructor_args=(task,), compute=pool, **resources).iter_rows():
            result = pickle.loads(row["found"])
            if isinstance(result, CPRSError):
                raise result
            yield by_number[row["part"]], result
    except ray.exceptions.RayError as error:
        raise CPRSError(f"a worker failed: {error}. What is done stays done: call again to go on") from error


def _identity(
    question: Question,
    files: Sequence[Path],
    critic: str | None,
    critic_options: Mapping[str, Any],
    on_error: str,
    part_bytes: int,
) -> dict[str, Any]:
    """What the results depend on, as JSON."""
    config = (SHIPPED if critic in (None, "mini") else Path(str(critic))) / "config.json"
    return {
        "version": version("cprs_integrations"),
        "source": [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        "columns": {"documents": question.documents, "query": question.query_column, "titles": question.titles},
        "query": question.query,
        "options": {name: _plain(name, value) for name, value in sorted(question.options.items()) if value not in (None, ())},
        "critic": critic or "mini",
        "critic_digest": hashlib.sha256(config.read_bytes()).hexdigest() if config.is_file() else None,
        "critic_options": _plain("critic_options", dict(critic_options)),
        "on_error": on_error,
        "part_bytes": part_bytes,
    }


def _plain(name: str, value: Any) -> Any:
    """An option as JSON that tells it from others."""
    if isinstance(value, re.Pattern):
        return {"pattern": value.pattern, "flags": int(value.flags)}
    if isinstance(value, list | tuple):
        return [_plain(name, each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(name, each) for key, each in sorted(value.items())}
    if isinstance(value, Callable) and "<" not in (place := getattr(value, "__qualname__", "<")):  # type: ignore[arg-type]
        return f"{value.__module__}.{place}"
    if isinstance(value, str | int | float | None):
        return value
    raise ArgumentError(
        f"{name}: {value!r} cannot be written down for a run that goes on; give plain values or a named function"
    )


def _note(folder: Path, asked: Mapping[str, Any]) -> None:
    """Write down what is asked, or see that it is what was asked before.

    Raises:
        ArgumentError: the folder has results of something else, or other files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RUN
    asked = json.loads(json.dumps(asked))
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ArgumentError(f"{path} is damaged; take another folder for out") from error
        if other := [name for name in asked if before.get(name) != asked[name]]:
            told = "; ".join(f"{name} was {before.get(name)!r} and is {asked[name]!r}" for name in other)
            raise ArgumentError(f"out: {folder} has the results of another run: {told}. Take another folder")
        return
    if any(folder.iterdir()):
        raise ArgumentError(f"out: {folder} is not empty, and no run has begun in it; take another folder")
    temporary = folder / f".{RUN}"
    temporary.write_text(json.dumps(asked, indent=1), encoding="utf-8")
    temporary.replace(path)


def _forget(folder: Path) -> None:
    """Take away what a run left half done that was killed."""
    for path in folder.glob(".part-*"):
        path.unlink(missing_ok=True)


def _done(folder: Path) -> dict[int, Summary]:
    """The parts that are there, from the list of them; a last line that was cut off counts as not written."""
    path = folder / PARTS
    if not path.exists():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    rows = [json.loads(line) for line in whole.splitlines()]
    return {row.pop("part"): Summary(**row) for row in rows}


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
