"""Any bi-encoder or cross-encoder of sentence-transformers as a critic: it scores units, one by one.

Needs the extra "rerankers".
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cprs_integrations.critics.base import Tokens, TokenScores, unit_scores
from cprs_integrations.critics.tokenizing import Sendable, plain_tokenizer, tokenize
from cprs_integrations.errors import ArgumentError, ModelError, require
from cprs_integrations.windows import NO_TOKENS, Ints, Limits, Window

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

_SPECIAL = 4  # control tokens that a model puts around a pair
_DEFAULT_LENGTH = 512


class RerankerCritic(Sendable):
    """Scores a unit by its similarity to the query (bi-encoder), or by reading both together (cross-encoder).

    A reranker knows units, not tokens, and no instructions: it reads the instruction only where the query is empty. The
    score is (1 + cosine) / 2 of a bi-encoder, the logistic of the logit of a cross-encoder with one label. Every window is
    a batch of its own, so results do not depend on what else is scored.

    Args:
        model: a loaded `SentenceTransformer` or `CrossEncoder`; its tokenizer is set to take control tokens in texts for
            plain text.
        threshold: from which score a unit is worth keeping without a bound; calibrate it on your data.
        batch_size: units scored at once.

    Raises:
        ArgumentError: the model is neither, has no fast tokenizer or gives several scores a pair.
    """

    separator = NO_TOKENS
    _model_names = ("_model",)

    def __init__(
        self, model: "SentenceTransformer | CrossEncoder", *, threshold: float | None = None, batch_size: int = 32
    ) -> None:
        library = require("sentence_transformers", "rerankers")
        if not isinstance(model, library.SentenceTransformer | library.CrossEncoder):
            raise ArgumentError(f"model must be a SentenceTransformer or a CrossEncoder, not {type(model).__name__}")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ArgumentError(f"threshold must be a number from 0 to 1, not {threshold!r}")
        backend = getattr(model.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ArgumentError("model: its tokenizer is not a fast one, so it gives no offsets; take another model")
        self._is_pair = isinstance(model, library.CrossEncoder)
        if self._is_pair and model.num_labels != 1:
            raise ArgumentError(f"model: a cross-encoder with {model.num_labels} labels; one with a single score is needed")
        model.tokenizer.split_special_tokens = True
        self._model: Any = model
        self._batch_size = batch_size
        self._tokenizer = plain_tokenizer(backend.to_str())
        self.threshold = threshold if threshold is not None else (0.5 if self._is_pair else 0.65)
        length = getattr(model, "max_seq_length", None) or getattr(model, "max_length", None)
        length = min(length or _DEFAULT_LENGTH, 8192)
        self.limits = Limits(window=length, longest=length, margin=0)
        self._asked: tuple[str, Any] = ("", None)

    @classmethod
    def from_pretrained(
        cls,
        model_path: str | Path,
        *,
        kind: Literal["bi-encoder", "cross-encoder"] = "bi-encoder",
        device: str | None = None,
        dtype: str | None = None,
        threshold: float | None = None,
        batch_size: int = 32,
    ) -> "RerankerCritic":
        """Load a model folder (or a name that sentence-transformers resolves). Code of a model is never run.

        Raises:
            ArgumentError: there is no such kind.
            ModelError: the model cannot be loaded.
        """
        library = require("sentence_transformers", "rerankers")
        kinds = {"bi-encoder": library.SentenceTransformer, "cross-encoder": library.CrossEncoder}
        if kind not in kinds:
            raise ArgumentError(f"kind must be one of {', '.join(map(repr, kinds))}, not {kind!r}")
        arguments = {"model_kwargs": {"dtype": dtype}} if dtype else {}
        try:
            model = kinds[kind](str(model_path), device=device, **arguments)
        except Exception as error:
            raise ModelError(f"{model_path}: sentence-transformers cannot load it as a {kind}: {error}") from error
        return cls(model, threshold=threshold, batch_size=batch_size)

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Tokenize with the model's own tokenizer."""
        return tokenize(self._tokenizer, texts)

    def encode_prompt(self, instruction: str, query: str) -> Ints:
        """Return ids that take up the room which the query needs beside a unit."""
        ids = self.encode([query or instruction]).ids
        return np.concatenate((ids, np.zeros(_SPECIAL, dtype=np.int32)))

    def score(self, windows: Iterable[Window]) -> Iterator[TokenScores]:
        """Score the units of each window in one call."""
        for window in windows:
            query = window.prompt.query or window.prompt.instruction
            yield unit_scores(window, self._score(query, [piece.text for piece in window.pieces]))

    def _score(self, query: str, texts: list[str]) -> Sequence[float]:
        quiet = {"show_progress_bar": False, "batch_size": self._batch_size}
        if self._is_pair:
            import torch

            pairs = [(query, text) for text in texts]
            scores = self._model.predict(pairs, activation_fn=torch.nn.Sigmoid(), convert_to_numpy=True, **quiet)
            return [float(score) for score in scores]
        known, embedded = self._asked
        if known != query or embedded is None:
            embedded = self._model.encode([query], normalize_embeddings=True, **quiet)[0]
            self._asked = (query, embedded)
        units = self._model.encode(texts, normalize_embeddings=True, **quiet)
        cosines = np.asarray(units, dtype=np.float64) @ np.asarray(embedded, dtype=np.float64)
        return [float(score) for score in (1.0 + cosines) / 2.0]
