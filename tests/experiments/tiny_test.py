"""The recipe of the small world: consistent settings, full marks for true scenes, small files of losses."""

import functools
import json
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from helios_jax.checkpoints.random import write_word_tokenizer
from helios_jax.data.moving_shapes import MovingShapes, vocabulary
from helios_jax.evaluation.moving_shapes import judge, rates, show
from helios_jax.experiments import stage1_init, stage2_init, tiny_vae, train_tiny
from helios_jax.experiments.tiny_curves import figure_of, read_curves, write_curves
from helios_jax.training.batch import LatentBatch, PromptBatch, VideoBatch
from helios_jax.training.overrides import frozen


def loss_of(experiment, networks, batch):
    """The loss and metrics of a training step."""
    return experiment.method.loss(networks, batch, jax.random.split(jax.random.key(0), 2), experiment.execution)


@pytest.mark.parametrize("size", ["tiny", "tiny_gpu"])
def test_stages_fit_together_and_to_their_batches(size, tmp_path):
    first, second = (frozen(stage.get_config(size)) for stage in (stage1_init, stage2_init))
    assert write_word_tokenizer(tmp_path, vocabulary()) <= first.start.text_encoder.vocab_size
    assert first.start.text_encoder.d_model == first.start.transformer.text_dim
    networks = jax.eval_shape(lambda: first.initial_networks(first.mesh.build()))
    batch = LatentBatch(
        target=np.zeros((2, 9, 8, 8, 16), jnp.bfloat16),
        history=np.zeros((2, 19, 8, 8, 16), jnp.bfloat16),
        anchor=np.zeros((2, 1, 8, 8, 16), jnp.bfloat16),
        text=PromptBatch(tokens=np.zeros((2, first.data.tokens), np.int32), lengths=np.ones(2, np.int32)),
    )
    for experiment in (first, second):
        loss, _ = jax.eval_shape(functools.partial(loss_of, experiment), networks, batch)
        assert (loss.shape, loss.dtype) == ((), jnp.float32)


@pytest.mark.parametrize("phase", ["images", "clips", "gpu_images", "gpu_clips"])
def test_the_vae_fits_its_clips(phase):
    experiment = frozen(tiny_vae.get_config(phase))
    start = frozen(tiny_vae.get_config(phase.replace("clips", "images"))).start
    networks = jax.eval_shape(lambda: start.networks(experiment.mesh.build(), jax.random.key(0)))
    batch = VideoBatch(frames=np.zeros((2, experiment.data.frames, 64, 64, 3), np.uint8))
    loss, _ = jax.eval_shape(functools.partial(loss_of, experiment), networks, batch)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)


def test_true_scenes_get_full_marks(tmp_path):
    scenes = MovingShapes(seed=5, size=12, frames=99, height=64, width=64)
    rows = [judge((scenes[number]["frames"], scenes[number]["caption"])) for number in range(12)]
    counts = [len(scenes.scene(number).description.shapes) for number in range(12)]
    assert [row["shapes"] for row in rows] == counts
    assert rates(rows)["recovered"] == "100.0 % (12 of 12)"
    assert rates(rows)["direction"] == f"100.0 % ({sum(counts)} of {sum(counts)})"
    other = rates([judge((scenes[0]["frames"], scenes[1]["caption"]))])
    assert other["recovered"] == "0.0 % (0 of 1)"
    clips = np.stack([scenes[number]["frames"] for number in range(2)])
    show(tmp_path, clips, clips, clips, ["Two circles.", "A square that moves slowly to the left. " * 5])
    with Image.open(tmp_path / "samples.webp") as moving, Image.open(tmp_path / "samples.png") as still:
        assert (moving.size, moving.n_frames) == ((128, 192), 99)
        # One line of frame numbers; 1 and 2 lines of captions, and two gaps of 4, above the rows.
        assert still.size == (13 * 64, 15 + (15 + 8 + 64) + (30 + 8 + 64))
        assert np.array_equal(np.asarray(still)[15 + 15 + 8 :][:64, 12 * 64 :], clips[0, 98])
        assert np.array_equal(np.asarray(still)[-64:, :64], clips[1, 0])


def test_losses_become_small_files(tmp_path):
    lines = [json.dumps({"step": step, "time": 0.0, "loss": 1 / step}) for step in range(1, 1001)]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    write_curves([tmp_path / "run"], tmp_path / "out")
    rows = (tmp_path / "out" / "curves.csv").read_text().splitlines()
    assert rows[:3] == ["run,step,loss", "run,1,1", "run,11,0.090909"]
    assert len(rows) == 101
    assert (tmp_path / "out" / "curves.png").stat().st_size < 40_000
    curves = read_curves(tmp_path / "out" / "curves.csv")
    (panel,) = figure_of(curves).axes
    assert (panel.get_xlabel(), panel.get_ylabel(), panel.get_yscale()) == ("step", "loss", "log")
    assert panel.get_title() == "run: 0.00101 after 991 steps"
    (line,) = panel.get_lines()
    assert list(zip(*line.get_data(), strict=True)) == curves["run"]


def test_commands_are_printed_for_a_shell(capsys):
    line = ["--config.data.folders=('a b', 'c')", "--out=it's"]
    train_tiny.command("program", lambda arguments: 0, *line)
    printed = capsys.readouterr().out.splitlines()[0].removeprefix("$ ")
    assert shlex.split(printed) == ["program", *line]


def test_sizes_have_their_own_numbers():
    args = train_tiny._parse(["train_tiny", "--size=gpu", "--scenes=7", "--steps=4,5,6"])
    assert (args.scenes, args.steps, args.videos) == (7, (4, 5, 6), train_tiny.DEFAULTS["gpu"]["videos"])
