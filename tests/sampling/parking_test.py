"""Text encoder and VAE parked in host memory between uses: the same videos, and nothing of them left on the device."""

import dataclasses
import gc

import jax
import numpy as np
import pytest

import helios_jax as hx
from helios_jax.checkpoints import pipelines as pipelines_module
from helios_jax.checkpoints.footprint import footprint
from helios_jax.checkpoints.pipelines import read_settings
from helios_jax.models.tokenization import TextEncoder
from helios_jax.parallel.host_memory import buffers, bytes_by_device, total_bytes
from helios_jax.sampling import producer
from helios_jax.sampling.chunk import ChunkSampler
from helios_jax.sampling.pending import Chunk

CALL = {"height": 64, "width": 64, "steps": (1, 1, 1), "amplify_first_chunk": False, "max_text_tokens": 8}


@pytest.fixture
def parked(distilled) -> hx.HeliosPipeline:
    """The pipeline with both networks parked; the shared one keeps its own arrays."""
    return dataclasses.replace(distilled).park()


def device_bytes() -> int:
    """Bytes of all buffers on the device."""
    arrays = [leaf for leaf in jax.live_arrays() if leaf.sharding.memory_kind == "device"]
    return sum({leaf.unsafe_buffer_pointer(): leaf.nbytes for leaf in arrays if len(leaf.devices()) == 1}.values())


@pytest.mark.parametrize("image", [None, pytest.param("image", marks=pytest.mark.slow)])
def test_videos_are_the_same_and_compile_nothing_new(distilled, parked, compiled, image):
    image = None if image is None else np.random.default_rng(0).random((64, 64, 3))

    def sample(pipe: hx.HeliosPipeline) -> list[Chunk]:
        with pipe.stream("a fox", image=image, num_frames=66, **CALL) as stream:
            first = next(stream)
            stream.set_prompt("a crow", blend_chunks=0)
            return [first, next(stream)]

    expected = sample(distilled)
    compiled.clear()
    found = sample(parked)
    assert compiled == []
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.frames, other.frames)
        np.testing.assert_array_equal(one.latents, other.latents)
    assert (distilled.parked, parked.parked) == ((), ("text_encoder", "vae"))


@pytest.mark.slow
def test_a_parked_network_is_on_the_device_only_while_it_is_used(parked, monkeypatch):
    kernels = parked.text_encoder.encoder.params.shared.embedding, parked.vae.params.decoder.conv_in.kernel

    def copies() -> list[int]:
        """Arrays of these shapes on the device; many kernels of the VAE have this one."""
        gc.collect()  # arrays that earlier tests left in reference cycles do not count
        arrays = [leaf for leaf in jax.live_arrays() if leaf.sharding.memory_kind == "device"]
        return [len({leaf.unsafe_buffer_pointer() for leaf in arrays if leaf.shape == k.shape}) for k in kernels]

    text, vae = before = copies()  # those of other pipelines
    own = sum(leaf.shape == kernels[1].shape for leaf in jax.tree.leaves(parked.vae))
    seen: dict[str, list[list[int]]] = {"encode": [], "sample": [], "decode": []}

    def watched(name, function):
        def call(*args, **options):
            seen[name].append(copies())
            return function(*args, **options)

        return call

    monkeypatch.setattr(TextEncoder, "__call__", watched("encode", TextEncoder.__call__))
    monkeypatch.setattr(ChunkSampler, "sample", watched("sample", ChunkSampler.sample))
    monkeypatch.setattr(producer, "decode_and_check", watched("decode", producer.decode_and_check))
    schedule = hx.PromptSchedule(prompts=("a fox", "a crow"), chunks_per_prompt=3)
    next(parked.stream(schedule, num_frames=33, **CALL))
    assert seen == {"encode": 2 * [[text + 1, vae]], "sample": [before], "decode": [[text, vae + own]]}
    assert copies() == before


def test_embeddings_need_no_text_encoder(parked, monkeypatch, undecoded):
    monkeypatch.setattr(TextEncoder, "__call__", None)
    fetches = []
    monkeypatch.setattr("helios_jax.sampling.prompt_state.fetched", fetches.append)
    embeds = np.zeros((1, 8, parked.transformer.config.text_dim), np.float32)
    next(parked.stream(prompt_embeds=embeds, num_frames=33, **CALL))
    assert fetches == []


def test_networks_are_parked_and_brought_back_one_by_one(distilled, parked):
    text, vae = total_bytes(distilled.text_encoder), total_bytes(distilled.vae)
    assert bytes_by_device((parked.text_encoder, parked.vae)) == {}
    line = next(line for line in parked.describe().splitlines() if "text_encoder" in line)
    assert line.endswith("in host memory")
    assert parked.unpark("vae") is parked
    assert parked.parked == ("text_encoder",)
    assert bytes_by_device((parked.text_encoder, parked.vae)) == {jax.devices()[0]: vae}
    here = buffers(parked.vae)
    assert buffers(parked.unpark().vae) == here
    assert bytes_by_device(parked.text_encoder) == {jax.devices()[0]: text}
    for one, other in zip(jax.tree.leaves(parked.vae), jax.tree.leaves(distilled.vae), strict=True):
        np.testing.assert_array_equal(one, other)
    assert dataclasses.replace(distilled, text_encoder=None).park().parked == ("vae",)


def test_a_checkpoint_is_loaded_with_networks_parked(tmp_path, monkeypatch):
    from conftest import checkpoint

    folder, order = checkpoint("distilled", tmp_path), []
    load = pipelines_module.load_weights

    def watched(folder, component, **options):
        order.append((component, device_bytes()))
        return load(folder, component, **options)

    monkeypatch.setattr(pipelines_module, "load_weights", watched)
    before = device_bytes()
    pipe = hx.HeliosPipeline.from_pretrained(folder, dtype="float32", park=["text_encoder"])
    assert pipe.parked == ("text_encoder",)
    assert [name for name, _ in order] == ["text_encoder", "transformer", "vae"]
    assert order[1][1] == before  # the text encoder has left before the transformer comes
    sizes = footprint(read_settings(folder), dtype="float32", vae_dtype="bfloat16", parked=pipe.parked)
    text, transformer, vae = (total_bytes(part) for part in (pipe.text_encoder, pipe.transformer, pipe.vae))
    assert sizes.total == transformer + vae + text  # while prompts are encoded
    both = dataclasses.replace(sizes, parked=("text_encoder", "vae"))
    assert both.total == transformer + max(text, vae)
    assert "text_encoder" in str(both)
    assert str(both).count(" parked") == 2


def test_names_are_checked(distilled, unchecked):
    with pytest.raises(ValueError, match=r"names: 'transformer' cannot be parked, only 'text_encoder', 'vae'"):
        distilled.park("transformer")
    with pytest.raises(ValueError, match=r"'text_encodr' cannot be parked.*did you mean text_encoder"):
        distilled.unpark("text_encodr")
    with pytest.raises(ValueError, match=r"park='vae' must be a sequence"):
        hx.HeliosPipeline.from_pretrained("nowhere", park="vae")
    assert distilled.parked == ()
