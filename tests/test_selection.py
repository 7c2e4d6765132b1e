"""The best part of a unit that does not fit, beside the definition of it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cprs_integrations.context import LongContext
from cprs_integrations.selection import Closeup, _Borders


def by_definition(text, borders, keep, limit):
    """What the stretch worth most is worth, of those between two borders that fit without the white space at their end."""
    fitting = [
        sum(keep[start:end])
        for start in borders
        for end in borders
        if end > start and (length := len(text[start:end].rstrip())) and length <= limit
    ]
    return max(fitting, default=None)


@given(st.text("ab .\n", min_size=2, max_size=40), st.data())
def test_the_best_stretch_is_worth_most_of_those_that_fit(text, data):
    borders = sorted(data.draw(st.sets(st.integers(0, len(text)), min_size=1)))
    keep = data.draw(st.lists(st.integers(0, 8).map(lambda n: n / 8), min_size=len(text), max_size=len(text)))
    limit = data.draw(st.integers(0, len(text)))
    before = "another document. "
    ends = np.arange(1, len(text) + 1) + len(before)
    closeup = Closeup(0.5, np.array([len(before)]), ends - 1, ends, np.array(keep))  # a token a character
    places = [border + len(before) for border in borders]
    found = _Borders.of(LongContext.of([before, text]), places, closeup).best_stretch(limit)
    wanted = by_definition(text, borders, keep, limit)
    if wanted is None:
        assert found is None
        return
    worth, start, end = found
    assert worth == wanted
    assert start in places
    assert 0 < end - start <= limit
    assert not text[end - 1 - len(before)].isspace()
