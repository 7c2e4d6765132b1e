"""Packages that a user could install instead, each called as its own documentation does."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from cprs_integrations.errors import ArgumentError, require
from cprs_integrations.evaluation.embeddings import Clock, MiniLM
from cprs_integrations.evaluation.items import Budget, Item, Kept, Method
from cprs_integrations.evaluation.rankings import Ranked
from cprs_integrations.result import BLANK_LINE
from cprs_integrations.selection import TokenCounter

LLMLINGUA = "microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank"


def langchain_embeddings(model: MiniLM) -> Any:
    """The embedding model as LangChain's `Embeddings`."""
    require("langchain_core", "bench")
    from langchain_core.embeddings import Embeddings

    class Vectors(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            found: list[list[float]] = model.vectors(texts).tolist()
            return found

        def embed_query(self, text: str) -> list[float]:
            return self.embed_documents([text])[0]

    return Vectors()


def llama_index_embedding(model: MiniLM) -> Any:
    """The embedding model as LlamaIndex's `BaseEmbedding`."""
    require("llama_index.core", "bench")
    from llama_index.core.base.embeddings.base import BaseEmbedding

    class Vectors(BaseEmbedding):
        def _get_text_embedding(self, text: str) -> list[float]:
            return self._get_text_embeddings([text])[0]

        def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            found: list[list[float]] = model.vectors(texts).tolist()
            return found

        def _get_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embedding(query)

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embedding(query)

    return Vectors()


def embeddings_filter(model: MiniLM, count: TokenCounter) -> Method:
    """LangChain's `EmbeddingsFilter` over sentences: it ranks them, and the best fill the budget."""
    filters = require("langchain_classic.retrievers.document_compressors", "bench")
    require("langchain_community", "bench")  # imported by the filter when it is called
    from langchain_core.documents import Document

    vectors = langchain_embeddings(model)

    def order(query: str, pieces: list[str], owners: list[int]) -> list[int]:
        documents = [Document(piece, metadata={"place": place}) for place, piece in enumerate(pieces)]
        ranked = filters.EmbeddingsFilter(embeddings=vectors, k=len(documents)).compress_documents(documents, query)
        return [document.metadata["place"] for document in ranked]

    return Ranked(order, count, model=model)


def sentence_optimizer(model: MiniLM) -> Method:
    """LlamaIndex's `SentenceEmbeddingOptimizer`, without neighbours: its percentile is the budget's share.

    It keeps everything of a document with so few sentences that their share is less than one.
    """
    require("llama_index.core", "bench")
    from llama_index.core.postprocessor import SentenceEmbeddingOptimizer
    from llama_index.core.schema import NodeWithScore, TextNode

    vectors = llama_index_embedding(model)

    def keep(item: Item, budget: Budget) -> Kept:
        clock = Clock(model)
        nodes = [NodeWithScore(node=TextNode(text=text)) for text in item.documents if text.strip()]
        optimizer = SentenceEmbeddingOptimizer(vectors, budget.ratio(item), context_before=0, context_after=0)
        found = optimizer.postprocess_nodes(nodes, query_str=item.question)
        return Kept(BLANK_LINE.join(node.node.get_content() for node in found), {"compress": clock.seconds})

    return keep


def llmslim() -> Method:
    """The package llmslim, through its LangChain compressor, with its own lexical relevance."""
    require("langchain_core", "bench")
    compressor = require("llmslim.integrations.langchain", "bench").LLMSlimCompressor
    from langchain_core.documents import Document

    def keep(item: Item, budget: Budget) -> str:
        documents = [Document(text) for text in item.documents]
        found = compressor(target_ratio=budget.ratio(item)).compress_documents(documents, item.question)
        return BLANK_LINE.join(document.page_content for document in found)

    return keep


def trimwise(count: TokenCounter) -> Method:
    """The package trimwise, with its lexical strategy; needs tiktoken's o200k_base, of which LlamaIndex has a copy."""
    trimmer = require("trimwise", "bench").Trimmer()
    copies = Path(str(require("llama_index.core", "bench").__file__)).parent / "_static" / "tiktoken_cache"
    with _environment("TIKTOKEN_CACHE_DIR", str(copies)):
        try:
            trimmer.trim("One. Two.", 5, unit="characters", strategy="lexical", query="One?")  # loads it, once
        except OSError as error:
            raise ArgumentError(f"trimwise needs tiktoken's file of o200k_base ({type(error).__name__})") from error

    def keep(item: Item, budget: Budget) -> str:
        limit = {"limit": max(1, int(budget.limit(item)))}
        unit: dict[str, Any] = {"unit": "characters"} if budget.max_ratio is not None else {"token_counter": count}
        found = trimmer.trim_context(
            list(item.documents), **limit, **unit, strategy="lexical", query=item.question, separator=BLANK_LINE
        )
        text: str = found.text
        return text

    return keep


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set a variable for a while, unless the user has."""
    is_set = name in os.environ
    os.environ.setdefault(name, value)
    try:
        yield
    finally:
        if not is_set:
            del os.environ[name]


def llmlingua(model: str = LLMLINGUA) -> Method:
    """LLMLingua-2, where its model is in the hub's cache already: nothing is downloaded here."""
    package = require("llmlingua", "llmlingua")
    cached = require("huggingface_hub", "llmlingua").try_to_load_from_cache(model, "config.json")
    if not isinstance(cached, str):
        raise ArgumentError(f"llmlingua's model is not here; run: hf download {model}")
    compressor = package.PromptCompressor(model, use_llmlingua2=True, device_map="cpu", model_config={"local_files_only": True})
    return partial(_lingua, compressor)


def _lingua(compressor: Any, item: Item, budget: Budget) -> str:
    found = compressor.compress_prompt(list(item.documents), rate=budget.ratio(item))
    return str(found["compressed_prompt"])
