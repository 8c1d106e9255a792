"""The ablations: what rows change and cost, and rows measured, interrupted and resumed."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from helios_jax import train
from helios_jax.checkpoints.random import write_random_checkpoint, write_word_tokenizer
from helios_jax.config import HistoryConfig, PipelineConfig, SchedulerConfig, TextEncoderConfig, TransformerConfig
from helios_jax.data.moving_shapes import vocabulary
from helios_jax.experiments import tiny_commands
from helios_jax.experiments.ablations import measure, rows, run, training
from helios_jax.experiments.ablations.costs import chunk_flops, full_resolution_steps, training_minutes
from helios_jax.experiments.ablations.rows import ROWS, rows_named
from helios_jax.sampling.pipeline import HeliosPipeline
from helios_jax.training.batch import LatentBatch, PromptBatch


def test_every_row_is_compared_with_an_earlier_one_and_starts_from_what_is_there():
    seen, trained = {"baseline"}, set()
    for row in ROWS.values():
        assert row.against in seen
        seen.add(row.name)
        for phase in row.phases:
            assert {phase.start, phase.score} - {""} <= trained | {""} or phase.run in trained
            trained.add(phase.run)
    assert [row.name for row in rows_named("dmd,ode")] == ["dmd", "ode"]
    assert len(rows_named("all")) == len(ROWS)
    with pytest.raises(ValueError, match="there is no row 'no_anker'"):
        rows_named("no_anker")


def test_costs():
    """With equal batches, stage 2 at 64 x 64 pixels makes calls of 9, 36 and 144 tokens, and stage 1 one of 144."""
    config, layout = TransformerConfig.tiny(), HistoryConfig()

    def of_call(tokens: int, history: int, dim: int = 64, hidden: int = 128, text: int = 7, layers: int = 2) -> float:
        total = tokens + history
        weights = 2 * (total * (4 * dim**2 + 2 * dim * hidden) + 2 * tokens * dim**2)
        return layers * (weights + 4 * dim * (total**2 + tokens * text))

    of_text = 2 * 2 * 7 * 2 * 64**2
    options = {"steps": (1, 2, 1), "text": 7, "guided": True}
    found = chunk_flops(config, SchedulerConfig.mid(), layout, (8, 8), **options)
    assert found == 2 * (of_call(9, 40) + 2 * of_call(36, 40) + of_call(144, 40) + of_text)
    short = chunk_flops(config, SchedulerConfig.mid(), HistoryConfig(sizes=(0, 0, 1)), (8, 8), **options)
    assert short == 2 * (of_call(9, 32) + 2 * of_call(36, 32) + of_call(144, 32) + of_text)
    sizes = {"dim": 128, "hidden": 512, "text": 112, "layers": 4}
    levels, of_text = [of_call(tokens, 40, **sizes) for tokens in (9, 36, 144)], 4 * 2 * 112 * 2 * 128**2
    ratio = (sum(levels) + of_text) / (levels[-1] + of_text)
    assert 1.3 < ratio < 309 / 184  # the tokens of all levels against those of one
    assert full_resolution_steps("tiny", 1000, (8, 8), 112, batch=16) == round(1000 * ratio)
    assert full_resolution_steps("tiny", 1000, (8, 8), 112) == round(2000 * ratio)


def test_minutes_of_training(tmp_path):
    assert training_minutes(tmp_path) is None
    lines = [
        {"step": 10, "seconds_per_step": 3.0},
        {"step": 20, "seconds_per_step": 6.0},
        {"step": 20, "validation": 1},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert training_minutes(tmp_path) == 1.5


def arguments(out, *more):
    return run.parse(["run", f"--out={out}", "--stage1_steps=2", "--stage2_steps=3", *more])


def test_commands_of_a_row(tmp_path, monkeypatch):
    """A variant changes its settings in every phase, and phases with a product are not trained again."""
    lines = []
    monkeypatch.setattr(tiny_commands, "command", lambda program, main, *words, parse=None: lines.append(words))
    monkeypatch.setattr(tiny_commands, "newest", lambda run: run)
    args = arguments(tmp_path, "--row=no_long", "--batch=16")
    training.train_row(args, ROWS["no_long"])
    sizes = {f"--config.{place}.sizes=(0, 2, 1)" for place in rows.LAYOUTS}
    assert len(lines) == 2
    assert all(sizes <= set(line) for line in lines)
    assert f"--config.start.folder={tmp_path}/no_long/stage1/product/2" in lines[1]
    assert "--config.steps=3" in lines[1]
    (tmp_path / "baseline" / "stage1" / "product" / "2").mkdir(parents=True)
    lines.clear()
    training.train_row(args, ROWS["full_resolution"])
    (line,) = lines
    assert f"--config.start.folder={tmp_path}/baseline/stage1/product/2" in line
    assert f"--config.steps={full_resolution_steps('tiny', 3, (8, 8), 112, batch=16)}" in line
    assert run.command_of(args, ROWS["no_long"]).endswith(
        "run --row=no_long --size=cpu --batch=16 --stage1_steps=2 --stage2_steps=3"
    )


OUT = pathlib.Path("runs/of_rows")


@pytest.fixture(scope="module")
def found():
    """The experiments of all rows, by their runs."""
    experiments = {}

    def keep(program, main, *words, parse=None):
        arguments = train.parse([program, *words])
        experiments["/".join(arguments.workdir.parts[-2:])] = arguments.experiment

    args = arguments(OUT, "--row=all")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_commands, "command", keep)
        patch.setattr(tiny_commands, "newest", lambda run: run)
        patch.setattr(training, "record_trajectories", lambda args, teacher: args.out / "ode")
        for row in args.row:
            training.train_row(args, row)
    return experiments


@pytest.mark.slow
def test_settings_of_rows(found):
    """The flags of each row are settings of its experiments, and change what they say."""
    assert len(found) == 2 * 9 + 1 + 2 + 3
    baseline = found["baseline/stage2"]
    assert baseline.data.tokens == 112
    assert baseline.method.context.corruption.blur == 0
    for name, layout in {
        "no_anchor": HistoryConfig(keep_first_frame=False),
        "absolute_positions": HistoryConfig(positions="absolute"),
        "short_only": HistoryConfig(sizes=(0, 0, 1)),
        "no_long": HistoryConfig(sizes=(0, 2, 1)),
    }.items():
        for stage in ("stage1", "stage2"):
            settings = found[f"{name}/{stage}"]
            assert settings.method.context.layout == settings.data.layout == settings.product.config.history == layout
            like = found[f"baseline/{stage}"]
            context = dataclasses.replace(settings.method.context, layout=HistoryConfig())
            assert dataclasses.replace(settings.method, context=context) == like.method
            assert settings.optimizer == like.optimizer
    contexts = {name: found[f"{name}/stage2"].method.context for name in ROWS if f"{name}/stage2" in found}
    assert contexts["no_corruption"].corruption is contexts["no_corruption"].saturation is None
    assert contexts["blur"].corruption.blur == 1
    assert contexts["saturation"].corruption is None
    assert contexts["saturation"].saturation.strong == (1.001, 1.7)
    assert contexts["all_corruptions"].corruption.blur == 0.1
    assert contexts["all_corruptions"].saturation is not None
    full = found["full_resolution/full"]
    assert type(full.method).__name__ == "Base"
    assert (full.optimizer.learning_rate, full.seed) == (baseline.optimizer.learning_rate, baseline.seed)
    assert found["dmd_gan/distill"].method.gan.start_step == 10
    assert found["dmd/distill"].method.own is None
    assert found["self_rollout/distill"].method.own.sections == (1, 5)
    for name in ("dmd", "dmd_gan", "self_rollout"):
        settings = found[f"{name}/distill"]
        assert settings.start.folder == f"{OUT}/consistency/consistency/product/40"
        assert settings.method.score.folder == f"{OUT}/baseline/stage1/product/2"
        assert settings.method.tokens == 112
        assert settings.validation is None


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.phases[-1].name == "stage2"])
def test_every_variant_makes_a_step(found, name):
    """Loss and gradient of every parameter in stage 2, which reads the context as stage 1 does; shapes only."""
    experiment, start = found[f"{name}/stage2"], found[f"{name}/stage1"]
    networks = jax.eval_shape(lambda: start.initial_networks(start.mesh.build()))
    counts = {"target": 9, "history": experiment.data.layout.buffer_frames, "anchor": 1}
    batch = LatentBatch(
        **{name: np.zeros((2, count, 8, 8, 16), np.float32) for name, count in counts.items()},
        text=PromptBatch(tokens=np.zeros((2, 112), np.int32), lengths=np.ones(2, np.int32)),
        chunk=np.array([0, 7], np.int32),
    )
    graph, state = nnx.split(networks)

    def loss(state):
        keys = jax.random.split(jax.random.key(0), 2)
        return experiment.method.loss(nnx.merge(graph, state), batch, keys, experiment.execution)

    (value, metrics), gradients = jax.eval_shape(jax.value_and_grad(loss, has_aux=True), state)
    assert (value.shape, value.dtype) == ((), np.float32)
    assert set(metrics) == {"level0/mse", "level1/mse", "level2/mse"}
    assert jax.tree.structure(gradients) == jax.tree.structure(state)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A few-step model of random weights, with absolute positions and without the long tier."""
    folder = tmp_path_factory.mktemp("models") / "model"
    transformer = dataclasses.replace(TransformerConfig.tiny(), num_layers=1, text_dim=32)
    encoder = TextEncoderConfig(vocab_size=128, d_model=32, num_layers=1, num_heads=2, d_kv=16, d_ff=32)
    pipeline = PipelineConfig(is_distilled=True, history=HistoryConfig(sizes=(0, 2, 1), positions="absolute"))
    write_random_checkpoint(
        folder,
        transformer=transformer,
        text_encoder=encoder,
        scheduler=SchedulerConfig.distilled(),
        pipeline=pipeline,
    )
    shutil.rmtree(folder / "tokenizer")
    write_word_tokenizer(folder, vocabulary(absences=True))
    return folder


