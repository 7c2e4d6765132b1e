import itertools
import json
import re

import pytest
import sentencex
from hypothesis import given
from hypothesis import strategies as st

from cprs_integrations import units
from cprs_integrations.units import MAX_UNIT, clauses, segment


def cut(text):
    return [text[unit.start : unit.end] for unit in segment(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Smith paid 3.5 million. He left.", ["Dr. Smith paid 3.5 million.", "He left."]),
        (
            "See Fig. 2 or No. 5, e.g. in v1.2.3. Then i.e. Ada came!",
            ["See Fig. 2 or No. 5, e.g. in v1.2.3.", "Then i.e. Ada came!"],
        ),
        ("他来了。她走了！真的吗？是的", ["他来了。", "她走了！", "真的吗？", "是的"]),
        ("ما هي العاصمة؟ باريس هي العاصمة. هذا جيد.", ["ما هي العاصمة؟", "باريس هي العاصمة.", "هذا جيد."]),
        ("यह एक वाक्य है। दूसरा वाक्य।", ["यह एक वाक्य है।", "दूसरा वाक्य।"]),
        ("def f(x):\n    return x + 1\n", ["def f(x):", "return x + 1"]),
        ("| a | b |\n|---|---|\n| 1 | 2 |", ["| a | b |", "|---|---|", "| 1 | 2 |"]),
        ("name\tage\nAda\t36\nAlan\t41", ["name\tage", "Ada\t36", "Alan\t41"]),
        ("- milk\n- eggs\n* bread\n1. one\n2. two", ["- milk", "- eggs", "* bread", "1. one", "2. two"]),
        ("one\r\ntwo\rthree\u2028four", ["one", "two", "three", "four"]),
        ('"k1": "v1",\n"k2": "v2",', ['"k1": "v1",', '"k2": "v2",']),
        ("", []),
        (" \n\t\u3000 ", []),
    ],
)
def test_units_are_sentences_of_prose_and_lines_of_the_rest(text, expected):
    assert cut(text) == expected


def test_json_in_one_line_is_cut_into_records_and_what_is_long_into_members():
    short = [{"name": f"N{n}", "city": "Oslo", "tags": [{"k": 1}, {"k": 2}], "of": "[1], [2]"} for n in range(50)]
    assert cut(json.dumps(short))[1] == json.dumps(short[1]) + ","
    keyed = {f"n{n}": {"age": n, "city": "Oslo"} for n in range(99)}
    assert cut(json.dumps(keyed))[1:3] == ['"n1": {"age": 1, "city": "Oslo"},', '"n2": {"age": 2, "city": "Oslo"},']
    pairs = {f"it's key-{n}": f"value {n}, and {{more}}" for n in range(99)}
    assert cut(json.dumps(pairs))[1:3] == [f'"it\'s key-{n}": "value {n}, and {{more}}",' for n in (1, 2)]
    assert cut(json.dumps(pairs, separators=(",", ":")))[1] == '"it\'s key-1":"value 1, and {more}",'
    assert cut(repr({f"key-{n}": f"value {n}" for n in range(99)}))[1] == "'key-1': 'value 1',"
    long = [{"id": n, "tags": ["a", "b"], "text": "A text. " * 60, **dict.fromkeys("bcdefgh", True)} for n in range(9)]
    assert cut(json.dumps(long))[10:13] == ['{"id": 1,', '"tags": ["a", "b"],', f'"text": "{"A text. " * 60}",']


@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":")])
def test_json_longer_than_a_block_loses_no_pair_at_its_borders(separators):
    pairs = {f"key-{n:05}": "v" * (3 + n % 27) for n in range(5_000)}
    found = cut(json.dumps(pairs, separators=separators))
    assert [json.loads(f"{{{unit.strip('{},')}}}") for unit in found] == [{key: value} for key, value in pairs.items()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('He said "yes", "no" and "perhaps": nobody knew. ', 'He said "yes", "no" and "perhaps": nobody knew.'),
        ('Doe, "The Long Road": a study of the north. ', 'Doe, "The Long Road": a study of the north.'),
        ('Give it {"depth": 1, "mode": "fast"} and it returns. ', 'Give it {"depth": 1, "mode": "fast"} and it returns.'),
    ],
)
def test_prose_with_quotes_is_no_json(text, expected):
    assert set(cut(text * 50)) == {expected}


def test_wrapped_prose_is_joined_before_it_is_cut():
    first = "The quick brown fox jumps over the lazy dog and then\nruns through the forest until it is tired."
    second = "It sleeps there\nall night."
    assert cut(f"{first} {second}") == [first, second]


def test_paragraphs_are_numbered_by_blank_lines_and_by_long_lines():
    text = "One. Two.\n\nThree.\n \t\nFour.\n" + "A long line is a paragraph of its own. " * 8
    numbers = [unit.paragraph for unit in segment(text)]
    assert numbers[:3] == [numbers[0]] * 2 + [numbers[0] + 1]
    assert numbers[3] == numbers[2] + 1
    assert len(set(numbers[4:])) == 1
    assert numbers[4] > numbers[3]


@pytest.mark.parametrize("text", ["word " * 100_000, "x" * 200_000, "字" * 100_000, "a, b; " * 50_000, "。" * 100_000])
def test_a_giant_line_is_cut_into_pieces_that_lose_nothing(text):
    pieces = cut(text)
    assert max(map(len, pieces)) <= MAX_UNIT
    assert re.sub(r"\s", "", "".join(pieces)) == re.sub(r"\s", "", text)


