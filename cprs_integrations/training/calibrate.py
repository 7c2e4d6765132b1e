"""Choose the default threshold: `python -m cprs_integrations.training.calibrate --model DIR --data DIR [--write]`.

Uses the fiftieth of the training texts that is held out from training, each with other texts of its source around it. The
threshold is the largest that still keeps a given share of the units with evidence.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cprs_integrations.engine import CPRSEngine
from cprs_integrations.training.examples import Example, read_examples

SHARES = {"squadshifts_wiki": 7_359, "squadshifts_reddit": 9_173, "squadshifts_amazon": 9_238, "selqa": 1_130, "qamr": 9_000}
NEIGHBOURS = 9


def contexts(examples: list[Example], count: int, seed: int = 0) -> Iterator[tuple[Example, list[str]]]:
    """Draw held-out examples, each with texts of its source that are not its own: its own text comes first."""
    rng = np.random.default_rng(seed)
    held_out = [index for index, example in enumerate(examples) if example.is_held_out and len(example.documents) == 1]
    for place in rng.permutation(len(held_out))[:count]:
        index = held_out[place]
        texts = [examples[index].documents[0].text]
        for other in examples[max(0, index - 60) : index + 60]:
            text = other.documents[0].text
            if text not in texts and other.source == examples[index].source and len(texts) <= NEIGHBOURS:
                texts.append(text)
        yield examples[index], texts


def score_units(engine: CPRSEngine, examples: list[Example], count: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Score contexts; return for each the units' scores, whether they hold evidence, and their lengths."""
    found = []
    for example, texts in contexts(examples, count):
        scored = engine.score(texts, example.question)
        truth = np.zeros(len(scored.scores), dtype=bool)
        for start, end in example.documents[0].evidence:
            truth |= (scored.starts < end) & (scored.ends > start)
        found.append((scored.scores, truth, scored.ends - scored.starts))
    return found


def main() -> None:
    """Run the module as a script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="model folder; its config.json gets the threshold")
    parser.add_argument("--data", type=Path, required=True, help="folder of training sets (.jsonl.gz)")
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--keep", type=float, default=0.95, help="share of units with evidence that must be kept")
    parser.add_argument("--write", action="store_true", help="write the threshold into config.json")
    options = parser.parse_args()
    engine = CPRSEngine.from_pretrained(str(options.model))
    found = score_units(engine, read_examples(options.data, SHARES), options.items)
    best = np.array([scores[truth].max(initial=0.0) for scores, truth, _ in found])
    scores, truth, lengths = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    lines = ["threshold  evidence kept  compression  precision"]
    for threshold in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9):
        kept = scores >= threshold
        ratio = lengths.sum() / max(1, lengths[kept].sum())
        lines.append(f"{threshold:9.2f}  {(best >= threshold).mean():13.3f}  {ratio:11.1f}  {truth[kept].mean():9.3f}")
    lines.append("score bin  units  with evidence")
    for low in np.arange(0, 1, 0.1):
        chosen = (scores >= low) & (scores < low + 0.1)
        lines.append(
            f"{low:.1f}-{low + 0.1:.1f}  {chosen.sum():6d}  {truth[chosen].mean() if chosen.any() else float('nan'):.3f}"
        )
    threshold = round(float(np.quantile(best, 1 - options.keep)), 4)
    lines.append(f"threshold {threshold}")
    sys.stdout.write("\n".join(lines) + "\n")
    if options.write:
        config = json.loads((options.model / "config.json").read_text())
        (options.model / "config.json").write_text(json.dumps(config | {"threshold": threshold}, indent=1) + "\n")


if __name__ == "__main__":
    main()
