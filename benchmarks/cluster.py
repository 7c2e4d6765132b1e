"""Throughput of the critic on Ray beside the critic alone, in the same run, and what a billion tokens a day would take.

    python benchmarks/cluster.py --tokens 20000 --rounds 3

Both score the same windows with as many threads as there are replicas; one thread a replica. Rounds take turns, so that a
neighbour's load falls on all alike; the best round of each counts.
"""

import argparse
import math
import os
import time
from pydoc_data.topics import topics

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # else Ray's workers wait for every other process of this machine

import ray

from cprs_integrations import CPRSEngine
from cprs_integrations.critics import load_critic
from cprs_integrations.critics.base import Critic
from cprs_integrations.critics.ray import RayCritic

QUERY = "Which exception is raised when a key is not in a dictionary?"
DAY, TOKENS_A_DAY = 86_400, 1_000_000_000
BUSY = 0.7  # share of the day that machines are planned to be busy: restarts, uneven load, growth


def measured(critics: dict[str, Critic], text: str, rounds: int) -> dict[str, float]:
    """Tokens a second of each, the best of some rounds; the results must be equal."""
    found: dict[str, float] = {}
    expected = None
    for _ in range(rounds):
        for name, critic in critics.items():
            began = time.perf_counter()
            context = CPRSEngine(critic=critic).compress(text, QUERY, max_ratio=0.02)
            seconds = time.perf_counter() - began
            answer = (context.text, context.documents)
            expected = expected or answer
            if answer != expected:
                raise SystemExit(f"{name} kept something else")
            found[name] = max(found.get(name, 0.0), context.stats.original_tokens / seconds)
    return found


def sample(tokens: int) -> str:
    """CPython's language reference, about so many tokens."""
    whole = "\n\n".join(topics.values())
    count = CPRSEngine.from_pretrained().count_tokens(whole)
    return (whole * (1 + tokens // count))[: int(len(whole) * tokens / count)]


def plan(speed: float) -> None:
    cores = TOKENS_A_DAY / DAY / speed / BUSY
    print(f"\n1 billion tokens a day are {TOKENS_A_DAY / DAY:,.0f} tokens a second on average.")
    print("| replica | tokens a second | busy share | replicas | machines |")
    print("|---|---|---|---|---|")
    print(f"| 1 core, shipped critic | {speed:,.0f} | {BUSY:.0%} | {math.ceil(cores)} | {math.ceil(cores / 16)} of 16 cores |")
    print("| 1 GPU, QwenLong-CPRS-7B | not measured | | | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    text = sample(options.tokens)
    ray.init(num_cpus=max(options.replicas), include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False)
    speed = 0.0
    print(f"{len(text):,} characters, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {options.rounds} rounds")
    for count in options.replicas:
        with RayCritic.from_pretrained(replicas=count, num_cpus=1, threads=1) as spread:
            while spread.ready < count:
                time.sleep(0.1)
            found = measured({f"{count} threads, local": load_critic(threads=count), f"{count} replicas, Ray": spread},
                             text, options.rounds)  # fmt: skip
        local, on_ray = found.values()
        for name, value in found.items():
            print(f"{name:20} {value:8,.0f} tokens/s")
        print(f"{'':20} {on_ray / local:8.2f} of local")
        speed = speed or on_ray
    ray.shutdown()
    plan(speed)


if __name__ == "__main__":
    main()
