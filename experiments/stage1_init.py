"""Stage 1, first part: Wan2.1 becomes a chunk-autoregressive model (arXiv 2603.04379).

    helios-prepare --model=Wan-AI/Wan2.1-T2V-14B-Diffusers --clips=clips.json --out=latents
    helios-train --config=stage1_init.py:14b --workdir=runs/stage1_init

Sizes: 14b, 1_3b (Wan2.1-T2V-1.3B), and ``SMALL`` (random weights on moving shapes, see train_tiny.py). The
tiny sizes need a VAE and data, which python -m helios_jax.experiments.train_tiny --until=latents writes to runs/tiny.

Published: LoRA of rank 128 on every linear layer and on the patch embedding (623.8M parameters), the history patchers
in full (23.9M), AdamW at a constant 5e-5, 2 samples per GPU, seed 43, a context that is empty with probability 0.4 and
shortened with 0.4 of the rest, noise alone as corruption. The number of GPUs is not published; the number of steps is
about 5,500 as quoted from the technical report, two to three days for both parts of stage 1.

Differences from the published run: the form of the context and the kind of its corruption are drawn for each sample
(there, once for the samples of a GPU; --config.method.context.decide=batch draws them once per step), and the history
patchers start as pooling copies of Wan's patch embedding (there, with random weights). 128 samples per step, and
activations kept in host memory, are our choices.

Cost and result: 14b and 1_3b have not been run to a result; benchmarks/training.py times single steps of 14b with
random weights. For the small sizes see train_tiny.py.
"""

import dataclasses

from helios_jax.config import PipelineConfig, SchedulerConfig, TextEncoderConfig, TransformerConfig
from helios_jax.data.moving_shapes.styles import CAPTION_TOKENS
from helios_jax.training.corruption import Corruption
from helios_jax.training.datasets import Latents
from helios_jax.training.experiment import Experiment, Lora
from helios_jax.training.injection import ContextDrop, Injection
from helios_jax.training.methods.base import Base
from helios_jax.training.monitors import Monitors
from helios_jax.training.optimizer import AdamW
from helios_jax.training.overrides import mutable
from helios_jax.training.products import Pipeline
from helios_jax.training.starts import Random, Wan
from helios_jax.training.timesteps import TimestepSampling
from helios_jax.training.validation import Samples

