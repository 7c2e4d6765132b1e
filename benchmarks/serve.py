"""A load test of `cprs serve` on loopback: is anything lost, is anything wrong, how long does it take, do probes answer?

    python benchmarks/serve.py                                # 10,000 requests, 200 of them long
    python benchmarks/serve.py --requests 300 --long 6

Requests are of some distinct kinds; what the local engine makes of each is computed once, and every answer is held against it,
byte for byte, times aside. Probes are sent all the while from a process of their own.
"""

import argparse
import asyncio
import http.client
import json
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pydoc_data.topics import topics
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np

from cprs_integrations import CPRSEngine

SERVE = [sys.executable, "-c", "from cprs_integrations.cli import main; main()", "serve", "--port", "0"]
QUESTIONS = (
    "Which exception is raised when a key is not in a dictionary?",
    "How do f-strings format numbers?",
    "How is a class defined?",
    "What does the with statement call?",
)
RETRIES = 60


@dataclass
class Kind:
    body: bytes
    expected: str
    is_long: bool


@dataclass
class Phase:
    concurrency: int
    seconds: float = 0.0
    lost: int = 0
    wrong: int = 0
    retried: int = 0
    took: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--long", type=int, default=200, help="how many of them are long")
    parser.add_argument("--short-chars", type=int, default=1_500)
    parser.add_argument("--long-chars", type=int, default=40_000)
    parser.add_argument("--kinds", type=int, default=40, help="distinct short requests; of long ones there are a tenth")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--queue", type=int, default=48, help="the server's CPRS_MAX_QUEUE: beyond it, 429 and another try")
    options = parser.parse_args()
    short, long_ = kinds(options)
    print(f"{len(short)} short and {len(long_)} long kinds of requests, compressed here once")
    order = random.Random(0)
    wanted = order.choices(short, k=options.requests - options.long) + order.choices(long_, k=options.long)
    order.shuffle(wanted)
    parts = np.array_split(np.arange(len(wanted)), len(options.concurrency))
    phases = []
    with served(options.queue) as url, probing(url) as probes:
        for concurrency, part in zip(options.concurrency, parts, strict=True):
            phases.append(asyncio.run(load(url, [wanted[i] for i in part], concurrency)))
            show(phases[-1])
    show_probes(probes)
    lost, wrong = sum(phase.lost for phase in phases), sum(phase.wrong for phase in phases)
    print(f"{options.requests} requests: {lost} lost, {wrong} wrong")
    sys.exit(bool(lost or wrong))


