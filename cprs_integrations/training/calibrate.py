"""Calibrate a critic: `python -m cprs_integrations.training.calibrate --model DIR --data DIR`.

Uses the fiftieth of the training texts that is held out from training, each with other texts of its source around it. Two
logistic regressions say how the critic's scores and shared words go together: one for units that the critic reads, one, of
Chinese questions, for units that it cannot read. The default threshold is the one that compresses most of those that still
keep a given share of the evidence.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cprs_integrations.critics.mini import MiniCritic
from cprs_integrations.engine import CPRSEngine
from cprs_integrations.lexical import Blend, Blends, SharedWords, best_around
from cprs_integrations.training.examples import Example, read_examples

READ = {
    "squadshifts_wiki": 7_359,
    "squadshifts_reddit": 9_173,
    "squadshifts_amazon": 9_238,
    "squad_train_small": 997,
    "selqa": 1_130,
}
UNREAD = {"cmrc2018_zh": 4_219, "drcd_zh": 7_017}
NEIGHBOURS = 9
_FEWEST = 20
_COLUMNS = ("critic", "shared", "critic_around", "shared_around", "critic_best")
_WITHOUT = 0.25  # share of the contexts whose own text is left out: there nothing is worth keeping

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sheet:
    """What is known of the units of some contexts.

    Attributes:
        features: [units, 5] the parts of a `Blend`.
        truth: [units] whether a unit holds evidence.
        lengths: [units] its characters.
        contexts: [units] the context it belongs to.
    """

    features: Floats
    truth: npt.NDArray[np.bool_]
    lengths: npt.NDArray[np.int64]
    contexts: npt.NDArray[np.int64]

    def kept(self, scores: Floats, threshold: float) -> tuple[float, float]:
        """Of the contexts with evidence: the share that keeps some above the threshold, and how much is compressed."""
        answered = np.isin(self.contexts, self.contexts[self.truth])
        lengths, kept = self.lengths[answered], self.lengths[answered & (scores >= threshold)]
        return float((self.best(scores) >= threshold).mean()), float(lengths.sum() / max(1, kept.sum()))

    def best(self, scores: Floats) -> Floats:
        """The best score of a unit with evidence, for each context that has one."""
        found = np.full(int(self.contexts.max()) + 1, -1.0)
        np.maximum.at(found, self.contexts[self.truth], scores[self.truth])
        return found[found >= 0]


def contexts(examples: Sequence[Example], count: int, seed: int = 0) -> Iterator[tuple[Example, list[str]]]:
    """Draw held-out examples, each with texts of its source that are not its own and hold no answer: its own comes first.

    Where few are held out, all are drawn from: a threshold of some kind is better than one of chance.
    """
    rng = np.random.default_rng(seed)
    alone = [index for index, example in enumerate(examples) if len(example.documents) == 1]
    held_out = [index for index in alone if examples[index].is_held_out]
    if len(held_out) < _FEWEST:
        held_out = alone
    for place in rng.permutation(len(held_out))[:count]:
        index = held_out[place]
        document = examples[index].documents[0]
        answers = [document.text[start:end].lower() for start, end in document.answers if end - start > 2]
        texts = [document.text]
        for other in examples[max(0, index - 60) : index + 60]:
            text = other.documents[0].text
            if other.source != examples[index].source or text in texts or any(answer in text.lower() for answer in answers):
                continue
            if len(texts) <= NEIGHBOURS:
                texts.append(text)
        yield examples[index], texts


def survey(critic: MiniCritic, examples: Sequence[Example], count: int) -> Sheet:
    """Score contexts with the critic alone, and count shared words."""
    alone = Blends(Blend(), Blend())
    plain = MiniCritic(critic.session, critic.tokenizer, critic.config | {"threshold": 0.5, "blends": asdict(alone)})
    engine = CPRSEngine(plain)
    parts = []
    rng = np.random.default_rng(1)
    for number, (example, texts) in enumerate(contexts(examples, count)):
        without = len(texts) > 1 and rng.random() < _WITHOUT
        scored = engine.score(texts[without:], example.question)
        truth = np.zeros(len(scored.scores), dtype=bool)
        for start, end in () if without else example.documents[0].evidence:
            truth |= (scored.starts < end) & (scored.ends > start)
        shared = SharedWords(example.question)
        shared.add([scored.context.slice(start, end) for start, end in zip(scored.starts, scored.ends, strict=True)])
        shares = shared.shares(np.diff(scored.borders)).astype(np.float64)
        score = np.clip(scored.scores.astype(np.float64), 1e-6, 1 - 1e-6)
        odds = np.log(score / (1 - score))
        around = (best_around(odds, scored.documents), best_around(shares, scored.documents))
        features = np.stack((odds, shares, *around, np.full(len(odds), odds.max(initial=0.0))), axis=1)
        parts.append((features, truth, scored.ends - scored.starts, np.full(len(truth), number)))
    return Sheet(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def fit(sheet: Sheet, columns: Sequence[str], steps: int = 30) -> Blend:
    """Fit a logistic regression by Newton's method, with a little weight decay; columns left out weigh nothing."""
    chosen = [_COLUMNS.index(name) for name in columns]
    inputs = np.concatenate((np.ones((len(sheet.truth), 1)), sheet.features[:, chosen]), axis=1)
    weights = np.zeros(inputs.shape[1])
    for _ in range(steps):
        chance = 1 / (1 + np.exp(-inputs @ weights))
        slope = inputs.T @ (chance - sheet.truth) + weights
        curve = (inputs * (chance * (1 - chance))[:, None]).T @ inputs + np.eye(len(weights))
        weights -= np.linalg.solve(curve, slope)
    found = dict(zip(("bias", *columns), (round(float(weight), 4) for weight in weights), strict=True))
    return Blend(**{"critic": 0.0, **found})


