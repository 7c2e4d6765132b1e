"""Bad input and bad luck: a 4xx with a reason, a 5xx without a word of the text, and the server goes on."""

import asyncio
import json
import logging
import select
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, contextmanager

import httpx
import pytest
from pydantic import ValidationError
from samples import CAPITALS, QUESTION
from served import BreakingCritic, GatedCritic, serving, wait_until
from starlette.requests import Request

from cprs_integrations import CPRSEngine
from cprs_integrations.critics.known import KnownCritic
from cprs_integrations.serving import Settings, drop_in
from cprs_integrations.serving.drop_in import DropInRequest
from cprs_integrations.serving.events import Events
from cprs_integrations.serving.logs import LOGGER, JsonLines
from cprs_integrations.serving.schemas import CompressRequest, SelectRequest
from cprs_integrations.serving.service import Service

GOOD = {"documents": list(CAPITALS), "query": QUESTION}


@pytest.fixture(scope="module")
def small():
    """A server with limits that a test can reach."""
    with serving(
        CPRSEngine(critic=KnownCritic({"Hillary": 0.9})), max_body_bytes=200_000, body_seconds=0.5, max_documents=1_000
    ) as served:
        yield served
        assert served.post(body=GOOD).status_code == 200
        assert served.service.taken == 0


@pytest.mark.parametrize(
    ("content", "status", "type_", "argument"),
    [
        (b"", 400, "MalformedRequest", None),
        (b"{", 400, "MalformedRequest", None),
        (b"\xff\xfe", 400, "MalformedRequest", None),
        (b'{"documents": "a", "query": "q", "threshold": NaN}', 400, "MalformedRequest", None),
        (b"[" * 100_000, 400, "MalformedRequest", None),
        (b'{"documents": ' + b"9" * 5_000 + b"}", 400, "MalformedRequest", None),
        (b"[]", 422, "ArgumentError", None),
        (b"null", 422, "ArgumentError", None),
        (b'{"query": "q"}', 422, "ArgumentError", "documents"),
        (b'{"documents": 3, "query": "q"}', 422, "ArgumentError", "documents"),
        (b'{"documents": ["a", 3], "query": "q"}', 422, "ArgumentError", "documents"),
        (b'{"documents": "a"}', 422, "ArgumentError", "query"),
        (b'{"documents": "a", "query": 3}', 422, "ArgumentError", "query"),
        (b'{"documents": "a", "query": "q", "max_ratio": 0}', 422, "ArgumentError", "max_ratio"),
        (b'{"documents": "a", "query": "q", "max_ratio": true}', 422, "ArgumentError", "max_ratio"),
        (b'{"documents": "a", "query": "q", "max_tokens": 1.5}', 422, "ArgumentError", "max_tokens"),
        (b'{"documents": "a", "query": "q", "max_tokens": "1"}', 422, "ArgumentError", "max_tokens"),
        (b'{"documents": "a", "query": "q", "threshold": 1e999}', 400, "MalformedRequest", None),
        (b'{"documents": "a", "query": "q", "threshold": [-1e999]}', 400, "MalformedRequest", None),
        (b'{"documents": "a", "query": "q", "\\ud800": 1}', 422, "ArgumentError", None),
        (b'{"documents": "a", "query": "q", "granularity": "word"}', 422, "ArgumentError", "granularity"),
        (b'{"documents": "a", "query": "q", "titles": ["a", "b"]}', 422, "ArgumentError", "titles"),
        (b'{"documents": "a", "query": "q", "protect": ["("]}', 422, "ArgumentError", "protect"),
        (b'{"documents": "a", "query": "q", "protect": ["(?<=a)b"]}', 422, "ArgumentError", "protect"),
        (b'{"documents": "a", "query": "q", "protect": "a"}', 422, "ArgumentError", "protect"),
        (b'{"documents": "a", "query": "q", "token_counter": "len"}', 422, "ArgumentError", "token_counter"),
        (json.dumps({"documents": ["a"] * 10_000, "query": "q"}).encode(), 413, "TooManyDocuments", "documents"),
        (json.dumps({"documents": "a" * 200_000, "query": "q"}).encode(), 413, "BodyTooLarge", None),
    ],
)
def test_bad_input_gets_a_reason(small, content, status, type_, argument):
    answer = httpx.post(small.url + "/v1/compress", content=content, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error.get("argument")) == (status, type_, argument)
    assert error["message"]
    assert error["request_id"] == answer.headers["x-request-id"]


def test_an_item_is_named_by_its_place(small):
    error = small.post(body={"documents": ["a", "b", 3], "query": "q"}).json()["error"]
    assert error["message"].startswith("documents[2]")


