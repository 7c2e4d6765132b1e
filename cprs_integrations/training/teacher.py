"""What all-MiniLM-L6-v2 knows of similarity, kept for the critic that starts from its weights.

A cross-encoder trained on marked evidence forgets the search-like pairs that MiniLM has learned from. So the cosine of each
question with each unit of its texts is computed once, before training; a small head of the critic goes on predicting it. The
same cosines find the texts that are hardest to tell from the one that answers.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from transformers import BertModel

from cprs_integrations.examples import Example
from cprs_integrations.training.model import mixed_precision
from cprs_integrations.training.targets import Ints, long_units, overlap

Halves = npt.NDArray[np.float16]
_TOKENS = 8_192  # of a batch
_LONGEST = 128  # tokens of a unit that MiniLM reads here; it was trained on as many
_NEAR = 120  # examples before and after, among which a hard text is looked for
_HARD = 6


@dataclass(frozen=True)
class Teacher:
    """Unit vectors of MiniLM: one a question, and one a unit of each taught text.

    Attributes:
        questions: [examples, 384].
        units: [units, 384], of all taught texts.
        places: of a taught text, the rows of `units` that are its own.
        hard: of each example, the examples near it whose first text is most like an answer and holds none.
    """

    questions: Halves
    units: Halves
    places: dict[str, slice]
    hard: tuple[tuple[int, ...], ...]

    def cosines(self, example: int, text: str) -> npt.NDArray[np.float32] | None:
        """Cosine of an example's question with each unit of a text; None if the text is not taught."""
        place = self.places.get(text)
        if place is None:
            return None
        found: npt.NDArray[np.float32] = self.units[place].astype(np.float32) @ self.questions[example].astype(np.float32)
        return found


def teach(
    examples: Sequence[Example],
    taught: Sequence[str],
    encode: Callable[[str], tuple[Ints, Ints]],
    tokenizer: Tokenizer,
    minilm: Path,
    cache: Path,
    device: str = "cpu",
) -> Teacher:
    """Embed the questions and the texts of the taught sources, or read them from `cache`.

    Args:
        examples: the training examples.
        taught: names of the sources whose texts are embedded.
        encode: gives the token ids of a text and the number of the unit of each.
        tokenizer: of MiniLM.
        minilm: folder of all-MiniLM-L6-v2.
        cache: file (.npz) for the vectors; written anew if it belongs to other texts.
        device: where to compute.
    """  # fmt: skip
    texts = dict.fromkeys(document.text for example in examples if example.source in taught for document in example.documents)
    sequences: list[Ints] = []
    places: dict[str, slice] = {}
    for text in texts:
        ids, units = encode(text)
        borders = np.flatnonzero(np.diff(units, prepend=-1, append=-1))
        places[text] = slice(len(sequences), len(sequences) + len(borders) - 1)
        sequences.extend(ids[start:end] for start, end in pairwise(borders.tolist()))
    known = {text: long_units(*encode(text)) for text in texts}
    asked = [example.source in taught for example in examples]
    questions = [
        np.array(tokenizer.encode(example.question if wanted else "", add_special_tokens=False).ids, dtype=np.int32)
        for example, wanted in zip(examples, asked, strict=True)
    ]
    mark = zlib.crc32(b"".join(ids.tobytes() for ids in (*questions, *sequences)), len(questions))
    if cache.exists() and int((stored := np.load(cache))["mark"]) == mark:
        vectors: Halves = stored["vectors"]
    else:
        vectors = _embed([*questions, *sequences], tokenizer, minilm, device)
        np.savez(cache, vectors=vectors, mark=mark)
    first, rest = vectors[: len(questions)], vectors[len(questions) :]
    teacher = Teacher(first, rest, places, ())
    hard = tuple(_hard(teacher, examples, index, known) if wanted else () for index, wanted in enumerate(asked))
    return Teacher(first, rest, places, hard)


def _hard(teacher: Teacher, examples: Sequence[Example], index: int, known: dict[str, frozenset[bytes]]) -> tuple[int, ...]:
    example = examples[index]
    own = {document.text for document in example.documents}
    units = frozenset[bytes]().union(*(known[text] for text in own))
    wanted = [mark for document in example.documents for mark in document.marks()]
    found: dict[str, tuple[float, int]] = {}
    for place in range(max(0, index - _NEAR), min(len(examples), index + _NEAR)):
        text = examples[place].documents[0].text
        if examples[place].source != example.source or text in found or text in own or overlap(units, known[text]):
            continue
        cosines = teacher.cosines(index, text)
        if cosines is None or not len(cosines) or any(mark in text.lower() for mark in wanted):
            continue
        found[text] = (float(cosines.max()), place)
    return tuple(place for _, place in sorted(found.values(), reverse=True)[:_HARD])


def _embed(sequences: Sequence[Ints], tokenizer: Tokenizer, minilm: Path, device: str) -> Halves:
    """Mean of MiniLM's last hidden states, of length 1, for each sequence of token ids."""
    encoder = BertModel.from_pretrained(minilm, add_pooling_layer=False).eval()  # type: ignore[no-untyped-call]
    encoder.to(device)
    classify, separate = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    lengths = np.array([min(len(ids), _LONGEST) + 2 for ids in sequences])
    vectors = np.zeros((len(sequences), encoder.config.hidden_size), dtype=np.float16)
    order, begin = np.argsort(lengths, kind="stable"), 0
    while begin < len(order):
        count = max(1, _TOKENS // int(lengths[order[min(begin + 256, len(order) - 1)]]))
        rows = order[begin : begin + min(count, 256)]
        begin += len(rows)
        ids = np.zeros((len(rows), int(lengths[rows].max())), dtype=np.int64)
        for row, place in enumerate(rows):
            ids[row, : lengths[place]] = [classify, *sequences[place][:_LONGEST], separate]
        mask = torch.from_numpy(np.arange(ids.shape[1]) < lengths[rows, None]).to(device)
        with torch.inference_mode(), mixed_precision(device):
            hidden = encoder(torch.from_numpy(ids).to(device), attention_mask=mask.long()).last_hidden_state.float()
        means = torch.nn.functional.normalize((hidden * mask[:, :, None]).sum(dim=1), dim=1)
        vectors[rows] = means.half().cpu().numpy()
    return vectors
