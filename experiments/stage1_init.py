"""Stage 1, first part: Wan2.1 becomes a chunk-autoregressive model (arXiv 2603.04379).

    helios-prepare --model=Wan-AI/Wan2.1-T2V-14B-Diffusers --clips=clips.json --out=latents
    helios-train --config=experiments/stage1_init.py:14b --workdir=runs/stage1_init

Sizes: 14b, 1_3b (Wan2.1-T2V-1.3B) and tiny (fresh weights on moving shapes, see train_tiny.py).

Published: LoRA of rank 128 on every linear layer and on the patch embedding (623.8M parameters), the history patchers
in full (23.9M), AdamW at a constant 5e-5, 2 samples per GPU, seed 43. The number of GPUs is not published; the number
of steps is about 5,500 as quoted from the technical report, two to three days for both parts of stage 1.

Differences from the published run: the history patchers start as pooling copies of Wan's patch embedding (there, of
random weights), and every sample draws its own timestep, context and corruption (there, one draw per batch).

Hardware, cost and result: 14b and 1_3b have not been run. tiny: see train_tiny.py.
"""

from helios_jax.config import PipelineConfig, SchedulerConfig, TextEncoderConfig, TransformerConfig
from helios_jax.training.datasets import Latents
from helios_jax.training.experiment import Experiment, Lora
from helios_jax.training.injection import Injection
from helios_jax.training.methods.base import Base
from helios_jax.training.optimizer import AdamW
from helios_jax.training.overrides import mutable
from helios_jax.training.products import Pipeline
from helios_jax.training.starts import Random, Wan
from helios_jax.training.validation import Samples

WAN = {"14b": "Wan-AI/Wan2.1-T2V-14B-Diffusers", "1_3b": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"}

PROMPTS = (
    "A red fox trots through fresh snow at the edge of a pine forest, its breath visible in the cold morning air.",
    "A ship in a bottle sails across a wooden desk while waves of ink rise around its hull.",
)


def get_config(size: str = "14b"):
    """The settings; ``size`` is "14b", "1_3b" or "tiny"."""
    if size == "tiny":
        return mutable(tiny())
    if size not in WAN:
        raise ValueError(f"size {size!r} must be 'tiny' or one of {list(WAN)}")
    wan = WAN[size]
    return mutable(
        Experiment(
            start=Wan(folder=wan),
            method=Base(context=Injection.published(), remat="full"),
            data=Latents(folders=("latents",)),
            product=Pipeline(parts=wan, config=PipelineConfig(is_pyramid=False), scheduler=SchedulerConfig.base()),
            optimizer=AdamW(learning_rate=5e-5, weight_decay=1e-4, clip_norm=1.0),
            steps=5500,
            batch_size=128,
            seed=43,
            lora=Lora(rank=128, excludes=("transformer/patch_(short|mid|long)",)),
            trainable=(("transformer/patch_(short|mid|long)/.*", 1), (".*/lora_[ab]", 1)),
            validation=Samples(every=500, prompts=PROMPTS, steps=(50,), guidance_scale=5.0),
            checkpoint_every=500,
        )
    )


def tiny() -> Experiment:
    """A small transformer and text encoder from fresh weights, in full, on moving shapes of 64 x 64."""
    return Experiment(
        start=Random(transformer=TransformerConfig.tiny(), text_encoder=TextEncoderConfig.tiny(), dtype="float32"),
        method=Base(context=Injection.published()),
        data=Latents(folders=("runs/tiny/latents",), tokenizer="runs/tiny/parts", tokens=384),
        product=Pipeline(
            parts="runs/tiny/parts",
            config=PipelineConfig(is_pyramid=False),
            scheduler=SchedulerConfig.base(),
            dtype="float32",
            vae_dtype="float32",
        ),
        optimizer=AdamW(learning_rate=2e-3, warmup_steps=50, weight_decay=1e-4),
        steps=600,
        batch_size=16,
        seed=43,
        log_every=20,
        checkpoint_every=200,
    )
