"""The second reading: the best units of a whole context, side by side in one window.

Windows are read one by one, so no sentence is ever compared with the one that comes near it fifty pages on, and no two facts
that belong together are seen together. Once all windows have been read, the best units of all documents are laid into one
more, in their order, and the critic reads them again.
"""

import numpy as np

from cprs_integrations.context import LongContext, readable
from cprs_integrations.critics.base import Critic
from cprs_integrations.cutting import parted, titles
from cprs_integrations.lexical import Floats, Places
from cprs_integrations.windows import NO_TOKENS, Piece, Prompt, Window, pack

_MOST = 64  # units that are looked at: those that fit the window are far fewer
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
        size: tokens of the window, prompt included.
    """
    best = [unit for unit in np.argsort(-odds, kind="stable")[:_MOST].tolist() if np.isfinite(odds[unit])]
    if len(best) < 2:
        return None
    texts = [readable(context.slice(int(starts[unit]), int(ends[unit]))) for unit in best]
    documents = [context.document_at(int(starts[unit])) for unit in best]
    shown = titles(critic, context, dict.fromkeys(documents), size)
    pieces: list[Piece] = []
    room = size - len(prompt.ids)
    for unit, document, text, ids in zip(best, documents, texts, parted(critic.encode(texts)), strict=True):
        title = shown.get(document, NO_TOKENS)
        needed = len(ids) + len(title) + len(critic.separator)
        if needed <= room:
            pieces.append(Piece(document, unit, text, ids, title))
            room -= needed
        if room < _LEAST:
            break
    if len(pieces) < 2:
        return None
    (window,) = pack(_parted(sorted(pieces, key=lambda piece: piece.unit)), prompt, size, 0, critic.separator)
    return window


def _parted(pieces: list[Piece]) -> list[Piece]:
    """Number the pieces so that what does not follow on is parted, as documents are."""
    found: list[Piece] = []
    run, last = 0, (-1, -1)
    for piece in pieces:
        run += last != (piece.document, piece.unit - 1)
        last = (piece.document, piece.unit)
        found.append(Piece(run, piece.unit, piece.text, piece.ids, piece.title))
    return found
