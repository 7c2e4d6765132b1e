"""The app on Ray Serve, over a real socket: the bytes of the local engine, whatever replica is killed."""

import json
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from processes import children
from pydantic import ValidationError
from samples import CAPITALS, QUESTION
from served import wait_until

from cprs_integrations.remote import RemoteEngine
from cprs_integrations.serving.ray_app import CRITIC, Options, build

TOKEN = "for-this-test-alone"
CONTEXTS = [[f"Chapter {number}, part {part}. {text}" for part in range(6) for text in CAPITALS] for number in range(12)]


def plain(context):
    found = context.to_dict()
    del found["stats"]["seconds"]
    return found


@pytest.fixture(scope="module")
def url(cluster):
    """Two replicas of the critic and one of the app, at a port of their own."""
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CPRS_TOKEN", TOKEN)
        application = build(Options(min_replicas=2, max_replicas=2, num_cpus=0.4, batch_tokens=400))
    serve.run(application, name="cprs")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def test_what_it_answers_is_what_the_local_engine_says(engine, url):
    remote = RemoteEngine(url, TOKEN)
    for options in ({}, {"max_ratio": 0.05}, {"granularity": "keyword", "protect": ["8,849"]}):
        assert plain(remote.compress(CONTEXTS[0], QUESTION, **options)) == plain(
            engine.compress(CONTEXTS[0], QUESTION, **options)
        )


def test_limits_token_and_probes_are_those_of_the_app(url):
    assert httpx.get(f"{url}/readyz").text == "ready"
    assert httpx.post(f"{url}/v1/compress", json={"documents": "a", "query": "b"}).status_code == 401
    head = {"Authorization": f"Bearer {TOKEN}"}
    assert httpx.post(f"{url}/v1/compress", json={"documents": 7, "query": "b"}, headers=head).status_code == 422
    assert (
        httpx.post(f"{url}/v1/compress", content=b"{", headers={**head, "Content-Type": "application/json"}).status_code == 400
    )
    assert "cprs_windows_total" in httpx.get(f"{url}/metrics", headers=head).text


def test_progress_comes_as_events(url):
    head = {"Authorization": f"Bearer {TOKEN}"}
    body = {"documents": CONTEXTS[0], "query": QUESTION, "stream": True}
    with httpx.stream("POST", f"{url}/v1/compress", json=body, headers=head, timeout=60) as answer:
        events = [line.removeprefix("event: ") for line in answer.iter_lines() if line.startswith("event: ")]
    assert events[-1] == "result"


def test_killed_replicas_of_the_critic_lose_no_request(engine, url):
    remote = RemoteEngine(url, TOKEN, retries=0)
    expected = [json.dumps(plain(engine.compress(context, QUESTION, max_ratio=0.1))) for context in CONTEXTS]
    victims = children("ServeReplica:cprs:critic")
    assert len(victims) == 2
    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(remote.compress, context, QUESTION, max_ratio=0.1) for context in CONTEXTS]
        for place, victim in enumerate(victims):
            running[3 * place].result()
            os.kill(victim, signal.SIGKILL)
        assert [json.dumps(plain(future.result())) for future in running] == expected


@pytest.mark.parametrize(
    "options", [{"min_replicas": 3, "max_replicas": 2}, {"colour": "red"}, {"num_cpus": -1}, {"batch_tokens": 0}]
)
def test_wrong_options_are_named(options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        Options(**options)


def test_replicas_come_with_the_work(url):
    """Half a minute after there is more than one can do, Ray Serve adds another."""
    from ray import serve

    serve.delete("cprs")  # there are two CPUs, and an app takes one

    def replicas():
        return serve.status().applications["growing"].deployments[CRITIC].replica_states.get("RUNNING", 0)

    serve.run(build(Options(min_replicas=1, max_replicas=2, num_cpus=0.1)), name="growing", route_prefix="/growing")
    assert replicas() == 1
    hidden = "The password of the harbour is swordfish."
    book = "\n".join([f"Page {number} tells of the weather at sea." for number in range(60_000)] + [hidden])
    remote, question = RemoteEngine(f"{url}/growing"), "What is the password of the harbour?"
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(remote.compress, book, question, max_tokens=20)
        wait_until(lambda: replicas() == 2 or asked.done(), seconds=120)
        assert not asked.done()
        assert "swordfish" in asked.result().text
    serve.delete("growing")
