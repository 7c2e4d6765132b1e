"""Compressed tools in real agents, with a model that follows a script."""

import json

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent, ToolCallResult
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ImageBlock, TextBlock, ToolCallBlock
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import MockLLM
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.schema import Document
from llama_index.core.tools import BaseTool, FunctionTool, QueryEngineTool, RetrieverTool, ToolMetadata, ToolOutput
from llama_index.core.tools.calling import acall_tool, call_tool
from llama_index.core.workflow import Context, JsonPickleSerializer, JsonSerializer
from log_file import ASKED, HIT, log_file
from samples import ANSWER, CAPITALS, QUESTION

from cprs_integrations import CPRSEngine, CPRSError
from cprs_integrations.critics.known import KnownCritic
from cprs_integrations.llama_index import CompressedToolOutput, compressed_tool

# LlamaIndex's agents look at every attribute that they have, those that pydantic deprecates included
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning:inspect")
LOG = log_file()
KNOWN = CPRSEngine(critic=KnownCritic({"8812": 0.9, "Hillary": 0.8}))
SHORT = f"[59 lines omitted (1-59)]\n{HIT}\n[60 lines omitted (61-120)]"


def read_log(path: str = "app.log") -> str:
    """Read a log."""
    return LOG


class Script:
    """A model that says its lines one after the other, and remembers what it was shown."""

    def __init__(self, *lines):
        self.lines = [*lines, ChatMessage(role="assistant", content="done")]
        self.shown = []
        self.llm = MockFunctionCallingLLM(response_generator=self._next, is_chat_model=True)

    def _next(self, messages, **kwargs):
        self.shown.append([message.model_dump_json() for message in messages])
        return self.lines[len(self.shown) - 1]


def calls(*names, **args):
    return ChatMessage(
        role="assistant",
        blocks=[ToolCallBlock(tool_call_id=f"{name}-{n}", tool_name=name, tool_kwargs=args) for n, name in enumerate(names)],
    )


async def run(tools, *names, asked=ASKED, make=None, **args):
    """Let an agent call tools once; return their outputs and the script."""
    script = Script(calls(*names, **args))
    agent = FunctionAgent(tools=tools, llm=script.llm, streaming=False)
    handler = (make(agent) if make else agent).run(user_msg=asked)
    outputs = [event.tool_output async for event in handler.stream_events() if isinstance(event, ToolCallResult)]
    assert str(await handler) == "done"
    return outputs, script


@pytest.mark.parametrize("make", [None, lambda agent: AgentWorkflow(agents=[agent])], ids=["agent", "workflow"])
async def test_an_agent_reads_the_short_output_and_the_original_is_kept(make):
    (output,), script = await run([compressed_tool(read_log, engine=KNOWN)], "read_log", make=make)
    assert isinstance(output, CompressedToolOutput)
    assert output.content == SHORT
    assert output.raw_output == LOG
    assert output.original == [TextBlock(text=LOG)]
    assert (output.tool_name, output.is_error) == ("read_log", False)
    told = json.loads(json.dumps(output.cprs))
    assert told["query"] == ASKED, "the agent's context tells what the user asked"
    assert told["texts"][0]["omitted_lines"] == [[1, 59], [61, 120]]
    assert json.dumps(SHORT) in script.shown[1][-1]
    assert "request 1001 " not in script.shown[1][-1]


async def test_the_shipped_critic_finds_the_line_of_a_log_and_the_sentence_of_a_page():
    def read_page(url: str = "") -> str:
        """Read a page."""
        return " ".join((*CAPITALS[:3] * 8, CAPITALS[3], *CAPITALS[:3] * 8))

    tools = [compressed_tool(tool, max_ratio=0.1) for tool in (read_log, read_page)]
    (output,), _ = await run(tools, "read_log")
    assert HIT in output.content.split("\n")
    assert len(output.content) <= 0.1 * len(LOG)
    (output,), _ = await run(tools, "read_page", asked=QUESTION)
    assert ANSWER in output.content


