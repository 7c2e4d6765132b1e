"""Train the small critic.

A run writes its recipe, its log and one resumable checkpoint to its folder; started again with the same folder it goes on
where it was. `cprs train` does that, and makes a model folder of what comes out (`training.pipeline`).
"""

import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from cprs_integrations.critics.tokenizing import plain_tokenizer
from cprs_integrations.examples import read_examples, read_haystack
from cprs_integrations.training.model import OUTSIDE, MiniModel, Readings, kept_odds, mixed_precision
from cprs_integrations.training.targets import IGNORED
from cprs_integrations.training.teacher import teach
from cprs_integrations.training.windows import GRANULARITIES, TrainingWindow, WindowMaker

Group = list[TrainingWindow]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, besides the data.

    Attributes:
        steps: of the optimizer.
        batch: questions a step; each brings one window or, with its companion, two.
        size: tokens of a window at most.
        rate: learning rate of the heads, at its highest.
        layer_decay: factor of the rate from each layer to the one below.
        warmup: share of the steps in which the rate rises.
        steady: share of the steps, after the warm-up, in which it stays; then it falls to nearly nothing.
        frozen: lowest layers that keep their weights, the embeddings with them; 0: only the embeddings of words do.
        unit_loss, rank_loss, cosine_loss: weights of the losses beside that of the tags; see `critic_loss`.
        asked_loss: weight of the loss of telling what the instruction asks for.
        words_loss: weight of the loss of the words that answer.
        companions: share of the questions that come with a second window, without evidence.
        second: share of the questions whose window is that of a second reading; 0: the critic will not read twice.
        emphasis: sources drawn so many times as often as others.
        seed: of the weights' and the windows' chance.
        taught: sources of short texts on which MiniLM teaches its cosines.
        shares: items taken from each source; empty: all of every source.
    """

    steps: int = 1_800
    batch: int = 32
    size: int = 256
    rate: float = 2e-4
    layer_decay: float = 0.85
    warmup: float = 0.06
    steady: float = 0.0
    frozen: int = 0
    unit_loss: float = 1.0
    rank_loss: float = 0.5
    cosine_loss: float = 0.3
    asked_loss: float = 0.2
    words_loss: float = 0.5
    companions: float = 0.5
    second: float = 0.0
    seed: int = 0
    emphasis: dict[str, int] = field(default_factory=dict)
    taught: list[str] = field(default_factory=list)
    shares: dict[str, int] = field(default_factory=dict)


def train(
    recipe: Recipe, data: Path, minilm: Path, out: Path, device: str = "cpu", start: Path | None = None,
    haystack: Path | None = None, show_progress: bool = False,
) -> MiniModel:  # fmt: skip
    """Train, or go on training, the critic of a run.

    Args:
        recipe: everything that decides the weights, besides the data.
        data: folder of training sets.
        minilm: folder of all-MiniLM-L6-v2.
        out: folder of the run; its checkpoint, if there is one, is taken up again.
        device: where to train.
        start: checkpoint of another run whose weights this one begins with.
        haystack: folder of long texts to hide look-up tasks in.
        show_progress: show a progress bar.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.json").write_text(json.dumps(dataclasses.asdict(recipe), indent=1) + "\n")
    torch.manual_seed(recipe.seed)
    tokenizer = load_tokenizer(minilm)
    examples = [example for example in read_examples(data, recipe.shares, recipe.seed) if not example.is_held_out]
    straw = read_haystack(haystack) if haystack else []
    maker = WindowMaker(
        examples, tokenizer, recipe.size, haystack=straw, companion_share=recipe.companions, emphasis=recipe.emphasis,
        second_share=recipe.second,
    )  # fmt: skip
    if recipe.taught:
        maker.teacher = teach(examples, recipe.taught, maker.read, tokenizer, minilm, out / "teacher.npz", device)
    run = _Run(MiniModel.from_minilm(minilm, tokenizer.token_to_id("[SEP]")).to(device), recipe, out)
    run.model.rarity.copy_(torch.from_numpy(maker.rarity()))
    run.take_up(device, start)
    batches: list[list[Group]] = []
    bar = tqdm(total=recipe.steps, initial=run.step, unit="step", desc="train", disable=not show_progress)
    with (out / "log.jsonl").open("a") as log, bar as progress:
        began, tokens, losses = time.perf_counter(), 0, []
        while run.step < recipe.steps:
            if not batches or run.step % _BLOCK == 0:
                batches = _draw_batches(maker, recipe, run.step // _BLOCK)
            batch = collate(batches[run.step % _BLOCK], device)
            losses.append(run.learn(batch, device))
            tokens += int(batch["mask"].sum())
            progress.update()
            if run.step % _LOG_EVERY == 0:
                speed = tokens / (time.perf_counter() - began)
                log.write(json.dumps({"step": run.step, "loss": float(np.mean(losses)), "tokens_per_second": speed}) + "\n")
                log.flush()
                losses = []
            if run.step % _SAVE_EVERY == 0 or run.step == recipe.steps:
                run.save()
    return run.model.eval()


class _Run:
    """A model with all that its training has to remember."""

    def __init__(self, model: MiniModel, recipe: Recipe, out: Path) -> None:
        self.model, self.recipe, self.step = model, recipe, 0
        model.freeze(recipe.frozen)
        self.optimizer = torch.optim.AdamW(_groups(model, recipe), weight_decay=0.01)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: _rate(step, recipe))
        self.checkpoint = out / "checkpoint.pt"

    def take_up(self, device: str, start: Path | None) -> None:
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, map_location=device, weights_only=True)
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.step = state["step"]
        elif start is not None:
            kept = start.suffix == ".safetensors"
            state = {"model": load_file(start)} if kept else torch.load(start, map_location=device, weights_only=True)
        else:
            return
        # what the other run did not have keeps its first values
        self.model.load_state_dict({**self.model.state_dict(), **state["model"]})

    def learn(self, batch: dict[str, Tensor], device: str) -> float:
        self.model.train()
        with mixed_precision(device):
            readings = self.model(batch["ids"], batch["mask"])
        loss = critic_loss(Readings(*(reading.float() for reading in readings)), batch, self.recipe)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        return loss.item()

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        new = self.checkpoint.with_suffix(".new")
        torch.save({**state, "schedule": self.schedule.state_dict(), "step": self.step}, new)
        new.replace(self.checkpoint)


