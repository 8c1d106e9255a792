"""The recipe of the small world: consistent settings, full marks for true scenes, small files of losses."""

import dataclasses
import functools
import json
import os
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from helios_jax.checkpoints.random import write_word_tokenizer
from helios_jax.data.moving_shapes import MovingShapes, caption, sample_scene, vocabulary
from helios_jax.data.moving_shapes.styles import CAPTION_TOKENS, STYLES
from helios_jax.evaluation.moving_shapes import Evaluation, judge, rates, show
from helios_jax.evaluation.statistics import STATISTICS
from helios_jax.experiments import stage1_init, stage2_init, tiny_commands, tiny_students, tiny_vae, train_tiny
from helios_jax.experiments.tiny_curves import figure_of, read_curves, write_curves
from helios_jax.experiments.tiny_students import row_of, table
from helios_jax.models.tokenization import Tokenizer, clean_prompt
from helios_jax.training.batch import LatentBatch, PromptBatch, VideoBatch
from helios_jax.training.networks import modules
from helios_jax.training.overrides import frozen


def loss_of(experiment, networks, batch):
    """The loss and metrics of a training step."""
    return experiment.method.loss(networks, batch, jax.random.split(jax.random.key(0), 2), experiment.execution)


@pytest.mark.parametrize("size", stage1_init.SMALL)
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


def test_helios_tiny_is_small_enough_to_ship():
    """Its files in bfloat16 are at most 16 MB each and 25 MB together, less what settings and tokenizer take."""
    first, vae = frozen(stage1_init.get_config("helios_tiny")), frozen(tiny_vae.get_config("helios_tiny_images"))
    networks = [
        jax.eval_shape(lambda one=one: one.start.networks(one.mesh.build(), jax.random.key(0))) for one in (first, vae)
    ]
    sizes = [
        2 * sum(leaf.size for leaf in jax.tree.leaves(module)) for one in networks for module in modules(one).values()
    ]
    assert len(sizes) == 3
    assert max(sizes) < 0.99 * 16e6
    assert 20e6 < sum(sizes) < 0.99 * 25e6


@pytest.mark.parametrize("phase", ["", "gpu_", "helios_tiny_"])
@pytest.mark.parametrize("kind", ["images", "clips"])
def test_the_vae_fits_its_clips(phase, kind):
    phase += kind
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


def test_true_textured_scenes_get_full_marks():
    scenes = MovingShapes(seed=6, size=3, frames=99, height=64, width=64, style="textured")
    rows = [judge((scenes[number]["frames"], scenes[number]["caption"]), style="textured") for number in range(3)]
    assert rates(rows)["recovered"] == "100.0 % (3 of 3)"


@pytest.mark.parametrize("style", STYLES)
def test_captions_of_each_style_fit(style, tmp_path):
    first = frozen(stage1_init.get_config("tiny"))
    words = write_word_tokenizer(tmp_path, vocabulary(absences=style == "textured"))
    assert words <= (first.start.text_encoder.vocab_size if style == "plain" else train_tiny.WORDS)
    pieces = Tokenizer.from_folder(tmp_path).pieces
    texts = [caption(sample_scene(7, index, style=style, num_shapes=3)) for index in range(120)]
    longest = max(len(pieces.encode(clean_prompt(text)).ids) for text in texts)
    assert CAPTION_TOKENS[style] - 16 < longest + 1 <= CAPTION_TOKENS[style]  # with the end of the sequence
    assert CAPTION_TOKENS["plain"] == first.data.tokens
    assert Evaluation(style=style).settings.max_text_tokens == CAPTION_TOKENS[style]


def test_the_style_is_passed_on(tmp_path, monkeypatch):
    """Every command of the recipe that makes or reads scenes says which style they have."""
    lines = []
    monkeypatch.setattr(tiny_commands, "command", lambda program, main, *words, parse=None: lines.append(words))
    monkeypatch.setattr(tiny_commands, "newest", lambda run: run)
    monkeypatch.setattr(tiny_commands, "write_parts", lambda *given: lines.append(given))
    flags = [f"--out={tmp_path}", "--style=textured", "--trajectories=3"]
    args = train_tiny._parse(["train_tiny", *flags])
    tiny_commands.train_vae(args, tmp_path / "parts")
    tiny_commands.encode_scenes(args, tmp_path / "parts")
    tiny_commands.record_trajectories(args, tmp_path / "stage2")
    images, clips, parts, *encoded, recorded = lines
    for words in (images, clips):
        assert {"--config.data.style=textured", "--config.product.clips.style=textured"} <= set(words)
    assert parts[-1] == "textured"
    assert all("--style=textured" in words for words in encoded)
    assert "--max_text_tokens=112" in recorded
    written = (tmp_path / "captions.txt").read_text().splitlines()
    assert written == [caption(sample_scene(9, index, style="textured")) for index in range(3)]
    assert train_tiny.text_flags("textured", "data.tokens") == ("--config.data.tokens=112",)
    assert train_tiny.text_flags("plain", "data.tokens") == train_tiny.text_flags("plain", "words") == ()


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
    tiny_commands.command("program", lambda arguments: 0, *line)
    printed = capsys.readouterr().out.splitlines()[0].removeprefix("$ ")
    assert shlex.split(printed) == ["program", *line]


