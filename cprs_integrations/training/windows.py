"""Training windows, laid out as the engine lays out its own: several documents, borders anywhere, BIOE targets."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from cprs_integrations.training.examples import Example, Marked, Spans
from cprs_integrations.training.synthetic import plant
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
    """Token ids with a target for each; `units` numbers the units of the text, -1 outside it."""

    ids: Ints
    targets: Ints
    units: Ints
    granularity: str


@dataclass
class WindowMaker:
    """Draws windows from examples. The same generator state gives the same window."""

    examples: Sequence[Example]
    tokenizer: Tokenizer
    size: int = 256
    wordings: dict[str, tuple[str, ...]] = field(default_factory=lambda: TRAIN)
    granularity_shares: tuple[float, float, float] = (0.22, 0.60, 0.18)
    default_share: float = 0.5
    synthetic_share: float = 0.08
    empty_share: float = 0.25

    def __post_init__(self) -> None:
        self._cache: dict[int, Encoded] = {}
        self._classify, self._separate = (self.tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))

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

    def draw(self, rng: np.random.Generator) -> TrainingWindow:
        """Draw one window."""
        index = int(rng.integers(len(self.examples)))
        example = self.examples[index]
        if rng.random() < self.synthetic_share:
            example = _planted(example, rng)
        answered = any(document.answers for document in example.documents)
        granularity = str(rng.choice(GRANULARITIES, p=self.granularity_shares))
        if (granularity == "keyword" and not answered) or (granularity == "paragraph" and not example.is_coherent):
            granularity = "sentence"
        instruction, query = self._ask(example.question, granularity, rng)
        documents = list(example.documents)
        if len(documents) == 1:
            documents = self._among_neighbours(index, documents[0], rng)
        strangers = [document for document in documents if not document.evidence]
        if strangers and rng.random() < self.empty_share:
            documents = strangers
        return self._window(instruction, query, documents, granularity, rng)

    def _ask(self, question: str, granularity: str, rng: np.random.Generator) -> tuple[str, str]:
        if rng.random() < 0.25:
            question = question.lower().rstrip("?. ")
        wordings = self.wordings[granularity]
        draw = rng.random()
        if granularity == "sentence" and draw < self.default_share:
            return wordings[0], question
        if draw > 0.96:
            forms = ASKING[granularity]
            return forms[rng.integers(len(forms))].format(question), ""
        return wordings[rng.integers(len(wordings))], question

    def _among_neighbours(self, index: int, document: Marked, rng: np.random.Generator) -> list[Marked]:
        """Put other documents of the same source around it: the nearest thing to what a retriever brings."""
        documents = [document]
        for _ in range(int(rng.integers(0, 4))):
            place = index + int(rng.integers(-12, 13))
            if not 0 <= place < len(self.examples):
                continue
            other = self.examples[place]
            texts = {known.text for known in documents}
            if other.source == self.examples[index].source and other.documents[0].text not in texts:
                stranger = Marked(other.documents[0].title, other.documents[0].text)
                documents.insert(int(rng.integers(len(documents) + 1)), stranger)
        return documents

    def _window(
        self, instruction: str, query: str, documents: list[Marked], granularity: str, rng: np.random.Generator
    ) -> TrainingWindow:
        prompt = [
            self._classify, *self._ids(instruction)[:64], self._separate, *self._ids(query)[:64], self._separate,
        ]  # fmt: skip
        encoded = [self._encode(document.text) for document in documents]
        targets = [_targets(tokens, doc, granularity) for tokens, doc in zip(encoded, documents, strict=True)]
        lengths = np.array([len(tokens.ids) for tokens in encoded])
        first = np.concatenate(([0], np.cumsum(lengths)))
        kept = np.flatnonzero(np.concatenate(targets) != O)
        room = max(48, int(rng.integers(self.size // 3, self.size)) - len(prompt) - 8)
        if len(kept):
            begin = int(kept[rng.integers(len(kept))]) - int(rng.integers(0, room))
        else:
            begin = int(rng.integers(max(1, first[-1])))
        begin = max(0, min(begin, int(first[-1]) - room))
        show_titles = rng.random() < 0.5
        ids, labels, units, known = list(prompt), [IGNORED] * len(prompt), [-1] * len(prompt), 0
        for number, (tokens, target) in enumerate(zip(encoded, targets, strict=True)):
            low, high = max(0, begin - int(first[number])), min(int(lengths[number]), begin + room - int(first[number]))
            if low >= high:
                continue
            if len(ids) > len(prompt):
                ids, labels, units = [*ids, self._separate], [*labels, IGNORED], [*units, -1]
            if show_titles and documents[number].title:
                title = self._ids(documents[number].title + ":")[:24]
                ids, labels, units = [*ids, *title], labels + [IGNORED] * len(title), units + [-1] * len(title)
            ids.extend(tokens.ids[low:high])
            labels.extend(target[low:high])
            units.extend(tokens.units[low:high] - tokens.units[low] + known)
            known = units[-1] + 1
        ids, labels, units = [*ids, self._separate], [*labels, IGNORED], [*units, -1]
        size = self.size
        shown = [np.asarray(values[:size], dtype=np.int32) for values in (ids, labels, units)]
        return TrainingWindow(shown[0], shown[1], shown[2], granularity)

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


def _planted(example: Example, rng: np.random.Generator) -> Example:
    """Hide a look-up task between the units of the example's own text."""
    task = plant(rng)
    text = example.documents[0].text
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
