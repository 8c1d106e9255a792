"""The element-wise kernels through Mosaic and, where it is installed, the compiler: no spills, no narrow accesses."""

import pytest
from hopper_compiler import compile_for_hopper

RESIDUAL_NORM = """
from pallas_kernels.adaln.hopper import residual_norm

x, update = array({batch}, 2940, {dim}), array({batch}, {updated}, {dim})
rows = array({batch}, {positions}, {dim}, dtype="float32")

def run(x, update, gate, scale, shift):
    return residual_norm(x, update, gate=gate if {gated} else None, scale=scale, shift=shift, num_history=2400,
                         norm_history={norm_history}, eps=1e-6)

call = jax.jit(run), (x, update, rows, rows, rows)
"""

QK_NORM_ROPE = """
from pallas_kernels.qk_norm_rope.hopper import qk_norm_rope

fused, weight = array(2, 541, 3 * {dim}), array({dim})
table = array(541, 2, {head_dim} // 2, dtype="float32")

def run(fused, q_scale, k_scale, table):
    return qk_norm_rope(fused, fused, q_scale, k_scale, table, q_start=0, k_start={dim}, eps=1e-6)

call = jax.jit(run), (fused, weight, weight, table)
"""

BLOCK = dict(batch=1, dim=5120, updated=2940, positions=2, gated=True, norm_history=True)
CASES = {
    "before self-attention": RESIDUAL_NORM.format(**BLOCK),
    "before cross-attention": RESIDUAL_NORM.format(**BLOCK | dict(positions=1, norm_history=False)),
    "before the FFN": RESIDUAL_NORM.format(**BLOCK | dict(updated=540, gated=False)),
    "batch": RESIDUAL_NORM.format(**BLOCK | dict(batch=2)),
    "widest norm": RESIDUAL_NORM.format(**BLOCK | dict(dim=8192)),
    "heads of 128": QK_NORM_ROPE.format(dim=5120, head_dim=128),
    "heads of 64": QK_NORM_ROPE.format(dim=5120, head_dim=64),
    "widest rotation": QK_NORM_ROPE.format(dim=6144, head_dim=128),
}

LOWER = """
import jax

def array(*shape, dtype="bfloat16"):
    return jax.ShapeDtypeStruct(shape, dtype)
"""


@pytest.mark.parametrize("name", CASES)
def test_lowering(name):
    """Mosaic accepts the kernel; this needs JAX only."""
    scope = {}
    exec(LOWER + CASES[name], scope)
    function, arguments = scope["call"]
    assert "mosaic_gpu" in function.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


COMPILE = """
import os, pathlib, re

function, arguments = call
function.lower(*arguments).compile()
[ptx] = pathlib.Path(os.environ["MOSAIC_GPU_DUMP_TO"]).glob("*.ptx")
accesses = re.findall(r"(?:ld|st)(?:[.]global)?[.](?:v[0-9]+[.])?[bu][0-9]+", ptx.read_text())
assert len(accesses) >= 20, accesses
assert all(".v4.b32" in access for access in accesses), accesses
"""
"""LLVM splits an access into its elements when it cannot prove the alignment, as in branches that it merges."""


@pytest.mark.parametrize("name", CASES)
def test_no_spills_and_16_bytes_an_access(name, monkeypatch):
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTX", "1")
    report = compile_for_hopper(CASES[name] + COMPILE)
    assert report["kernels"] == 1
    assert report["spilled"] == 0
