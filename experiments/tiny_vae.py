"""A small VAE of the Wan2.1 kind for the world of moving shapes: the first step of train_tiny.py.

    helios-train --config=tiny_vae.py:images --workdir=runs/tiny/vae_images
    helios-train --config=tiny_vae.py:clips --workdir=runs/tiny/vae \
        --config.start.folder=runs/tiny/vae_images/product/1200

It compresses 4x in time and 8x in space into 16 channels, as published, at 64 x 64 pixels. It learns from still images
first, which show more scenes in the same time. Its convolutions start without a view of the past, so that after the
stills it encodes every fourth frame of a clip of any length, and decodes each as four equal frames. From short clips it
then learns what moves in between. The product is ``vae/`` with the statistics of its latents, which helios-prepare
uses. gpu_images and gpu_clips train a wider VAE in bfloat16, helios_tiny_images and helios_tiny_clips one between them.

Cost and result: see train_tiny.py.
"""

import dataclasses

from helios_jax.config import VaeConfig
from helios_jax.training.datasets import MovingShapes
from helios_jax.training.experiment import Experiment
from helios_jax.training.methods.vae import Vae
from helios_jax.training.optimizer import AdamW
from helios_jax.training.overrides import mutable
from helios_jax.training.products import MeasuredVae
from helios_jax.training.starts import FromCheckpoint, Random


def get_config(phase: str = "images"):
    """The settings; ``phase`` is "images" or "clips", which may have "gpu_" or "helios_tiny_" in front."""
    phases = {
        "images": images(),
        "clips": clips(images(), batch_size=4, scenes=512),
        "gpu_images": gpu_images(32),
        "gpu_clips": clips(gpu_images(32), batch_size=24, scenes=2048),
        "helios_tiny_images": textured(gpu_images(16)),
        "helios_tiny_clips": clips(textured(gpu_images(16)), batch_size=24, scenes=2048),
    }
    if phase not in phases:
        raise ValueError(f"phase {phase!r} must be one of {', '.join(phases)}")
    return mutable(phases[phase])


def images() -> Experiment:
    """Stills, for a narrow VAE."""
    return Experiment(
        start=Random(vae=VaeConfig(base_dim=8, num_res_blocks=1), dtype="float32"),
        method=Vae(square_weight=2.0),
        data=MovingShapes(scenes=512, length=99, frames=1, threads=1),
        product=MeasuredVae(clips=MovingShapes(scenes=64, world=1)),
        optimizer=AdamW(learning_rate=2e-3, schedule="cosine", warmup_steps=60, betas=(0.9, 0.97), weight_decay=0.0),
        steps=1200,
        batch_size=16,
        seed=42,
        log_every=100,
        checkpoint_every=2000,
        keep_checkpoints=1,
    )


def gpu_images(base_dim: int) -> Experiment:
    """Stills, for a VAE ``base_dim`` / 8 times as wide, in bfloat16."""
    narrow = images()
    assert isinstance(narrow.data, MovingShapes)
    assert isinstance(narrow.product, MeasuredVae)
    return dataclasses.replace(
        narrow,
        start=Random(vae=VaeConfig(base_dim=base_dim, num_res_blocks=1), dtype="bfloat16"),
        data=dataclasses.replace(narrow.data, scenes=4096, processes=16),
        product=dataclasses.replace(narrow.product, dtype="bfloat16"),
        optimizer=dataclasses.replace(narrow.optimizer, learning_rate=1e-3),
        steps=6000,
        batch_size=128,
    )


def textured(plain: Experiment) -> Experiment:
    """The same on scenes of the textured style."""
    assert isinstance(plain.data, MovingShapes)
    assert isinstance(plain.product, MeasuredVae)
    assert isinstance(plain.product.clips, MovingShapes)
    clips = dataclasses.replace(plain.product.clips, style="textured")
    return dataclasses.replace(
        plain,
        data=dataclasses.replace(plain.data, style="textured"),
        product=dataclasses.replace(plain.product, clips=clips),
    )


def clips(before: Experiment, batch_size: int, scenes: int) -> Experiment:
    """Short clips, after stills."""
    assert isinstance(before.start, Random)
    assert isinstance(before.data, MovingShapes)
    return dataclasses.replace(
        before,
        start=FromCheckpoint(folder="runs/tiny/vae_images", parts=("vae",), dtype=before.start.dtype),
        data=dataclasses.replace(before.data, frames=9, scenes=scenes),
        optimizer=dataclasses.replace(before.optimizer, learning_rate=0.3 * before.optimizer.learning_rate),
        steps=100,
        batch_size=batch_size,
        log_every=20,
    )
