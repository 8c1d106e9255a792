"""A pipeline with a LoRA file that is not merged: the network of training samples, and the weights stay as they are."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

import helios_jax as hx
from helios_jax.checkpoints.adapters import save_adapters
from helios_jax.models.lora import add_lora
from helios_jax.models.network import Network

CALL = {"num_frames": 33, "height": 64, "width": 64, "steps": (1, 1, 1), "max_text_tokens": 8, "progress": False}


@pytest.fixture(scope="module")
def trained(pipelines):
    """The distilled transformer with adapters that do something, on one layer of each kind."""
    network = pipelines("distilled").transformer.module
    targets = ("blocks/(attn1/to_qkv|attn2/to_k|ffn/proj_in)", "patch_embedding", "condition_embedder/.*")
    network = add_lora(network, rank=2, targets=targets, key=jax.random.key(0))
    flat = nnx.to_flat_state(nnx.state(network))
    moved = [(path, one.replace(one[...] + 0.05) if path[-1] == "lora_b" else one) for path, one in flat]
    return nnx.merge(nnx.split(network)[0], nnx.from_flat_state(moved))


def test_a_separate_file_is_listed_and_is_not_saved(distilled, trained, tmp_path):
    file = save_adapters(trained, tmp_path / "lora.safetensors")
    pipe = dataclasses.replace(distilled).load_lora(file, "student", merge=False)
    assert pipe.loras["student"].is_merged is False
    assert pipe.transformer.graph == Network.of(trained).graph
    assert "transformer" in pipe.describe()
    with pytest.raises(ValueError, match="student loaded with merge=False, and a checkpoint has no place for adapters"):
        pipe.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    pipe.unload_lora("student")
    assert pipe.transformer.graph == distilled.transformer.graph


@pytest.mark.slow
def test_separate_adapters_sample_what_the_network_of_training_samples(distilled, trained, tmp_path, undecoded):
    file = save_adapters(trained, tmp_path / "lora.safetensors")
    expected = dataclasses.replace(distilled, transformer=Network.of(trained))("a fox", **CALL).latents
    pipe = dataclasses.replace(distilled).load_lora(file, merge=False)
    np.testing.assert_array_equal(pipe("a fox", **CALL).latents, expected)
    merged = dataclasses.replace(distilled).load_lora(file)("a fox", **CALL).latents
    np.testing.assert_allclose(merged, expected, atol=1e-3)  # in fp32 both are the same network
    plain = hx.HeliosPipeline.__call__(distilled, "a fox", **CALL).latents
    assert np.abs(plain - expected).max() > 0.1
