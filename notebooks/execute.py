"""Run notebooks with the Python that runs this: `python notebooks/execute.py [NAME ...]` writes them back with their outputs.

The working directory, kernels installed elsewhere and the user's configuration of Jupyter and IPython make no difference.
`CPRS_NOTEBOOKS=quick` has each ask fewer questions of shorter texts.
"""

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from traitlets import default

FOLDER = Path(__file__).parent
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))


class _ThisPython(KernelSpecManager):
    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=40"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


class _Kernel(AsyncKernelManager):
    @default("kernel_spec_manager")
    def _this_python(self) -> KernelSpecManager:
        return _ThisPython()


def execute(path: Path, profile: str) -> nbformat.NotebookNode:
    """Run a notebook in an empty folder, and return it with its outputs.

    Args:
        path: of the notebook.
        profile: "quick" or "full".

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        settings = {"CPRS_NOTEBOOKS": profile, "IPYTHONDIR": folder, "PYTHONWARNINGS": "ignore", "MPLBACKEND": ""}
        environment = {name: value for name, value in {**os.environ, **settings}.items() if value}
        client = NotebookClient(notebook, kernel_manager_class=_Kernel, timeout=1_200)
        client.execute(env=environment, cwd=folder)
    for cell in notebook.cells:  # times of this run and ids of this process are no part of the story
        cell.metadata.pop("execution", None)
    return notebook


def main() -> None:
    """Run all notebooks, or those whose names begin as given."""
    for path in NOTEBOOKS:
        if sys.argv[1:] and not any(path.name.startswith(name) for name in sys.argv[1:]):
            continue
        began = time.perf_counter()
        notebook = execute(path, os.environ.get("CPRS_NOTEBOOKS", "full"))
        nbformat.write(notebook, path)
        sys.stdout.write(f"{path.name}: {time.perf_counter() - began:.0f} s\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
