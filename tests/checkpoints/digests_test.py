"""Digests against a second derivation in plain Python, and the damage that they must show."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from helios_jax.checkpoints.digests import (
    _hash_on_device,
    check_digests,
    digest,
    digests_of,
    read_digests,
    write_digests,
)

DTYPES = [np.bool_, np.uint8, np.int8, np.float16, ml_dtypes.bfloat16, np.int32, np.float32, ml_dtypes.float8_e4m3fn]


def some_array(dtype: type, shape: tuple[int, ...] = (3, 5, 7)) -> np.ndarray:
    return (4 * np.random.default_rng(1).standard_normal(shape)).astype(dtype)


def by_hand(content: bytes, word_bytes: int) -> int:
    """The formula of the module, in integers of any size."""
    total = 0
    for index in range(len(content) // word_bytes):
        word = int.from_bytes(content[index * word_bytes : (index + 1) * word_bytes], "little")
        word ^= index * 0x9E3779B1 % 2**32
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            word = (word ^ word >> shift) * factor % 2**32
        total += word ^ word >> 16
    return total % 2**32


@pytest.mark.parametrize("dtype", [*DTYPES, np.int64, np.float64])
def test_numpy_follows_the_formula(dtype):
    array = some_array(dtype)
    expected = by_hand(array.tobytes(), min(array.dtype.itemsize, 4))
    assert digest(array) == f"{array.dtype.name}[3,5,7]:{expected:08x}"
    assert digest(array.T.copy().T) == digest(array)  # the order in memory does not count


@pytest.mark.parametrize("dtype", DTYPES)
def test_jax_agrees_with_numpy(dtype):
    array = some_array(dtype)
    on_device = int(_hash_on_device(jnp.asarray(array)))
    assert digest(jnp.asarray(array)) == digest(array)
    assert digest(array).endswith(f":{on_device:08x}")


def test_pieces_of_a_large_array_fit_together():
    array = np.arange(2**18 + 77, dtype=np.uint32)
    assert digest(array).endswith(f":{int(_hash_on_device(jnp.asarray(array))):08x}")
    assert digest(array) == f"uint32[{array.size}]:{by_hand(array.tobytes(), 4):08x}"


def test_scalars_empty_arrays_and_keys():
    assert (
        digest(np.float32(1.5)) == digest(jnp.float32(1.5)) == f"float32[]:{by_hand(np.float32(1.5).tobytes(), 4):08x}"
    )
    assert digest(np.zeros((0, 3), np.float32)) == digest(jnp.zeros((0, 3))) == "float32[0,3]:00000000"
    key = jax.random.key(7)
    assert digest(key) == digest(jax.random.key_data(key))
    assert digest(key) != digest(jax.random.key(8))


def test_every_flipped_bit_shows():
    array = some_array(ml_dtypes.bfloat16, (4, 6))
    seen = {digest(array)}
    for bit in range(array.nbytes * 8):
        content = bytearray(array.tobytes())
        content[bit // 8] ^= 1 << bit % 8
        seen.add(digest(np.frombuffer(bytes(content), array.dtype).reshape(array.shape)))
    assert len(seen) == 1 + array.nbytes * 8


def test_swapped_words_signs_and_zeros_show():
    array = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    swapped, negated, shifted = array.copy(), array.copy(), np.roll(array, 1, 1)
    swapped[[0, 1]] = swapped[[1, 0]]
    negated[0, :2] *= -1  # two flips of the highest bit cancel in a plain weighted sum
    different = {digest(x) for x in (array, swapped, negated, shifted, array.T, array.reshape(4, 3), 0 * array)}
    assert len(different) == 7


def test_check_names_what_changed(tmp_path):
    arrays = {"a": jnp.arange(6.0), "b": np.arange(3), "key": jax.random.key(0)}
    file = tmp_path / "digests.json"
    write_digests(file, digests_of(arrays))
    expected = read_digests(file)
    assert expected == {name: digest(array) for name, array in arrays.items()}
    check_digests(tmp_path, expected, arrays)
    check_digests(tmp_path, expected, {"a": arrays["a"], "new": np.zeros(2)})
    with pytest.raises(ValueError, match=r"is damaged.*\n.*1 changed: a \(written float32\[6\]:\w{8}, read float32"):
        check_digests(tmp_path, expected, arrays | {"a": arrays["a"].at[2].set(2.0000002)})


def test_files_of_digests(tmp_path):
    file = tmp_path / "digests.json"
    assert read_digests(file) == {}
    for content in ("", "[]", "{", '{"a": 3}', "null"):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"digests\.json"):
            read_digests(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"digests\.json"):
        read_digests(file)
    file.write_text(json.dumps({"a": "x"}))
    assert read_digests(file) == {"a": "x"}
