"""The linear kernel through the real compiler: no spills, no serialised wgmma, shared memory that fits, no copies."""

import jax
import jax.numpy as jnp
import pytest
from hopper_compiler import compile_for_hopper

from pallas_kernels.linear.config import CONFIGS
from pallas_kernels.linear.hopper import linear_hopper

PROGRAM = """
from pallas_kernels.linear.config import CONFIGS
from pallas_kernels.linear.hopper import linear_hopper

def run(x, kernel, bias):
    return linear_hopper(x, kernel, bias if {has_bias} else None, activation={activation!r}, transposed={transposed},
                         config=CONFIGS[{config}], num_blocks=132)

shape = ({out_features}, {features}) if {transposed} else ({features}, {out_features})
jax.jit(run).lower(array({rows}, {features}), array(*shape), array({out_features})).compile()
"""

UP = dict(rows=11040, features=5120, out_features=13824, activation="gelu", has_bias=True, transposed=False)
"""A layer with bias and activation, and with rows and outputs that are not multiples of a tile."""
INPUT_GRADIENT = dict(rows=2944, features=13824, out_features=5120, activation=None, has_bias=False, transposed=True)


CASES = pytest.mark.parametrize("case", [UP, INPUT_GRADIENT], ids=["bias and gelu", "transposed"])
EACH_CONFIG = pytest.mark.parametrize("config", range(len(CONFIGS)))


@CASES
@EACH_CONFIG
def test_lowering(config, case):
    """Mosaic accepts the kernel; this needs JAX only."""
    shape = case["features"], case["out_features"]
    x, kernel, bias = (case["rows"], shape[0]), shape[:: -1 if case["transposed"] else 1], shape[1:]
    operands = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in (x, kernel, bias)]

    def run(x, kernel, bias):
        options = {"activation": case["activation"], "transposed": case["transposed"], "config": CONFIGS[config]}
        return linear_hopper(x, kernel, bias if case["has_bias"] else None, num_blocks=132, **options)

    assert "mosaic_gpu" in jax.jit(run).trace(*operands).lower(lowering_platforms=("cuda",)).as_text()


@CASES
@EACH_CONFIG
def test_kernel_compiles_without_spills(config, case):
    report = compile_for_hopper(PROGRAM.format(config=config, **case))
    assert report["kernels"] == 1
    assert report["spilled"] == 0
    assert report["serialised"] == 0
    assert report["shared_memory"] <= 232448


SCAN = r"""
import re
from jax.extend import backend
from pallas_kernels import devices
from pallas_kernels.linear import linear

devices.is_hopper = lambda: True
backend.get_default_device = lambda: topology.devices[0]

def layers(x, *stacks):
    def layer(x, weights):
        up, up_bias, down, down_bias = weights
        return x + linear(linear(x, up, up_bias, activation="gelu"), down, down_bias), None
    return jax.lax.scan(layer, x, stacks)[0]

operands = array(4560, 5120), array(3, 5120, 13824), array(3, 13824), array(3, 13824, 5120), array(3, 5120)
text = jax.jit(layers).lower(*operands).compile().as_text()

kernels = 0
for computation in re.split(r"\n(?=%|ENTRY)", text):
    weights = re.findall(r"= bf16\[(?:1,)?(?:5120,13824|13824,5120)\]\S* ([a-z-]+)\(", computation)
    if "mosaic_gpu" in computation:
        # The slice is part of the call: it moves the address.
        assert sorted(weights) == ["bitcast", "dynamic-slice"], computation
        kernels += 1
    else:
        assert not weights, computation
assert kernels == 2, text
assert len(re.findall(r"fusion\(.*kind=kCustom.*calls=%dynamic-slice-fusion", text)) == 2, text
"""


def test_a_scan_over_layers_copies_no_weights():
    assert compile_for_hopper(SCAN)["kernels"] == 2
