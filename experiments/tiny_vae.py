"""A small VAE of the Wan2.1 kind for the world of moving shapes: the first step of train_tiny.py.

    helios-train --config=experiments/tiny_vae.py:images --workdir=runs/tiny/vae_images
    helios-train --config=experiments/tiny_vae.py:videos --workdir=runs/tiny/vae \
        --config.start.folder=runs/tiny/vae_images/product/3000

4x time and 8x space, 16 channels, as published; 64 x 64 pixels. It learns still images first, which cost a fifth, then
clips, for its convolutions over time. The product is ``vae/`` with the statistics of its latents, which helios-prepare
uses.

Hardware, cost and result: see train_tiny.py.
"""

import dataclasses

from helios_jax.config import VaeConfig
from helios_jax.training.datasets import MovingShapes
from helios_jax.training.experiment import Experiment
from helios_jax.training.methods.vae import Vae
from helios_jax.training.optimizer import AdamW
from helios_jax.training.overrides import mutable
from helios_jax.training.products import MeasuredVae
from helios_jax.training.starts import Checkpoint, Random
from helios_jax.training.validation import Reconstructions


def get_config(phase: str = "images"):
    """The settings; ``phase`` is "images" or "videos"."""
    held_out = MovingShapes(scenes=64, world=1)
    images = Experiment(
        start=Random(vae=VaeConfig.tiny(), dtype="float32"),
        method=Vae(),
        data=MovingShapes(scenes=100_000, frames=1),
        product=MeasuredVae(clips=held_out),
        optimizer=AdamW(learning_rate=2e-3, schedule="cosine", warmup_steps=20, weight_decay=0.0),
        steps=3000,
        batch_size=4,
        seed=42,
        log_every=100,
        checkpoint_every=500,
    )
    if phase == "images":
        return mutable(images)
    if phase != "videos":
        raise ValueError(f"phase {phase!r} must be 'images' or 'videos'")
    return mutable(
        dataclasses.replace(
            images,
            start=Checkpoint(folder="runs/tiny/vae_images/product/3000", parts=("vae",), dtype="float32"),
            data=MovingShapes(scenes=100_000, frames=5),
            steps=600,
            validation=Reconstructions(every=300, clips=held_out),
        )
    )
