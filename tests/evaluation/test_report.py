import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from benching import everything, nothing
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from llama_index.core.llms import CompletionResponse, MockLLM

from cprs_integrations.errors import ArgumentError
from cprs_integrations.evaluation.items import Budget, Item
from cprs_integrations.evaluation.llm import Reader
from cprs_integrations.evaluation.report import write_report
from cprs_integrations.evaluation.run import CONFIG, RESULTS, Plan, read_results, run

CPRS = [str(Path(sys.executable).with_name("cprs"))]
ITEM = Item("Who wrote notes?", ("Ada wrote notes.",), ("Ada",), ((0, 0, 3),))


def ask(prompt):
    """Says what stands after the last 'pass key is' that it reads."""
    found = re.findall(r"pass key is (\d+)", prompt)
    return f"It is {found[-1]}." if found else "I do not know."


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    plan = Plan(
        tasks=("needle", "passkey"),
        lengths=(500, 1_000),
        methods=("full context", "head", "BM25", "cprs"),
        budgets=(Budget(0.1), Budget(max_tokens=100)),
        items=2,
        depths=3,
        window=700,
        prices=(1.0, 2.0),
    )
    own = {"nothing": nothing, "everything": everything, "$x_$": everything}
    run(plan, out, own_methods=own, llm=ask, llm_name="a regular expression")
    write_report(out)
    return out


def test_pictures_are_drawn(finished):
    pictures = {path.stem for path in (finished / "plots").iterdir()}
    assert pictures == {"needles", "latency", "methods", "ratios", "answers"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (finished / "plots").iterdir())


def test_the_page_holds_everything_itself(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64,') == 5
    assert not re.findall(r'(?:src|href)="(?!data:)', page)


def test_the_tables_hold_the_means_of_the_results(finished):
    text = (finished / "report.md").read_text(encoding="utf-8")
    rows = [row for row in read_results(finished / RESULTS) if (row["method"], row["budget"]) == ("head", "10.00%")]
    mean = sum(row["retention"] for row in rows) / len(rows)
    line = next(line for line in text.split("\n") if line.startswith("| 10.00% | head |"))
    assert f"| {mean:.3f} [" in line
    assert f"| {len(rows)} |" in line
    assert re.search(r"\| 10.00% \| nothing \| 0.000 \[0.000, 0.000\] .* \| all gone \|", text)
    assert re.search(r"\| 10.00% \| everything \| 1.000 \[1.000, 1.000\] .* \| 1.0x \| 100% \|", text)
    assert "cut to the LLM's window of 700 tokens" in text
    assert "cut to the 700 tokens of the LLM's window (5 results)" in text
    assert "a regular expression" in text
    for other in ("head", "BM25", "nothing", "everything"):
        assert re.search(rf"\| 10.00% \| cprs \| {other} \| [+-]\d", text)
    assert re.search(r"\| 10.00% \| cprs \| nothing \| \+\S+ \[.*\] \| ahead \| \d.* \| 0.00% \| 10 \|", text)
    for path in re.findall(r"\]\((plots/\w+\.png)\)", text):
        assert (finished / path).exists()


def test_lengths_stand_beside_each_other_and_what_was_not_run_is_empty(finished, tmp_path):
    (tmp_path / CONFIG).write_text((finished / CONFIG).read_text())
    lines = [json.loads(line) for line in (finished / RESULTS).read_text().splitlines()]
    lines = [row for row in lines if (row["method"], row["length"]) != ("BM25", 1_000)]
    (tmp_path / RESULTS).write_text("".join(json.dumps(row) + "\n" for row in lines))
    text = write_report(tmp_path)[0].read_text()
    assert "| budget | method | 500 | 1,000 |" in text
    head = [row["retention"] for row in lines if (row["method"], row["budget"], row["length"]) == ("head", "10.00%", 500)]
    assert re.search(rf"\| 10.00% \| head \| {sum(head) / len(head):.3f} \[[\d., ]+\] \| [\d.]+ \[", text)
    assert re.search(r"\| 10.00% \| BM25 \| [\d.]+ \[[\d., ]+\] \|  \|\n", text)
    one = [json.dumps(row) + "\n" for row in lines if row["length"] == 500]
    (tmp_path / RESULTS).write_text("".join(one))
    assert "## By length" not in write_report(tmp_path)[0].read_text()


def test_one_item_that_was_interrupted_does_not_decide_the_time(finished, tmp_path):
    (tmp_path / CONFIG).write_text((finished / CONFIG).read_text())
    lines = [json.loads(line) for line in (finished / RESULTS).read_text().splitlines()]
    several = [row for row in lines if (row["method"], row["length"]) == ("head", 1_000)]
    for row, seconds in zip(several, [3_600.0, *[0.25] * len(several)], strict=False):
        row["seconds"] = {"all": seconds}
    (tmp_path / RESULTS).write_text("".join(json.dumps(row) + "\n" for row in lines))
    markdown, _ = write_report(tmp_path)
    assert "| head | 1,000 | 0.250 | all 0.250 |" in markdown.read_text()


def test_answers_are_judged_and_paid(finished):
    rows = [row for row in read_results(finished / RESULTS) if row["task"] == "passkey"]
    for row in rows:
        assert row["correct"] == row["retention"]
        assert row["prompt_tokens"] >= row["kept_tokens"]
        assert row["prompt_tokens"] <= row["cost"] * 1e6 <= row["prompt_tokens"] + 100


def test_a_folder_without_results_has_no_report(tmp_path):
    with pytest.raises(ArgumentError, match="has no results yet"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (FakeListChatModel(responses=["Ada, of course."]), "Ada, of course."),
        (MockLLM(), "Read the following text"),
        (lambda prompt: prompt[-7:], "Answer:"),
    ],
    ids=["LangChain", "LlamaIndex", "function"],
)
def test_any_llm_answers(model, said):
    answer = Reader(model, lambda text: len(text.split())).answer(ITEM, "Ada wrote notes. {braces} stay")
    assert answer.text.startswith(said)
    assert answer.prompt_tokens > 15
    assert answer.cost((1e6, 0)) == answer.prompt_tokens


