"""QwenLong-CPRS as a critic: a large language model, partly bidirectional, that tags every token of windows of 8192.

Needs the extra "torch".
"""

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cprs_integrations.critics.base import Tokens, TokenScores
from cprs_integrations.critics.tokenizing import Sendable, plain_tokenizer, tokenize
from cprs_integrations.errors import ArgumentError, CPRSError, CriticError, ModelError, require
from cprs_integrations.windows import Ints, Limits, Window

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    from cprs_integrations.models import QwenLongCPRSForTokenCritic

OUTSIDE = "outside"
"""The word that stands for "none of the tag words"."""

_RULE = re.compile(r"\btag\b(.*(?:\n\s*(?:with|as)\b.*)?)", re.IGNORECASE)
_QUOTED = r"['\"‘“`]([^'\"’”`\n]+)['\"’”`](?!\s+(?:with|as)\b)"
_AND = r"(?:\s*(?:,|/|\bor\b|\band\b)\s*)*"
_WORDS = re.compile(
    rf"\b(?:with|(?<!such )as)\b:?\s+(?:(?:the\s+)?(?:label|tag|word)s?:?\s+)?((?:{_QUOTED}{_AND})+)", re.IGNORECASE
)
_DTYPES = ("float32", "bfloat16", "float16")
_AHEAD = 4  # batches a model that are cut before the first is scored, so that windows of like length meet
_GPU_TOKENS = 16_384


@dataclass(frozen=True)
class Tags:
    """The words by which spans are named, and the tokens that stand for them in the LM head: the last is `OUTSIDE`."""

    words: tuple[str, ...]
    ids: tuple[int, ...]


