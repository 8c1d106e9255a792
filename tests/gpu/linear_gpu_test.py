"""The linear layer on a Hopper GPU: the sizes of the 14B model, every tile shape, stray writes, gradients.

Every element is compared with fp32 arithmetic on the same operands.
"""

import functools

import jax
import jax.numpy as jnp
import pytest
from elementwise_cases import guarded, normal
from jax import lax

from pallas_kernels import devices
from pallas_kernels.linear import linear
from pallas_kernels.linear.config import CONFIGS
from pallas_kernels.linear.hopper import linear_hopper

pytestmark = pytest.mark.skipif(not devices.is_hopper(), reason="needs a Hopper GPU as the default device")

ROWS_AT_ONCE = 256

# cuBLAS: to search among Triton's kernels would take longer than the tests.
reference_jit = functools.partial(jax.jit, compiler_options={"xla_gpu_enable_triton_gemm": False})


def exact(x, kernel, bias, activation):
    """The layer in fp32."""
    x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
    y = jnp.matmul(x, kernel, precision="highest")
    y = y if bias is None else y + bias.astype(jnp.float32)
    return y if activation is None else jax.nn.gelu(y, approximate=True)


@functools.partial(reference_jit, static_argnums=4)
def deviations(x, kernel, bias, got, activation):
    """Relative error, and the largest deviation that the rounding of the result does not explain."""

    def of_rows(start):
        want = exact(lax.dynamic_slice_in_dim(x, start, ROWS_AT_ONCE), kernel, bias, activation)
        error = jnp.abs(lax.dynamic_slice_in_dim(got, start, ROWS_AT_ONCE).astype(jnp.float32) - want)
        return jnp.sum(error**2), jnp.sum(want**2), jnp.max(error - 2**-8 * jnp.abs(want))

    starts = jnp.arange(0, x.shape[0], ROWS_AT_ONCE)  # the last ones are moved up to the end
    error, scale, excess = lax.map(of_rows, starts)
    return jnp.sqrt(error.sum() / scale.sum()), excess.max()


def assert_close(x, kernel, bias, got, activation):
    assert got.dtype == jnp.bfloat16
    assert got.shape == (x.shape[0], kernel.shape[1])
    error, excess = deviations(x, kernel, bias, got, activation)
    assert float(error) < 2e-3  # rounding of the result alone makes 1.7e-3
    assert float(excess) < 1e-3  # of numbers of size one


def check(run, x, kernel, bias, activation):
    """Runs the compiled ``run()`` between guards, and again to compare the bits."""
    first = run()
    assert_close(x, kernel, bias, first, activation)
    for _ in range(2):
        (again,) = guarded(lambda: (run(),))
        assert bool(jnp.array_equal(first, again))


LAYERS = {
    "qkv": (5120, 15360, None),
    "up": (5120, 13824, "gelu"),
    "down": (13824, 5120, None),
    "out": (5120, 5120, None),
}


@functools.cache
def rows_of(features):
    return normal(0, 11040, features)


@functools.cache
def weights(layer):
    features, out_features, _ = LAYERS[layer]
    return normal(1, features, out_features) * features**-0.5, normal(2, out_features)


@pytest.mark.parametrize(
    ("rows", "layer"),
    [
        *((11040, layer) for layer in LAYERS),
        *((4560, layer) for layer in ("qkv", "up")),
        *((2944, layer) for layer in ("down", "out")),
        (8640, "out"),
        (2160, "out"),
        *((544, layer) for layer in ("up", "down")),
        (512, "out"),
    ],
)
def test_layers_of_the_model(rows, layer):
    features, _, activation = LAYERS[layer]
    x, (kernel, bias) = rows_of(features)[:rows], weights(layer)
    run = jax.jit(lambda *operands: linear(*operands, activation=activation, implementation="pallas"))
    check(lambda: run(x, kernel, bias), x, kernel, bias, activation)


ODD = [
    # rows, inputs, outputs, activation, bias: tiles that are partly or wholly past the end, few and many of them
    (264, 64, 640, None, True),
    (1000, 320, 128, "gelu", True),
    (1000, 192, 5248, "gelu", False),
    (264, 1024, 4224, None, True),
]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("config", range(len(CONFIGS)))
def test_every_tile_shape(config, transposed):
    # The two layouts of one tile shape see two problems, all four problems are seen twice.
    rows, features, out_features, activation, has_bias = ODD[(config + transposed) % len(ODD)]
    x, kernel = normal(3, rows, features), normal(4, features, out_features) * features**-0.5
    bias = normal(5, out_features) if has_bias else None
    options = {"activation": activation, "transposed": transposed, "config": CONFIGS[config]}
    run = jax.jit(lambda *operands: linear_hopper(*operands, **options))
    operands = x, jnp.array(kernel.T) if transposed else kernel, bias
    check(lambda: run(*operands), x, kernel, bias, activation)


@pytest.mark.parametrize("num_blocks", [1, 7])
def test_few_thread_blocks(num_blocks):
    """Each thread block computes many tiles through the same slots."""
    x, kernel, bias = normal(3, 1000, 192), normal(4, 192, 640) * 192**-0.5, normal(5, 640)
    run = jax.jit(lambda *operands: linear_hopper(*operands, activation=None, num_blocks=num_blocks))
    check(lambda: run(x, kernel, bias), x, kernel, bias, None)


@pytest.mark.parametrize(
    ("shape", "features", "out_features", "activation", "has_bias"),
    [
        ((2, 272), 1280, 640, "gelu", True),
        ((1000,), 192, 1280, None, False),  # the gradient of so few inputs is no multiple of a tile
        ((2944,), 5120, 5120, None, True),
    ],
)
def test_gradients(shape, features, out_features, activation, has_bias):
    kernel = normal(1, features, out_features) * features**-0.5
    operands = {"x": normal(0, *shape, features), "kernel": kernel}
    if has_bias:
        operands["bias"] = normal(2, out_features)
    weight = normal(3, *shape, out_features)

    def loss(operands):
        out = linear(**operands, activation=activation, implementation="pallas")
        return jnp.vdot(out.astype(jnp.float32), weight.astype(jnp.float32))

    def exact_loss(operands):
        out = exact(operands["x"], operands["kernel"], operands.get("bias"), activation)
        return jnp.vdot(out, weight.astype(jnp.float32))

    gradients = jax.jit(jax.grad(loss))
    got, want = gradients(operands), reference_jit(jax.grad(exact_loss))(operands)
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, operands)
    for name, again in gradients(operands).items():
        assert got[name].dtype == jnp.bfloat16
        assert bool(jnp.array_equal(got[name], again))
        difference, whole = (got[name].astype(jnp.float32) - want[name].astype(jnp.float32)), want[name]
        error = float(jnp.linalg.norm(difference) / jnp.linalg.norm(whole.astype(jnp.float32)))
        assert error < 1e-2, (name, error)


def test_the_default_is_the_kernel():
    x, kernel, bias = normal(0, 256, 128), normal(1, 128, 256), normal(2, 256)
    assert "mosaic_gpu" in jax.jit(linear).lower(x, kernel, bias).as_text()
    assert "mosaic_gpu" not in jax.jit(linear).lower(x[:128], kernel, bias).as_text()