WAN = {"14b": "Wan-AI/Wan2.1-T2V-14B-Diffusers", "1_3b": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"}

SMALL = ("tiny", "tiny_gpu", "helios_tiny")
"""Sizes that begin with random weights, see train_tiny.py."""

PROMPTS = (
    "A red fox trots through fresh snow at the edge of a pine forest, its breath visible in the cold morning air.",
    "A ship in a bottle sails across a wooden desk while waves of ink rise around its hull.",
)


def get_config(size: str = "14b"):
    """The settings; ``size`` is "14b", "1_3b" or one of ``SMALL``."""
    small = {"tiny": tiny, "tiny_gpu": tiny_gpu, "helios_tiny": helios_tiny}
    assert tuple(small) == SMALL
    if size in small:
        return mutable(small[size]())
    if size not in WAN:
        raise ValueError(f"size {size!r} must be one of {', '.join([*WAN, *small])}")
    wan = WAN[size]
    return mutable(
        Experiment(
            start=Wan(folder=wan),
            method=Base(context=Injection.published()),
            data=Latents(folders=("latents",)),
            product=Pipeline(parts=wan, config=PipelineConfig(is_pyramid=False), scheduler=SchedulerConfig.base()),
            optimizer=AdamW(learning_rate=5e-5, weight_decay=1e-4, clip_norm=1.0),
            steps=5500,
            batch_size=128,
            remat="offload",
            seed=43,
            lora=Lora(rank=128, excludes=("transformer/patch_(short|mid|long)",)),
            trainable=(("transformer/patch_(short|mid|long)/.*", 1), (".*/lora_[ab]", 1)),
            validation=Samples(every=500, prompts=PROMPTS, steps=(50,), guidance_scale=5.0),
            checkpoint_every=500,
        )
    )


def monitored(*, every: int, folders: tuple[str, ...]) -> Samples:
    """The validation of few-step students: videos of 8 chunks, compared from chunk to chunk and with data.

    Args:
        every: Steps between validations.
        folders: Data sets with clips of 384 x 640 pixels; empty: chunks are compared with each other only.
    """
    return Samples(
        every=every,
        prompts=PROMPTS,
        num_frames=264,
        steps=(2, 2, 2),
        guidance_scale=1.0,
        monitors=Monitors(folders=folders),
    )


def check_published_size(size: str) -> None:
    """Raises ValueError unless ``size`` is that of a published Wan2.1, for experiments that have no tiny form."""
    if size not in WAN:
        raise ValueError(f"size {size!r} must be one of {', '.join(WAN)}")


def tiny() -> Experiment:
    """A small transformer and text encoder with random weights, trained in full on moving shapes of 64 x 64 pixels.

    Captions of that world describe how a video begins. Therefore only first chunks are learnt without context. Every
    sample has its own corruption. Most noise levels are near 1: at low levels the nine noisy frames already show the
    scene, so the caption matters only at high ones.
    """
    return Experiment(
        start=Random(
            transformer=TransformerConfig(
                num_heads=4,
                head_dim=32,
                text_dim=96,
                freq_dim=128,
                ffn_dim=512,
                num_layers=4,
                rope_dim=(12, 10, 10),
            ),
            text_encoder=TextEncoderConfig(vocab_size=96, d_model=96, num_layers=2, num_heads=4, d_kv=24, d_ff=192),
            dtype="float32",
        ),
        method=Base(
            context=Injection(
                drop=ContextDrop(t2v=0.0, i2v=0.0, v2v=0.0), corruption=Corruption(clean=0.3, blur=0.0), saturation=None
            ),
            timesteps=TimestepSampling(logit_mean=-1.7, logit_std=1.6),
        ),
        data=Latents(
            folders=("runs/tiny/latents/videos", "runs/tiny/latents/starts"),
            tokenizer="runs/tiny/parts",
            tokens=96,
            drop_text=0.1,
            in_memory=True,
            threads=1,
        ),
        product=Pipeline(
            parts="runs/tiny/parts",
            config=PipelineConfig(is_pyramid=False),
            scheduler=SchedulerConfig.base(),
            dtype="float32",
            vae_dtype="float32",
        ),
        optimizer=AdamW(learning_rate=1e-3, schedule="cosine", warmup_steps=50, betas=(0.9, 0.98)),
        steps=300,
        batch_size=16,
        seed=43,
        log_every=20,
        checkpoint_every=500,
        keep_checkpoints=1,
    )


def tiny_gpu() -> Experiment:
    """``tiny``, fifteen times as large and in bfloat16.

    This batch size and learning rate reach the lowest loss in the table of train_tiny.py; in short runs others do.

    Such narrow layers are limited by memory traffic, so recomputing blocks costs less than storing activations.
    """
    small = tiny()
    assert isinstance(small.method, Base)
    assert isinstance(small.product, Pipeline)
    return dataclasses.replace(
        small,
        start=Random(
            transformer=TransformerConfig(
                num_heads=6,
                head_dim=64,
                text_dim=192,
                ffn_dim=1536,
                num_layers=8,
                rope_dim=(24, 20, 20),
            ),
            text_encoder=TextEncoderConfig(vocab_size=96, d_model=192, num_layers=4, num_heads=6, d_kv=32, d_ff=448),
        ),
        product=dataclasses.replace(small.product, dtype="bfloat16", vae_dtype="bfloat16"),
        optimizer=dataclasses.replace(small.optimizer, learning_rate=1e-3, warmup_steps=500),
        steps=10_000,
        batch_size=256,
        remat="full",
        log_every=100,
        checkpoint_every=4000,
    )


def helios_tiny() -> Experiment:
    """``tiny_gpu`` with 7.8M parameters in the transformer, so that it runs in real time on two CPU cores.

    It learns the textured style of the world, whose captions are longer and have more words.
    """
    large = tiny_gpu()
    assert isinstance(large.data, Latents)
    return dataclasses.replace(
        large,
        start=Random(
            transformer=TransformerConfig(
                num_heads=4,
                head_dim=64,
                text_dim=192,
                ffn_dim=896,
                num_layers=6,
                rope_dim=(24, 20, 20),
            ),
            text_encoder=TextEncoderConfig(vocab_size=128, d_model=192, num_layers=3, num_heads=6, d_kv=32, d_ff=448),
        ),
        data=dataclasses.replace(large.data, tokens=CAPTION_TOKENS["textured"]),
    )
