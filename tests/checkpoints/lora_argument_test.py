"""LoRA files on command lines."""

import pathlib
import subprocess
import sys

import pytest

from helios_jax.checkpoints.lora_argument import find_lora_file, lora_name, lora_scale, parse_lora_argument


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [
        ("style.safetensors", "style.safetensors", 1.0),
        ("style.safetensors:0.8", "style.safetensors", 0.8),
        ("style.safetensors:-1", "style.safetensors", -1.0),
        ("style.safetensors:0", "style.safetensors", 0.0),
        ("a:b/style.safetensors:.5", "a:b/style.safetensors", 0.5),
        ("a:b/style.safetensors", "a:b/style.safetensors", 1.0),
        ("C:/styles/fox.safetensors", "C:/styles/fox.safetensors", 1.0),
        (r"C:\styles\fox.safetensors", r"C:\styles\fox.safetensors", 1.0),
        ("C:fox.safetensors:2", "C:fox.safetensors", 2.0),
        ("folder", "folder", 1.0),
        ("~/x.safetensors:2", str(pathlib.Path("~/x.safetensors").expanduser()), 2.0),
    ],
)
def test_files_and_scales(text, path, scale):
    assert parse_lora_argument(text) == (pathlib.Path(path), scale)


def test_a_colon_in_the_name_of_a_file_that_exists(tmp_path):
    (tmp_path / "style:0.5").touch()
    assert parse_lora_argument(f"{tmp_path}/style:0.5") == (tmp_path / "style:0.5", 1.0)
    assert parse_lora_argument(f"{tmp_path}/style:0.5:2") == (tmp_path / "style:0.5", 2.0)
    assert parse_lora_argument(f"{tmp_path}/other:0.5") == (tmp_path / "other", 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "FILE or FILE:SCALE is needed"),
        (" ", "FILE or FILE:SCALE is needed"),
        (":0.5", "the file is missing"),
        ("ok.safetensors:nan", "must be a finite number, got nan"),
        ("ok.safetensors:-inf", "must be a finite number, got -inf"),
        ("ok.safetensors:1e999", "must be a finite number, got 1e999"),
        ("ok.safetensors:abc", "'abc' is not a number"),
        ("ok.safetensors:", "'' is not a number"),
        ("ok.safetensors:0,8", "'0,8' is not a number"),
        ("ok\0.safetensors", "is not a path"),
        ("~nobody-of-this-name/x.safetensors", "lora="),
    ],
)
def test_what_cannot_be_meant(text, message):
    with pytest.raises(ValueError, match=r"^lora=") as error:
        parse_lora_argument(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_found_and_files_that_are_not(tmp_path):
    file = tmp_path / "one" / "style.safetensors"
    (file.parent / "folder.safetensors").mkdir(parents=True)
    file.touch()
    assert find_lora_file(file) == find_lora_file(file.parent) == file
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        find_lora_file(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"the folder .* holds none"):
        find_lora_file(file.parent / "folder.safetensors")
    (file.parent / "other.safetensors").touch()
    with pytest.raises(ValueError, match=r"name one of them: other\.safetensors, style\.safetensors"):
        find_lora_file(file.parent)
    (tmp_path / "style.pt").touch()
    with pytest.raises(ValueError, match="is a file of PyTorch"):
        find_lora_file(tmp_path / "style.pt")


def test_names_and_scales():
    assert lora_name(None, pathlib.Path("a/style.v2.safetensors")) == "style.v2"
    assert lora_name("fox", pathlib.Path("a/style.safetensors")) == "fox"
    for name in (0.8, 1, True, "", " ", b"fox"):
        with pytest.raises(ValueError, match=r"name=.*must be a text; give its strength as scale="):
            lora_name(name, pathlib.Path("style.safetensors"))
    assert [lora_scale(scale) for scale in (1, -0.5, 0)] == [1.0, -0.5, 0.0]
    for scale in (float("nan"), float("-inf"), "0.5", None, True, 10**400):
        with pytest.raises(ValueError, match=r"scale=.*must be a finite number"):
            lora_scale(scale)


@pytest.mark.slow
def test_nothing_heavy_is_imported():
    code = "import sys, helios_jax.checkpoints.lora_argument as _; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "helios_jax.checkpoints.lora_argument" in modules
    assert not {"jax", "numpy", "safetensors"} & {*modules}
