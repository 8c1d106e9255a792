"""Whole checkpoints: load, save and load again, in both layouts."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import helios_jax as hx
from helios_jax.checkpoints.lora_merge import merge_lora_file
from helios_jax.config import PipelineConfig, SchedulerConfig

DATA = pathlib.Path(__file__).parents[1] / "parity" / "data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A checkpoint in the published layout, put together from recorded parts."""
    folder = tmp_path_factory.mktemp("checkpoint")
    for part, source in (
        ("transformer", DATA / "transformer" / "published"),
        ("vae", DATA / "pipelines" / "checkpoint"),
        ("text_encoder", DATA / "pipelines" / "checkpoint"),
        ("tokenizer", DATA / "text_encoder" / "tokens"),
    ):
        shutil.copytree(source / part, folder / part)
    index = {"_class_name": "HeliosPyramidPipeline", "is_cfg_zero_star": False, "is_distilled": True}
    (folder / "model_index.json").write_text(json.dumps(index))
    scheduler = {
        "_class_name": "HeliosDMDScheduler",
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "stages": 3,
        "stage_range": [0, 0.25, 0.5, 1],
        "gamma": 0.25,
        "prediction_type": "flow_prediction",
        "use_dynamic_shifting": True,
        "time_shift_type": "linear",
    }
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


@pytest.fixture(scope="module")
def pipeline(folder) -> hx.HeliosPipeline:
    return hx.HeliosPipeline.from_pretrained(folder)


def test_loads_settings_networks_and_tokenizer(pipeline):
    assert pipeline.config == PipelineConfig(is_distilled=True, is_cfg_zero_star=False, is_pyramid=True)
    assert pipeline.scheduler == SchedulerConfig(
        solver="dmd",
        level_range=(0.0, 0.25, 0.5, 1.0),
        gamma=0.25,
        use_dynamic_shifting=True,
        time_shift_type="linear",
    )
    assert pipeline.transformer.module.config.num_layers == 3
    assert pipeline.vae.module.config.dim_mult == (1, 2, 2, 2)
    recorded = json.loads((DATA / "text_encoder" / "tokens" / "io.json").read_text())
    ids, mask = pipeline.text_encoder.tokenizer(recorded["texts"][:3], 64)
    np.testing.assert_array_equal(ids, recorded["results"]["64"]["ids"][:3])
    np.testing.assert_array_equal(mask, recorded["results"]["64"]["mask"][:3])


def test_dtypes_are_those_asked_for(folder, pipeline):
    assert {network.module.dtype for network in (pipeline.transformer, pipeline.vae)} == {jnp.dtype("bfloat16")}
    exact = hx.HeliosPipeline.from_pretrained(folder, dtype="float32", vae_dtype="bfloat16")
    assert exact.transformer.module.dtype == exact.text_encoder.encoder.module.dtype == jnp.float32
    assert exact.vae.module.dtype == jnp.bfloat16


@pytest.mark.parametrize("layout", ["diffusers", "orbax"])
def test_saved_pipeline_loads_as_it_was(pipeline, tmp_path, layout):
    pipeline.save(tmp_path / "saved", layout)
    again = hx.HeliosPipeline.from_pretrained(tmp_path / "saved")
    assert (again.config, again.scheduler) == (pipeline.config, pipeline.scheduler)
    for ours, saved in (
        (again.transformer, pipeline.transformer),
        (again.vae, pipeline.vae),
        (again.text_encoder.encoder, pipeline.text_encoder.encoder),
    ):
        assert ours.graph == saved.graph
        jax.tree.map(np.testing.assert_array_equal, ours.params, saved.params)
    texts = ["A red fox runs through the snow.", "Eine Straße in Köln"]
    for ours, saved in zip(
        again.text_encoder.tokenizer(texts, 32), pipeline.text_encoder.tokenizer(texts, 32), strict=True
    ):
        np.testing.assert_array_equal(ours, saved)
    holds_safetensors = any((tmp_path / "saved" / "transformer").glob("*.safetensors"))
    assert holds_safetensors == (layout == "diffusers")


def test_a_checkpoint_is_never_overwritten(pipeline, folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        pipeline.save(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_an_unfinished_save_leaves_nothing(pipeline, tmp_path, monkeypatch):
    """Saving stops after the transformer."""
    monkeypatch.setattr(hx.config.VaeConfig, "to_diffusers", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipeline.save(tmp_path / "new" / "saved")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_checkpoint_without_text_encoder_loads(folder, tmp_path):
    for part in ("transformer", "vae", "scheduler"):
        shutil.copytree(folder / part, tmp_path / part)
    shutil.copy(folder / "model_index.json", tmp_path)
    pipeline = hx.HeliosPipeline.from_pretrained(tmp_path)
    assert pipeline.text_encoder is None
    pipeline.save(tmp_path / "saved", "orbax")
    assert hx.HeliosPipeline.from_pretrained(tmp_path / "saved").text_encoder is None


def test_loras_of_a_pipeline(folder):
    pipeline = hx.HeliosPipeline.from_pretrained(folder)
    before, lora = pipeline.transformer, DATA / "lora" / "kohya.safetensors"
    assert pipeline.loras == {}
    assert pipeline.load_lora(lora, scale=0.25) is pipeline
    assert pipeline.set_lora("kohya", 0.5) is pipeline
    expected = merge_lora_file(before, lora, 0.5)
    jax.tree.map(np.testing.assert_array_equal, pipeline.transformer.params, expected.params)
    with pytest.raises(ValueError, match="'kohya' is loaded already"):
        pipeline.load_lora(lora)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        pipeline.load_lora(folder / "nowhere.safetensors")
    jax.tree.map(np.testing.assert_array_equal, pipeline.transformer.params, expected.params)
    pipeline.load_lora(lora, name="again", scale=-0.5)
    assert {name: (loaded.path, loaded.scale) for name, loaded in pipeline.loras.items()} == {
        "kohya": (lora, 0.5),
        "again": (lora, -0.5),
    }
    assert len(repr(pipeline.loras)) < 500
    assert pipeline.unload_lora("kohya").unload_lora("again") is pipeline
    for ours, theirs in zip(*map(jax.tree.leaves, (pipeline.transformer, before)), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def test_missing_parts_are_named(folder, tmp_path):
    shutil.copy(folder / "model_index.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"scheduler_config\.json is missing"):
        hx.HeliosPipeline.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    with pytest.raises(ValueError, match=r"model_index\.json: _class_name='WanPipeline'; expected 'HeliosPipeline'"):
        hx.HeliosPipeline.from_pretrained(tmp_path)
