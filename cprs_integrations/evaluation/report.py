"""Reports of a run: report.md, and report.html with everything in one file; plots are in `plots`."""

import base64
import html
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cprs_integrations.errors import ArgumentError
from cprs_integrations.evaluation.measures import Mean, difference, mean
from cprs_integrations.evaluation.methods import FULL, OURS
from cprs_integrations.evaluation.plots import draw_all
from cprs_integrations.evaluation.run import CONFIG, RESULTS, Row, read_results, read_settings

_OVER = 1.01  # of a budget: more is over it
_FEWEST = 5  # pairs from which an interval by bootstrap says something

MARKDOWN, HTML, PLOTS = "report.md", "report.html", "plots"


@dataclass(frozen=True)
class Table:
    """A table: the names of its columns, and its cells."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A plot, and what it shows."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, tables and pictures."""

    title: str
    parts: Sequence[str | Table | Picture]


def write_report(out: Path) -> tuple[Path, Path]:
    """Write report.md and report.html beside the results of a run.

    Args:
        out: the folder of the run.

    Returns:
        Both files.

    Raises:
        ArgumentError: the folder has no results.
        MissingExtraError: matplotlib is not installed.
    """
    rows = read_results(out / RESULTS)
    if not rows and not (out / CONFIG).exists():
        raise ArgumentError(f"out: {out} has no results yet")
    config = read_settings(out)
    if not rows:
        raise ArgumentError("; ".join([f"out: {out} has no results yet", *map(": ".join, config["skipped"].items())]))
    pictures = [Picture(path, caption) for path, caption in draw_all(rows, out / PLOTS)]
    sections = list(_sections(rows, config, pictures))
    markdown, page = out / MARKDOWN, out / HTML
    markdown.write_text(_markdown(sections, out), encoding="utf-8")
    page.write_text(_html(sections), encoding="utf-8")
    return markdown, page


def groups(rows: Sequence[Row], *names: str) -> dict[tuple[object, ...], list[Row]]:
    """Rows by some of their fields, in the order in which these come first."""
    found: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        found[tuple(row[name] for name in names)].append(row)
    return dict(found)


def baselines(rows: Sequence[Row], budget: str) -> list[str]:
    """The methods within a budget that are not ours, the one of the highest mean retention first."""
    found = groups([row for row in rows if row["budget"] == budget and not _is_ours(row["method"])], "method")
    means = {str(name): _mean(several, "retention") for (name,), several in found.items()}
    return sorted(means, key=lambda name: -means[name])


def paired(rows: Sequence[Row], ours: str, theirs: str, budget: str, measure: str = "retention") -> Mean | None:
    """Mean difference of two methods on the items that both have within a budget."""
    values: dict[str, dict[tuple[object, ...], float]] = {ours: {}, theirs: {}}
    for row in rows:
        if row["method"] in values and row["budget"] == budget:
            values[row["method"]][(row["task"], row["length"], row["item"])] = row[measure]
    shared = sorted(values[ours].keys() & values[theirs].keys())
    if not shared:
        return None
    return difference([values[ours][key] for key in shared], [values[theirs][key] for key in shared])


def _is_ours(method: str) -> bool:
    return method == OURS or method.startswith(f"{OURS}:")


def _budgets(rows: Sequence[Row]) -> list[str]:
    return [budget for (budget,) in groups(rows, "budget") if isinstance(budget, str) and budget]


def _sections(rows: Sequence[Row], config: Row, pictures: Sequence[Picture]) -> Iterator[Section]:
    yield Section("What was run", list(_setting(rows, config)))
    yield Section("Retention", [_RETENTION, _retention_table(rows), *_named(pictures, "methods", "ratios")])
    if len(_lengths(rows)) > 1:
        yield Section("By length", [_LENGTHS, _length_table(rows)])
    yield Section("Against the baselines", [_PAIRED, _paired_table(rows)])
    for budget in _budgets(rows):
        yield Section(f"By task, {budget} kept", [_task_table(rows, budget)])
    if needles := _named(pictures, "needles"):
        yield Section("A needle by length and depth", needles)
    yield Section("Time and memory", [_TIME, _time_table(rows), *_named(pictures, "latency")])
    if any("correct" in row for row in rows):
        yield Section("End to end", [_ANSWERS, _answer_table(rows), *_named(pictures, "answers")])
    if notes := _notes(rows, config):
        yield Section("Notes", [notes])


