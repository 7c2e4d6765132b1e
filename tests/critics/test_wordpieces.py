from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, Whitespace

from cprs_integrations import CPRSEngine
from cprs_integrations.critics import wordpieces
from cprs_integrations.critics.tokenizing import tokenize
from cprs_integrations.critics.wordpieces import WordPieces
from cprs_integrations.errors import ModelError

TOKENIZER = CPRSEngine.from_pretrained().critic.tokenizer
PIECES = WordPieces(TOKENIZER)
TEXTS = st.lists(st.text(st.characters(max_codepoint=126)) | st.text(st.characters(exclude_categories=["Cs"])), max_size=6)


def assert_same(found, expected):
    for name in ("ids", "starts", "ends", "counts"):
        column = getattr(found, name)
        assert column.dtype == np.int32
        np.testing.assert_array_equal(column, getattr(expected, name), name)


@given(TEXTS)
@example([])
@example([""])
@example(["", "a", "", " \t"])
@example(["[SEP] [CLS] [UNK] ##ing", "word\x0bword", "a\x00b", "DELETE\x7f", "line\r\nbreak"])
@example(["Zürich, naïve, 北京", "plain", "ﬁ İ ß"])
@example(["ΟΔΟΣ ΑΣ. Σ", "e\u0301 \u0301x\u0323\u0307 y", "a\u00a0b c\u2028d\x85e\u3000f", "\u200bz \ufffd \x00 é"])
@example(["\u00e9" * 41 + " a b", "é" * 40 + " a b", "plain"])
@example(["x" * 101 + " y"])
def test_every_text_is_tokenized_as_the_library_does(texts):
    assert_same(PIECES(texts), tokenize(TOKENIZER, texts))


def test_words_are_forgotten_before_they_fill_the_memory(monkeypatch):
    monkeypatch.setattr(wordpieces, "_MOST", 50)
    pieces = WordPieces(TOKENIZER)
    for start in range(0, 400, 20):
        texts = [f"word{number} {number}th" for number in range(start, start + 20)]
        assert_same(pieces(texts), tokenize(TOKENIZER, texts))
        assert len(pieces._seen.numbers) <= 50


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer"),
    [(BertNormalizer(lowercase=False), BertPreTokenizer()), (BertNormalizer(), Whitespace()), (None, BertPreTokenizer())],
)
def test_a_tokenizer_of_another_kind_is_refused(normalizer, pre_tokenizer):
    other = Tokenizer(WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    other.pre_tokenizer = pre_tokenizer
    if normalizer:
        other.normalizer = normalizer
    with pytest.raises(ModelError, match="lower-cased word pieces"):
        WordPieces(other)


def test_threads_can_share_the_words_that_are_remembered():
    texts = [[f"w{number * size}ord\u00e9 {number}th {'x' * size}" for number in range(200)] for size in range(1, 9)]
    expected = [tokenize(TOKENIZER, part) for part in texts]
    pieces = WordPieces(TOKENIZER)
    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(pieces, texts * 3), expected * 3, strict=True):
            assert_same(found, wanted)
