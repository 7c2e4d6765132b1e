"""The small critic against its goals, beside what a user could do instead.

    python benchmarks/critic.py --data DIR [--items 500] [--only NAME ...] [--critic FOLDER] [--methods NAME ...] [--cache FILE]

DIR is a folder with eval/ and haystack/. Retention is the share of items of which an answer (or all evidence, or what share of
it) is left in the kept text. The baselines may overshoot a ratio to keep one sentence; ours never does. A goal of "ahead" is
to be ahead of every baseline in the same run. Needs the development set-up (MiniLM, BM25, llmslim, LangChain come from PyPI).
"""

import argparse
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from tasks import Goals, all_goals, squad

from cprs_integrations import CPRSEngine
from cprs_integrations.critics.base import TokenScores
from cprs_integrations.critics.mini import MiniCritic
from cprs_integrations.evaluation.embeddings import MiniLM
from cprs_integrations.evaluation.items import Budget, Item, Kept, Method
from cprs_integrations.evaluation.methods import OURS, Ours, Tools, load_method
from cprs_integrations.evaluation.rankings import by_scores
from cprs_integrations.scored import Scored
from cprs_integrations.training.wordings import JUDGE
from cprs_integrations.windows import Window

METHODS = (OURS, "BM25", "MiniLM", "BM25+MiniLM", "llmslim", "EmbeddingsFilter")


def kept(method: Method, item: Item, ratio: float) -> str:
    found = method(item, Budget(max_ratio=ratio))
    return found.text if isinstance(found, Kept) else found


def judge(task: Goals, method: Method) -> list[float]:
    """Mean of the task's measure over its items, for each ratio."""
    values = [[task.judge(item, kept(method, item, ratio)) for ratio in task.ratios] for item in task.items]
    return [float(value) for value in np.mean(values, axis=0)]


def report(task: Goals, engine: CPRSEngine, baselines: dict[str, Method], has_ours: bool) -> Iterator[str]:
    """Yield the lines of a task: a ratio each."""
    ours = {OURS: judge(task, Ours(engine, task.instruction))} if has_ours else {}
    theirs = {name: judge(task, method) for name, method in baselines.items()}
    for place, (ratio, goal) in enumerate(zip(task.ratios, task.goals, strict=True)):
        figures = "".join(f"{found[place]:>9.3f}" for found in (*ours.values(), *theirs.values()))
        line = f"{task.name:<24}{len(task.items):>5}{ratio:>7.1%}{figures}"
        if has_ours:
            mine, best = ours[OURS][place], max((found[place] for found in theirs.values()), default=0.0)
            reached = mine >= goal if goal is not None else mine > best
            line += f"  {f'>= {goal:.3f}' if goal is not None else 'ahead':<9} {'yes' if reached else 'no'}"
        yield line


def default_threshold(engine: CPRSEngine, items: list[Item]) -> str:
    """No bound: how much is kept of what answers, how little of all, and how many of the other passages come back empty."""
    left, compressions, empty = [], [], []
    for item in items:
        found = engine.compress(item.documents, item.question)
        left.append(any(answer.lower() in found.text.lower() for answer in item.answers))
        compressions.append(found.stats.kept_chars / found.stats.original_chars)
        for text, document in zip(item.documents, found.documents, strict=True):
            if not any(answer.lower() in text.lower() for answer in item.answers):
                empty.append(not document.text)
    return (
        f"no bound, {len(items)} items: retention {np.mean(left):.3f} (goal 0.970) at {1 / np.mean(compressions):.1f}x "
        f"(goal 8.0x); {np.mean(empty):.3f} of passages without evidence come back empty (goal 0.950)"
    )


def granularities(engine: CPRSEngine, items: list[Item], count: int) -> Iterator[str]:
    """Wordings never seen in training: is the best span words, one sentence, or more?"""
    right: dict[str, list[bool]] = {}
    for granularity, wordings in JUDGE.items():
        for number, wording in enumerate(wordings):
            for item in items[number * count : (number + 1) * count]:
                scored = engine.score(item.documents, item.question, instruction=wording)
                right.setdefault(granularity, []).append(_best_kind(scored) == granularity)
    yield (
        "unseen wordings followed: "
        + ", ".join(f"{name} {np.mean(found):.3f}" for name, found in right.items())
        + (f"; all {np.mean([*chain.from_iterable(right.values())]):.3f} (goal 0.950)")
    )


