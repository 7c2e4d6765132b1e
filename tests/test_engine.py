import asyncio
import gc
import json
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from samples import ANSWER, CAPITALS, QUESTION, ScatteredCritic

from cprs_integrations import INSTRUCTIONS, CPRSEngine, CPRSError
from cprs_integrations.critics.base import TokenScores
from cprs_integrations.critics.known import KnownCritic
from cprs_integrations.errors import ArgumentError, CriticError


def spans_of(context):
    return [[(span.start, span.end) for span in document.spans] for document in context.documents]


class TestKnownScores:
    def test_without_a_bound_the_threshold_decides(self, known):
        context = known.compress(CAPITALS, "q")
        assert [document.text for document in context.documents] == [
            "Paris is the capital of France. It lies on the Seine.",
            "",
            "",
            "Mount Everest is 8,849 metres high. Edmund Hillary and Tenzing Norgay reached its summit in May 1953.",
        ]
        assert context.text == f"{context.documents[0].text}\n\n{context.documents[3].text}"
        assert context.documents[0].spans[0].score == pytest.approx(0.9)

    def test_a_threshold_and_a_bound_both_hold(self, known):
        context = known.compress(CAPITALS, "q", threshold=0.85)
        assert context.text == (
            "Paris is the capital of France.\n\nEdmund Hillary and Tenzing Norgay reached its summit in May 1953."
        )
        context = known.compress(CAPITALS, "q", threshold=0.85, max_ratio=0.2)
        assert context.text == "Edmund Hillary and Tenzing Norgay reached its summit in May 1953."

    def test_a_bound_alone_is_filled_from_the_best_unit_down(self, known):
        context = known.compress(CAPITALS, "q", max_ratio=0.3)
        assert "Hillary" in context.text
        assert "Paris" in context.text
        assert len(context.text) <= 0.3 * sum(map(len, CAPITALS))

    def test_a_score_that_equals_the_threshold_reaches_it(self):
        for score in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0):
            engine = CPRSEngine(critic=KnownCritic({"Seine": score}))
            assert "Seine" in engine.compress(CAPITALS[0], "q", threshold=score).text, score

    def test_all_ties_keep_the_order_of_the_documents(self):
        engine = CPRSEngine(critic=KnownCritic({}, default=0.5))
        assert engine.compress(CAPITALS, "q", max_ratio=0.1).text == "Paris is the capital of France."

    def test_the_first_unit_that_does_not_fit_is_cut_to_what_is_left(self, known):
        best = "Edmund Hillary and Tenzing Norgay reached its summit in May 1953."
        total = sum(map(len, CAPITALS))
        context = known.compress(CAPITALS, "q", max_ratio=(len(best) + 2 + 26) / total)
        assert context.documents[3].text == best
        assert context.documents[0].text == "is the capital of France."
        too_little = known.compress(CAPITALS, "q", max_ratio=(len(best) + 2 + 20) / total)
        assert too_little.text == best

    def test_a_unit_that_must_be_cut_is_cut_around_the_words_that_answer(self):
        class Telling(KnownCritic):
            def score(self, windows):
                for window in windows:
                    (scores,) = super().score([window])
                    answers = self.encode(["Tenzing Norgay"]).ids
                    yield replace(scores, words=np.where(np.isin(window.ids[window.rows], answers), 3.0, -6.0))

        ratio = 30 / sum(map(len, CAPITALS))
        scores = {"Hillary": 0.9}
        assert "Norgay" not in CPRSEngine(critic=KnownCritic(scores)).compress(CAPITALS, "q", max_ratio=ratio).text
        assert "Tenzing Norgay" in CPRSEngine(critic=Telling(scores)).compress(CAPITALS, "q", max_ratio=ratio).text

    @pytest.mark.parametrize(
        ("granularity", "expected"),
        [
            (None, "Hillary"),
            ("keyword", "Hillary"),
            ("sentence", "Edmund Hillary and Tenzing Norgay reached its summit in May 1953."),
            ("paragraph", CAPITALS[3]),
            ("document", f"{CAPITALS[3]}\n\nIt is in Nepal."),
        ],
    )
    def test_units_are_snapped_to_the_granularity(self, granularity, expected):
        documents = [CAPITALS[0], f"{CAPITALS[3]}\n\nIt is in Nepal."]
        phrase = granularity in (None, "keyword")
        engine = CPRSEngine(critic=KnownCritic({"Hillary": 0.9}, default=0.1, whole_units=not phrase))
        assert engine.compress(documents, "q", granularity=granularity).text == expected
        assert engine.compress(documents, "q", granularity=granularity, max_tokens=40).documents[1].text.count(expected) == 1

    def test_the_critic_marks_paragraphs_by_not_beginning_anew(self):
        class Flowing(KnownCritic):
            def score(self, windows):
                for scores in super().score(windows):
                    keep = 1 - scores.bioe[:, 2]
                    yield TokenScores(np.stack([keep * 0, keep, 1 - keep, keep * 0], axis=1))

        scored = CPRSEngine(critic=Flowing({}, default=0.9)).score(["It rains. We sleep.\n\nIt snows. We play."], "q")
        assert len(scored.candidates(None).starts) == 2
        assert len(scored.candidates("sentence").starts) == 4

    def test_labels_of_the_critic_reach_the_spans(self):
        class Naming(KnownCritic):
            def score(self, windows):
                for window, scores in zip(*(lambda w: (w, super(Naming, self).score(w)))(list(windows)), strict=True):
                    label = np.full(len(scores.bioe), int("Hillary" in window.pieces[-1].text))
                    yield TokenScores(scores.bioe, ("place", "person"), label)

        context = CPRSEngine(critic=Naming({"Hillary": 0.9, "Paris": 0.8}, window=32)).compress(CAPITALS, "q")
        assert [span.label for document in context.documents for span in document.spans] == ["place", "person"]