_RETENTION = (
    "Share of what is asked for that is left in the kept text: RULER's string match; evidence by characters where a set has no "
    "answers. Mean over all items, with its 95 % interval by bootstrap. Precision is the share of kept characters that is "
    "evidence. A method may overshoot its budget: the share that it kept says by how much, and so does the share of items "
    "in which it did (by more than a hundredth of the budget)."
)
_LENGTHS = "Retention, the mean over the items of a length, with its 95 % interval; an empty cell was not run."
_PAIRED = (
    "Differences in retention on the same items, to the best baseline first, then to all others; 95 % interval by bootstrap "
    "over pairs. Sizes are mean shares of the context, ours and theirs: who keeps more has it easier. Chosen after the "
    "fact, the best baseline is flattered a little."
)
_TIME = (
    "Median seconds of an item, on which other work of the machine weighs little. Rankings and scores are made once an item "
    "and reused for other budgets; the seconds are those they took. Vectors that were in the cache count what computing them "
    "took, each sentence once. Memory is what the process took beyond what it held before, at most."
)
_ANSWERS = (
    "What the LLM answers from the kept text: RULER's string match on its answer, the prompt's tokens, median time and cost. "
    "Questions without known answers are not asked; calls that failed are in the notes, and are made again if the run goes on."
)


def _setting(rows: Sequence[Row], config: Row) -> Iterator[str | Table]:
    shown = {
        "version": ", ".join(config["versions"]),
        "machine": "; ".join(config["machines"]),
        "seed": config["seed"],
        "haystack": config["haystack"],
        "questions": ", ".join(config["data"]) or "none",
        "tasks": ", ".join(config["tasks"]),
        "lengths": ", ".join(f"{length:,}" for length in config["lengths"]) + " tokens of the critic that ships",
        "budgets": ", ".join(config["budgets"]),
        "items": f"up to {config['items']} a task and length; the grid of needles has {config['depths']} depths",
        "full context": f"cut to the LLM's window of {config['window']:,} tokens"
        if config["window"] is not None
        else "never cut",
        "LLM": config["llm"] or "none",
    }
    yield Table(["", ""], [[name, str(value)] for name, value in shown.items()])
    yield f"{len(rows):,} results. The results are in {RESULTS}, the settings in {CONFIG}."


def _retention_table(rows: Sequence[Row]) -> Table:
    body = []
    for (budget, method), several in groups(rows, "budget", "method").items():
        over = f"{np.mean(np.array(_sizes(several, str(budget))) > _OVER):.0%}" if budget else ""
        body.append(
            [
                str(budget) or "all",
                str(method),
                str(mean([row["retention"] for row in several])),
                f"{_mean(several, 'evidence'):.3f}",
                f"{_mean(several, 'precision'):.3f}",
                f"{_mean(several, 'kept_ratio'):.2%}",
                f"{_mean(several, 'kept_tokens'):,.0f}",
                _compression(several),
                over,
                str(len(several)),
            ]
        )
    body.sort(key=lambda cells: (_order(cells[0]), -float(cells[2].split()[0])))
    names = ["budget", "method", "retention", "evidence", "precision", "kept", "tokens", "compression", "over budget", "items"]
    return Table(names, body)


def _lengths(rows: Sequence[Row]) -> list[int]:
    return sorted({row["length"] for row in rows if row["length"]})


def _length_table(rows: Sequence[Row]) -> Table:
    lengths = _lengths(rows)
    body = []
    for (budget, method), several in groups([row for row in rows if row["length"]], "budget", "method").items():
        found = {length: [row["retention"] for row in several if row["length"] == length] for length in lengths}
        cells = [str(mean(values)) if values else "" for values in found.values()]
        body.append((-_mean(several, "retention"), [str(budget) or "all", str(method), *cells]))
    body.sort(key=lambda line: (_order(line[1][0]), line[0]))
    return Table(["budget", "method", *(f"{length:,}" for length in lengths)], [cells for _, cells in body])


def _compression(rows: Sequence[Row]) -> str:
    kept = _mean(rows, "kept_ratio")
    return f"{1 / kept:,.1f}x" if kept else "all gone"


def _order(budget: str) -> float:
    return float("inf") if budget == "all" else float(budget.rstrip("% tokens").replace(",", ""))


def _sizes(rows: Sequence[Row], budget: str) -> list[float]:
    """What is kept of each item, as a share of the budget."""
    if budget.endswith("%"):
        return [100 * row["kept_ratio"] / _order(budget) for row in rows]
    return [row["kept_tokens"] / _order(budget) for row in rows]


def _paired_table(rows: Sequence[Row]) -> Table:
    body = []
    ours = [str(name) for (name,) in groups(rows, "method") if _is_ours(str(name))]
    sizes = {key: f"{_mean(several, 'kept_ratio'):.2%}" for key, several in groups(rows, "budget", "method").items()}
    for budget in _budgets(rows):
        for name in ours:
            for other in baselines(rows, budget):
                found = paired(rows, name, other, budget)
                if found:
                    verdict = "ahead" if found.low > 0 else "behind" if found.high < 0 else "level"
                    verdict = verdict if found.count >= _FEWEST else "too few"
                    figures = f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
                    cells = [other, figures, verdict, sizes[budget, name], sizes[budget, other], str(found.count)]
                    body.append([budget, name, *cells])
    return Table(["budget", "method", "baseline", "difference", "", "kept", "kept by it", "items"], body)


