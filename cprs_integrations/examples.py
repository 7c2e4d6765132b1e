"""Questions with marked evidence, read from JSON lines, gzipped or not: what critics are trained on and judged by.

One item a line: `question`, `title`, and either `context` (or `context_id`, whose text stands in `NAME.docs.jsonl.gz`) with
`answers [{text, start}]` and `evidence [[start, end], ...]`, or `documents [{title, text}]` with
`evidence_docs [{doc, spans}]` and the strings that answer it in `answer_text`. Offsets are Python string offsets. An item in
which nothing is marked, no evidence and no answer's place, is left out: nothing could be learned from it, or judged.
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
_TEXT = (".txt", ".md")

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Marked:
    """One document of an example: where its answers and its evidence stand.

    Where no evidence was marked, the answers count as evidence, and `is_marked` is False.
    """

    title: str
    text: str
    answers: Spans = ()
    evidence: Spans = ()
    is_marked: bool = True

    def marks(self) -> list[str]:
        """What answers and evidence say, in lower case: a text that holds some of it is not without evidence."""
        return [self.text[start:end].lower() for start, end in {*self.answers, *self.evidence} if end - start > 2]


@dataclass(frozen=True)
class Example:
    """A question, the documents that belong to it, and the strings that answer it, where it has any."""

    question: str
    documents: tuple[Marked, ...]
    source: str
    answers: tuple[str, ...] = ()

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
        found = read_set(folder / f"{name}{_SUFFIX}")
        chosen = sorted(rng.permutation(len(found))[:share])
        examples.extend(found[index] for index in chosen)
    return examples


def set_name(path: Path) -> str:
    """The name of the set in a file: the file's, without its endings."""
    return path.name.removesuffix(".gz").removesuffix(".jsonl")


def read_set(path: Path) -> list[Example]:
    """Read all items of one file, NAME.jsonl.gz or NAME.jsonl, in which evidence or answers are marked.

    Raises:
        ArgumentError: the file cannot be read, or a line of it is not as described above.
    """
    found = []
    for number, item in _numbered(path):
        try:
            example = _example(item, path.parent, set_name(path))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ArgumentError(f"{path}, line {number}: {type(error).__name__}: {error}") from error
        if example:
            found.append(example)
    return found


def read_haystack(folder: Path) -> list[str]:
    """Read the texts of a folder and its folders: files `*.txt` and `*.md`, and the `text` of each line of `*.jsonl.gz`.

    Raises:
        ArgumentError: there is no such file, or one cannot be read.
    """
    texts: list[str] = []
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        try:
            if path.suffix in _TEXT and path.is_file():
                texts.append(path.read_text(encoding="utf-8"))
            elif path.name.endswith(_SUFFIX):
                texts.extend(str(row["text"]).replace("\r\n", "\n") for row in _read(path))
        except (OSError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ArgumentError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not any(text.strip() for text in texts):
        raise ArgumentError(f"{folder} has no text: files .txt, .md, or .jsonl.gz with a `text` in each line")
    return texts


_DOCS: dict[Path, dict[str, str]] = {}


def _read(path: Path) -> Iterator[dict[str, Any]]:
    return (item for _, item in _numbered(path))


def _numbered(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each item of a file and the number of its line; blank lines are none."""
    code = "utf-8-sig"  # editors of Windows begin files with a mark
    try:
        with gzip.open(path, "rt", encoding=code) if path.suffix == ".gz" else path.open(encoding=code) as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    raise ArgumentError(f"{path}, line {number}: not JSON: {error}") from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path} cannot be read: {error}") from error


def _context(item: dict[str, Any], folder: Path, name: str) -> str:
    if item.get("context") is not None:
        return _text(item, "context")
    path = folder / f"{name}.docs.jsonl.gz"
    if path not in _DOCS:
        _DOCS[path] = {row["id"]: row["text"] for row in _read(path)}
    return _DOCS[path][item["context_id"]]


def _example(item: dict[str, Any], folder: Path, name: str) -> Example | None:
    if item.get("evidence_kind") == "section" and item.get("n_sections", 1) < 2:
        return None
    if item.get("documents"):
        spans: dict[int, Spans] = {}
        for row in item.get("evidence_docs") or ():
            spans[row["doc"]] = spans.get(row["doc"], ()) + tuple(map(tuple, row["spans"]))
        if strange := [doc for doc in spans if doc not in range(len(item["documents"]))]:
            raise ValueError(f"evidence_docs: there is no document {strange[0]!r}")
        documents = tuple(
            Marked(
                row.get("title") or "",
                text := _text(row, "text"),
                evidence=_inside(text, spans.get(index, ()), "evidence_docs"),
            )
            for index, row in enumerate(item["documents"])
        )
        answers = _strings(item.get("answer_text"))
    else:
        if item.get("context") is None and item.get("context_id") is None:
            return None
        text = _context(item, folder, name)
        answers = tuple(_text(row, "text") for row in item.get("answers") or ())
        places = tuple((row["start"], row["start"] + len(row["text"])) for row in item.get("answers") or ())
        for (start, end), answer in zip(_inside(text, places, "answers"), answers, strict=True):
            if text[start:end] != answer:
                raise ValueError(f"answers: at {start} stands {text[start:end]!r}, not {answer!r}")
        marked = _inside(text, tuple(map(tuple, item.get("evidence") or ())), "evidence")
        documents = (Marked(item.get("title") or "", text, places, marked or places, is_marked=bool(marked)),)
    if not any(document.evidence for document in documents):
        return None
    return Example(_text(item, "question"), documents, name, answers)


def _text(row: dict[str, Any], name: str) -> str:
    text = row[name]
    if not isinstance(text, str) or not text:
        raise ValueError(f"{name} must be a text that is not empty, not {text!r}")
    text.encode("utf-8")  # half a character is none
    return text


def _inside(text: str, spans: Spans, name: str) -> Spans:
    for start, end in spans:
        if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(text)):
            raise ValueError(f"{name}: [{start!r}, {end!r}] is no place in a text of {len(text)} characters")
    return spans


def _strings(value: str | list[str] | None) -> tuple[str, ...]:
    answers = (value,) if isinstance(value, str) else tuple(value or ())
    if not all(isinstance(answer, str) and answer for answer in answers):
        raise ValueError(f"answer_text must be a text or a list of texts, none of them empty, not {value!r}")
    return answers
