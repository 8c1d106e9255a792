"""Stage 3's initialisations on the small world, from a random Mid: recording, training, resuming, and the product."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helios_jax import HeliosPipeline, prepare
from helios_jax.checkpoints.random import write_random_checkpoint, write_word_tokenizer
from helios_jax.config import HistoryConfig, PipelineConfig, SchedulerConfig
from helios_jax.data.helios_latents.record import LatentRecord
from helios_jax.data.helios_latents.writer import LatentWriter
from helios_jax.data.moving_shapes import caption, sample_scene, vocabulary
from helios_jax.experiments import stage1_init, stage3_consistency, stage3_distill, stage3_ode
from helios_jax.training.batch import LatentBatch, OdeBatch, OdePoints, PromptBatch
from helios_jax.training.descent import procedure_of
from helios_jax.training.experiment import Lora
from helios_jax.training.metrics import read_metrics
from helios_jax.training.overrides import frozen
from helios_jax.training.params import flatten
from helios_jax.training.sharding import put_batch
from helios_jax.training.taught import Judges
from helios_jax.training.trainer import train

SIZE = (8, 8)


@pytest.mark.slow
@pytest.mark.parametrize("size", stage1_init.SMALL)
def test_settings_fit_their_batches(size):
    """Shapes only."""
    first = frozen(stage1_init.get_config(size))
    networks = jax.eval_shape(lambda: first.initial_networks(first.mesh.build()))
    layout, tokens = HistoryConfig(), first.data.tokens
    text = PromptBatch(tokens=np.zeros((3, tokens), np.int32), lengths=np.ones(3, np.int32))
    past = {
        "history": np.zeros((3, layout.buffer_frames, *SIZE, 16), jnp.bfloat16),
        "anchor": np.zeros((3, 1, *SIZE, 16), jnp.bfloat16),
        "text": text,
    }
    sides = [2, 4, 8]
    points = tuple(
        OdePoints(
            latents=np.zeros((3, 4, 9, side, side, 16), jnp.bfloat16),
            end=np.zeros((3, 9, side, side, 16), jnp.bfloat16),
            timesteps=np.zeros((3, 4), np.float32),
            sigmas=np.zeros((3, 4), np.float32),
        )
        for side in sides
    )
    keys = jax.random.split(jax.random.key(0), 3)
    ode = frozen(stage3_ode.get_config(size))
    batch = OdeBatch(levels=points, **past)
    loss, _ = jax.eval_shape(lambda n: ode.method.loss(n, batch, keys, ode.execution), networks)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    consistency = frozen(stage3_consistency.get_config(size))
    clips = LatentBatch(target=np.zeros((3, 9, *SIZE, 16), jnp.bfloat16), **past)
    negative = np.zeros((1, tokens, first.start.text_encoder.d_model), jnp.float32)

    def value(networks):
        judges = Judges(teacher=networks, average=networks, negative=jnp.asarray(negative))
        return consistency.method.loss(networks, judges, clips, keys, consistency.execution, keys[0])

    loss, _ = jax.eval_shape(value, networks)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)


@pytest.fixture(scope="module")
def mid(tmp_path_factory):
    """A checkpoint of random weights with the networks of the tiny sizes."""
    folder = tmp_path_factory.mktemp("world") / "mid"
    start = frozen(stage1_init.get_config("tiny")).start
    transformer = dataclasses.replace(start.transformer, num_layers=1)
    networks = {"transformer": transformer, "text_encoder": start.text_encoder}
    write_random_checkpoint(folder, scheduler=SchedulerConfig.mid(), pipeline=PipelineConfig(), **networks)
    shutil.rmtree(folder / "tokenizer")
    write_word_tokenizer(folder, vocabulary())
    return folder


@pytest.fixture(scope="module")
def recorded(mid, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "captions.txt").write_text("\n".join(caption(sample_scene(9, scene)) for scene in range(4)) + "\n")
    flags = [f"--model={mid}", f"--prompts={folder / 'captions.txt'}", "--negative_prompt=", "--no-text"]
    flags += ["--sizes=64x64", "--chunks=3", "--steps=3,3,3", "--max_text_tokens=96", "--batch=2", "--dtype=float32"]
    assert prepare.main(prepare.parse(["helios-prepare", *flags, f"--out={folder / 'ode'}"])) == 0
    return folder / "ode"


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    rng, records = np.random.default_rng(0), []
    for number in range(4):
        chunks = rng.standard_normal((3, 9, *SIZE, 16))
        text = {"caption": caption(sample_scene(3, number)), "embeds": np.zeros((0, 1))}
        sizes = {"fps": 24.0, "height": 64, "width": 64}
        records.append(LatentRecord(uid=f"clip{number}", latents=chunks, anchor=chunks[0, 0], **text, **sizes))
    writer = LatentWriter(folder, {SIZE: 1}, {})
    writer.write((SIZE, 0), records)
    assert writer.finish()
    return folder


def experiment(module, mid, data_folder, size="tiny", **changes):
    settings = frozen(module.get_config(size))
    data = dataclasses.replace(settings.data, folders=(str(data_folder),), ratios=(), tokenizer=str(mid))
    return dataclasses.replace(
        settings,
        start=dataclasses.replace(settings.start, folder=str(mid)),
        product=dataclasses.replace(settings.product, parts=str(mid)),
        data=data,
        optimizer=dataclasses.replace(settings.optimizer, learning_rate=1e-2, warmup_steps=0, schedule="constant"),
        validation=None,
        **{"steps": 4, "batch_size": 6, "log_every": 1, "checkpoint_every": 2} | changes,
    )


@pytest.mark.slow
def test_regression_of_recordings(mid, recorded, tmp_path):
    """The loss falls, and the product is a distilled pipeline."""
    settings = experiment(stage3_ode, mid, recorded, steps=12, accumulation=3)
    assert train(settings, tmp_path) == 0
    losses = [record["loss"] for _, record in sorted(read_metrics(tmp_path / "metrics.jsonl").items())]
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    pipe = HeliosPipeline.from_pretrained(tmp_path / "product" / "12", dtype="float32")
    assert pipe.config.is_distilled
    assert pipe.scheduler == SchedulerConfig.distilled()
    video = pipe("A red circle.", num_frames=33, height=64, width=64, max_text_tokens=96, progress=False)
    assert np.isfinite(video.latents).all()
    assert not (tmp_path / "product" / "12" / "lora.safetensors").exists()


@pytest.mark.slow
def test_consistency_distillation_resumes_and_keeps_its_teacher(mid, latents, tmp_path):
    settings = experiment(stage3_consistency, mid, latents)
    assert train(settings, tmp_path / "whole") == 0
    assert train(dataclasses.replace(settings, steps=2), tmp_path / "resumed") == 0
    assert train(settings, tmp_path / "resumed") == 0
    logs = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "resumed")]
    for step in range(1, 5):
        assert logs[0][step]["loss"] == logs[1][step]["loss"] > 0
    products = [HeliosPipeline.from_pretrained(tmp_path / name / "product" / "4") for name in ("whole", "resumed")]
    leaves = [jax.tree.leaves(pipe.transformer.params) for pipe in products]
    for one, other in zip(*leaves, strict=True):
        np.testing.assert_array_equal(one, other)


def running_of(settings):
    mesh = settings.mesh.build()
    running = procedure_of(settings).start(settings, mesh, None)
    batches = settings.data.batches(settings.batch_size, (0, 1), settings.seed)
    return running, lambda: put_batch(next(batches), settings.batch_size, mesh)


@pytest.mark.slow
def test_the_teacher_is_the_start_and_is_in_no_checkpoint(mid, latents):
    settings = experiment(stage3_consistency, mid, latents)
    start = flatten(settings.initial_networks(settings.mesh.build()))[1]
    running, batch = running_of(settings)
    for number in (1, 2):
        running.step(batch(), number)
    teacher = {path: array for path, array in running.frozen().items() if path.startswith("teacher/")}
    trained = {path for path in start if path.startswith("transformer/")}
    assert {path.removeprefix("teacher/") for path in teacher} == trained
    (player,) = running.items().values()
    assert set(player["trainable"]) == set(player["ema"]) == trained
    moved = 0.0
    for path in trained:
        np.testing.assert_array_equal(teacher[f"teacher/{path}"], start[path])
        moved += float(jnp.abs(player["trainable"][path] - start[path]).sum())
    assert moved > 0
    assert running.flops(batch()) > 0


@pytest.mark.slow
def test_adapters_share_the_teachers_weights(mid, latents):
    """With adapters the teacher needs no arrays of its own, and at the start it is the student."""
    changes = {"lora": Lora(rank=2), "trainable": ((".*/lora_[ab]", 1),)}
    settings = experiment(stage3_consistency, mid, latents, **changes)
    assert not any(path.startswith("teacher/") for path in running_of(settings)[0].frozen())
    exact = dataclasses.replace(settings.method, guidance_scale=1.0)
    full = experiment(stage3_consistency, mid, latents)
    losses = []
    for one in (settings, full):
        running, batch = running_of(dataclasses.replace(one, method=exact))
        losses.append(float(running.step(batch(), 1)["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_distillation_with_a_reward(mid, latents, tmp_path):
    """The reward reads decoded frames and captions, its factor is that of its scores, and a validation is measured."""
    assert not frozen(stage3_distill.get_config("tiny_gpu")).method.needs_vae
    assert frozen(stage3_distill.get_config("tiny_gpu_reward")).method.needs_vae
    settings = experiment(stage3_distill, mid, latents, size="tiny_reward", steps=1)
    score = dataclasses.replace(settings.method.score, folder=str(mid))
    settings = dataclasses.replace(settings, method=dataclasses.replace(settings.method, score=score))
    samples = frozen(stage3_distill.get_config("tiny")).validation
    monitors = dataclasses.replace(samples.monitors, folders=(str(latents),), clips=2)
    settings = dataclasses.replace(
        settings, validation=dataclasses.replace(samples, every=1, prompts=samples.prompts[:1], monitors=monitors)
    )
    without = dataclasses.replace(settings, data=dataclasses.replace(settings.data, captions=0))
    with pytest.raises(ValueError, match=r"data\.captions=0: a reward reads captions"):
        train(without, tmp_path / "without")
    assert train(settings, tmp_path / "run") == 0
    (metrics,) = read_metrics(tmp_path / "run" / "metrics.jsonl").values()
    scores = [metrics[f"generator/reward/{name}"] for name in settings.method.reward.names]
    assert all(-1 <= score <= 1 for score in scores)
    assert 0 < metrics["generator/reward/factor"] <= np.exp(2)
    assert metrics["generator/skipped"] == 0
    assert {f"validation/brightness/chunk{number}" for number in range(8)} <= metrics.keys()
    assert {"validation/sharpness/drift", "validation/saturation/gap"} <= metrics.keys()
    assert (tmp_path / "run" / "validation" / "1" / "monitors.png").stat().st_size > 10_000


@pytest.mark.slow
def test_consistency_needs_an_average(mid, latents):
    settings = dataclasses.replace(experiment(stage3_consistency, mid, latents), ema=None)
    with pytest.raises(ValueError, match="moving average: set ema"):
        procedure_of(settings).start(settings, settings.mesh.build(), None)
