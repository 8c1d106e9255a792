"""``helios-train --dry_run``, ``--print_config`` and the checks of ``--workdir``."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

from helios_jax import train
from helios_jax.checkpoints.random import write_random_checkpoint
from helios_jax.data.helios_latents.record import LatentRecord
from helios_jax.data.helios_latents.writer import LatentWriter
from helios_jax.experiments import stage1_init
from helios_jax.training.experiment import Lora
from helios_jax.training.overrides import as_json
from helios_jax.training.params import flatten
from helios_jax.training.preview import abstract_networks, on_disk
from helios_jax.training.run_folder import write_settings
from helios_jax.training.starts import FromCheckpoint
from helios_jax.training.workdir import checked_workdir


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A checkpoint, and a data set of two clips."""
    folder = tmp_path_factory.mktemp("parts")
    write_random_checkpoint(folder / "parts")
    writer = LatentWriter(folder / "latents", {(8, 8): 1}, {})
    records = [
        LatentRecord(
            uid=str(number),
            caption="a",
            fps=24.0,
            height=64,
            width=64,
            latents=np.zeros((1, 9, 8, 8, 16), np.float32),
            anchor=np.zeros((8, 8, 16), np.float32),
            embeds=np.zeros((3, 32), np.float32),
        )
        for number in range(2)
    ]
    writer.write(((8, 8), 0), records)
    assert writer.finish()
    return folder


def command(parts, workdir, *more):
    data = (f"--config.data.folders={parts}/latents", f"--config.data.tokenizer={parts}/parts")
    product = f"--config.product.parts={parts}/parts"
    return ["helios-train", "--config=stage1_init.py:tiny", f"--workdir={workdir}", *data, product, *more]


