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
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from cprs_integrations.critics.tokenizing import plain_tokenizer
from cprs_integrations.training.examples import read_examples, read_haystack
from cprs_integrations.training.model import OUTSIDE, MiniModel
from cprs_integrations.training.teacher import teach
from cprs_integrations.training.windows import GRANULARITIES, IGNORED, TrainingWindow, WindowMaker

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
        companions: share of the questions that come with a second window, without evidence.
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
    companions: float = 0.5
    seed: int = 0
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
    maker = WindowMaker(examples, tokenizer, recipe.size, haystack=straw, companion_share=recipe.companions)
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
            state = torch.load(start, map_location=device, weights_only=True)
        else:
            return
        # what the other run did not have keeps its first values
        self.model.load_state_dict({**self.model.state_dict(), **state["model"]})

    def learn(self, batch: dict[str, Tensor], device: str) -> float:
        self.model.train()
        with torch.autocast(device, torch.bfloat16):
            hidden = self.model.hidden(batch["ids"], batch["mask"])
            logits, cosines, asked = self.model.head(hidden), self.model.similarity(hidden), self.model.asked(hidden[:, 0])
        loss = critic_loss(logits.float(), cosines.float()[..., 0], batch, self.recipe)
        loss = loss + self.recipe.asked_loss * functional.cross_entropy(asked.float(), batch["wanted"])
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


def critic_loss(logits: Tensor, cosines: Tensor, batch: dict[str, Tensor], recipe: Recipe) -> Tensor:
    """What the critic learns from, all of it as the engine will use it.

    - Cross-entropy of the tags.
    - `unit_loss`: binary cross-entropy of each unit's mean log-odds, the score by which the engine ranks units.
    - `rank_loss`: of a question's sentences, in both its windows, one with evidence must come first (a softmax over them).
    - `cosine_loss`: squared error of the cosine that MiniLM gives each unit, in `_COSINE`ths.

    Args:
        logits: [windows, tokens, 4] of B, I, O, E.
        cosines: [windows, tokens] prediction of the unit's cosine; its mean over the unit counts.
        batch: of `collate`.
        recipe: the weights of the losses.
    """
    loss = functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), ignore_index=IGNORED)
    count, chosen = len(batch["group"]), batch["units"] >= 0
    owner = batch["units"][chosen]
    sizes = torch.bincount(owner, minlength=count).clamp(min=1)

    def means(values: Tensor) -> Tensor:
        return torch.zeros(count, device=logits.device).index_add(0, owner, values[chosen].float()) / sizes

    score = means(torch.logsumexp(logits[..., [0, 1, 3]], dim=-1) - logits[..., OUTSIDE])
    truth = means(batch["targets"] != OUTSIDE) > 0.5
    whole = batch["asked"] > 0
    if whole.any():
        loss = loss + recipe.unit_loss * functional.binary_cross_entropy_with_logits(score[whole], truth[whole].float())
    ranked = batch["asked"] == 1
    groups = int(batch["group"].max()) + 1 if count else 0
    best, right = (_log_sums(score, batch["group"], chosen_units, groups) for chosen_units in (ranked, ranked & truth))
    if (answered := torch.isfinite(right)).any():
        loss = loss + recipe.rank_loss * (best - right)[answered].mean()
    if (known := torch.isfinite(batch["cosine"])).any():
        error = means(cosines)[known] - batch["cosine"][known] / _COSINE
        loss = loss + recipe.cosine_loss * error.square().mean()
    return loss


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
        `ids`, `mask`, `targets` and `units` [windows, tokens]; of each window what is `wanted` of it (0: keywords,
        1: sentences, 2: paragraphs); of each unit its `group` (question), what is `asked` of its window, and its `cosine`,
        NaN if unknown.
    """
    windows = [(number, window) for number, group in enumerate(groups) for window in group]
    length = max(len(window.ids) for _, window in windows)
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "ids": np.zeros((len(windows), length), dtype=np.int64),
        "mask": np.zeros((len(windows), length), dtype=np.int64),
        "targets": np.full((len(windows), length), IGNORED, dtype=np.int64),
        "units": np.full((len(windows), length), -1, dtype=np.int64),
    }
    wanted = [GRANULARITIES.index(window.granularity) for _, window in windows]
    owners: list[int] = []
    asked: list[int] = []
    cosines: list[float] = []
    for row, (number, window) in enumerate(windows):
        size = len(window.ids)
        arrays["ids"][row, :size] = window.ids
        arrays["mask"][row, :size] = 1
        arrays["targets"][row, :size] = window.targets
        arrays["units"][row, :size] = np.where(window.units >= 0, window.units + len(owners), -1)
        first = np.unique(window.units, return_index=True)[1][int(window.units.min() < 0) :]
        owners.extend([number] * len(first))
        asked.extend([wanted[row]] * len(first))
        cosines.extend(window.cosines[first])
    arrays |= {"group": np.array(owners, dtype=np.int64), "asked": np.array(asked, dtype=np.int64)}
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
