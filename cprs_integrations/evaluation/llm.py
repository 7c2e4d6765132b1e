"""End to end: what an LLM answers from the kept text. Any chat model of LangChain, LLM of LlamaIndex, or function will do."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cprs_integrations.errors import ArgumentError
from cprs_integrations.evaluation.items import Item
from cprs_integrations.selection import TokenCounter

PROMPT = """Read the following text and answer the question after it. Give only the answer.

{context}

Question: {question}
Answer:"""


@dataclass(frozen=True)
class Answer:
    """What an LLM said, the tokens of the prompt and of the answer, and how long it took."""

    text: str
    prompt_tokens: int
    answer_tokens: int
    seconds: float

    def cost(self, prices: tuple[float, float]) -> float:
        """Cost at some prices for a million tokens of prompts and of answers."""
        return (self.prompt_tokens * prices[0] + self.answer_tokens * prices[1]) / 1e6


class Reader:
    """Asks an LLM.

    Args:
        model: a chat model or LLM of LangChain (it has `invoke`), an LLM of LlamaIndex (it has `complete`), or a function
            from a prompt to an answer.
        count: counts tokens where the model does not say how many it read.

    Raises:
        ArgumentError: the model is none of these.
    """

    def __init__(self, model: Any, count: TokenCounter) -> None:
        self._count = count
        self._ask: Callable[[str], Any]
        if isinstance(model, type):
            raise ArgumentError(f"llm must be an object, not the class {model.__name__}: make one of it")
        if callable(getattr(model, "invoke", None)):
            self._ask = model.invoke
        elif callable(getattr(model, "complete", None)):
            self._ask = model.complete
        elif callable(model):
            self._ask = model
        else:
            raise ArgumentError(f"llm must have invoke (LangChain) or complete (LlamaIndex), or be a function, not {model!r}")

    def answer(self, item: Item, kept: str) -> Answer:
        """Ask an item's question about the kept text."""
        prompt = PROMPT.format(context=kept, question=item.question)
        began = time.perf_counter()
        found = self._ask(prompt)
        seconds = time.perf_counter() - began
        text = _text(found)
        read, written = _usage(found)
        return Answer(text, int(read or self._count(prompt)), int(written or self._count(text)), seconds)


def _usage(found: Any) -> tuple[int | None, int | None]:
    """Tokens read and written, where the answer says so: as LangChain's messages do, or as LlamaIndex's completions."""
    usage = getattr(found, "usage_metadata", None)
    if usage:
        return usage.get("input_tokens"), usage.get("output_tokens")
    more = getattr(found, "additional_kwargs", None) or {}
    return more.get("prompt_tokens"), more.get("completion_tokens")


def _text(found: Any) -> str:
    if isinstance(found, str):
        return found
    for name in ("text", "content"):
        value = getattr(found, name, None)
        if callable(value) and not isinstance(value, str):  # LangChain's messages had it as a method once
            value = value()
        if isinstance(value, str):
            return str(value)
    raise ArgumentError(f"llm returned {type(found).__name__}, which has no text")
