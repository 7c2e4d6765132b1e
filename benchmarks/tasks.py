"""What the small critic is judged on: questions with their documents, and when one counts as kept."""

import gzip
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cprs_integrations.units import segment

OTHERS = 9


@dataclass(frozen=True)
class Item:
    """A question, its documents, and what must survive of them: one of the answers, or the evidence (document, start, end).

    Where the documents have titles of their own, our critic reads them, as it does in a chain; they are never returned.
    """

    question: str
    documents: list[str]
    answers: list[str]
    evidence: list[tuple[int, int, int]]
    titles: list[str] | None = None

    @property
    def words(self) -> int:
        return sum(len(text.split()) for text in self.documents)


@dataclass(frozen=True)
class Task:
    """Items, the ratios at which they are compressed, how they are judged, and what is hoped for at each ratio."""

    name: str
    items: list[Item]
    ratios: tuple[float, ...]
    judge: "Judge"
    goals: tuple[float | None, ...]
    """None: ahead of every baseline."""
    instruction: str | None = None


Judge = Callable[[Item, str], float]


def answered(item: Item, kept: str) -> float:
    """Whether one of the answers stands in the kept text, in any case."""
    return float(any(answer.lower() in kept.lower() for answer in item.answers))


def all_kept(item: Item, kept: str) -> float:
    """Whether all evidence stands in the kept text."""
    return float(all(item.documents[doc][start:end].strip() in kept for doc, start, end in item.evidence))


def share_kept(item: Item, kept: str) -> float:
    """Share of the evidence's characters that stand in the kept text: whole spans, else those of their units that do."""
    total = found = 0
    for doc, start, end in item.evidence:
        text = item.documents[doc]
        total += len(text[start:end].strip())
        if text[start:end].strip() in kept:
            found += len(text[start:end].strip())
            continue
        for unit in segment(text):
            part = text[max(start, unit.start) : min(end, unit.end)].strip()
            found += len(part) if part and part in kept else 0
    return min(1.0, found / total)


