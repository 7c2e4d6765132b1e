"""The runner: every task at every length, by every method, within every budget; one line of JSON a result.

A run that was stopped goes on where it was: what stands in results.jsonl is not done again, but for what failed. Items depend
on the seed, the task, the length and their number alone, so a run can be widened (more items, lengths, methods, budgets) by
running it again.
"""

import json
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from cprs_integrations.engine import CPRSEngine
from cprs_integrations.errors import ArgumentError, MissingExtraError
from cprs_integrations.evaluation import measures, methods, tasks
from cprs_integrations.evaluation.haystack import Haystack, named
from cprs_integrations.evaluation.items import Budget, Item, Kept, Method
from cprs_integrations.evaluation.llm import Reader
from cprs_integrations.evaluation.methods import FULL, Tools
from cprs_integrations.evaluation.tasks import Task

RESULTS, CONFIG, CACHE = "results.jsonl", "run.json", "vectors.sqlite"
_IDENTITY = ("seed", "haystack_digest", "depths", "window", "llm", "prices")
"""What cannot change within the results of one folder."""
_LISTS = ("versions", "machines", "data", "tasks", "lengths", "methods", "budgets")
_DIGESTS = ("questions", "critics")
"""Both are added to, run by run; but what has a digest must not change."""
_KEY = ("task", "length", "item", "method", "budget")
"""What names a result."""
_MEASURES = ("depth", "tokens", "retention", "evidence", "precision", "kept_ratio", "kept_tokens", "seconds", "peak_mb", "note")

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        tasks: names (`tasks.load_task`); empty: all for which there is data.
        lengths: in tokens of the critic that ships.
        methods: names (`methods.load_method`); empty: all that are installed, and ours with the critic that ships unless
            `critics` has others.
        budgets: how much may be kept.
        items: of each task at each length; the grid of needles rounds up to all its depths.
        seed: decides what is drawn.
        depths: of the grid of needles.
        data: folder of questions (`cprs_integrations.examples`).
        haystack: folder of texts in which needles are hidden; None: CPython's own documents.
        critics: our method with each of these, besides `methods`.
        window: tokens that the LLM reads: the full context is cut to it; None: any number.
        prices: of a million tokens of prompts and of answers.
    """

    tasks: Sequence[str] = ()
    lengths: Sequence[int] = (4_096, 16_384, 65_536, 131_072)
    methods: Sequence[str] = ()
    budgets: Sequence[Budget] = (Budget(0.02), Budget(0.05), Budget(0.1), Budget(0.25))
    items: int = 20
    seed: int = 0
    depths: int = 15
    data: Path | None = None
    haystack: Path | None = None
    critics: Sequence[str] = ()
    window: int | None = None
    prices: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ArgumentError(f"seed must be a whole number from 0, not {self.seed!r}")
        for name in ("items", "depths"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} must be a whole number from 1, not {getattr(self, name)!r}")
        if not self.lengths or min(self.lengths) < 1:
            raise ArgumentError(f"lengths must be numbers of tokens from 1, not {list(self.lengths)!r}")
        if self.window is not None and self.window < 1:
            raise ArgumentError(f"window must be a number of tokens from 1, not {self.window!r}")
        if min(self.prices) < 0:
            raise ArgumentError(f"prices must be numbers from 0, not {self.prices!r}")
        if not self.budgets:
            raise ArgumentError("budgets: give at least one")


@dataclass(frozen=True)
class _Ready:
    """What a plan comes to: what could be loaded, and why the rest could not."""

    tasks: dict[str, Task]
    methods: dict[str, Method]
    skipped: dict[str, str] = field(default_factory=dict)


def run(
    plan: Plan,
    out: Path,
    *,
    own_methods: Mapping[str, Method] | None = None,
    llm: Any = None,
    llm_name: str = "",
    show_progress: bool = False,
) -> Path:
    """Run a plan, or what is left of it, and write results.jsonl, run.json and the cache of vectors to a folder.

    Args:
        plan: what to run.
        out: the folder; it is made.
        own_methods: methods of yours, by name, besides those of the plan.
        llm: answers from what is kept (`llm.Reader`); None: nothing is asked.
        llm_name: what reports call it; "": its class.
        show_progress: show a progress bar.

    Returns:
        The file of results.

    Raises:
        ArgumentError: a task or a method that was named cannot be loaded, or the folder has another run.
        MissingExtraError: a method that was named needs a package that is not installed.
    """
    out.mkdir(parents=True, exist_ok=True)
    count = CPRSEngine.from_pretrained().count_tokens
    haystack = Haystack.of(plan.haystack)
    path = out / RESULTS
    named = (llm_name or type(llm).__name__) if llm is not None else ""
    with closing(Tools(count, out / CACHE, plan.window)) as tools:
        ready = _ready(plan, haystack, tools, own_methods or {})
        reader = Reader(llm, count) if llm is not None else None
        rows = read_results(path)
        settings = _settings(plan, ready, haystack, named)
        _note(settings, out, is_begun=bool(rows))
        jobs = _jobs(plan, ready, {_key(row) for row in rows if not row.get("failed")})
        with (
            path.open("a", encoding="utf-8") as lines,
            tqdm(total=sum(len(job.cells) for job in jobs), unit="result", desc="bench", disable=not show_progress) as bar,
        ):
            for job in jobs:
                bar.set_postfix_str(f"{job.task.name}, {job.length:,} tokens" if job.length else job.task.name)
                try:
                    item = job.task.item(job.number, job.length, plan.seed)
                except ArgumentError as error:
                    ready.skipped[f"{job.task.name}, {job.length:,} tokens, item {job.number}"] = str(error)
                    continue
                for row in _rows(job, item, ready, plan, tools, reader):
                    lines.write(json.dumps(row) + "\n")
                    lines.flush()
                    bar.update()
        _note(settings, out, is_begun=True)
    return path


def read_results(path: Path) -> list[Row]:
    """Read results, of each the last; a last line that was cut off is dropped from the file.

    Raises:
        ArgumentError: another line is damaged.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        data = data[: data.rfind(b"\n") + 1]
        with path.open("r+b") as file:
            file.truncate(len(data))
    rows: dict[tuple[Any, ...], Row] = {}
    for number, line in enumerate(data.splitlines(), 1):
        try:
            row = json.loads(line)
            if missing := [name for name in (*_KEY, *_MEASURES) if name not in row]:
                raise ValueError(f"it has no {', '.join(missing)}")
            rows.pop(_key(row), None)
            rows[_key(row)] = row
        except (ValueError, TypeError) as error:
            way_out = "delete the line to have it done again"
            raise ArgumentError(f"{path}, line {number} is damaged ({error}); {way_out}") from error
    return list(rows.values())


