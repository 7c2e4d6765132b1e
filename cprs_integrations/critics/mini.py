"""The critic that ships with the package: a small encoder in int8, on onnxruntime, on any CPU."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

from cprs_integrations.critics.base import B, E, I, Tokens, TokenScores
from cprs_integrations.critics.tokenizing import Sendable, plain_tokenizer
from cprs_integrations.critics.wordpieces import WordPieces
from cprs_integrations.errors import ArgumentError, ModelError
from cprs_integrations.lexical import Blend, Blends, Floats, Joint
from cprs_integrations.windows import Ints, Limits, Window

SHIPPED = Path(__file__).parent / "mini_model"
FORMAT = 3  # of a model folder; counts what the network puts out and what config.json has
_FILES = ("model.onnx", "tokenizer.json")
_OUTPUTS = ("bioe", "kept", "words", "similar", "asked")
_AHEAD = 4  # windows a thread that are cut before they are scored, so that none is idle while the next are


class MiniCritic(Sendable):
    """A cross-encoder that reads `[CLS] instruction [SEP] query [SEP] text` and tags every token of the text.

    One unpadded window is one call: int8 activations are scaled over all that is in a call, so a batch would make scores
    depend on their neighbours. Calls of several windows run in parallel instead.

    Args:
        session: the network, as `training.export.Outputs` describes it.
        tokenizer: of the network.
        config: the model folder's config.json.
        threads: windows scored at once; None: one a core that this process may use, or as many as OMP_NUM_THREADS says.
    """

    _model_names = ("session",)

    def __init__(
        self, session: onnxruntime.InferenceSession, tokenizer: Tokenizer, config: dict[str, Any], threads: int | None = None
    ) -> None:
        if threads is not None and (type(threads) is not int or threads < 1):
            raise ArgumentError(f"threads must be a whole number from 1, or None, not {threads!r}")
        self.session, self.tokenizer, self.config = session, tokenizer, config
        self._word_pieces = WordPieces(tokenizer)
        self.threads = threads or _cores()
        self.threshold, self.reach = float(config["threshold"]), float(config["reach"])
        self._similarity = float(config["similarity"])
        blends = config["blends"]
        joint = blends["reread"] and Joint(**blends["reread"])
        self.blends = Blends(Blend(**blends["read"]), Blend(**blends["unread"]), blends["bridge"], joint)
        self.limits = Limits(config["window"], config["longest"], config["margin"])
        self._classify, self._separate = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
        self.separator: Ints = np.array([self._separate], dtype=np.int32)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path | None = None, *, device: str | None = None, threads: int | None = None
    ) -> "MiniCritic":
        """Load the shipped critic, or a folder that the training exported.

        Raises:
            ModelError: a file is missing, damaged or not of such a critic.
            ArgumentError: a device other than the CPU, or a wrong number of threads.
        """
        if device not in (None, "cpu"):
            raise ArgumentError(f"device={device!r}: this critic runs on the CPU; leave device out")
        path = SHIPPED if folder is None else Path(folder)
        config = _checked(path, "reinstall it: pip install --force-reinstall --no-deps cprs_integrations"
                          if folder is None else "export or copy the model again")  # fmt: skip
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(path / "model.onnx"), options, providers=["CPUExecutionProvider"])
            tokenizer = plain_tokenizer((path / "tokenizer.json").read_text(encoding="utf-8"))
        except Exception as error:
            raise ModelError(f"{path}: the model cannot be read ({error}); export or copy it again") from error
        return cls(session, tokenizer, config, threads)

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Tokenize texts one by one; "[SEP]" in a text is five plain characters."""
        return self._word_pieces(texts)

    def encode_prompt(self, instruction: str, query: str) -> Ints:
        """Return the ids of `[CLS] instruction [SEP] query [SEP]`."""
        both = self.encode([instruction, query])
        middle = int(both.counts[0])
        ids = [self._classify, *both.ids[:middle], self._separate, *both.ids[middle:], self._separate]
        return np.array(ids, dtype=np.int32)

    def score(self, windows: Iterable[Window]) -> Iterator[TokenScores]:
        """Score windows in parallel, in order, reading only a few ahead; with one thread it is the caller's.

        Windows are cut and answered several at a time: the network empties the processor's caches, and what comes after it
        has to fill them again.
        """
        if self.threads == 1:
            waiting = iter(windows)
            while ahead := list(islice(waiting, _AHEAD)):
                yield from [self.score_window(window) for window in ahead]
            return
        with ThreadPoolExecutor(self.threads, "cprs-mini") as pool:
            running: deque[Future[TokenScores]] = deque()
            try:
                for window in windows:
                    running.append(pool.submit(self.score_window, window))
                    if len(running) >= _AHEAD * self.threads:
                        half = len(running) // 2
                        running[half - 1].result()
                        yield from [running.popleft().result() for _ in range(half)]
                while running:
                    yield running.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def row(self, window: Window) -> npt.NDArray[np.int64]:
        """What the network reads of a window: [1, tokens], the prompt's first."""
        return np.concatenate((window.prompt.ids, window.ids, self.separator)).astype(np.int64)[None]

    def score_window(self, window: Window) -> TokenScores:
        """Score one window, in the thread that calls."""
        bioe, kept, words, similar, asked = self.session.run(_OUTPUTS, {"ids": self.row(window)})
        rows, sizes = len(window.prompt.ids) + window.rows, np.diff(window.borders)
        gain = self._similarity * np.add.reduceat(similar[0, rows], window.borders[:-1]) / sizes
        units = np.add.reduceat(kept[0, rows], window.borders[:-1]) / sizes + gain
        tags = _raised(bioe[0, rows], np.repeat(gain, sizes))
        return TokenScores(tags, units=units, words=words[0, rows], asked=asked[0])


def _raised(bioe: Floats, gain: Floats) -> Floats:
    """Raise the log-odds of each token."""
    factor = np.exp(gain)
    scored = bioe.astype(np.float64)
    scored[:, [B, I, E]] *= factor[:, None]
    raised: Floats = scored / scored.sum(axis=1, keepdims=True)
    return raised


def _cores() -> int:
    if (told := os.environ.get("OMP_NUM_THREADS", "")).isdigit():  # Ray tells a process so what it has reserved for it
        return max(1, int(told))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _checked(folder: Path, repair: str) -> dict[str, Any]:
    """Read config.json, and hold every file against its hash in there."""
    config_path = folder / "config.json"
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{config_path} is missing; {repair}") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{config_path} cannot be read ({error}); {repair}") from error
    if not isinstance(config, dict) or config.get("critic") != "mini":
        raise ModelError(f'{config_path} is not of a critic of this package (no "critic": "mini"); give another folder')
    if config.get("format") != FORMAT:
        raise ModelError(
            f"{config_path} is of format {config.get('format')!r}, this version of cprs_integrations reads format {FORMAT}; "
            "make the model again with `cprs train`, or install the version that made it"
        )
    missing = {"files", "threshold", "blends", "similarity", "reach", "window", "longest", "margin", "second"} - config.keys()
    if missing:
        raise ModelError(f"{config_path} lacks {', '.join(sorted(missing))}; {repair}")
    for name in _FILES:
        path = folder / name
        if not path.is_file():
            raise ModelError(f"{path} is missing; {repair}")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != config["files"].get(name):
                raise ModelError(f"{path} is damaged: its SHA-256 is not the one in config.json; {repair}")
    return config
