"""Monitors of sampled videos: names and values of metrics, the picture, and statistics of data."""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from helios_jax.config import VaeConfig
from helios_jax.data.helios_latents.record import LatentRecord
from helios_jax.data.helios_latents.writer import LatentWriter
from helios_jax.evaluation.drift_sheet import contact_strip, drift_sheet
from helios_jax.evaluation.statistics import STATISTICS, chunk_statistics
from helios_jax.models.network import ConfiguredModule, Network
from helios_jax.training.monitors import Monitor, Monitors
from helios_jax.training.overrides import frozen, mutable
from helios_jax.training.training_curves import curves_of, draw_curves
from helios_jax.training.validation import Samples


def grey_video(levels, frames=3, size=16):
    """A chunk of each level."""
    return np.repeat(np.uint8(levels), frames)[:, None, None, None] * np.ones((1, size, size, 3), np.uint8)


def test_metrics_are_means_over_videos_with_stable_names(tmp_path):
    videos = [grey_video([50, 60, 70]), grey_video([50, 80, 110])]
    values = Monitor(reference={"brightness": 0.2}, chunk_frames=3)(videos, tmp_path / "5" / "monitors.png")
    brightness = np.array([50, 70, 90]) / 255
    expected = {f"chunk{number}": value for number, value in enumerate(brightness)}
    expected |= {"drift": 40 / 255, "gap": brightness.mean() - 0.2}
    found = {name.removeprefix("brightness/"): values[name] for name in values if name.startswith("brightness/")}
    assert found == pytest.approx(expected, abs=1e-6)
    jumps = {name: value for name, value in values.items() if name.startswith("border_jump/")}
    assert jumps == pytest.approx(
        {"border_jump/chunk1": 20 / 255, "border_jump/chunk2": 20 / 255, "border_jump/drift": 0}, abs=1e-6
    )
    assert {name.split("/")[0] for name in values} == set(STATISTICS)
    with Image.open(tmp_path / "5" / "monitors.png") as sheet:
        assert sheet.width == 1200


def test_the_picture_has_a_curve_per_statistic_and_the_ends_of_each_video():
    videos = [grey_video([50, 60, 70], size=400), grey_video([50, 80, 110], size=400)]
    statistics = [chunk_statistics(video, 3) for video in videos]
    figure = drift_sheet(videos, statistics, {"brightness": 0.2}, 3)
    *panels, strip = figure.axes
    assert [panel.get_title() for panel in panels] == list(STATISTICS)
    *_, means, data = panels[0].get_lines()
    np.testing.assert_allclose(means.get_ydata(), np.array([50, 70, 90]) / 255, atol=1e-6)
    assert list(data.get_ydata()) == [0.2, 0.2]
    pixels = strip.images[0].get_array()
    np.testing.assert_array_equal(pixels, contact_strip(videos, 3))
    tile, gap = 200, 6
    assert pixels.shape == (2 * tile + gap, 6 * tile + gap, 3)
    assert (pixels[0, 0, 0], pixels[0, -1, 0], pixels[-1, -1, 0]) == (50, 70, 110)
    assert pixels[0, 3 * tile, 0] == 255


class GreyVae(ConfiguredModule):
    """Decodes a latent frame to its mean as a grey level: no network, and the same geometry as the real one."""

    def __init__(self):
        self.config, self.dtype = VaeConfig(), jnp.float32
        self.scale = nnx.Param(jnp.ones(()))

    def decode_unclipped(self, latents, slice_frames=None):
        levels = self.scale[...] * latents.mean((2, 3, 4))
        frames = jnp.concatenate([levels[:, :1], jnp.repeat(levels[:, 1:], 4, axis=1)], axis=1)
        return jnp.broadcast_to(frames[:, :, None, None, None], (*frames.shape, 16, 16, 3))


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    """Two clips of two chunks; brightness in [-1, 1] is constant within a chunk."""
    folder = tmp_path_factory.mktemp("latents")
    mean, std = (np.array(values, np.float32) for values in (VaeConfig().latents_mean, VaeConfig().latents_std))
    records = []
    for number, levels in enumerate([(-0.5, 0.0), (0.25, 0.75)]):
        raw = np.broadcast_to(np.float32(levels)[:, None, None, None, None], (2, 9, 2, 2, 16))
        clip = (raw - mean) / std
        text = np.zeros((0, 0), np.float32)
        records.append(
            LatentRecord(
                uid=str(number),
                caption="",
                fps=24.0,
                height=16,
                width=16,
                latents=clip,
                anchor=clip[0, 0],
                embeds=text,
            )
        )
    writer = LatentWriter(folder, {(2, 2): 1}, {})
    writer.write(((2, 2), 0), records)
    assert writer.finish()
    return str(folder)


