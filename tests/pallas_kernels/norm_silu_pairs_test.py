"""Norm, activation and sums of frames on a CPU: reference, gradients around the kernel, choice and errors."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from elementwise_cases import normal

from pallas_kernels import devices
from pallas_kernels.norm_silu_pairs import hopper, norm_silu_pairs, reference, runs_as_kernel

SHAPES = [(1, 1, 2, 4, 96), (2, 2, 3, 5, 24), (1, 5, 4, 2, 192)]


@pytest.fixture
def device(monkeypatch):
    """Replaces the kernel by one that computes the same anywhere; returns the shapes of its calls."""
    calls = []

    def kernel(x, gamma):
        calls.append(x.shape)
        return tuple(d[:, :, 0] for d in reference.norm_silu_pairs(x[:, :, None], gamma))

    monkeypatch.setattr(devices, "is_hopper", lambda: True)
    monkeypatch.setattr(hopper, "norm_silu_pairs", kernel)
    return calls


def float64(*arrays):
    return (np.asarray(array, np.float64) for array in arrays)


def activated(x: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    z = x / np.sqrt((x * x).mean(-1, keepdims=True)) * gamma
    return z / (1 + np.exp(-z))


def sums(y: np.ndarray) -> list[np.ndarray]:
    """The sums, computed frame by frame as the equations are written."""
    zeros = np.zeros_like(y[:, 0])

    def frame(t: int) -> np.ndarray:
        return y[:, t] if 0 <= t < y.shape[1] else zeros

    pairs = [
        (
            frame(t - 2) - frame(t),
            frame(t - 1) + frame(t),
            frame(t) - frame(t - 1),
            frame(t - 1) - frame(t + 1),
        )
        for t in range(0, y.shape[1], 2)
    ]
    return [np.stack(parts, axis=1) for parts in zip(*pairs, strict=True)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers(shape):
    """The results are rounded once, to the nearest."""
    x, gamma = normal(0, *shape, mean=0.3), normal(1, shape[-1], mean=1.0)
    got = norm_silu_pairs(x, gamma)
    for ours, exact in zip(got, sums(activated(*float64(x, gamma))), strict=True):
        assert ours.dtype == jnp.bfloat16
        assert ours.shape == exact.shape
        error = np.abs(np.asarray(ours, np.float64) - exact)
        assert (error <= 2.0**-8 * np.abs(exact) + 1e-5).all()


@pytest.mark.parametrize("frames", [1, 2, 5, 6])
def test_four_products_are_six(frames):
    """A filter over time computed from the sums agrees with the filter itself; no frame outside the clip enters."""
    x, gamma = normal(0, 1, frames, 2, 4, 24, dtype="float32"), normal(1, 24, dtype="float32")
    g = np.asarray(normal(2, 3, 24, dtype="float32"), np.float64)
    d = [np.asarray(part, np.float64) for part in norm_silu_pairs(x, gamma)]
    m0, m1, m2, m3 = g[0] * d[0], g.sum(0) / 2 * d[1], (g[0] - g[1] + g[2]) / 2 * d[2], g[2] * d[3]
    got = np.stack([m0 + m1 + m2, m1 - m2 - m3], axis=2).reshape(1, -1, 2, 4, 24)[:, :frames]
    y = np.pad(activated(*float64(x, gamma)), ((0, 0), (2, 0), (0, 0), (0, 0), (0, 0)))
    want = sum(g[tap] * y[:, tap : tap + frames] for tap in range(3))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_pixel_of_zeros_stays_zero():
    x = normal(0, 1, 2, 2, 4, 96).at[0, :, 1, 2].set(0)
    for d in norm_silu_pairs(x, normal(1, 96)):
        assert not d[0, :, 1, 2].any()
        assert bool(jnp.isfinite(d).all())


@pytest.mark.parametrize("path", ["reference", "kernel"])
def test_gradients(path, request):
    """Gradients agree with differences of the float64 function along one direction."""
    shape, dtype, tolerance = (1, 5, 2, 4, 192), "float32", 1e-4
    if path == "kernel":
        calls = request.getfixturevalue("device")
        dtype, tolerance = "bfloat16", 2e-2
    x, gamma = normal(0, *shape, mean=0.3, dtype=dtype), normal(1, shape[-1], mean=1.0, dtype=dtype)
    weights = [normal(2 + i, 1, 3, 2, 4, 192, dtype=dtype) for i in range(4)]

    def loss(x, gamma):
        parts = zip(weights, norm_silu_pairs(x, gamma), strict=True)
        return sum(jnp.vdot(w.astype(jnp.float32), d.astype(jnp.float32)) for w, d in parts)

    got = jax.grad(loss, argnums=(0, 1))(x, gamma)
    operands, exact = list(float64(x, gamma)), list(float64(*weights))
    for number, slope in enumerate(got):
        assert slope.dtype == dtype
        direction = np.asarray(slope, np.float64)
        direction /= np.linalg.norm(direction)

        def value(by, number=number, direction=direction):
            moved = [array + by * direction * (i == number) for i, array in enumerate(operands)]
            return sum(np.vdot(w, d) for w, d in zip(exact, sums(activated(*moved)), strict=True))

        difference = (value(1e-4) - value(-1e-4)) / 2e-4
        assert np.linalg.norm(np.asarray(slope, np.float64)) == pytest.approx(difference, rel=tolerance)
    if path == "kernel":
        assert calls == [(1, 5, 8, 192)]


def test_a_cpu_uses_the_reference():
    x, gamma = normal(0, 1, 3, 2, 4, 96), normal(1, 96)
    assert not runs_as_kernel(x, gamma)
    for ours, plain in zip(norm_silu_pairs(x, gamma), norm_silu_pairs(x, gamma, implementation="xla"), strict=True):
        np.testing.assert_array_equal(ours, plain)


def test_runs_as_kernel_agrees_with_the_choice(device):
    x, gamma = normal(0, 1, 3, 2, 4, 96), normal(1, 96)
    assert runs_as_kernel(x, gamma)
    norm_silu_pairs(x, gamma)
    assert len(device) == 1
    for refused in ((x[:, :, :, :3], gamma), (x[..., :48], gamma[:48]), (x.astype("float32"), gamma)):
        assert not runs_as_kernel(*refused)
        norm_silu_pairs(*refused)
    assert len(device) == 1


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 2, 2, 4, 96), "bfloat16", r"norm_silu_pairs .* it needs a GPU of compute capability 9.0"),
        ((1, 2, 2, 4, 96), "float32", "must be bfloat16, not float32 and float32"),
        ((1, 2, 2, 4, 128), "bfloat16", r"there must be \(96, 192, 384\) channels, not 128"),
        ((1, 2, 3, 4, 96), "bfloat16", "the pixels of a frame must be a multiple of 8, not 12"),
    ],
)
def test_a_kernel_that_cannot_run_says_why(shape, dtype, message):
    with pytest.raises(NotImplementedError, match=message):
        norm_silu_pairs(normal(0, *shape, dtype=dtype), normal(1, shape[-1], dtype=dtype), implementation="pallas")


def test_unknown_implementation(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users: annotations are not checked
    with pytest.raises(ValueError, match="unknown norm_silu_pairs implementation 'cudnn'"):
        norm_silu_pairs(normal(0, 1, 2, 2, 4, 96), normal(1, 96), implementation="cudnn")
