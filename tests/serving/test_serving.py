import concurrent.futures
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from serving_support import events, process, served

from cprs_integrations import CPRSEngine
from cprs_integrations.critics.known import KnownCritic

DOCUMENTS = [
    "Mount Everest is 8,849 metres high. Edmund Hillary and Tenzing Norgay reached its summit in May 1953.",
    "Bread is made of flour, water and yeast. Knead the dough for ten minutes. Bake it until it is brown.",
    "Caf\u00e9s of Z\u00fcrich \U0001f600 open at seven. \ud800 Nobody knows why.",
    "",
]
QUERY = "Who first climbed Mount Everest?"
BOOK = " ".join(f"Line {n} of the book tells of nothing that anybody would ask for." for n in range(3_000))


def body(**asked):
    return json.dumps({"documents": DOCUMENTS, "query": QUERY, **asked})


def post(client, path="/v1/compress", content=None, **asked):
    return client.post(path, content=content if content is not None else body(**asked))


def without_times(result):
    return {**result, "stats": {**result["stats"], "seconds": None}}


class Gated(KnownCritic):
    """Reads when it is told to."""

    def __init__(self, known):
        super().__init__(known)
        self.gate, self.windows = threading.Event(), 0

    def score(self, windows):
        for scores in super().score(windows):
            self.windows += 1
            self.gate.wait(30)
            yield scores


class Failing(KnownCritic):
    """Fails on windows with a word in them."""

    def score(self, windows):
        for window in windows:
            if any("unlucky" in piece.text for piece in window.pieces):
                raise RuntimeError("the text was: " + window.pieces[0].text)
            yield from super().score([window])


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestAnswers:
    @pytest.mark.parametrize(
        "asked",
        [
            {}, {"max_ratio": 0.5}, {"max_tokens": 20}, {"threshold": 0.3, "max_ratio": 0.9}, {"granularity": "keyword"},
            {"instruction": "names and dates only"}, {"protect": [r"\d,\d+"], "max_ratio": 0.3}, {"prefilter": 0.5},
            {"titles": ["Everest", None, "Z", ""]}, {"documents": DOCUMENTS[0]}, {"documents": []},
        ],
    )  # fmt: skip
    def test_they_are_those_of_the_local_engine(self, client, asked):
        local = CPRSEngine.from_pretrained().compress(**{"documents": DOCUMENTS, "query": QUERY, **asked})
        answer = post(client, **asked)
        assert answer.status_code == 200, answer.text
        assert without_times(answer.json()) == without_times(json.loads(json.dumps(local.to_dict())))

    def test_many_at_once_get_each_their_own(self, client):
        engine = CPRSEngine.from_pretrained()
        asked = [{"query": f"{QUERY} {n}", "max_ratio": 0.2 + 0.05 * (n % 8)} for n in range(24)]
        expected = [engine.compress(DOCUMENTS, **options).to_dict() for options in asked]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda options: post(client, **options).json(), asked))
        assert list(map(without_times, answers)) == list(map(without_times, expected))

    def test_progress_comes_before_the_result(self, client):
        with client.stream("POST", "/v1/compress", content=body(documents=BOOK[:20_000], stream=True)) as answer:
            found = events(answer.iter_lines())
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert [name for name, _ in found] == ["progress"] * (len(found) - 1) + ["result"]
        done = [data["done"] for name, data in found if name == "progress"]
        assert done == sorted(done)
        assert len(found) >= 3
        local = CPRSEngine.from_pretrained().compress(BOOK[:20_000], QUERY).to_dict()
        assert without_times(found[-1][1]) == without_times(local)

    def test_another_selection_needs_no_forward_pass(self, client):
        kept = post(client, keep=True).json()
        again = client.post("/v1/select", json={"id": kept["id"], "max_ratio": 0.2})
        local = CPRSEngine.from_pretrained().score(DOCUMENTS, QUERY).select(max_ratio=0.2).to_dict()
        assert without_times(again.json()) == {**without_times(local), "id": kept["id"]}
        missing = client.post("/v1/select", json={"id": "nobody's"})
        assert (missing.status_code, missing.json()["error"]["type"]) == (404, "NotKept")

    def test_kept_scores_are_bounded_in_memory_and_time(self):
        with served(kept_bytes=40_000, kept_seconds=0.4) as (url, app), httpx.Client(base_url=url, timeout=60) as client:
            names = [post(client, documents=[f"{n} " + BOOK[:8_000]], keep=True).json()["id"] for n in range(4)]
            assert 0 < app.state.desk.kept.bytes <= 40_000
            status = [client.post("/v1/select", json={"id": name}).status_code for name in (names[0], names[-1])]
            assert status == [404, 200]
            time.sleep(0.6)
            assert client.post("/v1/select", json={"id": names[-1]}).status_code == 404
            assert post(client, documents=[BOOK[:41_000]], keep=True).json()["id"] is None

    def test_the_reference_s_format(self, client):
        messages = [
            {"role": "system", "content": "sentences that help to answer the query"},
            {"role": "user", "content": QUERY},
            {"role": "context", "content": " ".join(DOCUMENTS[:2])},
        ]
        asked = {"header": {"request_id": "7"}, "payload": {"input": {"messages": messages}, "parameters": {"batch_size": 1}}}
        found = client.post("/qwen_long_compress_server", json=asked).json()
        assert "Tenzing Norgay" in found["payload"]["output"]["text"]
        assert found["header"] == {
            "request_id": "7", "status_code": 200, "status_name": "Success", "status_message": "", "finished": True,
        }  # fmt: skip
        assert found["payload"]["input"] == asked["payload"]["input"]
        assert found["payload"]["usage"]["input_tokens"] > 20
        asked["payload"]["parameters"]["return_offset"] = True
        spans = client.post("/qwen_long_compress_server", json=asked).json()["payload"]["output"]["text"]
        assert all(messages[2]["content"][start:end] == text for text, start, end in spans)
        assert spans
        del asked["payload"]["input"]
        broken = client.post("/qwen_long_compress_server", json=asked)
        assert broken.status_code == 200
        assert broken.json()["header"]["status_code"] == 440
        assert broken.json()["payload"]["output"] == {"is_match": False}

    def test_probes_metrics_and_documents(self, client):
        assert client.get("/healthz").json() == {"status": "alive"}
        assert client.get("/readyz").json() == {"status": "ready"}
        assert client.get("/liveness").status_code == client.get("/readiness").status_code == 200
        post(client)
        text = client.get("/metrics").text
        assert 'cprs_requests_total{path="/v1/compress",status="200"}' in text
        assert "cprs_queue 0.0" in text
        assert {"/v1/compress", "/v1/select", "/qwen_long_compress_server"} <= client.get("/openapi.json").json()[
            "paths"
        ].keys()
        page = client.get("/")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "unsafe" not in page.headers["content-security-policy"]


