"""Training windows, laid out as the engine lays out its own: several documents, borders anywhere, BIOE targets."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from cprs_integrations.critics.base import O
from cprs_integrations.examples import Example, Marked
from cprs_integrations.instructions import DEFAULT
from cprs_integrations.training import targets
from cprs_integrations.training.synthetic import plant
from cprs_integrations.training.targets import IGNORED, Encoded, Ints, encode, long_units, overlap
from cprs_integrations.training.teacher import Teacher
from cprs_integrations.training.wordings import ASKING, wording
from cprs_integrations.units import segment

GRANULARITIES = ("keyword", "sentence", "paragraph")
_DRAWS = 3  # of a stranger, before the question goes without
_FIRST = 9.0  # more than any unit is like a question

Places = npt.NDArray[np.integer]


@dataclass(frozen=True)
class TrainingWindow:
    """Token ids, and of each token the targets, the unit and its cosine with the question.

    `sentences` and `words` are BIOE targets, `IGNORED` outside the text; of a question whose answers are not marked all
    words are. `units` numbers the units of the text, -1 outside it; `cosines` is NaN where MiniLM was not asked.
    """

    ids: Ints
    sentences: Ints
    words: Ints
    units: Ints
    cosines: npt.NDArray[np.float32]
    granularity: str


class Stretch(NamedTuple):
    """The tokens `low:high` of a document."""

    document: Marked
    low: int
    high: int


@dataclass
class WindowMaker:
    """Draws windows from examples. The same generator state gives the same windows.

    Attributes:
        examples: questions with their marked texts.
        tokenizer: of the critic.
        size: tokens of a window at most.
        teacher: MiniLM's cosines, and the texts that are hard to tell apart.
        haystack: long texts to hide look-up tasks in, besides those of the examples.
        emphasis: sources drawn so many times as often as others.
        granularity_shares: how often keywords, sentences, paragraphs are asked for.
        default_share: how often sentences are asked for in the default words.
        synthetic_share: how many windows hold a look-up task.
        companion_share: how many windows come with a second one, for the same question, without evidence.
        second_share: how many windows are those of a second reading: likely units of many texts, side by side.
        second_size: tokens of such a window at most.
    """

    examples: Sequence[Example]
    tokenizer: Tokenizer
    size: int = 256
    teacher: Teacher | None = None
    haystack: Sequence[str] = ()
    emphasis: dict[str, int] = field(default_factory=dict)
    granularity_shares: tuple[float, float, float] = (0.3, 0.5, 0.2)
    default_share: float = 0.4
    synthetic_share: float = 0.08
    companion_share: float = 0.5
    second_share: float = 0.0
    second_size: int = 320

    def __post_init__(self) -> None:
        self._cache: dict[int, Encoded] = {}
        self._rare: npt.NDArray[np.float32] | None = None
        factors = [self.emphasis.get(example.source, 1) for example in self.examples]
        self._places = np.repeat(np.arange(len(self.examples)), factors)
        self._classify, self._separate = self.tokenizer.encode("", add_special_tokens=True).ids

    def rarity(self, documents: int = 8_000) -> npt.NDArray[np.float32]:
        """Return the inverse frequency of each token in the units of some documents, from 0 (in all) to 1 (in none)."""
        counts, units = np.zeros(self.tokenizer.get_vocab_size(), dtype=np.int64), 0
        for example in self.examples[:: max(1, len(self.examples) // documents)]:
            tokens = self._encode(example.documents[0].text)
            pairs = np.unique(np.stack((tokens.units, tokens.ids)), axis=1)
            np.add.at(counts, pairs[1], 1)
            units += int(tokens.units[-1]) + 1 if len(tokens.units) else 0
        found: npt.NDArray[np.float32] = (np.log((units + 1) / (counts + 1)) / np.log(units + 1)).astype(np.float32)
        return found

    def draw(self, rng: np.random.Generator) -> list[TrainingWindow]:
        """Draw a window with evidence, most of the time, and perhaps a second one of the same question without any."""
        index = int(rng.choice(self._places))
        example, teacher = self.examples[index], self.teacher
        if rng.random() < self.synthetic_share:
            example, teacher = _planted(example, self._straw(rng), rng), None
        granularity = str(rng.choice(GRANULARITIES, p=self.granularity_shares))
        instruction, query = self._ask(example.question, granularity, rng)
        documents = list(example.documents)
        if rng.random() < self.second_share:
            return self._taught([self._second_window((instruction, query), example, granularity, index, teacher, rng)], example)
        strangers = [document for document in documents if not document.evidence]
        if len(documents) == 1:
            documents = self._among(index, documents[0], rng)
            strangers = self._strangers(index, example.documents, 3, rng)
        room = int(rng.integers(self.size // 3, self.size))
        prompt = (instruction, query)
        shown = [documents, strangers] if strangers and rng.random() < self.companion_share else [documents]
        windows = [self._window(prompt, texts, granularity, index, teacher, room, rng) for texts in shown]
        return self._taught(windows, example)

    @staticmethod
    def _taught(windows: list[TrainingWindow], example: Example) -> list[TrainingWindow]:
        """Teach words only where answers are marked."""
        if any(document.answers for document in example.documents):
            return windows
        return [replace(window, words=np.full_like(window.words, IGNORED)) for window in windows]

    def _ask(self, question: str, granularity: str, rng: np.random.Generator) -> tuple[str, str]:
        style = rng.random()
        if style < 0.25:
            question = question.lower().rstrip("?. ")
        elif style < 0.35:
            question = _typed(question)
        draw = rng.random()
        if granularity == "sentence" and draw < self.default_share:
            return DEFAULT, question
        if draw > 0.96:
            forms = ASKING[granularity]
            return forms[rng.integers(len(forms))].format(question), ""
        return wording(granularity, rng), question

    def _among(self, index: int, document: Marked, rng: np.random.Generator) -> list[Marked]:
        """Put other documents of the same source around it: the nearest thing to what a retriever brings."""
        documents = self._strangers(index, [document], int(rng.integers(0, 4)), rng)
        documents.insert(int(rng.integers(len(documents) + 1)), document)
        return documents

    def _strangers(
        self, index: int, own: Sequence[Marked], count: int, rng: np.random.Generator, *, is_strict: bool = False
    ) -> list[Marked]:
        """Draw documents without evidence: some that stand near it in the source, some that are most like it.

        None repeats evidence of a question's own documents, nor much else of them, as windows that slide over a text do.
        Where answers alone are marked, others may hold one by chance, unless it `is_strict`.
        """
        hard = self.teacher.hard[index] if self.teacher else ()
        texts = {document.text for document in (*own, *self.examples[index].documents)}
        units = frozenset[bytes]().union(*(long_units(*self.read(text)) for text in texts))
        marks = {mark for document in own if is_strict or document.is_marked for mark in document.marks()}
        found: list[Marked] = []
        for _ in range(_DRAWS * count):
            if len(found) == count:
                break
            near = index + int(rng.integers(-12, 13))
            place = hard[rng.integers(len(hard))] if hard and rng.random() < 0.6 else near
            if not 0 <= place < len(self.examples):
                continue
            other = self.examples[place].documents[0]
            if self.examples[place].source != self.examples[index].source or other.text in texts:
                continue
            small = other.text.lower() if marks else ""
            if any(mark in small for mark in marks) or overlap(units, long_units(*self.read(other.text))):
                continue
            texts.add(other.text)
            found.append(Marked(other.title, other.text))
        return found

    def _straw(self, rng: np.random.Generator) -> str | None:
        """Cut a piece of the haystack, at lines."""
        if not self.haystack or rng.random() < 0.4:
            return None
        text = self.haystack[int(rng.integers(len(self.haystack)))]
        begin = int(rng.integers(max(1, len(text) - 2_000)))
        return text[begin : begin + 2_000].partition("\n")[2].strip() or None

    def _window(
        self, prompt: tuple[str, str], documents: list[Marked], granularity: str, index: int, teacher: Teacher | None,
        room: int, rng: np.random.Generator,
    ) -> TrainingWindow:  # fmt: skip
        """A stretch of documents that follow each other, around some evidence if there is any."""
        head = self._head(prompt)
        encoded = [self._encode(document.text) for document in documents]
        sentences = [targets.sentences(tokens, document) for tokens, document in zip(encoded, documents, strict=True)]
        lengths = np.array([len(tokens.ids) for tokens in encoded])
        first = np.concatenate(([0], np.cumsum(lengths)))
        kept = np.flatnonzero(np.concatenate(sentences) != O)
        room = max(48, room - len(head) - 8)
        if len(kept):
            begin = int(kept[rng.integers(len(kept))]) - int(rng.integers(0, room))
        else:
            begin = int(rng.integers(max(1, first[-1])))
        begin = max(0, min(begin, int(first[-1]) - room))
        stretches = []
        for number, document in enumerate(documents):
            low, high = max(0, begin - int(first[number])), min(int(lengths[number]), begin + room - int(first[number]))
            if low < high:
                stretches.append(Stretch(document, low, high))
        return self._lay_out(head, stretches, granularity, index, teacher, self.size, rng)

    def _second_window(
        self, prompt: tuple[str, str], example: Example, granularity: str, index: int, teacher: Teacher | None,
        rng: np.random.Generator,
    ) -> TrainingWindow:  # fmt: skip
        """The units of many texts that are most like the question, in their order, as the engine reads them a second time.

        Those with evidence are among them, but for one window in eight, where there are none.
        """
        head = self._head(prompt)
        documents = list(example.documents)
        if len(documents) == 1:
            documents += self._strangers(index, documents, int(rng.integers(4, 12)), rng, is_strict=True)
        documents = [documents[place] for place in rng.permutation(len(documents))]
        wanted = np.unique(self._ids(example.question))
        units: list[Stretch] = []
        likely: list[float] = []
        right: list[bool] = []
        for document in documents:
            tokens = self._encode(document.text)
            if not len(tokens.ids):
                continue
            borders = np.flatnonzero(np.diff(tokens.units, prepend=-1, append=-1))
            marked = np.logical_or.reduceat(targets.sentences(tokens, document) != O, borders[:-1])
            shared = self._shared(tokens, borders, wanted)
            cosines = teacher.cosines(index, document.text) if teacher else None
            like = shared if cosines is None else cosines + 0.5 * shared
            units += [Stretch(document, low, high) for low, high in pairwise(borders.tolist())]
            likely += (like + 0.15 * like.max()).tolist()
            right += marked.tolist()
        chance = np.array(likely) + rng.normal(0.0, 0.08, len(likely))
        truth = np.array(right)
        chance = np.where(truth, -np.inf, chance) if rng.random() < 0.125 else chance + np.where(truth, _FIRST, 0.0)
        room = int(rng.integers(self.second_size // 2, self.second_size)) - len(head) - 8
        chosen: list[int] = []
        for place in np.argsort(-chance, kind="stable").tolist():
            size = units[place].high - units[place].low
            if room < 8 or not np.isfinite(chance[place]):
                break
            if size <= room or not chosen:
                chosen.append(place)
                room -= size + 1
        return self._lay_out(
            head, _joined([units[place] for place in sorted(chosen)]), granularity, index, teacher, self.second_size, rng
        )

    def _shared(self, tokens: Encoded, borders: Places, wanted: Places) -> npt.NDArray[np.float32]:
        """The share of the question's tokens, by their rarity, that stands in each unit."""
        if self._rare is None:
            self._rare = self.rarity()
        places = np.flatnonzero(np.isin(tokens.ids, wanted))
        pairs = np.unique(np.stack((tokens.units[places], tokens.ids[places])), axis=1)
        weight = np.bincount(pairs[0], self._rare[pairs[1]], len(borders) - 1)
        found: npt.NDArray[np.float32] = (weight / max(1e-6, float(self._rare[wanted].sum()))).astype(np.float32)
        return found

    def _head(self, prompt: tuple[str, str]) -> list[int]:
        return [self._classify, *self._ids(prompt[0])[:64], self._separate, *self._ids(prompt[1])[:64], self._separate]

    def _lay_out(
        self, head: list[int], stretches: list["Stretch"], granularity: str, index: int, teacher: Teacher | None, size: int,
        rng: np.random.Generator,
    ) -> TrainingWindow:  # fmt: skip
        """Write stretches of documents into a window, a separator between two."""
        show_titles = rng.random() < 0.5
        columns: list[list[npt.NDArray[Any]]] = [[] for _ in range(5)]
        known = 0

        def write(*values: npt.NDArray[Any]) -> None:
            for column, part in zip(columns, values, strict=True):
                column.append(part)

        def show(ids: list[int]) -> None:
            ignored = np.full(len(ids), IGNORED)
            write(np.array(ids, dtype=np.int64), ignored, ignored, np.full(len(ids), -1), np.full(len(ids), np.nan))

        show(head)
        for document, low, high in stretches:
            if known:
                show([self._separate])
            if show_titles and document.title:
                show(self._ids(document.title + ":")[:24])
            tokens = self._encode(document.text)
            found = teacher.cosines(index, document.text) if teacher else None
            units = tokens.units[low:high]
            cosines = np.full(high - low, np.nan) if found is None else found[units]
            tags = (targets.sentences(tokens, document)[low:high], targets.words(tokens, document)[low:high])
            write(tokens.ids[low:high], *tags, units - units[0] + known, cosines)
            known += int(units[-1] - units[0]) + 1
        show([self._separate])
        *numbers, similar = (np.concatenate(column)[:size] for column in columns)
        ints: list[Ints] = [column.astype(np.int32) for column in numbers]
        return TrainingWindow(ints[0], ints[1], ints[2], ints[3], similar.astype(np.float32), granularity)

    def read(self, text: str) -> tuple[Ints, Ints]:
        """Return the token ids of a text, and the unit of each."""
        tokens = self._encode(text)
        return tokens.ids, tokens.units

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _encode(self, text: str) -> Encoded:
        key = hash(text)
        if key not in self._cache:
            encoded = encode(self.tokenizer, text)
            if len(self._cache) > 60_000:
                self._cache.clear()
            self._cache[key] = encoded
        return self._cache[key]


