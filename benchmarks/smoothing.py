"""From tags to spans: time a token, which stays the same as the number of tokens grows.

    python benchmarks/smoothing.py [--tokens 10000 100000 1000000]

Random tags (12 % B, 18 % I, 12 % E), the hardest case of the released server's smoothing; for its completion one span in a
hundred tokens of a text without punctuation, and of sentences of 10,000 characters; beside them the engine's own decoding of
the random tags. Where nothing ends a sentence, the places of completed spans are found and their texts are not cut out: each
runs to the end, so together they grow with the square, however they are found.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cprs_integrations.reference import clean, places, smooth, spans
from cprs_integrations.tags import passages, phrases

_UNIT = 30  # tokens of a unit


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def measure(tokens: int) -> dict[str, float]:
    draw = np.random.default_rng(0).choice(4, tokens, p=[0.12, 0.18, 0.58, 0.12])
    tags = "".join("BIOE"[tag] for tag in draw.tolist())
    offsets = [(place, place + 1) for place in range(tokens)]
    text = "a" * tokens
    keep = np.where(draw == 2, 0.1, 0.9).astype(np.float32)
    begin = (draw == 0).astype(np.float32)
    borders = np.append(np.arange(0, tokens, _UNIT), tokens)
    joined = np.ones(len(borders) - 1, dtype=bool)
    seconds = {}
    seconds["smoothing"], smoothed = timed(lambda: smooth(tags))
    seconds["spans"], _ = timed(lambda: clean(spans(smoothed, offsets, text)))
    sparse = ("BIIIIE" + 94 * "O") * (tokens // 100)
    seconds["completion, no punctuation"], _ = timed(lambda: places(sparse, offsets, text, complete_sentence=True))
    sentences = ("a" * 9_999 + ".") * (tokens // 10_000)
    seconds["completion, sentences"], _ = timed(lambda: clean(spans(sparse, offsets, sentences, complete_sentence=True)))
    seconds["engine: phrases"], _ = timed(lambda: phrases(keep, begin, borders))
    seconds["engine: passages"], _ = timed(lambda: passages(keep, begin, borders, joined))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    for tokens in parser.parse_args().tokens:
        shown = "  ".join(f"{name} {value:.3f} s ({value / tokens * 1e9:.0f} ns)" for name, value in measure(tokens).items())
        print(f"{tokens:>9,} tokens  {shown}", flush=True)


if __name__ == "__main__":
    main()
