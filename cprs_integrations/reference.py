"""Tags to spans exactly as the released QwenLong-CPRS server does it, to compare with what it returns.

Time is linear in the tokens, and for the texts in the characters returned: completed spans may overlap, so these can be many
where the places alone (`places`) are few.

The engine does not go this way (`cprs_integrations.tags` does): rules here, such as a last character that is cut off, are the
reference's own (github.com/Tongyi-Zhiwen/QwenLong-CPRS, commit d67742a).
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

MAX_GAP = 20
"""Distance of two tags, in tokens, from which smoothing does not close the gap between them."""

_MARK = re.compile("[BIE]")
_SPAN = re.compile("[BIE][IE]*")
_TERMINATOR = re.compile('[.。：？！"”?!\n]')
_NOISE = "（），。！"


class ReferenceSpan(NamedTuple):
    """A span as the server returns it: the text is stripped, the offsets are not."""

    text: str
    start: int
    end: int


def smooth(tags: str) -> str:
    """Close the gaps after a B: everything up to the next tag becomes I if that is less than `MAX_GAP` tokens away.

    An I that is reached so goes on reaching; an E or a B ends it, and I and E never begin it.

    Args:
        tags: one letter of B, I, O, E a token, over all windows of a document.
    """
    smoothed = list(tags)
    anchor = None
    for match in _MARK.finditer(tags):
        place = match.start()
        reached = anchor is not None and place - anchor < MAX_GAP
        if anchor is not None and reached:
            smoothed[anchor + 1 : place] = "I" * (place - anchor - 1)
        anchor = place if match[0] == "B" or (match[0] == "I" and reached) else None
    return "".join(smoothed)


def places(
    tags: str,
    offsets: Sequence[tuple[int, int]],
    context: str,
    *,
    min_keyword_len: int = 4,
    complete_sentence: bool = False,
) -> list[tuple[int, int]]:
    """Find where spans start and end: a span is a tag other than O and all I and E after it.

    Args:
        tags: smoothed, one letter a token.
        offsets: start and end of each token in `context`.
        context: the document.
        min_keyword_len: spans of so many tokens or fewer are left out.
        complete_sentence: widen spans to the sentence ends around them.
    """
    ends = [match.start() for match in _TERMINATOR.finditer(context)] if complete_sentence else []
    found, before = [], -1
    for match in _SPAN.finditer(tags):
        first, last = match.span()
        start, end = offsets[first][0], offsets[last][0] if last < len(tags) else len(context)
        if last - first > min_keyword_len:
            if complete_sentence:
                start, end = _completed(start, end, before, ends, len(context))
            found.append((start, end))
        before = end
    return found


def spans(tags: str, offsets: Sequence[tuple[int, int]], context: str, **options: Any) -> list[ReferenceSpan]:
    """Decode smoothed tags to spans with their texts. Arguments as in `places`."""
    found = places(tags, offsets, context, **options)
    return [ReferenceSpan(context[start:end].strip(), start, end) for start, end in found]


def _completed(start: int, end: int, before: int, ends: list[int], length: int) -> tuple[int, int]:
    """Move a start back to just after a terminator, not beyond the span before; and an end on to just after one."""
    if start > before:
        place = bisect_left(ends, start)
        start = max(ends[place - 1] + 1 if place else 0, before)
    if end < length - 1:
        place = bisect_left(ends, end - 1)
        end = min(ends[place] + 1 if place < len(ends) else length, length - 1)
    return start, end


def clean(found: Iterable[ReferenceSpan]) -> list[ReferenceSpan]:
    """Leave out spans that are blank or a few signs of punctuation."""
    return [span for span in found if span.text.strip() and span.text not in _NOISE]
