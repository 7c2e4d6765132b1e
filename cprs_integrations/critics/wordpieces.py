"""Tokenizing plain text at the speed of a dictionary: each distinct word is cut into word pieces once.

What WordPiece makes of a word depends on that word alone, and a long context has few distinct ones. So text in ASCII is cut
into words here, other text at its spaces, and only what was not seen before goes to the `tokenizers` library; text of long
stretches without a space, such as Chinese, goes there whole.
"""

import re
from collections.abc import Sequence
from threading import Lock

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from cprs_integrations.critics.base import Tokens
from cprs_integrations.critics.tokenizing import tokenize
from cprs_integrations.errors import ModelError
from cprs_integrations.windows import Ints

_MOST = 65_536  # words that are remembered
_REMOVED = re.compile(r"[^\t\n\r -~]")  # control characters, which the library takes out of words, and all beyond ASCII
_WORD = re.compile(r"[0-9a-z]+|[!-~]")
_BLANKS = " \t\n\r"
_STRETCH = re.compile(f"[^{_BLANKS}]+")
_SPACELESS = re.compile(f"[^{_BLANKS}]{{41}}")  # such stretches hardly come twice
_SPACE, _PART, _SIGN = 0, 1, 2  # what a character is to a word: none, a part of it, or one by itself
_SPACES = np.array([*map(ord, _BLANKS)], dtype=np.uint32)
_KINDS = np.array([_SPACE if chr(c) <= " " else _PART if chr(c).isalnum() else _SIGN for c in range(128)], dtype=np.uint8)


class _Seen:
    """Words with their tokens. Only ever added to, so that who has found the number of a word reads its tokens without a lock.

    Attributes:
        numbers: the number of each word.
        words: how many tokens each word has, and where they begin among those of all words: [2, words], and room for more.
        tokens: ids, and places within the word: [3, tokens], and room for more.
    """

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.words, self.tokens = np.empty((2, 1024), dtype=np.int32), np.empty((3, 1024), dtype=np.int32)
        self._used = (0, 0)

    def add(self, words: Sequence[str], tokens: Tokens) -> None:
        """Add words with their tokens; another thread may have added some of them meanwhile."""
        with _ADDING:
            number, first = self._used
            self.words = _added(self.words, number, (tokens.counts, np.cumsum(tokens.counts) - tokens.counts + first))
            self.tokens = _added(self.tokens, first, (tokens.ids, tokens.starts, tokens.ends))
            self._used = number + len(words), first + len(tokens.ids)
            self.numbers.update(zip(words, range(number, number + len(words)), strict=True))


_ADDING = Lock()


def _added(array: Ints, used: int, rows: Sequence[Ints]) -> Ints:
    """The array with more columns, in the room that it has, or in a larger one: other threads may still read the old."""
    needed = used + len(rows[0])
    if needed > array.shape[1]:
        larger = np.empty((len(array), max(needed, 2 * array.shape[1])), dtype=np.int32)
        larger[:, :used] = array[:, :used]
        array = larger
    array[:, used:needed] = rows
    return array


class WordPieces:
    """Gives what `tokenize` gives, to the token, for lower-cased WordPiece vocabularies such as BERT's.

    Args:
        tokenizer: as `plain_tokenizer` reads it.

    Raises:
        ModelError: the tokenizer is of another kind.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        normalizer = tokenizer.normalizer
        kinds = (tokenizer.model, normalizer, tokenizer.pre_tokenizer)
        if not all(map(isinstance, kinds, (WordPiece, BertNormalizer, BertPreTokenizer))) or not (
            normalizer.lowercase and normalizer.clean_text
        ):
            raise ModelError("tokenizer.json: not lower-cased word pieces as all-MiniLM-L6-v2 has them; export the model again")
        self._tokenizer, self._seen = tokenizer, _Seen()

    def __reduce__(self) -> tuple[type["WordPieces"], tuple[Tokenizer]]:
        return type(self), (self._tokenizer,)  # what is remembered stays: elsewhere it may arrive as memory for reading alone

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenize texts one by one."""
        ways = (self._plain, self._spaced, self._whole)
        kinds = [*map(_kind, texts)]
        used = sorted(set(kinds)) or [0]
        if len(used) == 1:
            return ways[used[0]](texts)
        found = [ways[kind]([text for text, its in zip(texts, kinds, strict=True) if its == kind]) for kind in used]
        return _woven(np.array(kinds), used, found)

    def _whole(self, texts: Sequence[str]) -> Tokens:
        return tokenize(self._tokenizer, texts)

    def _plain(self, texts: Sequence[str]) -> Tokens:
        text = "\n".join(texts).lower()
        kinds = _KINDS[np.frombuffer(text.encode("ascii"), dtype=np.uint8)]
        begins = kinds != _SPACE
        begins[1:] &= (kinds[1:] == _SIGN) | (kinds[:-1] != _PART)
        return self._known(texts, _WORD.findall(text), np.flatnonzero(begins))

    def _spaced(self, texts: Sequence[str]) -> Tokens:
        text = "\n".join(texts)
        begins = ~np.isin(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32), _SPACES)
        begins[1:] &= ~begins[:-1]
        return self._known(texts, _STRETCH.findall(text), np.flatnonzero(begins))

    def _known(self, texts: Sequence[str], words: list[str], places: npt.NDArray[np.intp]) -> Tokens:
        """The tokens of all words, which stand at these places of the texts, one break between two texts counted."""
        seen = self._with(words)
        numbers = np.fromiter(map(seen.numbers.__getitem__, words), np.int32, len(words))
        counts, firsts = seen.words[:, numbers]
        sums = np.cumsum(counts)
        rows = np.arange(sums[-1] if len(sums) else 0) + np.repeat(firsts - (sums - counts), counts)
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        opens = np.cumsum(sizes + 1) - (sizes + 1)
        of_word = np.searchsorted(opens, places, side="right") - 1
        shift = np.repeat(places - opens[of_word], counts).astype(np.int32)
        per_text = np.bincount(of_word, counts, minlength=len(texts)).astype(np.int32)
        ids, starts, ends = seen.tokens[:, rows]
        return Tokens(ids, starts + shift, ends + shift, per_text)

    def _with(self, words: Sequence[str]) -> _Seen:
        """Everything that is remembered, these words among it."""
        seen = self._seen
        distinct = dict.fromkeys(words)
        new = [word for word in distinct if word not in seen.numbers]
        if new:
            if len(seen.numbers) + len(new) > _MOST:
                self._seen = seen = _Seen()
                new = list(distinct)
            seen.add(new, tokenize(self._tokenizer, new))
        return seen


def _kind(text: str) -> int:
    return 0 if not _REMOVED.search(text) else 1 if not _SPACELESS.search(text) else 2


def _woven(kinds: npt.NDArray[np.intp], used: Sequence[int], found: Sequence[Tokens]) -> Tokens:
    """Tokens of texts of several kinds, in the order of the texts."""
    counts = np.empty(len(kinds), dtype=np.int32)
    for kind, tokens in zip(used, found, strict=True):
        counts[kinds == kind] = tokens.counts
    owners = np.repeat(kinds, counts)
    ids, starts, ends = (np.empty(len(owners), dtype=np.int32) for _ in range(3))
    for kind, tokens in zip(used, found, strict=True):
        rows = owners == kind
        ids[rows], starts[rows], ends[rows] = tokens.ids, tokens.starts, tokens.ends
    return Tokens(ids, starts, ends, counts)
