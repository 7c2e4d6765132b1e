"""Questions about code: the text holds the function that is asked for, and not the sentence that asks."""

import ast

import pytest

from cprs_integrations.errors import ArgumentError
from cprs_integrations.examples import read_set
from cprs_integrations.training import code_questions as module

SOURCE = '''"""A module."""

import math


def area(radius: float) -> float:
    """Return how much of a plane a circle covers.

    More of it.
    """
    return math.pi * radius**2


def rim(radius: float) -> float:
    """Return how long the border of a circle is."""
    return 2 * math.pi * radius


class Shape:
    def turn(self, degrees, about=None):
        """Rotate everything around a given point."""
        self.angle += degrees

    def grow(self, factor):
        self.scale *= factor

    def _hidden(self):
        """Do something that nobody outside may ask for."""

    async def save(self, path):
        """Save."""
'''


@pytest.fixture
def questions(tmp_path, monkeypatch):
    (tmp_path / "shapes" / "tests").mkdir(parents=True)
    (tmp_path / "shapes" / "__init__.py").write_text("")
    (tmp_path / "shapes" / "plane.py").write_text(SOURCE)
    (tmp_path / "shapes" / "broken.py").write_text("def broken(:\n")
    (tmp_path / "shapes" / "tests" / "plane.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(module.importlib.metadata, "packages_distributions", lambda: {"shapes": ["numpy"]})
    return [item for seed in range(20) for item in module.code_questions({"shapes": "MIT"}, seed)]


def test_only_functions_that_say_what_they_do_are_asked_for(questions):
    asked = {
        word
        for item in questions
        for word in ("circle covers", "border of a circle", "given point")
        if word in item["question"]
    }
    assert asked == {"circle covers", "border of a circle", "given point"}
    assert len(questions) == 3 * 20
    assert not any("nobody" in item["question"] or "Save" in item["question"] for item in questions)


def test_the_evidence_is_the_function_and_its_docstring_is_left_out(questions):
    names = {"circle covers": "area(", "border of a circle": "rim(", "given point": "turn("}
    kinds = set()
    for item in questions:
        says, name = next((says, name) for says, name in names.items() if says in item["question"])
        (start, end), context = item["evidence"][0], item["context"]
        assert says not in context
        assert context[start:end].removeprefix("- ").removeprefix("async ").removeprefix("def ").startswith(name)
        kinds.add("return " in context[start:end] or "self.angle" in context[start:end])
        if "import math" in context:
            ast.parse(context)
        assert item["license"] == "MIT"
        assert item["title"] == "shapes/plane.py"
    assert kinds == {True, False}


def test_the_same_seed_asks_the_same_and_a_package_that_is_missing_is_named():
    click = {"click": "BSD-3-Clause"}
    assert (
        list(module.code_questions(click, 3)) == list(module.code_questions(click, 3)) != list(module.code_questions(click, 4))
    )
    with pytest.raises(ArgumentError, match="no_such_package"):
        list(module.code_questions({"no_such_package": "MIT"}))


def test_the_file_is_a_training_set(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["code_questions", "--out", str(tmp_path), "--packages", "click"])
    module.main()
    examples = read_set(tmp_path / f"{module.NAME}.jsonl.gz")
    assert len(examples) > 20
    assert all(example.documents[0].is_marked for example in examples)


def test_a_package_that_is_missing_leaves_no_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(module.PACKAGES, "no_such_package", "MIT")
    monkeypatch.setattr("sys.argv", ["code_questions", "--out", str(tmp_path / "data"), "--packages", "no_such_package"])
    with pytest.raises(SystemExit, match="2"):
        module.main()
    assert "'no_such_package' is not installed" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
