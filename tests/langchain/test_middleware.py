"""The middleware in real agents, with a model that follows a script."""

import json
import pickle
import subprocess
import sys

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ToolCallRequest
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from log_file import ASKED, HIT, log_file
from samples import ANSWER, CAPITALS, QUESTION

from cprs_integrations import CPRSEngine, CPRSError
from cprs_integrations.critics.known import KnownCritic
from cprs_integrations.langchain import CPRSToolOutputMiddleware

LOG = log_file()
KNOWN = CPRSEngine(critic=KnownCritic({"8812": 0.9, "Hillary": 0.8}))
SHORT = f"[59 lines omitted (1-59)]\n{HIT}\n[60 lines omitted (61-120)]"


class Scripted(BaseChatModel):
    """Says its lines one after the other, and remembers what it was shown."""

    lines: list[AIMessage]
    shown: list[list[str]] = []

    @property
    def _llm_type(self):
        return "scripted"

    def bind_tools(self, tools, **kwargs):
        return self

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self.shown.append([dumps(message) for message in messages])
        said = sum(isinstance(message, AIMessage) for message in messages)
        return ChatResult(generations=[ChatGeneration(message=self.lines[said])])


def calls(*names, **args):
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": f"{name}-{n}"} for n, name in enumerate(names)])


def model(*lines):
    return Scripted(lines=[*lines, AIMessage("done")], shown=[])


@tool
def read_log(path: str = "app.log") -> str:
    """Read a log."""
    return LOG


def returning(value, **options):
    """A tool that returns something."""

    def fetch(about: str = "") -> str:
        """Fetch."""
        return value

    return tool(fetch, **options)


async def run(tools, middleware, *names, asked=ASKED, is_async=False, **args):
    """Let an agent call tools once; return what they said."""
    agent = create_agent(model(calls(*names, **args)), tools, middleware=[middleware])
    given = {"messages": [HumanMessage(asked)]}
    state = await agent.ainvoke(given) if is_async else agent.invoke(given)
    assert state["messages"][-1].text == "done"
    return [message for message in state["messages"] if isinstance(message, ToolMessage)]


BOTH = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


@BOTH
async def test_a_long_output_is_shortened_and_the_original_kept(is_async):
    (message,) = await run([read_log], CPRSToolOutputMiddleware(engine=KNOWN), "read_log", is_async=is_async)
    assert message.content == SHORT
    assert message.artifact == CPRSToolOutputMiddleware.original(message) == LOG
    assert (message.tool_call_id, message.name, message.status) == ("read_log-0", "read_log", "success")
    told = json.loads(json.dumps(message.response_metadata["cprs"]))
    assert told["query"] == ASKED
    assert (told["original_chars"], told["kept_chars"]) == (len(LOG), len(SHORT))
    (place,) = told["texts"][0]["spans"]
    assert LOG[place["start"] : place["end"]] == HIT
    assert told["texts"][0]["omitted_lines"] == [[1, 59], [61, 120]]


async def test_the_shipped_critic_finds_the_line_of_a_log_and_the_sentence_of_a_page():
    page = " ".join((*CAPITALS[:3] * 8, CAPITALS[3], *CAPITALS[:3] * 8))
    middleware = CPRSToolOutputMiddleware(max_ratio=0.1)
    (found,) = await run([read_log], middleware, "read_log", path="/var/log/app.log")
    assert HIT in found.content.split("\n")
    assert len(found.content) <= 0.1 * len(LOG)
    (found,) = await run([returning(page)], middleware, "fetch", asked=QUESTION)
    assert ANSWER in found.content
    assert len(found.content) <= 0.1 * len(page)


async def test_the_arguments_of_a_call_tell_what_this_call_is_for():
    """A later hop: the user's words are about something else than what is looked up now."""
    page = " ".join((*CAPITALS[:3] * 8, CAPITALS[3], *CAPITALS[:3] * 8))
    (found,) = await run(
        [returning(page)], CPRSToolOutputMiddleware(max_ratio=0.05), "fetch",
        asked="Is the climber born in Auckland still alive?", about=QUESTION,
    )  # fmt: skip
    assert ANSWER in found.content


