"""Products of a run: pipelines that sample, with merged adapters, and VAEs with the statistics of their latents."""

import dataclasses
import gc
import json
import math
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toy_training import toy_experiment

import helios_jax as hx
from helios_jax.checkpoints.components import find_component
from helios_jax.checkpoints.orbax import save_orbax
from helios_jax.checkpoints.random import write_random_checkpoint
from helios_jax.config import PipelineConfig, SchedulerConfig, TextEncoderConfig, TransformerConfig, VaeConfig
from helios_jax.evaluation.statistics import chunk_statistics, mean_statistics
from helios_jax.media.reading import load_video
from helios_jax.models.lora import add_lora, merge_lora
from helios_jax.training import merge_report, products, released
from helios_jax.training.methods.vae import Vae
from helios_jax.training.monitors import Monitors
from helios_jax.training.params import flatten
from helios_jax.training.preview import preview
from helios_jax.training.products import MeasuredVae, Pipeline
from helios_jax.training.release import copy_part, copy_tokenizer, save_released
from helios_jax.training.sharding import MeshShape
from helios_jax.training.starts import FromCheckpoint, Random, Wan
from helios_jax.training.trainer import train
from helios_jax.training.validation import Reconstructions, Samples, write_clip

MESH = MeshShape().build()
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A checkpoint with random weights."""
    folder = tmp_path_factory.mktemp("parts")
    write_random_checkpoint(folder, pipeline=PipelineConfig(), scheduler=SchedulerConfig.mid())
    return folder


@pytest.fixture(scope="module")
def product(parts):
    return Pipeline(parts=str(parts), config=PipelineConfig(), scheduler=SchedulerConfig.mid(), vae_dtype="float32")


@pytest.fixture(scope="module")
def trained(parts):
    """The transformer of ``parts`` with adapters that do something, and patchers in fp32, as in training."""
    networks = FromCheckpoint(folder=str(parts)).networks(MESH, jax.random.key(0))
    networks = add_lora(networks, rank=2, targets=("transformer/(blocks/attn1/.*|proj_out)",), key=jax.random.key(1))
    for layer in (networks.transformer.proj_out, networks.transformer.blocks.attn1.to_qkv):
        layer.lora_b = nnx.Param(layer.lora_b[...] + 0.05)
    patcher = networks.transformer.patch_short
    patcher.kernel = nnx.Param(patcher.kernel[...].astype(jnp.float32) + 1e-3)
    return networks


def test_a_checkpoint_gives_the_networks_that_train_together(parts):
    networks = FromCheckpoint(folder=str(parts), parts=("transformer", "text_encoder")).networks(
        MESH, jax.random.key(0)
    )
    names = {path.split("/")[0] for path in flatten(networks)[1]}
    assert names == {"transformer", "text_encoder"}
    stored = hx.load_diffusers(parts, "text_encoder", dtype="bfloat16")
    np.testing.assert_array_equal(networks.text_encoder.shared.embedding[...], stored.shared.embedding[...])


def test_fresh_networks_are_made_sharded_and_by_their_key():
    start = Random(text_encoder=TextEncoderConfig.tiny(), dtype="float32")
    first, other = (flatten(start.networks(MESH, jax.random.key(seed)))[1] for seed in (0, 1))
    kernel = "text_encoder/shared/embedding"
    assert not np.allclose(first[kernel], other[kernel])
    assert first[kernel].sharding.mesh == MESH
    by_hand = hx.models.Umt5Encoder(TextEncoderConfig.tiny(), dtype=jnp.float32, rngs=nnx.Rngs(jax.random.key(0)))
    np.testing.assert_allclose(first[kernel], by_hand.shared.embedding[...], atol=1e-6)


@pytest.fixture(scope="module")
def vae():
    """The smallest possible VAE, with fresh weights."""
    config = VaeConfig(base_dim=4, num_res_blocks=1, dim_mult=(1, 1, 1, 1))
    return Random(vae=config, dtype="float32").networks(MESH, jax.random.key(0))


def test_a_fresh_vae_begins_with_little_noise(vae):
    _, logvar = vae.vae.encode(jax.random.uniform(jax.random.key(0), (1, 1, 16, 16, 3), minval=-1.0))
    assert -8 < float(logvar.min()) < float(logvar.max()) < -4


@pytest.mark.slow
def test_released_networks_have_published_dtypes_and_no_adapters(trained, tmp_path):
    save_released("transformer", trained.transformer, tmp_path, "bfloat16")
    graph, params = flatten(hx.load_diffusers(tmp_path, "transformer"))  # as stored
    config = trained.transformer.config
    plain = flatten(hx.models.HeliosTransformer(config, dtype=jnp.dtype("bfloat16"), rngs=nnx.Rngs(0)))
    assert graph == plain[0]
    assert {path: array.dtype for path, array in params.items()} == {p: a.dtype for p, a in plain[1].items()}
    merged = flatten(merge_lora(trained.transformer))[1]
    for path, array in params.items():
        np.testing.assert_array_equal(array, merged[path].astype(array.dtype), err_msg=path)


def test_arrays_on_the_host_are_released_alike(trained, tmp_path):
    host = jax.tree.map(np.asarray, trained)
    for name, networks in (("device", trained), ("host", host)):
        save_released("transformer", networks.transformer, tmp_path / name, "bfloat16")
    device, host = ((tmp_path / name / "transformer").iterdir() for name in ("device", "host"))
    for one, other in zip(sorted(device), sorted(host), strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_what_was_not_trained_is_copied_and_loaded_by_nobody(product, trained, tmp_path, monkeypatch):
    """Text encoder, VAE and tokenizer keep their files; none of their tensors reaches a device."""
    monkeypatch.setattr("helios_jax.checkpoints.tensor_files.TensorFolder.read", None)
    product.export(trained, tmp_path)
    before = pathlib.Path(product.parts)
    for part in ("text_encoder", "vae", "tokenizer"):
        names = sorted(path.name for path in (before / part).iterdir())
        assert sorted(path.name for path in (tmp_path / part).iterdir()) == names
        for name in names:
            assert (tmp_path / part / name).read_bytes() == (before / part / name).read_bytes()
    assert (tmp_path / "lora.safetensors").exists()
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "HeliosPyramidPipeline"
    assert json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())["stages"] == 3


@pytest.mark.slow
def test_an_export_holds_one_layer_in_addition_to_the_networks(tmp_path_factory, tmp_path, monkeypatch):
    """Bytes of all live arrays while files are written. A merged copy of the transformer would double them."""
    folder = tmp_path_factory.mktemp("deep")
    config = dataclasses.replace(TransformerConfig.tiny(), num_layers=12, ffn_dim=1024)
    write_random_checkpoint(folder, transformer=config, pipeline=PipelineConfig(), scheduler=SchedulerConfig.mid())
    networks = FromCheckpoint(folder=str(folder)).networks(MESH, jax.random.key(0))
    networks = add_lora(networks, rank=2, targets=("transformer/blocks/.*",), key=jax.random.key(1))
    own = sum(array.nbytes for array in jax.tree.leaves(nnx.state(networks)))
    largest = max(array.nbytes // 12 for path, array in flatten(networks)[1].items() if "/blocks/" in path)
    gc.collect()
    before, seen = sum(array.nbytes for array in jax.live_arrays()), []

    def cast(part, dtype):
        seen.append(sum(array.nbytes for array in jax.live_arrays()))
        return release_cast(part, dtype)

    def merged_block(*args):
        blocks.append(sum(array.nbytes for array in jax.live_arrays()))
        return make_block(*args)

    blocks, make_block = [], merge_report._merged_block
    monkeypatch.setattr(merge_report, "_merged_block", merged_block)
    writing, measure = [], products.measure
    monkeypatch.setattr(products, "measure", lambda *args: writing.append(len(seen)) or measure(*args))
    release_cast = released._cast
    monkeypatch.setattr(released, "_cast", cast)
    Pipeline(parts=str(folder), config=PipelineConfig(), scheduler=SchedulerConfig.mid()).export(networks, tmp_path)
    assert len(seen) > 12 * 10
    assert max(seen[: writing[0]]) - before < 4 * largest < own / 5
    # The report compares networks block by block: each finds the memory as the one before.
    assert len(blocks) == 12
    assert max(blocks) - min(blocks) < own / 100


def test_memory_of_an_export_at_14b():
    """Bytes on the device, as docs/training.md states them."""
    abstract = find_component("transformer").abstract(TransformerConfig.helios_14b(), "bfloat16")
    adapted = jax.eval_shape(
        lambda network: add_lora(network, rank=256, targets=(".*",), key=jax.random.key(0)), abstract
    )
    params = flatten(adapted)[1]
    adapters = sum(math.prod(array.shape) * 4 for path, array in params.items() if "lora_" in path)
    weights = sum(
        math.prod(array.shape) * array.dtype.itemsize for path, array in params.items() if "lora_" not in path
    )
    kernel = max(math.prod(array.shape[1:]) for path, array in params.items() if "blocks/" in path)
    assert (round(weights / 1e9, 1), round(adapters / 1e9, 1)) == (28.7, 5.0)
    assert round(kernel * (4 + 2 + 2) / 1e9, 1) == 0.6  # an fp32 product, the kernel, its sum


def test_a_product_that_is_not_finite_is_not_marked_as_a_checkpoint(product, trained, tmp_path):
    broken = nnx.merge(*nnx.split(trained))
    layer = broken.transformer.blocks.attn1.to_qkv
    layer.lora_b = nnx.Param(layer.lora_b[...].at[0, 1, 0, 0].set(jnp.nan))
    with pytest.raises(FloatingPointError, match=r"transformer: blocks\.0\.attn1\.to_k\.weight is not finite"):
        product.export(broken, tmp_path)
    assert not (tmp_path / "model_index.json").exists()


@pytest.mark.slow
def test_parts_in_the_other_layout_are_converted(parts, tmp_path):
    network = hx.load_diffusers(parts, "text_encoder")
    save_orbax(network, tmp_path / "orbax", "text_encoder")
    copy_part(tmp_path / "orbax", "text_encoder", tmp_path / "out")
    found = hx.load_diffusers(tmp_path / "out", "text_encoder")
    for (path, array), expected in zip(flatten(found)[1].items(), flatten(network)[1].values(), strict=True):
        np.testing.assert_array_equal(array, expected, err_msg=path)


def test_missing_parts_are_named(parts, tmp_path):
    (tmp_path / "parts" / "vae").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="vae holds no"):
        copy_part(tmp_path / "parts", "vae", tmp_path / "out")
    # Weights at the top of the folder, such as the adapters of a product, are not those of a part.
    (tmp_path / "parts" / "lora.safetensors").write_bytes((parts / "vae" / WEIGHTS).read_bytes())
    with pytest.raises(FileNotFoundError, match="parts has no text_encoder/, which the product needs"):
        copy_part(tmp_path / "parts", "text_encoder", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json in"):
        copy_tokenizer(tmp_path / "parts", tmp_path / "out")


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        ("vae", "has no vae/, which the product needs because it is not trained"),
        ("text_encoder", "has no text_encoder/"),
        (f"vae/{WEIGHTS}", "vae holds no"),
        ("vae/config.json", "vae/config.json is missing"),
        ("tokenizer/tokenizer.json", "no tokenizer.json in"),
        (f"cut vae/{WEIGHTS}", "is not a complete safetensors file"),
        ("cut vae/config.json", "vae/config.json"),
        ("cut tokenizer/tokenizer.json", "tokenizer.json"),
    ],
)
def test_a_run_whose_product_would_lack_a_part_does_not_begin(parts, product, tmp_path, damaged, message):
    folder = tmp_path / "parts"
    shutil.copytree(parts, folder)
    path = folder / damaged.removeprefix("cut ")
    if damaged.startswith("cut "):
        os.truncate(path, path.stat().st_size // 2)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    settings = {"product": dataclasses.replace(product, parts=str(folder)), "start": FromCheckpoint(folder=str(parts))}
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        train(toy_experiment(**settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    found = preview(toy_experiment(**settings), toy_experiment(**settings), tmp_path / "run")
    assert any(message in problem for problem in found.problems), found.problems


def test_networks_that_do_not_fit_together_are_not_trained(parts, product):
    narrow = dataclasses.replace(TransformerConfig.tiny(), text_dim=16)
    with pytest.raises(ValueError, match=r"text_encoder/config\.json: d_model=32; expected 16"):
        product.check(Random(transformer=narrow))
    single = dataclasses.replace(product, config=PipelineConfig(is_pyramid=False))
    with pytest.raises(ValueError, match=r"scheduler_config\.json: stages=3; expected 1"):
        single.check(FromCheckpoint(folder=str(parts)))


def test_parts_that_are_trained_may_be_missing(parts, product, tmp_path):
    shutil.copytree(parts / "tokenizer", tmp_path / "tokenizer")
    trained = dataclasses.replace(product, parts=str(tmp_path))
    trained.check(FromCheckpoint(folder=str(parts), parts=("transformer", "text_encoder", "vae")))
    with pytest.raises(FileNotFoundError, match="has no text_encoder/"):
        trained.check(FromCheckpoint(folder=str(parts), parts=("transformer", "vae")))
    with pytest.raises(FileNotFoundError, match="has no vae/"):
        trained.check(Random(transformer=TransformerConfig.tiny(), text_encoder=TextEncoderConfig.tiny()))


SETTINGS = {"every": 1, "prompts": ("a",)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"every": 0}, "every=0 must be a whole number of at least 1"),
        ({"prompts": ()}, r"prompts=\(\) must be a tuple of at least one text"),
        ({"prompts": ("a", " ")}, "prompts: number 1 is empty"),
        ({"num_frames": 0}, "num_frames=0 must be"),
        ({"height": -64}, "height=-64 must be"),
        ({"fps": 0}, "fps=0 must be"),
        ({"max_text_tokens": 0}, "max_text_tokens=0 must be"),
        ({"steps": (20, 0, 20)}, "each of the steps=0 must be"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan must be a finite number of at least 0"),
        ({"seed": -1}, "seed=-1 must be"),
    ],
)
def test_samples_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Samples(**SETTINGS | change)


def test_other_settings_out_of_range_are_refused():
    for kind, settings, message in (
        (Reconstructions, {"every": 0, "clips": NoisyClips()}, "every=0"),
        (Reconstructions, {"every": 1, "clips": NoisyClips(), "count": 0}, "count=0"),
        (Reconstructions, {"every": 1, "clips": NoisyClips(), "fps": -1}, "fps=-1"),
        (MeasuredVae, {"clips": NoisyClips(), "num_batches": 0}, "num_batches=0"),
        (Random, {}, "give the sizes of at least one network"),
        (FromCheckpoint, {"folder": ""}, "folder='' is not a path"),
        (FromCheckpoint, {"folder": "a", "parts": ()}, "must name at least one of transformer"),
        (FromCheckpoint, {"folder": "a", "parts": ("unet",)}, "unknown component 'unet'"),
        (Wan, {"folder": ""}, "folder='' is not a path"),
        (Vae, {"kl_weight": -1.0}, "kl_weight="),
        (Vae, {"square_weight": float("inf")}, "square_weight=inf"),
    ):
        with pytest.raises(ValueError, match=message):
            kind(**settings)


def test_settings_that_the_product_cannot_sample_end_the_run_at_its_start(product, trained):
    for change, message in (
        ({"height": 100}, "this model needs multiples of 64 x 64"),
        ({"steps": (20,)}, "3"),
    ):
        with pytest.raises(ValueError, match=message):
            Samples(**SETTINGS | {"max_text_tokens": 8} | change).prepare(product, trained, MESH)


@pytest.mark.slow
def test_an_exported_pipeline_samples_what_the_networks_sample(product, trained, tmp_path):
    product.export(trained, tmp_path)
    exported = hx.HeliosPipeline.from_pretrained(tmp_path, vae_dtype="float32")
    request = {"prompt": "a", "num_frames": 33, "height": 64, "width": 64, "steps": (1, 1, 1), "guidance_scale": 1.0}
    request |= {"max_text_tokens": 8, "progress": False}
    expected = product.join(trained, None)(**request).latents
    found = exported(**request).latents
    assert np.abs(found - expected).max() < 0.1 * expected.std()  # bf16: folded in rather than added
    before = hx.HeliosPipeline.from_pretrained(product.parts, vae_dtype="float32")
    plain = before(**request).latents
    assert np.abs(plain - expected).max() > 0.3 * expected.std()
    # The adapters by themselves, on the weights they were trained on; the patcher was trained in full.
    before.load_lora(tmp_path / "lora.safetensors")
    for name in ("blocks", "proj_out"):
        found, wanted = (flatten(getattr(pipe.transformer.module, name))[1] for pipe in (before, exported))
        for path, array in wanted.items():
            np.testing.assert_allclose(np.float32(found[path]), np.float32(array), atol=0.01, err_msg=path)


@pytest.mark.slow
def test_validation_writes_videos_of_the_networks(product, trained, tmp_path):
    samples = Samples(
        every=1,
        prompts=("a", "bc"),
        negative_prompt="",
        num_frames=33,
        height=64,
        width=64,
        steps=(1, 1, 1),
        max_text_tokens=8,
    )
    validate = samples.prepare(product, trained, MESH)
    files = validate(trained, tmp_path / "5").files
    assert [file.relative_to(tmp_path).as_posix() for file in files] == ["5/0.mp4", "5/0.png", "5/1.mp4", "5/1.png"]
    assert all(file.stat().st_size > 500 for file in files)
    first = (tmp_path / "5" / "0.mp4").read_bytes()
    validate(trained, tmp_path / "6")
    assert (tmp_path / "6" / "0.mp4").read_bytes() == first  # fixed prompts and seeds
    assert (tmp_path / "5" / "1.mp4").read_bytes() != first


@pytest.mark.slow
def test_validation_measures_its_videos(product, trained, tmp_path):
    samples = Samples(
        every=1,
        prompts=("a", "bc"),
        negative_prompt="",
        num_frames=66,
        height=64,
        width=64,
        steps=(1, 1, 1),
        max_text_tokens=8,
        monitors=Monitors(reference=(("brightness", 0.5),)),
    )
    found = samples.prepare(product, trained, MESH)(trained, tmp_path)
    assert [file.name for file in found.files] == ["0.mp4", "0.png", "1.mp4", "1.png", "monitors.png"]
    assert (tmp_path / "monitors.png").stat().st_size > 10_000
    videos = [load_video(tmp_path / f"{number}.mp4", 64, 64) for number in range(2)]
    expected = mean_statistics([chunk_statistics(video, 33) for video in videos])
    for chunk in range(2):
        # The mp4 is lossy.
        assert found.values[f"brightness/chunk{chunk}"] == pytest.approx(expected["brightness"][chunk], abs=0.01)
        assert found.values[f"contrast/chunk{chunk}"] == pytest.approx(expected["contrast"][chunk], abs=0.02)
    assert found.values["brightness/gap"] == pytest.approx(expected["brightness"].mean() - 0.5, abs=0.01)
    short = dataclasses.replace(samples, num_frames=33)
    with pytest.raises(ValueError, match="num_frames=33 must be above 33"):
        short.prepare(product, trained, MESH)


@pytest.mark.slow
def test_validation_can_sample_with_the_text_encoder_that_is_trained(product, parts, tmp_path):
    networks = FromCheckpoint(folder=str(parts), parts=("transformer", "text_encoder")).networks(
        MESH, jax.random.key(0)
    )
    samples = Samples(
        every=1,
        prompts=("a",),
        negative_prompt="",
        num_frames=33,
        height=64,
        width=64,
        steps=(1, 1, 1),
        max_text_tokens=8,
    )
    validate = samples.prepare(product, networks, MESH)
    assert len(validate(networks, tmp_path).files) == 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoisyClips:
    """Clips of a fixed colour and some noise."""

    def batches(self, batch_size, part, seed):
        from helios_jax.training.batch import VideoBatch

        while True:
            generator = np.random.default_rng(seed)
            yield VideoBatch(frames=generator.integers(90, 110, (batch_size, 5, 16, 16, 3), np.uint8))


@pytest.mark.slow
def test_a_vae_is_exported_with_the_statistics_of_its_latents(vae, tmp_path):
    MeasuredVae(clips=NoisyClips(), num_batches=2).export(vae, tmp_path)
    before, vae = vae.vae.config, hx.load_diffusers(tmp_path, "vae")
    assert vae.config.latents_mean != before.latents_mean
    clips = next(NoisyClips().batches(4, (0, 1), seed=0)).frames
    mean, logvar = vae.encode(jnp.asarray(clips / 127.5 - 1, jnp.float32))
    spread = mean.var((0, 1, 2, 3)) + jnp.exp(logvar).mean((0, 1, 2, 3))
    np.testing.assert_allclose(vae.config.latents_mean, mean.mean((0, 1, 2, 3)), atol=1e-4)
    np.testing.assert_allclose(vae.config.latents_std, jnp.sqrt(spread), rtol=1e-3)


def test_clips_are_written_next_to_their_reconstructions(vae, tmp_path):
    reconstructions = Reconstructions(every=1, clips=NoisyClips(), count=1)
    validate = reconstructions.prepare(MeasuredVae(clips=NoisyClips()), vae, MESH)
    video, _sheet = validate(vae, tmp_path).files
    frames = load_video(video, 16, 32)
    assert frames.shape == (5, 16, 32, 3)
    assert abs(float(frames[:, :, :16].mean()) - 99.5) < 3


def test_clips_are_written_with_a_row_per_chunk(tmp_path):
    from PIL import Image

    video, sheet = write_clip(tmp_path / "clip.mp4", np.zeros((40, 16, 16, 3), np.uint8), 24, 33)
    assert video.exists()
    with Image.open(sheet) as picture:
        assert picture.height > 2 * picture.width // 6


def test_samples_need_a_pipeline(trained):
    with pytest.raises(ValueError, match="the product is a MeasuredVae"):
        Samples(every=1, prompts=("a",)).prepare(MeasuredVae(clips=NoisyClips()), trained, MESH)
