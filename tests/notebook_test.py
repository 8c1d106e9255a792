"""The notebook runs, and its two forms are in sync."""

import pathlib
import runpy

import jupytext
import numpy as np
import pytest

NOTEBOOKS = pathlib.Path(__file__).parents[1] / "notebooks"


def test_script_and_notebook_hold_the_same_cells():
    script, notebook = (jupytext.read(NOTEBOOKS / f"sampling{suffix}") for suffix in (".py", ".ipynb"))
    cells = [[(cell.cell_type, cell.source) for cell in form.cells] for form in (script, notebook)]
    assert cells[0] == cells[1]


@pytest.mark.slow
def test_sampling_by_hand_equals_the_pipeline(monkeypatch):
    monkeypatch.delenv("HELIOS_CHECKPOINT", raising=False)
    names = runpy.run_path(str(NOTEBOOKS / "sampling.py"))
    np.testing.assert_array_equal(names["out"].frames, names["frames"][:, : names["out"].frames.shape[1]])