@BOTH
async def test_what_a_model_has_seen_never_changes(is_async):
    """Every call's messages begin with those of the call before, to the byte: prompt caches stay valid."""
    scripted = model(calls("read_log"), calls("read_log", "fetch"), calls("fetch"))
    agent = create_agent(
        scripted, [read_log, returning("\n".join(CAPITALS) * 20)],
        middleware=[CPRSToolOutputMiddleware(engine=KNOWN)], checkpointer=InMemorySaver(),
    )  # fmt: skip
    config = {"configurable": {"thread_id": "1"}}
    for asked in (ASKED, "And who paid?"):
        given = {"messages": [HumanMessage(asked)]}
        _ = await agent.ainvoke(given, config) if is_async else agent.invoke(given, config)
        scripted.lines += [calls("read_log"), AIMessage("done")]
    assert len(scripted.shown) == 6
    for before, after in zip(scripted.shown, scripted.shown[1:], strict=False):
        assert after[: len(before)] == before
    said = [json.loads(message)["kwargs"] for message in scripted.shown[-1]]
    outputs = [message["content"] for message in said if message["type"] == "tool" and message["name"] == "read_log"]
    assert outputs == [SHORT] * 3, "the same output becomes the same bytes"
    kept = agent.get_state(config).values["messages"]
    assert [m.artifact for m in kept if isinstance(m, ToolMessage) and m.name == "read_log"] == [LOG] * 3


@BOTH
async def test_parallel_calls_are_each_shortened_for_their_own_call(is_async):
    found = await run(
        [read_log, returning("\n".join(CAPITALS * 20))], CPRSToolOutputMiddleware(engine=KNOWN),
        "read_log", "fetch", "read_log", is_async=is_async,
    )  # fmt: skip
    assert [message.tool_call_id for message in found] == ["read_log-0", "fetch-1", "read_log-2"]
    assert found[0].content == found[2].content == SHORT
    assert set(found[1].content.split("\n")) == {"Edmund Hillary and Tenzing Norgay reached its summit in May 1953."}


async def test_an_original_that_others_cleared_is_an_error_and_not_nothing():
    (message,) = await run([read_log], CPRSToolOutputMiddleware(engine=KNOWN), "read_log")
    with pytest.raises(CPRSError, match="original is gone"):
        CPRSToolOutputMiddleware.original(message.model_copy(update={"artifact": None}))


@BOTH
async def test_an_artifact_of_the_tool_stays_and_the_original_is_kept_beside_it(is_async):
    documents = [Document(LOG)]

    @tool(response_format="content_and_artifact")
    def fetch() -> tuple[str, list[Document]]:
        """Fetch."""
        return LOG, documents

    (message,) = await run([fetch], CPRSToolOutputMiddleware(engine=KNOWN), "fetch", is_async=is_async)
    assert message.content == SHORT
    assert message.artifact == documents
    assert CPRSToolOutputMiddleware.original(message) == message.response_metadata["cprs"]["original"] == LOG


IMAGE = {"type": "image", "base64": "AAAA", "mime_type": "image/png"}


@BOTH
async def test_of_content_blocks_the_texts_are_shortened_and_share_a_budget(is_async):
    blocks = [
        {"type": "text", "text": LOG, "extras": {"a": 1}},
        IMAGE,
        {"type": "text", "text": " "},
        {"type": "text", "text": LOG},
    ]
    middleware = CPRSToolOutputMiddleware(engine=KNOWN, max_tokens=2 * len(SHORT) + 2, token_counter=len)
    (message,) = await run([returning(blocks)], middleware, "fetch", is_async=is_async)
    assert message.content[1:3] == blocks[1:3]
    first, last = message.content[0], message.content[3]
    assert first == {"type": "text", "text": SHORT, "extras": {"a": 1}}
    assert last == {"type": "text", "text": SHORT}
    assert message.artifact == blocks
    assert CPRSToolOutputMiddleware.original(message) == blocks


async def test_a_block_that_loses_all_goes_since_models_refuse_empty_ones():
    blocks = [{"type": "text", "text": "12:00 order 8812 refused"}, IMAGE, {"type": "text", "text": "y" * 30}]
    middleware = CPRSToolOutputMiddleware(engine=KNOWN, min_chars=10, threshold=0.5, max_tokens=25, token_counter=len)
    (message,) = await run([returning(blocks)], middleware, "fetch")
    assert message.content == blocks[:2]
    assert message.artifact == blocks


