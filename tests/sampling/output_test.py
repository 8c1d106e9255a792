"""The result of a call: files, players in notebooks, and representations that fit on a line."""

import base64
import re

import av
import numpy as np
import pytest

import helios_jax as hx
from helios_jax.sampling import output as output_module


def output(batch: int = 1, frames: int = 40) -> hx.SampleOutput:
    """Videos of one grey each, 50 apart."""
    pixels = np.full((batch, frames, 16, 32, 3), 100, np.uint8) + 50 * np.arange(batch, dtype=np.uint8).reshape(
        -1, 1, 1, 1, 1
    )
    return hx.SampleOutput(frames=pixels, latents=np.zeros((batch, 18, 2, 4, 16), np.float32))


def read(path) -> tuple[np.ndarray, float]:
    """Frames and rate of a file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]), rate


def test_save(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert output().save("~/fox.mp4", fps=12) == [tmp_path / "fox.mp4"]
    frames, rate = read(tmp_path / "fox.mp4")
    assert (frames.shape, rate) == ((40, 16, 32, 3), 12)
    assert np.abs(frames.astype(int) - 100).max() <= 3


def test_a_batch_is_numbered(tmp_path):
    files = output(batch=3).save(tmp_path / "fox.mp4")
    assert [file.name for file in files] == ["fox-0.mp4", "fox-1.mp4", "fox-2.mp4"]
    assert sorted(tmp_path.iterdir()) == files
    means = [read(file)[0].mean() for file in files]
    np.testing.assert_allclose(means, [100, 150, 200], atol=3)


def test_nothing_is_replaced_and_nothing_is_written_then(tmp_path):
    (tmp_path / "fox-1.mp4").write_text("mine")
    with pytest.raises(FileExistsError, match=r"fox-1\.mp4 exists; choose another path or pass overwrite=True"):
        output(batch=2).save(tmp_path / "fox.mp4")
    with pytest.raises(FileExistsError, match=r"fox-1\.mp4 was not written by helios_jax and is not replaced"):
        output(batch=2).save(tmp_path / "fox.mp4", overwrite=True)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("fox-1.mp4", "mine")]
    (tmp_path / "fox-1.mp4").unlink()
    output(batch=2, frames=2).save(tmp_path / "fox.mp4")
    output(batch=2).save(tmp_path / "fox.mp4", overwrite=True)
    assert read(tmp_path / "fox-1.mp4")[0].shape == (40, 16, 32, 3)
    with pytest.raises(ValueError, match=r"\.mp4"):
        output().save(tmp_path / "fox.gif")


def test_notebooks_show_players(tmp_path, monkeypatch):
    html = output(batch=2)._repr_html_()
    videos = re.findall(r'<video controls loop src="data:video/mp4;base64,([^"]+)"></video>', html)
    assert len(videos) == 2
    (tmp_path / "second.mp4").write_bytes(base64.b64decode(videos[1]))
    assert abs(read(tmp_path / "second.mp4")[0].mean() - 150) <= 3
    monkeypatch.setattr(output_module, "MAX_EMBEDDED_BYTES", len(html) - 2)
    assert output(batch=2)._repr_html_() is None
    monkeypatch.setattr(output_module, "MAX_EMBEDDED_PIXELS", 40 * 16 * 32 - 1)
    assert output()._repr_html_() is None


def test_representation():
    assert repr(output()) == "SampleOutput(frames=uint8 [1, 40, 16, 32, 3], latents=float32 [1, 18, 2, 4, 16])"