def tasks(data: Path, count: int, seed: int, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[Task]:
    """Yield the wanted tasks, one by one: each reads its own set from the folder `data` (eval/, haystack/)."""
    folder = data / "eval"
    kinds: list[tuple[str, Callable[..., list[Item]], Judge, tuple[float, ...], tuple[float | None, ...], str | None]] = [
        ("squad_v11_dev", among_others, answered, (0.10, 0.05, 0.025), (0.985, 0.96, 0.80), None),
        ("squad_v11_dev keywords", among_others, answered, (0.01,), (0.75,), "keywords"),
        ("hotpotqa_dev_sample", several, all_kept, (0.25, 0.15), (0.90, 0.75), None),
        ("squadshifts_heldout", among_others, answered, (0.10, 0.05), (None, None), None),
        ("covidqa_heldout", alone, answered, (0.10, 0.05), (None, None), None),
        ("selqa_dev", among_others, share_kept, (0.10, 0.05), (None, None), None),
        ("cuad_heldout", alone, share_kept, (0.10, 0.05), (None, None), None),
        ("qmsum_val", alone, share_kept, (0.10, 0.05), (None, None), None),
        ("kv_75", alone, answered, (0.05,), (1.0,), None),
        ("xquad_zh", among_others, answered, (0.10, 0.05), (None, None), None),
    ]
    for name, draw, judge, ratios, goals, instruction in kinds:
        if wanted(name):
            yield Task(name, draw(folder, name.partition(" ")[0], count, seed), ratios, judge, goals, instruction)
    if wanted("hidden"):
        items = needles(data / "haystack", max(4, count // 25), seed)
        yield Task("hidden in 128K tokens", items, (0.01,), all_kept, (1.0,))


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    """Read the rows of a set."""
    with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def among_others(folder: Path, name: str, count: int, seed: int) -> list[Item]:
    """Draw questions with their text and 9 others that hold no answer, shuffled.

    The others are of the same title where a set has many texts of one title, else any of the set.
    """
    rows = read(folder, name)
    by_title = len({row["title"] for row in rows}) * (OTHERS + 1) < len({row["context"] for row in rows})
    texts: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        texts[row["title"] if by_title else ""].setdefault(row["context"])
    rng = np.random.default_rng(seed)
    items: list[Item] = []
    for index in rng.permutation(len(rows)):
        row = rows[index]
        answers = [answer["text"] for answer in row["answers"] if len(answer["text"]) >= (1 if name == "xquad_zh" else 3)]
        others = [
            text
            for text in texts[row["title"] if by_title else ""]
            if text != row["context"] and not any(answer.lower() in text.lower() for answer in answers)
        ]
        if not (answers or row["evidence"]) or len(others) < OTHERS:
            continue
        chosen = [row["context"], *(others[place] for place in rng.permutation(len(others))[:OTHERS])]
        order = rng.permutation(len(chosen)).tolist()
        evidence = [(order.index(0), start, end) for start, end in row["evidence"] or ()]
        items.append(Item(row["question"], [chosen[place] for place in order], answers, evidence))
        if len(items) == count:
            break
    return items


def several(folder: Path, name: str, count: int, seed: int) -> list[Item]:
    """Draw questions that bring their documents along."""
    rows = [row for row in read(folder, name) if row.get("evidence_docs")]
    items = []
    for index in np.random.default_rng(seed).permutation(len(rows))[:count]:
        row = rows[index]
        evidence = [(mark["doc"], start, end) for mark in row["evidence_docs"] for start, end in mark["spans"]]
        texts, titles = ([document[key] for document in row["documents"]] for key in ("text", "title"))
        items.append(Item(row["question"], texts, [], evidence, titles))
    return items


def alone(folder: Path, name: str, count: int, seed: int) -> list[Item]:
    """Draw questions with their one long text."""
    rows = [row for row in read(folder, name) if row["answers"] or row["evidence"]]
    shared = folder / f"{name}.docs.jsonl.gz"
    texts = {row["id"]: row["text"] for row in read(folder, f"{name}.docs")} if shared.exists() else {}
    items = []
    for index in np.random.default_rng(seed).permutation(len(rows))[:count]:
        row = rows[index]
        context = row["context"] if row["context"] is not None else texts[row["context_id"]]
        evidence = [(0, start, end) for start, end in row["evidence"] or ()]
        items.append(Item(row["question"], [context], [answer["text"] for answer in row["answers"]], evidence))
    return items


def needles(folder: Path, count: int, seed: int) -> list[Item]:
    """Hide look-up tasks in about 128,000 tokens of books: needles, pass keys, key-value pairs, chains of assignments."""
    rng = np.random.default_rng(seed)
    books = [row["text"].replace("\r\n", "\n") for row in read(folder, "books")]
    items = []
    for number in range(count):
        question, lines = (_needle, _pass_key, _pair, _chain)[number % 4](rng)
        text = ""
        while len(text) < 128_000 * 4.2:
            text += books[rng.integers(len(books))] + "\n\n"
        text = text[: int(128_000 * 4.2)]
        for line, _ in lines:
            place = text.index("\n", int(rng.integers(len(text) - 10_000))) + 1
            text = f"{text[:place]}{line}\n{text[place:]}"
        evidence = [(0, text.index(line), text.index(line) + len(line)) for line, wanted in lines if wanted]
        items.append(Item(question, [text], [], evidence))
    return items


Lines = list[tuple[str, bool]]


def _name(rng: np.random.Generator) -> str:
    return "".join(chr(97 + int(code)) for code in rng.integers(26, size=6))


def _key(rng: np.random.Generator) -> str:
    digits = rng.bytes(16).hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _needle(rng: np.random.Generator) -> tuple[str, Lines]:
    names = [_name(rng) for _ in range(4)]
    lines = [f"One of the special magic numbers for {name} is: {rng.integers(10**6, 10**7)}." for name in names]
    return f"What is the special magic number for {names[0]} mentioned in the provided text?", _first(lines)


def _pass_key(rng: np.random.Generator) -> tuple[str, Lines]:
    key = rng.integers(10**4, 10**5)
    return "What is the pass key?", [(f"The pass key is {key}. Remember it. {key} is the pass key.", True)]


def _pair(rng: np.random.Generator) -> tuple[str, Lines]:
    keys = [_key(rng) for _ in range(30)]
    lines = [f'"{key}": "{_key(rng)}",' for key in keys]
    return f'Extract the value corresponding to the key "{keys[0]}".', _first(lines)


def _chain(rng: np.random.Generator) -> tuple[str, Lines]:
    names, value = [_name(rng).upper()[:5] for _ in range(5)], rng.integers(10**4, 10**5)
    steps = [f"VAR {names[0]} = {value}", *(f"VAR {names[place + 1]} = VAR {names[place]}" for place in range(4))]
    return f"Find all variables that are assigned the value {value} in the text above.", [(step, True) for step in steps]


def _first(lines: list[str]) -> Lines:
    return [(line, place == 0) for place, line in enumerate(lines)]