def _best_kind(scored: Scored) -> str:
    """What the best span is: shorter than its sentence, one sentence, or its paragraph.

    A paragraph of one sentence is both, so the best of the spans that begin in longer ones is looked at.
    """
    found = scored.candidates(None)
    paragraph = np.cumsum(np.diff(scored.paragraphs, prepend=-1) + np.diff(scored.documents, prepend=-1) != 0)
    units = np.searchsorted(scored.starts, found.starts, side="right") - 1
    several = np.bincount(paragraph)[paragraph[units]] > 1
    best = int(np.argmax(np.where(several, found.scores, -1.0)))
    first, last = np.searchsorted(scored.starts, (found.starts[best] + 1, found.ends[best])) - (1, 1)
    if last > first:
        return "paragraph"
    return "sentence" if (found.starts[best], found.ends[best]) == (scored.starts[first], scored.ends[first]) else "keyword"


class _Timed(MiniCritic):
    """Adds up the time inside the network, and the tokens it reads."""

    inside, tokens = 0.0, 0

    def score_window(self, window: Window) -> TokenScores:
        began = time.thread_time()
        scores = super().score_window(window)
        self.inside += time.thread_time() - began
        self.tokens += len(scores.bioe)
        return scores


def cost(folder: str | None, items: list[Item]) -> Iterator[str]:
    """CPU time on one thread, ours beside MiniLM for each sentence; nothing is remembered between questions."""
    words, seconds = sum(item.words for item in items), {}
    critic = _Timed.from_pretrained(folder, threads=1)
    count = CPRSEngine(critic).count_tokens
    methods: dict[str, Method] = {"cprs": Ours(CPRSEngine(critic)), "MiniLM": by_scores(MiniLM(threads=1).cosines, count)}
    for name, method in methods.items():
        kept(method, items[-1], 0.1)
        critic.inside, critic.tokens = (0.0, 0) if name == "cprs" else (critic.inside, critic.tokens)
        began = time.process_time()
        for item in items:
            kept(method, item, 0.1)
        seconds[name] = time.process_time() - began
    per_words = {name: 1000 * value / words for name, value in seconds.items()}
    yield (
        f"CPU seconds per 1,000 words, one thread: {per_words['cprs']:.3f}; "
        f"MiniLM int8 for each sentence {per_words['MiniLM']:.3f}; ratio {seconds['cprs'] / seconds['MiniLM']:.2f} (goal 0.65)"
    )
    overhead = 1e6 * (seconds["cprs"] - critic.inside) / critic.tokens
    yield f"engine beside the forward pass: {overhead:.1f} microseconds a token (goal 4.0)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with eval/ and haystack/")
    parser.add_argument("--items", type=int, default=500, help="of each set, where it has them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of sets, or: default, wordings, cost")
    parser.add_argument("--critic", help="folder of a critic; default: the shipped one")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="which ones; default: all")
    parser.add_argument("--cache", type=Path, help="file of MiniLM's vectors, so that another run need not compute them again")
    options = parser.parse_args()
    engine = CPRSEngine.from_pretrained(options.critic)
    tools = Tools(engine.count_tokens, options.cache)
    methods = [name for name in METHODS if name in options.methods]
    baselines = {name: load_method(name, tools) for name in methods if name != OURS}

    def wanted(name: str) -> bool:
        return not options.only or any(name.startswith(start) for start in options.only)

    print(
        f"{'set':<24}{'items':>5}{'kept':>7}"
        + "".join(f"{name[:8]:>9}" for name in methods)
        + ("  goal" if OURS in methods else "")
    )
    for task in all_goals(options.data, options.items, options.seed, wanted):
        for line in report(task, engine, baselines, OURS in methods):
            print(line, flush=True)
    questions = squad(options.data, options.items, options.seed)
    if OURS not in methods:
        return
    if wanted("default"):
        print(default_threshold(engine, questions), flush=True)
    if wanted("wordings"):
        for line in granularities(engine, questions, max(2, options.items // 50)):
            print(line, flush=True)
    if wanted("cost"):
        for line in cost(options.critic, questions[:50]):
            print(line, flush=True)


if __name__ == "__main__":
    main()