async def test_texts_with_annotations_that_point_into_them_pass():
    blocks = [{"type": "text", "text": LOG, "annotations": [{"type": "citation", "start_index": 5, "end_index": 9}]}]
    (message,) = await run([returning(blocks)], CPRSToolOutputMiddleware(engine=KNOWN), "fetch")
    assert message.content == blocks
    assert "cprs" not in message.response_metadata


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: returning(LOG), {"exclude_tools": ["fetch"]}),
        (lambda: returning(LOG), {"min_chars": len(LOG) + 1}),
        (lambda: returning([IMAGE]), {"min_chars": 0}),
        (lambda: returning(""), {"min_chars": 0}),
        (lambda: returning(HIT), {}),
        (lambda: returning(ToolMessage(LOG, tool_call_id="fetch-0", name="fetch", status="error")), {}),
    ],
    ids=["excluded", "short", "image", "empty", "short by default", "error"],
)
@BOTH
async def test_what_is_not_to_be_shortened_is_left_as_it_is(make, options, is_async):
    (plain,) = await run([make()], AgentMiddleware(), "fetch", is_async=is_async)
    (found,) = await run([make()], CPRSToolOutputMiddleware(engine=KNOWN, **options), "fetch", is_async=is_async)
    assert dumps(found.model_copy(update={"id": None})) == dumps(plain.model_copy(update={"id": None}))
    assert CPRSToolOutputMiddleware.original(found) == found.content


@BOTH
async def test_where_nothing_is_asked_the_output_stays_and_says_why(is_async):
    (message,) = await run([read_log], CPRSToolOutputMiddleware(engine=KNOWN), "read_log", asked=" ", is_async=is_async)
    assert message.content == CPRSToolOutputMiddleware.original(message) == LOG
    told = message.response_metadata["cprs"]
    assert told["passthrough"] is True
    assert told["reason"].startswith("nothing is asked: no message of the user")
    told = CPRSToolOutputMiddleware(engine=KNOWN, instruction="Keep error 8812.")
    (message,) = await run([read_log], told, "read_log", asked=" ", is_async=is_async)
    assert message.content == SHORT


@BOTH
async def test_an_error_that_the_agent_tells_the_model_is_told_whole(is_async):
    def shout(about: str) -> str:
        """Shout."""
        raise AssertionError("unreachable: the argument is missing")

    (message,) = await run([tool(shout)], CPRSToolOutputMiddleware(engine=KNOWN, min_chars=0), "shout", is_async=is_async)
    assert message.status == "error"
    assert "about" in message.content
    assert "cprs" not in message.response_metadata


@BOTH
async def test_what_goes_to_the_user_directly_is_left_as_it_is(is_async):
    agent = create_agent(
        model(calls("fetch")), [returning(LOG, return_direct=True)], middleware=[CPRSToolOutputMiddleware(engine=KNOWN)]
    )
    given = {"messages": [HumanMessage(ASKED)]}
    state = await agent.ainvoke(given) if is_async else agent.invoke(given)
    assert state["messages"][-1].content == LOG


@BOTH
async def test_commands_pass_untouched_and_messages_beside_them_are_shortened(is_async):
    inside = ToolMessage(LOG, tool_call_id="fetch-0")
    command = Command(update={"messages": [inside]})
    (message,) = await run([returning(command)], CPRSToolOutputMiddleware(engine=KNOWN), "fetch", is_async=is_async)
    assert message.content == LOG
    both = [ToolMessage(LOG, tool_call_id="fetch-0"), Command(update={})]
    (message,) = await run([returning(both)], CPRSToolOutputMiddleware(engine=KNOWN), "fetch", is_async=is_async)
    assert message.content == SHORT


