import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
from langchain_community.vectorstores import FAISS
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import BaseDocumentCompressor
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_text_splitters import CharacterTextSplitter
from samples import ANSWER, CAPITALS, QUESTION

from cprs_integrations.langchain import CPRSCompressor


class Runs(BaseCallbackHandler):
    def __init__(self):
        self.started = []

    def on_chain_start(self, serialized, inputs, *, run_id, parent_run_id=None, name=None, **kwargs):
        self.started.append((name, parent_run_id, inputs))

    def on_retriever_start(self, serialized, query, *, run_id, parent_run_id=None, name=None, **kwargs):
        self.started.append(("retriever", parent_run_id, run_id))


@pytest.fixture(scope="module")
def store():
    return FAISS.from_texts(list(CAPITALS), DeterministicFakeEmbedding(size=16), metadatas=[{"n": n} for n in range(4)])


def test_it_is_a_document_compressor():
    assert issubclass(CPRSCompressor, BaseDocumentCompressor)


def test_a_store_that_hands_out_its_own_objects_is_not_corrupted(store):
    chain = ContextualCompressionRetriever(
        base_compressor=CPRSCompressor(max_ratio=0.3), base_retriever=store.as_retriever(search_kwargs={"k": 4})
    )
    first = chain.invoke(QUESTION)
    assert any(ANSWER in document.page_content for document in first)
    assert sorted(document.page_content for document in store.docstore._dict.values()) == sorted(CAPITALS)
    assert all(set(document.metadata) == {"n"} for document in store.docstore._dict.values())
    assert chain.invoke(QUESTION) == first
    assert {document.id for document in first} <= set(store.docstore._dict)


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_call_is_one_child_run_of_the_retriever_and_its_input_is_small(store, is_async):
    runs = Runs()
    chain = ContextualCompressionRetriever(base_compressor=CPRSCompressor(max_ratio=0.3), base_retriever=store.as_retriever())
    config = {"callbacks": [runs]}
    if is_async:
        await chain.ainvoke(QUESTION, config=config)
    else:
        chain.invoke(QUESTION, config=config)
    ours = [(parent, inputs) for name, parent, inputs in runs.started if name == "CPRSCompressor"]
    outer = [run_id for name, parent, run_id in runs.started if name == "retriever" and parent is None]
    assert [parent for parent, _ in ours] == outer
    assert ours[0][1] == {"query": QUESTION, "documents": 4, "characters": sum(map(len, CAPITALS))}


async def test_it_works_in_a_pipeline_behind_a_splitter(store):
    pipeline = DocumentCompressorPipeline(
        transformers=[CharacterTextSplitter(separator=". ", chunk_size=60, chunk_overlap=0), CPRSCompressor(max_ratio=0.3)]
    )
    chain = ContextualCompressionRetriever(base_compressor=pipeline, base_retriever=store.as_retriever())
    found = chain.invoke(QUESTION)
    assert any(ANSWER in document.page_content for document in found)
    assert [document.page_content for document in await chain.ainvoke(QUESTION)] == [d.page_content for d in found]


def test_a_pipeline_that_found_nothing_is_no_error():
    assert list(CPRSCompressor().compress_documents([], "q")) == []
