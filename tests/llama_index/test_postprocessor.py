import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import (
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from samples import ANSWER, CAPITALS, QUESTION

from cprs_integrations import CPRSEngine
from cprs_integrations.critics.known import KnownCritic
from cprs_integrations.llama_index import CompressionEndEvent, CompressionStartEvent, CPRSNodePostprocessor


class Fixed(BaseRetriever):
    def __init__(self, nodes):
        self._nodes = nodes
        super().__init__()

    def _retrieve(self, query_bundle):
        return self._nodes


class Events(BaseEventHandler):
    seen: list = []

    @classmethod
    def class_name(cls):
        return "Events"

    def handle(self, event, **kwargs):
        self.seen.append(event)


@pytest.fixture
def climbing():
    return CPRSNodePostprocessor(engine=CPRSEngine(critic=KnownCritic({"Hillary": 0.9})))


def only(postprocessor, node, **score):
    (found,) = postprocessor.postprocess_nodes([NodeWithScore(node=node, **score)], query_str="q")
    return found


def test_it_is_a_postprocessor_with_a_name_of_its_own():
    assert issubclass(CPRSNodePostprocessor, BaseNodePostprocessor)
    assert CPRSNodePostprocessor.class_name() == CPRSNodePostprocessor().to_dict()["class_name"] == "CPRSNodePostprocessor"


def test_what_described_the_old_text_goes_and_its_place_is_kept(climbing):
    source = RelatedNodeInfo(node_id="book")
    node = TextNode(
        text=CAPITALS[3], embedding=[1.0], start_char_idx=100, end_char_idx=100 + len(CAPITALS[3]),
        relationships={NodeRelationship.SOURCE: source}, metadata={"file": "a.txt"}, excluded_llm_metadata_keys=["file"],
    )  # fmt: skip
    found = only(climbing, node, score=0.25)
    assert found.node.text == "Edmund Hillary and Tenzing Norgay reached its summit in May 1953."
    assert found.score == 0.25
    assert found.node.node_id == node.node_id
    assert found.node.embedding is None
    assert found.node.start_char_idx is found.node.end_char_idx is None
    assert found.node.metadata["cprs"]["original_start_char_idx"] == 100
    assert found.node.relationships == {NodeRelationship.SOURCE: source}
    assert node.embedding == [1.0]
    assert node.start_char_idx == 100
    assert node.excluded_llm_metadata_keys == ["file"]


def test_our_key_is_hidden_from_prompts_and_embeddings(climbing):
    node = only(climbing, TextNode(text=CAPITALS[3], metadata={"file": "a.txt"})).node
    for mode in (MetadataMode.LLM, MetadataMode.EMBED):
        assert node.get_content(mode) == f"file: a.txt\n\n{node.text}"
    assert "cprs" in node.get_content(MetadataMode.ALL)


def test_metadata_is_not_compressed_into_the_text(climbing):
    node = only(climbing, TextNode(text=CAPITALS[3], metadata={"note": "Hillary was here"})).node
    assert "was here" not in node.text


def test_a_node_that_keeps_everything_keeps_its_embedding(climbing):
    text = "Edmund Hillary climbed."
    node = only(climbing, TextNode(text=text, embedding=[1.0], start_char_idx=3, end_char_idx=26)).node
    assert (node.text, node.embedding, node.start_char_idx) == (text, [1.0], 3)


def test_a_score_of_none_stays_none(climbing):
    assert only(climbing, TextNode(text=CAPITALS[3])).score is None


@pytest.mark.parametrize(
    "node",
    [
        Document(text=CAPITALS[3], metadata={"a": 1}),
        Node(text_resource=MediaResource(text=CAPITALS[3], mimetype="text/markdown")),
        IndexNode(text=CAPITALS[3], index_id="i", obj=object()),
    ],
    ids=lambda node: type(node).__name__,
)
def test_other_nodes_with_text_keep_their_kind_and_what_they_carry(climbing, node):
    found = only(climbing, node).node
    assert type(found) is type(node)
    assert found.get_content(MetadataMode.NONE).startswith("Edmund")
    assert node.get_content(MetadataMode.NONE) == CAPITALS[3]
    if isinstance(node, IndexNode):
        assert found.obj is node.obj
    elif isinstance(node, Node):
        assert found.text_resource.mimetype == node.text_resource.mimetype


@pytest.mark.parametrize("node", [ImageNode(image_path="a.png"), IndexNode(text="", index_id="i"), TextNode(text=" ")])
def test_nodes_without_text_pass_untouched(climbing, node):
    before = node.to_dict()
    found = climbing.postprocess_nodes([NodeWithScore(node=TextNode(text="No.")), NodeWithScore(node=node)], query_str="q")
    assert [item.node for item in found] == [node]
    assert found[0].node.to_dict() == before


def test_spans_and_events_tell_what_happened(climbing):
    handler, spans = Events(), SimpleSpanHandler()
    handler.seen.clear()
    root = get_dispatcher()
    root.add_event_handler(handler)
    root.add_span_handler(spans)
    try:
        climbing.postprocess_nodes([NodeWithScore(node=TextNode(text=text)) for text in CAPITALS], query_str=QUESTION)
    finally:
        root.event_handlers.remove(handler)
        root.span_handlers.remove(spans)
    start, end = [event for event in handler.seen if isinstance(event, CompressionStartEvent | CompressionEndEvent)]
    assert (start.query, start.nodes, start.characters) == (QUESTION, 4, sum(map(len, CAPITALS)))
    assert (end.nodes, end.characters, end.reason) == (1, 65, None)
    assert [span.id_.split("-")[0] for span in spans.completed_spans] == ["CPRSNodePostprocessor._postprocess_nodes"]


async def test_an_async_call_has_its_span_too(climbing):
    spans = SimpleSpanHandler()
    root = get_dispatcher()
    root.add_span_handler(spans)
    try:
        await climbing.apostprocess_nodes([NodeWithScore(node=TextNode(text=CAPITALS[3]))], query_str=QUESTION)
    finally:
        root.span_handlers.remove(spans)
    assert [span.id_.split("-")[0] for span in spans.completed_spans] == ["CPRSNodePostprocessor._apostprocess_nodes"]


def test_the_instruction_is_a_prompt_that_can_be_swapped():
    postprocessor = CPRSNodePostprocessor()
    assert postprocessor.get_prompts()["instruction"].get_template() == "sentences that help to answer the query"
    postprocessor.update_prompts({"instruction": PromptTemplate("names of {places} alone")})
    assert postprocessor.instruction == "names of {places} alone"
    assert postprocessor.to_dict()["instruction"] == "names of {places} alone"


def test_no_query_bundle_is_fine_with_an_instruction():
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in CAPITALS]
    postprocessor = CPRSNodePostprocessor(instruction="Find the statements about: Mount Everest", max_ratio=0.5)
    assert any("Everest" in found.text for found in postprocessor.postprocess_nodes(nodes))


