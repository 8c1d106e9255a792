"""A small VAE of the Wan2.1 kind for the world of moving shapes: the first step of train_tiny.sh.

    helios-train --config=experiments/tiny_vae.py --workdir=runs/tiny/vae

4x time and 8x space, 16 channels, as published; clips of 33 frames of 64 x 64 pixels. The product is ``vae/`` with the
statistics of its latents, which helios-prepare uses.

Hardware, cost and result: see train_tiny.sh.
"""

from helios_jax.config import VaeConfig
from helios_jax.training.datasets import MovingShapes
from helios_jax.training.experiment import Experiment
from helios_jax.training.methods.vae import Vae
from helios_jax.training.optimizer import AdamW
from helios_jax.training.overrides import mutable
from helios_jax.training.products import MeasuredVae
from helios_jax.training.starts import Random
from helios_jax.training.validation import Reconstructions


def get_config():
    """The settings."""
    held_out = MovingShapes(scenes=64, world=1)
    return mutable(
        Experiment(
            start=Random(vae=VaeConfig.tiny(), dtype="float32"),
            method=Vae(),
            data=MovingShapes(scenes=4096),
            product=MeasuredVae(clips=held_out),
            optimizer=AdamW(learning_rate=4e-3, schedule="cosine", warmup_steps=20, weight_decay=0.0),
            steps=400,
            batch_size=4,
            seed=42,
            validation=Reconstructions(every=200, clips=held_out),
            log_every=20,
            checkpoint_every=200,
        )
    )
