"""Images and clips of a sampling call: how they are fitted and resampled."""

import numpy as np
import pytest
from PIL import Image

from helios_jax.config import PipelineConfig, SchedulerConfig, TransformerConfig, VaeConfig
from helios_jax.media.saving import save_video
from helios_jax.sampling.request import Request, RequestDefaults, SampleInputs
from helios_jax.sampling.settings import SampleSettings


def resolve(settings: dict | None = None, **inputs) -> Request:
    defaults = RequestDefaults(
        pipeline=PipelineConfig(), scheduler=SchedulerConfig(), transformer=TransformerConfig(), vae=VaeConfig()
    )
    size = {"height": 64, "width": 128}
    return defaults.resolve(
        SampleInputs(prompt="", negative_prompt="", **inputs), SampleSettings(**size, **(settings or {}))
    )


def test_a_square_image_is_stretched_cropped_or_padded(tmp_path):
    """A white square with a black left half: what becomes of its halves tells the three ways apart."""
    pixels = np.full((64, 64, 3), 255, np.uint8)
    pixels[:, :32] = 0
    Image.fromarray(pixels).save(tmp_path / "square.png")
    rows = {fit: resolve({"fit": fit}, image=tmp_path / "square.png").image for fit in ("stretch", "crop", "pad")}
    white = {fit: (image[32, :, 0] > 0).tolist() for fit, image in rows.items()}
    assert white["stretch"] == white["crop"] == [x >= 64 for x in range(128)]
    assert white["pad"] == [64 <= x < 96 for x in range(128)]
    np.testing.assert_array_equal(rows["pad"][:, :32], -1)
    np.testing.assert_array_equal(resolve(image=tmp_path / "square.png").image, rows["stretch"])


def test_crops_are_around_the_centre(tmp_path):
    """Of 128 rows, the middle 64 remain."""
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[32:96] = 255
    assert (resolve({"fit": "crop"}, image=pixels).image == 1).all()


def test_clips_are_resampled_to_24_unless_told_otherwise(tmp_path):
    grey = np.arange(60, dtype=np.uint8)[:, None, None, None] * 4
    clip = np.broadcast_to(grey, (60, 64, 128, 3))
    path = save_video(tmp_path / "a.mp4", clip, fps=30, crf=1)
    (resampled,), (stored,) = resolve(video=path).video, resolve({"video_fps": None}, video=path).video
    assert (len(resampled), len(stored)) == (48, 60)
    shown = [round(float(frame.mean()) / 4) for part in (resampled[:1], resampled[-33:]) for frame in part]
    assert shown == [0, *(round(1.25 * k - 1e-9) for k in range(15, 48))]
    assert len(resolve(video=clip).video[0]) == 60  # arrays have no times


def test_short_clips_name_their_file_and_rate(tmp_path):
    path = save_video(tmp_path / "a.mp4", np.zeros((40, 64, 128, 3), np.uint8), fps=30)
    with pytest.raises(ValueError, match=r"the video .*a\.mp4 has 32 frames at 24 frames per second; at least 33 are"):
        resolve(video=path)
    assert len(resolve({"video_fps": None}, video=path).video[0]) == 40
