"""Tokenizing for critics on the `tokenizers` library: offsets kept, control tokens plain text."""

from collections.abc import Sequence
from copy import copy
from itertools import chain
from typing import Any, ClassVar, Self

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


class Sendable:
    """A critic that can be sent to another process without its model, to make windows there."""

    _model_names: ClassVar[tuple[str, ...]]
    """The attributes that hold the model."""

    def reader(self) -> Self:
        """Return a copy without the model: it encodes as this critic does, and cannot score."""
        light = copy(self)
        for name in self._model_names:
            setattr(light, name, None)
        return light

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for value in state.values():
            if isinstance(value, Tokenizer):
                value.encode_special_tokens = True  # which a pickled tokenizer forgets
