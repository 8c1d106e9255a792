"""Stage 3, initialisation without recordings: consistency distillation of Mid on real videos (arXiv 2605.15141).

    helios-train --config=stage3_consistency.py:14b --workdir=runs/stage3_consistency

Takes the place of ``stage3_ode``, and of the recordings that it needs: the student's end points before and after one
guided step of Mid are made equal (``training/methods/consistency.py``). Trains on the latents of stages 1 and 2. Sizes:
14b, 1_3b (from the product of ``stage2_post``), and tiny, tiny_gpu and helios_tiny, from train_tiny.py's:

    helios-train --config=stage3_consistency.py:tiny --workdir=runs/tiny/stage3_consistency \
        --config.start.folder=runs/tiny/stage2/product/200

Not published for Helios. Optimizer, adapters and sampling are those of ``stage3_ode``; the moving average, from which
the targets come, averages from the first step. The negative prompt is encoded once, by the text encoder of the
product's parts, or in the tiny sizes by that of Mid.

Cost and result: not yet measured.
"""

import dataclasses

from helios_jax.experiments import stage1_init, stage2_init, stage3_ode
from helios_jax.training.datasets import Latents
from helios_jax.training.ema import Ema
from helios_jax.training.experiment import Experiment
from helios_jax.training.methods.consistency import Consistency
from helios_jax.training.methods.pyramid import Pyramid
from helios_jax.training.overrides import frozen, mutable


def get_config(size: str = "14b"):
    """The settings; ``size`` is "14b", "1_3b" or one of ``stage1_init.SMALL``."""
    if size in stage1_init.SMALL:
        return mutable(tiny(frozen(stage2_init.get_config(size))))
    return mutable(experiment(size))


def experiment(size: str) -> Experiment:
    """The published sizes."""
    return dataclasses.replace(
        stage3_ode.experiment(size),
        method=Consistency(),
        data=stage2_init.experiment(size).data,
        validation=stage1_init.monitored(every=250, folders=("latents",)),
        batch_size=96,
        accumulation=1,
        ema=Ema(decay=0.99),
    )


def tiny(mid: Experiment) -> Experiment:
    """Trains the transformer of stage 2 (``mid``) in full, guided as its samples are: by the empty text, with 2."""
    assert isinstance(mid.method, Pyramid)
    assert isinstance(mid.data, Latents)
    context = dataclasses.replace(mid.method.context, corruption=None)
    # Without guidance in the student, no caption becomes the empty text.
    return dataclasses.replace(
        stage3_ode.tiny(mid),
        method=Consistency(context=context, guidance_scale=2.0, negative_prompt=""),
        data=dataclasses.replace(mid.data, drop_text=0.0),
        batch_size=mid.batch_size,
        ema=Ema(decay=0.99),
    )