class TestBadInput:
    @pytest.mark.parametrize(
        ("content", "argument"),
        [
            ("", None), ("{", None), ("[]", None), ("null", None), (b"\xff\xfe", None), ("[" * 100_000, None),
            ('{"query": "q"}', "documents"), (body(documents=[1]), "documents"), (body(documents=None), "documents"),
            (body(query=""), "query"), (body(query=7), "query"), (body(max_ratio=1.5), "max_ratio"),
            (body(max_ratio="0.5x"), "max_ratio"), (body(max_tokens=0), "max_tokens"), (body(max_tokens=1.5), "max_tokens"),
            (body(granularity="page"), "granularity"), (body(titles=["one"]), "titles"), (body(max_ration=0.1), "max_ration"),
            (body(protect=["("]), "protect"), (body(protect=["(?=a)"]), "protect"), (body(protect="a"), "protect"),
            (body(prefilter=0), "prefilter"), (body(query="", instruction="x", prefilter=0.5), "prefilter"),
            (body(query="word " * 2_000), "query"),
        ],
    )  # fmt: skip
    def test_it_is_named_and_the_server_goes_on(self, client, content, argument):
        answer = client.post("/v1/compress", content=content)
        assert answer.status_code == 422, answer.text
        error = answer.json()["error"]
        assert error["type"] == "ArgumentError"
        assert error.get("argument") == argument
        assert error["request_id"] == answer.headers["x-request-id"]
        assert "Traceback" not in answer.text
        assert "Everest" not in answer.text
        assert post(client).status_code == 200

    def test_a_pattern_cannot_burn_the_server(self, client):
        began = time.monotonic()
        answer = post(client, documents=["a" * 5_000 + "b"], protect=["(a+)+$"], query="a")
        assert answer.status_code == 200
        assert time.monotonic() - began < 20  # Python's own engine would take longer than the universe lasts

    def test_an_operator_can_allow_python_s_patterns(self):
        with served(CPRSEngine(KnownCritic({})), python_patterns=True) as (url, _), httpx.Client(base_url=url) as client:
            found = post(client, protect=["(?<=8,)849"]).json()
            assert found["text"] == "849"

    def test_too_many_documents(self, client):
        answer = post(client, documents=["x"] * 10_000)
        assert (answer.status_code, answer.json()["error"]["type"]) == (413, "TooManyDocuments")

    def test_bodies_that_are_too_large_with_and_without_a_length(self):
        with served(CPRSEngine(KnownCritic({})), max_body_bytes=1_000) as (url, _):
            assert httpx.post(url + "/v1/compress", content=b"x" * 1_001).status_code == 413
            assert httpx.post(url + "/v1/compress", content=iter([b"x" * 600, b"x" * 600])).status_code == 413
            assert httpx.post(url + "/v1/compress", content=body(documents="short", query="q")).status_code == 200

    def test_slow_bodies_and_clients_that_hang_up(self):
        with served(CPRSEngine(KnownCritic({})), body_seconds=0.3) as (url, app):
            address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
            head = b"POST /v1/compress HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
            with socket.create_connection(address) as slow:
                slow.sendall(head)
                assert slow.recv(4_096).startswith(b"HTTP/1.1 408")
            for _ in range(5):
                with socket.create_connection(address) as gone:
                    gone.sendall(head)
            assert httpx.post(url + "/v1/compress", content=body()).status_code == 200
            wait_for(lambda: app.state.desk.waiting == 0)

    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
    def test_other_methods_and_paths(self, client, method):
        assert client.request(method, "/v1/compress").status_code == 405
        assert client.request(method, "/v1/nothing").status_code == 404