def _joined(units: list[Stretch]) -> list[Stretch]:
    """Join units that follow each other."""
    found: list[Stretch] = []
    for unit in units:
        if found and found[-1].document is unit.document and found[-1].high == unit.low:
            found[-1] = Stretch(unit.document, found[-1].low, unit.high)
        else:
            found.append(unit)
    return found


_SMALL_WORDS = frozenset(
    "a an and are as at be been by can could did do does for from had has have how i in is it its many me much of on or the"
    " there these this to was were what when where which who whom whose why will with would".split()
)


def _typed(question: str) -> str:
    """Write a question as people type it into a search box."""
    words = [word for word in question.lower().rstrip("?. ").split() if word not in _SMALL_WORDS]
    return " ".join(words) if len(words) > 1 else question


def _planted(example: Example, straw: str | None, rng: np.random.Generator) -> Example:
    """Hide a look-up task between the units of a piece of the haystack, or of the example's own text."""
    task = plant(rng)
    text = straw or example.documents[0].text
    units = list(segment(text))[:400]
    places = sorted(int(place) for place in rng.integers(len(units) + 1, size=len(task.lines)))
    if rng.random() < 0.5:
        places = [places[0]] * len(places)
    pieces: list[str] = []
    answers, evidence, length, done = [], [], 0, 0
    for (line, answer), place in zip(task.lines, places, strict=True):
        between = text[units[done].start : units[place - 1].end] if place > done else ""
        for piece in (between, line):
            if piece:
                pieces.append(piece)
                length += len(piece) + 1
        done = max(done, place)
        start = length - 1 - len(line)
        if answer is not None:
            answers.append((start + answer[0], start + answer[1]))
            evidence.append((start, start + len(line)))
    if done < len(units):
        pieces.append(text[units[done].start : units[-1].end])
    hidden = Marked(example.documents[0].title, "\n".join(pieces), tuple(answers), tuple(evidence))
    return Example(task.question, (hidden,), "synthetic")
