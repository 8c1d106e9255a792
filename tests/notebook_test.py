"""The notebook runs, and its two forms are in sync."""

import pathlib
import runpy

import jupytext
import numpy as np
import pytest

from helios_jax.checkpoints import shipped

NOTEBOOKS = pathlib.Path(__file__).parents[1] / "notebooks"


def test_script_and_notebook_hold_the_same_cells():
    script, notebook = (jupytext.read(NOTEBOOKS / f"sampling{suffix}") for suffix in (".py", ".ipynb"))
    cells = [[(cell.cell_type, cell.source) for cell in form.cells] for form in (script, notebook)]
    assert cells[0] == cells[1]


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["random", "helios-tiny"])
def test_sampling_by_hand_equals_the_pipeline(checkpoint, monkeypatch, tmp_path):
    """With either checkpoint, and a video whose prompt changes is streamed before."""
    if checkpoint == "random":
        monkeypatch.setattr(shipped, "package_folder", lambda: tmp_path)
    elif shipped.default_checkpoint() is None:
        pytest.skip("helios-tiny is not installed")
    monkeypatch.delenv("HELIOS_CHECKPOINT", raising=False)
    names = runpy.run_path(str(NOTEBOOKS / "sampling.py"))
    np.testing.assert_array_equal(names["out"].frames, names["frames"][:, : names["out"].frames.shape[1]])
    assert names["streamed"].shape == (1, 8 * 33, 64, 64, 3)
    assert names["continued"].frames.shape == (1, 97, 64, 64, 3)
    assert len(names["axes"].lines) == 6
