"""Questions about code, made from packages that are installed: find the function by what it does.

The first sentence of a function's docstring, as somebody might ask it, is the question; the text is a list of signatures, or
source code in which that docstring is left out and the others stand. Packages are read, never imported.

    python -m cprs_integrations.training.code_questions --out DIR      # writes DIR/python_code.jsonl.gz
"""

import argparse
import ast
import gzip
import importlib.metadata
import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cprs_integrations.errors import ArgumentError

NAME = "python_code"
PACKAGES = {
    "numpy": "BSD-3-Clause", "scipy": "BSD-3-Clause", "sklearn": "BSD-3-Clause", "pandas": "BSD-3-Clause",
    "networkx": "BSD-3-Clause", "sympy": "BSD-3-Clause", "nltk": "Apache-2.0", "torch": "BSD-3-Clause",
    "transformers": "Apache-2.0", "langchain_core": "MIT", "llama_index.core": "MIT", "pydantic": "MIT", "sqlalchemy": "MIT",
    "IPython": "BSD-3-Clause", "fsspec": "BSD-3-Clause", "huggingface_hub": "Apache-2.0", "joblib": "BSD-3-Clause",
    "click": "BSD-3-Clause", "rich": "MIT", "PIL": "MIT-CMU", "aiohttp": "Apache-2.0", "tornado": "Apache-2.0",
}  # fmt: skip
_ASKS = ("{0}", "Which function does this: {0}?", "Where is the code for this: {0}?", "function to {1}", "How do I {1}?")
_FEWEST, _MOST = 6, 40  # functions of a list
_LONGEST = 12  # lines of a function that are evidence
_CHARACTERS = 2_500  # of source code, about
_OF_A_FILE, _OF_A_PACKAGE = 8, 600


@dataclass(frozen=True)
class _Function:
    name: str
    signature: str
    does: str
    first: int
    docstring: tuple[int, int]
    last: int


def code_questions(packages: dict[str, str] = PACKAGES, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield questions as lines of a training set (`cprs_integrations.examples`).

    Args:
        packages: their names, and the licence of each.
        seed: of what is drawn.

    Raises:
        ArgumentError: a package is not installed.
    """
    for package, licence in packages.items():
        root, rng = _folder(package), np.random.default_rng([seed, len(package)])
        found: list[dict[str, Any]] = []
        for path in sorted(root.rglob("*.py")):
            place = path.relative_to(root.parents[package.count(".")])
            if "test" not in str(place):
                found += _of_file(path.read_text(encoding="utf-8", errors="replace"), str(place), rng)
        chosen = sorted(rng.permutation(len(found))[:_OF_A_PACKAGE].tolist())
        version = importlib.metadata.version(importlib.metadata.packages_distributions()[package.split(".")[0]][0])
        for number in chosen:
            yield {**found[number], "source": f"{package} {version}", "license": licence}


def _folder(package: str) -> Path:
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ArgumentError(f"the package {package!r} is not installed: install it, or name others")
    return Path(next(iter(spec.submodule_search_locations)))


def _of_file(text: str, place: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # a template, or of another Python
        return []
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    functions = [_function(node) for node in sorted(nodes, key=lambda node: node.lineno)]
    asked = [number for number, function in enumerate(functions) if _is_telling(function)]
    if len({function.name for function in functions}) < _FEWEST:
        return []
    lines, items = text.splitlines(keepends=True), []
    for number in rng.permutation(asked)[:_OF_A_FILE].tolist() if asked else ():
        function = functions[number]
        is_list = rng.random() < 0.55
        context, evidence = _listed(functions, number, rng) if is_list else _shown(functions[number], lines, rng)
        ask = _ASKS[rng.integers(len(_ASKS))]
        question = ask.format(function.does, function.does[0].lower() + function.does[1:])
        items.append({"question": question, "title": place, "context": context, "answers": [], "evidence": [list(evidence)]})
    return items


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> _Function:
    docstring = (ast.get_docstring(node) or "").strip()
    does = re.split(r"(?<=\.)\s|\n\s*\n", docstring)[0].replace("`", "")
    body = node.body[0]
    where = (body.lineno, body.end_lineno or body.lineno) if docstring else (0, 0)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    signature = f"{node.name}({ast.unparse(node.args)}){returns}"
    signature = signature if len(signature) <= 200 else f"{node.name}(...)"
    return _Function(
        node.name, signature, " ".join(does.split()).strip(" ."), node.lineno, where, node.end_lineno or node.lineno
    )


def _is_telling(function: _Function) -> bool:
    """Whether its docstring begins with a sentence that says what it does, without its name."""
    does = function.does
    is_sentence = 25 <= len(does) <= 160 and does.isascii() and does[0].isupper() and not re.search(r"[(:{}<>|]", does)
    return is_sentence and not function.name.startswith("_") and not re.search(rf"\b{re.escape(function.name)}\b", does, re.I)


def _listed(functions: Sequence[_Function], number: int, rng: np.random.Generator) -> tuple[str, tuple[int, int]]:
    """A list of signatures, each name once, with that of the function that is asked for."""
    wanted = functions[number]
    low = max(0, number - int(rng.integers(_MOST)))
    named = {function.name: function.signature for function in functions[low : low + _MOST]}
    named[wanted.name] = wanted.signature
    form = ("{}", "def {}:", "- {}")[rng.integers(3)]
    shown = [form.format(signature) for signature in named.values()]
    place = list(named).index(wanted.name)
    before = sum(len(line) + 1 for line in shown[:place])
    return "\n".join(shown), (before, before + len(shown[place]))


def _shown(wanted: _Function, lines: Sequence[str], rng: np.random.Generator) -> tuple[str, tuple[int, int]]:
    """A stretch of the source, without the docstring that asks; the first lines of the function are the evidence."""
    first, last = wanted.docstring
    own = [*lines[wanted.first - 1 : first - 1], *lines[last : wanted.last]]
    evidence = "".join(own[:_LONGEST]).rstrip()
    above = "".join(lines[: wanted.first - 1])
    above = above[max(0, len(above) - int(rng.integers(_CHARACTERS))) :].partition("\n")[2]
    below = "".join(lines[wanted.last :])[: max(0, _CHARACTERS - len(above) - len("".join(own)))].rpartition("\n")[0]
    start = len(above) + len(evidence) - len(evidence.lstrip())
    return above + "".join(own) + below, (start, len(above) + len(evidence))


def main() -> None:
    """Run the module as a script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help=f"folder; gets {NAME}.jsonl.gz")
    parser.add_argument("--packages", nargs="+", choices=PACKAGES, default=list(PACKAGES), help="default: all of them")
    options = parser.parse_args()
    try:
        items = list(code_questions({package: PACKAGES[package] for package in options.packages}))
    except ArgumentError as error:
        parser.error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    with gzip.open(options.out / f"{NAME}.jsonl.gz", "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(item) + "\n" for item in items)
    sys.stdout.write(f"{len(items)} questions in {options.out / NAME}.jsonl.gz\n")


if __name__ == "__main__":
    main()