_BLOCK = 8  # batches drawn at once and sorted by length, so that little is padded
_LOG_EVERY, _SAVE_EVERY = 20, 100  # steps


def _draw_batches(maker: WindowMaker, recipe: Recipe, block: int) -> list[list[Group]]:
    rng = np.random.default_rng([recipe.seed, block])
    groups = sorted((maker.draw(rng) for _ in range(_BLOCK * recipe.batch)), key=lambda group: max(len(w.ids) for w in group))
    return [groups[place * recipe.batch : (place + 1) * recipe.batch] for place in rng.permutation(_BLOCK)]


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read MiniLM's tokenizer so that control tokens in a text are plain text."""
    return plain_tokenizer((folder / "tokenizer.json").read_text(encoding="utf-8"))


def critic_loss(readings: Readings, batch: dict[str, Tensor], recipe: Recipe) -> Tensor:
    """What the critic learns from, all of it as the engine will use it.

    - Cross-entropy of the tags of sentences.
    - `unit_loss`: binary cross-entropy of each unit's mean log-odds, the score by which the engine ranks units.
    - `rank_loss`: each of a question's sentences with evidence must come before all those without, in both its windows.
    - `words_loss`: cross-entropy of the tags of words, and, in each unit with an answer, of the answer's words among the
      others (a softmax over them): which words of a sentence are meant, whatever the sentence is worth.
    - `cosine_loss`: squared error of the cosine that MiniLM gives each unit, in `_COSINE`ths.
    - `asked_loss`: cross-entropy of what the instruction asks for.

    Args:
        readings: of the model, in single precision.
        batch: of `collate`.
        recipe: the weights of the losses.
    """
    loss = _tag_loss(readings.sentences, batch["sentences"])
    loss = loss + recipe.asked_loss * functional.cross_entropy(readings.asked, batch["wanted"])
    count, chosen = len(batch["group"]), batch["units"] >= 0
    owner = batch["units"][chosen]
    sizes = torch.bincount(owner, minlength=count).clamp(min=1)

    def means(values: Tensor) -> Tensor:
        return torch.zeros(count, device=values.device).index_add(0, owner, values[chosen].float()) / sizes

    score, truth = means(kept_odds(readings.sentences)), means(batch["sentences"] != OUTSIDE) > 0.5
    loss = loss + recipe.unit_loss * functional.binary_cross_entropy_with_logits(score, truth.float())
    loss = loss + recipe.rank_loss * _rank_loss(score, batch["group"], truth, int(batch["group"].max()) + 1)
    tags = batch["words"][chosen]
    if (marked := tags != IGNORED).any():
        loss = loss + recipe.words_loss * _tag_loss(readings.words, batch["words"])
        inside = _choice_loss(kept_odds(readings.words)[chosen], owner, marked, marked & (tags != OUTSIDE), count)
        loss = loss + recipe.words_loss * inside
    if (known := torch.isfinite(batch["cosine"])).any():
        error = means(readings.similar)[known] - batch["cosine"][known] / _COSINE
        loss = loss + recipe.cosine_loss * error.square().mean()
    return loss