MANY = [1] * 100_000


@pytest.mark.parametrize(
    ("path", "model", "body", "named"),
    [
        ("/v1/compress", CompressRequest, {"documents": MANY, "query": "q"}, "documents[0]"),
        ("/v1/compress", CompressRequest, {**GOOD, "titles": MANY}, "titles[0]"),
        ("/v1/select", SelectRequest, {"id": "k", "protect": MANY}, "protect[0]"),
        ("/v1/compress", CompressRequest, {**GOOD, **{f"k{n}": 1 for n, _ in enumerate(MANY)}}, "no argument of this name"),
        (
            drop_in.PATH,
            DropInRequest,
            {"header": {"request_id": "r"}, "payload": {"input": {"messages": MANY}}},
            "payload.input.messages.0:",
        ),
    ],
)
def test_of_many_wrong_items_one_is_told(known, path, model, body, named):
    """An error for each would take seconds of the event loop, and gigabytes."""
    with pytest.raises(ValidationError) as told:
        model.model_validate(body)
    assert told.value.error_count() <= 2  # of documents, which may be a text or several
    with serving(known, max_documents=len(MANY)) as served:
        answer = served.post(path, body)
        error = answer.json()["header"]["status_message"] if path == drop_in.PATH else answer.json()["error"]["message"]
    assert named in error
    assert len(error) < 500


