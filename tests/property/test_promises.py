"""The promises of the engine, for any text, any budget and any critic."""

import json
import re
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import ScatteredCritic

from cprs_integrations import CPRSEngine
from cprs_integrations.critics.known import KnownCritic

ODD = st.sampled_from(
    ["[SEP]", "<|im_start|>", "\x00", "\ud800", "\udfff", "\r\n", "\n\n", "。", "😀", "e\u0301", "\u202e", "a. B", "  "]
)
TEXT = st.lists(
    st.one_of(st.text(alphabet=st.characters(exclude_categories=[]), max_size=20), ODD, st.just("A word. ")), max_size=20
)
DOCUMENTS = st.lists(TEXT.map("".join), max_size=5)
CRITICS = st.one_of(
    st.builds(ScatteredCritic, seed=st.integers(0, 50), window=st.sampled_from([16, 64])),
    st.builds(KnownCritic, st.just({"word": 0.9, "。": 0.6}), default=st.sampled_from([0.0, 0.4]), whole_units=st.booleans()),
)
COUNTERS = st.sampled_from(
    [None, len, lambda text: len(text.split()), lambda text: 3 * len(text.encode("utf-8", "replace")) // 2]
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "granularity": st.sampled_from([None, "keyword", "sentence", "paragraph", "document"]),
        "threshold": st.floats(0, 1),
        "max_ratio": st.floats(0, 1, exclude_min=True),
        "max_tokens": st.integers(1, 60),
        "token_counter": COUNTERS,
        "titles": st.sampled_from(["", "A title", "A long title " * 20]),
        "protect": st.sampled_from([(), (r"\w+",), (r"[SEP]", "word."), (r"(?s).{1,9}",)]),
    },
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(DOCUMENTS, CRITICS, OPTIONS)
def test_verbatim_traceable_and_bounded(documents, critic, options):
    before = list(documents)
    if "titles" in options:
        options["titles"] = [options["titles"]] * len(documents)
    engine = CPRSEngine(critic=critic)
    context = engine.compress(documents, "query", **options)
    assert documents == before
    assert len(context.documents) == len(documents)
    for source, document in zip(documents, context.documents, strict=True):
        assert all(0 <= span.start < span.end <= len(source) for span in document.spans)
        assert all(first.end <= second.start for first, second in pairwise(document.spans))
        assert all(0 <= span.score <= 1 for span in document.spans)
        assert document.text == "\n".join(source[span.start : span.end] for span in document.spans)
        assert len(document.text) <= len(source)
    assert context.text == "\n\n".join(document.text for document in context.documents if document.text)
    total = sum(map(len, documents))
    assert len(context.text) <= total * options.get("max_ratio", 1.0)
    if "max_tokens" in options:
        counter = options.get("token_counter") or engine.count_tokens
        assert not context.text or counter(context.text) <= options["max_tokens"]
    json.dumps(context.to_dict())


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(DOCUMENTS, st.sampled_from(["a", "b"])), max_size=4), CRITICS, OPTIONS)
def test_a_batch_is_the_same_as_one_by_one(items, critic, options):
    engine = CPRSEngine(critic=critic)
    granularity, _ = options.pop("granularity", None), options.pop("titles", None)
    batch = engine.compress_batch(items, granularity=granularity, **options)
    single = [engine.compress(documents, query, granularity=granularity, **options) for documents, query in items]
    assert [found.documents for found in batch] == [found.documents for found in single]


@given(DOCUMENTS, st.floats(0.05, 1))
def test_protected_matches_are_whole_or_reported(documents, ratio):
    pattern = r"A word|\w\w\w"
    context = CPRSEngine(critic=ScatteredCritic()).compress(documents, "q", protect=[pattern], max_ratio=ratio)
    left_out = {(found.document, found.start, found.end) for found in context.stats.left_out if "protected" in found.reason}
    for index, (source, document) in enumerate(zip(documents, context.documents, strict=True)):
        for match in re.finditer(pattern, source):
            kept = any(span.start <= match.start() and match.end() <= span.end for span in document.spans)
            assert kept or (index, *match.span()) in left_out


@pytest.mark.parametrize("query", ["q", "[SEP]", "\ud800", "😀" * 20])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents=DOCUMENTS)
def test_the_shipped_critic_takes_any_text(engine, query, documents):
    context = engine.compress(documents, query, max_ratio=0.5)
    for source, document in zip(documents, context.documents, strict=True):
        assert document.text == "\n".join(source[span.start : span.end] for span in document.spans)
    assert engine.compress(documents, query, max_ratio=0.5).documents == context.documents
