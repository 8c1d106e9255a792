"""Folders of safetensors files: headers, shards, damage."""

import json
import os
import pathlib
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from helios_jax.checkpoints.tensor_files import TensorFolder, write_tensors

TENSORS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.arange(10).astype(ml_dtypes.bfloat16),
    "c": np.ones((5, 5), np.float16),
    "d": np.full((2,), -1, np.float32),
}


def write(folder: pathlib.Path, shard_bytes: int) -> list[str]:
    tensors = [(name, array.shape, array.dtype) for name, array in TENSORS.items()]
    return [file.name for file in write_tensors(folder, "model", tensors, TENSORS.__getitem__, shard_bytes)]


def test_one_file_has_no_index(tmp_path):
    assert write(tmp_path, 10**9) == ["model.safetensors"]
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_shards_are_named_and_indexed_as_the_hugging_face_libraries_do(tmp_path):
    # a: 48 bytes, b: 20, c: 50, d: 8; at most 68 in a file.
    assert write(tmp_path, 68) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    assert index == {"metadata": {"total_size": 126}, "weight_map": {"a": first, "b": first, "c": second, "d": second}}


def test_a_tensor_above_the_limit_is_a_shard_of_its_own(tmp_path):
    assert write(tmp_path, 20)[:-1] == [f"model-{i:05d}-of-00004.safetensors" for i in (1, 2, 3, 4)]


@pytest.mark.parametrize("shard_bytes", [10**9, 68])
def test_reads_whole_tensors_and_slices(tmp_path, shard_bytes):
    write(tmp_path, shard_bytes)
    with TensorFolder(tmp_path) as files:
        assert {name: (info.shape, info.dtype) for name, info in files.tensors.items()} == {
            name: (array.shape, array.dtype) for name, array in TENSORS.items()
        }
        for name, array in TENSORS.items():
            np.testing.assert_array_equal(files.read(name), array)
        np.testing.assert_array_equal(files.read("a", (slice(1, 3), slice(0, 2))), TENSORS["a"][1:3, :2])
        np.testing.assert_array_equal(files.read("b", (slice(3, 7),)), TENSORS["b"][3:7])


def test_only_the_shards_of_the_index_count(tmp_path):
    write(tmp_path, 68)
    save_file({"stale": np.zeros(3, np.float32)}, tmp_path / "model-00001-of-00001.safetensors")
    with TensorFolder(tmp_path) as files:
        assert files.tensors.keys() == TENSORS.keys()


def index_of(folder: pathlib.Path) -> pathlib.Path:
    """The index of the two shards that are written to ``folder``."""
    write(folder, 68)
    return folder / "model.safetensors.index.json"


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize("content", ["null", "[]", "3", "{}", '{"weight_map": []}', '{"weight_map": {}}', "", "text"])
def test_index_that_is_none(tmp_path, content):
    index_of(tmp_path).write_text(content)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        TensorFolder(tmp_path)


@pytest.mark.parametrize("shard", ["/etc/passwd", "..", "", "config.json", 3, None, ["x"]])
def test_index_that_names_other_files(tmp_path, shard):
    weight_map = {"a": FIRST, "b": FIRST, "c": shard, "d": SECOND}
    index_of(tmp_path).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=r"index\.json: the file of c is .*; expected a name that ends in"):
        TensorFolder(tmp_path)


@pytest.mark.parametrize("shard", ["/x.safetensors", "../x.safetensors", "a/x.safetensors", "\0.safetensors"])
def test_index_that_leads_elsewhere(tmp_path, shard):
    weight_map = {"a": FIRST, "b": FIRST, "c": shard, "d": SECOND}
    index_of(tmp_path).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=r"index\.json: the file of c=.* must be (a|the) plain name"):
        TensorFolder(tmp_path)


def test_index_and_shards_must_agree(tmp_path):
    index = index_of(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": FIRST, "b": SECOND, "c": SECOND, "d": SECOND}}))
    with pytest.raises(ValueError, match=rf"{FIRST} holds 'b', and the index says that it is in {SECOND}"):
        TensorFolder(tmp_path)
    weight_map = {"a": FIRST, "b": FIRST, "c": SECOND, "d": SECOND}
    index.write_text(json.dumps({"weight_map": weight_map | {"e": FIRST, "f": FIRST}}))
    with pytest.raises(ValueError, match=rf"the index says that 'e' is in {FIRST}, and it is not \(nor are 1 other"):
        TensorFolder(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": FIRST, "c": SECOND, "d": SECOND}}))
    with pytest.raises(ValueError, match=f"{FIRST} holds 'b', which the index does not list"):
        TensorFolder(tmp_path)
    index.write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "other.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="has several indices"):
        TensorFolder(tmp_path)


@pytest.mark.parametrize("has_index", [True, False])
@pytest.mark.parametrize("name", ["aaa.safetensors", "zzz.safetensors"])
def test_no_tensor_is_in_two_files(tmp_path, has_index, name):
    index = index_of(tmp_path)
    save_file({"b": TENSORS["b"]}, tmp_path / name)
    if not has_index:
        index.unlink()
    with pytest.raises(ValueError, match=r"the tensor 'b' is in .*safetensors and in .*safetensors; remove the file"):
        TensorFolder(tmp_path)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_not_opened(tmp_path, make):
    make(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors must be a safetensors file, and it is a folder"):
        TensorFolder(tmp_path)


def test_truncated_file_is_named(tmp_path):
    write(tmp_path, 10**9)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(ValueError, match=rf"{file} \(\d+ bytes\) is not a complete safetensors file.*fetch it again"):
        TensorFolder(tmp_path)


def test_missing_shard_is_named(tmp_path):
    write(tmp_path, 68)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"names shards that are not there: \['model-00002-of-00002"):
        TensorFolder(tmp_path)


def test_folder_without_weights_says_what_it_found(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(FileNotFoundError, match=r"no \*.safetensors file; found \['pytorch_model.bin'\]"):
        TensorFolder(tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        TensorFolder(tmp_path)


def test_other_dtypes_are_refused(tmp_path):
    save_file({"x": np.zeros(3, np.int32)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="tensor 'x' has dtype I32; expected"):
        TensorFolder(tmp_path)


def test_one_file_and_its_text_entries(tmp_path):
    save_file(TENSORS, tmp_path / "lora.safetensors", metadata={"format": "pt", "note": "hello"})
    with TensorFolder(tmp_path / "lora.safetensors") as files:
        assert files.tensors.keys() == TENSORS.keys()
        assert files.metadata == {"format": "pt", "note": "hello"}
