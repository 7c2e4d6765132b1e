import json
import os
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
from samples import CAPITALS, QUESTION
from served import without_seconds

from cprs_integrations.critics.mini import SHIPPED

CPRS = [sys.executable, "-c", "from cprs_integrations.cli import main; main()", "serve"]


@contextmanager
def started(*arguments, **environment):
    """`cprs serve` in a process of its own; yields it with its URL and the lines of its log so far."""
    process = subprocess.Popen(
        [*CPRS, "--port", "0", *arguments], stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        line = process.stderr.readline()
        url = json.loads(line)["message"].removeprefix("serving at ")
        lines = []
        reader = threading.Thread(target=lambda: lines.extend(process.stderr))
        reader.start()
        yield process, url, lines, reader
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stderr.close()


def test_a_signal_in_the_middle_of_a_request_lets_it_finish(engine):
    documents = list(topics.values())[:6]
    with started(CPRS_TOKEN="sesame") as (process, url, lines, reader):
        headers = {"Authorization": "Bearer sesame"}
        assert url.startswith("http://127.0.0.1:")
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
    assert [record["status"] for record in records if record["message"] == "request"] == [200]


def fails(*arguments, **environment):
    done = subprocess.run(
        [*CPRS, *arguments], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}, check=False
    )
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
    ("variable", "value"), [("CPRS_MAX_QUEUE", "many"), ("CPRS_BODY_SECONDS", "-1"), ("CPRS_PYTHON_PATTERNS", "perhaps")]
)
def test_a_wrong_variable_is_named(variable, value):
    code, told = fails(**{variable: value})
    assert code == 2
    assert variable.lower().removeprefix("cprs_") in told.lower()


def test_limits_come_from_the_environment():
    with started(CPRS_MAX_DOCUMENTS="3") as (_, url, _lines, _reader):
        answer = httpx.post(f"{url}/v1/compress", json={"documents": list(CAPITALS), "query": QUESTION})
        assert answer.json()["error"]["type"] == "TooManyDocuments"
