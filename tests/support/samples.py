"""Documents and critics that the tests share."""

import zlib

import numpy as np

from cprs_integrations.critics.base import TokenScores
from cprs_integrations.critics.known import KnownCritic

CAPITALS = (
    "Paris is the capital of France. It lies on the Seine. The city has about two million inhabitants.",
    "Bread is made of flour, water and yeast. Knead the dough for ten minutes. Bake it until it is brown.",
    "The Danube flows through Vienna, Budapest and Belgrade. It ends in the Black Sea after 2,850 kilometres.",
    "Mount Everest is 8,849 metres high. Edmund Hillary and Tenzing Norgay reached its summit in May 1953.",
)
QUESTION = "Who first climbed Mount Everest?"
ANSWER = "Tenzing Norgay"


class ScatteredCritic(KnownCritic):
    """Scores that look random and depend on nothing but a token and its neighbours in the window."""

    def __init__(self, seed=0, window=64):
        super().__init__({}, window=window)
        self._seed = seed

    def score(self, windows):
        for window in windows:
            ids = window.ids.astype(np.int64)
            mixed = ids + 31 * np.roll(ids, 1) + 17 * np.roll(ids, -1) + 7919 * self._seed
            hashed = np.array([[zlib.crc32(f"{value}{column}".encode()) for column in range(4)] for value in mixed])
            weights = (hashed[window.rows] % 1000 + 1.0) ** 3
            yield TokenScores(weights / weights.sum(axis=1, keepdims=True))
