"""The methods by their names: nothing, everything, the ends of a text, rankings, packages, and ours with any critic."""

import hashlib
import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from cprs_integrations.critics.mini import SHIPPED
from cprs_integrations.engine import CPRSEngine
from cprs_integrations.errors import ArgumentError, require
from cprs_integrations.evaluation import peers, rankings
from cprs_integrations.evaluation.embeddings import MiniLM, VectorCache
from cprs_integrations.evaluation.haystack import cut
from cprs_integrations.evaluation.items import Budget, Item, Kept, Method
from cprs_integrations.scored import Scored
from cprs_integrations.selection import TokenCounter

OURS = "cprs"
"""What the names of our own method begin with: "cprs", or "cprs:" and the name of a critic."""
FULL = "full context"
"""The one method that takes no budget."""

_WIDEST = 8  # characters of a token, at most, where a text is cut to tokens


@dataclass(frozen=True)
class Tools:
    """What methods are made of.

    Attributes:
        count: counts tokens.
        cache: file of the vectors that the baselines share; None keeps them in memory.
        window: tokens that the LLM reads; None: any number.
    """

    count: TokenCounter
    cache: Path | None = None
    window: int | None = None

    @cached_property
    def model(self) -> MiniLM:
        """The one embedding model of a run."""
        return MiniLM(self._vectors)

    @cached_property
    def _vectors(self) -> VectorCache:
        return VectorCache(self.cache)

    def close(self) -> None:
        """Close the file of vectors."""
        self._vectors.close()


class Ours:
    """Compresses with an engine; the scores of the last item are remembered, so another budget only selects again.

    Args:
        engine: with any critic.
        instruction: what to keep; None: sentences that help to answer the question.
        count: counts tokens for budgets in tokens; None: the engine does.
    """

    def __init__(self, engine: CPRSEngine, instruction: str | None = None, count: TokenCounter | None = None) -> None:
        self._engine, self._instruction, self._count = engine, instruction, count
        self._last: tuple[Item, Scored] | None = None

    def __call__(self, item: Item, budget: Budget) -> Kept:
        """Keep the best of an item."""
        if self._last is None or self._last[0] is not item:
            scored = self._engine.score(item.documents, item.question, instruction=self._instruction, titles=item.titles)
            self._last = item, scored
        count = self._count if budget.max_tokens is not None else None
        found = self._last[1].select(max_ratio=budget.max_ratio, max_tokens=budget.max_tokens, token_counter=count)
        seconds = dict(found.stats.seconds)
        seconds["score"] -= seconds["segment"]  # of which it is a part
        return Kept(found.text, seconds)


def _full(tools: Tools) -> Method:
    def keep(item: Item, budget: Budget) -> Kept:
        began = time.perf_counter()
        text = _head(item.text, tools.window, tools.count) if tools.window is not None else item.text
        note = f"cut to the {tools.window:,} tokens of the LLM's window" if len(text) < len(item.text) else ""
        return Kept(text, {"cut": time.perf_counter() - began}, note)

    return keep


def _head(text: str, tokens: int, count: TokenCounter) -> str:
    """The longest beginning of at most so many tokens, about: found by halving."""
    low, high = 0, min(len(text), _WIDEST * tokens)
    if high == len(text) and count(text) <= tokens:
        return text
    while high - low > 64:
        middle = (low + high) // 2
        low, high = (middle, high) if count(text[:middle]) <= tokens else (low, middle)
    return cut(text, low)


def _truncation(tools: Tools, is_tail: bool) -> Method:
    def keep(item: Item, budget: Budget) -> str:
        if budget.max_tokens is not None:
            text = item.text[::-1] if is_tail else item.text
            kept = _head(text, budget.max_tokens, lambda part: tools.count(part[::-1] if is_tail else part))
        else:
            limit = int(budget.limit(item))
            kept = cut(item.text[::-1] if is_tail else item.text, limit)
        return kept[::-1] if is_tail else kept

    return keep


