import asyncio
import dataclasses
import pickle
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import MockLLM
from pydantic import ValidationError
from serving_support import served

from cprs_integrations import CPRSEngine, RemoteEngine
from cprs_integrations.critics.known import KnownCritic
from cprs_integrations.errors import ArgumentError, ServerError
from cprs_integrations.langchain import CPRSCompressor
from cprs_integrations.llama_index import CPRSNodePostprocessor

DOCUMENTS = [
    "Mount Everest is 8,849 metres high. Edmund Hillary and Tenzing Norgay reached its summit in May 1953.",
    "Bread is made of flour, water and yeast. Knead the dough for ten minutes. Bake it until it is brown.",
    "Caf\u00e9s of Z\u00fcrich \U0001f600 open at seven. \ud800 Nobody knows why.",
    "",
]
QUERY = "Who first climbed Mount Everest?"


def without_times(context):
    return dataclasses.replace(context, stats=dataclasses.replace(context.stats, seconds={}))


@pytest.fixture(scope="module")
def local():
    return CPRSEngine.from_pretrained()


@pytest.fixture
def remote(server):
    engine = RemoteEngine(server)
    yield engine
    engine.close()


OPTIONS = [
    {}, {"max_ratio": 0.4}, {"max_tokens": 12}, {"granularity": "keyword", "instruction": "names"}, {"protect": ["1953"]},
    {"titles": ["Everest", None, None, ""], "threshold": 0.2}, {"prefilter": 0.5}, {"protect": ["Bread.*"], "max_tokens": 3},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
def test_results_are_those_of_the_local_engine(remote, local, options):
    expected = without_times(local.compress(DOCUMENTS, QUERY, **options))
    assert without_times(remote.compress(DOCUMENTS, QUERY, **options)) == expected
    assert without_times(asyncio.run(remote.acompress(DOCUMENTS, QUERY, **options))) == expected
    assert without_times(remote.compress(DOCUMENTS, QUERY, show_progress=True, **options)) == expected


def test_batches_and_scores(remote, local):
    items = [(DOCUMENTS[:n], f"{QUERY} {n}") for n in range(1, 5)]
    expected = local.compress_batch(items, max_ratio=0.5)
    assert list(map(without_times, remote.compress_batch(items, max_ratio=0.5))) == list(map(without_times, expected))
    scored = remote.score(DOCUMENTS, QUERY)
    for ratio in (0.1, 0.5):
        assert without_times(scored.select(max_ratio=ratio)) == without_times(
            local.score(DOCUMENTS, QUERY).select(max_ratio=ratio)
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_counter": len}, "token_counter is a function of this process and cannot travel"),
        ({"protect": [re.compile("a")]}, "a compiled pattern cannot travel"),
        ({"protect": ["(?=a)"]}, "not taken by RE2"),
        ({"max_ratio": 7}, "max_ratio must be a number above 0"),
        ({"prefilter": 2}, "prefilter"),
        ({"max_ration": 0.1}, "max_ration is no argument"),
        ({"titles": ["one"]}, "titles must be a sequence of one title"),
    ],
)
def test_what_cannot_be_is_an_argument_error(remote, options, message):
    with pytest.raises(ArgumentError, match=re.escape(message)):
        remote.compress(DOCUMENTS, QUERY, **options)
    with pytest.raises(ArgumentError, match="both empty"):
        remote.compress(DOCUMENTS, "")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", 7, ""])
def test_an_address_that_is_none(url):
    with pytest.raises(ArgumentError, match="url must be the address of a server"):
        RemoteEngine(url)
    if url:
        with pytest.raises(ValidationError, match="engine"):
            CPRSCompressor(engine=url)


class Answers(BaseHTTPRequestHandler):
    """Answers as it is told: a status and headers for each request, then the body of the last."""

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append(dict(self.headers))
        status, headers, body = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
        if status is None:
            self.connection.close()
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def scripted():
    server = HTTPServer(("127.0.0.1", 0), Answers)
    server.asked, server.answers = [], []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