async def test_what_a_model_has_seen_never_changes():
    script = Script(calls("read_log"), calls("read_log", "read_log"), calls("read_log"))
    agent = FunctionAgent(tools=[compressed_tool(read_log, engine=KNOWN)], llm=script.llm, streaming=False)
    await agent.run(user_msg=ASKED)
    assert len(script.shown) == 4
    for before, after in zip(script.shown, script.shown[1:], strict=False):
        assert after[: len(before)] == before
    assert sum(json.dumps(SHORT) in message for message in script.shown[-1]) == 4


@pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning")  # by LlamaIndex itself
async def test_an_agent_without_function_calls_reads_it_too():
    class Reasoning(MockLLM):
        shown: list = []

        def complete(self, prompt, formatted=False, **kwargs):
            raise AssertionError("a chat model")

        async def achat(self, messages, **kwargs):
            self.shown.append(messages[-1].content)
            said = (
                "Thought: I must look.\nAction: read_log\nAction Input: {}"
                if len(self.shown) == 1
                else "Thought: ok\nAnswer: done"
            )
            return ChatResponse(message=ChatMessage(role="assistant", content=said))

    llm = Reasoning(is_chat_model=True)
    agent = ReActAgent(tools=[compressed_tool(read_log, engine=KNOWN)], llm=llm, streaming=False)
    assert str(await agent.run(user_msg=ASKED)) == "done"
    assert llm.shown[-1] == f"Observation: {SHORT}"


async def test_a_tool_that_wants_the_context_gets_it():
    seen = []

    async def look(context: Context, place: str) -> str:
        """Look."""
        seen.append((await context.store.get("user_msg_str"), place))
        return LOG

    tool = compressed_tool(look, engine=KNOWN)
    assert set(tool.metadata.get_parameters_dict()["properties"]) == {"place"}
    (output,), _ = await run([tool], "look", place="here")
    assert seen == [(ASKED, "here")]
    assert output.content == SHORT
    assert output.cprs["query"] == f"{ASKED}\nhere"
    assert output.raw_input["kwargs"] == {"place": "here"}


def returning(value, **options):
    def fetch(about: str = "order") -> str:
        """Fetch."""
        if isinstance(value, Exception):
            raise value
        return value

    return FunctionTool.from_defaults(fetch, **options)


IMAGE = ImageBlock(image=b"AAAA", image_mimetype="image/png")


async def test_of_blocks_the_texts_are_shortened_and_images_pass():
    blocks = [TextBlock(text=LOG), IMAGE, TextBlock(text=LOG)]
    tool = compressed_tool(returning(blocks), engine=KNOWN, max_tokens=2 * len(SHORT) + 2, token_counter=len)
    (output,), _ = await run([tool], "fetch")
    assert output.blocks == [TextBlock(text=SHORT), blocks[1], TextBlock(text=SHORT)]
    assert output.original == blocks
    assert blocks[0].text == LOG, "what the tool returned is not changed"


@pytest.mark.parametrize(
    ("value", "options"),
    [(HIT, {}), (LOG, {"min_chars": len(LOG) + 1}), ([IMAGE], {"min_chars": 0}), ("", {"min_chars": 0}), (ValueError(LOG), {})],
    ids=["short by default", "short", "image", "empty", "error"],
)
async def test_what_is_not_to_be_shortened_is_left_as_it_is(value, options):
    (plain,), _ = await run([returning(value)], "fetch")
    (found,), _ = await run([compressed_tool(returning(value), engine=KNOWN, **options)], "fetch")
    assert type(found) is ToolOutput
    assert (found.blocks, found.raw_output, found.is_error) == (plain.blocks, plain.raw_output, plain.is_error)


async def test_an_error_that_a_tool_returns_is_left_as_it_is():
    error = ToolOutput(content=LOG, tool_name="fetch", raw_input={}, raw_output=None, is_error=True)
    tool = compressed_tool(returning("x", callback=lambda _: error), engine=KNOWN)
    assert await tool.acall(about="a") is error
    assert tool.call(about="a") is error


async def test_what_goes_to_the_user_directly_is_left_as_it_is():
    script = Script(calls("fetch"))
    tool = compressed_tool(returning(LOG, return_direct=True), engine=KNOWN)
    agent = FunctionAgent(tools=[tool], llm=script.llm, streaming=False)
    assert str(await agent.run(user_msg=ASKED)) == LOG


