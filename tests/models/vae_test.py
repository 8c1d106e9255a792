"""The VAE against clips recorded from diffusers (tests/parity/record_vae.py) and against itself in slices."""

import dataclasses
import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

import helios_jax as hx
from helios_jax.config import VaeConfig
from helios_jax.models import vae_layers
from helios_jax.models.vae import WanVae, decode_frames, denormalize, normalize, to_uint8
from pallas_kernels.norm_silu_pairs import norm_silu_pairs

DATA = pathlib.Path(__file__).parents[1] / "parity" / "data" / "vae"
CASES = ["wan", "other"]


@functools.cache
def load(case: str, dtype: str = "float32") -> WanVae:
    return hx.load_diffusers(DATA / case, "vae", dtype=dtype)


@functools.cache
def recorded(case: str) -> dict[str, np.ndarray]:
    """The recorded arrays, channels last; videos in [-1, 1]."""
    arrays = {name: np.moveaxis(array, 1, -1) for name, array in np.load(DATA / case / "case.npz").items()}
    return {
        name: array.astype(np.float32) / 127.5 - 1 if name.startswith("video") else array
        for name, array in arrays.items()
    }


def run(vae: WanVae, method: str, x: np.ndarray, slice_frames: int | None = None):
    return jax.tree.map(np.asarray, jitted(vae, method, slice_frames)(nnx.state(vae), jnp.asarray(x)))


@functools.cache
def jitted(vae: WanVae, method: str, slice_frames: int | None):
    graph = nnx.graphdef(vae)
    return jax.jit(lambda state, x: getattr(nnx.merge(graph, state), method)(x, slice_frames))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("frames", [1, pytest.param(30, marks=pytest.mark.slow), 33])