def read_settings(out: Path) -> Row:
    """Read what was run.

    Raises:
        ArgumentError: it cannot be read.
    """
    path = out / CONFIG
    try:
        settings: Row = json.loads(path.read_bytes())
        kinds = {"items": int, **dict.fromkeys(_LISTS, list), **dict.fromkeys((*_DIGESTS, "skipped"), dict)}
        wrong = [name for name, kind in kinds.items() if not isinstance(settings[name], kind)]
        if wrong := [*wrong, *(name for name in _IDENTITY if name not in settings)]:
            raise ValueError(f"not as it was written: {', '.join(wrong)}")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ArgumentError(f"out: {path} cannot be read ({error}); without it nobody knows what {RESULTS} holds") from error
    return settings


def _ready(plan: Plan, haystack: Haystack, tools: Tools, own: Mapping[str, Method]) -> _Ready:
    """Load tasks and methods; what was named must be there, what was not is skipped with a reason."""
    loaded: dict[str, Task] = {}
    ready: dict[str, Method] = {}
    skipped: dict[str, str] = {}
    for name in plan.tasks or tasks.default_names(plan.data):
        try:
            loaded[name] = tasks.load_task(name, haystack, tools.count, plan.data, plan.seed, plan.depths)
        except ArgumentError as error:
            if plan.tasks:
                raise
            skipped[name] = str(error)
    for name in methods.names_of(plan.methods, plan.critics):
        try:
            ready[name] = methods.load_method(name, tools)
        except (ArgumentError, MissingExtraError) as error:
            if plan.methods or name.startswith(methods.OURS):
                raise
            skipped[name] = str(error)
    return _Ready(loaded, {**ready, **own}, skipped)


@dataclass(frozen=True)
class _Job:
    """What is left to do with one item."""

    task: Task
    length: int
    number: int
    cells: list[tuple[str, Budget]]


def _jobs(plan: Plan, ready: _Ready, done: set[tuple[Any, ...]]) -> list[_Job]:
    jobs = []
    for task in ready.tasks.values():
        for length in dict.fromkeys(tasks.lengths_of(task, plan.lengths)):
            for number in task.numbers(plan.items):
                cells = [
                    (name, budget)
                    for name, budget in _cells(plan, ready)
                    if (task.name, length, number, name, _budget_name(name, budget)) not in done
                ]
                if cells:
                    jobs.append(_Job(task, length, number, cells))
    return jobs


def _cells(plan: Plan, ready: _Ready) -> Iterator[tuple[str, Budget]]:
    budgets = list({str(budget): budget for budget in plan.budgets}.values())
    for name in ready.methods:
        for budget in budgets[:1] if name == FULL else budgets:
            yield name, budget


