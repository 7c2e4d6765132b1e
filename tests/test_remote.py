import asyncio
import copy
import json
import pickle
import re
import socket
import threading
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import httpx
import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import MockLLM
from samples import ANSWER, CAPITALS, QUESTION
from served import BreakingCritic, GatedCritic, serving, timeless, wait_until

from cprs_integrations import CompressedContext, CPRSEngine, CPRSError, RemoteEngine, remote
from cprs_integrations.errors import ArgumentError, CriticError, ServerError
from cprs_integrations.langchain import CPRSCompressor
from cprs_integrations.llama_index import CPRSNodePostprocessor

DOCUMENTS = [*CAPITALS, "", "Lone \ud800 surrogate, Grüße, \U0001f600 Everest."]
BOUNDS = [
    {},
    {"max_ratio": 0.3},
    {"max_tokens": 12},
    {"threshold": 0.2, "max_ratio": 0.5},
    {"max_ratio": 0.2, "protect": [r"\bflour\b", re.compile(r"\d{4}"), re.compile("(?i)BREAD")]},
]


@pytest.fixture(scope="module")
def served(engine):
    with serving(engine) as found:
        yield found


@pytest.fixture
def far(served):
    return RemoteEngine(served.url)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_results_are_those_of_the_local_engine(far, engine, bounds):
    options = {"titles": ["a", None, "", "d", None, None], **bounds}
    found = far.compress(DOCUMENTS, QUESTION, **options)
    assert isinstance(found, CompressedContext)
    assert timeless(found) == timeless(engine.compress(DOCUMENTS, QUESTION, **options))
    assert timeless(asyncio.run(far.acompress(DOCUMENTS, QUESTION, **options))) == timeless(found)
    assert found.stats.seconds.keys() == {"segment", "score", "select"}
    assert found._repr_html_()


def test_a_prefilter_travels(far, engine):
    text = "\n".join(f"Page {number} tells of the weather." for number in range(400)) + "\n" + "\n".join(CAPITALS)
    options = {"prefilter": 0.1, "max_ratio": 0.02}
    found = far.compress(text, QUESTION, **options)
    assert found.stats.skipped_windows > 0
    assert timeless(found) == timeless(engine.compress(text, QUESTION, **options))
    assert timeless(asyncio.run(far.acompress(text, QUESTION, **options))) == timeless(found)
    assert list(map(timeless, far.compress_batch([(text, QUESTION)], **options))) == [timeless(found)]
    assert timeless(far.score(text, QUESTION, prefilter=0.1).select(max_ratio=0.02)) == timeless(found)


def test_one_text_and_a_tuple_are_documents_too(far, engine):
    for documents in ("\n".join(CAPITALS), tuple(CAPITALS), [], [" "]):
        expected = engine.compress(documents, QUESTION, granularity="keyword", max_ratio=0.1)
        assert timeless(far.compress(documents, QUESTION, granularity="keyword", max_ratio=0.1)) == timeless(expected)


def test_a_batch_is_in_order(far, engine):
    items = [
        (list(CAPITALS), QUESTION),
        (CAPITALS[0], "Which river?"),
        ("", "nothing"),
        (list(CAPITALS[1:]), "How is bread made?"),
    ]
    found = far.compress_batch(items * 3, max_ratio=0.4)
    assert list(map(timeless, found)) == list(map(timeless, engine.compress_batch(items * 3, max_ratio=0.4)))


def test_scores_are_selected_from_again_and_fetched_again_when_gone(far, engine, served):
    scored, near = far.score(DOCUMENTS, QUESTION), engine.score(DOCUMENTS, QUESTION)
    before = served.service.scheduler.windows
    for bounds in [*BOUNDS, {"granularity": "keyword", "max_ratio": 0.1}]:
        assert timeless(scored.select(**bounds)) == timeless(near.select(**bounds))
    assert served.service.scheduler.windows == before
    served.service.kept._entries.clear()
    assert timeless(scored.select(max_ratio=0.3)) == timeless(near.select(max_ratio=0.3))
    assert served.service.scheduler.windows > before


def test_scores_that_are_too_large_to_keep_are_refused(known):
    with serving(known, kept_bytes=10) as served, pytest.raises(ServerError, match="call compress with the bounds"):
        RemoteEngine(served.url).score("Paris is large.", "q").select(max_ratio=0.5)


