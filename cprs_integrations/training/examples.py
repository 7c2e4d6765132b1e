"""Questions with marked evidence, read from gzipped JSON lines.

One item a line: `question`, `title`, and either `context` (or `context_id`, whose text stands in `NAME.docs.jsonl.gz`) with
`answers [{text, start}]` and `evidence [[start, end], ...]`, or `documents [{title, text}]` with
`evidence_docs [{doc, spans}]`. Offsets are Python string offsets.
"""

import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cprs_integrations.errors import ArgumentError

_SUFFIX = ".jsonl.gz"

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Marked:
    """One document of an example: where its answers and its evidence stand (answers count as evidence)."""

    title: str
    text: str
    answers: Spans = ()
    evidence: Spans = ()


@dataclass(frozen=True)
class Example:
    """A question and the documents that belong to it."""

    question: str
    documents: tuple[Marked, ...]
    source: str

    @property
    def is_held_out(self) -> bool:
        """Whether it belongs to the fiftieth of the texts that calibrates the critic and never trains it."""
        return zlib.crc32(self.documents[0].text[:500].encode(errors="replace")) % 50 == 0


def read_examples(folder: Path, shares: dict[str, int], seed: int = 0) -> list[Example]:
    """Read at most `shares[name]` items of each file `folder/name.jsonl.gz`, drawn at random but in the file's order.

    Without shares all items of every file are read, but for the texts in `NAME.docs.jsonl.gz`.

    Raises:
        ArgumentError: a file is missing, or a line of it is not as described above.
    """
    if not shares:
        files = sorted(folder.glob("*.jsonl.gz"))
        shares = {path.name.removesuffix(_SUFFIX): sys.maxsize for path in files if not path.name.endswith(f".docs{_SUFFIX}")}
    if not shares:
        raise ArgumentError(f"{folder} has no files NAME{_SUFFIX}: a training set is gzipped JSON lines")
    rng = np.random.default_rng(seed)
    examples: list[Example] = []
    for name, share in shares.items():
        found = []
        for number, item in enumerate(_read(folder / f"{name}{_SUFFIX}"), 1):
            try:
                example = _example(item, folder, name)
            except (KeyError, TypeError, AttributeError) as error:
                raise ArgumentError(f"{folder / name}{_SUFFIX}, line {number}: {type(error).__name__}: {error}") from error
            if example:
                found.append(example)
        chosen = sorted(rng.permutation(len(found))[:share])
        examples.extend(found[index] for index in chosen)
    return examples


def read_haystack(folder: Path) -> list[str]:
    """Read the texts of all files `folder/*.jsonl.gz`: each line has a `text`."""
    return [str(row["text"]).replace("\r\n", "\n") for path in sorted(folder.glob("*.jsonl.gz")) for row in _read(path)]


_DOCS: dict[Path, dict[str, str]] = {}


def _read(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ArgumentError(f"{path}, line {number}: not JSON: {error}") from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path} cannot be read: {error}") from error


def _context(item: dict[str, Any], folder: Path, name: str) -> str:
    if item.get("context") is not None:
        return str(item["context"])
    path = folder / f"{name}.docs.jsonl.gz"
    if path not in _DOCS:
        _DOCS[path] = {row["id"]: row["text"] for row in _read(path)}
    return _DOCS[path][item["context_id"]]


def _example(item: dict[str, Any], folder: Path, name: str) -> Example | None:
    if item.get("evidence_kind") == "section" and item.get("n_sections", 1) < 2:
        return None
    if item.get("documents"):
        spans = {row["doc"]: tuple(map(tuple, row["spans"])) for row in item.get("evidence_docs") or ()}
        documents = tuple(
            Marked(row["title"] or "", row["text"], evidence=spans.get(index, ()))
            for index, row in enumerate(item["documents"])
        )
    else:
        if item.get("context") is None and item.get("context_id") is None:
            return None
        answers = tuple((row["start"], row["start"] + len(row["text"])) for row in item["answers"])
        evidence = tuple(map(tuple, item.get("evidence") or ())) or answers
        documents = (Marked(item.get("title") or "", _context(item, folder, name), answers, evidence),)
    if not any(document.evidence for document in documents):
        return None
    return Example(item["question"], documents, name)