async def test_without_an_agent_the_arguments_are_the_query_sync_and_async():
    tool = compressed_tool(read_log, engine=KNOWN)
    for output in (tool(path="a.log"), tool.call(path="a.log"), await tool.acall(path="a.log"), tool("a.log")):
        assert (output.content, output.cprs["query"]) == (SHORT, "a.log")
    for output in (call_tool(tool, {"path": "a.log"}), await acall_tool(tool, {"path": "a.log"})):
        assert (output.content, output.cprs["query"]) == (SHORT, "a.log")


async def test_where_nothing_is_asked_the_output_stays_and_says_why():
    tool = compressed_tool(read_log, engine=KNOWN)
    for output in (tool(), await tool.acall()):
        assert output.content == LOG
        assert output.cprs["passthrough"] is True
        assert output.cprs["reason"].startswith("nothing is asked")
    assert compressed_tool(read_log, engine=KNOWN, instruction="Keep error 8812.")().content == SHORT


async def test_a_saved_output_is_read_back():
    output = compressed_tool(read_log, engine=KNOWN)("8812")
    for saved in (JsonSerializer(), JsonPickleSerializer()):
        found = saved.deserialize(saved.serialize(output))
        assert isinstance(found, CompressedToolOutput)
        assert (found.content, found.cprs, found.original) == (SHORT, output.cprs, [TextBlock(text=LOG)])
        assert found.original == output.original
    assert output.model_copy(update={"tool_name": "other"}).cprs == output.cprs


async def test_tools_of_other_kinds_are_wrapped_too():
    index = VectorStoreIndex.from_documents([Document(text=" ".join(CAPITALS) * 10)], embed_model=MockEmbedding(8))
    engine = QueryEngineTool.from_defaults(index.as_query_engine(llm=MockLLM()), name="pages", description="Pages.")
    retriever = RetrieverTool.from_defaults(index.as_retriever(), name="nodes", description="Nodes.")

    class Plain(BaseTool):
        metadata = ToolMetadata(name="plain", description="Plain.")

        def __call__(self, input):
            return ToolOutput(content=LOG, tool_name="plain", raw_input={"input": input}, raw_output=LOG)

    tools = [compressed_tool(tool, engine=KNOWN) for tool in (engine, retriever, Plain())]
    outputs, _ = await run(tools, "pages", "nodes", "plain", input=QUESTION)
    by_name = {output.tool_name: output for output in outputs}
    assert set(by_name["pages"].content.split("\n")) == {"Edmund Hillary and Tenzing Norgay reached its summit in May 1953."}
    assert by_name["pages"].raw_output.source_nodes
    assert by_name["nodes"].content.startswith("Edmund Hillary")
    assert by_name["plain"].content == SHORT


class Broken(KnownCritic):
    def score(self, windows):
        next(iter(windows))
        raise RuntimeError("the card is gone")
        yield


async def test_a_failure_is_told_to_the_agent_or_flagged():
    broken = CPRSEngine(critic=Broken({}))
    with pytest.raises(CPRSError, match="the card is gone"):
        compressed_tool(read_log, engine=broken)(path="a")
    (output,), _ = await run([compressed_tool(read_log, engine=broken)], "read_log")
    assert output.is_error, "agents tell their model of a tool that raises"
    assert "the card is gone" in output.content
    tool = compressed_tool(read_log, engine=broken, on_error="passthrough")
    with pytest.warns(UserWarning, match="the card is gone"):
        output = await tool.acall(path="a")
    assert output.content == LOG
    assert output.cprs["passthrough"] is True
    assert "the card is gone" in output.cprs["reason"]


@pytest.mark.parametrize("options", [{"max_ratio": 0.0}, {"ratio": 0.5}, {"min_chars": -1}, {"exclude_tools": ["a"]}])
def test_a_wrong_option_is_an_error_of_ours_that_names_it(options):
    (name,) = options
    with pytest.raises(CPRSError, match=name):
        compressed_tool(read_log, **options)
