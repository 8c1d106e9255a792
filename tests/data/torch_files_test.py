"""Import of the original's latent files, against files that PyTorch wrote (tests/parity/record_pt_latents.py)."""

import pathlib
import sys
import zipfile

import numpy as np
import pytest

from helios_jax.data.helios_latents.record import LatentRecord
from helios_jax.data.helios_latents.torch_files import (
    Skipped,
    find_torch_latents,
    import_torch_latents,
    read_torch_file,
)
from helios_jax.data.helios_latents.writer import Failure

DATA = pathlib.Path(__file__).parents[1] / "parity" / "data" / "pt_latents"


@pytest.fixture(scope="module")
def expected():
    with np.load(DATA / "expected.npz") as arrays:
        return dict(arrays)


def test_tensors_of_every_dtype_and_layout(expected):
    content = read_torch_file(DATA / "values.pt")
    dtypes = {"bfloat16": "bfloat16", "float16": "float16", "int64": "int64"}
    for name, tensor in content["tensors"].items():
        assert tensor.dtype == dtypes.get(name, "float32")
        np.testing.assert_array_equal(np.asarray(tensor, np.float32), expected[f"values/{name}"])
    assert content["rest"] == [1, 2.5, "text", (None, True), {"bytes": b"\x00\xff"}]
    assert "torch" not in sys.modules


def test_images_are_skipped():
    for name in ("a_66_16_24.pt", "more/b_b_33_16_24.pt"):
        assert isinstance(read_torch_file(DATA / "clips" / name)["first_frames_image"], Skipped)


def test_clips_become_records(expected):
    a, b = find_torch_latents(DATA / "clips", min_frames=33)
    assert (a.uid, a.frames, a.height, a.width, a.size) == ("a_66_16_24", 66, 16, 24, (2, 3))
    assert b.uid == "more/b_b_33_16_24"
    for name, file, chunks, tokens in (("a", a, 2, 5), ("b", b, 1, 0)):
        clip = file.read()
        latents = np.moveaxis(expected[f"{name}/vae_latent"], 1, -1)
        assert latents.shape == (chunks, 9, 2, 3, 4)
        np.testing.assert_array_equal(clip.latents, latents)
        np.testing.assert_array_equal(clip.anchor, latents[0, 0])
        # Rows of zeros are padding.
        np.testing.assert_array_equal(np.asarray(clip.embeds, np.float32), expected[f"{name}/prompt_embed"][:tokens])
        clip.check((2, 3))
    assert a.read().caption == "A café by the sea."


def test_short_clips_are_left_out():
    assert [file.frames for file in find_torch_latents(DATA / "clips", min_frames=66)] == [66]
    with pytest.raises(FileNotFoundError, match=r"no \.pt file of at least 121 frames"):
        find_torch_latents(DATA / "clips", min_frames=121)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("float64.pt", r"float64\.pt: it refers to torch\.DoubleStorage; only tensors"),
        ("module.pt", r"module\.pt: it refers to torch\.nn\.modules\.linear\.Linear"),
        ("command.pt", r"command\.pt: it refers to posix\.system"),
    ],
)
def test_everything_else_is_refused(name, message, capfd):
    with pytest.raises(ValueError, match=message):
        read_torch_file(DATA / name)
    assert "this must never run" not in capfd.readouterr().out


def rewrite(source: pathlib.Path, target: pathlib.Path, changes: dict) -> None:
    """Copies a zip archive with some members replaced."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, changes.get(name.partition("/")[2], old.read(name)))


def test_damaged_files_are_named(tmp_path):
    whole = (DATA / "values.pt").read_bytes()
    file = tmp_path / "x.pt"
    for content in (whole[:2000], b"", b"no zip at all"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.pt is damaged, or not written by torch\.save"):
            read_torch_file(file)
    rewrite(DATA / "values.pt", file, {"data/0": b"\0" * 8})
    with pytest.raises(ValueError, match=r"cannot read .*x\.pt"):
        read_torch_file(file)
    rewrite(DATA / "values.pt", file, {"byteorder": b"big"})
    with pytest.raises(ValueError, match="highest byte first"):
        read_torch_file(file)


def test_tensors_cannot_reach_beyond_their_storage(tmp_path):
    with zipfile.ZipFile(DATA / "values.pt") as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        pickled = archive.read(name)
    # The first tensor is [4, 6] (BININT1 4, BININT1 6, TUPLE2) of 24 numbers; make it [4, 7].
    assert pickled.count(b"K\x04K\x06\x86") >= 1
    file = tmp_path / "x.pt"
    rewrite(DATA / "values.pt", file, {"data.pkl": pickled.replace(b"K\x04K\x06\x86", b"K\x04K\x07\x86")})
    with pytest.raises(ValueError, match=r"\[4, 7\] reaches beyond its storage of 24"):
        read_torch_file(file)


def test_clips_in_one_piece_are_refused(tmp_path):
    (tmp_path / "long_81_16_24.pt").symlink_to(DATA / "long_81_16_24.pt")
    (tmp_path / "a_66_16_24.pt").symlink_to(DATA / "clips" / "a_66_16_24.pt")
    (tmp_path / "a_66_32_24.pt").symlink_to(DATA / "clips" / "a_66_16_24.pt")
    (tmp_path / "values_66_16_24.pt").symlink_to(DATA / "values.pt")
    files = find_torch_latents(tmp_path, min_frames=33)
    a, wrong_size, long, values = import_torch_latents(files, (2, 3))
    assert isinstance(a, LatentRecord)
    assert isinstance(wrong_size, Failure)
    assert "its name asks for chunks [S, C, 9, 4, 3]" in wrong_size.error
    assert (long.uid, "vae_latent [4, 21, 2, 3]" in long.error) == ("long_81_16_24", True)
    assert "holds tensors, rest; need vae_latent, prompt_embed, prompt_raw" in values.error


def test_names_must_tell_sizes(tmp_path):
    (tmp_path / "clip.pt").touch()
    with pytest.raises(ValueError, match=r"clip\.pt is not <uid>_<frames>_<height>_<width>\.pt"):
        find_torch_latents(tmp_path, min_frames=1)
