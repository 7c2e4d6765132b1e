"""Training windows, laid out as the engine lays out its own: several documents, borders anywhere, BIOE targets."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from cprs_integrations.training.examples import Example, Marked, Spans
from cprs_integrations.training.synthetic import plant
from cprs_integrations.training.teacher import Teacher
from cprs_integrations.training.wordings import ASKING, TRAIN
from cprs_integrations.units import segment

IGNORED = -100
B, I, O, E = range(4)
GRANULARITIES = ("keyword", "sentence", "paragraph")

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Encoded:
    """A document as tokens, with the unit and the paragraph of each."""

    ids: Ints
    starts: Ints
    ends: Ints
    units: Ints
    paragraphs: Ints


@dataclass(frozen=True)
class TrainingWindow:
    """Token ids, and of each token the target, the unit and its cosine with the question.

    `units` numbers the units of the text, -1 outside it; `cosines` is NaN where MiniLM was not asked.
    """

    ids: Ints
    targets: Ints
    units: Ints
    cosines: npt.NDArray[np.float32]
    granularity: str


@dataclass
class WindowMaker:
    """Draws windows from examples. The same generator state gives the same windows.

    Attributes:
        examples: questions with their marked texts.
        tokenizer: of the critic.
        size: tokens of a window at most.
        teacher: MiniLM's cosines, and the texts that are hard to tell apart.
        haystack: long texts to hide look-up tasks in, besides those of the examples.
        granularity_shares: how often keywords, sentences, paragraphs are asked for.
        default_share: how often sentences are asked for in the default words.
        synthetic_share: how many windows hold a look-up task.
        companion_share: how many windows come with a second one, for the same question, without evidence.
    """

    examples: Sequence[Example]
    tokenizer: Tokenizer
    size: int = 256
    teacher: Teacher | None = None
    haystack: Sequence[str] = ()
    wordings: dict[str, tuple[str, ...]] = field(default_factory=lambda: TRAIN)
    granularity_shares: tuple[float, float, float] = (0.22, 0.60, 0.18)
    default_share: float = 0.5
    synthetic_share: float = 0.08
    companion_share: float = 0.5

    def __post_init__(self) -> None:
        self._cache: dict[int, Encoded] = {}
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
        index = int(rng.integers(len(self.examples)))
        example, teacher = self.examples[index], self.teacher
        if rng.random() < self.synthetic_share:
            example, teacher = _planted(example, self._straw(rng), rng), None
        answered = any(document.answers for document in example.documents)
        granularity = str(rng.choice(GRANULARITIES, p=self.granularity_shares))
        if (granularity == "keyword" and not answered) or (granularity == "paragraph" and not example.is_coherent):
            granularity = "sentence"
        instruction, query = self._ask(example.question, granularity, rng)
        documents = list(example.documents)
        strangers = [document for document in documents if not document.evidence]
        if len(documents) == 1:
            documents = self._among(index, documents[0], rng)
            strangers = self._strangers(index, documents[:1], 3, rng)
        room = int(rng.integers(self.size // 3, self.size))
        prompt = (instruction, query)
        windows = [self._window(prompt, documents, granularity, index, teacher, room, rng)]
        if strangers and rng.random() < self.companion_share:
            windows.append(self._window(prompt, strangers, granularity, index, teacher, room, rng))
        return windows

    def _ask(self, question: str, granularity: str, rng: np.random.Generator) -> tuple[str, str]:
        style = rng.random()
        if style < 0.25:
            question = question.lower().rstrip("?. ")
        elif style < 0.35:
            question = _typed(question)
        wordings = self.wordings[granularity]
        draw = rng.random()
        if granularity == "sentence" and draw < self.default_share:
            return wordings[0], question
        if draw > 0.96:
            forms = ASKING[granularity]
            return forms[rng.integers(len(forms))].format(question), ""
        return wordings[rng.integers(len(wordings))], question

    def _among(self, index: int, document: Marked, rng: np.random.Generator) -> list[Marked]:
        """Put other documents of the same source around it: the nearest thing to what a retriever brings."""
        documents = self._strangers(index, [document], int(rng.integers(0, 4)), rng)
        documents.insert(int(rng.integers(len(documents) + 1)), document)
        return documents

    def _strangers(self, index: int, known: list[Marked], count: int, rng: np.random.Generator) -> list[Marked]:
        """Draw documents without evidence: some that stand near it in the source, some that are most like it."""
        hard = self.teacher.hard[index] if self.teacher else ()
        texts = {document.text for document in (*known, *self.examples[index].documents)}
        found: list[Marked] = []
        for _ in range(count):
            near = index + int(rng.integers(-12, 13))
            place = hard[rng.integers(len(hard))] if hard and rng.random() < 0.6 else near
            if not 0 <= place < len(self.examples):
                continue
            other = self.examples[place].documents[0]
            if self.examples[place].source == self.examples[index].source and other.text not in texts:
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
        head = [self._classify, *self._ids(prompt[0])[:64], self._separate, *self._ids(prompt[1])[:64], self._separate]
        encoded = [self._encode(document.text) for document in documents]
        targets = [_targets(tokens, doc, granularity) for tokens, doc in zip(encoded, documents, strict=True)]
        lengths = np.array([len(tokens.ids) for tokens in encoded])
        first = np.concatenate(([0], np.cumsum(lengths)))
        kept = np.flatnonzero(np.concatenate(targets) != O)
        room = max(48, room - len(head) - 8)
        if len(kept):
            begin = int(kept[rng.integers(len(kept))]) - int(rng.integers(0, room))
        else:
            begin = int(rng.integers(max(1, first[-1])))
        begin = max(0, min(begin, int(first[-1]) - room))
        show_titles = rng.random() < 0.5
        ids, labels, units, cosines, known = list(head), [IGNORED] * len(head), [-1] * len(head), [np.nan] * len(head), 0

        def show(values: list[int]) -> None:
            ids.extend(values)
            labels.extend([IGNORED] * len(values))
            units.extend([-1] * len(values))
            cosines.extend([np.nan] * len(values))

        for number, (tokens, target) in enumerate(zip(encoded, targets, strict=True)):
            low, high = max(0, begin - int(first[number])), min(int(lengths[number]), begin + room - int(first[number]))
            if low >= high:
                continue
            if len(ids) > len(head):
                show([self._separate])
            if show_titles and documents[number].title:
                show(self._ids(documents[number].title + ":")[:24])
            found = teacher.cosines(index, documents[number].text) if teacher else None
            ids.extend(tokens.ids[low:high])
            labels.extend(target[low:high])
            units.extend(tokens.units[low:high] - tokens.units[low] + known)
            cosines.extend(np.full(high - low, np.nan) if found is None else found[tokens.units[low:high]])
            known = units[-1] + 1
        show([self._separate])
        size = self.size
        shown = [np.asarray(values[:size], dtype=np.int32) for values in (ids, labels, units)]
        return TrainingWindow(shown[0], shown[1], shown[2], np.asarray(cosines[:size], dtype=np.float32), granularity)

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


def encode(tokenizer: Tokenizer, text: str) -> Encoded:
    """Tokenize a text unit by unit."""
    units = list(segment(text))
    found = tokenizer.encode_batch([text[unit.start : unit.end] for unit in units], add_special_tokens=False)
    units, found = [unit for unit, tokens in zip(units, found, strict=True) if tokens.ids], [t for t in found if t.ids]
    counts = [len(tokens.ids) for tokens in found]
    bases = np.repeat(np.array([unit.start for unit in units], dtype=np.int32), counts)
    offsets = np.array([offset for tokens in found for offset in tokens.offsets], dtype=np.int32).reshape(-1, 2)
    return Encoded(
        ids=np.array([token for tokens in found for token in tokens.ids], dtype=np.int32),
        starts=offsets[:, 0] + bases,
        ends=offsets[:, 1] + bases,
        units=np.repeat(np.arange(len(units), dtype=np.int32), counts),
        paragraphs=np.repeat(np.array([unit.paragraph for unit in units], dtype=np.int32), counts),
    )


_SMALL_WORDS = frozenset(
    "a an and are as at be been by can could did do does for from had has have how i in is it its many me much of on or the"
    " there these this to was were what when where which who whom whose why will with would".split()
)


def _typed(question: str) -> str:
    """Write a question as people type it into a search box."""
    words = [word for word in question.lower().rstrip("?. ").split() if word not in _SMALL_WORDS]
    return " ".join(words) if len(words) > 1 else question


def _targets(tokens: Encoded, document: Marked, granularity: str) -> Ints:
    """BIOE of a whole document: each kept word group, sentence or paragraph is one span."""
    spans = document.answers if granularity == "keyword" else document.evidence
    inside = _covered(tokens, spans)
    if granularity == "keyword":
        groups = np.cumsum(np.diff(inside.astype(np.int32), prepend=0) == 1)
    else:
        groups = tokens.units if granularity == "sentence" else tokens.paragraphs
        inside = np.isin(groups, np.unique(groups[inside]))
    targets = np.full(len(tokens.ids), O, dtype=np.int32)
    targets[inside] = I
    begins = inside & np.concatenate(([True], (groups[1:] != groups[:-1]) | ~inside[:-1])) if len(inside) else inside
    ends = inside & np.concatenate(((groups[1:] != groups[:-1]) | ~inside[1:], [True])) if len(inside) else inside
    targets[ends] = E
    targets[begins] = B
    return targets


def _covered(tokens: Encoded, spans: Spans) -> npt.NDArray[np.bool_]:
    inside = np.zeros(len(tokens.ids), dtype=np.bool_)
    for start, end in spans:
        inside |= (tokens.starts < end) & (tokens.ends > start)
    return inside


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
    return Example(task.question, (hidden,), "synthetic", is_coherent=False)