def test_what_is_no_json_is_refused_by_its_kind(small):
    """Also what keeps other people's web pages from posting here without asking first."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", None):
        headers = {"Content-Type": kind} if kind else {}
        answer = httpx.post(small.url + "/v1/compress", content=json.dumps(GOOD), headers=headers)
        assert (answer.status_code, answer.json()["error"]["type"]) == (415, "UnsupportedMediaType")


def test_other_paths_and_methods(small):
    assert small.get("/v1/nothing").json()["error"]["type"] == "NotFound"
    answer = small.get("/v1/compress")
    assert (answer.status_code, answer.json()["error"]["type"]) == (405, "MethodNotAllowed")
    assert answer.headers["allow"] == "POST"


def test_a_body_without_a_length_is_kept_no_further_than_the_limit(small):
    most = 0

    def body():
        nonlocal most
        yield b'{"documents": "'
        for _ in range(1_000):
            most = max(most, small.service.bytes_at_the_door)
            yield b"a" * 10_000

    headers = {"Content-Type": "application/json"}
    answer = httpx.post(small.url + "/v1/compress", content=body(), headers=headers, timeout=60)
    assert answer.json()["error"]["type"] == "BodyTooLarge"
    assert most <= 200_000 + 2**18  # what came at once
    assert small.service.bytes_at_the_door == 0


def test_bodies_that_arrive_are_bounded_together(known):
    with serving(known, max_queue=2, max_body_bytes=200_000) as served, ExitStack() as open_:
        connections = [open_.enter_context(served.connect()) for _ in range(20)]
        for connection in connections:
            connection.sendall(HEAD + b"Content-Length: 200000\r\n\r\n" + b" " * 150_000)
        wait_until(lambda: len(select.select(connections, [], [], 0)[0]) == len(connections) - 2)
        refused = select.select(connections, [], [], 0)[0]
        assert all(connection.recv(65_536).startswith(b"HTTP/1.1 429") for connection in refused)
        assert served.service.bytes_at_the_door == 2 * 150_000
        for connection in {*connections} - {*refused}:
            connection.sendall(b" " * 50_000)
            assert connection.recv(65_536).startswith(b"HTTP/1.1 400")
        assert served.post(body=GOOD).status_code == 200
        assert served.service.bytes_at_the_door == 0


def raw(served, head, *parts, wait=0.0):
    """Send bytes as they are; return the answer, or nothing if the connection just ended."""
    with served.connect() as connection:
        connection.sendall(head)
        for part in parts:
            time.sleep(wait)
            try:
                connection.sendall(part)
            except OSError:
                break
        found = b""
        while data := connection.recv(65_536):
            found += data
        return found


HEAD = b"POST /v1/compress HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_a_slow_body_runs_out_of_time(small):
    answer = raw(small, HEAD + b"Content-Length: 1000\r\n\r\n", *[b'{"'] * 8, wait=0.2)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"BodyTooSlow" in answer


def test_a_length_that_is_a_lie_gets_no_further(small):
    with small.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 9999999999\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 413")
    assert raw(small, HEAD + b"Content-Length: -1\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_a_connection_cut_in_the_middle_of_a_body_is_forgotten(small):
    for _ in range(5):
        with small.connect() as connection:
            connection.sendall(HEAD + b'Content-Length: 1000\r\n\r\n{"documents": "')
    wait_until(lambda: small.service.taken == 0)
    assert small.post(body=GOOD).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_is_worked_for_no_longer(stream):
    critic = GatedCritic({})
    with serving(CPRSEngine(critic=critic)) as served:
        body = json.dumps({"documents": "\n".join(f"Sentence {n}." for n in range(5_000)), "query": "q", "stream": stream})
        connection = served.connect()
        connection.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n{body}".encode())
        wait_until(lambda: served.service.taken == 1)
        connection.close()
        wait_until(lambda: served.service.taken == 0)
        critic.gate.set()
        answer = served.post(body=GOOD)
        text = served.get("/metrics").text
    # the server is down, and has finished all that it took: of some 130 windows at most the one that waited at the gate
    assert served.service.scheduler.windows <= 1 + answer.json()["stats"]["windows"]
    assert 'cprs_requests_total{path="/v1/compress",status="499"} 1.0' in text


def test_a_stream_whose_client_is_gone_before_it_begins_is_not_worked_for():
    critic = GatedCritic({})
    service = Service(CPRSEngine(critic=critic), Settings())

    async def send(message):
        raise OSError("the client is gone")

    async def begin():
        job = service.engine.job("\n".join(f"Sentence {n}." for n in range(5_000)), "q")
        ticket = service.scheduler.submit(job)
        request = Request({"type": "http"}, asyncio.Event().wait)
        events = Events(service, ticket, lambda: service.scores(ticket), request, AsyncExitStack())
        with pytest.raises(OSError, match="gone"):
            await events({}, request.receive, send)

    asyncio.run(begin())
    critic.gate.set()
    service.close()
    assert service.scheduler.windows <= 1


def test_a_full_queue_says_when_to_come_again_and_loses_nothing():
    critic = GatedCritic({"Hillary": 0.9})
    full = {"max_queue": 3, "queue_seconds": 0.1}
    with serving(CPRSEngine(critic=critic), **full) as served, ThreadPoolExecutor() as pool:
        waiting = [pool.submit(served.post, body=GOOD) for _ in range(3)]
        wait_until(lambda: served.service.taken == 3)
        answer = served.post(body=GOOD)
        assert (answer.status_code, answer.json()["error"]["type"]) == (429, "QueueFull")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert served.get("/readyz").status_code == 503
        assert served.get("/healthz").status_code == 200
        critic.gate.set()
        assert [call.result().status_code for call in waiting] == [200] * 3
        assert served.get("/readyz").status_code == 200
        assert "cprs_refused_total 1.0" in served.get("/metrics").text


@contextmanager
def one_at_work_and_one_at_the_door(seconds):
    """A server for one request at a time, the gate of its critic, and both requests."""
    critic = GatedCritic({"Hillary": 0.9})
    full = {"max_queue": 1, "queue_seconds": seconds}
    with serving(CPRSEngine(critic=critic), **full) as served, ThreadPoolExecutor() as pool:
        first = pool.submit(served.post, body=GOOD)
        wait_until(lambda: served.service.taken == 1)
        second = pool.submit(lambda: (served.post(body=GOOD), time.monotonic()))
        wait_until(lambda: served.service.at_the_door == 1)
        yield served, critic.gate, first, second


def test_who_waits_for_a_place_gets_the_next_one():
    """Clients that ask again at once never take the place of one that waits, however many they are."""
    with one_at_work_and_one_at_the_door(30) as (served, gate, first, second):
        assert served.post(body=GOOD).json()["error"]["type"] == "QueueFull"  # as many may wait as may be taken
        gate.set()
        assert first.result().status_code == 200
        assert served.post(body=GOOD).status_code == 200
        third = time.monotonic()
        answer, when = second.result()
        assert answer.status_code == 200
        assert when < third


def test_who_hangs_up_while_it_waits_for_a_place_makes_room_for_others():
    critic = GatedCritic({"Hillary": 0.9})
    with serving(CPRSEngine(critic=critic), max_queue=1, queue_seconds=30) as served, ThreadPoolExecutor() as pool:
        first = pool.submit(served.post, body=GOOD)
        wait_until(lambda: served.service.taken == 1)
        body = json.dumps(GOOD).encode()
        with served.connect() as connection:
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            wait_until(lambda: served.service.at_the_door == 1)
        wait_until(lambda: served.service.at_the_door == 0)
        assert served.service.taken == 1
        critic.gate.set()
        assert first.result().status_code == served.post(body=GOOD).status_code == 200
        assert "cprs_refused_total 0.0" in served.get("/metrics").text


@pytest.mark.parametrize("seconds", [30, 0.3])
def test_who_waits_for_a_place_when_the_server_goes_down_is_told_so(seconds):
    with one_at_work_and_one_at_the_door(seconds) as (served, gate, first, second):
        served.service.is_draining = True
        if seconds < 1:  # in vain
            assert second.result()[0].json()["error"]["type"] == "ShuttingDown"
        gate.set()
        assert first.result().status_code == 200
        assert second.result()[0].json()["error"]["type"] == "ShuttingDown"
        assert served.service.taken == served.service.at_the_door == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_has_its_time(stream):
    critic = GatedCritic({})
    with serving(CPRSEngine(critic=critic), request_seconds=0.2) as served:
        answer = served.post(body={**GOOD, "stream": stream})
        assert "TooLate" in answer.text
        assert answer.status_code == (200 if stream else 504)
        critic.gate.set()
        wait_until(lambda: served.service.taken == 0)
        assert served.post(body=GOOD).status_code == 200


def test_a_critic_that_fails_tells_nobody_of_the_text_and_spares_the_neighbours(caplog):
    """A window that the critic cannot read fails its own request, and none of those whose windows are in the same stream."""
    bad = {"documents": ["Fine so far. " * 200 + "The secret poison."], "query": "q"}
    with (
        caplog.at_level(logging.INFO, logger=LOGGER.name),
        serving(CPRSEngine(critic=BreakingCritic({"Hillary": 0.9}))) as served,
        ThreadPoolExecutor() as pool,
    ):
        calls = [pool.submit(served.post, body=bad if number % 4 == 1 else GOOD) for number in range(16)]
        answers = [call.result() for call in calls]
        assert [answer.status_code for answer in answers] == [500 if number % 4 == 1 else 200 for number in range(16)]
        error = answers[1].json()["error"]
        streamed = served.post(body={**bad, "stream": True}).text
    assert error["type"] == "CriticError"
    assert error["request_id"] == answers[1].headers["x-request-id"]
    assert "event: error" in streamed
    assert '"type": "CriticError"' in streamed
    lines = [JsonLines().format(record) for record in caplog.records]
    assert "poison" not in answers[1].text + streamed + "".join(lines)
    (told,) = [json.loads(line) for line in lines if "causes" in line and error["request_id"] in line]
    assert [cause["type"] for cause in told["causes"]] == ["CriticError", "RuntimeError"]
    assert any("served.py:" in place for place in told["causes"][1]["at"])


def test_a_critic_that_takes_no_window_fails_requests_and_not_the_server():
    class Refusing(KnownCritic):
        is_broken = True

        def score(self, windows):
            if self.is_broken:
                raise RuntimeError("no device")
            return super().score(windows)

    critic = Refusing({"Hillary": 0.9})
    with serving(CPRSEngine(critic=critic)) as served:
        assert [served.post(body=GOOD).status_code for _ in range(3)] == [500] * 3
        critic.is_broken = False
        assert served.post(body=GOOD).status_code == 200


def test_logs_have_sizes_times_and_states_and_no_text(caplog):
    with (
        caplog.at_level(logging.INFO, logger=LOGGER.name),
        serving(CPRSEngine(critic=KnownCritic({"Hillary": 0.9}))) as served,
    ):
        answer = served.post(body={**GOOD, "instruction": "find the mountaineers", "protect": ["flour"]})
        served.post(body={**GOOD, "protect": ["(?=flour)"]})
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    done, refused = (line for line in lines if line["message"] == "request")
    assert done["request_id"] == answer.headers["x-request-id"]
    assert (done["status"], done["path"], done["documents"]) == (200, "/v1/compress", len(CAPITALS))
    assert done["original_chars"] == sum(map(len, CAPITALS))
    assert done["seconds"] > 0
    assert (refused["status"], refused["error"]) == (422, "ArgumentError")
    everything = json.dumps(lines)
    assert not [word for word in ("Hillary", "Everest", "flour", "mountaineers") if word in everything]


def test_new_requests_get_503_while_those_taken_are_finished():
    critic = GatedCritic({"Hillary": 0.9})
    with serving(CPRSEngine(critic=critic)) as served, ThreadPoolExecutor() as pool:
        taken = pool.submit(served.post, body=GOOD)
        wait_until(lambda: served.service.taken == 1)
        served.server.handle_exit(15, None)
        answer = served.post(body=GOOD)
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "ShuttingDown")
        assert "retry-after" in answer.headers
        assert served.get("/readyz").status_code == 503
        critic.gate.set()
        assert taken.result().status_code == 200
        wait_until(lambda: served.server.should_exit)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", served.port))
