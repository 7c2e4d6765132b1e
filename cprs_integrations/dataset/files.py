"""Files of rows: cut into parts of some megabytes, read a part at a time, and written with our columns besides."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints
from uuid import uuid4

from cprs_integrations.errors import ArgumentError, CPRSError, require
from cprs_integrations.result import CompressedContext, Span, Stats

SUFFIXES = (".jsonl", ".parquet")
COLUMNS = ("cprs_text", "cprs_documents", "cprs_stats", "cprs_error")
"""What is added to a row: the text for the prompt, the documents with their spans, statistics, and what went wrong."""
LINE = "cprs_line"
"""Where a line that is no JSON object stands in the output."""

_BUFFER = 65_536  # bytes of each column of a Parquet file that are read ahead

Path_ = str | os.PathLike[str]


@dataclass(frozen=True)
class Part:
    """Rows that follow each other, small enough to be done again if they are lost.

    Attributes:
        number: of the part in the whole source.
        file: where the rows are.
        group: of a Parquet file, the row group.
        begin, end: bytes of a JSONL file, or rows of the row group.
        first: the number of the first row (of a JSONL file, line) in its file, from 1.
        size: bytes, those of a Parquet file before compression.
        step: of a Parquet file, rows of each part of the row group; the last may have fewer.
    """

    number: int
    file: str
    group: int
    begin: int
    end: int
    first: int
    size: int
    step: int = 0

    @property
    def output(self) -> str:
        """The name of its file in the output: names sort as the source does."""
        return f"part-{self.number:06d}{Path(self.file).suffix}"


@dataclass
class Rows:
    """The rows of a part.

    Attributes:
        numbers: of each row in its file, from 1.
        values: what stands in it, or why it cannot be read.
        lines: of JSONL, as it was read.
        table: of Parquet, all columns.
    """

    numbers: list[int]
    values: list[Mapping[str, Any] | ArgumentError]
    lines: list[str]
    table: Any = None


def source_files(source: Path_ | Sequence[Path_]) -> list[Path]:
    """The files of a source: one, several, or all of a folder, by name.

    Raises:
        ArgumentError: there are none, one is missing, or they are of different kinds.
    """
    named = [source] if isinstance(source, str | os.PathLike) else list(source)
    found: list[Path] = []
    for path in map(Path, named):
        if path.is_dir():
            found += sorted(inside for inside in path.iterdir() if inside.suffix in SUFFIXES)
        elif path.is_file():
            found.append(path)
        else:
            raise ArgumentError(f"source: there is no file or folder {str(path)!r}")
    if not found:
        raise ArgumentError(f"source: no file of {', '.join(map(str, named))} ends with {' or '.join(SUFFIXES)}")
    if len({path.suffix for path in found}) > 1 or found[0].suffix not in SUFFIXES:
        kinds = ", ".join(sorted({path.suffix or "none" for path in found}))
        raise ArgumentError(f"source must be files of one kind, {' or '.join(SUFFIXES)}, not {kinds}")
    return [path.resolve() for path in found]


def parts(files: Sequence[Path], size: int, needed: Sequence[str]) -> Iterator[Part]:
    """Cut files into parts of about so many bytes, in whole rows.

    Raises:
        ArgumentError: a file cannot be read, or has no such column, or has one of ours.
    """
    number = 0
    for path in files:
        found = _jsonl_parts(path, size) if path.suffix == ".jsonl" else _parquet_parts(path, size, needed)
        for group, begin, end, first, length, step in found:
            yield Part(number, str(path), group, begin, end, first, length, step)
            number += 1


def _jsonl_parts(path: Path, size: int) -> Iterator[tuple[int, int, int, int, int, int]]:
    with path.open("rb") as file:
        begin, end, first, line = 0, 0, 1, 0
        for line, text in enumerate(file, 1):
            end += len(text)
            if end - begin >= size:
                yield 0, begin, end, first, end - begin, 0
                begin, first = end, line + 1
        if end > begin:
            yield 0, begin, end, first, end - begin, 0


def _parquet_parts(path: Path, size: int, needed: Sequence[str]) -> Iterator[tuple[int, int, int, int, int, int]]:
    with _parquet(path) as file:
        names = file.schema_arrow.names
        if missing := [name for name in needed if name not in names]:
            raise ArgumentError(f"{path} has no column {missing[0]!r}; it has {', '.join(names)}")
        if taken := [name for name in COLUMNS if name in names]:
            raise ArgumentError(f"{path} has a column {taken[0]!r} already; rename it, or compress what it was made from")
        first = 1
        for group in range(file.metadata.num_row_groups):
            known = file.metadata.row_group(group)
            each = known.total_byte_size / max(1, known.num_rows)
            step = min(max(1, int(size / max(1.0, each))), max(1, known.num_rows))
            for begin in range(0, known.num_rows, step):
                end = min(begin + step, known.num_rows)
                yield group, begin, end, first + begin, int(each * (end - begin)), step
            first += known.num_rows


class Reader:
    """Reads parts. A Parquet file can be read from the start of a row group alone, so the one of the last part stays open.

    Parts of a row group that come in order cost one reading of it together, and no more memory than one of them at a time.

    Args:
        needed: the columns that are looked at.
    """

    def __init__(self, needed: Sequence[str]) -> None:
        self._needed = list(needed)
        self._group: tuple[str, int] | None = None
        self._next = 0  # the row of the row group at which the next table begins
        self._tables: Iterator[Any] = iter(())

    def read(self, part: Part) -> Rows:
        """Read the rows of a part."""
        if part.file.endswith(".jsonl"):
            return _read_jsonl(part)
        table, count = self._table(part), part.end - part.begin
        values = table.select(self._needed).to_pylist()
        return Rows(list(range(part.first, part.first + count)), values, [""] * count, table)

    def _table(self, part: Part) -> Any:
        if self._group != (part.file, part.group) or self._next > part.begin:
            self._group, self._next, self._tables = (part.file, part.group), 0, _tables(part)
        for table in self._tables:
            self._next += part.step
            if self._next > part.begin:
                return table
        self._group = None
        raise CPRSError(f"{part.file}, rows from {part.first} on: the file has fewer rows than when the run began")


def _tables(part: Part) -> Iterator[Any]:
    """The rows of each part of a row group, from its first."""
    pyarrow = require("pyarrow", "ray")
    with _parquet(Path(part.file)) as file:
        batches: list[Any] = []
        for batch in file.iter_batches(part.step, [part.group]):
            batches.append(batch)  # long columns come in several for one step
            if sum(map(len, batches)) == part.step:
                yield pyarrow.Table.from_batches(batches)
                batches = []
        if batches:
            yield pyarrow.Table.from_batches(batches)


def _read_jsonl(part: Part) -> Rows:
    with open(part.file, "rb") as file:
        file.seek(part.begin)
        data = file.read(part.end - part.begin)
    rows = Rows([], [], [])
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n"), part.first):
        if line.strip():
            rows.numbers.append(number)
            rows.lines.append(line.decode("utf-8", "replace").rstrip("\r"))
            rows.values.append(_parsed(line))
    return rows


def _parsed(line: bytes) -> Mapping[str, Any] | ArgumentError:
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return ArgumentError(f"the line is not JSON in UTF-8 ({error})")
    if not isinstance(value, dict):
        return ArgumentError(f"the line is a JSON {type(value).__name__}, not an object with columns")
    if taken := [name for name in COLUMNS if name in value]:
        return ArgumentError(f"the row has a column {taken[0]!r} already; rename it")
    return value


def write(part: Part, rows: Rows, outcomes: Sequence[CompressedContext | Exception], folder: Path) -> None:
    """Write the rows of a part with our columns: the file is there as a whole, or not at all."""
    added = [_added(outcome) for outcome in outcomes]
    temporary = folder / f".{part.output}.{uuid4().hex}"
    try:
        if rows.table is None:
            with temporary.open("wb") as file:
                for value, line, ours in zip(rows.values, rows.lines, added, strict=True):
                    file.write(_json({**(value if isinstance(value, Mapping) else {LINE: line}), **ours}))
        else:
            _write_table(temporary, rows.table, added)
        temporary.replace(folder / part.output)
    finally:
        temporary.unlink(missing_ok=True)


def _added(outcome: CompressedContext | Exception) -> dict[str, Any]:
    if isinstance(outcome, Exception):
        return dict.fromkeys(COLUMNS, None) | {"cprs_error": f"{type(outcome).__name__}: {outcome}"}
    found = outcome.to_dict()
    del found["stats"]["seconds"]  # so that the same rows become the same bytes
    return dict(zip(COLUMNS, (found["text"], found["documents"], found["stats"], None), strict=True))


def _json(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # a lone surrogate, which JSON can write as an escape alone
        return json.dumps(row).encode() + b"\n"


def _parquet(path: Path) -> Any:
    parquet = require("pyarrow.parquet", "ray")
    try:
        # by default the whole row group is read ahead
        return parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{path} cannot be read as Parquet ({error})") from error


def _write_table(path: Path, table: Any, added: Sequence[dict[str, Any]]) -> None:
    pyarrow, parquet = require("pyarrow", "ray"), require("pyarrow.parquet", "ray")
    stats = [(name, kind) for name, kind in _columns(pyarrow, Stats) if name != "seconds"]
    spans = pyarrow.list_(pyarrow.struct(_columns(pyarrow, Span)))
    whole = pyarrow.int64()
    document = [("text", pyarrow.string()), ("spans", spans), ("original_chars", whole), ("kept_chars", whole)]
    kinds = (
        pyarrow.large_string(),
        pyarrow.list_(pyarrow.struct(document)),
        pyarrow.struct([*stats, ("compression", pyarrow.float64())]),
        pyarrow.string(),
    )
    for name, kind in zip(COLUMNS, kinds, strict=True):
        table = table.append_column(name, pyarrow.array([row[name] for row in added], kind))
    parquet.write_table(table, path)


def _columns(pyarrow: Any, plain: type[Any]) -> list[tuple[str, Any]]:
    """The columns of a dataclass."""
    hints = get_type_hints(plain)
    return [(known.name, _kind(pyarrow, hints[known.name])) for known in fields(plain)]


def _kind(pyarrow: Any, hint: Any) -> Any:
    simple: dict[Any, Callable[[], Any]] = {int: pyarrow.int64, float: pyarrow.float64, str: pyarrow.string}
    if hint in simple:
        return simple[hint]()
    if is_dataclass(hint) and isinstance(hint, type):
        return pyarrow.struct(_columns(pyarrow, hint))
    if get_origin(hint) in (Union, UnionType):  # None may stand in any column
        return _kind(pyarrow, next(kind for kind in get_args(hint) if kind is not type(None)))
    if get_origin(hint) is tuple:
        return pyarrow.list_(_kind(pyarrow, get_args(hint)[0]))
    return pyarrow.map_(pyarrow.string(), pyarrow.float64())  # numbers by name