def test_long_sentences_are_cut_at_clauses():
    pieces = cut("and so it went on, " * 400)
    assert all(piece.endswith(",") for piece in pieces)


FILLER = "They walked on and on along the river"


@pytest.mark.parametrize(
    ("start", "sentences", "end"),
    [
        ('"I say it', ["How could I?", "Go, all of you!"], 'It is late!" he said.'),
        ("“I say it", ["And he: ‘Go!’ and I went.", "Why [as ever]?"], "It's late,” she said."),
        ("'We say it", ["We don't (ever) wait.", "And so 'tis, the Joneses' way."], "We go!'"),
        ("(That is", ["It is “so”.", "So they say."], "It ends.)"),
        ("The ships (an old kind.12", ["The 1.2 metres of sails.3–5, 7", "The wind."], "It ends.)"),
    ],
)
def test_long_quotations_and_brackets_are_cut_at_their_sentences(start, sentences, end):
    first = start if start.endswith("12") else f"{start} and {FILLER}."
    expected = [first, *sentences, *[f"{FILLER}."] * 12, end]
    assert cut(" ".join(expected)) == expected


LONG = "It was agreed by all of them over and over again that they would go on along the river and " * 5


@pytest.mark.parametrize(
    "sentences",
    [
        ["pay within [...***...] Business Days."],
        ["see (1, 2, . . . , n) or (e.g. Seven) or (±S.D.) in (Section 1.B), war."],
        ["sell Bolt Inc. (The Buyer) at 5 p.m. (Pacific Time) it."],
        ['say "Go. It is late. They know."'],
        ["end so they say.[18]", "In humans (resp. mice) it ends."],
        ["end so they say.12 13", "In humans it ends.4"],
        ["say « Il est tard. »", "Il partit."],
        ["say „Es ist Zeit.“", "Er ging."],
        ["say »Es ist Zeit.«", "Er ging."],
        ["say “It is “late!” he said.", "And “go!” he said.”"],
    ],
)
def test_long_sentences_are_cut_where_a_reader_would(sentences):
    expected = [LONG + sentences[0], *sentences[1:]]
    assert cut(" ".join(expected)) == expected


@pytest.mark.parametrize("marks", ['""', "“”", "()", "«»"])
def test_short_quotations_and_brackets_stay_whole(marks):
    sentence = f"They said {marks[0]}Where is it? It is late. Let us go.{marks[1]} and went."
    assert cut(f"{sentence} They came. {sentence}") == [sentence, "They came.", sentence]


def test_numbers_of_notes_end_the_sentence_before_them():
    sentences = [f"{FILLER} once more.{note}" for note in ("12", "1,2", "3-5", "1, 2, 7–9", "4") * 3]
    assert cut(" ".join(sentences)) == sentences


def test_a_date_begins_a_sentence_in_chinese():
    sentences = ["他是老師。", "1945年他去了。", "３月他回來！", "1.5年？", "第3。4号。", "好。"]
    assert cut("".join(sentences)) == sentences


def test_text_without_spaces_is_cut_in_blocks_as_if_at_once(monkeypatch):
    sizes = []

    def counting(language, text):
        sizes.append(len(text))
        return sentencex.get_sentence_boundaries(language, text)

    monkeypatch.setattr(units, "get_sentence_boundaries", counting)
    sentences = [f"第{n}年他说「{'来了。走了！' * n}好」是真的。" for n in (*range(60), *range(60))]
    sentences += [f"北京{n}。" for n in range(700)]
    assert 20_000 < len("".join(sentences)) < 32_000
    assert cut("".join(sentences)) == sentences
    assert max(sizes) <= 4_000
    assert sum(sizes) < 2 * len("".join(sentences))
    sizes.clear()
    english = ("“It is late,” she said. " * 1_000).strip()
    assert set(cut(english)) == {"“It is late,” she said."}
    assert sizes == [len(english)]


@pytest.mark.parametrize("space", "\u00a0\u2003\u202f\u3000")
def test_wide_white_space_before_a_stop_is_no_trouble(space):
    text = f"Take vitamin A{space}. Then comes B {space}. It helps."
    assert [unit.replace(space, " ") for unit in cut(text)] == cut(text.replace(space, " "))


@given(
    st.text(
        alphabet=st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(".!? \n\r\t|-1a。\"“”'’([)]*\u3000\xa0"))
    ),
    st.booleans(),
)
def test_units_cover_all_but_white_space_in_order(text, after_a_long_one):
    text = LONG + text if after_a_long_one else text
    found = list(segment(text))
    assert all(before.end <= after.start for before, after in itertools.pairwise(found))
    assert all(before.paragraph <= after.paragraph for before, after in itertools.pairwise(found))
    kept = "".join(text[unit.start : unit.end] for unit in found)
    assert [c for c in kept if not c.isspace()] == [c for c in text if not c.isspace()]
    assert all(text[unit.start : unit.end].strip() == text[unit.start : unit.end] != "" for unit in found)


def test_clauses_begin_after_commas_and_colons_but_not_inside_numbers():
    text = "In 1,000 years: gold, silver; done"
    assert [text[start:] for start in clauses(text)] == [text, "gold, silver; done", "silver; done", "done"]
