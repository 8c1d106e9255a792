"""The linear layer on a CPU: reference, gradients around the kernel, choice of tiles, errors."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from elementwise_cases import normal

from pallas_kernels import devices
from pallas_kernels.linear import config, hopper, linear

GELU_SLOPE = np.sqrt(2 / np.pi)


def gelu(x):
    """The tanh approximation and its derivative."""
    t = np.tanh(GELU_SLOPE * (x + 0.044715 * x**3))
    return x * (1 + t) / 2, (1 + t) / 2 + x / 2 * (1 - t * t) * GELU_SLOPE * (1 + 3 * 0.044715 * x * x)


def layer(x, kernel, bias, activation):
    """The layer in float64."""
    x, kernel, bias = (None if a is None else np.asarray(a, np.float64) for a in (x, kernel, bias))
    y = x @ kernel + (0 if bias is None else bias)
    return y if activation is None else gelu(y)[0]


def operands(rows, features, out_features, *, has_bias=True, dtype="bfloat16"):
    x, kernel = normal(0, *rows, features, dtype=dtype), normal(1, features, out_features, dtype=dtype)
    return x, kernel * features**-0.5, normal(2, out_features, dtype=dtype) if has_bias else None


@pytest.fixture
def device(monkeypatch):
    """Replaces the kernel by one that runs anywhere and, as Hopper's does, rounds once at the end; returns its
    calls."""
    calls = []

    def linear_hopper(x, kernel, bias, *, activation, transposed=False):
        calls.append((activation, transposed))
        kernel, bias = (None if a is None else a.astype(jnp.float32) for a in (kernel, bias))
        y = jnp.matmul(x.astype(jnp.float32), kernel.T if transposed else kernel, precision="highest")
        y = y if bias is None else y + bias
        return (y if activation is None else jax.nn.gelu(y, approximate=True)).astype(x.dtype)

    monkeypatch.setattr(devices, "is_hopper", lambda: True)
    monkeypatch.setattr(hopper, "linear_hopper", linear_hopper)
    return calls


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 5e-3)])
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("rows", [(), (5,), (2, 3)])
def test_reference(rows, has_bias, activation, dtype, tolerance):
    x, kernel, bias = operands(rows, 96, 40, has_bias=has_bias, dtype=dtype)
    out = linear(x, kernel, bias, activation=activation)
    assert out.dtype == dtype
    want = layer(x, kernel, bias, activation)
    assert out.shape == want.shape
    assert np.linalg.norm(np.asarray(out, np.float64) - want) < tolerance * np.linalg.norm(want)


@pytest.mark.parametrize("path", ["reference", "kernel"])
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize(("features", "has_bias"), [(128, True), (192, False)])
def test_gradients(features, has_bias, activation, path, request):
    """Gradients of all operands agree with closed forms, with leading axes."""
    dtype, tolerance = "float32", 1e-6
    if path == "kernel":
        calls = request.getfixturevalue("device")
        dtype, tolerance = "bfloat16", 1e-2
    x, kernel, bias = operands((2, 136), features, 128, has_bias=has_bias, dtype=dtype)
    weight = normal(3, 2, 136, 128, dtype=dtype)

    def loss(x, kernel, bias):
        out = linear(x, kernel, bias, activation=activation)
        return jnp.vdot(out.astype(jnp.float32), weight.astype(jnp.float32))

    got = jax.grad(loss, argnums=(0, 1, 2) if has_bias else (0, 1))(x, kernel, bias)

    dy = np.asarray(weight, np.float64)
    if activation:
        dy = dy * gelu(layer(x, kernel, bias, None))[1]
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    want = [dy @ kernel.T, np.einsum("bsi,bso->io", x, dy), dy.sum((0, 1))]
    for ours, exact in zip(got, want, strict=False):
        assert ours.dtype == dtype
        assert ours.shape == exact.shape
        assert np.linalg.norm(np.asarray(ours, np.float64) - exact) < tolerance * np.linalg.norm(exact)
    if path == "kernel":
        # The backward pass needs the sum before the activation. Inputs that are not a tile wide are left to XLA.
        assert calls == [(None, False)] + [(None, True)] * (features == 128)


def test_bias_and_activation_run_in_the_kernel(device):
    x, kernel, bias = operands((264,), 64, 128)
    out = np.asarray(linear(x, kernel, bias, activation="gelu"), np.float64)
    want = layer(x, kernel, bias, "gelu")
    assert device == [("gelu", False)]
    assert np.max(np.abs(out - want) - 2**-8 * np.abs(want)) < 1e-6


def test_a_cpu_uses_the_reference():
    x, kernel, bias = operands((256,), 64, 128)
    assert "custom_call" not in jax.jit(linear).lower(x, kernel, bias).as_text()
    np.testing.assert_array_equal(linear(x, kernel, bias), linear(x, kernel, bias, implementation="xla"))


@pytest.mark.parametrize(
    ("rows", "features", "out_features", "dtype"),
    [(264, 96, 128, "bfloat16"), (264, 64, 64, "bfloat16"), (248, 64, 128, "bfloat16"), (264, 64, 128, "float32")],
)
def test_what_the_kernel_cannot_take_goes_to_xla(rows, features, out_features, dtype, device):
    x, kernel, bias = operands((rows,), features, out_features, dtype=dtype)
    linear(x, kernel, bias)
    assert not device


@pytest.mark.parametrize(
    ("rows", "features", "out_features", "dtype", "message"),
    [
        (256, 64, 128, "bfloat16", "it needs a GPU of compute capability 9.0"),
        (256, 64, 128, "float32", "must be bfloat16, not float32"),
        (256, 96, 128, "bfloat16", "inputs must be a multiple of 64 and outputs of 128, not 96 and 128"),
        (256, 64, 192, "bfloat16", "inputs must be a multiple of 64 and outputs of 128, not 64 and 192"),
        (248, 64, 128, "bfloat16", "at least 256 rows, a multiple of 8, not 248"),
        (260, 64, 128, "bfloat16", "at least 256 rows, a multiple of 8, not 260"),
    ],
)
def test_a_kernel_that_cannot_run_says_why(rows, features, out_features, dtype, message):
    x, kernel, bias = operands((rows,), features, out_features, dtype=dtype)
    with pytest.raises(NotImplementedError, match=message):
        linear(x, kernel, bias, implementation="pallas")


def test_mixed_types():
    x, kernel, bias = operands((256,), 64, 128)
    with pytest.raises(NotImplementedError, match="must be bfloat16, not bfloat16, float32"):
        linear(x, kernel, bias.astype(jnp.float32), implementation="pallas")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "relu"}, "unknown activation 'relu'; expected 'gelu' or None"),
        ({"x": jnp.ones((4, 63))}, "x has 63 channels, the kernel takes 64"),
        ({"bias": jnp.ones(127)}, r"bias has shape \(127,\); expected \(128,\)"),
        ({"implementation": "cudnn"}, "unknown linear implementation 'cudnn'"),
    ],
)
def test_operands_that_do_not_fit(options, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users: annotations are not checked
    with pytest.raises(ValueError, match=message):
        linear(**{"x": jnp.ones((4, 64)), "kernel": jnp.ones((64, 128)), "bias": jnp.ones(128), **options})


@pytest.mark.parametrize(
    ("rows", "columns", "num_blocks", "block"),
    # Tiles of 128x256, 256x192, 128x192, 128x128; how many each of 132 thread blocks computes at most; how much of
    # what these could compute is wanted, times the rate.
    [
        # 87 60, 44 80, 87 80, 87 120 tiles; 40, 27, 53, 80 a block; 0.980, 0.968, 0.986 0.985, 0.980 0.97
        (11040, 15360, 132, (128, 256)),
        # 87 20, 44 27, 87 27, 87 40 tiles; 14, 9, 18, 27 a block; 0.933, 0.968, 0.968 0.985, 0.968 0.97
        (11040, 5120, 132, (256, 192)),
        # 23 60, 12 80, 23 80, 23 120 tiles; 11, 8, 14, 21 a block; 0.950, 0.871, 0.996 0.985, 0.996 0.97
        (2944, 15360, 132, (128, 192)),
        # 23 20, 12 27, 23 27, 23 40 tiles; 4, 3, 5, 7 a block; 0.871, 0.775, 0.929 0.985, 0.996 0.97
        (2944, 5120, 132, (128, 128)),
        # One thread block: only what lies past the end is lost.
        (256, 512, 1, (128, 256)),
        (256, 384, 1, (256, 192)),
        (128, 192, 1, (128, 192)),
        (1000, 128, 1, (128, 128)),
    ],
)
def test_choice_of_tiles(rows, columns, num_blocks, block):
    assert config.choose_config(rows, columns, num_blocks).block == block
