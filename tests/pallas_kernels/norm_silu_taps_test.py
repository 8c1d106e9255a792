"""Norm, activation and taps of the VAE on a CPU: reference, gradients around the kernel, choice and errors."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from elementwise_cases import assert_rounded, normal

from pallas_kernels import dispatch
from pallas_kernels.norm_silu_taps import hopper, norm_silu_taps, reference, runs_as_kernel

SHAPES = [(1, 1, 2, 4, 96), (2, 2, 3, 5, 24), (1, 5, 4, 2, 192)]


@pytest.fixture
def device(monkeypatch):
    """Calls of a kernel that computes what Hopper's does, but anywhere."""
    calls = []

    def kernel(x, gamma):
        calls.append(x.shape)
        return reference.norm_silu_taps(x[:, :, None], gamma)[:, :, 0]

    monkeypatch.setattr(dispatch, "_missing_hardware", lambda: None)
    monkeypatch.setattr(hopper, "norm_silu_taps", kernel)
    return calls


def float64(*arrays):
    return (np.asarray(array, np.float64) for array in arrays)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers(shape):
    x, gamma = normal(0, *shape, mean=0.3), normal(1, shape[-1], mean=1.0)
    out = norm_silu_taps(x, gamma)
    assert out.dtype == jnp.bfloat16
    x, gamma = float64(x, gamma)
    z = x / np.sqrt((x * x).mean(-1, keepdims=True)) * gamma
    y = np.concatenate([np.zeros((shape[0], 2, *shape[2:])), z / (1 + np.exp(-z))], axis=1)
    assert_rounded(out, np.concatenate([y[:, :-2], y[:, 1:-1], y[:, 2:]], axis=-1))


def test_full_precision():
    x, gamma = normal(0, 1, 3, 4, 4, 24, dtype="float32"), normal(1, 24, dtype="float32")
    out = norm_silu_taps(x, gamma)
    x, gamma = float64(x, gamma)
    z = x / np.sqrt((x * x).mean(-1, keepdims=True)) * gamma
    np.testing.assert_allclose(out[..., 48:], z / (1 + np.exp(-z)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_taps_are_copies_of_earlier_frames(shape):
    """Two frames back, one back, present; zeros in front of the clip."""
    out = np.asarray(norm_silu_taps(normal(0, *shape), normal(1, shape[-1])), np.float32)
    *earlier, present = np.split(out, 3, axis=-1)
    for tap, later in zip(earlier, (2, 1), strict=True):
        assert not tap[:, :later].any()
        np.testing.assert_array_equal(tap[:, later:], present[:, :-later])


def test_a_pixel_of_zeros_stays_zero():
    x = normal(0, 1, 2, 2, 4, 96).at[0, 0, 1, 2].set(0)
    out = norm_silu_taps(x, normal(1, 96))
    assert not out[0, 0, 1, 2].any()
    assert bool(jnp.isfinite(out).all())


@pytest.mark.parametrize("path", ["reference", "kernel"])
@pytest.mark.parametrize("shape", [(2, 1, 2, 4, 96), (1, 4, 2, 4, 192)], ids=str)
def test_gradients(shape, path, request):
    """Against closed forms."""
    dtype, tolerance = "float32", 1e-5
    if path == "kernel":
        calls = request.getfixturevalue("device")
        dtype, tolerance = "bfloat16", 1e-2
    x, gamma = normal(0, *shape, mean=0.3, dtype=dtype), normal(1, shape[-1], mean=1.0, dtype=dtype)
    weight = normal(2, *shape[:-1], 3 * shape[-1], dtype=dtype)

    def loss(x, gamma):
        return jnp.vdot(norm_silu_taps(x, gamma).astype(jnp.float32), weight.astype(jnp.float32))

    got = jax.grad(loss, argnums=(0, 1))(x, gamma)

    x, gamma, weight = float64(x, gamma, weight)
    taps = np.split(weight, 3, axis=-1)
    dy = taps[2].copy()  # a frame is present once, and seen by the two after it
    dy[:, :-1] += taps[1][:, 1:]
    dy[:, :-2] += taps[0][:, 2:]
    length = np.sqrt((x * x).mean(-1, keepdims=True))
    unit = x / length
    sigmoid = 1 / (1 + np.exp(-unit * gamma))
    dz = dy * (sigmoid + unit * gamma * sigmoid * (1 - sigmoid))
    dunit = dz * gamma
    want = (dunit - unit * (unit * dunit).mean(-1, keepdims=True)) / length, (dz * unit).sum((0, 1, 2, 3))
    for ours, exact in zip(got, want, strict=True):
        assert ours.dtype == dtype
        assert ours.shape == exact.shape
        assert np.linalg.norm(np.asarray(ours, np.float64) - exact) < tolerance * np.linalg.norm(exact)
    if path == "kernel":
        assert calls == [(*shape[:2], 8, shape[-1])]


def test_a_cpu_uses_the_reference():
    x, gamma = normal(0, 1, 3, 2, 4, 96), normal(1, 96)
    assert not runs_as_kernel(x, gamma)
    np.testing.assert_array_equal(norm_silu_taps(x, gamma), norm_silu_taps(x, gamma, implementation="xla"))


def test_the_choice_is_told_in_advance(device):
    x, gamma = normal(0, 1, 3, 2, 4, 96), normal(1, 96)
    assert runs_as_kernel(x, gamma)
    norm_silu_taps(x, gamma)
    assert len(device) == 1
    for refused in ((x[:, :, :, :3], gamma), (x[..., :48], gamma[:48]), (x.astype("float32"), gamma)):
        assert not runs_as_kernel(*refused)
        norm_silu_taps(*refused)
    assert len(device) == 1


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 2, 2, 4, 96), "bfloat16", "it needs a GPU of compute capability 9.0"),
        ((1, 2, 2, 4, 96), "float32", "must be bfloat16, not float32 and float32"),
        ((1, 2, 2, 4, 128), "bfloat16", r"there must be \(96, 192, 384\) channels, not 128"),
        ((1, 2, 3, 4, 96), "bfloat16", "the pixels of a frame must be a multiple of 8, not 12"),
    ],
)
def test_a_kernel_that_cannot_run_says_why(shape, dtype, message):
    with pytest.raises(NotImplementedError, match=message):
        norm_silu_taps(normal(0, *shape, dtype=dtype), normal(1, shape[-1], dtype=dtype), implementation="pallas")


def test_unknown_implementation(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users: annotations are not checked
    with pytest.raises(ValueError, match="unknown norm_silu_taps implementation 'cudnn'"):
        norm_silu_taps(normal(0, 1, 2, 2, 4, 96), normal(1, 96), implementation="cudnn")
