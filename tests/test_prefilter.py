import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cprs_integrations import CPRSEngine
from cprs_integrations.critics.known import KnownCritic
from cprs_integrations.errors import ArgumentError
from cprs_integrations.lexical import SharedWords
from cprs_integrations.prefilter import worth_reading

FILLER = [f"Paragraph {n} speaks of the weather over the hills, and of nothing else at all. " * 6 for n in range(60)]
NEEDLE = "The secret number of the lighthouse is 48151623."
QUERY = "What is the secret number of the lighthouse?"
DOCUMENTS = [*FILLER[:37], NEEDLE, *FILLER[37:]]


class Reading(KnownCritic):
    """Notes what it is given to read."""

    def score(self, windows):
        self.read = []

        def noted():
            for window in windows:
                self.read.append(window)
                yield window

        yield from super().score(noted())


def without_times(context):
    return dataclasses.replace(context, stats=dataclasses.replace(context.stats, seconds={}))


@pytest.fixture(scope="module")
def shipped():
    return CPRSEngine.from_pretrained()


def test_only_the_share_is_read_and_the_needle_is_in_it(shipped):
    everything = shipped.compress(DOCUMENTS, QUERY, max_tokens=30)
    some = shipped.compress(DOCUMENTS, QUERY, max_tokens=30, prefilter=0.1)
    assert "48151623" in some.text
    assert everything.stats.skipped_windows == 0
    again = everything.stats.windows - (some.stats.windows + some.stats.skipped_windows)
    assert again == 0
    assert some.stats.windows <= 0.1 * everything.stats.windows + 2  # rounded up, and the second reading


@given(st.sampled_from([None, 1, 3, 20]), st.sampled_from(["sentence", "keyword", "paragraph"]))
@settings(max_examples=8)
def test_reading_all_of_it_is_the_same_as_no_prefilter(shipped, documents, granularity):
    texts = DOCUMENTS[30 : 30 + documents] if documents else []
    whole = shipped.compress(texts, QUERY, max_ratio=0.2, granularity=granularity)
    assert without_times(shipped.compress(texts, QUERY, max_ratio=0.2, granularity=granularity, prefilter=1.0)) == (
        without_times(whole)
    )


def test_windows_that_are_read_are_those_of_a_whole_reading():
    critic = Reading({"48151623": 0.9})
    engine = CPRSEngine(critic)
    scored = engine.score(DOCUMENTS, QUERY)
    whole = {window.start: window for window in critic.read}
    coarse = engine.score(DOCUMENTS, QUERY, prefilter=0.2)
    assert 0 < len(critic.read) < len(whole)
    is_read = np.zeros(len(coarse.odds), dtype=bool)
    for window in critic.read:
        np.testing.assert_array_equal(window.ids, whole[window.start].ids)
        is_read[window.start : window.start + len(window.rows)] = True
    np.testing.assert_array_equal(coarse.odds[is_read], scored.odds[is_read])
    assert (coarse.odds[~is_read] == -20).all()
    assert coarse.skipped == len(whole) - len(critic.read)
    np.testing.assert_array_equal(coarse.token_starts, scored.token_starts)


def test_where_nothing_is_shared_everything_is_read():
    critic = Reading({})
    scored = CPRSEngine(critic).score(FILLER, "Quel phare?", prefilter=0.05)
    assert scored.skipped == 0
    assert scored.windows == len(critic.read) > 1


def test_each_job_of_a_batch_is_filtered_alone(shipped):
    items = [(DOCUMENTS, QUERY), (FILLER[:12], "Which paragraph speaks of hills?")]
    batch = shipped.compress_batch(items, max_tokens=40, prefilter=0.1)
    alone = [shipped.compress(documents, query, max_tokens=40, prefilter=0.1) for documents, query in items]
    assert list(map(without_times, batch)) == list(map(without_times, alone))


def test_a_unit_spread_over_several_windows_is_read_in_all_of_them():
    shared = SharedWords("lighthouse")
    shared.add(["nothing", "a long unit with a lighthouse", "nothing", "nothing"])
    # windows: the first ends with a part of unit 1, which fills the second and opens the third
    is_read = worth_reading(shared, np.array([0, 1, 1, 3]), np.array([1, 1, 2, 3]), np.array([50, 60, 50, 10]), 0.7)
    assert is_read.tolist() == [True, True, True, False]


@pytest.mark.parametrize("share", [0, -0.1, 1.01, float("nan"), True, "0.1"])
def test_a_share_that_cannot_be_is_refused(shipped, share):
    with pytest.raises(ArgumentError, match="prefilter must be the share"):
        shipped.compress(DOCUMENTS, QUERY, prefilter=share)


@pytest.mark.parametrize("query", [None, "", " \n"])
def test_without_a_query_there_is_nothing_to_look_for(shipped, query):
    with pytest.raises(ArgumentError, match="prefilter looks for the words of the query"):
        shipped.compress(DOCUMENTS, query, instruction="numbers", prefilter=0.1)
