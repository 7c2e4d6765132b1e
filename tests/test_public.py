import ast
import sys
from pathlib import Path

import pytest

import cprs_integrations
from cprs_integrations import errors

ROOT = Path(cprs_integrations.__file__).parent


def test_the_public_names_are_these():
    assert cprs_integrations.__all__ == [
        "INSTRUCTIONS",
        "CPRSEngine",
        "CPRSError",
        "CompressedContext",
        "CompressedDocument",
        "Engine",
        "RemoteEngine",
        "Scored",
        "Span",
        "Stats",
    ]
    assert all(hasattr(cprs_integrations, name) for name in cprs_integrations.__all__)


def test_every_error_is_a_cprs_error():
    found = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(found) == 6
    assert all(issubclass(error, errors.CPRSError) for error in found)


def test_a_missing_extra_is_named_with_its_command():
    with pytest.raises(errors.MissingExtraError, match=r'run: pip install "cprs_integrations\[rerankers\]"'):
        errors.require("no_such_package", "rerankers")


def test_an_installed_package_that_fails_to_import_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import no_such_module_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        errors.require("broken_package", "rerankers")


def test_the_package_is_typed():
    assert (ROOT / "py.typed").exists()


@pytest.mark.parametrize(
    "module", ["context", "units", "windows", "tags", "selection", "result", "scored", "ledger", "instructions", "lines"]
)
def test_the_core_knows_neither_frameworks_nor_torch(module):
    tree = ast.parse((ROOT / f"{module}.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    roots = {name.split(".")[0] for name in names}
    assert roots <= {"numpy", "sentencex", "cprs_integrations"} | set(sys.stdlib_module_names)


def test_only_our_own_code_is_ever_run():
    assert not [path for path in ROOT.rglob("*.py") if "trust_remote_code" in path.read_text()]
