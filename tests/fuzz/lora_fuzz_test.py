"""Damaged LoRA files: a short ValueError that names the file, or exactly the updates of the file without the damage."""

import json
import pathlib
import random
import struct
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from helios_jax.checkpoints.lora_files import read_lora

pytestmark = pytest.mark.slow

SEED = 20250301
CASES = 60


def good_tensors(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A LoRA with three layers, an alpha and a dense update."""
    tensors: dict[str, np.ndarray] = {"diffusion_model.blocks.1.diff_m": np.ones((1, 6, 8), np.float32)}
    for layer in ("blocks.0.self_attn.q", "blocks.1.cross_attn.o", "head.head"):
        tensors[f"diffusion_model.{layer}.lora_down.weight"] = rng.standard_normal((3, 8)).astype(np.float32)
        tensors[f"diffusion_model.{layer}.lora_up.weight"] = rng.standard_normal((8, 3)).astype(np.float32)
        tensors[f"diffusion_model.{layer}.alpha"] = np.float32(2)
    return tensors


def cut(content: bytearray, rng: random.Random) -> bytes:
    return bytes(content[: rng.randrange(len(content))])


def flip_header(content: bytearray, rng: random.Random) -> bytes:
    size = 8 + struct.unpack("<Q", content[:8])[0]
    content[rng.randrange(size)] ^= 1 << rng.randrange(8)
    return bytes(content)


def insert(content: bytearray, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return bytes(content[:place] + rng.randbytes(rng.randrange(1, 9)) + content[place:])


def change_header(content: bytearray, rng: random.Random) -> bytes:
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    entry = header[rng.choice([name for name in header if name != "__metadata__"])]
    entry |= rng.choice(
        [
            {"dtype": "F99"},
            {"dtype": "I8"},
            {"shape": [-1]},
            {"shape": [2**62, 4]},
            {"shape": "8"},
            {"data_offsets": [0]},
        ]
    )
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(content[8 + size :])


def spoil_value(content: bytearray, rng: random.Random) -> bytes:
    tensors = good_tensors(np.random.default_rng(0))
    name = rng.choice(list(tensors))
    tensors[name] = np.full_like(tensors[name], rng.choice([np.nan, np.inf, -np.inf]))
    return save(tensors)


def drop_or_rename(content: bytearray, rng: random.Random) -> bytes:
    tensors = good_tensors(np.random.default_rng(0))
    name = rng.choice([name for name in tensors if "lora_" in name])
    tensor = tensors.pop(name)
    if rng.random() < 0.7:
        tensors[rng.choice([name[:-1], name + ".weight", name.replace("lora", "lor"), "", "\n", "é" * 300])] = tensor
    return save(tensors)


def reshape(content: bytearray, rng: random.Random) -> bytes:
    tensors = good_tensors(np.random.default_rng(0))
    name = rng.choice([name for name in tensors if "lora_" in name])
    shapes = [(), (24,), (24, 1), (1, 24), (2, 12), (0, 8), (8, 0), (3, 8, 0), (3, 2, 2, 2)]
    shape = rng.choice(shapes)
    tensors[name] = np.ones(shape, np.float32)
    return save(tensors)


DAMAGE: list[Callable[[bytearray, random.Random], bytes]] = [
    cut,
    flip_header,
    insert,
    change_header,
    spoil_value,
    drop_or_rename,
    reshape,
]


def test_damaged_files_are_refused_or_mean_the_same(tmp_path):
    file = tmp_path / "good.safetensors"
    save_file(good_tensors(np.random.default_rng(0)), file)
    expected, content = read_lora(file), file.read_bytes()
    refused = 0
    for case in range(CASES):
        damage = DAMAGE[case % len(DAMAGE)]
        damaged = tmp_path / f"case{case}.safetensors"
        damaged.write_bytes(damage(bytearray(content), random.Random(SEED + case)))
        refused += ends_well(damaged, expected, f"{damage.__name__}, case {case}")
    assert refused > 0.8 * CASES


def ends_well(damaged: pathlib.Path, expected: dict, case: str) -> bool:
    """Whether the file was refused; what was read otherwise must be some or all of the updates, unchanged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            found = read_lora(damaged)
        except ValueError as error:
            assert damaged.name in str(error), case
            assert str(error).count("\n") <= 3, case
            return True
    for name, delta in found.items():
        same = expected.get(name)
        # A flipped bit in a name gives another name, which no transformer has.
        if same is None:
            continue
        assert delta.weight in (same.weight, 1.0), case  # without its alpha, the rank counts
        for ours, theirs in zip(delta.factors, same.factors, strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=case)
    return False
