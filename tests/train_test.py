"""``helios-train`` from a data set to a pipeline: two steps, then resumed to three."""

import numpy as np
import pytest

import helios_jax as hx
from helios_jax import train
from helios_jax.checkpoints.random import write_random_checkpoint
from helios_jax.config import PipelineConfig, SchedulerConfig
from helios_jax.data.helios_latents.record import LatentRecord
from helios_jax.data.helios_latents.writer import LatentWriter
from helios_jax.training.metrics import read_metrics

EXPERIMENT = """
from helios_jax.config import PipelineConfig, SchedulerConfig
from helios_jax.training.datasets import Latents
from helios_jax.training.experiment import Experiment, Lora
from helios_jax.training.methods.base import Base
from helios_jax.training.optimizer import AdamW
from helios_jax.training.overrides import mutable
from helios_jax.training.products import Pipeline
from helios_jax.training.starts import FromCheckpoint


def get_config(folder):
    return mutable(
        Experiment(
            start=FromCheckpoint(folder=f"{{folder}}/parts"),
            method=Base(),
            data=Latents(folders=(f"{{folder}}/latents",), tokens=8),
            product=Pipeline(
                parts=f"{{folder}}/parts",
                config=PipelineConfig(is_pyramid=False),
                scheduler=SchedulerConfig.base(),
            ),
            optimizer=AdamW(learning_rate=1e-2),
            steps=2,
            batch_size=2,
            accumulation=2,
            lora=Lora(rank=2, excludes=("transformer/patch_(short|mid|long)",)),
            trainable=(("transformer/patch_(short|mid|long)/.*", 1), (".*/lora_[ab]", 1)),
            log_every=1,
        )
    )
""".replace("{{", "{").replace("}}", "}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, a data set of four clips, and an experiment file."""
    folder = tmp_path_factory.mktemp("train")
    write_random_checkpoint(
        folder / "parts", pipeline=PipelineConfig(is_pyramid=False), scheduler=SchedulerConfig.base()
    )
    generator = np.random.default_rng(0)
    records = [
        LatentRecord(
            uid=str(number),
            caption="a",
            fps=24.0,
            height=64,
            width=64,
            latents=generator.standard_normal((2, 9, 8, 8, 16)).astype(np.float32),
            anchor=generator.standard_normal((8, 8, 16)).astype(np.float32),
            embeds=generator.standard_normal((3, 32)).astype(np.float32),
        )
        for number in range(4)
    ]
    writer = LatentWriter(folder / "latents", {(8, 8): 1}, {})
    writer.write(((8, 8), 0), records)
    assert writer.finish()
    (folder / "experiment.py").write_text(EXPERIMENT)
    return folder


@pytest.mark.slow
def test_a_run_ends_as_a_pipeline_and_can_be_prolonged(folder, capsys):
    command = ["helios-train", f"--config={folder}/experiment.py:{folder}", f"--workdir={folder}/run"]
    assert train.main(command) == 0
    assert "3 parameters" not in capsys.readouterr().out
    assert train.main([*command, "--config.steps=3"]) == 0
    output = capsys.readouterr().out
    assert "resuming from step 2 of 3" in output
    assert sorted(read_metrics(folder / "run" / "metrics.jsonl")) == [1, 2, 3]
    products = {path.name for path in (folder / "run" / "product").iterdir()}
    assert products == {"2", "3"}
    pipe = hx.HeliosPipeline.from_pretrained(folder / "run" / "product" / "3")
    settings = {"num_frames": 33, "height": 64, "width": 64, "steps": 1, "max_text_tokens": 8}
    latents = pipe("a", "", **settings, progress=False).latents
    assert np.isfinite(latents).all()
    assert (folder / "run" / "product" / "3" / "lora.safetensors").exists()


def test_mistakes_are_one_line(folder, capsys):
    command = ["helios-train", f"--config={folder}/experiment.py:{folder}", f"--workdir={folder}/other"]
    assert train.main([*command, "--config.data.folders=('/nowhere',)"]) == 1
    assert capsys.readouterr().err == "helios-train: no helios_latents in /nowhere; helios-prepare writes them\n"
    assert train.main([*command, "--config.batch_size=3"]) == 1
    assert "must be a multiple of accumulation=2" in capsys.readouterr().err
    assert not (folder / "other" / "config.json").exists()
