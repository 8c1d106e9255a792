"""Updates a notebook's cells from its script, executes it on the CPU and stores the outputs.

python scripts/run_notebook.py notebooks/sampling.py

Without helios-tiny the notebook runs with random weights; its outputs, pictures of noise, are then not stored.
"""

import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

from helios_jax.checkpoints.shipped import default_checkpoint


def run(script: Path) -> None:
    """Writes the notebook next to the script; cells keep their ids."""
    file = script.with_suffix(".ipynb")
    notebook = jupytext.read(script)
    before = nbformat.read(file, as_version=4) if file.exists() else nbformat.v4.new_notebook()
    for cell, old in zip(notebook.cells, before.cells, strict=False):
        cell.id = old.get("id", cell.id)
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Execution times would change with every run.
    NotebookClient(notebook, timeout=None, record_timing=False, kernel_name="python3").execute()
    if default_checkpoint() is None and "HELIOS_CHECKPOINT" not in os.environ:
        print("helios-tiny is not installed: the notebook ran with random weights, and its outputs are not stored")
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, file)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
