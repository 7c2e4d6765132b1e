"""Question answering over JSON lines of the documented schema (`cprs_integrations.examples`): as they are, or at any length."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import median

import numpy as np

from cprs_integrations.evaluation.haystack import Haystack, Rng, cut
from cprs_integrations.evaluation.items import Item, fit
from cprs_integrations.examples import Example, Marked
from cprs_integrations.selection import TokenCounter
from cprs_integrations.units import segment

OTHERS = 9
_LONG = 4_000  # characters from which a text is a context of its own
_SHORTEST = 3  # characters of an answer: what is shorter stands anywhere


def as_they_are(examples: Sequence[Example], count: int, seed: int) -> list[Item]:
    """Draw items of a set, the way it is meant: with all its documents, as one long text, or among nine other passages."""
    if any(len(example.documents) > 1 for example in examples):
        return several(examples, count, seed)
    if median(len(example.documents[0].text) for example in examples) >= _LONG:
        return alone(examples, count, seed)
    return among_others(examples, count, seed)


def among_others(examples: Sequence[Example], count: int, seed: int, shortest: int = _SHORTEST) -> list[Item]:
    """Draw questions with their text and 9 others that hold no answer, shuffled.

    The others are of the same title where a set has many texts of one title, else any of the set.

    Args:
        examples: of one document each.
        count: how many to draw, at most.
        seed: of the draw.
        shortest: characters that an answer must have.
    """
    titles, contexts = ({getattr(example.documents[0], name) for example in examples} for name in ("title", "text"))
    by_title = len(titles) * (OTHERS + 1) < len(contexts)
    texts: dict[str, dict[str, None]] = defaultdict(dict)
    for example in examples:
        texts[example.documents[0].title if by_title else ""].setdefault(example.documents[0].text)
    rng = np.random.default_rng(seed)
    items: list[Item] = []
    for index in rng.permutation(len(examples)):
        example, (marked,) = examples[index], examples[index].documents
        answers = _long(example.answers, shortest)
        others = [
            text
            for text in texts[marked.title if by_title else ""]
            if text != marked.text and not any(answer.lower() in text.lower() for answer in answers)
        ]
        if not (answers or marked.is_marked) or len(others) < OTHERS:
            continue
        chosen = [marked.text, *(others[place] for place in rng.permutation(len(others))[:OTHERS])]
        order = rng.permutation(len(chosen)).tolist()
        evidence = tuple((order.index(0), start, end) for start, end in _evidence(marked))
        documents = tuple(chosen[place] for place in order)
        items.append(Item(example.question, documents, answers, evidence, any_answer=True))
        if len(items) == count:
            break
    return items


def several(examples: Sequence[Example], count: int, seed: int) -> list[Item]:
    """Draw questions that bring their documents along."""
    items = []
    for index in np.random.default_rng(seed).permutation(len(examples))[:count]:
        example = examples[index]
        documents, titles = (tuple(getattr(marked, name) for marked in example.documents) for name in ("text", "title"))
        evidence = tuple((number, *span) for number, marked in enumerate(example.documents) for span in _evidence(marked))
        items.append(Item(example.question, documents, _standing(example), evidence, titles, any_answer=True))
    return items


def alone(examples: Sequence[Example], count: int, seed: int) -> list[Item]:
    """Draw questions with their one long text; where all answers are too short to tell, their evidence counts."""
    items = []
    for index in np.random.default_rng(seed).permutation(len(examples))[:count]:
        example, (marked,) = examples[index], examples[index].documents
        evidence = tuple((0, start, end) for start, end in _evidence(marked))
        items.append(Item(example.question, (marked.text,), _long(example.answers), evidence, any_answer=True))
    return items


class AtLength:
    """RULER's question answering: the passages that hold the evidence, among others of the set, up to a length.

    No other passage holds an answer, but for passages too short to tell; once all are there, they come again, shuffled anew.
    The last one is cut to fit. Left out are questions whose answer does not stand in their evidence ("yes", "no", a
    comparison's outcome): no compression could keep it.

    Args:
        examples: of one set.
        haystack: tells how many characters a token has, about.
        count: counts tokens.
        seed: of the order of the questions.
    """

    def __init__(self, examples: Sequence[Example], haystack: Haystack, count: TokenCounter, seed: int) -> None:
        self._haystack, self._count = haystack, count
        asked = [example for example in examples if _standing(example)]
        self._asked = [asked[place] for place in np.random.default_rng(seed).permutation(len(asked))]
        self._passages = list({marked.text: marked.title for example in examples for marked in example.documents}.items())

    def __len__(self) -> int:
        return len(self._asked)

    def item(self, index: int, tokens: int, rng: Rng) -> Item:
        """Build the item of a question, in a context of a length."""
        example, seed = self._asked[index], int(rng.integers(2**32))
        answers = _standing(example)
        golden = [marked for marked in example.documents if marked.evidence]
        known = {marked.text for marked in golden}
        others = [
            (text, title)
            for text, title in self._passages
            if text not in known and not any(answer.lower() in text.lower() for answer in answers)
        ]
        has_titles = any(title for _, title in self._passages) and len(example.documents) > 1

        def build(size: int) -> Item:
            rng = np.random.default_rng(seed)
            chosen = [(marked.text, marked.title) for marked in golden]
            room = size - sum(len(text) + 2 for text, _ in chosen)
            while room > 0 and others:
                for place in rng.permutation(len(others)):
                    text, title = others[place]
                    chosen.append((cut(text, room), title))
                    room -= len(text) + 2
                    if room <= 0:
                        break
            order = np.random.default_rng(seed).permutation(len(chosen)).tolist()
            where = {old: new for new, old in enumerate(order)}
            evidence = tuple((where[number], *span) for number, marked in enumerate(golden) for span in _evidence(marked))
            documents, titles = zip(*(chosen[place] for place in order), strict=True)
            return Item(example.question, documents, answers, evidence, titles if has_titles else None, any_answer=True)

        return fit(build, tokens, self._count, self._haystack.guess(tokens, self._count))


def _standing(example: Example) -> tuple[str, ...]:
    """The answers that stand in the evidence's documents and are long enough to be told from chance."""
    texts = [marked.text.lower() for marked in example.documents if marked.evidence]
    return tuple(answer for answer in _long(example.answers) if any(answer.lower() in text for text in texts))


def _long(answers: Sequence[str], shortest: int = _SHORTEST) -> tuple[str, ...]:
    return tuple(answer for answer in answers if len(answer) >= shortest)


def _evidence(marked: Marked) -> list[tuple[int, int]]:
    """What is marked as evidence; where only answers are, the units in which they stand."""
    if marked.is_marked:
        return list(marked.evidence)
    units = list(segment(marked.text))
    spans = []
    for start, end in marked.answers:
        touched = [unit for unit in units if unit.start < end and unit.end > start]
        if touched:
            spans.append((touched[0].start, touched[-1].end))
    return sorted(set(spans))
