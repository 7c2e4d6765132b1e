"""The second reading: the best units of a whole context, side by side in one window.

Windows are read one by one, so no sentence is ever compared with the one that comes near it fifty pages on, and no two facts
that belong together are seen together. Once all windows have been read, the best units of all documents are laid into one
more, in their order, and the critic reads them again. What fits one window has been compared already: it is read once.
"""

import numpy as np

from cprs_integrations.context import LongContext, readable
from cprs_integrations.critics.base import Critic
from cprs_integrations.cutting import parted, titles
from cprs_integrations.lexical import Floats, Places
from cprs_integrations.windows import NO_TOKENS, Piece, Prompt, Window, pack

_MOST = 64  # units that are looked at: those that fit the window are far fewer
_AT_ONCE = 12  # units that are tokenized at once: most windows hold fewer
_LEAST = 8  # tokens for which it is not worth looking further


def second_window(
    critic: Critic, context: LongContext, prompt: Prompt, starts: Places, ends: Places, odds: Floats, size: int
) -> Window | None:
    """Lay the best units into one window; None if there are not two that fit.

    Args:
        critic: encodes their texts, once more: nobody has kept their token ids.
        context: the documents.
        prompt: stands before the window.
        starts: [units] where each stands in the context.
        ends: [units] where it ends there.
        odds: [units] how good they are; -inf: not to be read.
        size: tokens of the window, prompt included; it grows for a long prompt, as windows of a first reading do.
    """
    best = [unit for unit in np.argsort(-odds, kind="stable")[:_MOST].tolist() if np.isfinite(odds[unit])]
    if len(best) < 2:
        return None
    places = [(unit, int(starts[unit]), int(ends[unit])) for unit in best]
    pieces: list[Piece] = []
    size = min(critic.limits.longest, max(size, len(prompt.ids) + size // 2))
    room = size - len(prompt.ids)
    while places and room >= _LEAST:
        for piece in _pieces(critic, context, places[:_AT_ONCE], size):
            needed = len(piece.ids) + len(piece.title) + len(critic.separator)
            if needed <= room:
                pieces.append(piece)
                room -= needed
        places = places[_AT_ONCE:]
    if len(pieces) < 2:
        return None
    (window,) = pack(_parted(sorted(pieces, key=lambda piece: piece.unit)), prompt, size, 0, critic.separator)
    return window


def _pieces(critic: Critic, context: LongContext, places: list[tuple[int, int, int]], size: int) -> list[Piece]:
    """Tokenize some units, given as their number, start and end."""
    texts = [readable(context.slice(start, end)) for _, start, end in places]
    documents = [context.document_at(start) for _, start, _ in places]
    shown = titles(critic, context, dict.fromkeys(documents), size)
    encoded = zip(places, documents, texts, parted(critic.encode(texts)), strict=True)
    return [Piece(document, unit, text, ids, shown.get(document, NO_TOKENS)) for (unit, _, _), document, text, ids in encoded]


def _parted(pieces: list[Piece]) -> list[Piece]:
    """Number the pieces so that what does not follow on is parted, as documents are."""
    found: list[Piece] = []
    run, last = 0, (-1, -1)
    for piece in pieces:
        run += last != (piece.document, piece.unit - 1)
        last = (piece.document, piece.unit)
        found.append(Piece(run, piece.unit, piece.text, piece.ids, piece.title))
    return found
