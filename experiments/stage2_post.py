"""Stage 2, second part: refinement of Mid at a lower learning rate (arXiv 2603.04379).

    helios-train --config=stage2_post.py:14b --workdir=runs/stage2_post

Starts from the product of ``stage2_init`` in runs/stage2_init, in which adapters are merged. Sizes: 14b, 1_3b.

Published: LoRA of rank 256 on every linear layer and on all patchers (1252.8M parameters), AdamW with a learning rate
that grows to 3e-5 over 500 steps, 1 sample per GPU, levels 1 : 1 : 1, seed 46; the number of steps is not published.
Differences from the published run: those of stage2_init.

Cost and result: not yet measured.
"""

import dataclasses

from helios_jax.experiments import stage2_init
from helios_jax.training.experiment import Lora
from helios_jax.training.methods.pyramid import Pyramid
from helios_jax.training.optimizer import AdamW
from helios_jax.training.overrides import mutable
from helios_jax.training.starts import FromCheckpoint


def get_config(size: str = "14b"):
    """The settings; ``size`` is "14b" or "1_3b"."""
    init = stage2_init.experiment(size)
    assert isinstance(init.method, Pyramid)
    return mutable(
        dataclasses.replace(
            init,
            start=FromCheckpoint(folder="runs/stage2_init/product/10000"),
            method=dataclasses.replace(init.method, ratios=(1, 1, 1)),
            optimizer=AdamW(learning_rate=3e-5, warmup_steps=500, weight_decay=1e-4, clip_norm=1.0),
            steps=5000,
            seed=46,
            lora=Lora(rank=256),
        )
    )
