"""Tools of LlamaIndex agents whose outputs are shortened by the engine."""

from collections.abc import Callable
from typing import Any

from llama_index.core.base.llms.types import ContentBlock, TextBlock
from llama_index.core.bridge.pydantic import Field, TypeAdapter
from llama_index.core.tools import AsyncBaseTool, BaseTool, FunctionTool, ToolOutput, adapt_to_async_tool
from llama_index.core.workflow import Context

from cprs_integrations.tool_output import Shortened, ToolOutputOptions, question

_CONTEXT = "cprs_context"


class CompressedToolOutput(ToolOutput):
    """The output of a tool, shortened. `raw_output` is what the tool returned.

    Attributes:
        cprs: what was done, as JSON.
        original: the blocks as they were.
    """

    cprs: dict[str, Any] = Field(default_factory=dict)
    original: list[ContentBlock] = Field(default_factory=list)

    def __init__(
        self, *, cprs: dict[str, Any] | None = None, original: list[ContentBlock] | None = None, **fields: Any
    ) -> None:
        super().__init__(**fields)
        # as they are, or as a dump has them: a saved run of an agent is read back
        self.cprs, self.original = cprs or {}, TypeAdapter(list[ContentBlock]).validate_python(original or [])


class CompressedTool(FunctionTool):
    """A tool whose long outputs are shortened, once, before an agent sees them. Made by `compressed_tool`.

    It is a `FunctionTool` that asks for the agent's context, since agents hand theirs to no other: the user's message is in it.
    """

    def __init__(self, tool: BaseTool, options: ToolOutputOptions) -> None:
        self.tool: AsyncBaseTool = adapt_to_async_tool(tool)
        self.options = options
        super().__init__(fn=self.tool.call, async_fn=self.tool.acall, metadata=tool.metadata)
        self._wanted = tool.ctx_param_name if isinstance(tool, FunctionTool) and tool.requires_context else None
        self.requires_context, self.ctx_param_name = True, self._wanted or _CONTEXT

    def __call__(self, *args: Any, **kwargs: Any) -> ToolOutput:
        """Call the tool, as `call` does."""
        return self.call(*args, **kwargs)

    def call(self, *args: Any, **kwargs: Any) -> ToolOutput:
        """Call the tool. Without a running agent the query comes from the arguments alone.

        Raises:
            CPRSError: the output could not be shortened, and `on_error` is "raise".
        """
        _, given = self._split(kwargs)
        output: ToolOutput = self.tool.call(*args, **given)
        texts = self._texts(output)
        return _replaced(output, self.options.shorten(texts, question("", self._asked(args, kwargs)))) if texts else output

    async def acall(self, *args: Any, **kwargs: Any) -> ToolOutput:
        """Call the tool; the query is the user's message and the wordings among the arguments. Errors as `call` has them."""
        context, given = self._split(kwargs)
        output: ToolOutput = await self.tool.acall(*args, **given)
        texts = self._texts(output)
        if not texts:
            return output
        asked = await context.store.get("user_msg_str", default="") if isinstance(context, Context) else ""
        return _replaced(output, await self.options.ashorten(texts, question(asked or "", self._asked(args, kwargs))))

    def _split(self, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The context, and the arguments that the tool itself takes."""
        context = kwargs.get(self._wanted or _CONTEXT)
        return context, kwargs if self._wanted else {key: kwargs[key] for key in kwargs if key != _CONTEXT}

    def _asked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        return [*args, *(value for key, value in kwargs.items() if key != self.ctx_param_name)]

    def _texts(self, output: ToolOutput) -> list[str]:
        """The texts of an output that is to be shortened; none of one that is not."""
        if output.is_error or self.metadata.return_direct:
            return []
        texts = [text for text in map(_text, output.blocks) if text is not None]
        return texts if self.options.wants(texts) else []


def compressed_tool(tool: BaseTool | Callable[..., Any], **options: Any) -> CompressedTool:
    """Wrap a tool so that an agent reads of its long outputs what helps with its task.

    Whatever is written in lines (code, logs, tables) keeps whole lines, with a marker such as "[12 lines omitted (40-51)]"
    for each gap; prose keeps sentences. Short outputs, errors, and outputs that answer the user directly (`return_direct`) are
    returned as they are; so are blocks that are no text, and everything where nothing is asked (no message of the user, no
    wordings among the arguments, and no `instruction`). A shortened output is a `CompressedToolOutput`: `cprs` tells what was
    done, `original` are the blocks as they were; `raw_output` is what the tool returned. (An agent's context that is saved as
    JSON in the middle of a run keeps the shortened text: LlamaIndex reads nested outputs back as plain ones.)

    ```python
    agent = FunctionAgent(tools=[compressed_tool(read_log, max_tokens=1_000)], llm=llm)
    ```

    Args:
        tool: a tool, or a function of which one is made.
        **options: those of `CPRSNodePostprocessor` but for `drop_empty` and `title_key`, and
            `min_chars` (2000): outputs of fewer characters are left as they are;
            `whole_lines` (None): True keeps whole lines of every output, False of none, None of what is written in lines.
            Bounds hold for each output and count what the model reads, markers included.

    Raises:
        ArgumentError: an option is unknown, or has a value it cannot have.
    """
    found = tool if isinstance(tool, BaseTool) else FunctionTool.from_defaults(tool)
    return CompressedTool(found, ToolOutputOptions.checked(options))


def _text(block: ContentBlock) -> str | None:
    return block.text if isinstance(block, TextBlock) and block.text.strip() else None


def _replaced(output: ToolOutput, shortened: Shortened) -> ToolOutput:
    left = iter(shortened.texts)
    blocks: list[ContentBlock] = []
    for block in output.blocks:
        if _text(block) is None:
            blocks.append(block)
        elif text := next(left):  # models refuse empty blocks
            blocks.append(block.model_copy(update={"text": text}))
    if blocks == output.blocks and "passthrough" not in shortened.metadata:
        return output
    return CompressedToolOutput(
        tool_name=output.tool_name,
        blocks=blocks,
        raw_input=output.raw_input,
        raw_output=output.raw_output,
        is_error=output.is_error,
        exception=output.exception,
        cprs=shortened.metadata,
        original=output.blocks,
    )
