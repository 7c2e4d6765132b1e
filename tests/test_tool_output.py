import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import CAPITALS, ScatteredCritic

from cprs_integrations import CPRSEngine, CPRSError
from cprs_integrations.critics.known import KnownCritic
from cprs_integrations.tool_output import ToolOutputOptions, question

LINE = st.sampled_from(["INFO request done", "x = f(1)", "", "Paris is big. Bread is not.", "a" * 90, "| 1 | word |", "word"])
TEXT = st.one_of(
    st.lists(LINE, min_size=1, max_size=40).map("\n".join), st.lists(st.sampled_from(CAPITALS), max_size=4).map(" ".join)
)
ENGINES = st.one_of(
    st.builds(ScatteredCritic, seed=st.integers(0, 50)),
    st.builds(KnownCritic, st.just({"word": 0.9, "Paris": 0.6, "f(1)": 0.7}), whole_units=st.booleans()),
).map(lambda critic: CPRSEngine(critic=critic))
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "max_ratio": st.floats(0.01, 1),
        "max_tokens": st.integers(1, 80),
        "token_counter": st.sampled_from([None, len, lambda text: len(text.split())]),
        "threshold": st.floats(0, 1),
        "whole_lines": st.sampled_from([None, True, False]),
        "protect": st.sampled_from([[], [r"\A.+"], ["(?s)f\\(1\\).{0,30}"], [r"\w+"]]),
    },
)


def shorten(texts, query="q", **options):
    return ToolOutputOptions.checked({"min_chars": 0, **options}).shorten(texts, query)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(TEXT, min_size=1, max_size=3), ENGINES, OPTIONS)
def test_bounds_hold_markers_included_and_what_is_kept_is_verbatim(texts, engine, options):
    found = shorten(texts, engine=engine, **options)
    whole = "\n\n".join(text for text in found.texts if text)
    assert all(len(text) <= len(source) for text, source in zip(found.texts, texts, strict=True))
    if "max_ratio" in options:
        assert len(whole) <= sum(map(len, texts)) * options["max_ratio"]
    if "max_tokens" in options:
        assert (options.get("token_counter") or engine.count_tokens)(whole) <= options["max_tokens"]
    for text, source, told in zip(found.texts, texts, json.loads(json.dumps(found.metadata))["texts"], strict=True):
        slices = [source[span["start"] : span["end"]] for span in told["spans"]]
        assert (told["original_chars"], told["kept_chars"]) == (len(source), len(text))
        if told.get("omitted_lines"):
            kept = [line for line in text.split("\n") if " omitted (" not in line]
            assert kept == [line for piece in slices for line in piece.split("\n")]
        elif "omitted_lines" in told:
            assert text == source
        elif slices:
            assert text == "\n".join(slices)
        else:
            assert text in ("", f"[{len(source)} characters omitted]")
    assert shorten(texts, engine=engine, **options) == found


def log(*lines, size=60):
    found = [f"12:00:{number:02d} INFO request {number} done" for number in range(size)]
    for number, line in lines:
        found[number] = line
    return "\n".join(found)


HIT = CPRSEngine(critic=KnownCritic({"refused": 0.9, "slow": 0.8, "late": 0.7}))


def test_the_best_lines_are_kept_and_the_bound_counts_the_markers():
    text = log((10, "12:00:10 WARN slow"), (30, "12:00:30 ERROR refused"), (50, "12:00:50 WARN late"))
    assert shorten([text], engine=HIT).texts[0].split("\n")[1::2] == [
        "12:00:10 WARN slow", "12:00:30 ERROR refused", "12:00:50 WARN late",
    ]  # fmt: skip
    tight = shorten([text], engine=HIT, max_tokens=90, token_counter=len)
    assert tight.texts[0] == "[30 lines omitted (1-30)]\n12:00:30 ERROR refused\n[29 lines omitted (32-60)]"


def test_where_no_line_fits_with_its_markers_the_bound_still_holds_and_the_words_are_kept():
    found = shorten([log((30, "12:00:30 ERROR refused"))], engine=HIT, max_tokens=25, token_counter=len)
    assert found.texts == ("12:00:30 ERROR refused",)
    assert "omitted_lines" not in found.metadata["texts"][0]


def test_protected_lines_come_first_whole_or_are_named_as_left_out():
    text = log((0, "time level message"), (30, "12:00:30 ERROR refused"), (50, "12:00:50 WARN late"))
    kept = shorten([text], engine=HIT, protect=[r"\A.+"], max_tokens=120, token_counter=len)
    assert kept.texts[0].split("\n")[0] == "time level message"
    both = shorten([text], engine=HIT, protect=["refused", "late"], max_tokens=80, token_counter=len)
    assert both.texts[0] == "[30 lines omitted (1-30)]\n12:00:30 ERROR refused\n[29 lines omitted (32-60)]"
    (left,) = both.metadata["left_out"]
    assert "late" in text[left["start"] : left["end"]]
    assert "protected" in left["reason"]


