"""Needles at chosen depths, and the look-ups of InfiniteBench (arXiv 2402.13718): pass key, number string, key-value pairs."""

import numpy as np

from cprs_integrations.evaluation.haystack import LINE, Haystack, Rng, plant
from cprs_integrations.evaluation.items import Item, fit
from cprs_integrations.evaluation.ruler import NOISE
from cprs_integrations.evaluation.words import draw
from cprs_integrations.selection import TokenCounter

_CITIES = """
Lisbon Tbilisi Montevideo Reykjavik Nairobi Kyoto Valparaiso Gdansk Marrakesh Hobart Antwerp Oaxaca Bergen Samarkand
""".split()
_TREATS = (
    "eat a sandwich and sit in the park on a sunny day",
    "climb the old lighthouse before breakfast",
    "rent a wooden boat and row to the island",
    "listen to the brass band under the railway bridge",
    "drink cold plum juice at the flower market",
    "take the cable car up at dusk and walk back down",
    "learn to fold dumplings from the baker's aunt",
    "watch the swifts return to the clock tower",
)


def needle(haystack: Haystack, count: TokenCounter, depth: float, tokens: int, rng: Rng) -> Item:
    """Hide one sentence about a city at a depth, from 0 (first) to 1 (last), after the sentence that stands there."""
    seed = int(rng.integers(2**32))

    def build(size: int) -> Item:
        rng = np.random.default_rng(seed)
        text = haystack.text(size, rng)
        city, treat = _CITIES[rng.integers(len(_CITIES))], _TREATS[rng.integers(len(_TREATS))]
        text, ((start, end),) = plant(text, [f"The best thing to do in {city} is to {treat}."], [depth])
        return Item(f"What is the best thing to do in {city}?", (text,), (treat,), ((0, start, end),), depth=depth)

    return fit(build, tokens, count, haystack.guess(tokens, count))


def pass_key(count: TokenCounter, tokens: int, rng: Rng) -> Item:
    """Hide a pass key of five digits in noise."""
    key = str(rng.integers(10**4, 10**5))
    line = f"The pass key is {key}. Remember it. {key} is the pass key."
    return _in_noise(line, "What is the pass key?", key, count, tokens, rng)


def number_string(count: TokenCounter, tokens: int, rng: Rng) -> Item:
    """Hide a sequence of ten digits, each of two to four in a row, in noise."""
    digits = ""
    while len(digits) < 10:
        digits += str(rng.integers(10)) * int(rng.integers(2, 5))
    number = digits[:10]
    line = f"The sequence of digits is {number}. Remember it. {number} is the sequence of digits."
    return _in_noise(line, "What is the sequence of digits?", number, count, tokens, rng)


def _in_noise(line: str, question: str, answer: str, count: TokenCounter, tokens: int, rng: Rng) -> Item:
    depth = float(rng.random())

    def build(size: int) -> Item:
        text, ((start, end),) = plant("\n".join([NOISE] * size), [line], [depth], LINE)
        return Item(question, (text,), (answer,), ((0, start, end),), depth=start / len(text))

    return fit(build, tokens, count, max(1, tokens // 24))


def key_value(count: TokenCounter, tokens: int, rng: Rng) -> Item:
    """Write one JSON object, in one line, whose keys and values are uuids; one value is asked for."""
    seed = int(rng.integers(2**32))

    def build(size: int) -> Item:
        rng = np.random.default_rng(seed)
        codes = draw(rng, "uuid", 2 * size)
        wanted = int(rng.integers(size))
        pairs = [f'"{key}": "{value}"' for key, value in zip(codes[:size], codes[size:], strict=True)]
        text = "{" + ", ".join(pairs) + "}"
        start = text.index(pairs[wanted])
        question = f'Extract the value corresponding to the specified key in the JSON object below. Key: "{codes[wanted]}"'
        span = (0, start, start + len(pairs[wanted]))
        return Item(question, (text,), (codes[size + wanted],), (span,), depth=start / len(text))

    return fit(build, tokens, count, max(1, tokens // 60))
