"""Settings of a checkpoint: what is refused before any weights are read, and by which name."""

import json
import os
import pathlib
import re
import shutil

import jax
import pytest

import helios_jax as hx
from helios_jax.checkpoints import components
from helios_jax.checkpoints.footprint import Footprint, footprint
from helios_jax.checkpoints.pipelines import compute_dtype
from helios_jax.checkpoints.random import write_random_checkpoint
from helios_jax.checkpoints.settings import read_settings
from helios_jax.config import PipelineConfig, SchedulerConfig, TextEncoderConfig, TransformerConfig, VaeConfig

PUBLISHED = pathlib.Path(__file__).parents[1] / "parity" / "data" / "pipelines"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> pathlib.Path:
    """A small checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_random_checkpoint(folder)
    return folder


@pytest.fixture
def folder(checkpoint, tmp_path) -> pathlib.Path:
    """Its settings without the weights, to be changed."""
    shutil.copytree(checkpoint, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    return tmp_path / "model"


def change(folder: pathlib.Path, file: str, **values: object) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | values))


def test_reads_everything_but_weights(folder):
    settings = read_settings(folder)
    assert settings.folder == folder
    assert settings.config == PipelineConfig(is_distilled=True)
    assert settings.scheduler == SchedulerConfig.distilled()
    assert settings.transformer == TransformerConfig.tiny()
    assert settings.vae == VaeConfig.tiny()
    assert settings.text_encoder == TextEncoderConfig.tiny()
    assert settings.components == ("transformer", "vae", "text_encoder")


@pytest.mark.parametrize("kind", ["base", "mid", "distilled"])
def test_files_that_diffusers_wrote(kind, tmp_path):
    shutil.copytree(PUBLISHED / "checkpoint", tmp_path, dirs_exist_ok=True)
    shutil.copytree(PUBLISHED / kind, tmp_path, dirs_exist_ok=True)
    settings = read_settings(tmp_path)
    expected = {"base": SchedulerConfig.base(), "mid": SchedulerConfig.mid(), "distilled": SchedulerConfig.distilled()}
    assert settings.scheduler == expected[kind]


MISFITS = [
    ("model_index.json", {"is_distilled": "false"}, "model_index.json: is_distilled='false'; expected True or False"),
    ("model_index.json", {"is_distilled": False}, "model_index.json: is_distilled=False; expected True"),
    ("model_index.json", {"_class_name": "HeliosPipeline"}, "scheduler_config.json: stages=3; expected 1"),
    (
        "model_index.json",
        {"vae": ["diffusers", "AutoencoderKL"]},
        "model_index.json: vae=['diffusers', 'AutoencoderKL']",
    ),
    ("model_index.json", {"transformer": None}, "model_index.json: transformer=None; expected [library, class]"),
    ("model_index.json", {"scheduler": [None, None]}, "model_index.json: scheduler=[None, None]; expected"),
    (
        "model_index.json",
        {"scheduler": ["diffusers", "HeliosScheduler"]},
        "scheduler_config.json: _class_name='HeliosDMDScheduler'; expected 'HeliosScheduler'",
    ),
    ("model_index.json", {"tokenizer": [None, None]}, "model_index.json: tokenizer=[None, None]; expected one"),
    ("scheduler/scheduler_config.json", {"stages": "3"}, "scheduler_config.json: stages='3'; expected a whole number"),
    (
        "transformer/config.json",
        {"num_layers": 2.0},
        "transformer/config.json: num_layers=2.0; expected a whole number",
    ),
    ("transformer/config.json", {"in_channels": 8}, "vae/config.json: z_dim=16; expected 8"),
    ("transformer/config.json", {"out_channels": 8}, "transformer/config.json: out_channels=8; expected 16"),
    (
        "transformer/config.json",
        {"patch_size": [2, 2, 2]},
        "transformer/config.json: frames in patch_size=2; expec",
    ),
    ("transformer/config.json", {"has_multi_term_memory_patch": False}, "has_multi_term_memory_patch=False; expected"),
    ("transformer/config.json", {"text_dim": 64}, "text_encoder/config.json: d_model=32; expected 64"),
    ("vae/config.json", {"in_channels": 4}, "vae/config.json: in_channels=4; expected 3"),
    ("vae/config.json", {"scale_factor_spatial": 16}, "vae/config.json: scale_factor_spatial=16; expected 8"),
]


@pytest.mark.parametrize(("file", "values", "message"), MISFITS)
def test_claims_that_do_not_fit(folder, file, values, message):
    change(folder, file, **values)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_settings(folder)
    assert str(error.value).startswith(str(folder))
    assert "\n" not in str(error.value)


def test_the_index_decides_the_class_of_a_scheduler_without_one(folder):
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text('{"stages": 3}')
    assert read_settings(folder).scheduler.solver == "dmd"


def test_an_emptied_scheduler_is_refused(folder):
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"scheduler_config\.json holds no settings"):
        read_settings(folder)


def test_tokens_of_the_tokenizer(folder):
    file = folder / "tokenizer" / "tokenizer_config.json"
    file.write_text('{"pad_token": {"content": "<pad>"}, "eos_token": "</s>"}')
    read_settings(folder)
    file.write_text('{"eos_token": "<end>"}')
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: eos_token='<end>'; expected '</s>'"):
        read_settings(folder)


def test_a_text_encoder_that_is_listed_must_be_there(folder):
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(FileNotFoundError, match=r"text_encoder is missing, and model_index\.json lists it"):
        read_settings(folder)
    change(folder, "model_index.json", text_encoder=[None, None], tokenizer=[None, None])
    assert read_settings(folder).text_encoder is None
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({k: index[k] for k in index if k != "text_encoder"}))
    assert read_settings(folder).text_encoder is None


def test_the_folder_of_a_training_run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="a training run that has no product yet"):
        read_settings(tmp_path)
    for step in ("9", "100", "20", "100.partial"):
        (tmp_path / "product" / step).mkdir(parents=True)
    with pytest.raises(ValueError, match=rf"training run; use its newest product, {tmp_path}/product/100$"):
        read_settings(tmp_path)


BAD_JSON = {
    "": "is not valid JSON",
    "null": "holds None; expected a JSON object",
    "[3]": r"holds \[3\]; expected",
    '{"a": NaN}': "'a': nan is not finite",
    '{"a": [-Infinity]}': "'a': \\[-inf\\] is not finite",
    '{"a": 1e999}': "'a': inf is not finite",
    '{"a": 1, "b": {"c": 1, "c": 2}}': "the key 'c' is given twice",
    '{"a": ' * 100_000: "is nested too deeply",
    f'{{"a": {"9" * 5000}}}': "is not valid JSON: Exceeds the limit",
    '\ufeff{"a": 1}': "is not valid JSON: Unexpected UTF-8 BOM",
}


@pytest.mark.parametrize("content", BAD_JSON, ids=lambda content: content[:10])
def test_json_that_is_none(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=rf"x\.json {BAD_JSON[content]}|x\.json.*{BAD_JSON[content]}") as error:
        components.read_json(tmp_path / "x.json")
    assert len(str(error.value)) < 400


def test_json_in_other_encodings_and_what_is_no_file(tmp_path, monkeypatch):
    file = tmp_path / "x.json"
    file.write_bytes('{"é": 1}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"x\.json is not UTF-8: invalid continuation byte at byte 2"):
        components.read_json(file)
    monkeypatch.setattr(components, "_MAX_JSON_BYTES", 4)
    with pytest.raises(ValueError, match="8 bytes; a JSON file of settings has at most 4"):
        components.read_json(file)
    for make in (os.mkdir, os.mkfifo):
        file.unlink() if file.is_file() else file.exists() and file.rmdir()
        make(file)
        with pytest.raises(ValueError, match="must be a JSON file, and it is a folder or a device"):
            components.read_json(file)


def test_footprint_of_the_published_model(checkpoint):
    """The numbers of parameters are those of the published indices; the fp32 parts are 29,184,000 of them."""
    settings = read_settings(checkpoint)
    published = {"transformer": TransformerConfig(), "vae": VaeConfig(), "text_encoder": TextEncoderConfig()}
    settings = type(settings)(**(vars(settings) | published))
    found = footprint(settings, dtype="bfloat16", vae_dtype="float32")
    assert found.parameters == 14_312_427_584
    assert found.bytes["transformer"] == 2 * 14_312_427_584 + 2 * 29_184_000
    assert found.bytes["vae"] == 4 * 126_892_531
    assert found.bytes["text_encoder"] >= 2 * 5_680_910_336
    assert str(found).startswith("cpu, bfloat16, VAE float32: weights 4")
    with pytest.raises(ValueError, match=r"14\.3 billion parameters would run on a CPU.* pass allow_cpu=True"):
        found.check()
    found.check(allow_cpu=True)


def test_weights_that_do_not_fit(checkpoint):
    size = {"transformer": 60 * 10**9, "vae": 10**9}
    common = {"num_devices": 1, "parameters": 15 * 10**9, "vae_dtype": "bfloat16", "bytes": size}
    card = {"device": "Some GPU", "limit": 64 * 10**9, **common}
    Footprint(dtype="float32", **card).check()
    with pytest.raises(ValueError, match=r"take 61 GB in float32, and Some GPU has 64 GB, 10 GB of them in use; use"):
        Footprint(dtype="float32", in_use=10**10, **card).check()
    with pytest.raises(ValueError, match="has 60 GB; use dtype='bfloat16', a device with more memory, or several"):
        Footprint(dtype="float32", **(card | {"limit": 60 * 10**9})).check()


def test_a_large_model_on_a_cpu_is_refused_before_its_weights_are_fetched(folder, monkeypatch):
    monkeypatch.setattr("helios_jax.checkpoints.footprint.MAX_CPU_PARAMETERS", 1000)
    with pytest.raises(ValueError, match="would run on a CPU"):
        hx.HeliosPipeline.from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match=r"transformer holds no \*\.safetensors file"):
        hx.HeliosPipeline.from_pretrained(folder, allow_cpu=True)
    assert jax.default_backend() == "cpu"


def test_the_dtype_auto_depends_on_the_platform(monkeypatch):
    """Also "bfloat16" and "float32" as they are; a mesh says where networks run."""
    for platform, expected in (("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")):
        monkeypatch.setattr("helios_jax.checkpoints.pipelines.backend", lambda platform=platform: platform)
        assert compute_dtype("auto", "dtype") == expected
        assert compute_dtype("auto", "dtype", jax.make_mesh((1,), ("fsdp",))) == "float32"
        assert [compute_dtype(name, "dtype") for name in ("bfloat16", "float32")] == ["bfloat16", "float32"]


@pytest.mark.parametrize("dtype", ["int8", "float16", "float33", None, 3])
def test_dtypes_that_networks_do_not_compute_in(folder, dtype):
    with pytest.raises(ValueError, match=rf"dtype={dtype!r}; expected one of auto, bfloat16, float32$"):
        hx.HeliosPipeline.from_pretrained(folder, dtype=dtype)


def test_all_headers_are_checked_before_weights_are_read(checkpoint, tmp_path, monkeypatch):
    shutil.copytree(checkpoint, tmp_path / "model")
    (tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    monkeypatch.setattr("helios_jax.checkpoints.tensor_files.TensorFolder.read", lambda *_: pytest.fail("weights read"))
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        hx.HeliosPipeline.from_pretrained(tmp_path / "model")
