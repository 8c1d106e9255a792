"""Stage 1, second part: refinement of Base at a lower learning rate (arXiv 2603.04379).

    helios-train --config=stage1_post.py:14b --workdir=runs/stage1_post

Starts from the product of ``stage1_init`` in runs/stage1_init, in which adapters are merged, with new adapters of the
same kind. Sizes: 14b, 1_3b.

Published: as stage1_init, with a constant learning rate of 3e-5 and seed 44; the number of steps is not published.
Differences from the published run: those of stage1_init, except for the patchers, which are already trained.

Cost and result: not yet measured.
"""

import dataclasses

from helios_jax.experiments import stage1_init
from helios_jax.training.experiment import Experiment
from helios_jax.training.optimizer import AdamW
from helios_jax.training.overrides import frozen, mutable
from helios_jax.training.starts import FromCheckpoint


def get_config(size: str = "14b"):
    """The settings; ``size`` is "14b" or "1_3b"."""
    return mutable(experiment(size))


def experiment(size: str) -> Experiment:
    """``stage1_init`` with the settings that differ."""
    stage1_init.check_published_size(size)
    return dataclasses.replace(
        frozen(stage1_init.get_config(size)),
        start=FromCheckpoint(folder="runs/stage1_init/product/5500"),
        optimizer=AdamW(learning_rate=3e-5, weight_decay=1e-4, clip_norm=1.0),
        steps=5000,
        seed=44,
    )
