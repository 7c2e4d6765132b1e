"""The LLM of the notebooks, for LangChain and for LlamaIndex: SmolLM2, or any OpenAI-compatible endpoint.

The environment decides: `OPENAI_BASE_URL` and `OPENAI_MODEL`, both or neither (and `OPENAI_API_KEY`, where one is needed).
"""

import os
from collections.abc import Sequence
from typing import Any

from cprs_integrations.errors import ArgumentError, MissingExtraError, require
from cprs_integrations.evaluation.smollm import NAME, smollm

_VARIABLES = ("OPENAI_BASE_URL", "OPENAI_MODEL")
_ROLES = {"human": "user", "ai": "assistant", "system": "system"}


def model_name() -> str:
    """What is asked: SmolLM2, or the model of the endpoint.

    Raises:
        ArgumentError: one of the two variables is set, the other is not.
    """
    endpoint = _endpoint()
    return endpoint["model"] if endpoint else NAME


def langchain_model() -> Any:
    """A chat model of LangChain.

    Raises:
        ArgumentError: one of the two variables is set, the other is not.
        MissingExtraError: a package is not installed; the message has the command that installs it.
    """
    if endpoint := _endpoint():
        found = _import("langchain_openai", "langchain-openai")
        return found.ChatOpenAI(**endpoint, temperature=0, max_tokens=smollm.max_new_tokens)
    require("langchain_core", "notebooks")
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage, BaseMessage
    from langchain_core.outputs import ChatGeneration, ChatResult

    class SmolChatModel(BaseChatModel):
        """SmolLM2 as a chat model of LangChain."""

        @property
        def _llm_type(self) -> str:
            return NAME

        def _generate(self, messages: list[BaseMessage], stop: list[str] | None = None, *_: Any, **__: Any) -> ChatResult:
            found = smollm.chat([{"role": _role(message.type), "content": str(message.text)} for message in messages])
            usage: Any = found.usage_metadata
            message = AIMessage(_until(found.text, stop or ()), usage_metadata=usage)
            return ChatResult(generations=[ChatGeneration(message=message)])

    return SmolChatModel()


def llama_index_llm() -> Any:
    """An LLM of LlamaIndex. Errors as in `langchain_model`."""
    if endpoint := _endpoint():
        found = _import("llama_index.llms.openai_like", "llama-index-llms-openai-like")
        names = {"base_url": "api_base"}
        options = {names.get(name, name): value for name, value in endpoint.items()}
        return found.OpenAILike(**options, is_chat_model=True, temperature=0, max_tokens=smollm.max_new_tokens)
    require("llama_index.core", "notebooks")
    from llama_index.core.llms import CompletionResponse, CompletionResponseGen, CustomLLM, LLMMetadata
    from llama_index.core.llms.callbacks import llm_completion_callback

    class SmolCustomLLM(CustomLLM):
        """SmolLM2 as an LLM of LlamaIndex; the tokens it read stand in `additional_kwargs` of a response."""

        @property
        def metadata(self) -> LLMMetadata:
            return LLMMetadata(context_window=smollm.window, num_output=smollm.max_new_tokens, model_name=NAME)

        @llm_completion_callback()
        def complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponse:
            found = smollm.complete(prompt)
            return CompletionResponse(text=found.text, additional_kwargs=found.usage_metadata)

        @llm_completion_callback()
        def stream_complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponseGen:
            found = self.complete(prompt)
            found.delta = found.text
            yield found

    return SmolCustomLLM()


def _endpoint() -> dict[str, str] | None:
    base, model = (os.environ.get(name, "") for name in _VARIABLES)
    if bool(base) != bool(model):
        raise ArgumentError(f"environment: set both {' and '.join(_VARIABLES)} for an endpoint of yours, or neither")
    return {"base_url": base, "model": model, "api_key": os.environ.get("OPENAI_API_KEY") or "none"} if base else None


def _import(module: str, package: str) -> Any:
    try:
        return require(module, "notebooks")
    except MissingExtraError as error:
        raise MissingExtraError(f"{package} is not installed; run: pip install {package}", name=error.name) from error


def _role(kind: str) -> str:
    if kind not in _ROLES:
        raise ArgumentError(f"messages: {NAME} knows {', '.join(_ROLES)} messages, not {kind!r}")
    return _ROLES[kind]


def _until(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.split(stop, 1)[0]
    return text
