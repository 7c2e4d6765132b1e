"""The pictures of a report, in matplotlib."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cprs_integrations.errors import require
from cprs_integrations.evaluation.measures import mean
from cprs_integrations.evaluation.methods import FULL, OURS
from cprs_integrations.evaluation.run import Row
from cprs_integrations.evaluation.tasks import GRID

_PANELS = 6
_OURS = "#d1495b"


def draw_all(rows: Sequence[Row], folder: Path) -> Iterator[tuple[Path, str]]:
    """Draw what the results allow; yield each picture's file and caption.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", "bench")
    folder.mkdir(parents=True, exist_ok=True)
    draw: dict[str, Callable[[Sequence[Row]], tuple[Any, str] | None]] = {
        "needles": _needles,
        "latency": _latency,
        "methods": _methods,
        "ratios": _ratios,
        "answers": _answers,
    }
    for name, make in draw.items():
        drawn = make(rows)
        if drawn:
            figure, caption = drawn
            figure.savefig(folder / f"{name}.png", dpi=110)
            yield folder / f"{name}.png", caption


def _figure(width: float, height: float, **options: Any) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**options)


def _names(rows: Sequence[Row]) -> list[str]:
    """Methods, ours first, then by falling retention."""
    found = dict.fromkeys(row["method"] for row in rows)
    means = {name: np.mean([row["retention"] for row in rows if row["method"] == name]) for name in found}
    return sorted(found, key=lambda name: (not _is_ours(name), -means[name], name))


def _plain(name: str) -> str:
    """A name of which matplotlib makes no formula."""
    return name.replace("$", r"\$")


def _is_ours(name: str) -> bool:
    return name.split(":")[0] == OURS


def _style(number: int, name: str) -> dict[str, Any]:
    if _is_ours(name):
        return {"color": _OURS, "linewidth": 2.4, "marker": "o", "zorder": 9}
    shades = "30638e edae49 00798c 7a6c5d 8e5ea2 6b9a3a 999999 b5651d 444444 e07be0 56c1c1".split()
    return {"color": f"#{shades[number % len(shades)]}", "linewidth": 1.3, "marker": "."}


def _budgets(rows: Sequence[Row]) -> list[str]:
    kept = {row["budget"]: [] for row in rows if row["budget"]}  # type: dict[str, list[float]]
    for row in rows:
        if row["budget"]:
            kept[row["budget"]].append(row["kept_ratio"])
    return sorted(kept, key=lambda budget: float(np.mean(kept[budget])))


def _needles(rows: Sequence[Row]) -> tuple[Any, str] | None:
    rows = [row for row in rows if row["task"] == GRID and row["budget"]]
    if not rows:
        return None
    budget = _budgets(rows)[0]
    rows = [row for row in rows if row["budget"] == budget]
    lengths, depths = (sorted({row[name] for row in rows}) for name in ("length", "depth"))
    names = _names(rows)[:_PANELS]
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure, axes = _figure(1.2 + 3.6 * columns, 1 + 2.6 * lines, nrows=lines, ncols=columns, squeeze=False)
    image = None
    for place, name in enumerate(names):
        axis = axes.flat[place]
        grid = np.full((len(depths), len(lengths)), np.nan)
        for y, depth in enumerate(depths):
            for x, length in enumerate(lengths):
                cell = (name, length, depth)
                found = [row["retention"] for row in rows if (row["method"], row["length"], row["depth"]) == cell]
                grid[y, x] = np.mean(found) if found else np.nan
        image = axis.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        axis.set_title(_plain(name), fontsize=10)
        axis.set_xticks(range(len(lengths)), [_short(length) for length in lengths])
        axis.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths], fontsize=7)
        axis.set(xlabel="tokens", ylabel="depth")
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    figure.colorbar(image, ax=axes, shrink=0.8, label="retention")
    return figure, f"Is the needle kept? By length of the context and depth of the needle, {budget} kept."


def _latency(rows: Sequence[Row]) -> tuple[Any, str] | None:
    rows = [row for row in rows if row["length"] and row["method"] != FULL]
    if not rows:
        return None
    figure, axis = _figure(7.5, 4.5)
    for number, name in enumerate(_names(rows)):
        lengths = sorted({row["length"] for row in rows if row["method"] == name})
        medians = [
            np.median([sum(row["seconds"].values()) for row in rows if (row["method"], row["length"]) == (name, length)])
            for length in lengths
        ]
        axis.plot(lengths, np.maximum(medians, 1e-5), label=_plain(name), **_style(number, name))
    axis.set(xscale="log", yscale="log", xlabel="tokens of the context", ylabel="seconds")
    every = sorted({row["length"] for row in rows})
    axis.set_xticks(every, [_short(length) for length in every])
    axis.xaxis.set_minor_formatter(lambda *_: "")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure, "Median time to compress an item, by length; vectors in the cache count what computing them took."


def _methods(rows: Sequence[Row]) -> tuple[Any, str] | None:
    return _bars(rows, "retention", "Retention by method")


def _answers(rows: Sequence[Row]) -> tuple[Any, str] | None:
    rows = [row for row in rows if "correct" in row]
    return _bars(rows, "correct", "Accuracy of the LLM's answers by method") if rows else None


def _bars(rows: Sequence[Row], measure: str, title: str) -> tuple[Any, str] | None:
    budgets = _budgets(rows)
    if not budgets:
        return None
    names = _names(rows)
    figure, axes = _figure(2 + 2.6 * len(budgets), 1.2 + 0.32 * len(names), ncols=len(budgets), sharey=True, squeeze=False)
    for axis, budget in zip(axes.flat, budgets, strict=True):
        for y, name in enumerate(names):
            values = [row[measure] for row in rows if row["method"] == name and row["budget"] in (budget, "")]
            if not values:
                continue
            found = mean(values)
            errors = [[max(0.0, found.value - found.low)], [max(0.0, found.high - found.value)]]
            color = _OURS if _is_ours(name) else "#30638e"
            axis.barh(y, found.value, xerr=errors, color=color, ecolor="#222", height=0.7, capsize=2)
        axis.set(xlim=(0, 1.02), title=budget)
        axis.set_yticks(range(len(names)), list(map(_plain, names)), fontsize=8)
        axis.grid(axis="x", alpha=0.3)
    axes.flat[0].invert_yaxis()
    return figure, f"{title}, with 95 % intervals; a panel for each budget."


def _ratios(rows: Sequence[Row]) -> tuple[Any, str] | None:
    rows = [row for row in rows if row["method"] != FULL]
    if not rows:
        return None
    figure, axis = _figure(7.5, 4.5)
    for number, name in enumerate(_names(rows)):
        points = []
        for budget in _budgets(rows):
            found = [row for row in rows if row["method"] == name and row["budget"] == budget]
            if found:
                points.append((np.mean([row["kept_ratio"] for row in found]), np.mean([row["retention"] for row in found])))
        x, y = zip(*sorted(points), strict=True)
        axis.plot(np.maximum(x, 1e-4), y, label=_plain(name), **_style(number, name))
    axis.set(xscale="log", ylim=(-0.02, 1.02), xlabel="share of the context that is kept", ylabel="retention")
    axis.xaxis.set_major_locator(require("matplotlib.ticker", "bench").LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(lambda share, _: f"{share:.3g}")
    axis.xaxis.set_minor_formatter(lambda *_: "")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure, "Retention against the share of the context that was kept, mean of all items."


def _short(tokens: int) -> str:
    return f"{tokens / 2**20:.3g}M" if tokens >= 2**20 else f"{tokens / 1024:.3g}K"