def test_progress_is_shown_and_changes_nothing(far, engine, capsys):
    expected = timeless(engine.compress(DOCUMENTS, QUESTION, max_ratio=0.3))
    assert timeless(far.compress(DOCUMENTS, QUESTION, max_ratio=0.3, show_progress=True)) == expected
    assert "compress: 100%" in capsys.readouterr().err
    assert timeless(asyncio.run(far.acompress(DOCUMENTS, QUESTION, max_ratio=0.3, show_progress=True))) == expected
    assert "compress: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"documents": 3, "query": "q"}, "documents"),
        ({"documents": ["a", 3], "query": "q"}, r"documents\[1\]"),
        ({"documents": "a", "query": " "}, "query and instruction"),
        ({"documents": "a", "query": 3}, "query"),
        ({"documents": "a", "query": "q", "max_ratio": 2}, "max_ratio"),
        ({"documents": "a", "query": "q", "granularity": "word"}, "granularity"),
        ({"documents": "a", "query": "q", "titles": "t"}, "titles"),
        ({"documents": "a", "query": "q", "protect": ["("]}, "protect"),
        ({"documents": "a", "query": "q", "token_counter": 3}, "token_counter"),
        ({"documents": "a", "query": "q", "prefilter": 2}, "prefilter"),
    ],
)
def test_bad_arguments_are_refused_here_in_the_words_of_the_local_engine(known, arguments, named):
    far = RemoteEngine("http://127.0.0.1:1", retries=0)
    for call in (far.compress, known.compress):
        with pytest.raises(ArgumentError, match=named):
            call(**arguments)


def test_what_cannot_travel_says_so():
    far = RemoteEngine("http://127.0.0.1:1", retries=0)
    with pytest.raises(ArgumentError, match="token_counter cannot travel"):
        far.compress("a", "q", max_tokens=3, token_counter=len)
    with pytest.raises(ArgumentError, match=r"flags of .* cannot travel"):
        far.compress("a", "q", protect=[re.compile("a", re.IGNORECASE)])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"url": "localhost:8700"}, "url"),
        ({"url": "ftp://x"}, "url"),
        ({"url": None}, "url"),
        ({"url": "http://x", "token": "ö"}, "token"),
        ({"url": "http://x", "timeout": 0}, "timeout"),
        ({"url": "http://x", "retries": -1}, "retries"),
    ],
)
def test_a_client_checks_its_own_options(options, named):
    with pytest.raises(ArgumentError, match=named):
        RemoteEngine(**options)


def test_a_refusal_of_the_server_is_an_error_of_ours(far, known):
    with pytest.raises(ArgumentError, match=r"look-ahead and look-behind cannot run in linear time \(request [0-9a-f]{16}\)"):
        far.compress("Paris.", "q", protect=["(?=a)b"])
    with serving(CPRSEngine(critic=BreakingCritic({}))) as broken:
        for show in (False, True):
            with pytest.raises(CriticError, match="not by your request"):
                RemoteEngine(broken.url).compress("poison", "q", show_progress=show)
    with serving(known, max_documents=1) as small, pytest.raises(ServerError, match="2 documents") as told:
        RemoteEngine(small.url).compress(["a", "b"], "q")
    assert told.value.status == 413
    assert re.fullmatch("[0-9a-f]{16}", told.value.request_id)


@pytest.mark.parametrize("settings", [{"max_body_bytes": 300_000}, {"token": "sesame"}])
def test_a_refusal_comes_through_while_a_large_body_is_under_way(known, settings):
    text = "Paris. " * 600_000
    with serving(known, **settings) as served:
        far = RemoteEngine(served.url, retries=0)
        for _ in range(3):
            for call in (lambda: far.compress(text, "q"), lambda: asyncio.run(far.acompress(text, "q"))):
                with pytest.raises(ServerError) as told:
                    call()
                assert told.value.status == (401 if "token" in settings else 413)


def test_a_token_is_given_or_found_in_the_environment(known, monkeypatch):
    with serving(known, token="sesame") as served:
        with pytest.raises(ServerError, match="set CPRS_TOKEN") as told:
            RemoteEngine(served.url, retries=0).compress("Paris.", "q")
        assert told.value.status == 401
        assert RemoteEngine(served.url, "sesame").compress("Paris.", "q").text == "Paris."
        monkeypatch.setenv("CPRS_TOKEN", "sesame")
        assert RemoteEngine(served.url).compress("Paris.", "q").text == "Paris."
        with pytest.raises(ServerError):
            RemoteEngine(served.url, "other", retries=0).compress("Paris.", "q")


