"""Tokenizing plain text at the speed of a dictionary: each distinct word is cut into word pieces once.

What WordPiece makes of a word depends on that word alone, and a long context has few distinct ones. So text in ASCII is cut
into words here, other text at its spaces, and only what was not seen before goes to the `tokenizers` library; text of long
stretches without a space, such as Chinese, goes there whole.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from cprs_integrations.critics.base import Tokens
from cprs_integrations.critics.tokenizing import tokenize
from cprs_integrations.errors import ModelError
from cprs_integrations.windows import NO_TOKENS, Ints

_MOST = 65_536  # words that are remembered
_REMOVED = re.compile(r"[^\t\n\r -~]")  # control characters, which the library takes out of words, and all beyond ASCII
_WORD = re.compile(r"[0-9a-z]+|[!-~]")
_STRETCH = re.compile(r"[^ \t\n\r]+")
_SPACELESS = re.compile(r"[^ \t\n\r]{41}")  # such stretches hardly come twice
_SPACE, _PART, _SIGN = 0, 1, 2  # what a character is to a word: none, a part of it, or one by itself
_SPACES = np.array([ord(c) for c in " \t\n\r"], dtype=np.uint32)
_KINDS = np.array([_SPACE if chr(c) <= " " else _PART if chr(c).isalnum() else _SIGN for c in range(128)], dtype=np.uint8)


class _Seen(NamedTuple):
    """Words with their tokens. Never changed, so that threads need no lock: what is new makes another one.

    Attributes:
        numbers: the number of each word.
        counts: the tokens of each word.
        firsts: where they begin among those of all words.
        tokens: ids, and places within the word.
    """

    numbers: dict[str, int]
    counts: Ints
    firsts: Ints
    tokens: Tokens

    def adding(self, words: Sequence[str], tokens: Tokens) -> "_Seen":
        old = self.tokens
        counts = np.concatenate((self.counts, tokens.counts))
        joined = Tokens(
            np.concatenate((old.ids, tokens.ids)),
            np.concatenate((old.starts, tokens.starts)),
            np.concatenate((old.ends, tokens.ends)),
            counts,
        )
        numbers = self.numbers | {word: number for number, word in enumerate(words, len(self.numbers))}
        return _Seen(numbers, counts, np.cumsum(counts, dtype=np.int32) - counts, joined)


_NOTHING = _Seen({}, NO_TOKENS, NO_TOKENS, Tokens(NO_TOKENS, NO_TOKENS, NO_TOKENS, NO_TOKENS))


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
        self._tokenizer, self._seen = tokenizer, _NOTHING

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenize texts one by one."""
        ways = (self._plain, self._spaced, self._whole)
        kinds = np.fromiter(map(_kind, texts), np.intp, len(texts))
        used = np.unique(kinds).tolist()
        if len(used) < 2:
            return ways[used[0] if used else 0](texts)
        found = [ways[kind]([texts[place] for place in np.flatnonzero(kinds == kind).tolist()]) for kind in used]
        return _woven(kinds, used, found)

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
        counts = seen.counts[numbers]
        ends = np.cumsum(counts)
        rows = np.arange(ends[-1] if len(ends) else 0) + np.repeat(seen.firsts[numbers] - (ends - counts), counts)
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        opens = np.cumsum(sizes + 1) - (sizes + 1)
        of_word = np.searchsorted(opens, places, side="right") - 1
        shift = np.repeat(places - opens[of_word], counts).astype(np.int32)
        tokens = seen.tokens
        per_text = np.bincount(of_word, counts, minlength=len(texts)).astype(np.int32)
        return Tokens(tokens.ids[rows], tokens.starts[rows] + shift, tokens.ends[rows] + shift, per_text)

    def _with(self, words: Sequence[str]) -> _Seen:
        """Everything that is remembered, these words among it."""
        seen = self._seen
        distinct = dict.fromkeys(words)
        new = [word for word in distinct if word not in seen.numbers]
        if new:
            if len(seen.numbers) + len(new) > _MOST:
                seen, new = _NOTHING, list(distinct)
            self._seen = seen = seen.adding(new, tokenize(self._tokenizer, new))
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