def test_sizes_have_their_own_numbers():
    args = train_tiny._parse(["train_tiny", "--size=gpu", "--scenes=7", "--steps=4,5,6"])
    assert (args.scenes, args.steps, args.videos) == (7, (4, 5, 6), train_tiny.DEFAULTS["gpu"]["videos"])
    assert args.until == "students"
    assert train_tiny._parse(["train_tiny"]).until == "videos"
    assert train_tiny._parse(["train_tiny", "--until=dmd", "--size=gpu"]).until == "dmd"


def test_products_of_another_run_are_checked(tmp_path):
    (tmp_path / "product" / "transformer").mkdir(parents=True)
    line = ["train_tiny", f"--stage1={tmp_path / 'product'}"]
    train_tiny.check_products(train_tiny._parse(line))
    with pytest.raises(SystemExit, match=r"--parts=.*product has no vae/"):
        train_tiny.check_products(train_tiny._parse([*line, f"--parts={tmp_path / 'product'}"]))


def described(value, displacement, **more):
    chunks = {name: [value, 2 * value] for name in STATISTICS}
    return {"chunks": chunks, "displacement": displacement, **more}


def test_students_are_compared_with_true_scenes():
    """A mean over two chunks of 0.6 against one of 0.3, and half the motion."""
    statistics = {"sampled": described(0.4, 0.01, frechet=3.0), "scenes": described(0.2, 0.02)}
    row = row_of({"recovered": "50.0 % (1 of 2)", "colour": ""}, statistics, "sampled")
    assert row == {"recovered": "50.0 % (1 of 2)", "frechet": 3.0, "high_band": 2.0, "motion": 0.5}
    statistics["sampled"]["displacement"] = None
    assert row_of({"recovered": ""}, statistics, "sampled")["motion"] is None
    drift = dict.fromkeys(STATISTICS, 0.125)
    model = {"model": "dmd", "steps": (1, 1, 1), "guidance": 1.0, **row, "drift": drift}
    lines = table({"vae": row, "models": [model]}).splitlines()
    assert lines[1].split() == ["scenes", "through", "the", "VAE", "50.0", "%", "(1", "of", "2)", "3", "2", "0.5"]
    assert lines[2].split() == ["dmd", "1,1,1", "1", "50.0", "%", "(1", "of", "2)", "3", "2", "0.5", *["0.125"] * 4]


def test_scores_are_not_repeated_unless_the_model_or_the_settings_changed(tmp_path, monkeypatch):
    calls = []

    def sampled(pipeline, folder, evaluation):
        calls.append(evaluation.steps)
        folder.mkdir(parents=True, exist_ok=True)
        result = {"settings": dataclasses.asdict(evaluation), "sampled": {"recovered": len(calls)}}
        (folder / "scores.json").write_text(json.dumps({**result, "videos": [1]}))
        return result

    monkeypatch.setattr(tiny_students, "sample_and_score", sampled)
    index = tmp_path / "product" / "model_index.json"
    index.parent.mkdir()
    index.write_text("{}")
    os.utime(index, (1, 1))
    model = tiny_students.Contender(name="dmd", pipeline=index.parent, steps=(2, 2, 2))
    like = Evaluation(videos=2, batch=1, processes=1)
    first = tiny_students.scored(model, tmp_path, like)
    again = tiny_students.scored(model, tmp_path, dataclasses.replace(like, processes=3))
    assert calls == [(2, 2, 2)]
    assert again["sampled"] == first["sampled"]
    assert "videos" not in again
    tiny_students.scored(model, tmp_path, dataclasses.replace(like, videos=3))
    later = (tmp_path / "dmd-2-2-2" / "scores.json").stat().st_mtime + 10
    os.utime(index, (later, later))
    tiny_students.scored(model, tmp_path, dataclasses.replace(like, videos=3))
    assert calls == 3 * [(2, 2, 2)]


def test_the_critics_loss_stands_for_a_distillation(tmp_path):
    (tmp_path / "dmd").mkdir()
    lines = [{"step": 1, "generator/loss": 5.0, "critic/loss": 0.5}, {"step": 2, "critic/loss": 0.25}, {"step": 2}]
    (tmp_path / "dmd" / "metrics.jsonl").write_text("".join(json.dumps({"time": 0.0} | line) + "\n" for line in lines))
    write_curves([tmp_path / "dmd"], tmp_path)
    assert read_curves(tmp_path / "curves.csv") == {"dmd": [(1, 0.5), (2, 0.25)]}
