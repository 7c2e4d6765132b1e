"""Train the small critic: `python -m cprs_integrations.training.mini --data DIR --minilm DIR --out DIR`.

The run writes its recipe, its log and one resumable checkpoint to the folder `--out`; started again with the same folder it
goes on where it was. `cprs_integrations.training.export` makes the model folder that ships.
"""

import argparse
import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from cprs_integrations.critics.tokenizing import plain_tokenizer
from cprs_integrations.training.examples import read_examples
from cprs_integrations.training.model import OUTSIDE, MiniModel
from cprs_integrations.training.windows import IGNORED, TrainingWindow, WindowMaker

SHARES = {
    "squadshifts_wiki": 7_359, "squadshifts_reddit": 9_173, "squadshifts_amazon": 9_238, "squad_train_nqg": 11_808,
    "squad_train_small": 997, "qamr": 9_000, "fever": 4_000, "hotpotqa_train_evidence": 498, "hotpotqa_train_sample": 95,
    "musique_train_sample": 93, "medquad": 2_000, "cuad": 1_500, "evidence_inference": 1_200, "qmsum": 300, "covidqa": 1_075,
    "selqa": 1_130, "multispanqa": 606, "ropes": 500, "babi": 1_000,
}  # fmt: skip
"""Items taken from each training set; sets of few or easy questions count for little."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, besides the data."""

    steps: int = 1_800
    batch: int = 32
    size: int = 256
    rate: float = 2e-4
    layer_decay: float = 0.85
    warmup: float = 0.06
    unit_loss: float = 1.0
    seed: int = 0
    shares: dict[str, int] = field(default_factory=lambda: dict(SHARES))


def train(recipe: Recipe, data: Path, minilm: Path, out: Path, device: str = "cpu", start: Path | None = None) -> MiniModel:
    """Train, or go on training, the critic of a run.

    Args:
        recipe: everything that decides the weights, besides the data.
        data: folder of training sets.
        minilm: folder of all-MiniLM-L6-v2.
        out: folder of the run; its checkpoint, if there is one, is taken up again.
        device: where to train.
        start: checkpoint of another run whose weights this one begins with.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.json").write_text(json.dumps(dataclasses.asdict(recipe), indent=1) + "\n")
    torch.manual_seed(recipe.seed)
    tokenizer = load_tokenizer(minilm)
    examples = [example for example in read_examples(data, recipe.shares, recipe.seed) if not example.is_held_out]
    maker = WindowMaker(examples, tokenizer, recipe.size)
    run = _Run(MiniModel.from_minilm(minilm, tokenizer.token_to_id("[SEP]")).to(device), recipe, out)
    run.model.rarity.copy_(torch.from_numpy(maker.rarity()))
    run.take_up(device, start)
    batches: list[list[TrainingWindow]] = []
    with (out / "log.jsonl").open("a") as log:
        began, tokens, losses = time.perf_counter(), 0, []
        while run.step < recipe.steps:
            if not batches or run.step % _BLOCK == 0:
                batches = _draw_batches(maker, recipe, run.step // _BLOCK)
            batch = collate(batches[run.step % _BLOCK], device)
            losses.append(run.learn(batch, device))
            tokens += int(batch["mask"].sum())
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
        model.encoder.embeddings.word_embeddings.weight.requires_grad_(False)
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
            logits = self.model(batch["ids"], batch["mask"])
        loss = critic_loss(logits.float(), batch, self.recipe.unit_loss)
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


def _draw_batches(maker: WindowMaker, recipe: Recipe, block: int) -> list[list[TrainingWindow]]:
    rng = np.random.default_rng([recipe.seed, block])
    windows = sorted((maker.draw(rng) for _ in range(_BLOCK * recipe.batch)), key=lambda window: len(window.ids))
    return [windows[place * recipe.batch : (place + 1) * recipe.batch] for place in rng.permutation(_BLOCK)]


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read MiniLM's tokenizer so that control tokens in a text are plain text."""
    return plain_tokenizer((folder / "tokenizer.json").read_text(encoding="utf-8"))


def critic_loss(logits: Tensor, batch: dict[str, Tensor], unit_weight: float) -> Tensor:
    """Cross-entropy of the tags, and of each unit's mean log-odds: the score by which the engine ranks units."""
    loss = functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), ignore_index=IGNORED)
    if unit_weight == 0 or not batch["units"].ge(0).any():
        return loss
    kept = torch.logsumexp(logits[..., [0, 1, 3]], dim=-1) - logits[..., OUTSIDE]
    chosen = batch["units"] >= 0
    owner = batch["units"][chosen]
    count = int(owner.max()) + 1
    sizes = torch.zeros(count, device=logits.device).index_add(0, owner, torch.ones_like(kept[chosen]))
    means = torch.zeros(count, device=logits.device).index_add(0, owner, kept[chosen]) / sizes
    truth = (batch["targets"][chosen] != OUTSIDE).float()
    shares = torch.zeros(count, device=logits.device).index_add(0, owner, truth) / sizes
    return loss + unit_weight * functional.binary_cross_entropy_with_logits(means, (shares > 0.5).float())


def collate(windows: list[TrainingWindow], device: str) -> dict[str, Tensor]:
    """Pad windows to one batch; the units of sentence and paragraph windows are numbered through it."""
    length = max(len(window.ids) for window in windows)
    arrays = {
        "ids": np.zeros((len(windows), length), dtype=np.int64),
        "mask": np.zeros((len(windows), length), dtype=np.int64),
        "targets": np.full((len(windows), length), IGNORED, dtype=np.int64),
        "units": np.full((len(windows), length), -1, dtype=np.int64),
    }
    known = 0
    for row, window in enumerate(windows):
        size = len(window.ids)
        arrays["ids"][row, :size] = window.ids
        arrays["mask"][row, :size] = 1
        arrays["targets"][row, :size] = window.targets
        if window.granularity != "keyword":
            arrays["units"][row, :size] = np.where(window.units >= 0, window.units + known, -1)
            known = max(known, int(arrays["units"].max()) + 1)
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
    return min(1.0, (step + 1) / warm) * max(0.02, 1 - max(0, step - warm) / (recipe.steps - warm))


def main() -> None:
    """Run the module as a script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of training sets (.jsonl.gz)")
    parser.add_argument("--minilm", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--recipe", type=Path, help="JSON with fields of Recipe; default: the shipped critic's")
    parser.add_argument("--start", type=Path, help="checkpoint.pt of another run to begin with")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    recipe = Recipe(**json.loads(options.recipe.read_text())) if options.recipe else Recipe()
    train(recipe, options.data, options.minilm, options.out, options.device, options.start)


if __name__ == "__main__":
    main()