def _tag_loss(logits: Tensor, tags: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), tags.flatten(), ignore_index=IGNORED)


def _rank_loss(score: Tensor, group: Tensor, right: Tensor, groups: int) -> Tensor:
    """Of each right one, minus the log of its share beside all that are wrong; mean of each group, mean of the groups."""
    wrong = _log_sums(score, group, ~right, groups)
    owner = group[right]
    losses = functional.softplus(wrong[owner] - score[right])
    counts = torch.bincount(owner, minlength=groups)
    means = torch.zeros(groups, device=score.device).index_add(0, owner, losses) / counts.clamp(min=1)
    return means[counts > 0].mean() if len(owner) else score.new_zeros(())


def _choice_loss(odds: Tensor, group: Tensor, candidates: Tensor, right: Tensor, groups: int) -> Tensor:
    """In each group with something right: minus the log of its share among the candidates, by a softmax over them."""
    among, found = (_log_sums(odds, group, chosen, groups) for chosen in (candidates, right))
    answered = torch.isfinite(found)
    return (among - found)[answered].mean() if answered.any() else odds.new_zeros(())


_COSINE = 0.2  # about the spread of MiniLM's cosines


def _log_sums(score: Tensor, group: Tensor, chosen: Tensor, groups: int) -> Tensor:
    """Log of the summed exponentials of the chosen units of each group; -inf where a group has none."""
    top = torch.full((groups,), -torch.inf, device=score.device)
    top = top.scatter_reduce(0, group[chosen], score[chosen].detach(), "amax")
    level = torch.where(torch.isfinite(top), top, 0.0)
    sums = torch.zeros(groups, device=score.device).index_add(0, group[chosen], torch.exp(score[chosen] - level[group[chosen]]))
    return torch.where(torch.isfinite(top), torch.log(sums.clamp(min=1e-30)) + level, -torch.inf)


def collate(groups: list[Group], device: str) -> dict[str, Tensor]:
    """Pad the windows of some questions to one batch; units are numbered through it.

    Returns:
        `ids`, `mask`, `sentences`, `words` and `units` [windows, tokens]; of each window what is `wanted` of it
        (0: keywords, 1: sentences, 2: paragraphs); of each unit its `group` (question), and its `cosine`, NaN if unknown.
    """
    windows = [(number, window) for number, group in enumerate(groups) for window in group]
    length = max(len(window.ids) for _, window in windows)
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "ids": np.zeros((len(windows), length), dtype=np.int64),
        "mask": np.zeros((len(windows), length), dtype=np.int64),
        "sentences": np.full((len(windows), length), IGNORED, dtype=np.int64),
        "words": np.full((len(windows), length), IGNORED, dtype=np.int64),
        "units": np.full((len(windows), length), -1, dtype=np.int64),
    }
    wanted = [GRANULARITIES.index(window.granularity) for _, window in windows]
    owners: list[int] = []
    cosines: list[float] = []
    for row, (number, window) in enumerate(windows):
        size = len(window.ids)
        arrays["ids"][row, :size] = window.ids
        arrays["mask"][row, :size] = 1
        arrays["sentences"][row, :size] = window.sentences
        arrays["words"][row, :size] = window.words
        arrays["units"][row, :size] = np.where(window.units >= 0, window.units + len(owners), -1)
        first = np.unique(window.units, return_index=True)[1][int(window.units.min() < 0) :]
        owners.extend([number] * len(first))
        cosines.extend(window.cosines[first])
    arrays["group"] = np.array(owners, dtype=np.int64)
    arrays["wanted"] = np.array(wanted, dtype=np.int64)
    arrays["cosine"] = np.array(cosines, dtype=np.float32)
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def _groups(model: MiniModel, recipe: Recipe) -> list[dict[str, Any]]:
    """Lower layers learn more slowly: they hold what MiniLM knows of words."""
    layers = model.encoder.config.num_hidden_layers
    groups: dict[int, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or "pooler" in name:
            continue
        depth = int(name.split("layer.")[1].split(".")[0]) + 1 if "layer." in name else 0
        groups.setdefault(depth if name.startswith("encoder") else layers + 1, []).append(parameter)
    return [
        {"params": found, "lr": recipe.rate * recipe.layer_decay ** (layers + 1 - depth)} for depth, found in groups.items()
    ]


def _rate(step: int, recipe: Recipe) -> float:
    warm = max(1, int(recipe.steps * recipe.warmup))
    fall = warm + int(recipe.steps * recipe.steady)
    return min(1.0, (step + 1) / warm) * max(0.02, 1 - max(0, step - fall) / max(1, recipe.steps - fall))