def test_what_only_overlaps_a_protected_match_that_did_not_fit_is_not_put_first():
    text = log((30, "12:00:30 ERROR refused"), (50, "12:00:50 WARN late"))
    found = shorten([text], engine=HIT, protect=[r"(?s)12:00:50.*\Z"], max_tokens=100, token_counter=len)
    assert found.texts[0] == "[30 lines omitted (1-30)]\n12:00:30 ERROR refused\n[29 lines omitted (32-60)]"
    (left,) = found.metadata["left_out"]
    assert text[left["start"] :].startswith("12:00:50")


@pytest.mark.parametrize("max_tokens", range(24, 160, 8))
def test_a_protected_match_over_several_lines_is_not_torn_by_the_markers(max_tokens):
    text = log((30, "BEGIN"), (31, "refused"), (32, "END"))
    found = shorten([text], engine=HIT, protect=[r"(?s)BEGIN.*?END"], max_tokens=max_tokens, token_counter=len)
    assert "BEGIN\nrefused\nEND" in found.texts[0]


def test_nothing_relevant_is_said_and_not_returned_as_silence():
    nothing = CPRSEngine(critic=KnownCritic({}))
    assert shorten([log()], engine=nothing).texts == ("[60 lines omitted (1-60)]",)
    prose = " ".join(CAPITALS)
    assert shorten([prose], engine=nothing).texts == (f"[{len(prose)} characters omitted]",)


def test_prose_keeps_sentences_and_whole_lines_may_be_forced_or_forbidden():
    prose = "\n".join(CAPITALS)
    paris = CPRSEngine(critic=KnownCritic({"Paris": 0.9}))
    assert shorten([prose], engine=paris).texts == ("Paris is the capital of France.",)
    assert shorten([prose], engine=paris, whole_lines=True).texts == (f"{CAPITALS[0]}\n[3 lines omitted (2-4)]",)
    text = log((30, "12:00:30 ERROR refused"))
    assert shorten([text], engine=HIT, whole_lines=False).texts == ("12:00:30 ERROR refused",)


async def test_async_gives_the_same():
    options = ToolOutputOptions.checked({"engine": HIT, "max_tokens": 90, "token_counter": len})
    text = log((30, "12:00:30 ERROR refused"))
    assert await options.ashorten([text], "q") == options.shorten([text], "q")


class Failing(KnownCritic):
    def score(self, windows):
        next(iter(windows))
        raise RuntimeError("the card is gone")
        yield


async def test_a_failure_is_raised_or_flagged_as_the_user_chose():
    failing = CPRSEngine(critic=Failing({}))
    with pytest.raises(CPRSError, match="the card is gone"):
        shorten(["text"], engine=failing)
    options = ToolOutputOptions.checked({"engine": failing, "on_error": "passthrough"})
    with pytest.warns(UserWarning, match="the card is gone"):
        found = options.shorten(["some", "text"], "q")
    assert found.texts == ("some", "text")
    assert found.metadata["passthrough"] is True
    assert "the card is gone" in found.metadata["reason"]
    assert (found.metadata["original_chars"], found.metadata["kept_chars"]) == (8, 8)
    with pytest.warns(UserWarning, match="the card is gone"):
        assert await options.ashorten(["some", "text"], "q") == found


def test_where_nothing_is_asked_all_stays_with_the_reason():
    found = shorten(["text", "more"], query=" ", engine=HIT)
    assert found.texts == ("text", "more")
    assert (found.metadata["passthrough"], found.metadata["original_chars"]) == (True, 8)
    assert found.metadata["reason"].startswith("nothing is asked")
    assert shorten(["refused text"], query="", engine=HIT, instruction="refusals").texts == ("refused text",)


def test_max_tokens_needs_someone_who_counts():
    class Bare:
        compress = acompress = None

    with pytest.raises(CPRSError, match="needs a token_counter"):
        ToolOutputOptions.checked({"engine": Bare(), "max_tokens": 5})
    ToolOutputOptions.checked({"engine": Bare(), "max_tokens": 5, "token_counter": len})


@pytest.mark.parametrize(
    ("asked", "arguments", "expected"),
    [
        ("Who?", {}, "Who?"),
        ("Who?", {"query": "first ascent", "limit": 5}, "Who?\nfirst ascent\n5"),
        ("Who climbed Everest?", {"query": "Everest"}, "Who climbed Everest?"),
        ("Who?", {"code": "x" * 201, "flag": True, "nothing": None}, "Who?"),
        ("", {"filters": [{"city": "Oslo"}, "Oslo", " "]}, "Oslo"),
        ("", {}, ""),
    ],
)
def test_the_question_is_the_user_s_words_and_the_wordings_of_the_call(asked, arguments, expected):
    assert question(asked, arguments) == expected