def test_a_client_is_copied_and_pickled(far, engine):
    expected = timeless(engine.compress(list(CAPITALS), QUESTION))
    for again in (pickle.loads(pickle.dumps(far)), copy.deepcopy(far)):
        assert timeless(again.compress(list(CAPITALS), QUESTION)) == expected


# a server that does as it is told: one step a request

GOOD = {
    "text": "Paris.",
    "documents": [{"text": "Paris.", "spans": [{"start": 0, "end": 6, "score": 1.0, "label": None}]}],
    "stats": {
        "original_chars": 6, "kept_chars": 6, "original_tokens": 2, "kept_tokens": 2, "windows": 1, "unread_units": 0,
        "seconds": {}, "left_out": [], "compression": 1.0,
    },
    "query": "q",
    "instruction": "i",
}  # fmt: skip
BUSY = {"error": {"type": "QueueFull", "message": "try again", "request_id": "r"}}


@pytest.fixture
def scripted(monkeypatch):
    steps, waits = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            status, headers, body, cut = steps.pop(0)
            self.close_connection = True
            if status is None:
                return
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": len(data), **headers}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if cut else data)

        def log_message(self, *arguments):
            pass

    async def sleep(seconds):
        waits.append(seconds)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(remote, "time", SimpleNamespace(sleep=waits.append))
    monkeypatch.setattr(remote, "asyncio", SimpleNamespace(sleep=sleep))
    yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", steps=steps, waits=waits)
    server.shutdown()
    server.server_close()
    thread.join()
    assert steps == []


def step(status, body=b"", *, headers=None, cut=False):
    return status, headers or {}, body, cut


@pytest.fixture(params=["sync", "async"])
def call(request):
    def run(url, **options):
        far = RemoteEngine(url, **options)
        return far.compress("Paris.", "q") if request.param == "sync" else asyncio.run(far.acompress("Paris.", "q"))

    return run


def test_a_busy_server_is_tried_again_later_each_time(scripted, call):
    scripted.steps += [step(429, BUSY), step(503, b"from a proxy"), step(None), step(429, BUSY), step(200, GOOD)]
    assert call(scripted.url, retries=4).text == "Paris."
    first, *waits = scripted.waits
    assert first == 0
    assert all(0.5 * 0.25 * 2**n <= wait <= 0.25 * 2**n for n, wait in enumerate(waits))
    assert len(waits) == 4


def test_a_server_is_left_alone_for_as_long_as_it_asks(scripted, call):
    scripted.steps += [step(429, BUSY, headers={"Retry-After": 7}), step(200, GOOD)]
    assert call(scripted.url).text == "Paris."
    assert 7 <= scripted.waits[1] <= 7 * 1.25


def test_after_its_retries_it_gives_up_with_the_servers_reason(scripted, call):
    scripted.steps += [step(429, BUSY)] * 3
    with pytest.raises(ServerError, match="try again") as told:
        call(scripted.url, retries=2)
    assert (told.value.status, told.value.request_id) == (429, "r")


def test_an_answer_that_breaks_off_is_an_error_and_not_tried_again(scripted, call):
    scripted.steps.append(step(200, GOOD, cut=True))
    with pytest.raises(ServerError, match="answered, and then broke off"):
        call(scripted.url)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b"\xff",
        {},
        {**GOOD, "text": "Lyon."},
        {**GOOD, "documents": []},
        {**GOOD, "documents": [{"spans": [{"start": 0, "end": 3, "score": 1.0, "label": None}]}]},
        {**GOOD, "stats": {}},
    ],
)
def test_what_is_no_result_is_never_taken_for_one(scripted, call, body):
    scripted.steps.append(step(200, body))
    with pytest.raises(ServerError, match=r"no JSON of ours|no result of these documents"):
        call(scripted.url)


def test_other_servers_are_recognised(scripted, call):
    scripted.steps.append(step(404, b"Not Found"))
    with pytest.raises(ServerError, match="is it `cprs serve`") as told:
        call(scripted.url)
    assert told.value.status == 404


