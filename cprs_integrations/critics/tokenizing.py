"""Tokenizing for critics on the `tokenizers` library: offsets kept, control tokens plain text."""

from collections.abc import Sequence

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
    offsets = np.array([pair for tokens in found for pair in tokens.offsets], dtype=np.int32).reshape(-1, 2)
    return Tokens(
        ids=np.array([token for tokens in found for token in tokens.ids], dtype=np.int32),
        starts=offsets[:, 0],
        ends=offsets[:, 1],
        counts=np.array([len(tokens) for tokens in found], dtype=np.int32),
    )
