"""Hub ids: what is downloaded, and the errors when nothing can be."""

import pathlib

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import errors
from huggingface_hub.utils import SafetensorsFileMetadata, TensorInfo, filter_repo_objects

from helios_jax.checkpoints.hub import local_folder, remote_tensors

PUBLISHED = [
    "README.md",
    "model_index.json",
    "modular_model_index.json",
    "guider/guider_config.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model-00001-of-00005.safetensors",
    "tokenizer/spiece.model",
    "tokenizer/tokenizer.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model-00001-of-00006.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "transformer_init/diffusion_pytorch_model-00001-of-00006.safetensors",
    "transformer_ode/config.json",
    "transformer_ode/diffusion_pytorch_model-00001-of-00006.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
]


@pytest.fixture
def downloads(monkeypatch, tmp_path) -> list[tuple[str, set[str]]]:
    """Repository and files of every download that would have happened."""
    seen = []

    def snapshot_download(repo: str, *, allow_patterns, revision=None, token=None, cache_dir=None) -> str:
        files = filter_repo_objects(PUBLISHED, allow_patterns=allow_patterns)
        seen.append((repo, set(files)))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return seen


def test_only_what_inference_reads_is_downloaded(downloads, tmp_path):
    assert local_folder("BestWishYsh/Helios-Mid") == tmp_path
    unused = {"README.md", "modular_model_index.json", "guider/guider_config.json"}
    unused |= {name for name in PUBLISHED if name.startswith(("transformer_init/", "transformer_ode/"))}
    assert downloads == [("BestWishYsh/Helios-Mid", set(PUBLISHED) - unused)]


def test_settings_are_downloaded_without_weights(downloads):
    local_folder("BestWishYsh/Helios-Mid", weights=False)
    [(_, files)] = downloads
    assert "transformer/config.json" in files
    assert not any(name.endswith(".safetensors") for name in files)


def test_a_folder_is_used_as_it_is(downloads, tmp_path):
    assert local_folder(tmp_path) == tmp_path
    assert local_folder(str(tmp_path)) == tmp_path
    assert downloads == []


@pytest.mark.parametrize(
    "path", ["nowhere", "./models/helios", "a/b/c", "/models/helios", "./model_", "../model", "a/b.", "-a/b"]
)
def test_what_cannot_be_an_id_is_not_looked_up(downloads, path):
    with pytest.raises(FileNotFoundError, match=f"{path} is neither a folder nor a hub id such as 'BestWishYsh/"):
        local_folder(path)
    assert downloads == []


def test_without_network_the_id_is_named():
    """The test suite runs with HF_HUB_OFFLINE=1."""
    message = r"no folder nobody/nothing-here, and the hub repository .* could not be fetched: .*[Oo]ffline|HF_HUB_OFF"
    with pytest.raises(FileNotFoundError, match=message):
        local_folder("nobody/nothing-here")
    with pytest.raises(FileNotFoundError, match=message):
        remote_tensors("nobody/nothing-here", "vae")


def http_error(kind: type) -> Exception:
    """An error of the hub, without its server."""
    error = kind.__new__(kind)
    error.args = ("404 Client Error.\n\nRequest id 123\nand two more lines",)
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            http_error(errors.GatedRepoError),
            r"it is gated; accept its terms at https://huggingface\.co/a/b, then",
        ),
        (http_error(errors.RepositoryNotFoundError), "there is none; check the spelling"),
        (http_error(errors.RevisionNotFoundError), "it has no revision 'v9'"),
        (errors.LocalEntryNotFoundError("many\nlines"), r"the hub cannot be reached \(many\); is there a network"),
        (errors.HFValidationError("bad id"), "bad id"),
        (KeyError("surprise"), "surprise"),
    ],
)
def test_failed_downloads_are_explained_in_one_line(monkeypatch, error, message):
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(FileNotFoundError, match=message) as raised:
        local_folder("a/b", revision="v9")
    assert str(raised.value).startswith("no folder a/b, and the hub repository of that name could not be fetched: ")
    assert "\n" not in str(raised.value)


def test_revision_token_and_cache_reach_the_hub(monkeypatch, tmp_path):
    seen = {}

    def snapshot_download(repo: str, **options: object) -> str:
        seen.update(options)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setenv("HOME", str(tmp_path))
    local_folder("a/b", revision="v2", token="secret", cache_dir="~/downloads")
    assert (seen["revision"], seen["token"]) == ("v2", "secret")
    assert seen["cache_dir"] == tmp_path / "downloads"


def test_the_home_folder_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert local_folder("~/model") == tmp_path / "model"
    with pytest.raises(FileNotFoundError, match="~/other is neither a folder nor a hub id"):
        local_folder("~/other")


def test_folders_have_no_revision_and_files_are_no_folders(tmp_path):
    with pytest.raises(ValueError, match=r"revision='v2' belongs to a repository on the hub, and .* is a folder"):
        local_folder(tmp_path, revision="v2")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is a file; give the folder"):
        local_folder(tmp_path / "model.safetensors")


def test_headers_of_remote_files_are_joined(monkeypatch):
    shards = {
        f"text_encoder/model-0000{i}-of-00002.safetensors": SafetensorsFileMetadata(
            metadata={}, tensors={f"t{i}": TensorInfo(dtype=dtype, shape=[i, 3], data_offsets=(0, 0))}
        )
        for i, dtype in ((1, "F32"), (2, "BF16"))
    }
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo: [*PUBLISHED[:5], *shards, "vae/x.safetensors"])
    monkeypatch.setattr(huggingface_hub, "parse_safetensors_file_metadata", lambda repo, name: shards[name])
    tensors = remote_tensors("someone/helios", "text_encoder")
    assert {name: (info.shape, info.dtype.name) for name, info in tensors.items()} == {
        "t1": ((1, 3), "float32"),
        "t2": ((2, 3), "bfloat16"),
    }
    assert tensors["t2"].file == pathlib.Path("text_encoder/model-00002-of-00002.safetensors")
    assert isinstance(tensors["t1"].dtype, np.dtype)