class TestShippedCritic:
    def test_the_answer_survives_strong_compression(self, engine):
        context = engine.compress(CAPITALS, QUESTION, max_ratio=0.3)
        assert ANSWER in context.text
        assert len(context.text) <= 0.3 * sum(map(len, CAPITALS))

    def test_the_first_call_works_without_any_option(self, engine):
        context = engine.compress(list(CAPITALS), QUESTION)
        assert ANSWER in context.text
        assert "Knead the dough" not in context.text

    def test_an_instruction_alone_is_a_question(self, engine):
        context = engine.compress(CAPITALS, instruction="Find the statements about: baking bread", max_ratio=0.4)
        assert "dough" in context.text

    def test_named_instructions_and_free_text_are_accepted(self, engine):
        for instruction in ("keywords", "paragraphs", "whatever names a mountain"):
            assert engine.compress(CAPITALS, QUESTION, instruction=instruction, max_ratio=0.5).text

    def test_where_words_are_wanted_the_critic_is_asked_for_words(self, engine):
        context = engine.compress(CAPITALS, QUESTION, granularity="keyword", max_tokens=12)
        assert context.instruction == INSTRUCTIONS["keywords"]
        assert (
            engine.compress(CAPITALS, QUESTION, granularity="sentence").instruction == "sentences that help to answer the query"
        )
        assert all(len(span_text) < 40 for document in context.documents for span_text in document.text.split("\n"))

    def test_titles_are_read_but_never_returned(self, engine):
        documents = ["It was founded in 1852.", "It was founded in 1901."]
        titles = ["History of the bakery", "History of the swimming club"]
        plain = engine.score(documents, "When was the swimming club founded?")
        titled = engine.score(documents, "When was the swimming club founded?", titles=titles)
        assert titled.scores[1] > titled.scores[0]
        assert titled.scores.tolist() != plain.scores.tolist()
        assert "History" not in titled.select(max_ratio=1.0).text

    def test_scores_depend_on_the_query(self, engine):
        first, second = (engine.score(CAPITALS, query) for query in (QUESTION, "How long is the dough kneaded?"))
        assert first.scores.argmax() != second.scores.argmax()


