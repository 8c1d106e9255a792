"""Stage 3 with a discriminator from step 1000 (arXiv 2603.04379): heads on the network of the critic.

    helios-train --config=stage3_distill_gan.py:14b --workdir=runs/stage3_distill_gan \
        --config.start.folder=runs/stage3_ode/product/2500

Sizes: 14b, 1_3b, and tiny, tiny_gpu and helios_tiny (see train_tiny.py).

Published: the recipe of ``stage3_distill``, blur as the corruption of a tenth of the contexts, and convolutional heads
on blocks 5, 15, 25 and 35 and on the velocity (988.4M parameters, trained in full with the critic's optimizer).
Generator and discriminator read crops of half the height and width.

Differences from the published run: those of stage3_distill. The real clips of the discriminator are from the critic's
window, to which the context of the generated clips belongs (published: from the generator's window, so that it can tell
real clips by a context that does not fit), and all clips of a sample are cropped at the same place, so that the penalty
R1 compares like with like; ``gan.crops`` and ``gan.reals`` select the published behaviour. Losses of critic and
discriminator are summed into one update.

Cost and result: 14b and 1_3b have not been run to a result; benchmarks/distillation.py times single steps of 14b with
random weights. For the small sizes see train_tiny.py.
"""

import dataclasses

from helios_jax.distillation.gan import Gan
from helios_jax.experiments import stage1_init, stage3_distill
from helios_jax.models.discriminator import DiscriminatorConfig
from helios_jax.training.distiller import Distill
from helios_jax.training.experiment import Experiment
from helios_jax.training.overrides import frozen, mutable


def get_config(size: str = "14b"):
    """The settings; ``size`` is "14b", "1_3b" or one of ``stage1_init.SMALL``."""
    if size in stage1_init.SMALL:
        return mutable(tiny(stage3_distill.tiny(frozen(stage1_init.get_config(size)))))
    return mutable(experiment(size))


def experiment(size: str) -> Experiment:
    """The published sizes."""
    base = stage3_distill.experiment(size)
    assert isinstance(base.method, Distill)
    context = base.method.context
    assert context.corruption is not None
    context = dataclasses.replace(context, corruption=dataclasses.replace(context.corruption, blur=0.1))
    return dataclasses.replace(base, method=dataclasses.replace(base.method, context=context, gan=Gan()))


def tiny(base: Experiment) -> Experiment:
    """Adds heads to the small world's critic. Its latents are too small to be cropped."""
    assert isinstance(base.method, Distill)
    heads = DiscriminatorConfig(hooks=(1, 3), width=64, groups=8)
    gan = Gan(start_step=base.steps // 2, crop=1.0, heads=heads)
    return dataclasses.replace(base, method=dataclasses.replace(base.method, gan=gan))
