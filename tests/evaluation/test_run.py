import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from benching import everything, nothing

from cprs_integrations.critics.mini import SHIPPED
from cprs_integrations.errors import ArgumentError
from cprs_integrations.evaluation.items import Budget, Kept
from cprs_integrations.evaluation.report import baselines, paired, write_report
from cprs_integrations.evaluation.run import CACHE, CONFIG, RESULTS, Plan, read_results, run

SMALL = Plan(tasks=("passkey", "vt"), lengths=(400, 800), methods=("head",), budgets=(Budget(0.1), Budget(0.5)), items=2)
OWN = {"nothing": nothing, "everything": everything}


def key(row):
    return tuple(row[name] for name in ("task", "length", "item", "method", "budget"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    run(SMALL, out, own_methods=OWN)
    return out


def test_every_cell_is_there_once_with_its_measures(finished):
    rows = read_results(finished / RESULTS)
    assert len(rows) == 2 * 2 * 2 * 3 * 2
    assert max(Counter(map(key, rows)).values()) == 1
    for row in rows:
        assert abs(row["tokens"] - row["length"]) <= 0.02 * row["length"]
        if row["method"] == "nothing":
            assert (row["retention"], row["evidence"], row["precision"], row["kept_tokens"]) == (0, 0, 0, 0)
        if row["method"] == "everything":
            assert (row["retention"], row["evidence"], row["kept_ratio"]) == (1, 1, 1)
            assert row["kept_tokens"] == row["tokens"]
        assert row["seconds"]
        assert row["peak_mb"] >= 0


def test_the_settings_are_written_down(finished):
    config = json.loads((finished / CONFIG).read_text())
    assert (config["seed"], config["items"], config["lengths"], config["budgets"]) == (0, 2, [400, 800], ["10.00%", "50.00%"])
    assert config["methods"] == ["head", "nothing", "everything"]
    assert "pydoc_data.topics" in config["haystack"]


def test_reports_name_folders_and_not_where_they_lie(tmp_path):
    texts, out = tmp_path / "texts", tmp_path / "out"
    texts.mkdir()
    (texts / "one.txt").write_text("The river runs by the town. " * 200)
    run(Plan(tasks=("passkey",), lengths=(400,), methods=("head",), items=1, haystack=texts), out)
    write_report(out)
    assert json.loads((out / CONFIG).read_text())["haystack"] == "texts"
    assert not any(str(tmp_path) in file.read_text() for file in (out / CONFIG, out / "report.md", out / "report.html"))


def test_a_run_that_is_done_does_nothing_and_a_wider_one_only_the_rest(tmp_path):
    asked = []

    def keep(item, budget):
        asked.append(item.question)
        return ""

    plan = Plan(tasks=("passkey",), lengths=(400,), methods=("head",), budgets=(Budget(0.1),), items=1)
    path = run(plan, tmp_path, own_methods={"mine": keep})
    before = path.read_text()
    run(plan, tmp_path, own_methods={"mine": keep})
    assert (path.read_text(), len(asked)) == (before, 1)
    run(Plan(**{**vars(plan), "items": 2, "budgets": (Budget(0.1), Budget(0.2))}), tmp_path, own_methods={"mine": keep})
    assert path.read_text().startswith(before)
    assert len(asked) == 4
    run(Plan(**{**vars(plan), "tasks": ("vt",)}), tmp_path, own_methods={"mine": keep})
    config = json.loads((tmp_path / CONFIG).read_text())
    assert (config["tasks"], config["budgets"], config["items"]) == (["passkey", "vt"], ["10.00%", "20.00%"], 2)


KILLED = """
import sys, time
from pathlib import Path
from cprs_integrations.evaluation.items import Budget
from cprs_integrations.evaluation.run import Plan, run

def slow(item, budget):
    time.sleep(float(sys.argv[2]))
    return item.text[: len(item.text) // 2]

plan = Plan(tasks=("passkey", "vt"), lengths=(400,), methods=("head",), budgets=(Budget(0.1), Budget(0.2)), items=5)
run(plan, Path(sys.argv[1]), own_methods={"slow": slow})
"""


def test_a_run_that_was_killed_goes_on(tmp_path):
    path = tmp_path / RESULTS
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), "0.2"])
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_bytes().count(b"\n") >= 5) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with path.open("a") as lines:
        lines.write('{"task": "passkey", "length"')  # as if it had been killed while it wrote
    whole = path.read_bytes().rpartition(b"\n")[0] + b"\n"
    assert 5 <= whole.count(b"\n") < 40
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), "0"], check=True)
    rows = read_results(path)
    assert path.read_bytes().startswith(whole)
    assert len(rows) == len({key(row) for row in rows}) == 2 * 5 * 2 * 2
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "whole"), "0"], check=True)
    measured = [{**row, "seconds": 0, "peak_mb": 0} for row in rows]
    assert measured == [{**row, "seconds": 0, "peak_mb": 0} for row in read_results(tmp_path / "whole" / RESULTS)]


