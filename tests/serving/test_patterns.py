import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cprs_integrations.errors import ArgumentError
from cprs_integrations.serving import patterns
from cprs_integrations.serving.patterns import Allowance, LinearPattern, linear

TEXT = "Straße K\u212a ſs ½ ２３ naïve 12 foo\nbar_9 É é İi ı end\n"


def found(pattern, text):
    return [(place.start(), place.end()) for place in LinearPattern(pattern, Allowance()).finditer(text)]


@pytest.mark.parametrize("text", [TEXT, TEXT.strip(), "foo\n", "foo", "\n", ""])
@pytest.mark.parametrize(
    "pattern",
    [
        r"\bfoo\b", r"\w+", r"\d+", r"\s+$", r"\Bo", r"\A\w", r"\S+\Z", r"(?a)\w+", r"[^\W\d]{2,3}", r"[\s\S]+?e",
        "(?i)k+", "(?i)[a-z]+", "(?i)[^s]", "(?i:É)+", ".+$", "(?m).+$", "(?s).+$", "(?ms)^.*?.$", r"(?m)^\w+", "end$",
        "end\n$", "\n$", "(?x) e  # yes", "(?P<n>e.)", "(a|b)?o", "x{0}o", "a|b|\n", "foo|fo", "fo|foo", "(?:a|ab)(?:c|bcd)?",
    ],
)  # fmt: skip
def test_matches_are_pythons(pattern, text):
    assert found(pattern, text) == [match.span() for match in re.finditer(pattern, text)]


atoms = st.sampled_from(
    ["a", "b", "[ab]", "[^a]", r"\w", r"\d", r"\s", ".", r"\b", "$", "^", "é", "(?i:a)", r"\n", r"\B", "[à-ü]"]
)
trees = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["+", "*", "?", "{2}", "{1,3}", "+?", "??", "*?"])).map(lambda p: f"(?:{p[0]}){p[1]}"),
    ),
    max_leaves=8,
)


@given(st.sampled_from(["", "(?i)", "(?m)", "(?s)", "(?a)"]), trees, st.text("abAB é\nÉ1_kK\u212aıſ.", max_size=14))
def test_matches_are_pythons_or_the_pattern_is_refused(flags, tree, text):
    try:
        ours = found(flags + tree, text)
    except ArgumentError:
        assume(False)
    assert ours == [match.span() for match in re.finditer(flags + tree, text)]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(?<=a)b", "look-ahead and look-behind"),
        ("a(?!b)", "look-ahead and look-behind"),
        (r"(a)\1", "back-references"),
        (r"(a)?(?(1)b|c)", "conditions"),
        ("a++b", "possessive"),
        ("(?>a|ab)c", "atomic"),
        ("a*", "match nothing"),
        ("(a*)+b", "what it repeats can match nothing"),
        (r"(?a)\bx", "flag a"),
        (r"x(?m:$)|y$", "with and without"),
        ("(" * 400 + "a" + ")" * 400, "nested too deeply"),
        ("(?:[a-z]{1,900}){1,900}", "repeat less"),
        ("(", "not a valid regular expression"),
    ],
)
def test_what_cannot_run_in_linear_time_is_refused_with_the_reason(pattern, reason):
    with pytest.raises(ArgumentError, match=reason):
        found(pattern, "abc")


def test_patterns_that_hang_python_do_not_hang_here():
    text = "a" * 100_000
    assert found("(a+)+b", text) == []
    assert found("(?:a|aa)+$", text + "!") == []
    assert found(r"(?:\w{1,50}){1,9}x", text) == []


def test_what_a_request_may_use_is_bounded(monkeypatch):
    with pytest.raises(ArgumentError, match="more than 10,000 matches"):
        found("a", "a" * 20_000)
    with pytest.raises(ArgumentError, match="at most 1,000"):
        linear(["a" * 600, "b" * 600])
    with pytest.raises(ArgumentError, match="too many kinds"):
        found("|".join(f"{chr(0x4E00 + n)}!" for n in range(80)), "".join(chr(0x4E00 + n) for n in range(80)))
    monkeypatch.setattr(patterns, "SECONDS", 0.0)
    with pytest.raises(ArgumentError, match="simplify"):
        found("a", "bab")