def scores(sheet: Sheet, blend: Blend) -> Floats:
    """Probability of each unit by a blend."""
    odds = blend.bias + sheet.features @ np.array([getattr(blend, name) for name in _COLUMNS])
    chances: Floats = 1 / (1 + np.exp(-odds))
    return chances


def threshold(sheet: Sheet, found: Floats, keep: float) -> float:
    """The largest threshold that keeps evidence in a share `keep` of the contexts."""
    return round(float(np.quantile(sheet.best(found), 1 - keep)), 4)


def table(sheet: Sheet, found: Floats) -> Iterator[str]:
    """Yield a reliability table: scores by bins, beside the share of units that do hold evidence."""
    yield "score      units  mean score  with evidence"
    for low, high in pairwise(_BINS):
        chosen = (found >= low) & (found < high)
        if chosen.any():
            yield f"{low:.2f}-{high:.2f}{chosen.sum():>7}{found[chosen].mean():>12.3f}{sheet.truth[chosen].mean():>15.3f}"


_BINS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.01)


def calibrate(
    model: Path, data: Path, read: dict[str, int], unread: dict[str, int], *, items: int = 500, keep: float = 0.95
) -> str:
    """Fit blends and threshold to held-out texts, write them into config.json of the model folder, and return a report.

    Args:
        model: the model folder.
        data: folder of training sets.
        read: items taken from each set that the critic can read; empty: all of every set.
        unread: items of sets that it cannot read; empty: the blend for such text stays as it is.
        items: contexts to score.
        keep: share of the contexts whose evidence the threshold must keep.
    """
    critic = MiniCritic.from_pretrained(model)
    sheet = survey(critic, read_examples(data, read), items)
    blend = fit(sheet, _COLUMNS)
    chosen = threshold(sheet, scores(sheet, blend), keep)
    parts = [("read", blend, sheet)]
    if unread:
        sheet = survey(critic, read_examples(data, unread), items // 2)
        parts.append(("unread", fit(sheet, ("shared", "shared_around")), sheet))
    path = model / "config.json"
    config = json.loads(path.read_text())
    lines = [f"threshold {chosen}"]
    for name, blend, sheet in parts:
        config["blends"][name] = asdict(blend)
        kept, compression = sheet.kept(scores(sheet, blend), chosen)
        lines += [f"{name}: {blend}", f"  evidence kept in {kept:.3f} of contexts, compression {compression:.1f}x"]
        lines += [f"  {line}" for line in table(sheet, scores(sheet, blend))]
    path.write_text(json.dumps(config | {"threshold": chosen}, indent=1) + "\n")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the module as a script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="model folder; its config.json gets blends and threshold")
    parser.add_argument("--data", type=Path, required=True, help="folder of training sets (.jsonl.gz)")
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--keep", type=float, default=0.95, help="share of contexts whose evidence the threshold must keep")
    options = parser.parse_args()
    sys.stdout.write(calibrate(options.model, options.data, READ, UNREAD, items=options.items, keep=options.keep))


if __name__ == "__main__":
    main()
