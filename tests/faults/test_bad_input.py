"""What bad input gets: an error that names it and the way out, or a result that loses nothing."""

import hashlib
import json
import shutil

import pytest
from samples import ANSWER, CAPITALS, QUESTION

from cprs_integrations import CPRSEngine, CPRSError
from cprs_integrations.critics.known import KnownCritic
from cprs_integrations.critics.mini import SHIPPED
from cprs_integrations.errors import ArgumentError, ModelError


@pytest.mark.parametrize("documents", [[], "", [""], ["", " \n\t"], ["\u3000"]])
def test_nothing_in_nothing_out(engine, documents):
    context = engine.compress(documents, "q")
    assert context.text == ""
    assert context.stats.kept_chars == 0
    assert len(context.documents) == (1 if isinstance(documents, str) else len(documents))
    assert all(document.spans == () for document in context.documents)


@pytest.mark.parametrize(("query", "instruction"), [(None, None), ("", ""), (" ", None), (None, "\n")])
def test_a_question_of_nothing_names_both(engine, query, instruction):
    with pytest.raises(ArgumentError, match="query and instruction are both empty"):
        engine.compress(CAPITALS, query, instruction=instruction)


@pytest.mark.parametrize(("name", "value"), [("query", 3), ("query", b"q"), ("instruction", ["a"])])
def test_a_question_is_text(engine, name, value):
    with pytest.raises(ArgumentError, match=f"{name} must be a str or None"):
        engine.compress(CAPITALS, **{"query": "q", name: value})


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("max_ratio", 0, "above 0 and up to 1"),
        ("max_ratio", 1.5, "above 0 and up to 1"),
        ("max_ratio", -0.1, "above 0 and up to 1"),
        ("max_ratio", float("nan"), "above 0 and up to 1"),
        ("max_ratio", "0.5", "above 0 and up to 1"),
        ("max_ratio", True, "above 0 and up to 1"),
        ("max_tokens", 0, "whole number from 1"),
        ("max_tokens", 2.5, "whole number from 1"),
        ("max_tokens", True, "whole number from 1"),
        ("threshold", 1.01, "from 0 to 1"),
        ("threshold", -1, "from 0 to 1"),
        ("threshold", float("nan"), "from 0 to 1"),
        ("granularity", "word", "'keyword', 'sentence', 'paragraph', 'document'"),
        ("token_counter", 3, "function from str to int"),
        ("protect", "abc", "sequence of regular expressions"),
        ("protect", ["("], "not a valid regular expression"),
        ("protect", [b"x"], "not a regular expression for str"),
    ],
)
def test_options_out_of_range_name_themselves_their_value_and_what_is_allowed(engine, name, value, allowed):
    for call in (engine.compress, lambda *a, **o: engine.compress_batch([a], **o)):
        with pytest.raises(ArgumentError) as caught:
            call(CAPITALS, "q", **{name: value})
        assert name in str(caught.value)
        assert allowed in str(caught.value)
        shown = value[0] if isinstance(value, list) else value
        assert repr(shown) in str(caught.value)


def test_a_query_that_leaves_no_room_names_itself_and_the_limit(engine):
    with pytest.raises(ArgumentError, match=r"query and instruction are \d+ tokens together; this critic takes at most \d+"):
        engine.compress(CAPITALS, "why " * 1000)


def test_a_long_query_below_the_limit_is_read_whole(engine):
    assert engine.compress(CAPITALS, "I was wondering about mountains. " * 40 + QUESTION, max_ratio=0.5).text


class TestTightBudgets:
    text = "When the expedition had rested, the two men, tied to one rope, climbed the last ridge and stood on top."

    def test_the_best_unit_is_cut_at_clauses(self):
        engine = CPRSEngine(critic=KnownCritic({"two men": 0.9}, whole_units=False, default=0.1))
        context = engine.compress(self.text, "q", max_ratio=0.15, granularity="sentence")
        assert context.text == "the two men,"

    def test_without_a_clause_that_fits_it_is_cut_at_words(self):
        engine = CPRSEngine(critic=KnownCritic({"expedition": 0.9}, whole_units=False, default=0.1))
        assert engine.compress(self.text, "q", max_tokens=4, granularity="sentence").text == "the expedition"

    def test_of_a_document_that_does_not_fit_the_best_sentences_are_kept(self):
        engine = CPRSEngine(critic=KnownCritic({"ridge": 0.9, "Down": 0.8}, default=0.02))
        documents = [f"It rained for a week. {self.text} Down in the camp they waited. Nobody slept that night."]
        assert engine.compress(documents, "q", granularity="document", max_ratio=0.75).text == (
            f"{self.text} Down in the camp they waited."
        )
        assert engine.compress(documents, "q", granularity="document", max_ratio=0.2).text == "Down in the camp they waited."
        assert engine.compress(documents, "q", granularity="document", max_ratio=0.14).text in self.text

    def test_if_nothing_fits_the_text_is_empty_and_the_statistics_say_why(self):
        engine = CPRSEngine(critic=KnownCritic({"men": 0.9}))
        context = engine.compress(self.text, "q", max_tokens=1, token_counter=lambda text: 5 * len(text))
        assert context.text == ""
        (found,) = context.stats.left_out
        assert "max_tokens=1" in found.reason
        assert self.text[found.start : found.end] == self.text

    def test_protected_matches_fill_the_budget_by_score_and_the_rest_is_named(self):
        engine = CPRSEngine(critic=KnownCritic({"ridge": 0.9, "rope": 0.5}, whole_units=False))
        context = engine.compress(self.text, "q", max_tokens=4, protect=[r"\brope\b", r"\bridge\b", "expedition"])
        assert "ridge" in context.text
        assert "rope" in context.text
        (found,) = context.stats.left_out
        assert self.text[found.start : found.end] == "expedition"
        assert "protected" in found.reason


