"""The shipped critic keeps answers, on real questions: floors a little under what was measured."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from retention import RATIOS, ours, read_items, retained

pytestmark = pytest.mark.data


def test_answers_of_squad_survive(data, engine):
    items = read_items(data / "eval", "squad_v11_dev", 100, seed=1)
    shares = retained(items, [ours(engine)(item) for item in items])
    assert RATIOS[:3] == (0.25, 0.10, 0.05)
    assert shares[0] >= 0.93
    assert shares[1] >= 0.85
    assert shares[2] >= 0.75
