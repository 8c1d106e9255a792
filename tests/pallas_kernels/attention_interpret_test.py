"""The attention kernel in Pallas' GPU interpreter: barriers, copies, masks and numerics as written, races."""

import pytest
from hopper_interpreter import run_in_interpreter

pytestmark = pytest.mark.slow

PROGRAM = """
from pallas_kernels.attention import AttentionConfig, attention_reference
from pallas_kernels.attention.hopper import attention_hopper

arrays = {"q": normal(*case["q"]), "k": normal(*case["kv"]), "v": normal(*case["kv"])}
if case["growth"] > 1:  # Of half of the first head's queries, towards the keys that are visited last.
    arrays["q"] = arrays["q"].at[:, : case["q"][1] // 2, 0].multiply(case["growth"])
    arrays["k"] = arrays["k"].at[:, :32].multiply(case["growth"])
heads, first, kv_length = case["num_heads"], case["first_heads"], case["kv_length"]
out, lse = attention_hopper(
    **arrays, num_heads=heads, first_heads=tuple(first), scale=0.1, kv_length=kv_length,
    last_key_count=case["last_key_count"], return_lse=True,
    config=AttentionConfig(**case["config"]), num_blocks=case["num_blocks"], interpret=interpret,
)
q, k, v = (x[:, :, f : f + heads] for x, f in zip(arrays.values(), first))
want, want_lse = attention_reference(q, k, v, scale=0.1, kv_length=kv_length, last_key_count=case["last_key_count"])
errors = [
    float((jnp.abs(got - want) / jnp.maximum(1, jnp.abs(want))).max())
    for got, want in ((out.astype(jnp.float32), want), (lse, want_lse))
]
print(json.dumps(errors))
"""


def case(
    q, kv, *, kv_length=None, last_key_count=1, num_heads=None, first_heads=(0, 0, 0), num_blocks=1, growth=1, **config
):
    heads = q[2] if num_heads is None else num_heads
    length = kv[1] if kv_length is None else kv_length
    return dict(
        q=q,
        kv=kv,
        kv_length=length,
        last_key_count=last_key_count,
        num_heads=heads,
        first_heads=first_heads,
        num_blocks=num_blocks,
        growth=growth,
        config=config,
    )


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case((1, 128, 1, 64), (1, 128, 1, 64), block_kv=32), id="more blocks than slots"),
        pytest.param(
            case((2, 200, 2, 128), (2, 104, 2, 128), kv_length=99, num_blocks=3, block_kv=64),
            id="ragged queries and keys, several tiles a block",
        ),
        pytest.param(case((1, 8, 1, 64), (1, 8, 1, 64), kv_length=1, block_kv=160), id="one key"),
        pytest.param(
            case((1, 136, 6, 64), (1, 136, 6, 64), num_heads=2, first_heads=(0, 2, 4), block_kv=64, stages=3),
            id="packed heads, three slots",
        ),
        pytest.param(
            case((1, 264, 1, 64), (1, 128, 1, 64), last_key_count=385, block_kv=128),
            id="one full block, last key counts",
        ),
        pytest.param(
            case((1, 128, 1, 64), (1, 128, 1, 64), last_key_count=257, block_kv=64),
            id="full blocks, last key counts",
        ),
        pytest.param(
            case((1, 128, 1, 64), (1, 104, 1, 64), kv_length=99, last_key_count=30, block_kv=64),
            id="masked block, last key counts",
        ),
        pytest.param(
            case((2, 264, 1, 64), (2, 160, 1, 64), growth=40, num_blocks=4, block_kv=32),
            id="scores grow beyond the range of fp32",
        ),
        pytest.param(
            case((1, 264, 2, 64), (1, 104, 2, 64), kv_length=99, growth=13, num_blocks=2, block_kv=64, stages=3),
            id="scores grow beyond the limit of one block's tiles",
        ),
    ],
)
def test_kernel_in_the_interpreter(case):
    error, lse_error = run_in_interpreter(PROGRAM, case)
    assert error < 1e-2
    assert lse_error < 1e-5