FULL = (429, {"Retry-After": "0"}, b'{"error": {"type": "QueueFull", "message": "full", "request_id": "r1"}}')
BAD = (500, {}, b'{"error": {"type": "CriticError", "message": "failed", "request_id": "r2"}}')


@pytest.mark.parametrize("is_async", [False, True])
def test_a_full_server_is_asked_again_and_a_failed_one_is_not(scripted, is_async):
    server, url = scripted
    engine = RemoteEngine(url, "s3cret", retries=2)
    ask = (lambda: asyncio.run(engine.acompress("text", "q"))) if is_async else (lambda: engine.compress("text", "q"))
    server.answers = [FULL, FULL, BAD]
    with pytest.raises(ServerError, match=r"failed \(500 CriticError, request r2\)"):
        ask()
    assert len(server.asked) == 3
    assert {headers["Authorization"] for headers in server.asked} == {"Bearer s3cret"}
    server.answers, server.asked = [FULL], []
    with pytest.raises(ServerError, match="full"):
        ask()
    assert len(server.asked) == 3
    server.answers, server.asked = [BAD], []
    with pytest.raises(ServerError, match="r2"):
        ask()
    assert len(server.asked) == 1
    engine.close()


def test_other_servers_and_no_server(scripted):
    server, url = scripted
    engine = RemoteEngine(url, retries=0)
    for answer, message in (
        ((200, {}, b"<html>"), "no JSON"), ((404, {}, b"{}"), "is it `cprs serve`"), ((200, {}, b"{}"), "another version"),
        ((None, {}, b""), "cannot be reached"),
    ):  # fmt: skip
        server.answers = [answer]
        with pytest.raises(ServerError, match=message):
            engine.compress("text", "q")
    engine.close()
    nobody = RemoteEngine("http://127.0.0.1:9", retries=1)
    began = time.monotonic()
    with pytest.raises(ServerError, match="is `cprs serve` running there"):
        nobody.compress("text", "q")
    assert time.monotonic() - began > 0.3  # it has tried again
    nobody.close()


def test_the_token_comes_from_the_environment(monkeypatch):
    with served(CPRSEngine(KnownCritic({})), token="s3cret") as (url, _):
        monkeypatch.delenv("CPRS_TOKEN", raising=False)
        without = RemoteEngine(url)
        with pytest.raises(ServerError, match="send the server's token"):
            without.compress("text", "q")
        without.close()
        monkeypatch.setenv("CPRS_TOKEN", "s3cret")
        engine = RemoteEngine(url)
        assert engine.compress("text", "q").text == ""
        engine.close()


def test_a_retriever_with_a_served_engine(server):
    store = InMemoryVectorStore.from_texts(DOCUMENTS[:2], DeterministicFakeEmbedding(size=8))
    compressor = CPRSCompressor(engine=server, max_ratio=0.6)
    again = pickle.loads(pickle.dumps(compressor))
    assert again.engine == server == CPRSCompressor(**compressor.to_dict()).engine
    for one in (compressor, again):
        retriever = ContextualCompressionRetriever(base_compressor=one, base_retriever=store.as_retriever())
        local = ContextualCompressionRetriever(
            base_compressor=CPRSCompressor(max_ratio=0.6), base_retriever=store.as_retriever()
        )
        assert retriever.invoke(QUERY) == local.invoke(QUERY)
        assert asyncio.run(retriever.ainvoke(QUERY)) == local.invoke(QUERY)


def test_a_query_engine_with_a_served_engine(server):
    index = VectorStoreIndex.from_documents([Document(text=text) for text in DOCUMENTS[:2]], embed_model=MockEmbedding(8))
    found = [
        index.as_query_engine(llm=MockLLM(), node_postprocessors=[processor]).query(QUERY).source_nodes
        for processor in (CPRSNodePostprocessor(engine=server, max_ratio=0.6), CPRSNodePostprocessor(max_ratio=0.6))
    ]
    assert [node.text for node in found[0]] == [node.text for node in found[1]]
    assert any("Norgay" in node.text for node in found[0])
