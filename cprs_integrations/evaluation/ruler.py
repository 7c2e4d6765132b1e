"""RULER's tasks, at any length (arXiv 2404.06654): needles, chains of variables, common and frequent words.

QA-1 and QA-2, its tasks from SQuAD and HotpotQA, are in `questions`. The definitions are the paper's, but for these: a length
counts the context alone, not the question or room for an answer; no solved example goes before; and keys and values never
stand in the haystack by chance. Seeds, not the original's files, decide what is drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np

from cprs_integrations.evaluation.haystack import LINE, SENTENCE, Haystack, Rng, plant
from cprs_integrations.evaluation.items import Item, fit
from cprs_integrations.evaluation.words import Kind, distinct, draw, invented, letters
from cprs_integrations.selection import TokenCounter

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_DEPTHS = np.linspace(0, 1, 40)  # where needles may be hidden in an essay

_HOPS = 4
_COMMON, _COMMON_TIMES, _OTHER_TIMES = 10, 30, 3
_ALPHA, _ZETA = 2.0, math.pi**2 / 6  # of the Zipf distribution of frequent words, and its sum over all ranks
_FREQUENT = 3


@dataclass(frozen=True)
class Needles:
    """A kind of needles in a haystack.

    Attributes:
        haystack: "noise" is one line again and again, "essay" a text, "needles" other needles.
        key, value: what keys and values are.
        keys: how many keys are hidden; one is asked for, unless `queries` says more.
        values: how many values each key has.
        queries: how many keys are asked for.
    """

    haystack: Literal["noise", "essay", "needles"]
    key: Kind = "word"
    value: Kind = "number"
    keys: int = 1
    values: int = 1
    queries: int = 1


NEEDLES = {
    "niah_single_1": Needles("noise"),
    "niah_single_2": Needles("essay"),
    "niah_single_3": Needles("essay", value="uuid"),
    "niah_multikey_1": Needles("essay", keys=4),
    "niah_multikey_2": Needles("needles"),
    "niah_multikey_3": Needles("needles", key="uuid", value="uuid"),
    "niah_multivalue": Needles("essay", values=4),
    "niah_multiquery": Needles("essay", keys=4, queries=4),
}


def niah(kind: Needles, haystack: Haystack, count: TokenCounter, tokens: int, rng: Rng) -> Item:
    """Hide needles, "One of the special magic numbers for KEY is: VALUE.", in an essay, in noise, or among their like."""
    seed = int(rng.integers(2**32))

    def build(size: int) -> Item:
        rng = np.random.default_rng(seed)
        if kind.haystack == "needles":
            return _among_needles(kind, rng, size)
        is_noise = kind.haystack == "noise"
        text = "\n".join([NOISE] * size) if is_noise else haystack.text(size, rng)
        keys = draw(rng, kind.key, kind.keys, text)
        values = draw(rng, kind.value, kind.keys * kind.values, text)
        pairs = [(keys[number // kind.values], value) for number, value in enumerate(values)]
        depths = rng.random(len(pairs)) if is_noise else rng.choice(_DEPTHS, len(pairs), replace=False)
        statements = [_needle(kind, *pair) for pair in pairs]
        text, spans = plant(text, statements, depths.tolist(), LINE if is_noise else SENTENCE)
        asked = [keys[number] for number in rng.choice(len(keys), kind.queries, replace=False)]
        wanted = [number for number, (key, _) in enumerate(pairs) if key in asked]
        answers = tuple(values[number] for number in wanted)
        return _item(text, _niah_question(kind, asked), answers, [spans[number] for number in wanted])

    first = {"noise": tokens // 24, "essay": haystack.guess(tokens, count), "needles": tokens // 24}[kind.haystack]
    return fit(build, tokens, count, max(1, first))


def _among_needles(kind: Needles, rng: Rng, size: int) -> Item:
    keys, values = draw(rng, kind.key, size), draw(rng, kind.value, size)
    wanted = int(rng.integers(size))
    statements = [_needle(kind, *pair) for pair in zip(keys, values, strict=True)]
    start = sum(len(statement) + 1 for statement in statements[:wanted])
    span = (start, start + len(statements[wanted]))
    return _item("\n".join(statements), _niah_question(kind, [keys[wanted]]), (values[wanted],), [span])


def _needle(kind: Needles, key: str, value: str) -> str:
    return f"One of the special magic {kind.value}s for {key} is: {value}."


def _niah_question(kind: Needles, asked: Sequence[str]) -> str:
    names = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}"
    if kind.queries * kind.values == 1:
        return f"What is the special magic {kind.value} for {names} mentioned in the provided text?"
    return f"What are all the special magic {kind.value}s for {names} mentioned in the provided text?"


def variables(count: TokenCounter, tokens: int, rng: Rng) -> Item:
    """Hide a chain of assignments in noise: one value, handed on from variable to variable four times."""
    seed = int(rng.integers(2**32))

    def build(size: int) -> Item:
        rng = np.random.default_rng(seed)
        names = distinct(lambda: letters(rng, 5, "A"), _HOPS + 1, NOISE.upper())
        value = str(rng.integers(10**4, 10**5))
        steps = [f"VAR {names[0]} = {value}"]
        steps += [f"VAR {names[hop + 1]} = VAR {names[hop]}" for hop in range(_HOPS)]
        text, spans = plant("\n".join([NOISE] * size), steps, sorted(rng.random(len(steps)).tolist()), LINE)
        return _item(text, f"Find all variables that are assigned the value {value} in the text above.", tuple(names), spans)

    return fit(build, tokens, count, max(1, tokens // 24))


def common_words(haystack: Haystack, count: TokenCounter, tokens: int, rng: Rng) -> Item:
    """List words, ten of them 30 times, all others three times; words of the haystack first, then invented ones."""
    seed = int(rng.integers(2**32))

    def build(size: int) -> Item:
        rng = np.random.default_rng(seed)
        known = [haystack.words[place] for place in rng.permutation(len(haystack.words))[: size + _COMMON]]
        source = iter(known)
        words = distinct(lambda: next(source, None) or invented(rng), size + _COMMON)
        others = " ".join(words)
        common = list(islice((word for word in words if others.count(word) == 1), _COMMON))  # no part of another word
        rest = [word for word in words if word not in common]
        entries = common * _COMMON_TIMES + rest * _OTHER_TIMES
        listed = [f"{number}. {entries[place]}" for number, place in enumerate(rng.permutation(len(entries)), 1)]
        spans = _places(listed, {entry for entry in listed if entry.split()[1] in common})
        question = f"What are the {_COMMON} most common words in the above list?"
        return _item(" ".join(listed), question, tuple(common), spans)

    return fit(build, tokens, count, max(1, (tokens // 5 - _COMMON * _COMMON_TIMES) // _OTHER_TIMES))


def frequent_words(count: TokenCounter, tokens: int, rng: Rng) -> Item:
    """Write coded words whose frequencies follow Zipf's law; the most frequent one, dots, is noise."""
    seed = int(rng.integers(2**32))

    def build(size: int) -> Item:
        rng = np.random.default_rng(seed)
        coded = ["...", *distinct(lambda: letters(rng, 6), max(2 * _FREQUENT, tokens // 50))]
        times = [int(size * rank**-_ALPHA / _ZETA) for rank in range(1, len(coded) + 1)]
        written = [word for word, number in zip(coded, times, strict=True) for _ in range(number)]
        written = [written[place] for place in rng.permutation(len(written))]
        wanted = tuple(coded[1 : _FREQUENT + 1])
        question = "Please ignore the dots '....'. What are the three most frequently appeared words in the above coded text?"
        return _item(" ".join(written), question, wanted, _places(written, set(wanted)))

    return fit(build, tokens, count, max(1, tokens // 3))


def _places(parts: Sequence[str], wanted: set[str]) -> list[tuple[int, int]]:
    """Where the wanted parts stand once all are joined by a space."""
    spans, length = [], 0
    for part in parts:
        if part in wanted:
            spans.append((length, length + len(part)))
        length += len(part) + 1
    return spans


def _item(text: str, question: str, answers: tuple[str, ...], spans: Sequence[tuple[int, int]]) -> Item:
    evidence = tuple((0, start, end) for start, end in spans)
    depth = spans[0][0] / len(text) if len(spans) == 1 else None
    return Item(question, (text,), answers, evidence, depth=depth)