@pytest.mark.parametrize(
    "odd",
    [
        "\x00\x01\x02",
        "\ud800\udc00\udfff",
        "[SEP] [CLS] [MASK]",
        "<|im_start|>system\n<|im_end|>",
        "\u202eabc\u202c",
        "\u200b" * 50,
    ],
)
def test_odd_characters_are_plain_text_with_exact_spans(engine, odd):
    documents = [f"{odd} {CAPITALS[3]} {odd}", odd, CAPITALS[0]]
    context = engine.compress(documents, QUESTION, max_ratio=0.6)
    assert ANSWER in context.text
    for source, document in zip(documents, context.documents, strict=True):
        assert document.text == "\n".join(source[span.start : span.end] for span in document.spans)


def test_control_tokens_do_not_reach_the_network_as_such(engine):
    ids = engine.critic.encode(["a [SEP] b [CLS] c [PAD] [UNK] [MASK]"]).ids
    assert not {0, 101, 102, 103} & set(ids.tolist())


def test_ten_megabytes_on_one_line_are_compressed():
    text = "lorem ipsum dolor sit amet " * 400_000 + "the needle is here"
    engine = CPRSEngine(critic=KnownCritic({"needle": 0.9}, window=4096))
    context = engine.compress(text, "q", max_tokens=1000, threshold=0.5)
    assert "needle" in context.text
    assert text[context.documents[0].spans[0].start : context.documents[0].spans[0].end] == context.text


class TestModelFolders:
    @pytest.fixture
    def folder(self, tmp_path):
        return shutil.copytree(SHIPPED, tmp_path / "model")

    def test_a_copy_of_the_shipped_model_loads(self, folder):
        assert CPRSEngine.from_pretrained(str(folder)).compress(CAPITALS, QUESTION, max_ratio=0.5).text

    def test_there_is_no_such_folder(self, tmp_path):
        with pytest.raises(ModelError, match="no folder"):
            CPRSEngine.from_pretrained(str(tmp_path / "none"))

    @pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "config.json"])
    def test_a_missing_file_is_named_with_the_repair(self, folder, name):
        (folder / name).unlink()
        with pytest.raises(ModelError, match=rf"{name} is missing; export or copy the model again"):
            CPRSEngine.from_pretrained(str(folder))

    @pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
    def test_a_truncated_file_is_named(self, folder, name):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(ModelError, match=f"{name} is damaged: its SHA-256"):
            CPRSEngine.from_pretrained(str(folder))

    def test_a_damaged_model_with_a_matching_hash_is_an_error_too(self, folder):
        (folder / "model.onnx").write_bytes(b"no network")
        config = json.loads((folder / "config.json").read_text())
        config["files"]["model.onnx"] = hashlib.sha256(b"no network").hexdigest()
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match="the model cannot be read"):
            CPRSEngine.from_pretrained(str(folder))

    @pytest.mark.parametrize("config", ["{", "[]", '{"model_type": "bert"}', '{"critic": "mini"}'])
    def test_a_foreign_folder_is_refused(self, folder, config):
        (folder / "config.json").write_text(config)
        with pytest.raises(ModelError, match=r"config\.json"):
            CPRSEngine.from_pretrained(str(folder))

    def test_a_folder_of_another_format_is_refused(self, folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"format": 1}))
        with pytest.raises(ModelError, match=r"format 1, this version .* reads format 3; make the model again"):
            CPRSEngine.from_pretrained(str(folder))

    def test_the_shipped_model_names_the_command_that_repairs_it(self, monkeypatch, tmp_path):
        monkeypatch.setattr("cprs_integrations.critics.mini.SHIPPED", tmp_path)
        monkeypatch.setattr("cprs_integrations.critics._loaded", {})
        with pytest.raises(ModelError, match="pip install --force-reinstall --no-deps cprs_integrations"):
            CPRSEngine.from_pretrained()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"device": "cuda"}, "device='cuda'"),
            ({"threads": 0}, "threads must be"),
            ({"nonsense": 1}, "nonsense=1"),
            ({"threads": []}, "threads must be"),
            ({"threads": {1}}, "plain"),
        ],
    )
    def test_options_that_the_critic_does_not_have_are_named(self, options, message):
        with pytest.raises(CPRSError, match=message):
            CPRSEngine.from_pretrained(**options)
