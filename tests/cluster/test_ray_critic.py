"""Windows on a real cluster: the same bytes as the critic alone, whatever dies."""

import gc
import os
import signal
import threading
import time
from functools import partial

import pytest
from mortal import MortalCritic
from samples import CAPITALS, QUESTION

from cprs_integrations import CPRSEngine
from cprs_integrations.critics import load_critic
from cprs_integrations.critics.known import KnownCritic
from cprs_integrations.critics.ray import RayCritic
from cprs_integrations.errors import ArgumentError, CriticError, ModelError

TEXTS = [f"Chapter {number}. {text}" for number in range(40) for text in CAPITALS]


@pytest.fixture(scope="module")
def ray_engine(cluster):
    with RayCritic.from_pretrained(replicas=2, num_cpus=0.5, batch_tokens=600) as critic:
        yield CPRSEngine(critic=critic)


@pytest.fixture
def mortal(cluster):
    made = []

    def make(lives=None, **options):
        critic = RayCritic(partial(MortalCritic, lives), **{"replicas": 2, "num_cpus": 0.5, "batch_tokens": 200, **options})
        made.append(critic)
        return critic

    yield make
    for critic in made:
        critic.close()


def pids(cluster, critic):
    return [cluster.get(replica.actor.__ray_call__.remote(lambda worker: os.getpid())) for replica in critic._pool._replicas]


def plain(context):
    found = context.to_dict()
    del found["stats"]["seconds"]
    return found


@pytest.mark.parametrize(
    "options",
    [{"max_ratio": 0.05}, {"granularity": "keyword"}, {"instruction": "paragraphs on mountains", "protect": ["8,849"]}],
)
def test_the_cluster_returns_what_the_local_engine_does(engine, ray_engine, options):
    assert plain(ray_engine.compress(TEXTS, QUESTION, **options)) == plain(engine.compress(TEXTS, QUESTION, **options))


def test_control_tokens_in_a_text_stay_plain_text(engine, ray_engine):
    texts = ["[SEP] What? [CLS] Hillary climbed it. [MASK]", *CAPITALS]
    assert plain(ray_engine.compress(texts, "Who? [SEP]")) == plain(engine.compress(texts, "Who? [SEP]"))