def test_the_tokens_that_a_model_reports_count():
    class Message:
        content, usage_metadata = "Ada", {"input_tokens": 1_000, "output_tokens": 10}

    class Model:
        def invoke(self, prompt):
            return Message()

    answer = Reader(Model(), len).answer(ITEM, "")
    assert (answer.text, answer.prompt_tokens, answer.answer_tokens) == ("Ada", 1_000, 10)
    assert answer.cost((2.0, 5.0)) == 0.00205


@pytest.mark.parametrize(
    ("model", "message"),
    [(7, "llm must have invoke"), (MockLLM, "not the class MockLLM"), (lambda prompt: 7, "llm returned int")],
)
def test_what_is_no_llm_is_refused(model, message):
    with pytest.raises(ArgumentError, match=message):
        Reader(model, len).answer(ITEM, "")


def test_the_tokens_that_a_completion_of_llama_index_reports_count():
    class Model:
        def complete(self, prompt):
            return CompletionResponse(text="Ada", additional_kwargs={"prompt_tokens": 900, "completion_tokens": 3})

    answer = Reader(Model(), len).answer(ITEM, "")
    assert (answer.text, answer.prompt_tokens, answer.answer_tokens) == ("Ada", 900, 3)


def bench(*arguments, cwd=None):
    done = subprocess.run([*CPRS, "bench", *arguments], capture_output=True, text=True, check=False, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


def test_the_command_runs_and_reports(tmp_path):
    code, shown, error = bench(
        "--out", str(tmp_path), "--quick", "--tasks", "passkey,vt", "--lengths", "400,500", "--methods", "head,BM25",
        "--methods", "cprs", "--max-ratio", "0.2", "--max-tokens", "50", "--seed", "3",
    )  # fmt: skip
    assert code == 0, error
    assert "100%" in error
    rows = read_results(tmp_path / RESULTS)
    assert len(rows) == 2 * 2 * 3 * 2
    assert {row["budget"] for row in rows} == {"20.00%", "50 tokens"}
    assert shown.endswith(f"{tmp_path / 'report.md'}\n{tmp_path / 'report.html'}\n")


def test_methods_and_llms_of_the_current_folder_are_found(tmp_path):
    own = "def first(item, budget):\n    return item.text[:20]\n\ndef say(prompt):\n    return 'the 7th $x_$'\n"
    (tmp_path / "my_own.py").write_text(own)
    code, _, error = bench(
        "--out", "out", "--tasks", "vt", "--lengths", "400", "--items", "1", "--max-ratio", "0.2",
        "--methods", "my_own:first", "--llm", "my_own:say", cwd=tmp_path,
    )  # fmt: skip
    assert code == 0, error
    (row,) = read_results(tmp_path / "out" / RESULTS)
    assert (row["method"], row["kept_ratio"] > 0, row["answer"]) == ("my_own:first", True, "the 7th $x_$")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "vt", "--methods", "head", "--critic", "/nowhere"], "no folder '/nowhere'"),
        (["--tasks", "vt", "--lengths", "4K"], "lengths must be whole numbers of tokens, as 4096,16384, not '4K'"),
        (["--tasks", "vt", "--lengths", ","], "lengths must be numbers of tokens from 1, not []"),
        (["--tasks", "nonsense"], "tasks: there is no 'nonsense'"),
        (["--tasks", "qa_1"], "give --data, a folder with squad*.jsonl"),
        (["--items", "0", "--max-ratio", "0.1", "--llm", "nonsense"], "items must be a whole number from 1"),
    ],
)
def test_errors_end_with_2_and_one_line(arguments, message, tmp_path):
    code, shown, error = bench("--out", str(tmp_path), "--no-progress", *arguments)
    assert (code, shown) == (2, "")
    assert message in error
    assert "Traceback" not in error