def test_a_damaged_line_in_the_middle_is_named(finished, tmp_path):
    lines = (finished / RESULTS).read_bytes().splitlines(keepends=True)
    path = tmp_path / RESULTS
    for damaged in (b'{"a":\n', b'{"task": 1}\n', b"\xff\xfe\n", b"7\n", b"\n"):
        path.write_bytes(b"".join([lines[0], damaged, lines[1]]))
        with pytest.raises(ArgumentError, match=r"results\.jsonl, line 2 is damaged .*delete the line"):
            read_results(path)


def test_of_a_result_that_was_done_again_the_last_counts(finished, tmp_path):
    lines = (finished / RESULTS).read_text().splitlines()
    again = {**json.loads(lines[0]), "retention": 7}
    (tmp_path / RESULTS).write_text("\n".join([*lines, json.dumps(again)]) + "\n")
    rows = read_results(tmp_path / RESULTS)
    assert len(rows) == len(lines)
    assert rows[-1] == again


def test_results_of_another_run_are_not_mixed(finished):
    with pytest.raises(ArgumentError, match=r"has another run .*seed 0, not 1"):
        run(Plan(**{**vars(SMALL), "seed": 1}), finished, own_methods=OWN)


@pytest.mark.parametrize("settings", [None, "", "7", '{"seed": 0}', "\xff", "tasks", "questions", "items"])
def test_results_without_their_settings_are_not_mixed_with_others(settings, finished, tmp_path):
    (tmp_path / RESULTS).write_bytes((finished / RESULTS).read_bytes())
    whole = json.loads((finished / CONFIG).read_text())
    if settings in whole:
        settings = json.dumps({**whole, settings: None})
    if settings is not None:
        (tmp_path / CONFIG).write_text(settings, encoding="latin-1")
    with pytest.raises(ArgumentError, match=r"run\.json cannot be read"):
        run(SMALL, tmp_path, own_methods=OWN)


def test_results_of_other_questions_are_not_mixed_wherever_they_lie(questions, tmp_path):
    folder, out = tmp_path / "questions", tmp_path / "out"
    plan = Plan(tasks=("squad_small", "qa_1"), lengths=(800,), methods=("head",), budgets=(Budget(0.1),), items=1)
    path = run(Plan(**{**vars(plan), "data": questions}), out)
    before = path.read_text()
    shutil.copytree(questions, folder)
    run(Plan(**{**vars(plan), "data": folder}), out)
    assert path.read_text() == before
    first, *others = (folder / "squad_small.jsonl").read_text().split("\n")
    (folder / "squad_small.jsonl").write_text("\n".join([first.replace("Who is", "Who was"), *others]))
    with pytest.raises(ArgumentError, match="other questions: squad_small, other questions: qa_1"):
        run(Plan(**{**vars(plan), "data": folder}), out)


def test_results_of_another_critic_are_not_mixed_though_its_folder_is_the_same(tmp_path):
    folder, out = tmp_path / "critic", tmp_path / "out"
    shutil.copytree(SHIPPED, folder)
    plan = Plan(tasks=("vt",), lengths=(400,), methods=("cprs",), critics=(str(folder),), budgets=(Budget(0.1),), items=1)
    path = run(plan, out)
    assert [row["method"] for row in read_results(path)] == ["cprs", f"cprs:{folder}"]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "made": "again"}))
    with pytest.raises(ArgumentError, match=f"other critics: cprs:{folder}"):
        run(plan, out)
    run(Plan(**{**vars(plan), "critics": ()}), out)


