"""Whole lines: what is kept of code, logs and tables, with a marker wherever lines were left out.

[39 lines omitted (1-39)]
2024-05-01 12:00:07 ERROR payment 8812 failed
[12 lines omitted (41-52)]
"""

import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, groupby

from cprs_integrations.context import readable
from cprs_integrations.units import is_prose, segment

_LOOK_AT = 20_000  # characters that tell how a text is written
_LONG_LINE = 400  # characters above which a line is a paragraph, or data without line breaks
_MOSTLY = 0.6
_FEWEST_LINES = 4
_CODE = re.compile(r"[][(){}<>=|\\/@#$&*+~^%`:;_]")
_CODE_SHARE = 0.05  # of a line's characters: prose has a colon or a pair of brackets now and then


@dataclass(frozen=True)
class Abridged:
    """A text of which some lines were left out.

    Attributes:
        text: the kept lines, each as it was, and a marker for each gap.
        kept: the kept stretches of whole lines, `source[start:end]`, in order.
        omitted: numbers of the first and the last line of each gap, counted from 1.
    """

    text: str
    kept: tuple[tuple[int, int], ...]
    omitted: tuple[tuple[int, int], ...]


def written_in_lines(text: str) -> bool:
    r"""Whether a text is code, a log, a table, a listing: something whose lines mean something.

    Judged by its first 20,000 characters: most of them stand in lines that are one unit each, or that do not read like
    prose. Lines end at "\n" alone, as editors and grep count them.
    """
    sample = readable(text[:_LOOK_AT])
    units = {(unit.start, unit.end) for unit in segment(sample)}
    lines = total = by_line = 0
    for line, start in _numbered(sample):
        content = line.strip()
        if not content:
            continue
        lines += 1
        total += len(content)
        begin = start + line.index(content)
        if len(content) <= _LONG_LINE and ((begin, begin + len(content)) in units or not _runs_on(content)):
            by_line += len(content)
    return lines >= _FEWEST_LINES and by_line >= _MOSTLY * total


def line_starts(text: str) -> list[int]:
    """Return where each line starts. A line break at the very end begins no further line."""
    return [start for _, start in _numbered(text)]


def abridge(text: str, spans: Iterable[tuple[int, int]]) -> Abridged:
    """Keep the lines that some spans touch; a marker stands for each gap between them.

    A gap that is no longer than its marker is kept instead, so the result is never longer than the text.

    Args:
        text: the whole text.
        spans: places in it that are to be kept; empty ones touch nothing.
    """
    starts = line_starts(text)
    ends = [start - 1 for start in starts[1:]] + [len(text) - text.endswith("\n")]
    is_kept = [False] * len(starts)
    for start, end in spans:
        if start < end:
            for line in range(bisect_right(starts, start) - 1, bisect_right(starts, end - 1)):
                is_kept[line] = True
    for first, last, kept in _runs(is_kept):
        if not kept and ends[last] - starts[first] <= len(_marker(first, last)):
            is_kept[first : last + 1] = [True] * (last + 1 - first)
    parts, stretches, gaps = [], [], []
    for first, last, kept in _runs(is_kept):
        if kept:
            stretches.append((starts[first], ends[last]))
            parts.append(text[starts[first] : ends[last]])
        else:
            gaps.append((first + 1, last + 1))
            parts.append(_marker(first, last))
    return Abridged("\n".join(parts) if gaps else text, tuple(stretches), tuple(gaps))


def _runs_on(line: str) -> bool:
    return is_prose(line) and len(_CODE.findall(line)) < _CODE_SHARE * len(line)


def _numbered(text: str) -> list[tuple[str, int]]:
    lines = text.removesuffix("\n").split("\n")
    return list(zip(lines, accumulate((len(line) + 1 for line in lines), initial=0), strict=False))


def _runs(is_kept: list[bool]) -> list[tuple[int, int, bool]]:
    """First and last line of each stretch that is kept, or not."""
    runs = []
    for kept, lines in groupby(range(len(is_kept)), is_kept.__getitem__):
        numbers = list(lines)
        runs.append((numbers[0], numbers[-1], kept))
    return runs


def _marker(first: int, last: int) -> str:
    if first == last:
        return f"[1 line omitted ({first + 1})]"
    return f"[{last - first + 1} lines omitted ({first + 1}-{last + 1})]"