def test_a_batch_and_threads_share_the_replicas(engine, ray_engine):
    items = [(TEXTS[place : place + 30], QUESTION) for place in range(0, 120, 30)]
    expected = [plain(context) for context in engine.compress_batch(items, max_tokens=60)]
    assert [plain(context) for context in ray_engine.compress_batch(items, max_tokens=60)] == expected
    found = {}

    def compress(place):
        found[place] = plain(ray_engine.compress(*items[place], max_tokens=60))

    threads = [threading.Thread(target=compress, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[place] for place in range(4)] == expected


def test_windows_are_made_a_few_calls_ahead_and_no_further(cluster, mortal):
    critic = mortal()
    (window,) = _windows(critic, ["Edmund Hillary climbed it."])
    made = []

    def endless():
        while True:
            made.append(1)
            yield window

    answers = critic.score(endless())
    for _ in range(100):
        next(answers)
    assert len(made) <= 100 + (200 // len(window.ids) + 1) * 3 * 2
    answers.close()


def _windows(critic, texts):
    sent = []

    class Watching(KnownCritic):
        def score(self, windows):
            for window in windows:
                sent.append(window)
                yield from super().score([window])

    CPRSEngine(critic=Watching({})).compress(texts, "q")
    return sent


def test_replicas_killed_in_the_middle_lose_nothing(cluster, mortal, caplog):
    critic = mortal()
    expected = CPRSEngine(critic=MortalCritic()).compress(TEXTS, QUESTION)
    victims = pids(cluster, critic)
    original, answered = critic.score, []

    def score(windows):
        for answer in original(windows):
            answered.append(answer)
            if len(answered) in (5, 20):
                os.kill(victims.pop(), signal.SIGKILL)
            yield answer

    critic.score = score
    assert plain(CPRSEngine(critic=critic).compress(TEXTS, QUESTION)) == plain(expected)
    assert not victims
    assert "a replica died" in caplog.text
    critic.score = original
    assert plain(CPRSEngine(critic=critic).compress(TEXTS, QUESTION)) == plain(expected)


def test_a_replica_that_dies_of_a_call_is_replaced_and_the_call_answered(mortal, tmp_path):
    life = tmp_path / "life"
    life.touch()
    texts = [*TEXTS[:50], "Here we stumble. Hillary does not.", *TEXTS[50:]]
    context = CPRSEngine(critic=mortal(str(life), replicas=1)).compress(texts, QUESTION)
    assert not life.exists()
    assert plain(context) == plain(CPRSEngine(critic=MortalCritic()).compress(texts, QUESTION))


def test_a_call_that_kills_every_replica_is_given_up_with_the_cause(cluster, mortal):
    engine = CPRSEngine(critic=mortal(tries=2, replicas=1))
    with pytest.raises(CriticError, match=r"sent 2 times, and each time their replica died") as caught:
        engine.compress([*CAPITALS, "This is poison."], QUESTION)
    assert isinstance(caught.value.__cause__, cluster.exceptions.RayActorError)
    assert "Hillary" in engine.compress(CAPITALS, QUESTION).text


def test_an_error_of_the_critic_comes_through_and_is_not_tried_again(mortal):
    critic = mortal(replicas=1)
    before = critic._pool._replicas[0]
    with pytest.raises(CriticError, match="ZeroDivisionError: a mistake of the critic") as caught:
        CPRSEngine(critic=critic).compress(["Here is a mistake."], QUESTION)
    assert type(caught.value.__cause__) is ZeroDivisionError
    assert critic._pool._replicas[0] is before


def test_a_model_that_is_not_there_is_named_at_once(cluster, tmp_path):
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        RayCritic.from_pretrained(str(tmp_path), replicas=1)
    with pytest.raises(ArgumentError, match="does not take these options"):
        RayCritic.from_pretrained(replicas=1, colour="red")


def test_what_no_machine_has_is_not_waited_for_forever(cluster):
    with pytest.raises(CriticError, match=r"no replica could start within 0\.2 s: each reserves .*64"):
        RayCritic.from_pretrained(replicas=1, num_cpus=64, start_seconds=0.2)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"replicas": 0}, "replicas"),
        ({"replicas": True}, "replicas"),
        ({"batch_tokens": 1.5}, "batch_tokens"),
        ({"tries": None}, "tries"),
        ({"num_cpus": -1}, "num_cpus"),
        ({"num_gpus": float("nan")}, "num_gpus"),
        ({"num_cpus": 0}, "num_cpus and num_gpus"),
    ],
)
def test_bad_options_are_named(options, named):
    with pytest.raises(ArgumentError, match=f"^{named} "):
        RayCritic.from_pretrained(**options)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("end", ["close", "with", "forget"])
def test_replicas_end_with_their_critic(cluster, mortal, end):
    critic = RayCritic(MortalCritic, replicas=2, num_cpus=0.5)
    (first, second) = pids(cluster, critic)
    if end == "close":
        critic.close()
        critic.close()
        with pytest.raises(CriticError, match="closed"):
            CPRSEngine(critic=critic).compress(CAPITALS, QUESTION)
    elif end == "with":
        with critic:
            pass
    else:
        del critic
        gc.collect()
    for _ in range(200):
        if not alive(first) and not alive(second):
            return
        time.sleep(0.05)
    raise AssertionError("replicas go on")


def test_adapters_and_the_command_line_name_it_ray(engine, cluster):
    critic = load_critic("ray", replicas=1, num_cpus=0.5, threads=1)
    try:
        assert load_critic("ray", replicas=1, num_cpus=0.5, threads=1) is critic
        assert plain(CPRSEngine(critic=critic).compress(CAPITALS, QUESTION)) == plain(engine.compress(CAPITALS, QUESTION))
    finally:
        critic.close()


def test_a_replica_of_the_shipped_critic_computes_on_what_it_reserves(cluster, ray_engine):
    replica = ray_engine.critic._pool._replicas[0]
    assert cluster.get(replica.actor.__ray_call__.remote(lambda worker: worker._critic.threads)) == 1
    assert ray_engine.critic._reader.session is None
