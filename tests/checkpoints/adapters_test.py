"""Adapters in files: round trips, and the names that diffusers wrote (tests/parity/record_lora.py)."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file

import helios_jax as hx
from helios_jax.checkpoints.adapters import save_adapters
from helios_jax.checkpoints.lora_merge import merge_lora_file
from helios_jax.models.lora import add_lora, merge_lora
from helios_jax.models.network import Network

DATA = pathlib.Path(__file__).parents[1] / "parity" / "data"


@functools.cache
def base():
    return hx.load_diffusers(DATA / "transformer" / "published", "transformer", dtype="float32")


def arrays(module):
    return {
        "/".join(map(str, path)): np.asarray(variable[...]) for path, variable in nnx.to_flat_state(nnx.state(module))
    }


def adapted(**options):
    """The recorded transformer with adapters that do something."""
    graph, state = nnx.split(add_lora(base(), **{"rank": 4, "alpha": 6, "key": jax.random.key(1)} | options))
    generator = np.random.default_rng(3)
    flat = [
        (path, variable.replace(jnp.asarray(generator.standard_normal(variable.shape) / 10, jnp.float32)))
        if path[-1] == "lora_b"
        else (path, variable)
        for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def assert_equal(found, expected, atol):
    found, expected = arrays(found), arrays(expected)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=atol, err_msg=name)


@pytest.mark.slow
def test_a_saved_file_merges_like_the_network(tmp_path):
    network = adapted()
    file = save_adapters(network, tmp_path / "lora.safetensors")
    merged = merge_lora_file(Network.of(base()), file)
    assert_equal(merged.module, merge_lora(network), 1e-6)


@pytest.mark.slow
def test_a_pipeline_loads_a_saved_file(tmp_path):
    from helios_jax.checkpoints.random import write_random_checkpoint

    write_random_checkpoint(tmp_path / "pipeline")
    pipe = hx.HeliosPipeline.from_pretrained(tmp_path / "pipeline", dtype="float32")
    network = add_lora(pipe.transformer.module, rank=2, key=jax.random.key(0))
    for layer in (network.proj_out, network.patch_mid):
        layer.lora_b = nnx.Param(layer.lora_b[...] + 0.1)
    expected = merge_lora(network)
    pipe.load_lora(save_adapters(network, tmp_path / "lora.safetensors"))
    assert_equal(pipe.transformer.module, expected, 1e-6)


def test_names_and_shapes_are_those_that_diffusers_writes(tmp_path):
    """The recorded file has adapters of rank 3 (6 and 2 for two layers) on every layer."""
    ours = load_file(save_adapters(adapted(rank=3), tmp_path / "lora.safetensors"))
    theirs = load_file(DATA / "lora" / "diffusers.safetensors")
    assert ours.keys() == theirs.keys()
    same = [name for name in theirs if "patch_long" not in name and "blocks.1.attn1.to_q." not in name]
    assert {name: ours[name].shape for name in same} == {name: theirs[name].shape for name in same}


def test_alpha_is_in_the_header(tmp_path):
    network = add_lora(adapted(targets=("blocks/.*",)), rank=2, alpha=5, targets=("proj_out",), key=jax.random.key(0))
    with safe_open(save_adapters(network, tmp_path / "lora.safetensors"), framework="numpy") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    assert settings["transformer.r"] == 4
    assert settings["transformer.lora_alpha"] == 6
    assert settings["transformer.rank_pattern"] == {"proj_out": 2}
    assert settings["transformer.alpha_pattern"] == {"proj_out": 5}
    assert "blocks.2.attn1.to_v" in settings["transformer.target_modules"]


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="no adapters to save"):
        save_adapters(base(), tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        save_adapters(adapted(), tmp_path / "lora.bin")
    save_adapters(adapted(), tmp_path / "lora.safetensors")
    with pytest.raises(FileExistsError, match="exists"):
        save_adapters(adapted(), tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match="fold them in with merge_lora"):
        hx.save_diffusers(adapted(), tmp_path / "out", "transformer")