class TestToken:
    def test_without_it_nothing_is_done(self):
        with served(CPRSEngine(KnownCritic({})), token="s3cret") as (url, _), httpx.Client(base_url=url) as client:
            for headers in (
                {},
                {"Authorization": "Bearer wrong"},
                {"Authorization": "s3cret"},
                {"Authorization": "Bearer \xe9"},
            ):
                sent = {name: value.encode("latin-1") for name, value in headers.items()}
                answer = client.post("/v1/compress", content=body(), headers=sent)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                assert client.get("/metrics", headers=sent).status_code == 401
            assert client.post("/v1/compress", content=body(), headers={"Authorization": "Bearer s3cret"}).status_code == 200
            assert client.get("/healthz").status_code == client.get("/readyz").status_code == client.get("/").status_code == 200


class TestLoad:
    def test_a_full_queue_answers_429_and_the_rest_is_served(self):
        critic = Gated({"Norgay": 0.9})
        with served(CPRSEngine(critic), max_queue=2) as (url, app), concurrent.futures.ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(httpx.post, url + "/v1/compress", content=body(), timeout=60) for _ in range(2)]
            wait_for(lambda: app.state.desk.waiting == 2)
            refused = httpx.post(url + "/v1/compress", content=body())
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert httpx.get(url + "/readyz").status_code == 503
            assert httpx.get(url + "/healthz").status_code == 200
            critic.gate.set()
            assert [found.result().status_code for found in waiting] == [200, 200]
            assert httpx.post(url + "/v1/compress", content=body()).status_code == 200

    def test_a_book_does_not_hold_up_a_page(self):
        critic = Gated({"Norgay": 0.9})
        critic.gate.set()
        order = []
        with served(CPRSEngine(critic)) as (url, app), concurrent.futures.ThreadPoolExecutor(2) as pool:
            critic.gate.clear()
            book = pool.submit(httpx.post, url + "/v1/compress", content=body(documents=BOOK * 3), timeout=60)
            book.add_done_callback(lambda _: order.append("book"))
            wait_for(lambda: critic.windows > 0)
            page = pool.submit(httpx.post, url + "/v1/compress", content=body(), timeout=60)
            page.add_done_callback(lambda _: order.append("page"))
            wait_for(lambda: app.state.desk.waiting == 2)
            critic.gate.set()
            assert book.result().status_code == page.result().status_code == 200
        assert order == ["page", "book"]

    def test_a_client_that_hangs_up_is_not_read_for(self):
        critic = Gated({})
        with served(CPRSEngine(critic)) as (url, app):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(url + "/v1/compress", content=body(documents=BOOK), timeout=0.5)
            wait_for(lambda: app.state.desk.waiting == 0)
            read = critic.windows
            critic.gate.set()
            assert httpx.post(url + "/v1/compress", content=body()).status_code == 200
            assert critic.windows < read + 20

    def test_a_request_that_takes_too_long(self):
        critic = Gated({})
        with served(CPRSEngine(critic), request_seconds=0.3) as (url, _):
            answer = httpx.post(url + "/v1/compress", content=body())
            assert (answer.status_code, answer.json()["error"]["type"]) == (504, "Timeout")
            critic.gate.set()
            assert httpx.post(url + "/v1/compress", content=body()).status_code == 200