def _task_table(rows: Sequence[Row], budget: str) -> Table:
    several = [row for row in rows if row["budget"] in (budget, "")]
    names = [str(name) for (name,) in groups(several, "method")]
    body = []
    for (task, length), found in groups(several, "task", "length").items():
        means = {str(method): _mean(part, "retention") for (method,), part in groups(found, "method").items()}
        best = max((value for name, value in means.items() if name != FULL), default=0.0)
        cells = [_emphasized(means, name, best) for name in names]
        body.append([str(task), f"{length:,}" if length else "as it is", *cells])
    return Table(["task", "tokens", *names], body)


def _emphasized(means: dict[str, float], name: str, best: float) -> str:
    if name not in means:
        return ""
    return f"**{means[name]:.2f}**" if means[name] == best > 0 and name != FULL else f"{means[name]:.2f}"


def _time_table(rows: Sequence[Row]) -> Table:
    body = []
    for (method, length), several in groups(rows, "method", "length").items():
        steps: dict[str, list[float]] = defaultdict(list)
        for row in several:
            for step, seconds in row["seconds"].items():
                steps[step].append(seconds)
        total = np.median([sum(row["seconds"].values()) for row in several])
        told = ", ".join(f"{step} {np.median(values):.3f}" for step, values in steps.items())
        peak = max(row["peak_mb"] for row in several)
        body.append([str(method), f"{length:,}" if length else "as it is", f"{total:.3f}", told, f"{peak:,.0f} MB"])
    return Table(["method", "tokens", "seconds", "by step", "memory"], body)


def _answer_table(rows: Sequence[Row]) -> Table:
    body = []
    for (budget, method), several in groups([row for row in rows if "correct" in row], "budget", "method").items():
        whole = [row["answer_seconds"] + sum(row["seconds"].values()) for row in several]
        cells = [str(budget) or "all", str(method), str(mean([row["correct"] for row in several]))]
        cells += [f"{_mean(several, 'prompt_tokens'):,.0f}", f"{np.median(whole):.2f}", f"{_mean(several, 'cost'):.6f}"]
        body.append([*cells, str(len(several))])
    body.sort(key=lambda cells: (_order(cells[0]), -float(cells[2].split()[0])))
    return Table(["budget", "method", "accuracy", "prompt tokens", "seconds to answer", "cost", "items"], body)


def _notes(rows: Sequence[Row], config: Row) -> Table | None:
    notes = [[name, f"skipped: {reason}"] for name, reason in config["skipped"].items()]
    for (method, note), several in groups(rows, "method", "note").items():
        if note:
            notes.append([str(method), f"{note} ({len(several):,} results)"])
    return Table(["", ""], notes) if notes else None


def _mean(rows: Sequence[Row], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def _named(pictures: Sequence[Picture], *names: str) -> list[Picture]:
    return [picture for picture in pictures if picture.path.stem in names]


def _markdown(sections: Sequence[Section], out: Path) -> str:
    def show(part: str | Table | Picture) -> str:
        if isinstance(part, Table):
            lines = [part.head, ["---"] * len(part.head), *part.rows]
            return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)
        if isinstance(part, Picture):
            return f"![{part.caption}]({part.path.relative_to(out).as_posix()})\n\n*{part.caption}*"
        return part

    return _rendered(sections, "# Benchmark of context compression", lambda title: f"## {title}", show, "\n\n")


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _html(sections: Sequence[Section]) -> str:
    def show(part: str | Table | Picture) -> str:
        if isinstance(part, Table):
            head = "".join(f"<th>{html.escape(cell)}</th>" for cell in part.head)
            body = "".join(f"<tr>{''.join(f'<td>{_bold(cell)}</td>' for cell in row)}</tr>" for row in part.rows)
            return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
        if isinstance(part, Picture):
            data = base64.b64encode(part.path.read_bytes()).decode()
            caption = html.escape(part.caption)
            return (
                f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
            )
        return f"<p>{html.escape(part)}</p>"

    return _rendered(sections, _PAGE, lambda title: f"<h2>{html.escape(title)}</h2>", show, "\n")


def _bold(cell: str) -> str:
    return f"<b>{html.escape(cell[2:-2])}</b>" if cell.startswith("**") and cell.endswith("**") else html.escape(cell)


def _rendered(
    sections: Sequence[Section],
    top: str,
    heading: Callable[[str], str],
    show: Callable[[str | Table | Picture], str],
    gap: str,
) -> str:
    lines = [top]
    for section in sections:
        lines += [heading(section.title), *map(show, section.parts)]
    return gap.join(lines) + "\n"


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Benchmark of context compression</title>
<style>body{font:15px/1.5 system-ui,sans-serif;max-width:75em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;font-size:13px}td,th{border-bottom:1px solid #ddd;padding:.25em .7em;text-align:left}
.wide{overflow-x:auto}img{max-width:100%}figcaption{color:#555}</style><h1>Benchmark of context compression</h1>"""