def _bm25(tools: Tools) -> Method:
    require("rank_bm25", "bench")
    return rankings.by_scores(rankings.bm25, tools.count)


def _both(tools: Tools) -> Method:
    require("rank_bm25", "bench")
    return rankings.by_scores(partial(rankings.both, tools.model.cosines), tools.count, tools.model)


METHODS: dict[str, Callable[[Tools], Method]] = {
    FULL: _full,
    "head": partial(_truncation, is_tail=False),
    "tail": partial(_truncation, is_tail=True),
    "RAG": lambda tools: rankings.plain_rag(tools.model, tools.count),
    "BM25": _bm25,
    "MiniLM": lambda tools: rankings.by_scores(tools.model.cosines, tools.count, tools.model),
    "BM25+MiniLM": _both,
    "EmbeddingsFilter": lambda tools: peers.embeddings_filter(tools.model, tools.count),
    "SentenceEmbeddingOptimizer": lambda tools: peers.sentence_optimizer(tools.model),
    "llmslim": lambda tools: peers.llmslim(),
    "trimwise": lambda tools: peers.trimwise(tools.count),
    "llmlingua": lambda tools: peers.llmlingua(),
}
"""Each makes its method, or raises what is missing: MissingExtraError, ArgumentError."""


def load_method(name: str, tools: Tools) -> Method:
    """Load a method by its name.

    Args:
        name: one of `METHODS`; "cprs", with the critic that ships; "cprs:CRITIC" (`engine_of`); or "MODULE:NAME" of a
            function of yours, from an item and a budget to the kept text.
        tools: what it is made of.

    Raises:
        ArgumentError: there is no such method, or something it needs is not here.
        MissingExtraError: a package is missing; the message has the command that installs it.
    """
    if name in METHODS:
        return METHODS[name](tools)
    if name == OURS or name.startswith(f"{OURS}:"):
        return Ours(engine_of(name.partition(":")[2] or None), count=tools.count)
    found = load_object(name, "methods")
    if found is None:
        known = ", ".join((*METHODS, OURS))
        raise ArgumentError(f"methods: there is no {name!r}; there are {known}, cprs:CRITIC, or MODULE:NAME of a function")
    if not callable(found):
        raise ArgumentError(f"methods: {name} is no function but {found!r}")
    method: Method = found
    return method


def engine_of(critic: str | None) -> CPRSEngine:
    """An engine with a critic: None for the one that ships, a folder, the id of a checkpoint, or "reranker:FOLDER"."""
    if critic is not None and critic.startswith("reranker:"):
        return CPRSEngine.from_pretrained("reranker", model_path=critic.partition(":")[2])
    return CPRSEngine.from_pretrained(critic)


def digest_of(method: str) -> str:
    """What changes when our method has another critic, such as one trained anew into its folder; "" for other methods."""
    if method != OURS and not method.startswith(f"{OURS}:"):
        return ""
    name = method.partition(":")[2]
    folder = Path(name.removeprefix("reranker:")) if name else SHIPPED
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        # a critic's configuration holds the digests of its other files
        content = path.read_bytes() if path.name == "config.json" else str(path.stat().st_size).encode()
        digest.update(path.name.encode() + b"\0" + content)
    return digest.hexdigest()[:16]


def load_object(name: str, argument: str) -> Any:
    """What "MODULE:NAME" names, if it names anything.

    Raises:
        ArgumentError: the module cannot be imported.
    """
    module, colon, attribute = name.partition(":")
    if not (colon and module and attribute):
        return None
    try:
        return getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # whatever a module of the user's does when it is imported
        raise ArgumentError(f"{argument}: {module} cannot be imported: {type(error).__name__}: {error}") from error


def names_of(chosen: Sequence[str] = (), critics: Sequence[str] = ()) -> list[str]:
    """The chosen methods, or all; and ours with the critics that are named, or, where nothing is, the one that ships."""
    ours = [f"{OURS}:{critic}" for critic in critics]
    return list(dict.fromkeys([*(chosen or METHODS), *(ours if chosen or ours else [OURS])]))
