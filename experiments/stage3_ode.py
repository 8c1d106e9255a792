"""Stage 3, initialisation: the student regresses the end points of Mid's trajectories (arXiv 2603.04379).

    helios-prepare --model=BestWishYsh/Helios-Mid --prompts=prompts.csv --out=ode
    helios-train --config=stage3_ode.py:14b --workdir=runs/stage3_ode

Sizes: 14b, 1_3b (from the product of ``stage2_post``), and tiny, tiny_gpu and helios_tiny, which start from the product
of train_tiny.py. These train on tokens, and their teacher is guided by the empty text:

    python -c 'from helios_jax.data.moving_shapes import caption, sample_scene
    for scene in range(256): print(caption(sample_scene(9, scene)))' > captions.txt
    helios-prepare --model=runs/tiny/stage2/product/200 --prompts=captions.txt --negative_prompt= --no-text \
        --sizes=64x64 --chunks=3 --guidance_scale=2 --max_text_tokens=96 --batch=8 --out=runs/tiny/ode
    helios-train --config=stage3_ode.py:tiny --workdir=runs/tiny/stage3_ode \
        --config.start.folder=runs/tiny/stage2/product/200

Published: Mid samples five chunks with guidance 5 and 20 steps a level; LoRA of rank 256 on every linear layer and on
the patchers of the history (1251.4M parameters), AdamW with betas 0 and 0.999 at a constant 2e-6, weight decay 1e-3, 3
chunks of one video per GPU, seed 47, and a moving average of decay 0.99 after 250 steps, which is exported. The number
of steps is not published; the name of an intermediate file says 2500. The product is sampled as the published
Distilled: two steps a level, four in the first chunk, without guidance.

Differences from the published run: the recordings have a seed for each prompt (there, one for all); the student is
trained at the timesteps and noise levels that it will be sampled with (--grid=published and
--config.method.integer_timesteps=False give those of the published training); and the three chunks of a video are
microbatches. 96 chunks a step, of 32 videos, are our choice.

Cost and result: not yet measured.
"""

import dataclasses

from helios_jax.config import PipelineConfig, SchedulerConfig
from helios_jax.experiments import stage1_init, stage2_init
from helios_jax.training.datasets import Latents, Trajectories
from helios_jax.training.ema import Ema
from helios_jax.training.experiment import Experiment, Lora
from helios_jax.training.methods.ode import Ode
from helios_jax.training.monitors import Monitors
from helios_jax.training.optimizer import AdamW
from helios_jax.training.overrides import frozen, mutable
from helios_jax.training.products import Pipeline
from helios_jax.training.starts import FromCheckpoint
from helios_jax.training.validation import Samples

SCENES = (
    "On a plain pale blue background and in dim light, an orange star of medium size glides towards the upper right "
    "quickly. It bounces off the borders.",
    "A red square of small size glides downwards quickly. At the edges it bounces back. The background fades from grey "
    "at the top to pale green at the bottom. The light is bright.",
)
"""Captions of scenes of the small world that are not in its data sets."""


def get_config(size: str = "14b"):
    """The settings; ``size`` is "14b", "1_3b" or one of ``stage1_init.SMALL``."""
    if size in stage1_init.SMALL:
        return mutable(tiny(frozen(stage2_init.get_config(size))))
    return mutable(experiment(size))


def experiment(size: str) -> Experiment:
    """The published sizes."""
    stage1_init.check_published_size(size)
    mid = stage2_init.experiment(size)
    return dataclasses.replace(
        mid,
        start=FromCheckpoint(folder="BestWishYsh/Helios-Mid" if size == "14b" else "runs/stage2_post/product/5000"),
        method=Ode(),
        data=Trajectories(folders=("ode",)),
        product=distilled(mid),
        optimizer=AdamW(learning_rate=2e-6, betas=(0.0, 0.999), weight_decay=1e-3, clip_norm=10.0),
        steps=2500,
        batch_size=96,
        accumulation=3,
        seed=47,
        lora=Lora(rank=256, excludes=("transformer/patch_embedding",)),
        ema=Ema(decay=0.99, start=250),
        validation=stage1_init.monitored(every=250, folders=()),
        checkpoint_every=250,
    )


def distilled(teacher: Experiment) -> Pipeline:
    """The product of an experiment's student: few steps, no guidance, the linear shift."""
    assert isinstance(teacher.product, Pipeline)
    config, scheduler = PipelineConfig(is_distilled=True), SchedulerConfig.distilled()
    return dataclasses.replace(teacher.product, config=config, scheduler=scheduler)


def tiny(mid: Experiment) -> Experiment:
    """Trains the transformer of stage 2 (``mid``) in full; the text encoder stays as it is.

    The learning rate is a tenth of that of stage 2.
    """
    assert isinstance(mid.data, Latents)
    assert isinstance(mid.start, FromCheckpoint)
    data = Trajectories(
        folders=("runs/tiny/ode",),
        tokenizer=mid.data.tokenizer,
        tokens=mid.data.tokens,
        in_memory=True,
        threads=mid.data.threads,
    )
    return dataclasses.replace(
        mid,
        start=dataclasses.replace(mid.start, folder="runs/tiny/stage2"),
        method=Ode(),
        data=data,
        product=distilled(mid),
        optimizer=student_optimizer(mid),
        steps=mid.steps // 5,
        batch_size=3 * mid.batch_size // 4,
        seed=47,
        trainable=(("transformer/.*", 1),),
        ema=Ema(decay=0.99, start=mid.steps // 50),
        validation=monitored_shapes(every=mid.steps // 10, tokens=mid.data.tokens),
    )


def monitored_shapes(*, every: int, tokens: int) -> Samples:
    """The validation of tiny students: videos of 8 chunks, compared from chunk to chunk and with encoded scenes.

    Args:
        every: Steps between validations.
        tokens: Length that texts are padded to.
    """
    return Samples(
        every=every,
        prompts=SCENES,
        negative_prompt="",
        num_frames=264,
        height=64,
        width=64,
        steps=(2, 2, 2),
        guidance_scale=1.0,
        max_text_tokens=tokens,
        monitors=Monitors(folders=("runs/tiny/latents/videos",)),
    )


def student_optimizer(mid: Experiment) -> AdamW:
    """The optimizer of the tiny students, with the betas and the clipping of the published size."""
    rate = 0.1 * mid.optimizer.learning_rate
    return dataclasses.replace(mid.optimizer, learning_rate=rate, betas=(0.0, 0.999), clip_norm=10.0)