VIDEOS = measure.Videos(count=2, chunks=3, batch=1, world=5)


@pytest.mark.slow
def test_a_row_is_measured_interrupted_and_resumed(model, tmp_path):
    """Two videos of three chunks: the first is kept, only the second is sampled again, and nothing changes."""
    pipe, loads = HeliosPipeline.from_pretrained(model, dtype="float32", vae_dtype="float32"), []

    def load():
        loads.append(1)
        return pipe

    def once_is_enough(part, done, total):
        if done:
            raise KeyboardInterrupt

    options = {"steps": (1, 1, 1), "guidance": 1.0, "load": load, "processes": 1}
    whole = measure.measure(model, tmp_path / "whole", VIDEOS, **options)
    with pytest.raises(KeyboardInterrupt):
        measure.measure(model, tmp_path / "broken", VIDEOS, **options, on_progress=once_is_enough)
    kept = (tmp_path / "broken" / "records" / "sampled" / "0.json").read_bytes()
    assert len(list((tmp_path / "broken" / "records" / "sampled").iterdir())) == 1
    resumed = measure.measure(model, tmp_path / "broken", VIDEOS, **options)
    assert (tmp_path / "broken" / "records" / "sampled" / "0.json").read_bytes() == kept
    values = measure.values_of(whole)
    assert values == measure.values_of(resumed)
    assert measure.measure(model, tmp_path / "broken", VIDEOS, **options) == resumed
    assert len(loads) == 3
    # Chunk 0 is that of the rendered scene.
    for video in range(2):
        assert values["caption"][video][0] > 0.9
        assert values["path_error"][video][0] < 0.01
        assert values["high_band_ratio"][video][0] == 1
        assert values["anchor_similarity"][video][1] < values["anchor_similarity"][video][0]
    assert {len(video) for matrix in values.values() for video in matrix} == {3}


def test_a_file_of_other_settings_is_not_taken_for_the_row(tmp_path):
    args = arguments(tmp_path, "--row=no_long")
    (tmp_path / "results").mkdir()
    file = tmp_path / "results" / "no_long.json"
    file.write_text(json.dumps({"command": run.command_of(args, ROWS["no_long"])}))
    assert run.write_row(args, ROWS["no_long"], tmp_path) == file
    with pytest.raises(ValueError, match=r"was made by .*run --row=no_long .*choose another --out"):
        run.write_row(arguments(tmp_path, "--row=no_long", "--videos=3"), ROWS["no_long"], tmp_path)
