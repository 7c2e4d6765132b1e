"""The generators hold RULER's definitions, at any length, seed and number."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from benching import HAYSTACK, SIZED, count, everything, make, nothing
from hypothesis import given, settings
from hypothesis import strategies as st

from cprs_integrations.errors import ArgumentError
from cprs_integrations.evaluation.haystack import LINE, SENTENCE, Haystack, plant
from cprs_integrations.evaluation.items import TOLERANCE, Budget
from cprs_integrations.evaluation.measures import evidence_kept, matched, precision, retention
from cprs_integrations.evaluation.ruler import NEEDLES, NOISE
from cprs_integrations.evaluation.tasks import load_task, sets
from cprs_integrations.examples import read_set

some = settings(max_examples=max(8, settings.default.max_examples // 40))
lengths, seeds, numbers = st.integers(1_500, 6_000), st.integers(0, 2**32), st.integers(0, 10)
NEEDLE = re.compile(r"One of the special magic (number|uuid)s for (\S+) is: (\S+)\.")


def without_evidence(item):
    texts = list(item.documents)
    for document, start, end in sorted(item.evidence, reverse=True):
        texts[document] = texts[document][:start] + texts[document][end:]
    return "\n\n".join(texts)


@pytest.mark.parametrize("name", SIZED)
def test_a_context_has_its_length_and_its_answers_stand_in_the_evidence_alone(name, questions):
    @some
    @given(lengths, seeds, numbers)
    def check(tokens, seed, number):
        item = make(name, number, tokens, seed, questions)
        assert item.tokens == count(item.text)
        assert abs(item.tokens - tokens) <= TOLERANCE * tokens
        assert item.answers
        assert item.evidence
        assert item == make(name, number, tokens, seed, questions)
        assert matched(item, "\n".join(item.excerpts)) == 1
        assert matched(item, without_evidence(item)) == 0

    check()


@pytest.mark.parametrize("name", SIZED)
def test_nothing_scores_0_and_everything_1_at_compression_1(name, questions):
    item, budget = make(name, 1, 2_000, 3, questions), Budget(0.1)
    for measure in (retention, matched, evidence_kept, precision):
        assert measure(item, nothing(item, budget)) == 0
    kept = everything(item, budget)
    assert (retention(item, kept), matched(item, kept), evidence_kept(item, kept)) == (1, 1, 1)
    assert len(item.text) / len(kept) == 1
    shares = sum(len(excerpt.strip()) for excerpt in item.excerpts) / len(kept)
    assert precision(item, kept) == pytest.approx(shares)


@pytest.mark.parametrize("name", SIZED)
def test_items_of_other_seeds_and_numbers_are_others(name, questions):
    item = make(name, 1, 2_000, 3, questions)
    assert item.text != make(name, 1, 2_000, 4, questions).text
    assert item.text != make(name, 2, 2_000, 3, questions).text


@pytest.mark.parametrize("name", NEEDLES)
def test_needles_are_as_many_and_as_deep_as_defined(name):
    kind = NEEDLES[name]

    @some
    @given(lengths, seeds)
    def check(tokens, seed):
        item = make(name, 0, tokens, seed, None)
        found = NEEDLE.findall(item.text)
        keys = Counter(key for _, key, _ in found)
        assert {value_kind for value_kind, _, _ in found} == {kind.value}
        assert len({value for *_, value in found}) == len(found)
        assert len(item.answers) == kind.queries * kind.values
        asked = {key for _, key, value in found if value in item.answers}
        assert len(asked) == kind.queries
        assert all(key in item.question for key in asked)
        assert not any(key in item.question for key in keys.keys() - asked)
        if kind.haystack == "needles":
            assert set(keys.values()) == {1}
            assert NEEDLE.sub("", item.text).strip() == ""
            return
        assert len(keys) == kind.keys
        assert set(keys.values()) == {kind.values}
        if kind.haystack == "noise":
            assert set(NEEDLE.sub("", item.text).split("\n")) == {NOISE, ""}
        elif item.depth is not None:
            assert min(abs(item.depth - np.linspace(0, 1, 40))) < 0.1  # the sentence at the depth ends a little later

    check()


@some
@given(lengths, seeds)
def test_a_chain_hands_one_value_on_four_times_in_order(tokens, seed):
    item = make("vt", 0, tokens, seed, None)
    steps = re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?(\w{5})", item.text)
    names = [name for name, _ in steps]
    assert names == list(item.answers)
    assert len(set(names)) == 5
    assert [source for _, source in steps] == [re.search(r"value (\d{5})", item.question)[1], *names[:-1]]
    assert set(re.sub(r"VAR .*", "", item.text).split("\n")) <= {NOISE, ""}


@some
@given(lengths, seeds)
def test_ten_words_are_common_and_all_others_are_not(tokens, seed):
    item = make("cwe", 0, tokens, seed, None)
    entries = re.findall(r"(\d+)\. (\w+)", item.text)
    assert [int(number) for number, _ in entries] == list(range(1, len(entries) + 1))
    times = Counter(word for _, word in entries)
    assert {word for word, number in times.items() if number == 30} == set(item.answers)
    assert len(item.answers) == 10
    assert set(times.values()) <= {30, 3}
    assert len(item.evidence) == 300


@some
@given(lengths, seeds)
def test_frequent_words_follow_zipf_with_dots_first(tokens, seed):
    item = make("fwe", 0, tokens, seed, None)
    times = Counter(item.text.split()).most_common()
    assert times[0][0] == "..."
    assert tuple(word for word, _ in times[1:4]) == item.answers
    for rank in (2, 3, 4):
        assert times[rank - 1][1] == pytest.approx(times[0][1] / rank**2, abs=1)


@some
@given(lengths, seeds)
def test_a_value_is_asked_by_its_key(tokens, seed):
    item = make("kv_retrieval", 0, tokens, seed, None)
    assert json.loads(item.text)[re.search(r'Key: "(.*)"', item.question)[1]] == item.answers[0]


@some
@given(lengths, seeds, st.integers(0, 4))
def test_a_needle_of_the_grid_lies_at_its_depth(tokens, seed, number):
    item = make("needle", number, tokens, seed, None)
    (_, start, end) = item.evidence[0]
    assert item.depth == number / 4
    if number in (0, 4):
        assert (start == 0) if number == 0 else (end == len(item.text))
    else:
        before = round(item.depth * (len(item.text) - (end - start)))
        assert start == pytest.approx(before, abs=60) or not SENTENCE.search(item.text, before + 60, start - 60)


@pytest.mark.parametrize(
    ("name", "keep", "expected"),
    [
        ("niah_single_1", lambda item: item.answers[0], 1),
        ("niah_single_2", lambda item: item.excerpts[0].upper(), 1),
        ("niah_single_3", lambda item: item.answers[0][:-1], 0),
        ("niah_multikey_1", lambda item: "\n".join(found[0] for found in NEEDLE.finditer(item.text)), 1),
        ("niah_multikey_2", lambda item: item.text.replace(item.excerpts[0], ""), 0),
        ("niah_multikey_3", lambda item: item.excerpts[0], 1),
        ("niah_multivalue", lambda item: " ".join(item.excerpts[:3]), 3 / 4),
        ("niah_multiquery", lambda item: item.excerpts[2], 1 / 4),
        ("vt", lambda item: "\n".join(item.excerpts[:2]), 2 / 5),
        ("cwe", lambda item: " ".join(item.answers[:4]), 4 / 10),
        ("fwe", lambda item: f"... {item.answers[0]} {item.answers[2]}", 2 / 3),
        ("qa_1", lambda item: f"It is {item.answers[0]}.", 1),
        ("qa_2", lambda item: item.excerpts[0], 0),
        ("passkey", lambda item: item.excerpts[0][:22], 1),
        ("number_string", lambda item: item.answers[0][::-1], 0),
        ("kv_retrieval", lambda item: item.text[1:-1], 1),
        ("needle", lambda item: item.excerpts[0].split(" is to ")[1], 1),
    ],
)
def test_a_case_worked_by_hand(name, keep, expected, questions):
    item = make(name, 2, 1_600, 5, questions)
    assert retention(item, keep(item)) == pytest.approx(expected)


def test_statements_are_planted_at_borders_and_found_again():
    text, spans = plant("One. Two. Three.", ["A.", "B.", "C."], [0.3, 0.0, 1.0])
    assert text == "B.\nOne. Two. A. Three.\nC."
    assert [text[start:end] for start, end in spans] == ["A.", "B.", "C."]
    text, ((start, end),) = plant("one\ntwo\nthree", ["X"], [0.1], LINE)
    assert (text, text[start:end]) == ("one\nX\ntwo\nthree", "X")


def test_a_longer_haystack_comes_again_in_another_order():
    haystack = Haystack([f"Paragraph {number} ends." for number in range(9)] + ["\n\n"], "nine")
    parts = haystack.text(24 * 20, np.random.default_rng(1)).split("\n\n")
    first, second = parts[:9], parts[9:18]
    assert sorted(first) == sorted(second)
    assert first != second


def test_a_folder_of_texts_is_a_haystack(tmp_path):
    (tmp_path / "a.txt").write_text("One.\n\nTwo.")
    (tmp_path / "more.txt").mkdir()
    (tmp_path / "more.txt" / "b.md").write_text("Three.")
    (tmp_path / "c.csv").write_text("not,read")
    text = Haystack.of(tmp_path).text(100, np.random.default_rng(0))
    assert sorted(set(text.split("\n\n"))) == ["One.", "Three.", "Two."]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("niah", None, "there is no 'niah'; there are niah_single_1"),
        ("qa_1", None, r"qa_1 asks SQuAD's questions, which do not ship: give --data, a folder with squad\*.jsonl"),
        ("qa_2", "empty", "has no files NAME.jsonl"),
    ],
)
def test_a_task_that_cannot_be_is_refused_with_the_way_out(name, data, message, tmp_path):
    with pytest.raises(ArgumentError, match=message):
        load_task(name, HAYSTACK, count, tmp_path if data else None)


def line(**fields):
    row = {
        "question": "Who?",
        "title": "",
        "context": "Ada wrote it.",
        "answers": [{"text": "Ada", "start": 0}],
        "evidence": None,
    }
    return json.dumps({**row, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answers": [{"text": "Ada", "start": 4}]}, "answers: at 4 stands 'wro', not 'Ada'"),
        ({"answers": [{"text": "t.", "start": -2}]}, r"answers: \[-2, 0\] is no place"),
        ({"evidence": [[0, 99]]}, r"evidence: \[0, 99\] is no place in a text of 13 characters"),
        ({"evidence": [[3, 3]]}, r"evidence: \[3, 3\] is no place"),
        ({"documents": [{"title": "", "text": "a"}], "evidence_docs": [{"doc": 1, "spans": [[0, 1]]}]}, "no document 1"),
        ({"documents": [{"title": "", "text": "a"}], "evidence_docs": [{"doc": 0, "spans": [[0, 2]]}]}, "evidence_docs: "),
        ({"evidence": [[0]]}, "not enough values"),
        ({"evidence": [[0.0, 3.0]]}, r"evidence: \[0\.0, 3\.0\] is no place"),
        ({"answers": [{"text": "", "start": 0}]}, "text must be a text that is not empty, not ''"),
        ({"question": None}, "question must be a text"),
        ({"question": ""}, "question must be a text"),
        ({"context": 7}, "context must be a text"),
        ({"context": "Ada \ud800"}, "surrogates not allowed"),
        ({"documents": [{"text": None}], "evidence_docs": []}, "text must be a text"),
        ({"documents": [{"text": "a"}], "evidence_docs": [{"doc": "0", "spans": [[0, 1]]}]}, "no document '0'"),
        ({"documents": [{"text": "a"}], "evidence_docs": [{"doc": 0, "spans": [[0, 1]]}], "answer_text": [42]}, "answer_text"),
    ],
)
def test_places_that_are_wrong_are_refused_with_their_line(fields, message, tmp_path):
    (tmp_path / "own.jsonl").write_text(f"{line()}\n\n{line(**fields)}\n")
    with pytest.raises(ArgumentError, match=rf"own\.jsonl, line 3: \w+: .*{message}"):
        load_task("own", HAYSTACK, count, tmp_path)


def test_evidence_of_one_document_in_two_rows_is_all_there(tmp_path):
    rows = [{"doc": 0, "spans": [[0, 3]]}, {"doc": 0, "spans": [[10, 12]]}]
    (tmp_path / "own.jsonl").write_text(line(documents=[{"text": "Ada wrote it."}], evidence_docs=rows))
    (example,) = read_set(tmp_path / "own.jsonl")
    assert example.documents[0].evidence == ((0, 3), (10, 12))


def test_two_files_of_one_name_are_refused(tmp_path):
    for name in ("own.jsonl", "own.jsonl.gz"):
        (tmp_path / name).write_text("")
    with pytest.raises(ArgumentError, match=r"own\.jsonl\.gz has the name of .*own\.jsonl, too"):
        sets(tmp_path)


def test_few_short_texts_make_no_item_and_are_refused(tmp_path):
    (tmp_path / "own.jsonl").write_text("\n".join(line(context=f"Ada wrote {number}.") for number in range(9)))
    with pytest.raises(ArgumentError, match=r"own\.jsonl: no item can be made .* 10 different ones at least"):
        load_task("own", HAYSTACK, count, tmp_path)


def test_questions_without_extracts_make_no_task_of_ruler(tmp_path):
    (tmp_path / "squad.jsonl").write_text(line(answers=[], evidence=[[0, 3]]))
    with pytest.raises(ArgumentError, match=r"squad\.jsonl: no question has an answer that stands in its evidence"):
        load_task("qa_1", HAYSTACK, count, tmp_path)


def test_a_set_cannot_have_the_name_of_a_task_that_comes_along(tmp_path):
    (tmp_path / "passkey.jsonl").write_text(line())
    with pytest.raises(ArgumentError, match=r"passkey\.jsonl has the name of a task that comes along; rename the file"):
        load_task("vt", HAYSTACK, count, tmp_path) and sets(tmp_path)


def test_in_long_texts_answers_too_short_to_tell_leave_the_count_to_evidence(tmp_path):
    long = "It is 7. Nothing else is known of it. " * 200
    (tmp_path / "own.jsonl").write_text(line(context=long, answers=[{"text": "7", "start": 6}]))
    item = load_task("own", HAYSTACK, count, tmp_path).item(0, 0, 0)
    assert (item.answers, item.excerpts) == ((), ["It is 7."])
    assert (retention(item, "7 of 17"), retention(item, "It is 7.")) == (0, 1)


def test_what_does_not_fit_a_length_is_refused():
    with pytest.raises(ArgumentError, match="no context of 100 tokens can be made"):
        make("cwe", 0, 100, 0, None)


def test_a_haystack_without_text_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"has no text: files \.txt, \.md"):
        Haystack.of(tmp_path)


def test_sets_are_taken_as_they_are(questions):
    assert set(sets(questions)) == {"squad_small", "hotpot_small"}
    alone = load_task("squad_small", HAYSTACK, count, questions)
    item = alone.item(0, 0, 0)
    assert (len(item.documents), alone.is_sized, alone.at_most) == (10, False, 12)
    assert item.tokens == count(item.text)
    together = load_task("hotpot_small", HAYSTACK, count, questions).item(0, 0, 0)
    assert (len(together.documents), len(together.titles)) == (3, 3)
    assert together.excerpts[0].startswith("Its mayor is called")


def test_questions_whose_answer_stands_nowhere_are_left_out(questions):
    assert load_task("qa_1", HAYSTACK, count, questions).at_most == 12
    assert load_task("qa_2", HAYSTACK, count, questions).at_most == 11  # "yes" is no extract
