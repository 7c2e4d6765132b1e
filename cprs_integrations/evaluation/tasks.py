"""The tasks by their names, and where each gets its items."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cprs_integrations.errors import ArgumentError
from cprs_integrations.evaluation import needles, ruler
from cprs_integrations.evaluation.haystack import Haystack, Rng
from cprs_integrations.evaluation.items import Item
from cprs_integrations.evaluation.questions import OTHERS, AtLength, as_they_are
from cprs_integrations.examples import Example, read_set, set_name
from cprs_integrations.selection import TokenCounter

AS_IS = 0
"""The length of tasks whose items are taken as they are."""

RULER = (*ruler.NEEDLES, "vt", "cwe", "fwe", "qa_1", "qa_2")
LOOK_UPS = ("passkey", "number_string", "kv_retrieval")
GRID = "needle"
_SETS = {"qa_1": ("SQuAD", re.compile(r"squad(?!shifts)")), "qa_2": ("HotpotQA", re.compile(r"hotpot"))}


@dataclass(frozen=True)
class Task:
    """Where items come from.

    Attributes:
        name: what it is called.
        make: makes the item of a number, at a length in tokens, from a source of chance.
        is_sized: whether items are made at a length; else they are taken as they are.
        at_most: how many items there are.
        depths: the depths of a grid, one after another; empty: depth is left to chance.
        digest: of the questions, where they come from a file.
    """

    name: str
    make: Callable[[int, int, Rng], Item]
    is_sized: bool = True
    at_most: int | None = None
    depths: tuple[float, ...] = ()
    digest: str = ""

    def item(self, number: int, tokens: int, seed: int) -> Item:
        """The item of a number: the same for the same seed, whatever else is in the run."""
        source = [seed, *self.name.encode(), tokens, number]
        return self.make(number, tokens, np.random.default_rng(source))

    def numbers(self, items: int) -> range:
        """Numbers of the items of a run: as many as were asked for and there are; whole rounds of a grid."""
        if self.depths:
            return range(-(-items // len(self.depths)) * len(self.depths))
        return range(items if self.at_most is None else min(items, self.at_most))


def sets(data: Path | None) -> dict[str, Path]:
    """The files of questions in a folder, or in its folder eval/, by the names of their sets."""
    if data is None:
        return {}
    folder = data / "eval" if (data / "eval").is_dir() else data
    files = [path for path in sorted(folder.glob("*.jsonl*")) if re.search(r"(?<!\.docs)\.jsonl(\.gz)?$", path.name)]
    if not files:
        raise ArgumentError(f"data: {folder} has no files NAME.jsonl or NAME.jsonl.gz")
    found: dict[str, Path] = {}
    for path in files:
        if found.setdefault(set_name(path), path) != path:
            raise ArgumentError(f"data: {path} has the name of {found[set_name(path)]}, too; keep one, or rename it")
    if taken := sorted({*RULER, *LOOK_UPS, GRID} & found.keys()):
        raise ArgumentError(f"data: {found[taken[0]]} has the name of a task that comes along; rename the file")
    return found


def default_names(data: Path | None) -> list[str]:
    """All tasks, and all sets of a folder."""
    return [*RULER, *LOOK_UPS, GRID, *sets(data)]


def load_task(
    name: str, haystack: Haystack, count: TokenCounter, data: Path | None = None, seed: int = 0, depths: int = 15
) -> Task:
    """Load a task by its name.

    Args:
        name: one of RULER's thirteen (`RULER`), "passkey", "number_string", "kv_retrieval", "needle" (a grid of lengths and
            depths), or the name of a file in `data`, NAME.jsonl or NAME.jsonl.gz.
        haystack: where needles are hidden.
        count: counts tokens.
        data: folder of questions; qa_1 reads the file squad*, qa_2 hotpot*.
        seed: of the order of questions.
        depths: how many depths a grid has, from 0 to 1.

    Raises:
        ArgumentError: there is no such task, or its file is missing or not as described in `cprs_integrations.examples`.
    """
    if name in _SETS:
        return _question_task(name, haystack, count, data, seed)
    if name == GRID:
        places = tuple(np.linspace(0, 1, depths).tolist()) if depths > 1 else (0.5,)

        def hide(number: int, tokens: int, rng: Rng) -> Item:
            return needles.needle(haystack, count, places[number % len(places)], tokens, rng)

        return Task(name, hide, depths=places)
    makers: dict[str, Callable[[int, Rng], Item]] = {
        "vt": lambda tokens, rng: ruler.variables(count, tokens, rng),
        "cwe": lambda tokens, rng: ruler.common_words(haystack, count, tokens, rng),
        "fwe": lambda tokens, rng: ruler.frequent_words(count, tokens, rng),
        "passkey": lambda tokens, rng: needles.pass_key(count, tokens, rng),
        "number_string": lambda tokens, rng: needles.number_string(count, tokens, rng),
        "kv_retrieval": lambda tokens, rng: needles.key_value(count, tokens, rng),
    }
    if name in ruler.NEEDLES:
        kind = ruler.NEEDLES[name]
        return Task(name, lambda _, tokens, rng: ruler.niah(kind, haystack, count, tokens, rng))
    if name in makers:
        make = makers[name]
        return Task(name, lambda _, tokens, rng: make(tokens, rng))
    if name in (found := sets(data)):
        examples = read_set(found[name])
        if not examples:
            raise ArgumentError(f"{found[name]} has no question with marked evidence or answers (`cprs_integrations.examples`)")
        items = as_they_are(examples, len(examples), seed)
        if not items:
            raise ArgumentError(
                f"{found[name]}: no item can be made of it: a short text stands among {OTHERS} others without its answer, so a "
                f"set of short texts needs {OTHERS + 1} different ones at least"
            )

        def take(number: int, tokens: int, rng: Rng) -> Item:
            return replace(items[number], tokens=count(items[number].text))

        return Task(name, take, is_sized=False, at_most=len(items), digest=_digest(examples))
    known = ", ".join(default_names(data))
    raise ArgumentError(
        f"tasks: there is no {name!r}; there are {known}; more are the files NAME.jsonl(.gz) of a --data folder"
    )


def _question_task(name: str, haystack: Haystack, count: TokenCounter, data: Path | None, seed: int) -> Task:
    title, pattern = _SETS[name]
    path = next((path for known, path in sets(data).items() if pattern.match(known)), None)
    if path is None:
        wanted = f"{pattern.pattern.split('(')[0]}*.jsonl or .jsonl.gz"
        raise ArgumentError(f"{name} asks {title}'s questions, which do not ship: give --data, a folder with {wanted}")
    examples = read_set(path)
    source = AtLength(examples, haystack, count, seed)
    if not len(source):
        raise ArgumentError(f"{path}: no question has an answer that stands in its evidence, as {name} needs")
    return Task(name, source.item, at_most=len(source), digest=_digest(examples))


def _digest(examples: Sequence[Example]) -> str:
    return hashlib.sha256(repr(examples).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def lengths_of(task: Task, lengths: Sequence[int]) -> Sequence[int]:
    """The lengths at which a task is run."""
    return lengths if task.is_sized else (AS_IS,)