def test_nobody_there_and_nobody_who_answers(monkeypatch):
    monkeypatch.setattr(remote, "_FIRST_WAIT", 0.001)
    with pytest.raises(ServerError, match=r"does not answer \(ConnectError.*is `cprs serve` running there") as told:
        RemoteEngine("http://127.0.0.1:1", retries=2).compress("a", "q")
    assert isinstance(told.value.__cause__, httpx.ConnectError)
    critic = GatedCritic({})
    with serving(CPRSEngine(critic=critic)) as served:
        with pytest.raises(ServerError, match="ReadTimeout"):
            RemoteEngine(served.url, timeout=0.2).compress("a", "q")
        critic.gate.set()


def test_a_host_that_takes_no_connection_is_given_up_soon(monkeypatch):
    monkeypatch.setattr(remote, "_CONNECTING", 0.2)
    monkeypatch.setattr(remote, "_FIRST_WAIT", 0.001)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf, ExitStack() as open_:
        for _ in range(4):  # the queue of a host that accepts nothing is soon full
            waiting = open_.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        far = RemoteEngine(f"http://127.0.0.1:{deaf.getsockname()[1]}", timeout=60, retries=1)
        began = time.monotonic()
        with pytest.raises(ServerError, match="ConnectTimeout"):
            far.compress("a", "q")
        with pytest.raises(ServerError, match="ConnectTimeout"):
            asyncio.run(far.acompress("a", "q"))
        assert time.monotonic() - began < 50


def test_a_full_queue_loses_nothing():
    critic = GatedCritic({"Hillary": 0.9})
    with serving(CPRSEngine(critic=critic), max_queue=2, queue_seconds=0.05) as served:
        waiting = threading.Thread(target=lambda: [wait_until(lambda: served.service.refused > 3), critic.gate.set()])
        waiting.start()
        found = RemoteEngine(served.url, retries=20).compress_batch([(list(CAPITALS), QUESTION)] * 20)
        waiting.join()
    assert {context.text for context in found} == {"Edmund Hillary and Tenzing Norgay reached its summit in May 1953."}


def test_cancelling_hangs_up():
    critic = GatedCritic({})
    with serving(CPRSEngine(critic=critic)) as served:

        async def give_up():
            call = asyncio.create_task(RemoteEngine(served.url).acompress("a", "q"))
            await asyncio.to_thread(wait_until, lambda: served.service.taken == 1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

        asyncio.run(give_up())
        wait_until(lambda: served.service.taken == 0)
        critic.gate.set()


# adapters


def test_a_retriever_with_a_served_engine(served):
    store = InMemoryVectorStore.from_texts(list(CAPITALS), DeterministicFakeEmbedding(size=64))

    def ask(**options):
        compressor = CPRSCompressor(max_ratio=0.3, **options)
        compressor = CPRSCompressor(**json.loads(json.dumps(pickle.loads(pickle.dumps(compressor)).to_dict())))
        return ContextualCompressionRetriever(base_compressor=compressor, base_retriever=store.as_retriever())

    found = ask(engine=served.url).invoke(QUESTION)
    assert [document.model_dump(exclude={"id"}) for document in found] == [
        document.model_dump(exclude={"id"}) for document in ask().invoke(QUESTION)
    ]
    assert any(ANSWER in document.page_content for document in found)
    assert asyncio.run(ask(engine=served.url).ainvoke(QUESTION)) == found


def test_a_query_engine_with_a_served_engine(served):
    index = VectorStoreIndex.from_documents([Document(text=text) for text in CAPITALS], embed_model=MockEmbedding(64))

    def ask(**options):
        postprocessor = CPRSNodePostprocessor(max_ratio=0.3, **options)
        again = CPRSNodePostprocessor.from_dict(json.loads(json.dumps(postprocessor.to_dict())))
        query_engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=4, node_postprocessors=[again])
        return [(found.node.node_id, found.text) for found in query_engine.query(QUESTION).source_nodes]

    assert ask(engine=served.url) == ask()
    assert ANSWER in "".join(text for _, text in ask(engine=served.url))


@pytest.mark.parametrize("adapter", [CPRSCompressor, CPRSNodePostprocessor])
def test_an_adapter_finds_its_token_in_a_variable(adapter, known, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "sesame")
    with serving(known, token="sesame") as served:
        options = adapter(engine=served.url, token_variable="MY_TOKEN")
        assert options._engine().compress("Paris.", "q").text == "Paris."
        assert "sesame" not in json.dumps(options.to_dict())
        with pytest.raises(CPRSError, match="token"):
            adapter(engine=served.url)._engine().compress("Paris.", "q")
