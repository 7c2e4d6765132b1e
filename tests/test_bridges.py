"""Names that lead on from the best units of a context to units of its other documents."""

import numpy as np
import pytest

from cprs_integrations import CPRSEngine
from cprs_integrations.bridges import bridges
from cprs_integrations.context import LongContext
from cprs_integrations.critics.known import KnownCritic
from cprs_integrations.lexical import Blend, Blends

FILMS = [
    "The Harvest is a film of 1931. It was directed by Ilse Brandt.",
    "Brandt was born in Graz. She never returned there.",
    "The weather in Graz is mild. Snow is rare.",
    "It was directed at young readers. The book sold well.",
]
QUERY = "Where was the director of The Harvest born?"


def worth(documents, best, titles=None, query=QUERY):
    context = LongContext.of(documents, titles)
    scored = CPRSEngine(critic=KnownCritic({best: 0.9})).score(documents, query)
    texts = [context.slice(start, end) for start, end in zip(scored.starts, scored.ends, strict=True)]
    return dict(zip(texts, bridges(context, query, scored.documents, scored.starts, scored.scores), strict=True))


def test_a_name_of_the_best_unit_leads_to_another_document():
    found = worth(FILMS, "directed by Ilse Brandt")
    assert max(found, key=found.get) == "Brandt was born in Graz."
    assert found["She never returned there."] == found["Snow is rare."] == 0


def test_names_do_not_lead_back_to_their_own_document_nor_to_words_of_the_query():
    found = worth(["Ada met Ben. Ben met Carl.", "The Harvest was good."], "Ada met Ben")
    assert not any(found.values())


def test_a_word_that_is_written_small_elsewhere_is_no_name():
    unit = "It was directed at young readers."
    assert worth(FILMS, "It was directed by")[unit] > 0.5
    assert worth([*FILMS, "So it is."], "It was directed by")[unit] == pytest.approx(0, abs=1e-6)


def test_a_title_counts_for_every_unit_of_its_document():
    without, found = (worth(FILMS, "directed by Ilse Brandt", titles) for titles in (None, ["", "", "Ilse Brandt", ""]))
    for unit in ("The weather in Graz is mild.", "Snow is rare."):
        assert found[unit] > 0.5
        assert without[unit] == pytest.approx(0, abs=1e-6)


def test_only_whole_words_count():
    assert not any(worth(["Ann was here.", "Annie was there, Joann too."], "Ann was").values())
    assert any(worth(["Ann was here.", "There was (Ann)."], "Ann was").values())


@pytest.mark.parametrize("documents", [["Alone Anna sat."], ["你好。", "再见。"], ["", "Anna.", " "]])
def test_where_nothing_leads_on_nothing_is_gained(documents):
    context = LongContext.of(documents)
    scored = CPRSEngine(critic=KnownCritic({}, default=0.5)).score(documents, "q")
    assert not bridges(context, "q", scored.documents, scored.starts, scored.scores).any()


def test_the_engine_adds_them_to_the_scores():
    class Led(KnownCritic):
        blends = Blends(Blend(), Blend(), bridge=1.0)

    plain, led = (
        CPRSEngine(critic=kind({"directed by Ilse Brandt": 0.9}, default=0.1)).score(FILMS, QUERY)
        for kind in (KnownCritic, Led)
    )
    gain = led.scores - plain.scores
    assert np.argsort(-led.scores, kind="stable")[1] == 2
    assert gain.argmax() == 2
    assert np.all(gain >= 0)