def test_data_are_clips_decoded_by_the_vae(latents):
    vae = Network.of(GreyVae())
    monitor = Monitors(folders=(latents,), reference=(("contrast", 0.3),)).prepare(vae, 16, 16, 33)
    # (-0.5 + 0 + 0.25 + 0.75) / 4 in [-1, 1]; records are in bfloat16.
    assert monitor.reference["brightness"] == pytest.approx((1 + 0.125) / 2, abs=0.005)
    assert monitor.reference["border_jump"] == pytest.approx(0.25, abs=0.005)
    assert monitor.reference["contrast"] == 0.3  # given, not measured
    first = Monitors(folders=(latents,), clips=1, chunks=1).prepare(vae, 16, 16, 33)
    assert first.reference["brightness"] == pytest.approx(0.25, abs=0.005)
    assert "border_jump" not in first.reference  # one chunk has no border
    with pytest.raises(ValueError, match="have latents of 2x2, and the videos of validation need 4x2"):
        Monitors(folders=(latents,)).prepare(vae, 32, 16, 33)
    assert Monitors().prepare(vae, 16, 16, 33).reference == {}


def test_settings_are_checked_and_become_flags():
    with pytest.raises(ValueError, match="'beauty' must be one of brightness"):
        Monitors(reference=(("beauty", 1.0),))
    with pytest.raises(ValueError, match=r"monitors\.clips=0 must be"):
        Monitors(clips=0)
    samples = Samples(every=1, prompts=("a",), monitors=Monitors(folders=("a", "b")))
    assert frozen(mutable(samples)) == samples
    assert dataclasses.replace(samples, monitors=None).settings == samples.settings


LOG = {
    20: {
        "generator/dmd_gradient": 0.5,
        "critic/loss": 9.0,
        "critic/loss_0_250": math.nan,
        "critic/loss_250_500": 0.2,
        "critic/update_norm": 1e-3,
        "generator/update_norm": 2e-4,
    },
    10: {"critic/loss_0_250": 0.1, "critic/loss_250_500": 0.3, "critic/update_norm": 2e-3},
    30: {"critic/gan/real_logit": -1.0, "critic/gan/fake_logit": 1.5, "critic/gan/r1": 0.0},
    40: {"validation/brightness/chunk0": 0.4},
}


def test_the_curves_of_a_distillation_come_from_its_log():
    """Steps in order, values that are not finite left out, losses by their band of timesteps."""
    assert curves_of(LOG) == {
        "gradient of matching (rms)": {"generator": [(20, 0.5)]},
        "critic's loss by timestep": {"0 to 250": [(10, 0.1)], "250 to 500": [(10, 0.3), (20, 0.2)]},
        "logits": {"data": [(30, -1.0)], "samples": [(30, 1.5)]},
        "penalties": {"R1": [(30, 0.0)]},
        "norm of the updates": {"critic": [(10, 2e-3), (20, 1e-3)], "generator": [(20, 2e-4)]},
    }
    assert curves_of({10: {"loss": 1.0, "update_norm": 1.0}}) == {}


def test_the_picture_has_a_row_of_training_curves():
    videos = [grey_video([50, 60, 70], size=400)]
    curves = curves_of(LOG)
    draw = functools.partial(draw_curves, curves=curves)
    figure = drift_sheet(videos, [chunk_statistics(videos[0], 3)], {}, 3, draw)
    titles = [panel.get_title() for panel in figure.axes]
    assert set(titles) >= {*STATISTICS, *curves}
    updates = figure.axes[titles.index("norm of the updates")]
    assert updates.get_yscale() == "log"
    assert figure.axes[titles.index("penalties")].get_yscale() == "linear"  # zero has no logarithm
    assert list(updates.get_lines()[0].get_xdata()) == [10, 20]
