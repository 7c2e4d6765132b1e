"""Build the wheel, install it alone in an empty environment, and see that it works and names what is missing.

Run by `make bare`; not a pytest module, because it leaves the environment in which the tests run.
"""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = {
    "torch",
    "transformers",
    "langchain_core",
    "llama_index",
    "sentence_transformers",
    "pydantic",
    "typer",
    "rich",
    "httpx",
}

WORKS = """
import sys
import cprs_integrations
from cprs_integrations import CPRSEngine
heavy = {heavy!r} & set(sys.modules)
assert not heavy, heavy
context = CPRSEngine.from_pretrained().compress(
    ["Paris is the capital of France. Bread is made of flour.", "Mount Everest is 8,849 metres high. It snows there."],
    "How high is Mount Everest?", max_ratio=0.5,
)
assert "8,849" in context.text, context.text
assert cprs_integrations.__file__.startswith(sys.prefix), cprs_integrations.__file__
print(context.text)
"""
MISSING = """
from cprs_integrations import CPRSEngine
from cprs_integrations.errors import MissingExtraError
try:
    {statement}
except MissingExtraError as error:
    assert 'pip install "cprs_integrations[{extra}]"' in str(error), error
    print(error)
else:
    raise SystemExit("nothing was missing")
"""
EXTRAS = (
    ("remote", 'import cprs_integrations; cprs_integrations.RemoteEngine("http://127.0.0.1:1")'),
    ("serve", "from cprs_integrations.serving import create_app"),
    ("langchain", "import cprs_integrations.langchain"),
    ("llama-index", "import cprs_integrations.llama_index"),
    ("rerankers", 'CPRSEngine.from_pretrained("reranker", model_path="x")'),
    ("remote", 'from cprs_integrations import RemoteEngine; RemoteEngine("http://localhost:8000")'),
    ("serve", "import cprs_integrations.serving"),
    ("ray", 'CPRSEngine.from_pretrained("ray", replicas=1)'),
    ("torch", "import cprs_integrations.training"),
    ("torch", "import cprs_integrations.models"),
    ("bench", 'from cprs_integrations.evaluation.rankings import bm25; bm25("a", ["b"], [0])'),
    ("torch", 'CPRSEngine.from_pretrained("Tongyi-Zhiwen/QwenLong-CPRS-7B")'),
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, str(ROOT))
        (wheel,) = target.glob("*.whl")
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")
        venv.create(target / "empty", with_pip=True)
        python = str(target / "empty" / "bin" / "python")
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel))
        run(python, "-c", WORKS.format(heavy=HEAVY), cwd=folder)
        for extra, statement in EXTRAS:
            run(python, "-c", MISSING.format(statement=statement, extra=extra), cwd=folder)
        command = subprocess.run([str(Path(python).parent / "cprs"), "demo"], capture_output=True, text=True, check=False)
        expected = 'typer is not installed; run: pip install "cprs_integrations[cli]"'
        if command.returncode == 0 or expected not in command.stderr:
            raise SystemExit(f"cprs without its extra: {command}")
        print(command.stderr.strip())
    print("the wheel alone works")


def run(*command: str, cwd: str | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} …\n{done.stdout}{done.stderr}")
    if command[1] == "-c":
        print(done.stdout.strip())


if __name__ == "__main__":
    main()
