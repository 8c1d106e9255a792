"""Stage 1, second part, with the corrections that the authors recommend after release.

    helios-train --config=stage1_post_corrected.py:14b --workdir=runs/stage1_post_corrected

As ``stage1_post``, but with the contexts that occur in sampling. Of the samples whose context is not empty, 0.1 get the
image-to-video form (anchor and newest frame alone); absent frames stay exactly zero; of the samples that are corrupted
(0.9 of all), 0.1 are blurred, to 0.9 ... 1.0 of the size, and the others get noise; and segments are then saturated by
0.3 ... 1.7 with probability 0.9. The published models were trained without these corrections: their videos from images
start almost still. The authors say that the numbers need tuning. Sizes: 14b, 1_3b.

Cost and result: not yet measured.
"""

import dataclasses

from helios_jax.experiments import stage1_post
from helios_jax.training.injection import Injection
from helios_jax.training.methods.base import Base
from helios_jax.training.overrides import mutable


def get_config(size: str = "14b"):
    """The settings; ``size`` is "14b" or "1_3b"."""
    experiment = stage1_post.experiment(size)
    assert isinstance(experiment.method, Base)
    return mutable(dataclasses.replace(experiment, method=dataclasses.replace(experiment.method, context=Injection())))
