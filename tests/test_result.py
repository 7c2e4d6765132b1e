import pytest

from cprs_integrations import CPRSEngine
from cprs_integrations.critics.known import KnownCritic
from cprs_integrations.result import Stats


@pytest.fixture
def context():
    engine = CPRSEngine(critic=KnownCritic({"<b>": 0.9, "end": 0.6}))
    text = "Start here. This is <b> bold. " + "Filler goes on. " * 60 + "The end."
    return engine.compress([text, "Nothing."], "what <i>is</i>?", titles=["A & B", None])


def test_the_notebook_view_marks_what_is_kept_and_shortens_what_is_not(context):
    html = context._repr_html_()
    assert html.count("<mark") == 2
    assert "This is &lt;b&gt; bold." in html
    assert "what &lt;i&gt;is&lt;/i&gt;?" in html
    assert "A &amp; B" in html
    assert "[…" in html
    assert len(html) < 2500
    assert "<b> bold" not in html
    assert 'title="0.900"' in html


def test_the_view_of_odd_characters_can_be_encoded():
    context = CPRSEngine(critic=KnownCritic({"x": 0.9})).compress("x \ud800 \x00", "\udfff")
    assert context._repr_html_().encode("utf-8")


def test_compression_is_original_over_kept():
    assert Stats(100, 5, 0, 0, 1).compression == 20
    assert Stats(100, 0, 0, 0, 1).compression == float("inf")
    assert Stats(0, 0, 0, 0, 0).compression == 1


def test_a_dict_has_no_infinity(context):
    engine = CPRSEngine(critic=KnownCritic({}))
    assert engine.compress("Nothing here.", "q").to_dict()["stats"]["compression"] is None
    assert context.to_dict()["stats"]["compression"] == context.stats.compression