class QwenLongCritic(Sendable):
    """QwenLong-CPRS (arXiv 2505.18092): a system prompt says what to extract, and every token gets a tag.

    Where the instruction names tag words (a rule such as "tag the needles with 'needle'"), the LM head's distribution over
    these words and "outside" is multiplied with that of the BIOE tags: a kept token has a word, a token outside has none
    (section 3.3). Spans then carry their word as `label`.

    Windows of like length share a batch, padded on the right. In float32 that moves a score by some 1e-6; with
    `batch_tokens=1` every window is alone, and results are the same to the byte whatever else is scored.

    Args:
        models: the model, or one on each device that is to work.
        tokenizer: of the model.
        window: tokens of a window, prompt included.
        overlap: tokens of context that a window shows on either side of what it scores.
        batch_tokens: tokens of a batch, padding included; a longer window is a batch of its own. None: one window at a
            time on a CPU, else 16,384.
        tags: the tag words; None: those of the instruction's tagging rule, if it has one.
        joint: False lets the BIOE tags alone decide what is kept, as the released server does; words then only name it, and
            a checkpoint without LM head marks without naming.
        threshold: from which score a unit is worth keeping without a bound; 0.5: more likely kept than not.

    Raises:
        ArgumentError: an argument has a value it cannot have.
        ModelError: the tokenizer does not fit the model.
    """

    reads_white_space = True
    _model_names = ("models",)

    def __init__(
        self,
        models: "Sequence[QwenLongCPRSForTokenCritic]",
        tokenizer: "Tokenizer",
        *,
        window: int = 8192,
        overlap: int = 0,
        batch_tokens: int | None = None,
        tags: Sequence[str] | str | None = None,
        joint: bool = True,
        threshold: float = 0.5,
    ) -> None:
        require("torch", "torch")
        if not models:
            raise ArgumentError("models must be at least one model")
        self.models = [model.eval() for model in models]
        self._names_spans = models[0].lm_head is not None
        self.tokenizer = tokenizer
        config = self.models[0].config
        longest = config.max_position_embeddings
        _check_whole("window", window, 16, longest)
        _check_whole("overlap", overlap, 0, (window // 2 - 4) // 4)
        if batch_tokens is not None:
            _check_whole("batch_tokens", batch_tokens, 1)
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise ArgumentError(f"threshold must be a number from 0 to 1, not {threshold!r}")
        if tokenizer.get_vocab_size() > config.vocab_size:
            raise ModelError(
                f"the tokenizer has {tokenizer.get_vocab_size()} tokens, the model {config.vocab_size}: "
                "they do not belong together; copy both from one checkpoint"
            )
        self._start, self._end = (_control(tokenizer, token) for token in ("<|im_start|>", "<|im_end|>"))
        self.threshold = float(threshold)
        self.limits = Limits(window, min(longest, 2 * window), overlap)
        on_cpu = all(model.device.type == "cpu" for model in self.models)
        self._batch_tokens = batch_tokens or (1 if on_cpu else _GPU_TOKENS)
        self._joint = joint
        self._given = None if tags is None else self._tags((tags,) if isinstance(tags, str) else tuple(tags))
        self.separator: Ints = self.encode(["\n\n"]).ids

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        device: str | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        device_map: str | dict[str, Any] | None = None,
        quantization_config: Any = None,
        attn_implementation: str = "sdpa",
        bidirectional_start_layer: int | None = None,
        **options: Any,
    ) -> "QwenLongCritic":
        """Load a checkpoint, of the released layout or saved by `QwenLongCPRSForTokenCritic`. No code is ever fetched.

        Args:
            model: a folder, or the id of a model on the hub ("Tongyi-Zhiwen/QwenLong-CPRS-7B").
            device: "cpu", "cuda", "cuda:1"; several ("cuda:0,cuda:1") each get the whole model and share the windows.
                None: the GPU if there is one.
            dtype: "float32", "bfloat16" or "float16"; None: float32 on a CPU, else bfloat16 where it is supported.
            revision: of a model on the hub.
            local_files_only: look only at what has been downloaded; so do the variables HF_HUB_OFFLINE and the like.
            device_map: spread one model over devices, as transformers does; instead of `device`.
            quantization_config: as transformers takes it.
            attn_implementation: "sdpa", "eager", "flash_attention_2" or "flash_attention_3".
            bidirectional_start_layer: where attention turns bidirectional, if config.json does not say and it is not 21.
            **options: the keyword arguments of the constructor.

        Raises:
            ModelError: files are missing, damaged or foreign, or the hub cannot be reached.
            ArgumentError: an argument has a value it cannot have.
        """
        torch = require("torch", "torch")
        require("transformers", "torch")
        from transformers.utils import cached_file

        from cprs_integrations.models import QwenLongCPRSForTokenCritic
        from cprs_integrations.models.modeling_qwenlong import check_attention

        inspect.signature(cls).bind([], None, **options)  # an option that is none must not wait for 15 GB
        check_attention(attn_implementation)
        devices = _devices(device, device_map)
        if dtype not in (None, *_DTYPES):
            raise ArgumentError(f"dtype must be one of {', '.join(_DTYPES)}, or None, not {dtype!r}")
        where: dict[str, Any] = {"revision": revision or "main", "local_files_only": local_files_only}
        known: dict[str, Any] = {
            "dtype": getattr(torch, dtype or _native_dtype(devices or _mapped(device_map))),
            "attn_implementation": attn_implementation,
            "quantization_config": quantization_config,
            "bidirectional_start_layer": bidirectional_start_layer,
        }
        known = where | {name: value for name, value in known.items() if value is not None}
        try:
            path = cached_file(str(model), "tokenizer.json", **where)
            tokenizer = plain_tokenizer(Path(str(path)).read_text(encoding="utf-8"))
            places = [device_map] if device_map is not None else [None if name == "cpu" else {"": name} for name in devices]
            models = [QwenLongCPRSForTokenCritic.from_pretrained(str(model), device_map=place, **known) for place in places]
        except CPRSError:
            raise
        except Exception as error:
            raise ModelError(
                f"{model}: no QwenLong-CPRS model could be loaded ({type(error).__name__}: {error}); "
                "give a folder with config.json, tokenizer.json and safetensors, or the id of a model on the hub"
            ) from error
        return cls(models, tokenizer, **options)

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Tokenize texts one by one; "<|im_end|>" in a text is plain characters."""
        return tokenize(self.tokenizer, texts)

    def encode_prompt(self, instruction: str, query: str) -> Ints:
        """Return the ids of the system prompt, the query and the opening of the context, with control tokens around them.

        Raises:
            ArgumentError: the tagging rule names words that the LM head cannot tell apart.
        """
        self._tags_of(instruction)
        texts = self.encode([f"system\n{instruction}", "\n", f"user\n{query}", "\n", "context\n"])
        system, line, user, _, context = np.split(texts.ids, np.cumsum(texts.counts)[:-1])
        start, end = np.array([self._start], dtype=np.int32), np.array([self._end], dtype=np.int32)
        return np.concatenate((start, system, end, line, start, user, end, line, start, context))

    def score(self, windows: Iterable[Window]) -> Iterator[TokenScores]:
        """Score windows in batches of like length, on all devices, in order, reading a few batches ahead."""
        free: SimpleQueue[QwenLongCPRSForTokenCritic] = SimpleQueue()
        for model in self.models:
            free.put(model)
        with ThreadPoolExecutor(len(self.models), "cprs-qwenlong") as pool:
            for chunk in self._chunks(windows):
                batches = _batched([_length(window) for window in chunk], self._batch_tokens)
                answers: dict[int, TokenScores] = {}
                tasks = [pool.submit(self._score_on, free, [chunk[place] for place in batch]) for batch in batches]
                try:
                    for batch, task in zip(batches, tasks, strict=True):
                        answers.update(zip(batch, task.result(), strict=True))
                finally:
                    for task in tasks:
                        task.cancel()
                yield from (answers[place] for place in range(len(chunk)))

    def _chunks(self, windows: Iterable[Window]) -> Iterator[list[Window]]:
        """Windows enough for some batches on every model."""
        chunk: list[Window] = []
        size, many = 0, len(self.models)
        for window in windows:
            chunk.append(window)
            size += _length(window)
            if len(chunk) >= many and size >= _AHEAD * many * self._batch_tokens:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk

    def _score_on(self, free: "SimpleQueue[QwenLongCPRSForTokenCritic]", batch: list[Window]) -> list[TokenScores]:
        model = free.get()
        try:
            return self._score_halving(model, batch)
        finally:
            free.put(model)

    def _score_halving(self, model: "QwenLongCPRSForTokenCritic", batch: list[Window]) -> list[TokenScores]:
        """Score a batch; out of memory, score its halves, and make smaller batches from then on.

        Raises:
            CriticError: there is no memory for a single window.
        """
        import torch

        try:
            return self._score_batch(model, batch)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise CriticError(
                    f"out of memory on {model.device} with a single window of {_length(batch[0])} tokens: "
                    "load the critic with a smaller window, dtype='bfloat16' or a quantization_config"
                ) from error
        # outside of the handler, whose traceback would hold the tensors
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(batch) // 2
        self._batch_tokens = min(self._batch_tokens, max(_length(window) for window in batch) * (len(batch) - half))
        return self._score_halving(model, batch[:half]) + self._score_halving(model, batch[half:])

    def _score_batch(self, model: "QwenLongCPRSForTokenCritic", batch: list[Window]) -> list[TokenScores]:
        import torch

        lengths = [_length(window) for window in batch]
        ids = np.zeros((len(batch), max(lengths)), dtype=np.int64)
        for row, window in zip(ids, batch, strict=True):
            row[: _length(window)] = np.concatenate((window.prompt.ids, window.ids))
        tags = [self._tags_of(window.prompt.instruction) for window in batch]
        rows = sorted({token for found in tags if found for token in found.ids})
        with torch.inference_mode():
            mask = None
            if min(lengths) < max(lengths):
                mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).to(model.device)
            output = model(
                input_ids=torch.from_numpy(ids).to(model.device),
                attention_mask=mask,
                label_ids=torch.tensor(rows, device=model.device) if rows else None,
            )
            answers = []
            for number, (window, found) in enumerate(zip(batch, tags, strict=True)):
                scored = torch.from_numpy(len(window.prompt.ids) + window.rows)
                words = None
                if found:
                    words = _rows(output.label_logits[number], scored)[:, [rows.index(token) for token in found.ids]]
                answers.append(self._answer(_rows(output.bi_logits[number], scored), words, found))
        return answers

    def _answer(self, bi_logits: "Tensor", words: "Tensor | None", tags: Tags | None) -> TokenScores:
        import torch

        if words is None or tags is None:
            return TokenScores(_four(torch.softmax(bi_logits, -1)))
        bioe, label = joint(bi_logits, words)
        if not self._joint:
            bioe = torch.softmax(bi_logits, -1)
        return TokenScores(_four(bioe), tags.words, label.cpu().numpy())

    def _tags_of(self, instruction: str) -> Tags | None:
        if self._given is not None:
            return self._given
        words = tag_words(instruction) if self._names_spans or self._joint else ()
        return self._tags(words) if words else None

    def _tags(self, words: tuple[str, ...]) -> Tags:
        """Find the tokens that stand for some words: of a word of several its first.

        Raises:
            ArgumentError: there are no words, two of them begin with the same token, or the model has no LM head.
        """
        out = "; reword the tagging rule, or load the critic with other `tags`"
        if not self._names_spans:
            raise ArgumentError(
                f"tag words {words}: this checkpoint has no lm_head, so it names nothing; load the critic without `tags` and "
                "with joint=False, which marks without naming, or leave the tagging rule out"
            )
        if not words or not all(isinstance(word, str) and word.strip() for word in words):
            raise ArgumentError(f"tags must be words, not {words!r}{out}")
        tokens = self.encode([*words, OUTSIDE])
        ids = tokens.ids[np.cumsum(tokens.counts) - tokens.counts].tolist()
        for place, (word, token) in enumerate(zip((*words, OUTSIDE), ids, strict=True)):
            if token in ids[:place]:
                raise ArgumentError(
                    f"the tag words {(*words, OUTSIDE)[ids.index(token)]!r} and {word!r} begin with the same token, "
                    f"so the LM head cannot tell them apart{out}"
                )
        return Tags(words, tuple(ids))


def tag_words(instruction: str) -> tuple[str, ...]:
    """Read the words of a tagging rule: "tag the needles with 'needle'" names "needle". None of them: an empty tuple.

    Args:
        instruction: a rule begins with "tag"; its words are quoted and follow "with" or "as", perhaps on the next line, one or
            several ("with 'name', 'date' or 'place'").
    """
    lists = (match[1] for rule in _RULE.findall(instruction) for match in _WORDS.finditer(rule))
    words = (word.strip() for found in lists for word in re.findall(_QUOTED, found))
    return tuple(dict.fromkeys(word for word in words if word))


def joint(bi_logits: "Tensor", label_logits: "Tensor") -> "tuple[Tensor, Tensor]":
    """Multiply the distribution of the tags with that of the words, over the pairs that agree.

    B, I and E go with a tag word, O with "outside"; pairs such as "Begin-outside" have no part.

    Args:
        bi_logits: [..., 3 or 4] of B, I, O and E.
        label_logits: [..., words + 1], the last of "outside".

    Returns:
        The probabilities of the tags, shaped as `bi_logits`, and for each token the index of its best word.
    """
    import torch

    tags, words = torch.log_softmax(bi_logits.float(), -1), torch.log_softmax(label_logits.float(), -1)
    joined = tags + torch.logsumexp(words[..., :-1], -1, keepdim=True)
    joined[..., 2] = tags[..., 2] + words[..., -1]
    return torch.softmax(joined, -1), words[..., :-1].argmax(-1)


def _rows(logits: "Tensor", rows: "Tensor") -> "Tensor":
    return logits[rows.to(logits.device)].float()


def _four(probabilities: "Tensor") -> npt.NDArray[np.floating]:
    """As numpy; with the scheme BIO nothing ever ends."""
    found: npt.NDArray[np.floating] = probabilities.cpu().numpy()
    return found if found.shape[1] == 4 else np.pad(found, ((0, 0), (0, 1)))


def _length(window: Window) -> int:
    return len(window.prompt.ids) + len(window.ids)


def _batched(lengths: list[int], tokens: int) -> list[list[int]]:
    """Group places of windows by like length, the longest first, so that no group is more than `tokens` with its padding.

    No window is padded by more than a quarter: a context's last one, which is short, is not read as if it were full.
    """
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        longest = lengths[batches[-1][0]] if batches else 0
        if longest and longest * (len(batches[-1]) + 1) <= tokens and longest * 3 <= lengths[place] * 4:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


def _control(tokenizer: "Tokenizer", token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ModelError(f"the tokenizer has no {token}: it is not of QwenLong-CPRS; copy tokenizer.json from the checkpoint")
    return int(found)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out: only the allocators of GPUs have an error of their own for it."""
    import torch

    signs = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


def _check_whole(name: str, value: object, low: int, high: int | None = None) -> None:
    if type(value) is not int or value < low or (high is not None and value > high):
        limit = f"from {low}" if high is None else f"from {low} to {high}"
        raise ArgumentError(f"{name} must be a whole number {limit}, not {value!r}")


def _devices(device: str | None, device_map: object) -> list[str]:
    """Names of the devices that each get a model; none if a map places one.

    Raises:
        ArgumentError: there is no such device, or both are given.
    """
    import torch

    if device_map is not None:
        if device is not None:
            raise ArgumentError("device and device_map are both given: give one of them")
        return []
    if device is None:
        return ["cuda" if torch.cuda.is_available() else "cpu"]
    names = [name.strip() for name in device.split(",")]
    for name in names:
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ArgumentError(
                f"device={device!r}: {name!r} cannot be used here ({reason}); take 'cpu' or leave it out"
            ) from error
    return names


def _mapped(device_map: object) -> list[str]:
    """The devices that a map names; "auto" and the like mean GPUs where there are any."""
    return [str(place) for place in device_map.values()] if isinstance(device_map, dict) else [str(device_map)]


def _native_dtype(devices: list[str]) -> str:
    import torch

    if set(devices) <= {"cpu", "disk"} or not torch.cuda.is_available():
        return "float32"
    # older cards only emulate bfloat16, slowly
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
