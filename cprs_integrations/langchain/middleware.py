"""A LangChain agent middleware on the engine."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from langchain_core.messages import HumanMessage, ToolMessage
from pydantic import Field

from cprs_integrations.adapters import KEY
from cprs_integrations.errors import ArgumentError, require
from cprs_integrations.tool_output import Shortened, ToolOutputOptions, question

require("langchain.agents.middleware", "agents")

from langchain.agents.middleware import AgentMiddleware, ToolCallRequest  # noqa: E402
from langgraph.types import Command  # noqa: E402

_Result = ToolMessage | Command[Any]


class MiddlewareOptions(ToolOutputOptions):
    """The options of `CPRSToolOutputMiddleware`."""

    exclude_tools: list[str] = Field(default_factory=list, description="Names of tools whose outputs are left as they are.")


class CPRSToolOutputMiddleware(AgentMiddleware[Any, Any, Any]):
    r"""Shortens the long outputs of an agent's tools to what helps with its task, once, when they enter the conversation.

    Whatever is written in lines (code, logs, tables) keeps whole lines, with a marker such as "[12 lines omitted (40-51)]"
    for each gap; prose keeps sentences. A message that is in the conversation is never touched again, and the same output
    becomes the same bytes: the prompt caches of providers stay valid.

    The output is left as it is when it is short, an error, a `Command`, of an excluded tool, or of a tool that answers the
    user directly (`return_direct`), or when nothing is asked (no human message, no wordings among the arguments, and no
    `instruction`); of a list of content blocks, those that are not plain text are.

    What was done stands in `response_metadata["cprs"]`. The original content is in `artifact`; if the tool has set an
    artifact of its own, that stays, and the original is in `response_metadata["cprs"]["original"]`: `original` finds it.

    ```python
    agent = create_agent(model, tools, middleware=[CPRSToolOutputMiddleware(max_tokens=1_000, exclude_tools=["edit_file"])])
    ```

    Args:
        **options: those of `CPRSCompressor` but for `drop_empty` and `title_key` (`critic`, `critic_options`, `instruction`,
            `granularity`, `threshold`, `max_ratio`, `max_tokens`, `token_counter`, `protect`, `on_error`, `engine`), and
            `min_chars` (2000): outputs of fewer characters are left as they are;
            `exclude_tools` (none): names of tools whose outputs are left as they are;
            `whole_lines` (None): True keeps whole lines of every output, False of none, None of what is written in lines.
            Bounds hold for each output and count what the model reads, markers included. `protect=[r"\A.+"]` keeps the
            first line, the header of a table, before all else.

    Attributes:
        options: all options; `options.to_dict()` are those from which the middleware can be built again.

    Raises:
        ArgumentError: an option is unknown, or has a value it cannot have.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = MiddlewareOptions.checked(options)

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], _Result]) -> _Result:
        """Run the tool, and shorten what it returns.

        Raises:
            CPRSError: it could not be shortened, and `on_error` is "raise".
        """
        result: Any = handler(request)
        if isinstance(result, list):  # whatever the annotation says: tools may return several messages and commands
            return [self._shortened(request, one) for one in result]  # type: ignore[return-value]
        return self._shortened(request, result)

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[_Result]]
    ) -> _Result:
        """`wrap_tool_call` without holding the event loop. Errors as there."""
        result: Any = await handler(request)
        if isinstance(result, list):
            return [await self._ashortened(request, one) for one in result]  # type: ignore[return-value]
        return await self._ashortened(request, result)

    def query(self, request: ToolCallRequest) -> str:
        """Return what the output of a call is to answer; override it to ask something else.

        It is the last human message, and the wordings among the call's arguments. A summary that LangChain's
        `SummarizationMiddleware` put into the conversation is not what the human said.
        """
        messages = _messages(request.state)
        said = [message for message in messages if isinstance(message, HumanMessage)]
        own = [message for message in said if message.additional_kwargs.get("lc_source") != "summarization"]
        asked = str((own or said)[-1].text) if said else ""
        return question(asked, request.tool_call["args"])

    @staticmethod
    def original(message: ToolMessage) -> str | list[str | dict[str, Any]]:
        """Return the content that a message had before it was shortened; its content, if it was not.

        Raises:
            ArgumentError: the original is gone; other middleware, such as `ContextEditingMiddleware`, clears artifacts.
        """
        ours = message.response_metadata.get(KEY)
        if ours is None or ours.get("passthrough"):
            return message.content
        found: str | list[str | dict[str, Any]] | None = ours.get("original", message.artifact)
        if found is None:
            raise ArgumentError("message: its original is gone; its artifact was cleared after it was shortened")
        return found

    def _shortened(self, request: ToolCallRequest, result: _Result) -> _Result:
        texts = self._texts(request, result)
        return _replaced(result, self.options.shorten(texts, self.query(request))) if texts else result

    async def _ashortened(self, request: ToolCallRequest, result: _Result) -> _Result:
        texts = self._texts(request, result)
        return _replaced(result, await self.options.ashorten(texts, self.query(request))) if texts else result

    def _texts(self, request: ToolCallRequest, result: _Result) -> list[str]:
        """The texts of a result that is to be shortened; none of one that is not."""
        if not isinstance(result, ToolMessage) or result.status == "error":
            return []
        is_direct = request.tool is not None and request.tool.return_direct
        if is_direct or request.tool_call["name"] in self.options.exclude_tools:
            return []
        texts = [text for text in map(_text, _blocks(result)) if text is not None]
        return texts if self.options.wants(texts) else []


def _messages(state: Any) -> Sequence[Any]:
    if isinstance(state, dict):
        state = state.get("messages", ())
    return state if isinstance(state, list | tuple) else getattr(state, "messages", ())


def _blocks(message: ToolMessage) -> list[str | dict[str, Any]]:
    return [message.content] if isinstance(message.content, str) else message.content


def _text(block: str | dict[str, Any]) -> str | None:
    """The text of a block, if that is all it says: annotations point to places in it."""
    text = block
    if isinstance(block, dict):
        text = block.get("text", "") if block.get("type") == "text" and not block.get("annotations") else ""
    return text if isinstance(text, str) and text.strip() else None


def _replaced(message: Any, shortened: Shortened) -> ToolMessage:
    """Return a copy of a message with shorter texts, or with nothing but the reason why they are not."""
    left = iter(shortened.texts)
    content: list[str | dict[str, Any]] = []
    for block in _blocks(message):
        if _text(block) is None:
            content.append(block)
        elif text := next(left):  # models refuse empty blocks
            content.append({**block, "text": text} if isinstance(block, dict) else text)
    is_one = isinstance(message.content, str)
    found: Any = "".join(map(str, content)) if is_one else content
    if found == message.content and "passthrough" not in shortened.metadata:
        return message  # type: ignore[no-any-return]
    ours = dict(shortened.metadata)
    update: dict[str, Any] = {"content": found}
    if "passthrough" not in ours:
        if message.artifact is None:
            update["artifact"] = message.content
        else:
            ours["original"] = message.content
    update["response_metadata"] = {**message.response_metadata, KEY: ours}
    return message.model_copy(update=update)  # type: ignore[no-any-return]
