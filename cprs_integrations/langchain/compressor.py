"""A LangChain document compressor on the engine."""

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import RunnableLambda

from cprs_integrations.adapters import KEY, RetrievalOptions, passed_through
from cprs_integrations.result import CompressedContext


class CPRSCompressor(RetrievalOptions, BaseDocumentCompressor):
    """Keeps of retrieved documents, word for word, what helps with the query.

    One document in, at most one out, in the same order, with its id and metadata; where its spans stand in the original is
    written to `metadata["cprs"]`. Documents that come in are never changed. All documents of a call share one budget.

    ```python
    from langchain_classic.retrievers import ContextualCompressionRetriever

    retriever = ContextualCompressionRetriever(base_compressor=CPRSCompressor(max_ratio=0.2), base_retriever=retriever)
    ```
    """

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Compress documents.

        Args:
            documents: what a retriever brought.
            query: the user's question; may be empty if there is an instruction.
            callbacks: of the run to which this one belongs; the compression is a child run of it.

        Raises:
            CPRSError: query and instruction are both empty, or the compression failed and `on_error` is "raise".
        """
        request = self._request_for(documents, query)

        def compress(_: dict[str, Any]) -> list[Document]:
            return self._documents(documents, self._compressed(request))

        run = RunnableLambda(compress, name=type(self).__name__)
        return run.invoke(_payload(documents, query), config={"callbacks": callbacks})

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Compress documents without holding the event loop. Arguments and errors as `compress_documents` has them."""
        request = self._request_for(documents, query)

        async def compress(_: dict[str, Any]) -> list[Document]:
            return self._documents(documents, await self._acompressed(request))

        run = RunnableLambda(compress, name=type(self).__name__)
        kept: list[Document] = await run.ainvoke(_payload(documents, query), config={"callbacks": callbacks})
        return kept

    def _request_for(self, documents: Sequence[Document], query: str) -> dict[str, Any]:
        return self._request_of([document.page_content for document in documents], [d.metadata for d in documents], query)

    def _documents(self, documents: Sequence[Document], compressed: CompressedContext | str) -> list[Document]:
        if isinstance(compressed, str):
            return [
                document.model_copy(
                    update={"metadata": {**document.metadata, KEY: passed_through(compressed, document.page_content)}}
                )
                for document in documents
            ]
        kept = []
        for document, left in zip(documents, compressed.documents, strict=True):
            if not document.page_content.strip():
                kept.append(document)
            elif left.text or not self.drop_empty:
                metadata = {**document.metadata, KEY: left.metadata}
                kept.append(document.model_copy(update={"page_content": left.text, "metadata": metadata}))
        return kept


def _payload(documents: Sequence[Document], query: str) -> dict[str, Any]:
    """What a trace shows as the input: sizes, not the documents again."""
    return {
        "query": query,
        "documents": len(documents),
        "characters": sum(len(document.page_content) for document in documents),
    }
