"""The notebooks run, in their quick profile, and what is committed of them is clean."""

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
_SPEC = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
runner = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(runner)

NAMES = [path.stem for path in runner.NOTEBOOKS]
LARGEST = 400_000  # bytes


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def shown(notebook):
    """All texts and pages of HTML that the cells wrote."""
    texts = [output.get("text", "") for output in outputs(notebook)]
    data = [output.get("data", {}) for output in outputs(notebook)]
    return "\n".join([*texts, *(found.get(kind, "") for found in data for kind in ("text/plain", "text/html"))])


def pictures(notebook):
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def test_all_are_there():
    assert [name[:2] for name in NAMES] == ["01", "02", "03", "04", "05", "06"]


SAYS = {
    "01_quickstart": ('<div class="cprs">', r"x smaller", r"\d+ tokens, +\d"),
    "02_langchain_vs_plain_rag": (r"<td>compressed</td><td>1</td>", r"--- tool", r"the model read [\d,]+\."),
    "03_llama_index_query_engine": (r"compressed, 50 nodes +right \d", r"plain RAG, 5 nodes +right \d"),
    "04_long_documents": (r"tokens in [\d.]+ s", r"cprs +kept [1-4] of 4 needles", r"RAG +kept \d of 4 needles"),
    "05_bring_your_own_critic": (r"shared words .* answers kept \d", r"MiniLM reranker +answers kept"),
    "06_train_your_own": (r"4 steps of 4 questions", r"critic, after +[01]\.\d{3}", r"beginning with the shipped critic"),
}


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_its_checks_hold(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    monkeypatch.setenv("OPENAI_MODEL", "")
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    done = runner.execute(FOLDER / f"{name}.ipynb", "quick")
    said = shown(done)
    for pattern in SAYS[name]:
        assert re.search(pattern, said), pattern
    assert pictures(done) >= 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_what_is_committed_has_its_outputs_and_nothing_of_the_machine(name):
    path = FOLDER / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs(notebook))
    assert pictures(notebook) >= 1
    assert not re.search(
        r"(?<![\w.])/(home|root|tmp|Users|var|opt|usr|work|private)/|[A-Z]:\\\\Users|site-packages", shown(notebook)
    )
    assert path.stat().st_size < LARGEST


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_notebooks(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    texts = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for link in re.findall(r"\]\((?!http)([^)]+)\)", texts):
        assert (FOLDER / link).exists(), link


def test_a_cell_that_fails_fails_the_run(tmp_path):
    path = tmp_path / "wrong.ipynb"
    cell = nbformat.v4.new_code_cell("assert 1 == 2, 'one is not two'")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    with pytest.raises(Exception, match="one is not two"):
        runner.execute(path, "quick")
