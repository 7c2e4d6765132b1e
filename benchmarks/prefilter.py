"""What a prefilter would miss: the evidence that lies in windows it leaves unread, for several shares of windows to read.

    python benchmarks/prefilter.py --data DIR [--tokens 131072] [--items 20] [--shares 0.02 0.05 0.1 0.2]

Nothing is read by the critic here: a window that is not chosen is lost for sure, and one that is chosen is read as ever, so
the figures are the most that retention can lose. The time is that of choosing; reading takes its share of a whole reading.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from cprs_integrations import CPRSEngine
from cprs_integrations.engine import Job
from cprs_integrations.evaluation.haystack import Haystack
from cprs_integrations.evaluation.items import Item
from cprs_integrations.evaluation.tasks import load_task
from cprs_integrations.prefilter import worth_reading

TASKS = [
    "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3",
    "niah_multivalue", "niah_multiquery", "kv_retrieval", "qa_1", "qa_2", "vt",
]  # fmt: skip


def found(job: Job, item: Item, shares: list[float]) -> tuple[list[float], float]:
    """For each share: how much of the evidence is in windows that are read; and the seconds a token that choosing took."""
    began = time.perf_counter()
    windows = [(w.pieces[0].unit, w.pieces[-1].unit, len(w.rows), w.start) for w in job.windows()]
    firsts, lasts, sizes, starts = np.array(windows).T
    chosen = [worth_reading(job.ledger.shared, firsts, lasts, sizes, share) for share in shares]
    seconds = time.perf_counter() - began
    tokens = job.ledger.token_starts.array[: job.ledger.token_starts.length]
    places = np.array([job.context.starts[document] + start for document, start, _ in item.evidence])
    holding = np.searchsorted(starts, np.searchsorted(tokens, places, side="right") - 1, side="right") - 1
    return [float(is_read[holding].mean()) for is_read in chosen], seconds / len(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with eval/ and haystack/")
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--items", type=int, default=20)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.02, 0.05, 0.1, 0.2])
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    options = parser.parse_args()
    engine = CPRSEngine.from_pretrained()
    haystack = Haystack.of(options.data / "haystack")
    print("evidence in the windows that are read", *(f"{share:>6.0%}" for share in options.shares), " us/token")
    for name in options.tasks:
        task = load_task(name, haystack, engine.count_tokens, options.data, 0)
        rows, times = [], []
        for number in task.numbers(options.items):
            item = task.item(number, options.tokens, 0)
            # every window is cut and none is read: the first half of what a prefilter does
            row, seconds = found(engine.job(item.documents, item.question, prefilter=1.0), item, options.shares)
            rows.append(row)
            times.append(seconds)
        print(f"{name:<37}", *(f"{value:6.3f}" for value in np.mean(rows, axis=0)), f"{1e6 * np.mean(times):9.1f}", flush=True)


if __name__ == "__main__":
    main()
