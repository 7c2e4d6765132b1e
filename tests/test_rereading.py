"""The second reading: the best units of a context side by side, and what the engine makes of it."""

from dataclasses import replace

import numpy as np
import pytest
from samples import CAPITALS

from cprs_integrations import CPRSEngine
from cprs_integrations.context import LongContext
from cprs_integrations.critics.known import KnownCritic
from cprs_integrations.errors import CriticError
from cprs_integrations.lexical import Blend, Blends, Joint
from cprs_integrations.rereading import second_window

SCORES = {"Paris": 0.6, "Seine": 0.5, "Danube": 0.55, "Everest": 0.4}


class Comparing(KnownCritic):
    """Reads CAPITALS in two windows, then again, and then thinks of the Danube alone."""

    blends = Blends(Blend(), Blend(), reread=Joint(60, first=0.0, again=1.0))

    def __init__(self):
        super().__init__(SCORES, default=0.01, window=64)
        self.seen = []

    def score(self, windows):
        for window in windows:
            self.seen.append(window)
            (scores,) = super().score([window])
            if len(self.seen) > 2:
                units = [4.0 if "Danube" in piece.text else -4.0 for piece in window.pieces]
                scores = replace(scores, units=np.array(units))
            yield scores


def laid(critic, documents, size, titles=None):
    scored = CPRSEngine(critic=KnownCritic(SCORES, default=0.01)).score(documents, "q", titles=titles)
    context = LongContext.of(documents, titles)
    odds = np.log(scored.scores / (1 - scored.scores))
    return second_window(critic, context, scored.prompt, scored.starts, scored.ends, odds, size)


def test_the_best_units_stand_in_their_order_as_many_as_fit():
    window = laid(KnownCritic({}), CAPITALS, 38)
    assert [piece.text for piece in window.pieces] == [
        "Paris is the capital of France.",
        "It lies on the Seine.",
        "The Danube flows through Vienna, Budapest and Belgrade.",
        "Mount Everest is 8,849 metres high.",
    ]
    assert len(window.rows) == len(window.ids) <= 38
    smaller = laid(KnownCritic({}), CAPITALS, 20)
    assert [piece.text[:9] for piece in smaller.pieces] == ["Paris is ", "The Danub"]


def test_what_does_not_follow_on_is_parted_and_titles_stand_before_it():
    class Separating(KnownCritic):
        separator = np.array([7], dtype=np.int32)

    critic = Separating({})
    window = laid(critic, CAPITALS, 100, titles=["France", None, "Rivers", "Peaks"])
    runs = np.split(window.ids, np.flatnonzero(window.ids == 7))
    assert len(runs) == 1 + len({piece.document for piece in window.pieces}) - 1
    assert window.ids[0] == critic.encode(["France:"]).ids[0]
    assert len(window.rows) < len(window.ids)


def test_one_unit_is_nothing_to_compare():
    assert laid(KnownCritic({}), CAPITALS[:1], 8) is None
    assert laid(KnownCritic({}), [""], 100) is None


def test_a_long_question_leaves_room_for_the_best_units():
    class Asked(KnownCritic):
        def encode_prompt(self, instruction, query):
            return np.arange(60, dtype=np.int32)

    critic = Asked({})
    scored = CPRSEngine(critic=Asked(SCORES, default=0.01)).score(CAPITALS, "q")
    window = second_window(critic, scored.context, scored.prompt, scored.starts, scored.ends, scored.scores, 40)
    assert len(scored.prompt.ids) + len(window.ids) <= 80
    assert [piece.text[:9] for piece in window.pieces] == ["Paris is ", "The Danub"]


def test_units_that_cannot_be_read_are_left_out():
    critic = KnownCritic({})
    context = LongContext.of(["Paris is here. Vienna is there. Rome is not."])
    starts, ends = np.array([0, 15, 32]), np.array([14, 31, 44])
    window = second_window(critic, context, CPRSEngine(critic=critic).score("x", "q").prompt, starts, ends,
                           np.array([1.0, -np.inf, 0.0]), 100)  # fmt: skip
    assert [piece.unit for piece in window.pieces] == [0, 2]


def test_the_engine_ranks_anew_what_was_read_again_and_leaves_the_rest():
    critic = Comparing()
    once = CPRSEngine(critic=KnownCritic(SCORES, default=0.01, window=64)).score(CAPITALS, "q")
    twice = CPRSEngine(critic=critic).score(CAPITALS, "q")
    assert len(critic.seen) == 3
    assert twice.windows == once.windows + 1
    again = [piece.unit for piece in critic.seen[-1].pieces]
    rest = np.setdiff1d(np.arange(len(once.scores)), again)
    assert len(rest)
    assert np.array_equal(twice.scores[rest], once.scores[rest])
    assert twice.scores.argmax() == 6
    assert twice.scores[6] == pytest.approx(1 / (1 + np.exp(-4)), abs=1e-4)
    tokens = twice.odds[twice.borders[6] : twice.borders[7]]
    assert np.allclose(tokens.astype(float).mean(), 4.0, atol=0.02)
    assert "The Danube" in twice.select(max_ratio=0.15).text
    assert "Danube" not in once.select(max_ratio=0.09).text


def test_a_batch_is_read_again_one_context_at_a_time():
    contexts = (CAPITALS, CAPITALS[::-1])
    single = [CPRSEngine(critic=Comparing()).compress(documents, "q", max_ratio=0.3) for documents in contexts]

    class Patient(Comparing):
        def score(self, windows):
            for window in windows:
                self.seen.append(window)
                (scores,) = KnownCritic.score(self, [window])
                if len({piece.document for piece in window.pieces}) > 1 and window.pieces[0].document == 1:
                    units = [4.0 if "Danube" in piece.text else -4.0 for piece in window.pieces]
                    scores = replace(scores, units=np.array(units))
                yield scores

    batch = CPRSEngine(critic=Patient()).compress_batch([(documents, "q") for documents in contexts], max_ratio=0.3)
    assert [context.text for context in batch] == [context.text for context in single]


def test_no_answer_to_the_second_window_is_an_error():
    class Tired(Comparing):
        def score(self, windows):
            for scores in super().score(windows):
                if len(self.seen) < 3:
                    yield scores

    with pytest.raises(CriticError, match="second reading"):
        CPRSEngine(critic=Tired()).compress(CAPITALS, "q")


def test_the_shipped_critic_reads_several_windows_twice_and_one_once(engine):
    assert engine.critic.blends.reread is not None
    assert engine.score(CAPITALS, "Who first climbed Mount Everest?").windows == 1
    assert engine.score(CAPITALS * 3, "Who first climbed Mount Everest?").windows == 3