def kinds(options: argparse.Namespace) -> tuple[list[Kind], list[Kind]]:
    """Requests, and what the local engine answers."""
    engine, found = CPRSEngine.from_pretrained(), random.Random(1)
    text = "\n\n".join(topics.values())

    def make(number: int, size: int, *, is_long: bool) -> Kind:
        start = found.randrange(len(text) - size)
        cuts = sorted(found.sample(range(1, size), 3))
        piece = text[start : start + size]
        documents = [piece[low:high] for low, high in zip([0, *cuts], [*cuts, size], strict=True)]
        asked: dict[str, Any] = {"documents": documents, "query": QUESTIONS[number % len(QUESTIONS)]}
        asked |= ({"max_ratio": 0.1}, {"max_tokens": 60}, {}, {"max_ratio": 0.3, "protect": [r"\b[A-Z]\w+Error\b"]})[number % 4]
        return Kind(json.dumps(asked).encode(), canonical(engine.compress(**asked).to_dict()), is_long)

    short = [make(number, options.short_chars, is_long=False) for number in range(options.kinds)]
    return short, [make(number, options.long_chars, is_long=True) for number in range(max(1, options.kinds // 10))]


def canonical(result: dict[str, Any]) -> str:
    stats = {name: value for name, value in result["stats"].items() if name != "seconds"}
    kept = {name: value for name, value in result.items() if name not in ("id", "request_id")}
    return json.dumps({**kept, "stats": stats})


@contextmanager
def served(queue: int) -> Iterator[str]:
    environment = {**os.environ, "CPRS_MAX_QUEUE": str(queue)}
    process = subprocess.Popen(SERVE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        url = json.loads(process.stderr.readline())["message"].removeprefix("serving at ")
        reader = threading.Thread(target=process.stderr.read)
        reader.start()
        yield url
    finally:
        process.terminate()
        process.wait()
        reader.join()
        process.stderr.close()


@contextmanager
def probing(url: str) -> Iterator[dict[str, list[float]]]:
    """Ask for /healthz and /readyz all the while; afterwards it is known how long each took."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, list[float]] = {}
    stop, queue = context.Event(), context.SimpleQueue()
    process = context.Process(target=probe, args=(url, stop, queue))
    process.start()
    try:
        yield found
    finally:
        stop.set()
        found |= queue.get()
        process.join()


def probe(url: str, stop: Event, queue: Any) -> None:
    address = urlsplit(url)
    took: dict[str, list[float]] = {"/healthz": [], "/readyz": []}
    while not stop.is_set():
        for path, seconds in took.items():
            began = time.perf_counter()
            connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
            connection.request("GET", path)
            connection.getresponse().read()
            connection.close()
            seconds.append(time.perf_counter() - began)
        time.sleep(0.05)
    queue.put(took)


async def load(url: str, wanted: list[Kind], concurrency: int) -> Phase:
    phase, waiting = Phase(concurrency), iter(wanted)
    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=900, verify=False) as client:
        began = time.perf_counter()
        await asyncio.gather(*(work(client, waiting, phase) for _ in range(concurrency)))
        phase.seconds = time.perf_counter() - began
    return phase


async def work(client: httpx.AsyncClient, waiting: Iterator[Kind], phase: Phase) -> None:
    for kind in waiting:
        began = time.perf_counter()
        answer = await ask(client, kind, phase)
        phase.took[kind.is_long].append(time.perf_counter() - began)
        if answer is None or answer.status_code != 200:
            phase.lost += 1
        elif canonical(answer.json()) != kind.expected:
            phase.wrong += 1


async def ask(client: httpx.AsyncClient, kind: Kind, phase: Phase) -> httpx.Response | None:
    for _ in range(RETRIES):
        try:
            answer = await client.post("/v1/compress", content=kind.body, headers={"Content-Type": "application/json"})
        except httpx.TransportError as error:
            print(f"{type(error).__name__}: {error}")
            return None
        if answer.status_code != 429:
            return answer
        phase.retried += 1
        await asyncio.sleep(float(answer.headers["Retry-After"]) * random.uniform(1.0, 1.5))
    return answer


def show(phase: Phase) -> None:
    count = sum(map(len, phase.took.values()))
    print(
        f"concurrency {phase.concurrency}: {count} requests in {phase.seconds:.1f} s, {count / phase.seconds:.1f} a second, "
        f"{phase.lost} lost, {phase.wrong} wrong, {phase.retried} times told to come again"
    )
    for is_long, seconds in phase.took.items():
        print(f"  {'long ' if is_long else 'short'} {quantiles(seconds)}")


def show_probes(probes: dict[str, list[float]]) -> None:
    for path, seconds in probes.items():
        slow = sum(took > 0.1 for took in seconds)
        print(f"{path}: {len(seconds)} times, {quantiles(seconds)}, longest {1000 * max(seconds):.1f} ms, {slow} over 100 ms")


def quantiles(seconds: list[float]) -> str:
    if not seconds:
        return "none"
    p50, p95, p99 = (1000 * float(value) for value in np.quantile(seconds, (0.5, 0.95, 0.99)))
    return f"p50 {p50:.1f} ms, p95 {p95:.1f} ms, p99 {p99:.1f} ms"


if __name__ == "__main__":
    main()
