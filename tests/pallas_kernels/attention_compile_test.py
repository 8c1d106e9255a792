"""The Hopper kernel through the real compiler: no spilled registers, no serialised wgmma, shared memory that fits."""

import pytest
from hopper_compiler import compile_for_hopper

PROGRAM = """
from pallas_kernels.attention.config import choose_config
from pallas_kernels.attention.hopper import attention_hopper

q, kv = array(1, {length}, {heads}, {head_dim}, dtype="{dtype}"), array(1, {kv}, {heads}, {head_dim}, dtype="{dtype}")

def attend(q, k, v):
    return attention_hopper(q, k, v, num_heads={heads}, first_heads=(0, 0, 0), scale=0.1, kv_length={kv_length},
                            last_key_count={last_key_count},
                            return_lse={lse}, config=choose_config({kv_length}), num_blocks=132)

jax.jit(attend).lower(q, kv, kv).compile()
"""


@pytest.mark.parametrize(
    "case",
    [
        dict(length=11040, kv=11040, kv_length=11040, heads=40, head_dim=128, lse=True),
        dict(length=2944, kv=2944, kv_length=2940, heads=40, head_dim=128, lse=True),
        dict(length=8640, kv=512, kv_length=512, heads=40, head_dim=128, lse=False),
        dict(length=8640, kv=128, kv_length=128, heads=40, head_dim=128, lse=False, last_key_count=385),
        dict(length=2160, kv=256, kv_length=256, heads=40, head_dim=128, lse=False, last_key_count=257),
        dict(length=2160, kv=384, kv_length=384, heads=40, head_dim=128, lse=True, last_key_count=129),
        dict(length=2160, kv=336, kv_length=330, heads=40, head_dim=128, lse=True, last_key_count=9),
        dict(length=4560, kv=4560, kv_length=4560, heads=16, head_dim=64, lse=True, dtype="float16"),
    ],
    ids=[
        "level 2",
        "padded, lse",
        "text",
        "text, one block",
        "text, 256 keys",
        "text, three",
        "text, masked",
        "64 wide, fp16",
    ],
)
def test_kernel_compiles_without_spills(case):
    report = compile_for_hopper(PROGRAM.format(**{"dtype": "bfloat16", "last_key_count": 1, **case}))
    assert report["kernels"] == 1
    assert report["spilled"] == 0
    assert report["serialised"] == 0
    assert report["shared_memory"] <= 232448