def test_the_query_is_what_the_human_said_last_and_not_a_summary():
    middleware = CPRSToolOutputMiddleware()
    summary = HumanMessage("Here is a summary", additional_kwargs={"lc_source": "summarization"})
    image = HumanMessage([{"type": "text", "text": "What is it?"}, IMAGE])

    def query(state, **args):
        call = {"name": "fetch", "args": args, "id": "1"}
        return middleware.query(ToolCallRequest(tool_call=call, tool=None, state=state, runtime=None))

    assert query({"messages": [HumanMessage("a"), AIMessage("x"), HumanMessage("b"), AIMessage("y")]}) == "b"
    assert query({"messages": [HumanMessage("a"), summary]}, q="c") == "a\nc"
    assert query([summary]) == "Here is a summary"
    assert query({"messages": [image]}) == "What is it?"
    assert query({}) == ""


def test_another_query_can_be_asked():
    class Fixed(CPRSToolOutputMiddleware):
        def query(self, request):
            return f"about {request.tool_call['name']}"

    agent = create_agent(model(calls("read_log")), [read_log], middleware=[Fixed(engine=KNOWN)])
    state = agent.invoke({"messages": [HumanMessage(ASKED)]})
    assert state["messages"][2].response_metadata["cprs"]["query"] == "about read_log"


class Broken(KnownCritic):
    def score(self, windows):
        next(iter(windows))
        raise RuntimeError("the card is gone")
        yield


@BOTH
async def test_a_failure_stops_the_agent_or_is_flagged_in_the_message(is_async):
    broken = CPRSEngine(critic=Broken({}))
    with pytest.raises(CPRSError, match="the card is gone"):
        await run([read_log], CPRSToolOutputMiddleware(engine=broken), "read_log", is_async=is_async)
    middleware = CPRSToolOutputMiddleware(engine=broken, on_error="passthrough")
    with pytest.warns(UserWarning, match="originals are passed through: .*the card is gone"):
        (message,) = await run([read_log], middleware, "read_log", is_async=is_async)
    assert message.content == CPRSToolOutputMiddleware.original(message) == LOG
    assert message.artifact is None
    assert message.response_metadata["cprs"]["passthrough"] is True
    assert "the card is gone" in message.response_metadata["cprs"]["reason"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_ratio": 0.0}, "max_ratio must be"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"ratio": 0.5}, "ratio: .*not permitted.*options: .*max_ratio"),
        ({"drop_empty": True}, "drop_empty"),
        ({"exclude_tools": "edit_file"}, "exclude_tools: .*list"),
        ({"min_chars": -1}, "min_chars"),
        ({"whole_lines": "yes"}, "whole_lines"),
        ({"protect": ["("]}, "protect"),
        ({"engine": 3}, "engine must have"),
    ],
)
def test_a_wrong_option_is_an_error_of_ours_that_names_it(options, named):
    with pytest.raises(CPRSError, match=named):
        CPRSToolOutputMiddleware(**options)


async def test_options_round_trip_and_pickle():
    middleware = CPRSToolOutputMiddleware(max_ratio=0.1, protect=["8812"], exclude_tools=["a"], critic_options={"threads": 1})
    data = json.loads(json.dumps(middleware.options.to_dict()))
    expected = await run([read_log], middleware, "read_log")
    for again in (CPRSToolOutputMiddleware(**data), pickle.loads(pickle.dumps(middleware))):
        assert again.options.to_dict() == data
        found = await run([read_log], again, "read_log")
        assert [message.content for message in found] == [message.content for message in expected]
    for options in ({"engine": KNOWN}, {"token_counter": len}):
        with pytest.raises(CPRSError, match="object of this process"):
            pickle.dumps(CPRSToolOutputMiddleware(**options))


PROGRAM = """
import sys
sys.modules["langchain"] = None  # as if it were not installed
from cprs_integrations.langchain import CPRSCompressor
assert "langgraph" not in sys.modules
try:
    from cprs_integrations.langchain import CPRSToolOutputMiddleware
except ImportError as error:
    print(error)
try:
    import cprs_integrations.langchain.middleware
except ImportError as error:
    print(error)
"""


def test_the_compressor_needs_langchain_core_alone_and_the_middleware_names_its_extra():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == 2 * 'langchain is not installed; run: pip install "cprs_integrations[agents]"\n'


def test_no_other_name_is_made_up():
    import cprs_integrations.langchain as package

    with pytest.raises(AttributeError, match="CPRSAgent"):
        _ = package.CPRSAgent
