"""The prompts that were published with the released code, by their tag words; and what they give."""

from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from cprs_integrations import CPRSEngine
from cprs_integrations.langchain import CPRSCompressor
from cprs_integrations.llama_index import CPRSNodePostprocessor

EXPERT = "You are an expert for information extraction, your task is to extract "
PUBLISHED = {
    "needle": EXPERT
    + "the 'needles' in the format of 'One of the special magic {type_needle_v} for {key} is: {value}.' from the documents "
    "to answer user's question.\n## tagging rule:\n- tag the needles with 'needle'",
    "fact": EXPERT + "some sentences from the documents as the supporting facts of the user's question.\n"
    "## tagging rule:\n- tag the supporting facts with 'fact'",
    "chain": EXPERT + "the assigment chains like 'VAR XXX1 = XXX2' from the documents to answer the question of the user.\n"
    "## tagging rule:\n- tag the assignment chains with 'chain'",
}


def kept_and_named(folder, instruction, documents, query, **options):
    """The kept texts and the labels of all spans: of the engine, the compressor and the postprocessor."""
    context = CPRSEngine.from_pretrained(str(folder), **options).compress(
        documents, query, instruction=instruction, max_ratio=0.4
    )
    yield (
        [document.text for document in context.documents if document.text],
        {span.label for document in context.documents for span in document.spans},
    )
    adapter = {"critic": str(folder), "critic_options": options, "instruction": instruction, "max_ratio": 0.4}
    compressed = CPRSCompressor(**adapter).compress_documents([Document(page_content=text) for text in documents], query)
    yield (
        [document.page_content for document in compressed],
        {span["label"] for document in compressed for span in document.metadata["cprs"]["spans"]},
    )
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in documents]
    kept = CPRSNodePostprocessor(**adapter).postprocess_nodes(nodes, query_str=query)
    yield (
        [node.node.text for node in kept],
        {span["label"] for node in kept for span in node.node.metadata["cprs"]["spans"]},
    )
