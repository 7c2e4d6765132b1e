"""From a thousand tokens to millions: time and memory as the context grows, with the bare network beside them.

    python benchmarks/scale.py [--tokens 1024 ... 4194304] [--prefilter 0.05] [--haystack DIR] [--threads 2]

Each length runs in a process of its own. `forward` is the network alone, on windows that lie ready, in as many threads: what
no engine can go below. `overhead` is the processor time of everything else, a token. `memory` is the peak of the process
above what it held with the critic loaded, and above the text. With --prefilter a second and a third question to the same
engine, which has a cache of documents, show what reading a share of the windows takes, before and after the first question
about the document.
"""

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from cprs_integrations import CPRSEngine
from cprs_integrations.caching import DocumentCache
from cprs_integrations.critics.base import TokenScores
from cprs_integrations.critics.mini import MiniCritic
from cprs_integrations.evaluation.haystack import Haystack
from cprs_integrations.windows import Window

LENGTHS = [1_024, 16_384, 65_536, 262_144, 1_048_576, 4_194_304]
BARE = 400  # windows that the bare network reads
QUESTION = "Which exception is raised when a key is not in a dictionary?"


class Timed(MiniCritic):
    """Adds up the processor time inside the network."""

    inside = 0.0
    _lock = threading.Lock()

    def score_window(self, window: Window) -> TokenScores:
        began = time.thread_time()
        scores = super().score_window(window)
        with self._lock:
            self.inside += time.thread_time() - began
        return scores


def peak() -> float:
    """Megabytes that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(tokens: int, prefilter: float | None, haystack: Path | None, threads: int | None) -> dict[str, Any]:
    hay = Haystack.of(haystack)
    critic = Timed.from_pretrained(threads=threads)
    engine = CPRSEngine(critic)
    text = hay.text(hay.guess(tokens, engine.count_tokens), np.random.default_rng(0))
    del hay
    engine.compress(text[:8_000], QUESTION, max_tokens=160)
    critic.inside, held = 0.0, psutil.Process().memory_info().rss / 2**20
    began, worked = time.perf_counter(), time.process_time()
    context = engine.compress(text, QUESTION, max_tokens=160)
    seconds, busy = time.perf_counter() - began, time.process_time() - worked
    count = context.stats.original_tokens
    found: dict[str, Any] = {
        "tokens": count,
        "text_mb": len(text.encode()) / 2**20,
        "seconds": seconds,
        "us_per_token": 1e6 * seconds / count,
        "overhead_us": 1e6 * (busy - critic.inside) / count,
        "memory_mb": peak() - held,
        "process_mb": peak(),
        "forward_us": bare(critic, engine, text),
    }
    if prefilter is not None:
        again = CPRSEngine(critic, DocumentCache())
        for name in ("coarse_first", "coarse_next"):
            began = time.perf_counter()
            again.compress(text, QUESTION, max_tokens=160, prefilter=prefilter)
            found[name] = time.perf_counter() - began
    return found


def bare(critic: MiniCritic, engine: CPRSEngine, text: str) -> float:
    """Microseconds a token of the network alone, in parallel as the critic does it."""
    windows = list(islice(engine.job(text, QUESTION).windows(), BARE))
    began = time.perf_counter()
    with ThreadPoolExecutor(critic.threads) as pool:
        list(pool.map(lambda window: critic.session.run(None, {"ids": critic.row(window)}), windows))
    return 1e6 * (time.perf_counter() - began) / sum(len(window.rows) for window in windows)


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for tokens in options.tokens:
        command = [sys.executable, __file__, "--one", str(tokens)]
        for name in ("prefilter", "haystack", "threads"):
            if (value := getattr(options, name)) is not None:
                command += [f"--{name}", str(value)]
        yield json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--prefilter", type=float, help="share of the windows to read")
    parser.add_argument("--haystack", type=Path, help="folder of texts; default: CPython's documents, again and again")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.prefilter, options.haystack, options.threads)))
        return
    print("   tokens  seconds  us/token  forward  ratio  overhead  memory MB  text MB   prefilter: first, next question s")
    for row in rows(options):
        coarse = f"{row['coarse_first']:.1f}, {row['coarse_next']:.1f}" if "coarse_first" in row else "-"
        print(
            f"{row['tokens']:>9,} {row['seconds']:>8.1f} {row['us_per_token']:>9.1f} {row['forward_us']:>8.1f} "
            f"{row['us_per_token'] / row['forward_us']:>6.2f} {row['overhead_us']:>9.2f} {row['memory_mb']:>10.0f} "
            f"{row['text_mb']:>8.1f}   {coarse}",
            flush=True,
        )


if __name__ == "__main__":
    main()
