"""The weights of one network, whatever the layout of their folder."""

import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

import helios_jax as hx
from helios_jax.checkpoints.weights import _largest, layout_of, load_weights, save_weights

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


@pytest.mark.parametrize("layout", ["diffusers", pytest.param("orbax", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("value", "dtype"), [("nan", "float32"), ("-inf", "bfloat16"), ("3e38", "float32")])
def test_weights_that_no_training_gives_are_named(tmp_path, layout, value, dtype):
    """A decoder with such a weight gives black frames from good latents."""
    vae = hx.load_diffusers(VAE, "vae", dtype=dtype)
    kernel = vae.decoder.conv_out.kernel
    kernel[...] = kernel[...].at[1, 2, 0, 1, 1].set(float(value))
    save_weights(vae, tmp_path, "vae", layout)
    with pytest.raises(ValueError, match=r"/vae: the parameter decoder\.conv_out\.kernel holds NaN, infinity or"):
        load_weights(tmp_path, "vae")


def test_the_largest_magnitude_is_found_in_bits():
    generator = np.random.default_rng(0)
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        array = generator.normal(0, 100, (40, 30)).astype(dtype)
        assert _largest(array) == np.abs(array.astype(np.float64)).max()
        array[3, 7] = np.nan
        assert np.isnan(_largest(array))
    assert _largest(np.zeros((0, 3), np.float32)) == 0
