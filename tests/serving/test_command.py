import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pydoc_data.topics import topics

import httpx
import pytest
from samples import QUESTION
from served import without_seconds

from cprs_integrations.critics.mini import SHIPPED
from cprs_integrations.errors import ArgumentError
from cprs_integrations.serving import Settings, drop_in
from cprs_integrations.serving.command import check_open

CPRS = [sys.executable, "-c", "from cprs_integrations.cli import main; main()", "serve"]


@contextmanager
def started(*arguments, **environment):
    """`cprs serve` in a process of its own; yields it with its URL and the lines of its log so far."""
    process = subprocess.Popen(
        [*CPRS, "--port", "0", *arguments], stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        url = json.loads(process.stderr.readline())["message"].removeprefix("serving at ")
        lines = []
        reader = threading.Thread(target=lambda: lines.extend(process.stderr))
        reader.start()
        try:
            yield process, url, lines, reader
        finally:
            process.kill()
            reader.join()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_signal_in_the_middle_of_a_request_lets_it_finish(engine):
    documents = list(topics.values())[:6]
    with started("--cache-mb", "16", CPRS_TOKEN="sesame", CPRS_MAX_DOCUMENTS="6") as (process, url, lines, reader):
        headers = {"Authorization": "Bearer sesame"}
        assert url.startswith("http://127.0.0.1:")
        asked = {"documents": ["a"] * 7, "query": "q"}
        assert httpx.post(f"{url}/v1/compress", json=asked, headers=headers).json()["error"]["type"] == "TooManyDocuments"
        body = {"documents": documents, "query": QUESTION, "max_ratio": 0.05, "stream": True}
        with httpx.stream("POST", f"{url}/v1/compress", json=body, headers=headers, timeout=120) as response:
            told = response.iter_lines()
            assert next(told) == "event: progress"
            process.send_signal(signal.SIGTERM)
            rest = list(told)
        assert process.wait(timeout=60) == 0
        reader.join()
    result = json.loads(rest[-2].removeprefix("data: "))
    assert rest[-3] == "event: result"
    assert without_seconds(result) == without_seconds(engine.compress(documents, QUESTION, max_ratio=0.05).to_dict())
    records = [json.loads(line) for line in lines]
    assert records[-1]["message"] == "stopped"
    assert [record["status"] for record in records if record["message"] == "request"] == [413, 200]


@contextmanager
def unread(url, kind):
    """A connection whose client asks for megabytes and reads none of them."""
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        connection.connect((host, int(port)))
        if kind == "answer":
            body = json.dumps({"header": {}, "payload": {"more": "x" * 8_000_000}})
            head = f"POST {drop_in.PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            connection.sendall(f"{head}\r\n\r\n{body}".encode())
        else:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 1_000)
        assert select.select([connection], [], [], 60)[0]
        yield


@pytest.mark.parametrize("kind", ["answer", "pipeline"])
def test_a_client_that_does_not_read_holds_no_shutdown_up(kind):
    with started() as (process, url, lines, reader), unread(url, kind):
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        reader.join()
    assert json.loads(lines[-1])["message"] == "stopped"


@pytest.mark.parametrize("kind", ["answer", "pipeline"])
def test_a_second_signal_ends_it_at_once(kind):
    with started() as (process, url, _, _), unread(url, kind):
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 128 + signal.SIGTERM


def test_its_log_is_lines_of_json_whatever_python_warns_of():
    with started() as (process, url, lines, reader):
        body = {"documents": "A secret [poison].", "query": "q", "protect": ["[[s]ecret"]}
        assert httpx.post(f"{url}/v1/compress", json=body).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        reader.join()
    records = [json.loads(line) for line in lines]
    assert [cause["type"] for record in records if record["message"] == "warning" for cause in record["causes"]] == [
        "FutureWarning"
    ]
    assert "ecret" not in "".join(lines)


def fails(*arguments):
    done = subprocess.run([*CPRS, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert "serving at" not in done.stderr
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_without_its_model_it_ends_with_the_cause_before_it_takes_a_request(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED, folder)
    (folder / "model.onnx").unlink()
    code, told = fails("--critic", str(folder))
    assert code == 2
    assert "model.onnx is missing" in told


def test_an_address_in_use_ends_it(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, told = fails("--port", str(taken.getsockname()[1]))
    assert code == 2
    assert "in use" in told


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CPRS_MAX_QUEUE", "many"),
        ("CPRS_MAX_DOCUMENTS", "1.5"),
        ("CPRS_BODY_SECONDS", "-1"),
        ("CPRS_REQUEST_SECONDS", "inf"),
        ("CPRS_PYTHON_PATTERNS", "perhaps"),
        ("CPRS_TOKEN", "ö"),
    ],
)
def test_a_wrong_variable_is_named(variable, value):
    with pytest.raises(ArgumentError, match=f"(?i){variable.removeprefix('CPRS_')}"):
        Settings.from_environment({variable: value})


def test_variables_are_read():
    given = {"CPRS_TOKEN": "t", "CPRS_MAX_QUEUE": "7", "CPRS_PYTHON_PATTERNS": "yes", "CPRS_MAX_DOCUMENTS": ""}
    found = Settings.from_environment(given)
    assert found == Settings(token="t", max_queue=7, python_patterns=True)
    assert "'t'" not in repr(found)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "box.example"])
def test_an_address_that_others_reach_needs_a_token(host):
    with pytest.raises(ArgumentError, match="set CPRS_TOKEN to a secret, or say --no-token"):
        check_open(host, Settings())
    check_open(host, Settings(token="t"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_alone_needs_none(host):
    check_open(host, Settings())


def test_what_asyncio_tells_is_a_line_without_text():
    """In a process of its own: logs are configured once for all."""
    program = """
import asyncio, gc
from cprs_integrations.serving.logs import configure

async def fail():
    raise ValueError("poison")

async def main():
    asyncio.create_task(fail(), name="poison")
    await asyncio.sleep(0.01)
    gc.collect()

configure()
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    (record,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert record["message"] == "Task exception was never retrieved"
    assert [cause["type"] for cause in record["causes"]] == ["ValueError"]
    assert "poison" not in done.stderr