async def test_it_works_in_a_query_engine_over_a_real_index():
    index = VectorStoreIndex([TextNode(text=text, id_=text[:5]) for text in CAPITALS], embed_model=MockEmbedding(8))
    postprocessor = CPRSNodePostprocessor(max_ratio=0.3)
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=4, node_postprocessors=[postprocessor])
    answer = engine.query(QUESTION)
    assert ANSWER in str(answer), "the mock repeats its prompt"
    assert "Knead the dough" not in str(answer)
    again = await engine.aquery(QUESTION)
    assert [found.text for found in again.source_nodes] == [found.text for found in answer.source_nodes]


def test_it_works_in_a_chat_engine_and_in_front_of_another_postprocessor(climbing):
    class Upper(BaseNodePostprocessor):
        def _postprocess_nodes(self, nodes, query_bundle=None):
            assert query_bundle == QueryBundle(QUESTION)
            return nodes

    nodes = [NodeWithScore(node=TextNode(text=text)) for text in CAPITALS]
    chat = ContextChatEngine.from_defaults(
        retriever=Fixed(nodes), llm=MockLLM(), memory=ChatMemoryBuffer.from_defaults(llm=MockLLM()),
        node_postprocessors=[climbing, Upper()],
    )  # fmt: skip
    response = chat.chat(QUESTION)
    assert [found.text for found in response.source_nodes] == [
        "Edmund Hillary and Tenzing Norgay reached its summit in May 1953."
    ]


def test_a_query_engine_may_set_its_callback_manager(climbing):
    engine = RetrieverQueryEngine.from_args(Fixed([]), llm=MockLLM(), node_postprocessors=[climbing])
    assert engine.query("q").source_nodes == []
