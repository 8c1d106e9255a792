"""Stage 3, second part: Mid becomes Distilled, which needs 2 + 2 + 2 network calls a chunk (arXiv 2603.04379).

    helios-train --config=stage3_distill.py:14b --workdir=runs/stage3_distill \
        --config.start.folder=runs/stage3_ode/product/2500

The generator starts from the product of ``stage3_ode`` (or of ``stage3_consistency``), and both scores are Base: the
real one as it is, the fake one with adapters. Sizes: 14b, 1_3b, and tiny, tiny_gpu and helios_tiny (see
train_tiny.py); with "_reward" added to one of these, samples that show more of their captions count more. At the other
sizes a reward is set like this in an experiment file of your own; the regularisers are flags, as in
--config.method.regularisers.consistency=0.25 or --config.method.regularisers.moments=build.

Published: LoRA of rank 256 on the generator's linear layers and history patchers (1251.4M parameters) and on the
critic's linear layers (1246.3M), AdamW without momentum, 2e-6 for the generator and 4e-7 for the critic, which is
updated five times as often, 1 sample per GPU, a context of real chunks that is empty with probability 0.4 and shortened
with 0.5 of the rest, noise as corruption, colour shifts for the generator, a moving average from step 750, seed 49. The
number of GPUs is not published; the released model is the average after 2000 steps as far as is known.

Differences from the published run: decisions about the context are taken for each sample; the steps are those of the
sampler, with its truncated timesteps and its shifts (``method.grid=published`` trains on the other grid). 64 samples
per step are our choice.

Cost and result: 14b and 1_3b have not been run to a result; benchmarks/distillation.py times single steps of 14b with
random weights. For the small sizes see train_tiny.py.
"""

import dataclasses

from helios_jax.config import PipelineConfig, SchedulerConfig
from helios_jax.distillation.regularisers import Regularisers
from helios_jax.distillation.rewards import WEIGHT
from helios_jax.evaluation.shape_reward import ShapeReward
from helios_jax.experiments import stage1_init, stage3_ode
from helios_jax.training.corruption import Saturation
from helios_jax.training.datasets import Latents
from helios_jax.training.distiller import Distill
from helios_jax.training.ema import Ema
from helios_jax.training.experiment import Experiment, Lora
from helios_jax.training.injection import ContextDrop, Injection
from helios_jax.training.methods.base import Base
from helios_jax.training.optimizer import AdamW
from helios_jax.training.overrides import frozen, mutable
from helios_jax.training.products import Pipeline
from helios_jax.training.starts import FromCheckpoint


def get_config(size: str = "14b"):
    """The settings; ``size`` is "14b", "1_3b" or one of ``stage1_init.SMALL``, to which "_reward" may be added."""
    if size in stage1_init.SMALL:
        return mutable(tiny(frozen(stage1_init.get_config(size))))
    if (small := size.removesuffix("_reward")) in stage1_init.SMALL:
        return mutable(rewarded(tiny(frozen(stage1_init.get_config(small)))))
    return mutable(experiment(size))


def experiment(size: str) -> Experiment:
    """The published sizes."""
    stage1_init.check_published_size(size)
    base = frozen(stage1_init.get_config(size))
    context = dataclasses.replace(
        Injection.published(), drop=ContextDrop(t2v=0.4, i2v=0.0, v2v=0.5), saturation=Saturation()
    )
    optimizer = AdamW(learning_rate=2e-6, betas=(0.0, 0.999), weight_decay=1e-3, clip_norm=10.0)
    score = "BestWishYsh/Helios-Base" if size == "14b" else "runs/stage1_post/product/5000"
    return dataclasses.replace(
        base,
        start=FromCheckpoint(folder="runs/stage3_ode/product/2500"),
        method=Distill(
            score=FromCheckpoint(folder=score),
            critic_lora=Lora(rank=256, excludes=("transformer/patch_.*",)),
            critic_optimizer=dataclasses.replace(optimizer, learning_rate=4e-7),
            context=context,
        ),
        data=Latents(folders=("latents",), windows=2),
        product=Pipeline(
            parts=base.product.parts, config=PipelineConfig(is_distilled=True), scheduler=SchedulerConfig.distilled()
        ),
        optimizer=optimizer,
        steps=2000,
        batch_size=64,
        seed=49,
        lora=Lora(rank=256, excludes=("transformer/patch_embedding",)),
        trainable=((".*/lora_[ab]", 1),),
        ema=Ema(decay=0.99, start=750),
        validation=stage1_init.monitored(every=250, folders=("latents",)),
        checkpoint_every=250,
    )


def tiny(base: Experiment) -> Experiment:
    """Distils the small world's stage 2 into few steps; the generator is trained in full, the critic by adapters.

    The empty text is the negative prompt: with it the scores' text encoder was trained.
    """
    assert isinstance(base.method, Base)
    assert isinstance(base.product, Pipeline)
    assert isinstance(base.data, Latents)
    parts, precision = ("transformer", "text_encoder"), base.product.dtype
    optimizer = AdamW(learning_rate=5e-5, betas=(0.0, 0.99), weight_decay=1e-3, clip_norm=10.0)
    return dataclasses.replace(
        base,
        start=FromCheckpoint(folder="runs/tiny/consistency", parts=parts, dtype=precision),
        method=Distill(
            score=FromCheckpoint(folder="runs/tiny/stage1", parts=parts, dtype=precision),
            critic_lora=Lora(rank=32, excludes=("transformer/patch_.*",)),
            critic_optimizer=dataclasses.replace(optimizer, learning_rate=1e-4),
            context=base.method.context,
            guidance=2.0,
            negative_prompt="",
            tokens=base.data.tokens,
        ),
        data=dataclasses.replace(base.data, drop_text=0.0, windows=2),
        product=dataclasses.replace(
            base.product, config=PipelineConfig(is_distilled=True), scheduler=SchedulerConfig.distilled()
        ),
        optimizer=optimizer,
        steps=2500,
        trainable=(("transformer/.*", 1),),
        ema=Ema(decay=0.99, start=250),
        seed=49,
        validation=stage3_ode.monitored_shapes(every=625, tokens=base.data.tokens),
    )


def rewarded(base: Experiment) -> Experiment:
    """Weighs the small world's samples by how much of their captions they show, read from their pixels."""
    assert isinstance(base.method, Distill)
    assert isinstance(base.data, Latents)
    reward = ShapeReward()
    weights = Regularisers(rewards=tuple((name, WEIGHT) for name in reward.names))
    return dataclasses.replace(
        base,
        method=dataclasses.replace(base.method, reward=reward, regularisers=weights),
        data=dataclasses.replace(base.data, captions=512),
    )