class TestScoreAndSelect:
    def test_another_budget_needs_no_forward_pass(self):
        class Counting(ScatteredCritic):
            calls = 0

            def score(self, windows):
                Counting.calls += 1
                return super().score(windows)

        engine = CPRSEngine(critic=Counting())
        scored = engine.score(CAPITALS, "q")
        once = engine.compress(CAPITALS, "q", max_ratio=0.3)
        again = [scored.select(max_ratio=ratio) for ratio in (0.1, 0.3, 0.9)]
        assert Counting.calls == 2
        assert again[1].to_dict()["documents"] == once.to_dict()["documents"]
        assert len(again[0].text) < len(again[1].text) < len(again[2].text)

    def test_statistics_count_what_came_and_what_is_returned(self, known):
        context = known.compress(CAPITALS, "q")
        stats = context.stats
        assert stats.original_chars == sum(map(len, CAPITALS))
        assert stats.kept_chars == len(context.text)
        assert stats.compression == stats.original_chars / stats.kept_chars
        assert stats.kept_tokens == known.count_tokens(context.text)
        assert stats.original_tokens >= stats.kept_tokens
        assert stats.windows >= 1
        assert {"segment", "score", "select"} <= stats.seconds.keys()

    def test_a_token_counter_of_the_user_counts_for_the_bound_and_in_the_statistics(self, known):
        def words(text):
            return len(text.split())

        context = known.compress(CAPITALS, "q", max_tokens=12, token_counter=words)
        assert 0 < words(context.text) <= 12
        assert context.stats.kept_tokens == words(context.text)
        assert context.stats.original_tokens == sum(map(words, CAPITALS))

    def test_at_most_16_bytes_a_token_remain(self):
        class Telling(ScatteredCritic):
            def score(self, windows):
                for scores in super().score(windows):
                    yield replace(scores, words=np.zeros(len(scores.bioe)))

        text = " ".join(text.replace(". ", ", and then ") for text in CAPITALS) + "\n"
        scored = CPRSEngine(critic=Telling()).score([text * 100, text], "q")
        assert len(scored.words) == len(scored.odds)
        arrays = [value for value in vars(scored).values() if isinstance(value, np.ndarray)]
        assert sum(array.nbytes for array in arrays) <= 16 * len(scored.odds)

    def test_the_critic_reads_in_proportion_to_the_context(self):
        class Reading(KnownCritic):
            read = 0

            def score(self, windows):
                for window in windows:
                    self.read += len(window.ids)
                    yield from super().score([window])

        shares = []
        for times in (20, 320):
            critic = Reading({}, default=0.5)
            scored = CPRSEngine(critic=critic).score(" ".join(CAPITALS) * times, "q")
            shares.append(critic.read / len(scored.odds))
        assert 1 <= shares[1] <= 1.05 * shares[0] < 2

    def test_a_result_is_json(self, known):
        context = known.compress([*CAPITALS, "\ud800 Paris"], "q")
        read = json.loads(json.dumps(context.to_dict()))
        assert read["text"] == context.text
        assert [document["spans"] for document in read["documents"]][1] == []
        assert str(context) == context.text


