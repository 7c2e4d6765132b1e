from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprs_integrations.tags import TokenSpans, best_scores, marks_phrases, passages, phrases


def arrays(keep, begin, borders):
    begin = [0.0] * len(keep) if begin is None else begin
    borders = [0, len(keep)] if borders is None else borders
    return np.array(keep, dtype=np.float32), np.array(begin, dtype=np.float32), np.array(borders)


def pairs(spans):
    return list(zip(spans.first.tolist(), spans.last.tolist(), strict=True))


def phrases_in(keep, begin=None, borders=None):
    return pairs(phrases(*arrays(keep, begin, borders)))


def passages_in(keep, begin=None, borders=None, joined=True):
    found = arrays(keep, begin, borders)
    return pairs(passages(*found, np.array([False] + [joined] * (len(found[2]) - 2), dtype=bool)))


def test_marked_tokens_are_a_phrase_and_half_as_probable_ones_close_its_gaps():
    assert phrases_in([0.0, 0.0, 0.9, 0.3, 0.9, 0.2, 0.0]) == [(2, 5)]


def test_a_new_beginning_splits_a_phrase():
    assert phrases_in([0.0, 0.9, 0.9, 0.9, 0.0], begin=[0, 1, 0, 1, 0]) == [(1, 3), (3, 4)]


def test_where_nothing_is_marked_the_best_of_each_unit_is_a_phrase():
    keep = [0.01, 0.2, 0.01, 0.01, 0.01, 0.001, 0.001, 0.001, 0.04, 0.001]
    assert phrases_in(keep, borders=[0, 5, 10]) == [(1, 2), (8, 9)]


def test_phrases_never_cross_a_unit():
    assert phrases_in([0.9, 0.9, 0.9, 0.9], borders=[0, 2, 4]) == [(0, 2), (2, 4)]


def test_passages_join_units_that_are_marked_as_one():
    borders = [0, 3, 6]
    assert passages_in([0.9] * 6, borders=borders) == [(0, 6)]
    assert passages_in([0.9] * 6, begin=[1, 0, 0, 1, 0, 0], borders=borders) == [(0, 3), (3, 6)]
    assert passages_in([0.9] * 6, borders=borders, joined=False) == [(0, 3), (3, 6)]
    assert passages_in([0.3] * 6, borders=borders) == [(0, 3), (3, 6)]


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ([0.9, 0.8, 0.9, 0.9, 0.0, 0.0, 0.0, 0.0], False),
        ([0.0, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], True),
        # the unit that is marked most decides, not the noise of the other
        ([0.9, 0.8, 0.9, 0.9, 0.1, 0.0, 0.0, 0.0], False),
        ([0.0, 0.9, 0.0, 0.0, 0.1, 0.1, 0.1, 0.1], True),
        ([0.0] * 8, False),
    ],
)
def test_the_marking_itself_says_whether_phrases_or_units_are_marked(keep, expected):
    keep, _, borders = arrays(keep, None, [0, 4, 8])
    assert marks_phrases(keep, borders) is expected


def test_no_tokens_no_spans():
    assert phrases_in([], borders=[0]) == []
    assert passages_in([], borders=[0]) == []
    assert not marks_phrases(np.zeros(0, np.float32), np.array([0]))


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60), st.data())
def test_spans_are_disjoint_in_order_and_every_unit_has_one(keep, data):
    begin = data.draw(st.lists(st.floats(0, 1, width=32), min_size=len(keep), max_size=len(keep)))
    borders = [0, *sorted(data.draw(st.sets(st.integers(1, len(keep)), max_size=8)) - {len(keep)}), len(keep)]
    for spans in (phrases_in(keep, begin, borders), passages_in(keep, begin, borders)):
        assert all(first < last for first, last in spans)
        assert all(before[1] <= after[0] for before, after in pairwise(spans))
        assert all(any(first < high and last > low for first, last in spans) for low, high in pairwise(borders))
    spans = phrases_in(keep, begin, borders)
    assert all(any(low <= first and last <= high for low, high in pairwise(borders)) for first, last in spans)
    assert sum(last - first for first, last in passages_in(keep, begin, borders)) == len(keep)


def test_a_phrase_is_worth_its_best_token():
    spans = TokenSpans(np.array([0, 3]), np.array([2, 4]))
    assert best_scores(np.array([0.5, 1.0, 0.75, 0.25], dtype=np.float32), spans).tolist() == [1.0, 0.25]
    nothing = TokenSpans(np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert best_scores(np.zeros(0, dtype=np.float32), nothing).tolist() == []


def test_a_phrase_goes_on_as_far_as_the_critic_reaches():
    keep, begin, borders = arrays([0.9, 0.1, 0.02, 0.6], None, None)
    assert [pairs(phrases(keep, begin, borders, reach)) for reach in (0.5, 0.1, 0.01)] == [
        [(0, 1), (3, 4)],
        [(0, 2), (3, 4)],
        [(0, 4)],
    ]
