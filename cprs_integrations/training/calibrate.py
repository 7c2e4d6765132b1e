"""Calibrate a critic: `python -m cprs_integrations.training.calibrate --model DIR --data DIR`.

Uses the fiftieth of the training texts that is held out from training, each with other texts of its source around it. Two
logistic regressions say how the critic's scores and shared words go together: one for units that the critic reads, one, of
Chinese questions, for units that it cannot read; a third joins the second reading of the best units. The default threshold is
the one that compresses most of those that still keep a given share of the evidence. How much names count that lead from the
best units to others is no matter of chance: the held-out questions need no second step. It is set beforehand, and the
regression works around it.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cprs_integrations.bridges import bridges
from cprs_integrations.context import LongContext
from cprs_integrations.critics.mini import MiniCritic
from cprs_integrations.engine import CPRSEngine
from cprs_integrations.examples import Example, read_examples
from cprs_integrations.ledger import Answer
from cprs_integrations.lexical import Blend, Blends, Joint, SharedWords, best_around
from cprs_integrations.rereading import second_window
from cprs_integrations.windows import Prompt

READ = {
    "squadshifts_wiki": 7_359,
    "squadshifts_reddit": 9_173,
    "squadshifts_amazon": 9_238,
    "squad_train_small": 997,
    "selqa": 1_130,
}
UNREAD = {"cmrc2018_zh": 4_219, "drcd_zh": 7_017}
NEIGHBOURS = 9
CALIBRATION = 500
BRIDGE = 1.0
_FEWEST = 20
_ROUNDS = 3
_STEPS = 30  # of Newton's method
_COLUMNS = ("critic", "shared", "critic_around", "shared_around", "critic_best")
_WITHOUT = 0.25  # share of the contexts whose own text is left out: there nothing is worth keeping

Floats = npt.NDArray[np.float64]


class Page(NamedTuple):
    """A context with its question, and where its units are."""

    context: LongContext
    prompt: Prompt
    documents: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int32]

    def bridges(self, scores: Floats) -> Floats:
        """What each unit holds of the names in the best units of other documents."""
        return bridges(self.context, self.prompt.query, self.documents, self.starts, scores).astype(np.float64)

    def reread(self, critic: MiniCritic, odds: Floats, size: int) -> tuple[npt.NDArray[np.int64], Floats]:
        """Have the best units read once more; return which these are, and the critic's log-odds of each."""
        window = second_window(critic, self.context, self.prompt, self.starts, self.ends, odds, size)
        if window is None:
            return np.zeros(0, np.int64), np.zeros(0)
        units = np.array([piece.unit for piece in window.pieces])
        return units, Answer.of(window, critic.score_window(window), "the critic").units