class TestBatchesAndThreads:
    def test_a_batch_is_the_same_as_one_by_one_to_the_byte(self, engine):
        items = [(CAPITALS, QUESTION), (CAPITALS[0], "Where does Paris lie?"), ([], "q"), (CAPITALS[::-1], "bread")]
        batch = engine.compress_batch(items, max_ratio=0.3)
        single = [engine.compress(documents, query, max_ratio=0.3) for documents, query in items]
        assert [json.dumps(c.to_dict()["documents"]) for c in batch] == [json.dumps(c.to_dict()["documents"]) for c in single]

    def test_the_number_of_threads_changes_nothing(self):
        documents = [text * 30 for text in CAPITALS]
        scores = [CPRSEngine.from_pretrained(threads=threads).score(documents, QUESTION).odds for threads in (1, 3)]
        assert scores[0].tobytes() == scores[1].tobytes()

    def test_one_engine_serves_many_threads(self, engine):
        expected = engine.compress(CAPITALS, QUESTION, max_ratio=0.3).to_dict()["documents"]
        found = []
        threads = [
            threading.Thread(target=lambda: found.append(engine.compress(CAPITALS, QUESTION, max_ratio=0.3))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [context.to_dict()["documents"] for context in found] == [expected] * 8

    async def test_the_event_loop_goes_on_while_ten_megabytes_on_one_line_are_compressed(self):
        engine = CPRSEngine(critic=KnownCritic({"needle": 0.9}, window=4096))
        text = "lorem ipsum dolor sit amet, " * 370_000 + "needle"
        assert len(text) > 10_000_000
        gc.collect()
        gc.freeze()  # what other tests left behind would be gone through again and again while we measure
        task = asyncio.create_task(engine.acompress(text, "q", max_tokens=50))
        longest = 0.0
        while not task.done():
            before = time.perf_counter()
            await asyncio.sleep(0.002)
            longest = max(longest, time.perf_counter() - before)
        gc.unfreeze()
        assert "needle" in (await task).text
        assert longest < 0.5

    async def test_async_calls_run_beside_each_other_and_give_the_same(self, engine):
        found = await asyncio.gather(*(engine.acompress(CAPITALS, QUESTION, max_ratio=0.3) for _ in range(4)))
        assert {context.text for context in found} == {engine.compress(CAPITALS, QUESTION, max_ratio=0.3).text}


class TestCriticsThatMisbehave:
    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (lambda rows: np.zeros((rows, 3)), "shape"),
            (lambda rows: np.full((rows, 4), 0.5), "probabilities"),
            (lambda rows: np.full((rows, 4), np.nan), "probabilities"),
            (lambda rows: np.full((rows + 1, 4), 0.25), "shape"),
        ],
    )
    def test_scores_that_are_none_are_refused(self, answer, message):
        class Wrong(KnownCritic):
            def score(self, windows):
                for window in windows:
                    yield TokenScores(answer(len(window.rows)))

        with pytest.raises(CriticError, match=message):
            CPRSEngine(critic=Wrong({})).compress(CAPITALS, "q")

    @pytest.mark.parametrize(
        ("asked", "kept"),
        [
            ([0.5, 0.3, 0.2], "Tenzing Norgay"),
            ([0.2, 0.5, 0.3], "Edmund Hillary and Tenzing Norgay reached its summit in May 1953."),
            ([0.2, 0.3, 0.5], CAPITALS[3]),
        ],
    )
    def test_a_critic_may_say_what_it_is_asked_for(self, asked, kept):
        class Asked(KnownCritic):
            def score(self, windows):
                for scores in super().score(windows):
                    yield TokenScores(scores.bioe, asked=np.array(asked))

        engine = CPRSEngine(critic=Asked({"Tenzing Norgay": 0.9}, whole_units=False, threshold=1e-8))
        assert engine.compress(CAPITALS, "q").text == kept

    def test_what_it_says_must_have_one_figure_a_granularity(self):
        class Asked(KnownCritic):
            def score(self, windows):
                for scores in super().score(windows):
                    yield TokenScores(scores.bioe, asked=np.ones(2))

        with pytest.raises(CriticError, match="asked"):
            CPRSEngine(critic=Asked({})).compress(CAPITALS, "q")

    def test_a_critic_may_say_what_a_unit_is_worth_as_a_whole(self):
        class Worth(KnownCritic):
            def score(self, windows):
                windows = list(windows)
                for window, scores in zip(windows, super().score(windows), strict=True):
                    units = [3.0 if "May 1953" in piece.text else -3.0 for piece in window.pieces]
                    yield TokenScores(scores.bioe, units=np.array(units))

        found = CPRSEngine(critic=Worth({"Tenzing Norgay": 0.6, "Everest": 0.9}, whole_units=False)).score(CAPITALS, "q")
        assert found.candidates("sentence").scores.max() == pytest.approx(1 / (1 + np.exp(-3)))
        assert found.select(granularity="sentence").text == "Edmund Hillary and Tenzing Norgay reached its summit in May 1953."
        assert "Everest" in found.select(granularity="keyword").text

    @pytest.mark.parametrize("units", [np.ones(2), np.array([np.nan])])
    def test_what_it_says_must_be_one_figure_a_piece(self, units):
        class Worth(KnownCritic):
            def score(self, windows):
                for scores in super().score(windows):
                    yield TokenScores(scores.bioe, units=units)

        with pytest.raises(CriticError, match="units"):
            CPRSEngine(critic=Worth({})).compress("One sentence.", "q")

    @pytest.mark.parametrize("words", [np.ones(2), np.array([np.nan] * 3)])
    def test_what_it_says_must_be_one_figure_a_token(self, words):
        class Telling(KnownCritic):
            def score(self, windows):
                for scores in super().score(windows):
                    yield TokenScores(scores.bioe, words=words)

        with pytest.raises(CriticError, match="words"):
            CPRSEngine(critic=Telling({})).compress("One sentence.", "q")

    def test_missing_and_superfluous_answers_are_noticed(self):
        class Silent(KnownCritic):
            def score(self, windows):
                list(windows)
                yield from ()

        class Eager(KnownCritic):
            def score(self, windows):
                for scores in super().score(windows):
                    yield scores
                    yield scores

        with pytest.raises(CriticError, match="no answer"):
            CPRSEngine(critic=Silent({})).compress(CAPITALS, "q")
        with pytest.raises(CriticError, match="more answers"):
            CPRSEngine(critic=Eager({})).compress(CAPITALS, "q")

    def test_an_error_in_the_middle_is_the_cause(self):
        class Failing(KnownCritic):
            def score(self, windows):
                for number, scores in enumerate(super().score(windows)):
                    if number == 1:
                        raise RuntimeError("out of memory")
                    yield scores

        with pytest.raises(CriticError, match="Failing failed: RuntimeError: out of memory") as caught:
            CPRSEngine(critic=Failing({}, window=16)).compress(CAPITALS, "q")
        assert isinstance(caught.value.__cause__, RuntimeError)

    def test_an_error_before_the_first_answer_is_the_cause_too(self):
        class Failing(KnownCritic):
            def score(self, windows):
                raise RuntimeError("the card is gone")

        with pytest.raises(CriticError, match="Failing failed: RuntimeError: the card is gone"):
            CPRSEngine(critic=Failing({})).compress(CAPITALS, "q")

    def test_what_is_no_critic_is_refused(self):
        with pytest.raises(ArgumentError, match="Critic protocol"):
            CPRSEngine(critic=object())
        assert issubclass(ArgumentError, CPRSError)


def test_a_look_at_a_protected_match_converts_no_column(known, monkeypatch):
    """For a number of another type numpy converts the whole column, at every look: with many matches that is quadratic."""

    def watching(column, wanted, **options):
        types.append((column.dtype, np.asarray(wanted).dtype))
        return searchsorted(column, wanted, **options)

    scored, searchsorted, types = known.score(CAPITALS, "q"), np.searchsorted, []
    monkeypatch.setattr(np, "searchsorted", watching)
    scored.select(protect=[r"\d+"], max_tokens=9, granularity="sentence")
    assert len(types) > 9
    assert all(column == wanted for column, wanted in types)
