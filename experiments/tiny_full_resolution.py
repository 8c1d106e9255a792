"""Stage 1 once more, in the place of stage 2: the model of the small world without a pyramid.

    helios-train --config=tiny_full_resolution.py:tiny --workdir=runs/full \
        --config.start.folder=runs/tiny/stage1/product/300

Everything that does not concern the levels is as in ``stage2_init``: learning rate, schedule, seed. For
``ablations/run.py`` it has the steps that cost as many operations as stage 2. Sizes: those of ``stage1_init.SMALL``.

Cost and result: not yet measured.
"""

import dataclasses

from helios_jax.experiments import stage1_init, stage2_init
from helios_jax.training.experiment import Experiment
from helios_jax.training.overrides import frozen, mutable


def get_config(size: str = "tiny"):
    """The settings; ``size`` is one of ``stage1_init.SMALL``."""
    if size not in stage1_init.SMALL:
        raise ValueError(f"size {size!r} must be one of {', '.join(stage1_init.SMALL)}")
    return mutable(experiment(size))


def experiment(size: str) -> Experiment:
    """Stage 1 from its own product."""
    first, second = (frozen(stage.get_config(size)) for stage in (stage1_init, stage2_init))
    return dataclasses.replace(first, start=second.start, optimizer=second.optimizer, seed=second.seed)