@dataclass(frozen=True)
class Sheet:
    """What is known of the units of some contexts.

    Attributes:
        features: [units, 5] the parts of a `Blend`.
        truth: [units] whether a unit holds evidence.
        lengths: [units] its characters.
        contexts: [units] the context it belongs to.
        pages: each context once more.
    """

    features: Floats
    truth: npt.NDArray[np.bool_]
    lengths: npt.NDArray[np.int64]
    contexts: npt.NDArray[np.int64]
    pages: tuple[Page, ...]

    def bridges(self, scores: Floats) -> Floats:
        """What each unit holds of the names in the best units of other documents."""
        return np.concatenate([page.bridges(part) for page, part in zip(self.pages, self._parts(scores), strict=True)])

    def reread(self, critic: MiniCritic, odds: Floats, size: int) -> "Reread":
        """Have the best units of each context read once more."""
        parts = self._parts(odds)
        found = [page.reread(critic, part, size) for page, part in zip(self.pages, parts, strict=True)]
        bases = np.cumsum([0, *map(len, parts)])
        units = [base + units for base, (units, _) in zip(bases, found, strict=False)]
        first = [part[units] for part, (units, _) in zip(parts, found, strict=True)]
        again = [odds for _, odds in found]
        columns = [np.concatenate(first), np.concatenate(again)]
        columns += [np.concatenate([np.full(len(o), o.max(initial=-np.inf)) for o in each]) for each in (first, again)]
        return Reread(np.concatenate(units), np.stack(columns, axis=1))

    def _parts(self, values: Floats) -> list[Floats]:
        """What belongs to each context."""
        return np.split(values, np.flatnonzero(np.diff(self.contexts)) + 1)

    def kept(self, scores: Floats, threshold: float) -> tuple[float, float]:
        """Of the contexts with evidence: the share that keeps some above the threshold, and how much is compressed."""
        answered = np.isin(self.contexts, self.contexts[self.truth])
        lengths, kept = self.lengths[answered], self.lengths[answered & (scores >= threshold)]
        return float((self.best(scores) >= threshold).mean()), float(lengths.sum() / max(1, kept.sum()))

    def emptied(self, scores: Floats, threshold: float) -> float:
        """The share of the documents without evidence of which nothing reaches the threshold."""
        documents = np.concatenate([page.documents for page in self.pages])
        _, document = np.unique(np.stack((self.contexts, documents)), axis=1, return_inverse=True)
        marked, shown = (np.bincount(document, chosen) > 0 for chosen in (self.truth, scores >= threshold))
        return float(1 - shown[~marked].mean())

    def best(self, scores: Floats) -> Floats:
        """The best score of a unit with evidence, for each context that has one."""
        found = np.full(int(self.contexts.max()) + 1, -1.0)
        np.maximum.at(found, self.contexts[self.truth], scores[self.truth])
        return found[found >= 0]


class Reread(NamedTuple):
    """What came of second readings: which units were read again, and the parts [units, 4] of their `Joint`."""

    units: npt.NDArray[np.int64]
    features: Floats


def contexts(examples: Sequence[Example], count: int, seed: int = 0) -> Iterator[tuple[Example, list[str]]]:
    """Draw held-out examples, each with texts of its source that hold none of its answers and evidence: its own comes first.

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
        marks = document.marks()
        texts = [document.text]
        for other in examples[max(0, index - 60) : index + 60]:
            text = other.documents[0].text
            if other.source != examples[index].source or text in texts or any(mark in text.lower() for mark in marks):
                continue
            if len(texts) <= NEIGHBOURS:
                texts.append(text)
        yield examples[index], texts


def survey(critic: MiniCritic, examples: Sequence[Example], count: int) -> Sheet:
    """Score contexts with the critic alone, and count shared words."""
    alone = Blends(Blend(), Blend())
    pages = []
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
        pages.append(Page(scored.context, scored.prompt, scored.documents, scored.starts, scored.ends))
    features, truth, lengths, numbers = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Sheet(features, truth, lengths, numbers, tuple(pages))


def fit(sheet: Sheet, columns: Sequence[str], given: Floats | float = 0.0) -> Blend:
    """Fit a blend.

    Args:
        sheet: what to fit to.
        columns: the parts that weigh something.
        given: [units] log-odds that are added whatever the parts say.
    """
    chosen = [_COLUMNS.index(name) for name in columns]
    found = dict(zip(("bias", *columns), _regression(sheet.features[:, chosen], sheet.truth, given), strict=True))
    return Blend(**{"critic": 0.0, **found})


def _regression(features: Floats, truth: npt.NDArray[np.bool_], given: Floats | float = 0.0) -> list[float]:
    """Bias and weights of a logistic regression, by Newton's method, with a little weight decay."""
    inputs = np.concatenate((np.ones((len(truth), 1)), features), axis=1)
    weights = np.zeros(inputs.shape[1])
    for _ in range(_STEPS):
        chance = _chances(inputs @ weights + given)
        slope = inputs.T @ (chance - truth) + weights
        curve = (inputs * (chance * (1 - chance))[:, None]).T @ inputs + np.eye(len(weights))
        weights -= np.linalg.solve(curve, slope)
    return [round(float(weight), 4) for weight in weights]


