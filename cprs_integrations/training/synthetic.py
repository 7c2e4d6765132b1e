"""Look-up tasks without end, to be hidden in other text: needles, key-value lines, passkeys, chains, table rows, lists."""

import uuid
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

_WORDS = """
amber anchor basil beacon birch cedar cinder cobalt comet copper coral cotton dahlia delta ember falcon fennel flint
garnet ginger glacier granite harbor hazel heron indigo ivory jasper juniper lagoon lantern laurel linen lotus maple
marble meadow nectar nutmeg ocean olive onyx opal orchid otter pepper pine plum quartz raven saffron sable sage salmon
scarlet sierra silver slate sparrow spruce summit thistle thunder tiger topaz tulip velvet violet walnut willow zephyr
""".split()


@dataclass(frozen=True)
class Planted:
    """A question and the lines to hide; each line with its answer's place in it, or None where it is a distractor."""

    question: str
    lines: tuple[tuple[str, tuple[int, int] | None], ...]


def plant(rng: np.random.Generator) -> Planted:
    """Draw one task."""
    return (_needle, _pairs, _passkey, _chain, _rows, _list)[rng.integers(6)](rng)


def _word(rng: np.random.Generator) -> str:
    return "-".join(str(word) for word in rng.choice(_WORDS, size=2, replace=False))


def _value(rng: np.random.Generator) -> tuple[str, str]:
    kind = ("number", "word", "uuid")[rng.integers(3)]
    if kind == "number":
        return kind, str(rng.integers(10**6, 10**7))
    return kind, _word(rng) if kind == "word" else _uuid(rng)


def _uuid(rng: np.random.Generator) -> str:
    return str(uuid.UUID(bytes=rng.bytes(16)))


def _line(text: str, answer: str | None) -> tuple[str, tuple[int, int] | None]:
    if answer is None:
        return text, None
    start = text.rindex(answer)
    return text, (start, start + len(answer))


def _needle(rng: np.random.Generator) -> Planted:
    keys = [_word(rng) for _ in range(int(rng.integers(1, 5)))]
    wording = (
        "One of the special magic {}s for {} is: {}.",
        "The secret {} of {} is {}.",
        "Remember that the {} for {} is {}.",
    )
    form, lines, (kind, _) = wording[rng.integers(len(wording))], [], _value(rng)
    for key in keys:
        value = next(value for found, value in iter(lambda: _value(rng), None) if found == kind)
        lines.append(_line(form.format(kind, key, value), value if key == keys[0] else None))
    asks = (
        "What is the special magic {} for {}?",
        "What are all the special magic {}s for {} mentioned in the text?",
        "{} of {}?",
    )
    return Planted(asks[rng.integers(len(asks))].format(kind, keys[0]), tuple(lines))


def _pairs(rng: np.random.Generator) -> Planted:
    make = (_uuid, _word)[rng.integers(2)]
    pairs = [(make(rng), make(rng)) for _ in range(int(rng.integers(2, 9)))]
    form = ('"{}": "{}",', "{} = {}", "{}: {}", "| {} | {} |")[rng.integers(4)]
    wanted = int(rng.integers(len(pairs)))
    lines = [_line(form.format(key, value), value if index == wanted else None) for index, (key, value) in enumerate(pairs)]
    if form.startswith('"') and rng.random() < 0.5:  # a whole JSON object
        first, place = lines[0]
        lines[0] = ("{" + first, (place[0] + 1, place[1] + 1) if place else None)
        lines[-1] = (lines[-1][0][:-1] + "}", lines[-1][1])
    ask = ('Extract the value corresponding to the key "{}" in the JSON object below.', "value of {}", "What belongs to {}?")
    return Planted(ask[rng.integers(3)].format(pairs[wanted][0]), tuple(lines))


def _passkey(rng: np.random.Generator) -> Planted:
    key = str(rng.integers(10**4, 10**6))
    line = f"The pass key is {key}. Remember it. {key} is the pass key."
    return Planted("What is the pass key?", ((line, (line.index(key), line.index(key) + len(key))),))


def _chain(rng: np.random.Generator) -> Planted:
    names = ["".join(chr(65 + int(code)) for code in rng.integers(26, size=5)) for _ in range(4)]
    value = str(rng.integers(10**4, 10**5))
    steps = [
        f"VAR {names[0]} = {value}",
        *(f"VAR {after} = VAR {before}" for before, after in pairwise(names)),
    ]
    question = f"Find all variables that are assigned the value {value} in the text."
    return Planted(question, tuple((step, (4, 9)) for step in steps))


def _rows(rng: np.random.Generator) -> Planted:
    columns = [str(word) for word in rng.choice(_WORDS, size=int(rng.integers(2, 5)), replace=False)]
    names = [_word(rng) for _ in range(int(rng.integers(2, 8)))]
    rows = [[str(rng.integers(10, 10**5)) for _ in columns] for _ in names]
    wanted, column = int(rng.integers(len(names))), int(rng.integers(len(columns)))
    separator = (" | ", "\t", ", ", ";")[rng.integers(4)]
    lines: list[tuple[str, tuple[int, int] | None]] = [(separator.join(("name", *columns)), None)]
    for place, (name, row) in enumerate(zip(names, rows, strict=True)):
        start = len(separator.join((name, *row[:column], "")))
        answer = (start, start + len(row[column])) if place == wanted else None
        lines.append((separator.join((name, *row)), answer))
    ask = ("What is the {} of {}?", "{} {}", "Which value of {} does the table give for {}?")[rng.integers(3)]
    return Planted(ask.format(columns[column], names[wanted]), tuple(lines))


def _list(rng: np.random.Generator) -> Planted:
    topics = [_word(rng) for _ in range(int(rng.integers(2, 4)))]
    lines = [(topic, _word(rng)) for topic in topics for _ in range(int(rng.integers(1, 4)))]
    form = ("- {1} ({0})", "* {0}: {1}", "{0} - {1}", "{1} belongs to {0}.")[rng.integers(4)]
    ask = ("Which entries belong to {}?", "List everything under {}.", "{} list")[rng.integers(3)]
    planted = [_line(form.format(topic, entry), entry if topic == topics[0] else None) for topic, entry in lines]
    return Planted(ask.format(topics[0]), tuple(planted))
