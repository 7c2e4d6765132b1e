"""Tokenizing for critics on the `tokenizers` library: offsets kept, control tokens plain text."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
from tokenizers import Tokenizer

from cprs_integrations.critics.base import Tokens


def plain_tokenizer(json: str) -> Tokenizer:
    """Read a tokenizer so that it never pads, never cuts, and takes control tokens in a text for plain text."""
    tokenizer = Tokenizer.from_str(json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> Tokens:
    """Tokenize texts one by one, without the control tokens that a model puts around them."""
    found = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    counts = [len(tokens) for tokens in found]
    total = sum(counts)
    flat = chain.from_iterable(chain.from_iterable(tokens.offsets for tokens in found))
    offsets = np.fromiter(flat, np.int32, 2 * total).reshape(-1, 2)
    return Tokens(
        ids=np.fromiter(chain.from_iterable(tokens.ids for tokens in found), np.int32, total),
        starts=offsets[:, 0],
        ends=offsets[:, 1],
        counts=np.array(counts, dtype=np.int32),
    )
