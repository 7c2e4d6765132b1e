import pytest
from samples import CAPITALS

from cprs_integrations import CPRSEngine
from cprs_integrations.critics.base import Critic
from cprs_integrations.critics.known import KnownCritic
from cprs_integrations.errors import ArgumentError


def test_units_get_the_score_of_their_best_phrase():
    critic = KnownCritic({"Paris": 0.9, "France": 0.4}, default=0.2)
    assert isinstance(critic, Critic)
    scored = CPRSEngine(critic=critic).score(CAPITALS[0], "q")
    assert scored.scores.tolist() == pytest.approx([0.9, 0.2, 0.2])


def test_phrases_alone_are_marked_on_request():
    engine = CPRSEngine(critic=KnownCritic({"two million": 0.9, "Seine": 0.8}, whole_units=False))
    assert engine.compress(CAPITALS[0], "q", granularity="keyword").text == "Seine\ntwo million"


@pytest.mark.parametrize("options", [{"scores": {"a": 2}}, {"scores": {}, "default": -1}, {"scores": {}, "threshold": 7}])
def test_scores_outside_their_range_are_named(options):
    with pytest.raises(ArgumentError, match="must be from 0 to 1"):
        KnownCritic(**options)
