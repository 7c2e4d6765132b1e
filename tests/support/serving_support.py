import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import uvicorn

from cprs_integrations import CPRSEngine
from cprs_integrations.serving import Settings, create_app


@contextlib.contextmanager
def served(engine=None, **settings):
    """An app on a real socket, in a thread; yields its address and the app."""
    app = create_app(engine or CPRSEngine.from_pretrained(), Settings(**settings))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", app
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@contextlib.contextmanager
def process(*arguments, **environment):
    """`cprs serve` as a process of its own; yields its address, the process, and a list that its log lines go to."""
    command = [sys.executable, "-c", "from cprs_integrations.cli import main; main()", "serve", "--port", "0", *arguments]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment)
    lines = []
    url = None
    for line in running.stderr:
        lines.append(line)
        if found := re.search(r'"url": "(.*?)"', line):
            url = found[1]
            break
    assert url, lines
    reader = threading.Thread(target=lambda: lines.extend(running.stderr), daemon=True)
    reader.start()
    try:
        yield url, running, lines
    finally:
        if running.poll() is None:
            running.send_signal(signal.SIGTERM)
            running.wait(30)
        reader.join(10)
        running.stderr.close()


def events(lines):
    """Server-sent events, as names and data."""
    found, name = [], None
    for line in lines:
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            found.append((name, json.loads(line[6:])))
    return found