def test_a_folder_without_a_result_is_free(tmp_path):
    plan = Plan(tasks=("cwe",), lengths=(20,), methods=("head",), budgets=(Budget(0.1),), items=1)
    run(plan, tmp_path)
    run(Plan(**{**vars(plan), "seed": 1, "lengths": (1_200,)}), tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["seed"] == 1


def test_a_cache_that_is_none_is_named(tmp_path):
    (tmp_path / CACHE).write_text("no vectors, and long enough to be looked at: " * 100)
    with pytest.raises(ArgumentError, match=r"vectors\.sqlite is no file of vectors .*delete it"):
        run(SMALL, tmp_path)


def test_a_method_that_fails_is_counted_named_and_tried_again(tmp_path):
    def fails(item, budget):
        raise RuntimeError("no\nluck | here")

    def wrong(item, budget):
        return 7

    plan = Plan(tasks=("passkey",), lengths=(400,), methods=("head",), budgets=(Budget(0.1),), items=1)
    own = {"fails": fails, "wrong": wrong, "none": lambda item, budget: Kept(None)}
    own["odd"] = lambda item, budget: Kept("x", {1: np.float32(0.25)}, 7)
    own["step"] = lambda item, budget: Kept("x", {"a": "x"})
    run(plan, tmp_path, own_methods=own)
    notes = {row["method"]: (row["retention"], row["note"]) for row in read_results(tmp_path / RESULTS)}
    assert notes["fails"] == (0, "failed: RuntimeError: no\nluck | here")
    assert notes["wrong"] == (0, "failed: TypeError: a method returns Kept or str, not int")
    assert notes["none"] == (0, "failed: TypeError: a method returns Kept or str, not NoneType")
    assert notes["odd"] == (0, "7")
    assert notes["step"] == (0, "failed: ValueError: could not convert string to float: 'x'")
    write_report(tmp_path)
    assert "| fails | failed: RuntimeError: no luck \\| here (1 results) |" in (tmp_path / "report.md").read_text()
    run(plan, tmp_path, own_methods={**own, "fails": everything})
    failed = {row["method"]: row["failed"] for row in read_results(tmp_path / RESULTS)}
    assert failed == {"head": False, "fails": False, "wrong": True, "none": True, "odd": False, "step": True}
    assert (tmp_path / RESULTS).read_text().count("\n") == 6 + 4


def test_an_llm_that_fails_is_asked_again_and_is_not_wrong(tmp_path):
    asked = []

    def moody(prompt):
        asked.append(prompt)
        if len(asked) == 2:
            raise TimeoutError("busy")
        return "I do not know."

    plan = Plan(tasks=("passkey",), lengths=(400,), methods=("head",), budgets=(Budget(0.1),), items=3)
    path = run(plan, tmp_path, llm=moody)
    first, second, third = read_results(path)
    assert (second["note"], "correct" in second, second["failed"]) == ("llm failed: TimeoutError: busy", False, True)
    assert (first["correct"], third["correct"]) == (0, 0)
    write_report(tmp_path)
    assert "llm failed: TimeoutError: busy (1 results)" in (tmp_path / "report.md").read_text()
    run(plan, tmp_path, llm=moody)
    assert [row["correct"] for row in read_results(path)] == [0, 0, 0]
    assert len(asked) == 4


def test_a_question_without_known_answers_is_not_asked(tmp_path):
    row = {"question": "What of it?", "title": "", "answers": [], "evidence": [[0, 6]]}
    rows = [{**row, "context": f"Cats {n}. " + "Nothing else is known. " * n} for n in range(12)]
    (tmp_path / "open.jsonl").write_text("\ufeff" + "\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    plan = Plan(tasks=("open",), data=tmp_path, methods=("full context",), budgets=(Budget(0.1),), items=2)
    path = run(plan, tmp_path / "out", llm=pytest.fail)
    assert [(row["retention"], "correct" in row) for row in read_results(path)] == [(1, False)] * 2


def test_an_item_that_cannot_be_made_is_left_out_by_name(questions, tmp_path):
    plan = Plan(tasks=("qa_1",), lengths=(70,), methods=("head",), budgets=(Budget(0.5),), items=12, data=questions)
    rows = read_results(run(plan, tmp_path))
    skipped = json.loads((tmp_path / CONFIG).read_text())["skipped"]
    assert 0 < len(rows) < 12
    assert len(rows) + len(skipped) == 12
    assert set(skipped) == {f"qa_1, 70 tokens, item {number}" for number in {*range(12)} - {row["item"] for row in rows}}
    write_report(tmp_path)
    assert "skipped: lengths: no context of 70 tokens can be made" in (tmp_path / "report.md").read_text()
    run(Plan(**{**vars(plan), "lengths": (30,)}), tmp_path / "none")
    with pytest.raises(ArgumentError, match=r"has no results yet; qa_1, 30 tokens, item 0: lengths: no context"):
        write_report(tmp_path / "none")


def test_what_is_named_twice_is_done_once(tmp_path):
    plan = Plan(tasks=("vt", "vt"), lengths=(400, 400), methods=("head", "head"), budgets=(Budget(0.1), Budget(0.1)), items=1)
    assert run(plan, tmp_path).read_text().count("\n") == 1


def test_what_was_not_named_and_is_not_there_is_skipped_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trimwise", None)
    run(Plan(lengths=(400,), budgets=(Budget(0.1),), items=1, methods=("head",), tasks=("vt",)), tmp_path)
    plan = Plan(tasks=("vt",), lengths=(400,), budgets=(Budget(0.1),), items=1)
    run(plan, tmp_path)
    skipped = json.loads((tmp_path / CONFIG).read_text())["skipped"]
    assert skipped["trimwise"] == 'trimwise is not installed; run: pip install "cprs_integrations[bench]"'
    write_report(tmp_path)
    assert skipped["trimwise"] in (tmp_path / "report.md").read_text()
    with pytest.raises(ImportError, match="trimwise is not installed"):
        run(Plan(**{**vars(plan), "methods": ("trimwise",)}), tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 0},
        {"prices": (-1.0, 0.0)},
        {"items": 0},
        {"depths": 0},
        {"seed": -1},
        {"lengths": ()},
        {"lengths": (0,)},
        {"budgets": ()},
    ],
)
def test_a_plan_has_something_to_do(wrong):
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        Plan(**wrong)


