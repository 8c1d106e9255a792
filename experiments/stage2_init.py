"""Stage 2, first part: Base learns the three levels of the pyramid and becomes Mid (arXiv 2603.04379).

    helios-train --config=stage2_init.py:14b --workdir=runs/stage2_init \
        --config.start.folder=runs/stage1_post/product/5000

Without the override 14b starts from the published Base, and 1_3b from the folder above. Sizes: 14b, 1_3b, and tiny,
tiny_gpu and helios_tiny (see train_tiny.py).

Published: LoRA of rank 256 on every linear layer (1246.3M parameters), all patchers frozen, AdamW with a learning rate
that grows to 1e-4 over 1000 steps, 1 sample per GPU, levels 1 : 2 : 1, seed 45. The numbers of GPUs and of steps are
not published; both parts of stage 2 took three to four days. The authors recommend a lower learning rate for small
batches. Samples are coloured noise at first. The product is sampled as the published Mid, with CFG-Zero*.

Differences from the published run: decisions about the context are taken for each sample, as in stage1_init, and the
levels of a chunk are separate calls of the network instead of one packed sequence, which is the same loss.

Cost and result: 14b and 1_3b have not been run to a result; benchmarks/training.py times single steps of 14b with
random weights. For the small sizes see train_tiny.py.
"""

import dataclasses

from helios_jax.config import PipelineConfig, SchedulerConfig
from helios_jax.experiments import stage1_init
from helios_jax.training.experiment import Experiment, Lora
from helios_jax.training.injection import Injection
from helios_jax.training.methods.base import Base
from helios_jax.training.methods.pyramid import Pyramid
from helios_jax.training.optimizer import AdamW
from helios_jax.training.overrides import frozen, mutable
from helios_jax.training.products import Pipeline
from helios_jax.training.starts import FromCheckpoint
from helios_jax.training.validation import Samples


def get_config(size: str = "14b"):
    """The settings; ``size`` is "14b", "1_3b" or one of ``stage1_init.SMALL``."""
    if size in stage1_init.SMALL:
        return mutable(tiny(frozen(stage1_init.get_config(size))))
    return mutable(experiment(size))


def experiment(size: str) -> Experiment:
    """The published sizes."""
    stage1_init.check_published_size(size)
    base = frozen(stage1_init.get_config(size))
    scheduler = SchedulerConfig.mid()
    return dataclasses.replace(
        base,
        start=FromCheckpoint(folder="BestWishYsh/Helios-Base" if size == "14b" else "runs/stage1_post/product/5000"),
        method=Pyramid(context=Injection.published(), scheduler=scheduler, ratios=(1, 2, 1)),
        product=Pipeline(parts=base.product.parts, config=PipelineConfig(is_cfg_zero_star=True), scheduler=scheduler),
        optimizer=AdamW(learning_rate=1e-4, warmup_steps=1000, weight_decay=1e-4, clip_norm=1.0),
        steps=10_000,
        seed=45,
        lora=Lora(rank=256, excludes=("transformer/patch_.*",)),
        trainable=((".*/lora_[ab]", 1),),
        validation=Samples(every=500, prompts=stage1_init.PROMPTS, steps=(20, 20, 20), guidance_scale=5.0),
    )


def tiny(base: Experiment) -> Experiment:
    """Trains the networks of stage 1 (``base``) in full, with twice the chunks per step and one sample per level.

    The learning rate is 0.7 of that of stage 1. The product is sampled with plain guidance, unlike the published Mid.
    """
    assert isinstance(base.method, Base)
    assert isinstance(base.product, Pipeline)
    scheduler, precision = SchedulerConfig.mid(), base.product.dtype
    return dataclasses.replace(
        base,
        start=FromCheckpoint(folder="runs/tiny/stage1", parts=("transformer", "text_encoder"), dtype=precision),
        method=Pyramid(context=base.method.context, scheduler=scheduler, ratios=(1, 1, 1)),
        product=dataclasses.replace(base.product, config=PipelineConfig(), scheduler=scheduler),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=0.7 * base.optimizer.learning_rate),
        batch_size=2 * base.batch_size,
        seed=45,
    )
