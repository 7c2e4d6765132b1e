"""What the README shows is run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def test_the_examples_run_in_their_order(capsys):
    namespace = {}
    assert len(BLOCKS) >= 4
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), namespace)
    shown = capsys.readouterr().out
    assert shown.count("Edmund Hillary and Tenzing Norgay") >= 3


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_links_lead_somewhere(path):
    assert (ROOT / path).exists()


def test_every_module_of_the_map_exists_and_every_module_is_on_it():
    table = README[README.index("| module | step |") : README.index("A window carries its prompt")]
    named = set(re.findall(r"`([a-z_]+)(?:\.py|/)`", table))
    package = ROOT / "cprs_integrations"
    there = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    inside_critics = {"base", "mini", "qwenlong", "rerankers", "known", "ray", "spread"}
    assert named - inside_critics == there - {"__init__", "engine"}
    assert all((package / "critics" / f"{name}.py").exists() for name in inside_critics)
