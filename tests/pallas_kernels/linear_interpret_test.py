"""The linear kernel in Pallas' GPU interpreter: slots and barriers, ragged tiles, both splits and layouts, races."""

import dataclasses

import pytest
from hopper_interpreter import run_in_interpreter

from pallas_kernels.linear.config import CONFIGS

pytestmark = pytest.mark.slow

PROGRAM = """
from pallas_kernels.linear.config import LinearConfig
from pallas_kernels.linear.hopper import linear_hopper

rows, features, out_features = case["shape"]
x, kernel = normal(rows, features), normal(features, out_features) * features**-0.5
bias = normal(out_features) if case["bias"] else None
got = linear_hopper(
    x, kernel.T if case["transposed"] else kernel, bias, activation=case["activation"], transposed=case["transposed"],
    config=LinearConfig(**case["config"]), num_blocks=case["num_blocks"], interpret=interpret,
)
want = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
want = want if bias is None else want + np.asarray(bias, np.float64)
if case["activation"]:
    want = want * (1 + np.tanh(np.sqrt(2 / np.pi) * (want + 0.044715 * want**3))) / 2
assert got.shape == want.shape and got.dtype == jnp.bfloat16
# One rounding, to the nearest.
print(json.dumps(float((np.abs(np.asarray(got, np.float64) - want) - 2.0**-8 * np.abs(want)).max())))
"""


def case(*shape, bias=True, activation=None, transposed=False, num_blocks=1, **config):
    return dict(
        shape=shape, bias=bias, activation=activation, transposed=transposed, num_blocks=num_blocks, config=config
    )


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case(264, 192, 192, num_blocks=2, rows=64, columns=96, stages=2),
            id="ragged rows, several tiles a block, chunks of 32 columns",
        ),
        pytest.param(
            case(136, 128, 256, activation="gelu", rows=64, columns=128, stages=4, split="columns"),
            id="split columns, fewer slices than slots",
        ),
        pytest.param(
            case(72, 128, 128, num_blocks=2, rows=64, columns=128, stages=2, split="columns"),
            id="a consumer whose columns are all past the end",
        ),
        pytest.param(
            case(8, 320, 192, activation="gelu", rows=64, columns=128, stages=3),
            id="a consumer whose rows are all past the end, columns half",
        ),
        pytest.param(
            case(136, 128, 192, transposed=True, bias=False, num_blocks=3, rows=64, columns=128, stages=2),
            id="transposed, no bias",
        ),
        pytest.param(
            case(136, 192, 448, transposed=True, num_blocks=2, rows=64, columns=96, stages=3, split="columns"),
            id="transposed, split columns",
        ),
    ],
)
def test_kernel_in_the_interpreter(case):
    assert run_in_interpreter(PROGRAM, case) < 1e-5


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: "x".join(map(str, config.block)))
def test_published_tile_shapes(config):
    config = dataclasses.asdict(config)
    assert run_in_interpreter(PROGRAM, case(264, 128, 448, activation="gelu", num_blocks=2, **config)) < 1e-5
