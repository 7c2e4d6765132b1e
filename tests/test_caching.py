import dataclasses
import gc
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from cprs_integrations import CPRSEngine
from cprs_integrations.caching import DocumentCache
from cprs_integrations.critics.known import KnownCritic
from cprs_integrations.cutting import cuts
from cprs_integrations.errors import ArgumentError

BOOK = "\n\n".join(f"Chapter {n}. The keeper of light {n} wrote a letter. It came late, as letters do." for n in range(900))
NOTES = ["The ship left in May.", "", "Caf\u00e9 \ud800 broken.", "a\x00b\tc\td\n1\t2\t3"]


class Counting(KnownCritic):
    """Counts the characters that it tokenizes."""

    characters = 0

    def encode(self, texts):
        self.characters += sum(map(len, texts))
        return super().encode(texts)


def without_times(context):
    return dataclasses.replace(context, stats=dataclasses.replace(context.stats, seconds={}))


@pytest.mark.parametrize("options", [{}, {"prefilter": 0.3}, {"granularity": "keyword"}])
def test_results_are_those_without_a_cache(options):
    plain = CPRSEngine.from_pretrained()
    cached = CPRSEngine(plain.critic, DocumentCache())
    documents = [*NOTES, BOOK[:9_000], *NOTES]
    expected = without_times(plain.compress(documents, "Which keeper wrote a letter?", max_ratio=0.2, **options))
    for _ in range(2):
        assert without_times(cached.compress(documents, "Which keeper wrote a letter?", max_ratio=0.2, **options)) == expected


def test_the_second_question_tokenizes_no_document_again():
    critic = Counting({"letter": 0.8})
    engine = CPRSEngine(critic, DocumentCache())
    engine.score([BOOK], "first question")
    assert critic.characters > len(BOOK) * 0.9
    critic.characters = 0
    engine.score([BOOK], "another question")
    assert critic.characters < 500
    engine.score([BOOK + " More."], "another question")
    assert critic.characters > len(BOOK) * 0.9


def test_critics_do_not_share_tokens():
    cache = DocumentCache()
    first, second = Counting({}), Counting({})
    CPRSEngine(first, cache).score([BOOK], "q")
    CPRSEngine(second, cache).score([BOOK], "q")
    assert second.characters > len(BOOK) * 0.9
    assert len(cache) == 2


def test_it_stays_within_its_bound_and_forgets_the_oldest():
    critic = Counting({})
    cache = DocumentCache(max_bytes=60_000)
    engine = CPRSEngine(critic, cache)
    texts = [BOOK[start : start + 4_000] for start in range(0, 40_000, 4_000)]
    for text in texts:
        engine.score([text], "q")
        assert 0 < cache.bytes <= cache.max_bytes
    critic.characters = 0
    engine.score([texts[-1]], "q")
    assert critic.characters < 500
    engine.score([texts[0]], "q")
    assert critic.characters > 3_000


@pytest.mark.parametrize(
    "texts",
    [
        [f"The keeper of light {n} wrote a letter." for n in range(2_000)],
        [f"{n}" for n in range(2_000)],
        [" " * n for n in range(2_000)],
        [BOOK[start : start + 2_000] for start in range(0, 60_000, 300)],
        [BOOK, BOOK + BOOK],
    ],
    ids=["sentences", "numbers", "nothing to read", "pages", "books"],
)
def test_its_bytes_are_those_of_the_memory_that_it_takes(texts):
    critic, cache = KnownCritic({}), DocumentCache()
    list(cuts(critic, texts[:2], DocumentCache()))
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in cuts(critic, texts, cache):
            pass
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(cache) == len(texts)
    assert cache.bytes / 1.3 < taken < 1.3 * cache.bytes


def test_a_document_beyond_the_bound_is_read_but_not_kept():
    cache = DocumentCache(max_bytes=1_000)
    scored = CPRSEngine(KnownCritic({"keeper of light 899": 0.9}), cache).score([BOOK], "q")
    assert "keeper of light 899" in scored.select(max_tokens=40).text
    assert (len(cache), cache.bytes) == (0, 0)


def test_threads_share_one():
    plain = CPRSEngine(KnownCritic({"letter": 0.8}))
    engine = CPRSEngine(plain.critic, DocumentCache(max_bytes=40_000))
    texts = [BOOK[start : start + 4_000] for start in range(0, 32_000, 4_000)] * 4
    expected = [without_times(plain.compress(text, "q", max_ratio=0.1)) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: without_times(engine.compress(text, "q", max_ratio=0.1)), texts))
    assert found == expected
    again = DocumentCache()
    for _, parts in engine.cache._known.values():
        list(again.recorded(engine.critic, str(len(again)), parts))
    assert engine.cache.bytes == again.bytes <= 40_000


@pytest.mark.parametrize("size", [0, -1, 1.5, True, None])
def test_a_bound_that_cannot_be_is_refused(size):
    with pytest.raises(ArgumentError, match="max_bytes must be a whole number"):
        DocumentCache(max_bytes=size)
