import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import CAPITALS

import cprs_integrations
from cprs_integrations import CPRSEngine
from cprs_integrations.critics.known import KnownCritic
from cprs_integrations.lines import abridge, line_starts, written_in_lines

LINES = st.lists(
    st.one_of(
        st.text(alphabet=st.characters(exclude_characters="\n"), max_size=40), st.sampled_from(["", "x", "\r", "\u2028"])
    ),
    max_size=30,
)


@st.composite
def texts_and_spans(draw):
    text = "\n".join(draw(LINES)) + draw(st.sampled_from(["", "\n", "\n\n"]))
    places = st.integers(0, len(text))
    return text, [tuple(sorted(pair)) for pair in draw(st.lists(st.tuples(places, places), max_size=5))]


def numbered(text):
    """Lines as an editor counts them."""
    return (text[:-1] if text.endswith("\n") else text).split("\n")


@given(texts_and_spans())
def test_every_line_is_kept_as_it_was_or_counted_by_one_marker(case):
    text, spans = case
    found = abridge(text, spans)
    lines = numbered(text)
    omitted = {number for first, last in found.omitted for number in range(first, last + 1)}
    assert sum(last - first + 1 for first, last in found.omitted) == len(omitted), "no line is counted twice"
    expected, number = [], 1
    while number <= len(lines):
        gap = next((gap for gap in found.omitted if gap[0] == number), None)
        if gap is None:
            expected.append(lines[number - 1])
            number += 1
        else:
            size = gap[1] - gap[0] + 1
            expected.append(f"[1 line omitted ({number})]" if size == 1 else f"[{size} lines omitted ({number}-{gap[1]})]")
            number = gap[1] + 1
    assert found.text == ("\n".join(expected) if found.omitted else text)
    assert [line for start, end in found.kept for line in text[start:end].split("\n")] == [
        line for number, line in enumerate(lines, 1) if number not in omitted
    ]


@given(texts_and_spans())
def test_it_is_never_longer_than_the_text_and_holds_every_span(case):
    text, spans = case
    found = abridge(text, spans)
    assert len(found.text) <= len(text)
    body = len(text) - text.endswith("\n")
    for start, end in spans:
        if start < min(end, body):
            assert any(low <= start and min(end, body) <= high + 1 for low, high in found.kept)


def test_gaps_are_marked_with_their_numbers_and_short_ones_are_kept():
    text = "\n".join(f"line number {number} of the file" for number in range(1, 100)) + "\n\nend\n"
    place = text.index("line number 40 ")
    found = abridge(text, [(place + 3, place + 9), (text.index("end"), text.index("end") + 1)])
    assert found.text == "[39 lines omitted (1-39)]\nline number 40 of the file\n[60 lines omitted (41-100)]\nend"
    assert found.omitted == ((1, 39), (41, 100))
    assert abridge("a\n\nb\n", [(0, 1)]).text == "a\n\nb\n", "a marker would be longer than what it stands for"


def test_it_takes_the_spans_of_an_engine():
    log = "\n".join(f"12:00:{number:02d} INFO request {number} done" for number in range(60))
    context = CPRSEngine(critic=KnownCritic({"request 41": 0.9})).compress(log, "q")
    found = abridge(log, [(span.start, span.end) for span in context.documents[0].spans])
    assert found.text == "[41 lines omitted (1-41)]\n12:00:41 INFO request 41 done\n[18 lines omitted (43-60)]"


@pytest.mark.parametrize(("text", "starts"), [("", [0]), ("a", [0]), ("a\n", [0]), ("a\n\nb", [0, 2, 3]), ("a\r\nb", [0, 3])])
def test_lines_are_counted_as_editors_do(text, starts):
    assert line_starts(text) == starts


CODE = Path(cprs_integrations.engine.__file__).read_text(encoding="utf-8")
LOG = "\n".join(f"2024-05-01 12:00:{n % 60:02d} WARN db: query {n} took long. Retrying. Done." for n in range(50))
TABLE = "id,name,city\n" + "\n".join(f"{n},Ann Li,Oslo" for n in range(50))
WRAPPED = re.sub(r"(.{60,70}) ", r"\1\n", " ".join(CAPITALS * 5))


@pytest.mark.parametrize("text", [CODE, LOG, TABLE, CODE.replace("\n", "\r\n")], ids=["code", "log", "table", "crlf"])
def test_code_logs_and_tables_are_written_in_lines(text):
    assert written_in_lines(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        " ".join(CAPITALS),
        "\n".join(CAPITALS * 3),
        "\n\n".join(CAPITALS),
        WRAPPED,
        "{" + '"a": 1, ' * 500 + "}",
        "\ud800",
    ],
    ids=["empty", "blank", "paragraph", "paragraphs", "blank lines between", "wrapped", "json in one line", "surrogate"],
)
def test_prose_and_data_without_line_breaks_are_not(text):
    assert not written_in_lines(text)