def _chances(odds: Floats) -> Floats:
    chances: Floats = 1 / (1 + np.exp(-odds))
    return chances


def blended(sheet: Sheet, blend: Blend, given: Floats | float = 0.0) -> Floats:
    """Log-odds of each unit by a blend, and those that are added to it."""
    odds: Floats = blend.bias + sheet.features @ np.array([getattr(blend, name) for name in _COLUMNS]) + given
    return odds


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


def choices(sheet: Sheet, found: Floats) -> Iterator[str]:
    """Yield what thresholds would do: evidence kept, compression, documents without evidence that come back empty."""
    yield "threshold  evidence kept  compression  empty"
    for keep in (0.8, 0.85, 0.9, 0.925, 0.95, 0.975):
        level = threshold(sheet, found, keep)
        kept, compression = sheet.kept(found, level)
        yield f"{level:9.4f}{kept:15.3f}{compression:12.1f}x{sheet.emptied(found, level):7.3f}"


_BINS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.01)


def calibrate(
    model: Path, data: Path, read: dict[str, int], unread: dict[str, int], *, items: int = CALIBRATION, keep: float = 0.93
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
    blend, odds = _fitted(sheet, _COLUMNS)
    joint = None
    if second := critic.config["second"]:
        again = sheet.reread(critic, odds, second)
        joint = Joint(second, *_regression(again.features, sheet.truth[again.units]))
        odds[again.units] = joint.bias + again.features @ np.array(astuple(joint)[2:])
    parts = [("read", sheet, blend, _chances(odds))]
    chosen = threshold(sheet, parts[0][-1], keep)
    if unread:
        sheet = survey(critic, read_examples(data, unread), items // 2)
        blend, odds = _fitted(sheet, ("shared", "shared_around"))
        parts.append(("unread", sheet, blend, _chances(odds)))
    path = model / "config.json"
    config = json.loads(path.read_text())
    config["blends"] |= {"bridge": BRIDGE, "reread": joint and asdict(joint)}
    lines = [f"threshold {chosen}", f"second reading: {joint}", *choices(parts[0][1], parts[0][-1])]
    for name, sheet, blend, found in parts:
        config["blends"][name] = asdict(blend)
        kept, compression = sheet.kept(found, chosen)
        lines += [f"{name}: {blend}", f"  evidence kept in {kept:.3f} of contexts, compression {compression:.1f}x"]
        lines += [f"  {line}" for line in table(sheet, found)]
    path.write_text(json.dumps(config | {"threshold": chosen}, indent=1) + "\n")
    return "\n".join(lines) + "\n"


def _fitted(sheet: Sheet, columns: Sequence[str]) -> tuple[Blend, Floats]:
    """Fit a blend around the bridges, which depend on it: a few rounds settle both. Returns log-odds of each unit, too."""
    blend, given = fit(sheet, columns), np.zeros(len(sheet.truth))
    for _ in range(_ROUNDS):
        given = BRIDGE * sheet.bridges(_chances(blended(sheet, blend)))
        blend = fit(sheet, columns, given)
    return blend, blended(sheet, blend, BRIDGE * sheet.bridges(_chances(blended(sheet, blend))))


def main() -> None:
    """Run the module as a script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="model folder; its config.json gets blends and threshold")
    parser.add_argument("--data", type=Path, required=True, help="folder of training sets (.jsonl.gz)")
    parser.add_argument("--items", type=int, default=CALIBRATION)
    parser.add_argument("--keep", type=float, default=0.93, help="share of contexts whose evidence the threshold must keep")
    options = parser.parse_args()
    sys.stdout.write(calibrate(options.model, options.data, READ, UNREAD, items=options.items, keep=options.keep))


if __name__ == "__main__":
    main()
