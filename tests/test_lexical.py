"""Shared words: BM25 over a context that streams by, and how it joins a critic's scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi
from samples import CAPITALS

from cprs_integrations import CPRSEngine
from cprs_integrations.critics.known import KnownCritic
from cprs_integrations.ledger import Ledger
from cprs_integrations.lexical import Blend, Blends, SharedWords, best_around, is_latin, shared_places

TEXTS = [
    "The finally clause runs whatever happens.",
    "The try statement has a clause for each exception.",
    "A statement is a line of code, or the lines of a block.",
    "Snow fell on the hills.",
]


def shares(query, texts, batch=1_000):
    shared = SharedWords(query)
    for begin in range(0, len(texts), batch):
        shared.add(texts[begin : begin + batch])
    return shared.shares(np.array([len(text) for text in texts]))


def test_a_rare_word_weighs_more_than_common_ones():
    found = shares("the finally statement", TEXTS)
    assert found.argmax() == 0
    assert found[2] < found[0]
    assert (found >= 0).all()


def test_units_rank_as_bm25_ranks_them():
    words = [text.lower().rstrip(".").replace(",", "").split() for text in TEXTS]
    shared = SharedWords("finally exception hills")
    shared.add(TEXTS)
    found = shared.shares(np.array([len(found) for found in words]))
    theirs = BM25Okapi(words, k1=1.2, b=0.75).get_scores(["finally", "exception", "hills"])
    # words of one text each: rank_bm25 has another formula for rarity, but gives these the same, too
    assert (np.argsort(-found, kind="stable") == np.argsort(-theirs, kind="stable")).all()


def test_words_are_words_and_case_does_not_matter():
    assert shares("FINALLY", TEXTS)[0] > 0
    assert not shares("final", TEXTS).any()
    assert not shares("(.*)", TEXTS).any()
    assert not shares("", TEXTS).any()


@pytest.mark.parametrize(
    ("query", "best"),
    [("红楼梦的作者是谁？", 0), ("من كتب الرواية", 1), ("кто написал роман", 2), ("ผู้เขียน", 3), ("누가 소설을 썼나요", 4)],
)
def test_other_scripts_are_compared_by_their_characters(query, best):
    texts = ["《红楼梦》由曹雪芹所著。", "الكاتب كتب رواية.", "Роман написал он.", "ผู้เขียนคือเขา", "그 소설을 쓴 사람."]
    assert shares(query, texts).argmax() == best
    assert not any(is_latin(text) for text in texts)


def test_a_han_character_is_a_term_of_its_own_too():
    assert shares("何年", ["他生於上海。", "他那年去世。", "天氣很好。"]).argmax() == 1


def test_latin_is_told_from_other_scripts():
    assert all(map(is_latin, ("plain", "Übergröße à côté", "1, 2, 3!", "", "α-particles and β-rays of nuclei")))
    assert is_latin("Who is the author of 红楼梦?")
    assert is_latin("Who wrote 红楼梦?", spaceless=1)
    assert is_latin("・・・")
    assert not is_latin("叶绿体有自己的 DNA，通常缩写作 ctDNA 或 cpDNA。")


@given(st.lists(st.text(alphabet="ab cd中文дж", max_size=20), max_size=12), st.text(alphabet="ab cd中文дж", max_size=12))
def test_batches_change_nothing(texts, query):
    assert (shares(query, texts, 1) == shares(query, texts)).all()


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-5, 5)), max_size=40))
def test_the_best_around_looks_five_units_far_within_a_document(pairs):
    pairs.sort(key=lambda pair: pair[0])
    documents, values = np.array([d for d, _ in pairs], int), np.array([v for _, v in pairs], float)
    expected = [
        max(v for at, (d, v) in enumerate(pairs) if d == document and abs(at - place) <= 5)
        for place, (document, _) in enumerate(pairs)
    ]
    assert best_around(values, documents).tolist() == expected


class Blended(KnownCritic):
    blends = Blends(Blend(shared=5.0), Blend(bias=-2.0, critic=0.0, shared=8.0))


def test_shared_words_move_the_scores_of_a_unit_and_all_its_tokens():
    plain, blended = (
        CPRSEngine(critic({}, default=0.3)).score(CAPITALS, "Where is Vienna?") for critic in (KnownCritic, Blended)
    )
    gain = blended.scores - plain.scores
    with_word = [
        ("Vienna" in blended.context.slice(start, end)) for start, end in zip(blended.starts, blended.ends, strict=True)
    ]
    assert (gain[with_word] > gain[np.invert(with_word)].max()).all()
    means = np.add.reduceat(blended.odds.astype(float), blended.borders[:-1]) / np.diff(blended.borders)
    assert np.allclose(1 / (1 + np.exp(-means)), blended.scores, atol=2e-3)


def test_units_that_the_critic_cannot_read_are_counted_and_judged_by_their_characters():
    documents = ["Nothing is said here.", "长城在中国北方。", "红楼梦由曹雪芹所著。"]
    found = CPRSEngine(Blended({"长城在中国北方。": 1.0})).compress(documents, "Who is the author of 红楼梦?", max_ratio=0.5)
    assert found.stats.unread_units == 2
    assert found.text == documents[2]
    assert found.to_dict()["stats"]["unread_units"] == 2


def test_a_query_with_a_foreign_name_is_one_that_the_critic_reads():
    documents = ["Nothing is said here.", "Cao Xueqin is the author of Dream of the Red Chamber."]
    found = CPRSEngine(Blended({"Cao Xueqin": 1.0})).compress(documents, "Who wrote 红楼梦?", max_ratio=0.8)
    assert found.stats.unread_units == 0
    assert "Cao Xueqin" in found.text


def test_one_han_character_marks_where_to_cut():
    assert shared_places("茶", "我喜欢喝茶") == [4]
    assert shared_places("喝茶", "我喜欢喝茶，茶好") == [3]


def test_of_a_query_that_the_critic_cannot_read_it_judges_nothing():
    documents = ["Nothing is said here.", "长城在中国北方。", "红楼梦由曹雪芹所著。"]
    found = CPRSEngine(Blended({"Nothing is said here.": 1.0})).compress(documents, "红楼梦的作者是谁？", max_ratio=0.5)
    assert found.stats.unread_units == 3
    assert found.text == documents[2]


def test_a_unit_that_the_critic_cannot_read_is_cut_around_what_it_shares_with_the_query():
    text = "天气很好，" * 20 + "而红楼梦的作者是曹雪芹，" + "大家都很高兴，" * 20
    found = CPRSEngine(critic=Blended({}, default=0.3)).compress([text, "别的事情。"], "红楼梦的作者是谁？", max_ratio=0.1)
    assert "红楼梦的作者是" in found.text
    assert found.stats.unread_units == 2


@pytest.mark.parametrize("granularity", ["sentence", "paragraph", "keyword"])
def test_windows_of_which_the_critic_can_read_nothing_are_left_out_and_nothing_is_lost(granularity, monkeypatch):
    chinese = "".join(f"第{number}天天气很好，大家都很高兴。\n" for number in range(300))
    documents = [chinese, "Cao Xueqin is the author of Dream of the Red Chamber.", chinese + "红楼梦的作者是曹雪芹。"]
    engine = CPRSEngine.from_pretrained()

    def ask(query):
        scored = engine.score(documents, query, granularity=granularity)
        return scored.windows, scored.skipped, scored.scores.tolist(), scored.select(max_ratio=0.05).documents

    questions = "Who wrote 红楼梦?", "红楼梦的作者是谁？"
    found = [ask(question) for question in questions]
    assert found[1][0] == 1 < found[0][0] < 5
    assert all(skipped > 20 for _, skipped, _, _ in found)
    monkeypatch.setattr(Ledger, "is_unread", lambda ledger, window: False)
    everything = [ask(question) for question in questions]
    assert [skipped for _, skipped, _, _ in everything] == [0, 0]
    assert [found[2:] for found in everything] == [found[2:] for found in found]