def test_a_grid_has_all_its_depths(tmp_path):
    run(Plan(tasks=("needle",), lengths=(600,), methods=("tail",), budgets=(Budget(0.5),), items=4, depths=3), tmp_path)
    found = {row["item"]: (row["depth"], row["retention"]) for row in read_results(tmp_path / RESULTS)}
    assert [depth for depth, _ in found.values()] == [0, 0.5, 1] * 2
    assert (found[0][1], found[2][1]) == (0, 1)


def test_kept_has_notes_and_steps(tmp_path):
    plan = Plan(tasks=("passkey",), lengths=(400,), methods=("head",), budgets=(Budget(0.1),), items=1)
    run(plan, tmp_path, own_methods={"mine": lambda item, budget: Kept("x", {"a": 1.5}, "as you see")})
    row = read_results(tmp_path / RESULTS)[-1]
    assert (row["seconds"], row["note"]) == ({"a": 1.5}, "as you see")


def result(method, item, retention, budget="10.00%"):
    return {"task": "t", "length": 1, "item": item, "method": method, "budget": budget, "retention": retention}


def test_ours_is_compared_with_the_best_of_the_others_on_shared_items():
    rows = [result("cprs", item, 1.0) for item in range(4)]
    rows += [result("A", item, 0.5) for item in range(4)] + [result("B", item, 0.75) for item in range(2)]
    rows += [result("full context", 0, 1.0, "")]
    assert baselines(rows, "10.00%") == ["B", "A"]
    found = paired(rows, "cprs", "B", "10.00%")
    assert (found.value, found.count) == (0.25, 2)
    assert paired(rows, "cprs", "C", "10.00%") is None
