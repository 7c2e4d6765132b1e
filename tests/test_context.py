import pytest

from cprs_integrations.context import LongContext, readable, utf8_length
from cprs_integrations.errors import ArgumentError


def test_every_position_leads_back_to_its_document():
    context = LongContext.of(["", "ab", "", "cde", ""])
    assert len(context) == 5
    assert [context.document_at(position) for position in range(5)] == [1, 1, 3, 3, 3]
    assert context.slice(1, 2) == "b"
    assert context.slice(3, 5) == "de"


def test_one_text_is_one_document():
    assert LongContext.of("abc").documents == ("abc",)
    assert LongContext.of([]).documents == ()


@pytest.mark.parametrize("documents", [b"abc", None, 3, {"a": 1}, iter(["a"])])
def test_what_is_no_sequence_of_texts_is_refused(documents):
    with pytest.raises(ArgumentError, match="documents must be a str or a sequence of str"):
        LongContext.of(documents)


@pytest.mark.parametrize("wrong", [b"bytes", None, 7, ["a"]])
def test_the_index_of_a_wrong_document_is_named(wrong):
    with pytest.raises(ArgumentError, match=r"documents\[1\] must be a str, not"):
        LongContext.of(["fine", wrong])


@pytest.mark.parametrize("titles", [["a"], "ab", ["a", "b", "c"]])
def test_titles_are_one_a_document(titles):
    with pytest.raises(ArgumentError, match="titles must be a sequence of one title"):
        LongContext.of(["x", "y"], titles)


def test_the_index_of_a_wrong_title_is_named():
    with pytest.raises(ArgumentError, match=r"titles\[1\]"):
        LongContext.of(["x", "y"], [None, 3])


def test_surrogates_are_replaced_one_for_one():
    assert readable("a\ud800b\udfffc😀") == "a\ufffdb\ufffdc😀"
    assert utf8_length("ä\ud800") == 5
