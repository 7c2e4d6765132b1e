import re
from itertools import count
from unittest.mock import patch

import pytest
import re2
from hypothesis import assume, given
from hypothesis import strategies as st

from cprs_integrations.errors import ArgumentError
from cprs_integrations.serving import patterns
from cprs_integrations.serving.patterns import SECONDS, Allowance, LinearPattern, linear

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
    ("pattern", "steps"),
    [
        *((pattern, 1) for pattern in (r"\bfoo\b", r"\A\w", r"[^\W\d]{2,3}?", r"n(?:aïve 12)?", r"\s\Z", "end$", "(?m)..$")),
        *((pattern, 1) for pattern in ("\n$", "fo|foo", "fo(?:o\nbar_9)?", r"\Bo", "(?:foo|o)\nb?")),
        *((pattern, 120) for pattern in (r"\w+", r"\d+?", r"\s+$", r"\S+\Z", "(?i)k+", "(?m)^[a-z]+", r"ï?\w*?e")),
    ],
)  # fmt: skip
def test_a_text_searched_in_stretches_has_the_same_matches(monkeypatch, pattern, steps):
    monkeypatch.setattr(patterns, "_STEPS", steps)
    monkeypatch.setattr(patterns, "_PART", 3)
    text = TEXT * 3
    assert found(pattern, text) == [match.span() for match in re.finditer(pattern, text)]


@given(st.sampled_from(["", "(?i)", "(?m)"]), trees, st.text("abAB é\n_1", max_size=40), st.sampled_from([1, 40, 100]))
def test_a_text_searched_in_stretches_has_the_same_matches_or_the_pattern_is_refused(flags, tree, text, steps):
    with patch.object(patterns, "_STEPS", steps):
        try:
            ours = found(flags + tree, text)
        except ArgumentError:
            return  # that many are not is what the test above is for
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


class Watched:
    """RE2, watched: how large the programs are, and how much of a text each search may go through."""

    def __init__(self, monkeypatch):
        self.sizes, self.searches = [], []
        monkeypatch.setattr(patterns.re2, "compile", self.compile)
        self.real = re2._Regexp._make

    def compile(self, program, options):
        known = self.real(program, tuple(getattr(options, name) for name in re2.Options.NAMES))
        self.sizes.append(known.programsize)
        return WatchedProgram(known, self.searches)


class WatchedProgram:
    def __init__(self, known, searches):
        self.known, self.searches, self.programsize = known, searches, known.programsize

    def search(self, text, start, end):
        self.searches.append(self.programsize * (end - start))
        return self.known.search(text, start, end)


@pytest.mark.parametrize(
    "asked", [[r"\w{1,1000}" * 30], [r"\w{1,400}"] * 6, ["[ab]*" + "a[ab]{0,900}" * 20 + "!"], ["a{1990}", "b" * 20]]
)
def test_large_patterns_are_refused_before_re2_builds_them(monkeypatch, asked):
    watched = Watched(monkeypatch)
    with pytest.raises(ArgumentError, match=r"^protect: .* at most 2,000 .* repeat less .*CPRS_PYTHON_PATTERNS"):
        linear(asked)
    assert not watched.sizes


def test_programs_stay_small_whatever_the_characters_of_a_text(monkeypatch):
    watched = Watched(monkeypatch)
    told_apart = "".join(chr(0x2190 + n) for n in range(180))
    every_other = f"[{told_apart[::2]}]{{0,800}}x"  # a set of 90 ranges, when all are told apart
    asked = "|".join([every_other, *told_apart])
    with pytest.raises(ArgumentError, match=r"too many kinds of characters.*repeat less"):
        found(asked, told_apart)
    assert not watched.sizes
    assert len(found(asked, told_apart[:9])) == 9
    assert max(watched.sizes) < 20_000


def test_no_search_goes_on_for_long(monkeypatch):
    watched = Watched(monkeypatch)
    monkeypatch.setattr(patterns, "_STEPS", 2_000_000)
    hard = "a[ab]{0,95}" * 5 + "!"
    words = "ab abba baab " * 4_000 + "!b"
    assert found(hard, words) == []
    assert found(r"[ab]*" + hard, words) == []
    assert len(watched.searches) > 50
    assert max(watched.searches) <= 2_000_000
    with pytest.raises(ArgumentError, match=r"any length: limit its repeats, as in \.{0,200}"):
        found(r"[ab]*" + hard, "ab" * 5_000 + "!b")
    assert max(watched.searches) <= 2_000_000


def test_all_that_patterns_compute_is_charged(monkeypatch):
    clock = count()
    monkeypatch.setattr(patterns.time, "thread_time", lambda: next(clock))
    allowance = Allowance()
    searched = LinearPattern("x+", allowance)
    assert allowance.seconds == SECONDS - 1, "reading"
    assert list(searched.finditer("a")) == []
    assert allowance.seconds == SECONDS - 4, "encoding, compiling, searching"
    watched = Watched(monkeypatch)
    with pytest.raises(ArgumentError, match="ran for 5 seconds"):
        found("".join(chr(0x20000 + n) for n in range(900)), "".join(chr(0x4E00 + n) for n in range(20_000)))
    assert not watched.sizes, "it ran out while it encoded"


def test_a_character_is_asked_about_once_a_document(monkeypatch):
    asked = []
    real = LinearPattern._kinds
    monkeypatch.setattr(LinearPattern, "_kinds", lambda self, new: asked.append(new) or real(self, new))
    assert len(found("[b-d]", "abcde" * 3_000)) == 9_000
    assert sorted("".join(asked)) == list("abcde")


@pytest.mark.parametrize(
    "asked",
    [
        [r"\b\d{4}-\d{2}-\d{2}\b", r"\b\d{1,3}(?:,\d{3})*(?:\.\d+)?\b", r"[A-Z]{2,4}-\d{3,8}", r"(?i)\binvoice\s+no\.?\s*\d+"],
        [r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{2,63}){1,4}", r"(?s)BEGIN.{0,900}?END"],
        ["|".join(f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in "nrst")],
    ],
)
def test_what_people_ask_for_runs_over_long_texts(asked):
    text = "On 2026-11-26 invoice no. 88 (AB-12345) came to 1,234.50, a@b.example said; fan BEGIN it END. " * 4_000
    assert all(next(pattern.finditer(text)) and len(list(pattern.finditer(text[:9_000]))) > 90 for pattern in linear(asked))


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