def test_a_dry_run_shows_everything_and_writes_nothing(parts, tmp_path, capsys):
    assert train.main(command(parts, tmp_path / "run", "--dry_run", "--config.lora.rank=4")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "config.steps = 300" in lines
    changed = lines[lines.index("changed by flags:") + 1 :]
    assert "  config.lora.rank: 4, not there before" in changed
    assert f"  config.product.parts: 'runs/tiny/parts' -> '{parts}/parts'" in changed
    assert f"{tmp_path}/run: a new run" in changed
    assert f"config.data.folders: {parts}/latents has 2 clips of 8x8 latents" in changed
    assert not (tmp_path / "run").exists()


def test_a_dry_run_reads_the_first_record(parts, tmp_path, capsys):
    shutil.copytree(parts / "latents", tmp_path / "latents")
    (file,) = (tmp_path / "latents").rglob("*.array_record*")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    damaged = [*command(parts, tmp_path / "run", "--dry_run"), f"--config.data.folders={tmp_path}/latents"]
    assert train.main(damaged) == 1
    assert f"{file}" in capsys.readouterr().err
    assert train.main([*damaged, "--config.data.on_error=skip"]) == 0


def test_a_dry_run_names_every_reason_why_a_run_cannot_start(parts, tmp_path, capsys):
    wrong = ("--config.data.folders=/nowhere", "--config.trainable=(('nothing', 1),)", "--config.product.parts=/parts")
    assert train.main([*command(parts, tmp_path / "run"), *wrong, "--dry_run", "--config.steps=40"]) == 1
    error = capsys.readouterr().err
    assert error.count("helios-train: this run cannot start: ") == 4
    for reason in (
        "no helios_latents in /nowhere; helios-prepare writes them",
        "/parts is neither a folder nor a hub id",
        "the patterns ['nothing'] decide nothing",
        "warmup_steps=50 must end before the last step of the cosine, 40",
    ):
        assert reason in error
    assert os.listdir(tmp_path) == []


def test_a_dry_run_compares_with_the_run_that_it_would_resume(parts, tmp_path, capsys):
    experiment = train.parse(command(parts, tmp_path)).experiment
    write_settings(tmp_path, as_json(experiment))
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    assert train.main(command(parts, tmp_path, "--dry_run", "--config.log_every=5")) == 0
    output = capsys.readouterr().out
    assert f"{tmp_path}: resumes from step 20" in output
    assert "changed since the run began:\n  config.log_every: 20 -> 5\n" in output
    assert train.main(command(parts, tmp_path, "--dry_run", "--config.seed=5")) == 1
    captured = capsys.readouterr()
    assert "  config.seed: 43 -> 5\n" in captured.out
    assert "seed: 43 then, 5 now" in captured.err


def test_parameters_are_those_of_the_networks(parts):
    """The count without arrays equals that of the arrays."""
    experiment = dataclasses.replace(
        stage1_init.tiny(), start=FromCheckpoint(folder=str(parts / "parts"), dtype="float32"), lora=Lora(rank=2)
    )
    abstract = flatten(abstract_networks(experiment))[1]
    arrays = flatten(experiment.initial_networks(experiment.mesh.build()))[1]
    assert {path: array.shape for path, array in abstract.items()} == {
        path: array.shape for path, array in arrays.items()
    }


def test_memory_follows_from_the_parameters(parts, tmp_path, capsys):
    assert train.main(command(parts, tmp_path / "run", "--dry_run", "--config.ema.decay=0.9")) == 0
    output = capsys.readouterr().out
    abstract = flatten(abstract_networks(stage1_init.tiny()))[1]
    count = sum(int(np.prod(array.shape)) for array in abstract.values())
    assert f"parameters: {count:,} trained and 0 frozen\n" in output
    assert f"memory over all devices: {16 * count / 2**30:.2f} GiB for trained parameters" in output


def test_settings_are_printed_as_json(parts, tmp_path, capsys):
    assert train.main(command(parts, tmp_path, "--print_config")) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(
        json.dumps(as_json(train.parse(command(parts, "x")).experiment))
    )


def test_nothing_is_downloaded():
    assert on_disk("BestWishYsh/No-Such-Model") is None
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        on_disk("no/such/folder")


@pytest.mark.parametrize(
    "name", ["checkpoints", "start.json", "config.json.12.partial", "slurm-12.out", "train.log", ".hidden"]
)
def test_a_folder_with_parts_of_a_run_is_accepted(tmp_path, name):
    (tmp_path / name).write_text("")
    assert checked_workdir(tmp_path) == tmp_path


def test_folders_that_are_no_run_are_refused(tmp_path):
    for name in ("holiday.mp4", "letter.txt", "product", "a", "b"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=r"holds a, b, holiday\.mp4 and 1 more, but no run \(no config\.json\)"):
        checked_workdir(tmp_path)
    with pytest.raises(NotADirectoryError, match=r"letter\.txt is a file, not a folder"):
        checked_workdir(tmp_path / "letter.txt" / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "config.json").write_text('{"class": "Experiment"}')
    assert checked_workdir(tmp_path) == tmp_path


@pytest.mark.parametrize("text", ['{"_class_name": "HeliosPipeline"}', "[]", '{"class": "Lora"}'])
def test_settings_of_another_program_are_no_run(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json does not belong to a run"):
        checked_workdir(tmp_path)


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checked_workdir("~/runs/x") == tmp_path / "runs" / "x"
    arguments = train.parse(["helios-train", "--config=tiny_vae.py", "--workdir=~/a", "--cache=~/b"])
    assert (arguments.workdir, arguments.cache) == (tmp_path / "a", tmp_path / "b")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folders_that_cannot_be_written_are_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot be written"):
        checked_workdir(tmp_path / "run")


def test_a_dry_run_of_stage_3_names_what_is_missing(parts, tmp_path, capsys):
    """The scores, the data of the monitors, and two windows of each clip."""
    stage3 = [
        "helios-train",
        "--config=stage3_distill.py:tiny",
        *command(parts, tmp_path / "run", "--dry_run")[2:],
        f"--config.start.folder={parts}/parts",
    ]
    wrong = [f"--config.method.score.folder={tmp_path}/none", "--config.data.windows=1"]
    assert train.main([*stage3, *wrong]) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path}/none" in error
    assert "distillation needs two windows" in error
    assert "validation.monitors.folders: " in error
    assert "runs/tiny/latents/videos" in error
    right = [
        f"--config.method.score.folder={parts}/parts",
        f"--config.validation.monitors.folders={(f'{parts}/latents',)}",
    ]
    assert train.main([*stage3, *right]) == 0
    assert f"config.method.score.folder: {parts}/parts" in capsys.readouterr().out


def test_a_dry_run_names_trajectories_that_are_not_there(parts, tmp_path, capsys):
    ode = command(parts, tmp_path / "run", "--dry_run", f"--config.start.folder={parts}/parts")
    assert train.main(["helios-train", "--config=stage3_ode.py:tiny", *ode[2:]]) == 1
    assert "helios_ode" in capsys.readouterr().err
