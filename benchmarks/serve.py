"""Load on a served engine, over loopback: nothing lost, nothing wrong, and how long it takes.

    python benchmarks/serve.py [--requests 10000] [--long 200] [--concurrency 1 4 16 48] [--url http://...]

Starts `cprs serve` as a process of its own, unless --url names one. Requests are pages of CPython's documents, some hundred
tokens each, with a few long ones of some thousand tokens among them, spread evenly over the steps of concurrency. Each answer
is compared with what the local engine gives for the same request, computed once for each distinct one. Beside them a probe
asks /healthz ten times a second; its slowest answer is printed.
"""

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pydoc_data.topics import topics
from typing import Any

import httpx
import numpy as np

from cprs_integrations import CPRSEngine

DISTINCT, DISTINCT_LONG = 60, 5
QUESTIONS = [
    "Which exception is raised when a key is not in a dictionary?",
    "How do f-strings format numbers?",
    "What does the finally clause do?",
    "When is a name local to a function?",
]


def requests(short: int, long: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Distinct requests: short ones, and long ones."""
    draw, texts = random.Random(0), list(topics.values())
    pages = ["\n".join(draw.choice(texts)[:600] for _ in range(2)) for _ in range(short)]
    books = ["\n\n".join(draw.sample(texts, 4))[:24_000] for _ in range(long)]
    made = [{"documents": [text], "query": draw.choice(QUESTIONS), "max_ratio": 0.2} for text in pages + books]
    return made[:short], made[short:]


def what_counts(result: dict[str, Any]) -> str:
    """A result without its times, as bytes that can be compared."""
    return json.dumps({**result, "stats": {**result["stats"], "seconds": None}}, sort_keys=True)


@contextmanager
def server(url: str | None) -> Iterator[str]:
    if url:
        yield url
        return
    command = [sys.executable, "-c", "from cprs_integrations.cli import main; main()", "serve", "--port", "0"]
    with open("/dev/null", "w") as nowhere, subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr
        found = next(match[1] for line in running.stderr if (match := re.search(r'"url": "(.*?)"', line)))
        drain = subprocess.Popen(["cat"], stdin=running.stderr, stdout=nowhere)
        try:
            yield found
        finally:
            running.terminate()
            running.wait(60)
            drain.wait(10)


async def step(
    client: httpx.AsyncClient, asked: list[tuple[dict[str, Any], str]], at_once: int
) -> tuple[dict[str, int], list[float], float]:
    """Send requests, so many at once; return what became of them, their seconds, and the slowest probe."""
    became = {"right": 0, "wrong": 0, "lost": 0}
    seconds: list[float] = []
    slowest = 0.0
    queue = iter(asked)

    async def worker() -> None:
        for request, expected in queue:
            began = time.perf_counter()
            while (answer := await client.post("/v1/compress", json=request)).status_code == 429:
                await asyncio.sleep(float(answer.headers["retry-after"]) * random.uniform(0.5, 1))
            seconds.append(time.perf_counter() - began)
            ending = "lost" if answer.status_code != 200 else "right" if what_counts(answer.json()) == expected else "wrong"
            became[ending] += 1

    async def probe() -> None:
        nonlocal slowest
        async with httpx.AsyncClient(base_url=client.base_url, timeout=60) as own:
            while True:
                began = time.perf_counter()
                (await own.get("/healthz")).raise_for_status()
                slowest = max(slowest, time.perf_counter() - began)
                await asyncio.sleep(0.1)

    probing = asyncio.create_task(probe())
    await asyncio.gather(*(worker() for _ in range(at_once)))
    probing.cancel()
    return became, seconds, slowest


async def load(url: str, options: argparse.Namespace) -> bool:
    engine = CPRSEngine.from_pretrained()
    short, long = requests(DISTINCT, DISTINCT_LONG)
    expected = {id(one): what_counts(engine.compress(**one).to_dict()) for one in short + long}
    draw = random.Random(1)
    chosen = [draw.choice(short) for _ in range(options.requests - options.long)]
    chosen += [draw.choice(long) for _ in range(options.long)]
    draw.shuffle(chosen)
    parts = np.array_split(np.arange(len(chosen)), len(options.concurrency))
    all_right = True
    print("at once  requests  wrong  lost  requests/s   p50 s   p95 s   p99 s  slowest probe ms")
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        for at_once, part in zip(options.concurrency, parts, strict=True):
            asked = [(chosen[number], expected[id(chosen[number])]) for number in part.tolist()]
            began = time.perf_counter()
            became, seconds, slowest = await step(client, asked, at_once)
            rate = len(asked) / (time.perf_counter() - began)
            middle, high, highest = np.quantile(seconds, [0.5, 0.95, 0.99])
            print(
                f"{at_once:>7} {len(asked):>9} {became['wrong']:>6} {became['lost']:>5} {rate:>11.1f} "
                f"{middle:>7.3f} {high:>7.3f} {highest:>7.3f} {1000 * slowest:>17.0f}",
                flush=True,
            )
            all_right = all_right and became["right"] == len(asked)
    return all_right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--long", type=int, default=200)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 48])
    parser.add_argument("--url", help="of a server that runs already")
    options = parser.parse_args()
    with server(options.url) as url:
        sys.exit(not asyncio.run(load(url, options)))


if __name__ == "__main__":
    main()
