"""What merging loses: against whole networks, arithmetic in NumPy, and the fp32 files that training started from."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import helios_jax as hx
from helios_jax.checkpoints.random import write_random_checkpoint
from helios_jax.config import HistoryConfig, PipelineConfig, SchedulerConfig, TransformerConfig
from helios_jax.models.lora import add_lora
from helios_jax.training import merge_report
from helios_jax.training.merge_report import MERGED, SEPARATE, WITHOUT, measure
from helios_jax.training.params import flatten
from helios_jax.training.products import Pipeline
from helios_jax.training.released import Released
from helios_jax.training.sharding import MeshShape
from helios_jax.training.starts import FromCheckpoint

MESH = MeshShape().build()
TARGETS = ("transformer/blocks/(attn1/to_qkv|ffn/proj_in)", "transformer/patch_short", "transformer/proj_out")
SMALL = 1e-3
"""Size of an update in parts of a weight: a quarter of the steps of bfloat16."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A checkpoint in fp32 with values that bfloat16 rounds."""
    folder = tmp_path_factory.mktemp("parts")
    write_random_checkpoint(folder, pipeline=PipelineConfig(), scheduler=SchedulerConfig.mid())
    network = hx.load_diffusers(folder, "transformer", dtype="float32")
    graph, state = nnx.split(network)
    flat = nnx.to_flat_state(state)
    moved = [(path, one.replace(one[...] * 1.0017 + 1e-4)) for path, one in flat]
    for file in (folder / "transformer").iterdir():
        file.unlink()
    hx.save_diffusers(nnx.merge(graph, nnx.from_flat_state(moved)), folder, "transformer")
    return folder


@pytest.fixture(scope="module")
def product(parts):
    return Pipeline(parts=str(parts), config=PipelineConfig(), scheduler=SchedulerConfig.mid())


@pytest.fixture(scope="module")
def trained(parts):
    """The checkpoint in bfloat16 with adapters whose updates are small against the weights."""
    networks = FromCheckpoint(folder=str(parts)).networks(MESH, jax.random.key(0))
    networks = add_lora(networks, rank=4, targets=TARGETS, key=jax.random.key(1))
    for path in ("blocks.attn1.to_qkv", "blocks.ffn.proj_in", "patch_short", "proj_out"):
        layer = networks.transformer
        for name in path.split("."):
            layer = getattr(layer, name)
        b = jax.random.normal(jax.random.key(2), layer.lora_b.shape)
        # (x A) B with A ~ 1/4: each entry of A B is about |B| / 2.
        layer.lora_b = nnx.Param(2 * SMALL * float(jnp.abs(layer.kernel[...].astype(jnp.float32)).mean()) * b)
    return networks


@pytest.fixture(scope="module")
def exported(product, trained, tmp_path_factory):
    """Products in both precisions: name -> (folder, report)."""
    found = {}
    for dtype, source in (("bfloat16", ""), ("float32", ""), ("float32", product.parts)):
        folder = tmp_path_factory.mktemp("product")
        dataclasses.replace(product, dtype=dtype, source=source).export(trained, folder)
        name = f"{dtype} from source" if source else dtype
        found[name] = folder, json.loads((folder / "merging.json").read_text())
    return found


def velocity(network) -> np.ndarray:
    """The velocity on the inputs of the report, by one call of the whole network in fp32."""
    inputs = merge_report._inputs(network.config)
    layout = HistoryConfig()
    return np.asarray(
        jax.jit(lambda one: one.module(inputs.latents, inputs.timestep, inputs.text, inputs.history.tiers(layout)))(
            hx.models.network.Network.of(network)
        )
    )


def relative(found, reference) -> float:
    found, reference = np.asarray(found, np.float64), np.asarray(reference, np.float64)
    return float(np.linalg.norm(found - reference) / np.linalg.norm(reference))