def _rows(job: _Job, item: Item, ready: _Ready, plan: Plan, tools: Tools, reader: Reader | None) -> Iterator[Row]:
    head = {"task": job.task.name, "length": job.length, "item": job.number, "depth": item.depth, "tokens": item.tokens}
    for name, budget in job.cells:
        measured = _measure(ready.methods[name], item, budget, tools, reader, plan.prices)
        yield {**head, "method": name, "budget": _budget_name(name, budget), **measured}


def _budget_name(method: str, budget: Budget) -> str:
    return "" if method == FULL else str(budget)


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in _KEY)


def _measure(
    method: Method, item: Item, budget: Budget, tools: Tools, reader: Reader | None, prices: tuple[float, float]
) -> Row:
    """One result: what a method keeps of an item, measured, and what an LLM makes of it."""
    began = time.perf_counter()
    memory = measures.PeakMemory()
    failures = []
    try:
        with memory:
            found = method(item, budget)
            kept = _checked(found)
    except Exception as error:  # noqa: BLE001 - of any package: it counts as nothing kept, and stands in the report
        kept = Kept("")
        failures.append(_told("failed", error))
    seconds = {name: round(value, 6) for name, value in (kept.seconds or {"all": time.perf_counter() - began}).items()}
    row: Row = {
        "retention": measures.retention(item, kept.text),
        "evidence": measures.evidence_kept(item, kept.text),
        "precision": measures.precision(item, kept.text),
        "kept_ratio": len(kept.text) / max(1, len(item.text)),
        "kept_tokens": item.tokens if kept.text == item.text else tools.count(kept.text),
        "seconds": seconds,
        "peak_mb": round(memory.megabytes, 1),
    }
    if reader is not None and item.answers:
        try:
            answer = reader.answer(item, kept.text)
        except Exception as error:  # noqa: BLE001 - of any LLM: one call that fails must not end a run of hours
            failures.append(_told("llm failed", error))
        else:
            row |= {
                "answer": answer.text,
                "correct": measures.matched(item, answer.text),
                "prompt_tokens": answer.prompt_tokens,
                "answer_seconds": answer.seconds,
                "cost": answer.cost(prices),
            }
    return {**row, "note": "; ".join(filter(None, [kept.note, *failures])), "failed": bool(failures)}


def _checked(found: object) -> Kept:
    """What a method returned, as JSON can hold it."""
    kept = found if isinstance(found, Kept) else Kept(found)  # type: ignore[arg-type]
    if not isinstance(kept.text, str):
        raise TypeError(f"a method returns Kept or str, not {type(kept.text).__name__}")
    return Kept(kept.text, {str(step): float(seconds) for step, seconds in dict(kept.seconds).items()}, str(kept.note))


def _told(what: str, error: Exception) -> str:
    return f"{what}: {type(error).__name__}: {error}"[:500]


def _settings(plan: Plan, ready: _Ready, haystack: Haystack, llm: str) -> Row:
    return {
        "versions": [version("cprs_integrations")],
        "machines": [f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}"],
        "seed": plan.seed,
        "haystack": haystack.name,
        "haystack_digest": haystack.digest,
        "depths": plan.depths,
        "window": plan.window,
        "llm": llm,
        "data": [named(plan.data)] if plan.data else [],
        "questions": {task.name: task.digest for task in ready.tasks.values() if task.digest},
        "critics": {name: digest for name in ready.methods if (digest := methods.digest_of(name))},
        "tasks": list(ready.tasks),
        "lengths": list(plan.lengths),
        "methods": list(ready.methods),
        "budgets": [str(budget) for budget in plan.budgets],
        "items": plan.items,
        "prices": list(plan.prices),
        "skipped": ready.skipped,
    }


def _note(settings: Row, out: Path, *, is_begun: bool) -> None:
    """Write down what is run, and refuse to mix it with the results of something else."""
    if is_begun:
        before = read_settings(out)
        was = [f"{name} {before[name]!r}, not {settings[name]!r}" for name in _IDENTITY if before[name] != settings[name]]
        for kind in _DIGESTS:
            known = before[kind]
            was += [f"other {kind}: {name}" for name, digest in settings[kind].items() if known.get(name, digest) != digest]
        if was:
            raise ArgumentError(f"out: {out} has another run ({', '.join(was)}); give another folder, or run it as it was")
        settings = {**settings, **{kind: {**before[kind], **settings[kind]} for kind in _DIGESTS}}
        settings |= {name: list(dict.fromkeys([*before[name], *settings[name]])) for name in _LISTS}
        settings["items"] = max(before["items"], settings["items"])
        settings["skipped"] = {
            name: why
            for name, why in {**before["skipped"], **settings["skipped"]}.items()
            if name not in settings["tasks"] + settings["methods"]
        }
    written = out / f"{CONFIG}.new"
    written.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    written.replace(out / CONFIG)


def _processor() -> str:
    """What the processor is called, where the system tells."""
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()
