"""A served engine on a real socket, and critics with which a test holds or breaks it."""

import dataclasses
import json
import socket
import threading
import time
from contextlib import contextmanager

import httpx
import uvicorn

from cprs_integrations.critics.known import KnownCritic
from cprs_integrations.serving import Settings, create_app
from cprs_integrations.serving.command import Server


class Served:
    def __init__(self, app, server):
        self.app, self.server, self.service = app, server, app.state.service
        self.port = server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def post(self, path="/v1/compress", body=None, **options):
        return self.client.post(path, json=body, **options)

    def get(self, path, **options):
        return self.client.get(path, **options)

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


@contextmanager
def serving(engine, **settings):
    """Serve an engine in a thread; at the end it has to have answered everything."""
    app = create_app(engine, Settings(**settings))
    config = uvicorn.Config(app, port=0, access_log=False, log_config=None, lifespan="on", ws="none")
    server = Server(config, app.state.service)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    served = Served(app, server)
    try:
        yield served
    finally:
        served.client.close()
        server.should_exit = True
        thread.join()


def wait_until(is_true, seconds=30):
    until = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.01)


class GatedCritic(KnownCritic):
    """Scores nothing until its gate is opened."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.gate = threading.Event()

    def score(self, windows):
        for window in windows:
            self.gate.wait()
            yield from super().score([window])


class BreakingCritic(KnownCritic):
    """Fails at windows with a certain word, and says what it read, as careless critics do."""

    word = "poison"

    def score(self, windows):
        for window in windows:
            text = " ".join(piece.text for piece in window.pieces)
            if self.word in text:
                raise RuntimeError(f"cannot read {text!r}")
            yield from super().score([window])


def without_seconds(result):
    """What of a result is the same every time: its JSON without times and ids."""
    found = json.loads(result) if isinstance(result, bytes | str) else dict(result)
    found.pop("id", None)
    found.pop("request_id", None)
    found["stats"] = {name: value for name, value in found["stats"].items() if name != "seconds"}
    return json.dumps(found)


def timeless(context):
    return dataclasses.replace(context, stats=dataclasses.replace(context.stats, seconds={}))