@pytest.mark.slow
def test_velocities_are_those_of_whole_networks(trained, exported):
    folder, report = exported["bfloat16"]
    released = Released("transformer", trained.transformer, "bfloat16")
    found = merge_report._velocities(trained.transformer, released)
    stored = hx.load_diffusers(folder, "transformer")  # in bfloat16, as exported
    config = stored.config
    wide = hx.models.HeliosTransformer(config, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    merged = velocity(nnx.merge(nnx.split(wide)[0], nnx.state(stored)))
    assert relative(found[MERGED], merged) < 1e-5
    assert relative(found[WITHOUT], merged) > 1e-4
    assert report["gap"] == pytest.approx(relative(merged, found[SEPARATE]), rel=1e-3)
    assert report["effect"] == pytest.approx(relative(found[WITHOUT], found[SEPARATE]), rel=1e-3)


@pytest.mark.slow
def test_bfloat16_loses_small_updates_and_fp32_does_not(exported):
    (_, coarse), (_, fine) = exported["bfloat16"], exported["float32"]
    assert coarse["dtype"] == "bfloat16"
    assert 0.3 * coarse["effect"] < coarse["gap"]
    assert fine["gap"] < 1e-5 < 0.05 * fine["effect"]
    assert set(coarse["updates"]) == {"blocks/attn1/to_qkv", "blocks/ffn/proj_in", "patch_short", "proj_out"}
    for kind, loss in coarse["updates"].items():
        assert 0.4 < loss["mean"] <= loss["worst"] < 1.5, kind
        assert 0.4 < loss["unmoved"] < 1, kind
        assert fine["updates"][kind]["worst"] < 1e-3
        assert fine["updates"][kind]["unmoved"] < 1e-2


@pytest.mark.slow
def test_losses_are_those_of_numpy(trained, exported):
    layer = trained.transformer.blocks.ffn.proj_in
    kernel, a, b = (np.asarray(x[...], np.float64) for x in (layer.kernel, layer.lora_a, layer.lora_b))
    losses, stayed = [], []
    for index in range(len(kernel)):
        update = a[index] @ b[index]
        merged = np.asarray((kernel[index] + update).astype(jnp.bfloat16), np.float64)
        losses.append(np.linalg.norm(merged - kernel[index] - update) / np.linalg.norm(update))
        stayed.append((merged == kernel[index]).mean())
    found = exported["bfloat16"][1]["updates"]["blocks/ffn/proj_in"]
    assert found["worst"] == pytest.approx(max(losses), rel=1e-3)
    assert found["mean"] == pytest.approx(np.mean(losses), rel=1e-3)
    assert found["unmoved"] == pytest.approx(np.mean(stayed), abs=1e-3)


@pytest.mark.slow
def test_a_source_gives_back_what_was_rounded_when_training_began(parts, trained, exported):
    source = flatten(hx.load_diffusers(parts, "transformer"))[1]
    found = flatten(hx.load_diffusers(exported["float32 from source"][0], "transformer"))[1]
    without = flatten(hx.load_diffusers(exported["float32"][0], "transformer"))[1]
    layers = {"blocks/ffn/proj_in/kernel": trained.transformer.blocks.ffn.proj_in}
    adapted = {"blocks/attn1/to_qkv/kernel", "patch_short/kernel", "proj_out/kernel", *layers}
    for path, layer in layers.items():
        update = np.asarray(layer.lora_a[...], np.float64) @ np.asarray(layer.lora_b[...], np.float64)
        exact = np.asarray(source[path], np.float64) + update
        assert np.abs(found[path] - exact).max() < 2e-7 * np.abs(exact).max()
        assert np.abs(without[path] - exact).max() > 1e-4 * np.abs(exact).max()
    for path in adapted:
        assert 0 < relative(found[path], source[path]) < 0.01
    for path in source.keys() - adapted:
        np.testing.assert_array_equal(found[path], source[path], err_msg=path)
        assert found[path].dtype == jnp.float32
    assert exported["float32 from source"][1]["source"] == str(parts)


@pytest.mark.slow
def test_parameters_that_were_trained_are_not_read_from_the_source(parts, product, trained, tmp_path):
    networks = nnx.merge(*nnx.split(trained))
    patcher = networks.transformer.patch_mid
    patcher.kernel = nnx.Param(patcher.kernel[...].astype(jnp.float32) + 0.01)
    dataclasses.replace(product, dtype="float32", source=str(parts)).export(networks, tmp_path)
    found = hx.load_diffusers(tmp_path, "transformer").patch_mid.kernel[...]
    np.testing.assert_array_equal(found, patcher.kernel[...])


@pytest.mark.slow
def test_a_source_must_fit(parts, product, trained, exported, tmp_path):
    start = FromCheckpoint(folder=str(parts))
    dataclasses.replace(product, source=str(parts)).check(start)
    wrong = dataclasses.replace(product, dtype="float32", source=str(exported["float32"][0]))
    with pytest.raises(ValueError, match=r"is not the frozen weight of this run: the source must be the checkpoint"):
        wrong.export(trained, tmp_path / "wrong")
    hx.save_diffusers(hx.load_diffusers(parts, "transformer", dtype="bfloat16"), tmp_path / "low", "transformer")
    with pytest.raises(ValueError, match="holds no kernels in fp32"):
        dataclasses.replace(product, source=str(tmp_path / "low")).check(start)
    other = tmp_path / "other"
    write_random_checkpoint(
        other,
        transformer=dataclasses.replace(TransformerConfig.tiny(), num_layers=3),
        pipeline=PipelineConfig(),
        scheduler=SchedulerConfig.mid(),
    )
    with pytest.raises(ValueError, match="transformer of other sizes"):
        dataclasses.replace(product, source=str(other)).check(start)


@pytest.mark.slow
def test_adapters_of_a_product_begin_the_next_phase_unmerged(parts, product, trained, exported):
    folder, _ = exported["bfloat16"]
    start = FromCheckpoint(folder=str(parts), adapters=str(folder / "lora.safetensors"))
    found, expected = (flatten(one)[1] for one in (start.networks(MESH, jax.random.key(5)), trained))
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)
        assert found[path].dtype == array.dtype
        assert found[path].sharding.is_equivalent_to(expected[path].sharding, array.ndim)
    twice = FromCheckpoint(folder=str(folder), adapters=str(folder))
    for use in (lambda: twice.networks(MESH, jax.random.key(0)), lambda: product.check(twice)):
        with pytest.raises(ValueError, match=r"are merged into the transformer of .* already, and would count twice"):
            use()
    with pytest.raises(FileNotFoundError, match="no LoRA file"):
        FromCheckpoint(folder=str(parts), adapters=str(parts / "nothing")).networks(MESH, jax.random.key(0))
    with pytest.raises(ValueError, match=r"belong to a transformer, and parts=\('vae',\) has none"):
        FromCheckpoint(folder=str(parts), parts=("vae",), adapters="lora.safetensors")


@pytest.mark.slow
def test_adapters_that_were_not_trained_are_not_reported(parts):
    networks = FromCheckpoint(folder=str(parts)).networks(MESH, jax.random.key(0))
    networks = add_lora(networks, rank=4, targets=TARGETS, key=jax.random.key(1))
    found = measure(networks.transformer, Released("transformer", networks.transformer, "bfloat16"))
    assert (found.updates, found.effect) == ({}, 0.0)


def test_the_line_of_a_report():
    losses = {"proj_out": merge_report.UpdateLoss(worst=0.9, mean=0.5, unmoved=0.8)}
    found = merge_report.MergeReport(dtype="bfloat16", gap=0.0123, effect=0.05, updates=losses)
    assert str(found) == (
        "adapters merged in bfloat16: rounding changes the velocity by 1.2 %, the adapters themselves by 5 %; "
        "error of the merged updates 50 % on average, up to 90 % in proj_out"
    )
