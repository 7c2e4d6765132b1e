"""The server's post-processing against its rules, spelled out word for word and slowly."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprs_integrations.reference import ReferenceSpan, clean, places, smooth, spans

TERMINATORS = set('.。：？！"”?!\n')
tag_lists = st.text("BIOOOOOE", max_size=90)


def smoothed_slowly(tags):
    found = list(tags)
    for begin in [place for place, tag in enumerate(tags) if tag == "B"]:
        anchor = begin
        while True:
            after = next((place for place in range(anchor + 1, len(tags)) if tags[place] != "O"), None)
            if after is None or after - anchor >= 20:
                break
            found[anchor + 1 : after] = "I" * (after - anchor - 1)
            if tags[after] != "I":
                break
            anchor = after
    return "".join(found)


@given(tag_lists)
def test_gaps_close_after_a_beginning(tags):
    assert smooth(tags) == smoothed_slowly(tags)


def test_a_gap_of_eighteen_closes_and_one_of_nineteen_does_not():
    assert smooth("B" + 18 * "O" + "E") == "B" + 18 * "I" + "E"
    assert smooth("B" + 19 * "O" + "E") == "B" + 19 * "O" + "E"
    assert smooth("IOOE") == "IOOE"


def spans_slowly(tags, context, least, complete):
    """One character a token."""
    found, before, place = [], -1, 0
    while place < len(tags):
        if tags[place] == "O":
            place += 1
            continue
        first = place
        place += 1
        while place < len(tags) and tags[place] not in "OB":
            place += 1
        start, end = first, place if place < len(tags) else len(context)
        if place - first > least:
            if complete:
                while start > 0 and context[start - 1] not in TERMINATORS and start > before:
                    start -= 1
                while end < len(context) - 1 and context[end - 1] not in TERMINATORS:
                    end += 1
            found.append(ReferenceSpan(context[start:end].strip(), start, end))
        before = end
    return found


@given(tag_lists, st.data(), st.integers(0, 4), st.booleans())
def test_spans_follow_the_rules(tags, data, least, complete):
    context = data.draw(st.text("ab .\n。", min_size=len(tags), max_size=len(tags)))
    offsets = [(place, place + 1) for place in range(len(tags))]
    found = spans(tags, offsets, context, min_keyword_len=least, complete_sentence=complete)
    assert found == spans_slowly(tags, context, least, complete)


def test_blanks_and_punctuation_are_cleaned_away():
    kept = clean([ReferenceSpan(text, 0, 0) for text in ("", " ", "。", "，。！", "！。", "a。", " 。")])
    assert [span.text for span in kept] == ["！。", "a。", " 。"]


@pytest.fixture
def in_seconds():
    """Far more than is needed here, far less than what grows with the square: that took the reference minutes."""
    began = time.perf_counter()
    yield
    assert time.perf_counter() - began < 20


def test_random_tags_are_smoothed_in_linear_time_and_to_an_end(in_seconds):
    tags = "".join(np.random.default_rng(0).choice([*"BIOE"], 1_000_000, p=[0.12, 0.18, 0.58, 0.12]).tolist())
    assert len(smooth(tags)) == len(tags)
    assert smooth("IOOOE") == "IOOOE"


def test_sentences_without_an_end_are_completed_in_linear_time(in_seconds):
    tags = ("BIIIIE" + 94 * "O") * 10_000
    found = places(tags, [(place, place + 1) for place in range(len(tags))], "a" * len(tags), complete_sentence=True)
    assert len(found) == 10_000
    assert {end for _, end in found} == {len(tags) - 1}