def test_encode_matches_diffusers(case, frames):
    arrays = recorded(case)
    mean, logvar = run(load(case), "encode", arrays[f"video{frames}"])
    np.testing.assert_allclose(mean, arrays[f"mean{frames}"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(logvar, arrays[f"logvar{frames}"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("frames", [1, pytest.param(3, marks=pytest.mark.slow), 9])
def test_decode_matches_diffusers(case, frames):
    arrays = recorded(case)
    video = run(load(case), "decode", arrays[f"latents{frames}"])
    np.testing.assert_allclose(video, arrays[f"decoded{frames}"], rtol=0, atol=2e-5)


def test_decode_in_pairs_of_frames_matches_diffusers(monkeypatch):
    """Four products for two frames, with the reference in place of the kernel."""
    monkeypatch.setattr(vae_layers, "runs_as_kernel", lambda x, gamma: True)
    calls = []
    monkeypatch.setattr(
        vae_layers, "norm_silu_pairs", lambda x, gamma: calls.append(x.shape) or norm_silu_pairs(x, gamma)
    )
    arrays, vae = recorded("wan"), load("wan")
    graph, state = nnx.split(vae)

    decode = jax.jit(lambda state, latents: nnx.merge(graph, state).decode(latents, None))
    video = decode(state, jnp.asarray(arrays["latents9"]))
    np.testing.assert_allclose(video, arrays["decoded9"], rtol=0, atol=2e-5)
    assert len(calls) > 20


@pytest.mark.parametrize(("case", "slice_frames"), [pytest.param("wan", 3, marks=pytest.mark.slow), ("other", 4)])
def test_slices_change_no_bit(case, slice_frames):
    """Slices of 4 divide the 8 frames after the first; slices of 3 do not."""
    arrays = recorded(case)
    whole, sliced = (run(load(case), "decode", arrays["latents9"], n) for n in (None, slice_frames))
    assert (whole == sliced).all()
    whole, sliced = (run(load(case), "encode", arrays["video33"], n) for n in (None, slice_frames))
    assert (whole[0] == sliced[0]).all()
    assert (whole[1] == sliced[1]).all()


@pytest.mark.slow
def test_slices_bound_memory():
    """Decoding 17 frames two at a time needs less than half of the scratch memory of decoding them at once."""
    vae, latents = load("other"), jnp.zeros((1, 17, 8, 8, 5))

    def scratch(slice_frames):
        compiled = jitted(vae, "decode", slice_frames).lower(nnx.state(vae), latents).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert scratch(2) < scratch(None) / 2


def test_bfloat16_is_as_close_as_recorded_bfloat16():
    arrays = recorded("wan")
    ours = run(load("wan", "bfloat16"), "decode", arrays["latents3"])
    assert ours.dtype == jnp.bfloat16
    mse, mse_recorded = (
        np.square(x.astype(np.float32) - arrays["decoded3"]).mean() for x in (ours, arrays["decoded3_bf16"])
    )
    assert 10 * np.log10(4 / mse) >= 40  # PSNR in dB; the peak-to-peak value is 2
    # Of the sums of taps in front of doubled rows and columns, each is rounded once more: 1.3 times measured.
    assert mse <= 1.5 * mse_recorded


def test_published_size():
    vae = nnx.eval_shape(lambda: WanVae(VaeConfig.wan_2_1(), rngs=nnx.Rngs(0)))
    sizes = {part: [math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(getattr(vae, part)))]
             for part in ("encoder", "decoder", "quant_conv", "post_quant_conv")}  # fmt: skip
    assert sum(map(len, sizes.values())) == 194
    assert {part: sum(counts) for part, counts in sizes.items()} == {
        "encoder": 53_595_872,
        "decoder": 73_295_331,
        "quant_conv": 32 * 32 + 32,
        "post_quant_conv": 16 * 16 + 16,
    }


def test_normalize_uses_the_published_constants():
    config = VaeConfig.wan_2_1()
    raw = jnp.full((1, 1, 1, 1, 16), 2.0, jnp.bfloat16)
    latents = normalize(config, raw)
    assert latents.dtype == jnp.float32
    np.testing.assert_allclose(latents[..., 0], (2.0 + 0.7571) / 2.8184, rtol=1e-6)
    np.testing.assert_allclose(latents[..., 15], (2.0 + 0.2921) / 1.9160, rtol=1e-6)
    np.testing.assert_allclose(denormalize(config, latents), raw, rtol=1e-6)


def test_to_uint8_rounds_to_nearest():
    levels = np.arange(256, dtype=np.float32)
    for offset in (-0.49, 0.0, 0.49):
        video = jnp.asarray((levels + offset) / 127.5 - 1)
        assert (to_uint8(video) == levels).all()
    assert to_uint8(jnp.array([-3.0, 3.0], jnp.bfloat16)).tolist() == [0, 255]


def test_decode_frames_composes():
    vae, arrays = load("other"), recorded("other")
    latents = (arrays["latents9"] - [0.3, -0.2, 0.1, 0.0, -1.0]) / [1.5, 0.7, 2.0, 1.0, 0.4]
    frames = np.asarray(jax.jit(lambda x: decode_frames(vae, x, 4))(jnp.asarray(latents, jnp.float32)))
    assert frames.dtype == np.uint8
    # Within half a level of the recorded pixels, give or take the rounding of fp32.
    assert np.abs(frames - (arrays["decoded9"] + 1) * 127.5).max() <= 0.5 + 0.01


@pytest.mark.parametrize("precision", [None, jax.lax.Precision.HIGHEST])
def test_precision_reaches_every_product(precision):
    config = dataclasses.replace(VaeConfig.tiny(), attn_scales=(0.5,))
    graph, state = nnx.split(nnx.eval_shape(lambda: WanVae(config, precision=precision, rngs=nnx.Rngs(0))))

    def there_and_back(state, video):
        vae = nnx.merge(graph, state)
        return vae.decode(vae.encode(video)[0])

    jaxpr = jax.make_jaxpr(there_and_back)(state, jax.ShapeDtypeStruct((1, 5, 16, 16, 3), jnp.float32))
    products = [e for e in equations(jaxpr.jaxpr) if e.primitive.name in ("dot_general", "conv_general_dilated")]
    assert {e.params["precision"] for e in products} == {None if precision is None else (precision, precision)}


def equations(jaxpr):
    """The equations of a jaxpr and of everything that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def test_errors_name_the_shape_and_the_remedy():
    vae = load("other")
    with pytest.raises(ValueError, match=r"latents of shape \(1, 2, 4, 4, 16\); expected .* 5\]"):
        vae.decode(jnp.zeros((1, 2, 4, 4, 16)))
    with pytest.raises(ValueError, match=r"video of shape \(1, 0, 16, 16, 4\)"):
        vae.encode(jnp.zeros((1, 0, 16, 16, 4)))
    with pytest.raises(ValueError, match="slices of 0 frames; use at least 1"):
        vae.decode(jnp.zeros((1, 2, 4, 4, 5)), slice_frames=0)
