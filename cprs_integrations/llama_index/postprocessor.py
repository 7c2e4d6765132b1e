"""A LlamaIndex node postprocessor on the engine."""

from typing import Any

from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import PromptTemplate
from llama_index.core.prompts.mixin import PromptDictType, PromptMixin
from llama_index.core.schema import BaseNode, MetadataMode, Node, NodeWithScore, QueryBundle, TextNode

from cprs_integrations.adapters import KEY, RetrievalOptions, passed_through
from cprs_integrations.instructions import resolve
from cprs_integrations.llama_index.events import CompressionEndEvent, CompressionStartEvent
from cprs_integrations.result import CompressedContext

dispatcher = get_dispatcher(__name__)


class CPRSNodePostprocessor(RetrievalOptions, BaseNodePostprocessor, PromptMixin):
    """Keeps of retrieved nodes, word for word, what helps with the query.

    One node in, at most one out, in the same order, with its id, score, metadata and relationships; where its spans stand in
    the original is written to `metadata["cprs"]`, hidden from prompts and embeddings. Nodes that come in are never changed;
    nodes without text (images, indexes) pass untouched. All nodes of a call share one budget.

    ```python
    query_engine = index.as_query_engine(node_postprocessors=[CPRSNodePostprocessor(max_ratio=0.2)])
    ```
    """

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which the postprocessor is serialized."""
        return "CPRSNodePostprocessor"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return the options as a dict, with the class's name. Raises as `model_dump` does."""
        return {**self.model_dump(**kwargs), "class_name": self.class_name()}

    def _get_prompts(self) -> PromptDictType:
        return {"instruction": PromptTemplate(resolve(self.instruction))}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        if "instruction" in prompts:
            self.instruction = prompts["instruction"].get_template()

    def _postprocess_nodes(self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None) -> list[NodeWithScore]:
        request = self._request_for(nodes, query_bundle)
        return self._nodes(nodes, self._compressed(request))

    @dispatcher.span
    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        request = self._request_for(nodes, query_bundle)
        return self._nodes(nodes, await self._acompressed(request))

    def _request_for(self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None) -> dict[str, Any]:
        query = query_bundle.query_str if query_bundle is not None else None
        request = self._request_of([_text(found.node) for found in nodes], [found.node.metadata for found in nodes], query)
        characters = sum(len(text) for text in request["documents"])
        dispatcher.event(CompressionStartEvent(query=query or "", nodes=len(nodes), characters=characters))
        return request

    def _nodes(self, nodes: list[NodeWithScore], compressed: CompressedContext | str) -> list[NodeWithScore]:
        kept = []
        for index, found in enumerate(nodes):
            text = _text(found.node)
            if not text.strip():
                kept.append(found)
            elif isinstance(compressed, str):
                kept.append(_replaced(found, text, passed_through(compressed, text)))
            elif (left := compressed.documents[index]).text or not self.drop_empty:
                kept.append(_replaced(found, left.text, left.metadata))
        characters = sum(len(_text(found.node)) for found in kept)
        reason = compressed if isinstance(compressed, str) else None
        dispatcher.event(CompressionEndEvent(nodes=len(kept), characters=characters, reason=reason))
        return kept


def _text(node: BaseNode) -> str:
    return node.get_content(metadata_mode=MetadataMode.NONE)


def _replaced(found: NodeWithScore, text: str, ours: dict[str, Any]) -> NodeWithScore:
    """Return a copy of a node with another text. What described the old text goes; its places are kept under our key."""
    node = found.node
    update: dict[str, Any] = {
        "relationships": dict(node.relationships),
        "excluded_llm_metadata_keys": [*(key for key in node.excluded_llm_metadata_keys if key != KEY), KEY],
        "excluded_embed_metadata_keys": [*(key for key in node.excluded_embed_metadata_keys if key != KEY), KEY],
    }
    if text != _text(node):
        update["embedding"] = None
        if isinstance(node, TextNode):
            update |= {"text": text, "start_char_idx": None, "end_char_idx": None}
            if node.start_char_idx is not None:
                ours = {**ours, "original_start_char_idx": node.start_char_idx, "original_end_char_idx": node.end_char_idx}
        elif isinstance(node, Node) and node.text_resource is not None:
            update["text_resource"] = node.text_resource.model_copy(update={"text": text})
    update["metadata"] = {**node.metadata, KEY: ours}
    return found.model_copy(update={"node": node.model_copy(update=update)})
