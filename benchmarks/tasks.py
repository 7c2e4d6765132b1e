"""What the small critic is judged on: sets of questions, the ratios, and what is hoped for at each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cprs_integrations import CPRSEngine
from cprs_integrations.evaluation.haystack import Haystack
from cprs_integrations.evaluation.items import Item
from cprs_integrations.evaluation.measures import all_kept, evidence_kept, retention
from cprs_integrations.evaluation.questions import alone, among_others, several
from cprs_integrations.evaluation.tasks import load_task
from cprs_integrations.examples import read_set

HIDDEN = ("niah_multikey_1", "passkey", "vt", "kv_retrieval")
TOKENS = 128_000

Judge = Callable[[Item, str], float]


@dataclass(frozen=True)
class Goals:
    """Items, the ratios at which they are compressed, how they are judged, and what is hoped for at each ratio."""

    name: str
    items: list[Item]
    ratios: tuple[float, ...]
    judge: Judge
    goals: tuple[float | None, ...]
    """None: ahead of every baseline."""
    instruction: str | None = None


def squad(data: Path, count: int, seed: int) -> list[Item]:
    return among_others(read_set(data / "eval" / "squad_v11_dev.jsonl.gz"), count, seed)


def all_goals(data: Path, count: int, seed: int, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[Goals]:
    """Yield the wanted ones, one by one: each reads its own set from the folder `data` (eval/, haystack/)."""
    # some answers in Chinese are one character
    chinese = partial(among_others, shortest=1)
    kinds: list[
        tuple[str, Callable[..., list[Item]], Callable[[Item, str], float], tuple[float, ...], tuple[float | None, ...]]
    ]
    kinds = [
        ("squad_v11_dev", among_others, retention, (0.10, 0.05, 0.025), (0.985, 0.96, 0.80)),
        ("squad_v11_dev keywords", among_others, retention, (0.01,), (0.75,)),
        ("hotpotqa_dev_sample", several, all_kept, (0.25, 0.15), (0.90, 0.75)),
        ("squadshifts_heldout", among_others, retention, (0.10, 0.05), (None, None)),
        ("covidqa_heldout", alone, retention, (0.10, 0.05), (None, None)),
        ("selqa_dev", among_others, evidence_kept, (0.10, 0.05), (None, None)),
        ("cuad_heldout", alone, evidence_kept, (0.10, 0.05), (None, None)),
        ("qmsum_val", alone, evidence_kept, (0.10, 0.05), (None, None)),
        ("kv_75", alone, retention, (0.05,), (1.0,)),
        ("xquad_zh", chinese, retention, (0.10, 0.05), (None, None)),
    ]
    for name, draw, judge, ratios, goals in kinds:
        if wanted(name):
            source, _, instruction = name.partition(" ")
            items = draw(read_set(data / "eval" / f"{source}.jsonl.gz"), count, seed)
            yield Goals(name, items, ratios, judge, goals, instruction or None)
    if wanted("hidden"):
        tools = Haystack.of(data / "haystack"), CPRSEngine.from_pretrained().count_tokens
        loaded = [load_task(name, *tools) for name in HIDDEN]
        items = [task.item(number, TOKENS, seed) for number in range(max(1, count // 100)) for task in loaded]
        yield Goals("hidden in 128K tokens", items, (0.01,), all_kept, (1.0,))
