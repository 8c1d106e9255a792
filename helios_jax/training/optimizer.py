"""AdamW as in the published recipes, with factors of the learning rate and weight decay for each parameter.

    g <- g min(1, clip / |g|)                                  one norm over all trained parameters        (1)
    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2                                                     (2)
    p <- p - lr_t (m' / (sqrt(v') + eps) + decay p)            m', v' corrected for their start at zero    (3)

Equation (3) is PyTorch's AdamW: the decay is multiplied by the learning rate. The learning rate of update
t = 0, 1, ... is the peak times min(1, t / warm-up) and, with the cosine schedule, times (1 + cos(pi x)) / 2, where x
runs from 0 at the end of the warm-up to 1 at the last step.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

import jax
import optax

from helios_jax.training.params import Rules, values_by_pattern


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """An optimizer.

    Attributes:
        learning_rate: Peak learning rate.
        schedule: The learning rate after the warm-up.
        warmup_steps: Steps over which the learning rate grows linearly from 0.
        betas: b1 and b2 of (2).
        eps: Added to the root of the second moment in (3).
        weight_decay: Decay of (3).
        clip_norm: Limit of the gradient's norm in (1); 0: none.
        lr_factors: Factor of the learning rate by parameter; 1 where no rule matches.
        decay_factors: Factor of the weight decay by parameter; 1 where no rule matches.
    """

    learning_rate: float
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    lr_factors: Rules = ()
    decay_factors: Rules = ()

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.warmup_steps < 0 or self.clip_norm < 0:
            raise ValueError(
                f"need learning_rate > 0, warmup_steps >= 0 and clip_norm >= 0, got {self.learning_rate}, "
                f"{self.warmup_steps} and {self.clip_norm}"
            )

    def learning_rates(self, total_steps: int) -> optax.Schedule:
        """The learning rate of every update, for parameters of factor 1."""
        if self.schedule == "cosine":
            if self.warmup_steps >= total_steps:
                raise ValueError(f"warmup_steps={self.warmup_steps} must end before the last step, {total_steps}")
            return optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, self.warmup_steps, total_steps)
        return optax.linear_schedule(
            0.0 if self.warmup_steps else self.learning_rate, self.learning_rate, max(1, self.warmup_steps)
        )

    def build(self, paths: Iterable[str], total_steps: int) -> optax.GradientTransformation:
        """The transformation for the trained parameters of these paths."""
        paths = list(paths)
        decays = values_by_pattern(self.decay_factors, paths, 1.0)
        factors = values_by_pattern(self.lr_factors, paths, 1.0)
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity(),
            optax.scale_by_adam(*self.betas, self.eps),
            _add_decay({path: self.weight_decay * decay for path, decay in decays.items()}),
            optax.scale_by_learning_rate(self.learning_rates(total_steps)),
            optax.stateless(lambda updates, _: jax.tree.map(lambda factor, update: factor * update, factors, updates)),
        )


def _add_decay(decays: dict[str, float]) -> optax.GradientTransformation:
    def add(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda decay, update, param: update + decay * param, decays, updates, params)

    return optax.stateless(add)
