"""The weights of one network, whatever the layout of their folder."""

import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

import helios_jax as hx
from helios_jax.checkpoints.weights import layout_of, load_weights, save_weights

VAE = pathlib.Path(__file__).parents[1] / "parity" / "data" / "vae" / "other"


@pytest.mark.parametrize("layout", ["diffusers", "orbax"])
def test_the_layout_is_recognised(tmp_path, layout):
    """It is recognised from the checkpoint's folder and from the component's own."""
    vae = hx.load_diffusers(VAE, "vae")
    save_weights(vae, tmp_path, "vae", layout)
    assert layout_of(tmp_path / "vae") == layout
    for folder in (tmp_path, tmp_path / "vae"):
        loaded = load_weights(folder, "vae")
        jax.tree.map(np.testing.assert_array_equal, nnx.state(loaded), nnx.state(vae))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*absent"):
        load_weights(tmp_path / "absent", "vae")