class TestBadLuck:
    def test_a_critic_that_fails_hurts_only_the_request_it_fails_on(self, caplog):
        with (
            caplog.at_level(logging.INFO, "cprs_integrations.serving"),
            served(CPRSEngine(Failing({"Norgay": 0.9}))) as (url, _),
            concurrent.futures.ThreadPoolExecutor(8) as pool,
        ):
            texts = [[*DOCUMENTS, "An unlucky secret."] if n % 3 == 0 else DOCUMENTS for n in range(9)]
            asked = [body(documents=documents) for documents in texts]
            answers = list(pool.map(lambda content: httpx.post(url + "/v1/compress", content=content, timeout=60), asked))
        for number, answer in enumerate(answers):
            if number % 3:
                assert "Norgay" in answer.json()["text"]
            else:
                error = answer.json()["error"]
                assert (answer.status_code, error["type"]) == (500, "CriticError")
                assert error["request_id"] in caplog.text
                assert "secret" not in answer.text
        assert "RuntimeError" in caplog.text
        assert "secret" not in caplog.text
        assert "Everest" not in caplog.text

    def test_a_failure_in_a_stream_is_its_last_event(self):
        with served(CPRSEngine(Failing({}))) as (url, _):
            asked = body(documents="An unlucky secret.", stream=True)
            with httpx.stream("POST", url + "/v1/compress", content=asked) as answer:
                found = events(answer.iter_lines())
        assert found[-1][0] == "error"
        assert found[-1][1]["error"]["type"] == "CriticError"


class TestProcess:
    def test_it_finishes_what_it_took_and_logs_no_text(self):
        with process(CPRS_MAX_QUEUE="5") as (url, running, lines), concurrent.futures.ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(httpx.post, url + "/v1/compress", content=body(documents=BOOK[:60_000]), timeout=60)
            wait_for(lambda: "cprs_queue 1.0" in httpx.get(url + "/metrics").text)
            running.send_signal(signal.SIGTERM)
            assert waiting.result().status_code == 200
            assert running.wait(30) in (0, -signal.SIGTERM)
        logged = [json.loads(line) for line in lines if line.startswith("{")]
        (done,) = [line for line in logged if line.get("path") == "/v1/compress"]
        assert done["status"] == 200
        assert done["characters"] == 60_000
        assert "anybody" not in "".join(lines)
        assert QUERY not in "".join(lines)

    @pytest.mark.parametrize(
        ("arguments", "environment", "cause"),
        [
            (["--critic", "./no/such/folder"], {}, "does not exist"),
            (["--host", "0.0.0.0"], {}, "set CPRS_TOKEN to a secret"),
            ([], {"CPRS_MAX_QUEUE": "many"}, "CPRS_MAX_QUEUE must be a whole number"),
            ([], {"CPRS_MAX_QUEUE": "0"}, "max_queue must be a number above 0"),
        ],
    )  # fmt: skip
    def test_it_does_not_start_on_what_cannot_work(self, arguments, environment, cause, tmp_path):
        command = [sys.executable, "-c", "from cprs_integrations.cli import main; main()", "serve", "--port", "0", *arguments]
        found = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env=os.environ | environment, check=False, cwd=tmp_path
        )
        assert found.returncode == 2
        assert cause in found.stderr
        assert "Traceback" not in found.stderr
