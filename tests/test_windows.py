import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprs_integrations.errors import ArgumentError
from cprs_integrations.windows import NO_TOKENS, Limits, Piece, Prompt, largest_piece, pack

SEPARATOR = np.array([-1], dtype=np.int32)
PROMPT = Prompt("", "q", np.array([5, 6], dtype=np.int32))


def pieces_of(documents, title=0):
    found, token = [], 0
    for document, sizes in enumerate(documents):
        for size in sizes:
            ids = np.arange(token, token + size, dtype=np.int32)
            heading = np.full(title, -2, dtype=np.int32)
            found.append(Piece(document, len(found), "text", ids, heading))
            token += size
    return found, token


@given(
    st.lists(st.lists(st.integers(1, 12), max_size=12), max_size=5),
    st.integers(20, 60),
    st.integers(0, 4),
    st.integers(0, 3),
)
def test_every_token_is_scored_once_in_order_and_no_window_is_too_large(documents, room, margin, title):
    pieces, total = pieces_of(documents, title)
    windows = list(pack(pieces, PROMPT, max(room, 12 + 2 * margin + title + 1), margin, SEPARATOR))
    scored = np.concatenate([window.ids[window.rows] for window in windows]) if windows else NO_TOKENS
    assert scored.tolist() == list(range(total))
    assert all(len(window.ids) <= max(room, 12 + 2 * margin + title + 1) for window in windows)
    assert [piece.unit for window in windows for piece in window.pieces] == list(range(len(pieces)))
    for window in windows:
        assert window.borders[-1] == len(window.rows)


def test_windows_show_what_stands_before_and_after_in_the_same_document():
    pieces, _ = pieces_of([[8, 8, 8, 8], [4]])
    windows = list(pack(pieces, PROMPT, 16, 3, SEPARATOR))
    assert windows[0].ids.tolist() == [*range(8), 8, 9, 10]
    assert windows[1].ids.tolist() == [5, 6, 7, *range(8, 16), 16, 17, 18]
    assert windows[1].rows.tolist() == list(range(3, 11))
    assert windows[3].ids.tolist()[:11] == [21, 22, 23, *range(24, 32)]
    last = windows[-1].ids.tolist()
    assert last[-4:] == [32, 33, 34, 35]
    assert 31 not in last or -1 in last  # another document comes behind a separator, never as context


def test_documents_in_one_window_are_separated_and_titled():
    pieces, _ = pieces_of([[2], [3]], title=1)
    (window,) = pack(pieces, PROMPT, 40, 4, SEPARATOR)
    assert window.ids.tolist() == [-2, 0, 1, -1, -2, 2, 3, 4]
    assert window.ids[window.rows].tolist() == [0, 1, 2, 3, 4]


def test_packing_is_lazy():
    def endless():
        number = 0
        while True:
            yield Piece(0, number, "", np.arange(5, dtype=np.int32))
            number += 1

    windows = pack(endless(), PROMPT, 20, 2, SEPARATOR)
    assert len([next(windows) for _ in range(100)]) == 100


def test_a_long_prompt_makes_windows_grow_and_too_long_a_one_is_refused():
    limits = Limits(window=100, longest=200, margin=10)
    assert limits.room(Prompt("", "", np.zeros(20, np.int32))) == 80
    assert limits.room(Prompt("", "", np.zeros(120, np.int32))) == 50
    with pytest.raises(ArgumentError, match=r"query and instruction are 160 tokens .* at most 150"):
        limits.room(Prompt("", "", np.zeros(160, np.int32)))


def test_a_piece_of_the_largest_size_fits():
    size = largest_piece(50, 5, 3)
    piece = Piece(0, 0, "", np.arange(size, dtype=np.int32), np.zeros(3, np.int32))
    (window,) = pack([piece], PROMPT, 50, 5, SEPARATOR)
    assert len(window.ids) <= 50 - 5
