"""AdamW as in the published recipes, with factors of the learning rate and weight decay for each parameter.

    g <- g min(1, clip / |g|)                                  one norm over all trained parameters        (1)
    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2                                                     (2)
    p <- p - lr_t (m' / (sqrt(v') + eps) + decay p)            m', v' corrected for their start at zero    (3)

Equation (3) is PyTorch's AdamW: the decay is multiplied by the learning rate. The learning rate of update
t = 0, 1, ... is the peak times min(1, t / warm-up) and, with the cosine schedule, times (1 + cos(pi x)) / 2, where x
runs from 0 at the end of the warm-up to 1 at the end of the schedule. Skipped updates do not count towards t.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

import jax
import optax

from helios_jax.training.params import Rules, check_rules, values_by_pattern
from helios_jax.typing import Array
from helios_jax.user_input import finite_number, whole_number

MOST_STEPS = 2**31 - 1
"""Steps are counted in int32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """An optimizer.

    Attributes:
        learning_rate: Peak learning rate.
        schedule: The learning rate after the warm-up.
        schedule_steps: Updates until the cosine ends, warm-up included; 0: the steps of the run, which a resumed run
            then cannot change.
        warmup_steps: Steps over which the learning rate grows linearly from 0.
        betas: b1 and b2 of (2). With b1 = 0, as in the published distillation, no first moment is kept.
        eps: Added to the root of the second moment in (3).
        weight_decay: Decay of (3).
        clip_norm: Limit of the gradient's norm in (1); 0: none.
        lr_factors: Factor of the learning rate by parameter; 1 where no rule matches.
        decay_factors: Factor of the weight decay by parameter; 1 where no rule matches.
    """

    learning_rate: float
    schedule: Literal["constant", "cosine"] = "constant"
    schedule_steps: int = 0
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    lr_factors: Rules = ()
    decay_factors: Rules = ()

    def __post_init__(self) -> None:
        for name in ("learning_rate", "eps", "weight_decay", "clip_norm"):
            finite_number(getattr(self, name), f"optimizer.{name}", at_least=0)
        for name in ("schedule_steps", "warmup_steps"):
            whole_number(getattr(self, name), f"optimizer.{name}", at_least=0, at_most=MOST_STEPS)
        if not self.learning_rate or not self.eps:
            raise ValueError(
                f"need learning_rate > 0 and eps > 0, got optimizer.learning_rate={self.learning_rate} and "
                f"optimizer.eps={self.eps}"
            )
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"optimizer.schedule={self.schedule!r} must be 'constant' or 'cosine'")
        if self.schedule_steps and self.schedule != "cosine":
            raise ValueError(f"optimizer.schedule_steps={self.schedule_steps} is for the cosine; this one is constant")
        betas = tuple(self.betas)
        if len(betas) != 2 or not all(0 <= finite_number(beta, "optimizer.betas") < 1 for beta in betas):
            raise ValueError(f"optimizer.betas={self.betas} must be two numbers in [0, 1)")
        check_rules(self.lr_factors, "optimizer.lr_factors")
        check_rules(self.decay_factors, "optimizer.decay_factors")

    def learning_rates(self, total_steps: int) -> optax.Schedule:
        """The learning rate of every update, for parameters of factor 1."""
        if self.schedule == "cosine":
            end = self.schedule_steps or total_steps
            if self.warmup_steps >= end:
                raise ValueError(f"warmup_steps={self.warmup_steps} must end before the last step of the cosine, {end}")
            return optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, self.warmup_steps, end)
        return optax.linear_schedule(
            0.0 if self.warmup_steps else self.learning_rate, self.learning_rate, max(1, self.warmup_steps)
        )

    def build(self, paths: Iterable[str], total_steps: int) -> optax.GradientTransformation:
        """The transformation for the trained parameters of these paths."""
        paths = list(paths)
        decays = values_by_pattern(self.decay_factors, paths, 1.0)
        factors = values_by_pattern(self.lr_factors, paths, 1.0)
        momentum, decay = self.betas
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity(),
            # Without momentum m' = g exactly. Keeping it would take as much memory as the parameters.
            optax.scale_by_adam(momentum, decay, self.eps)
            if momentum
            else optax.scale_by_rms(decay, self.eps, eps_in_sqrt=False, bias_correction=True),
            _add_decay({path: self.weight_decay * decay for path, decay in decays.items()}),
            optax.scale_by_learning_rate(self.learning_rates(total_steps)),
            optax.stateless(lambda updates, _: jax.tree.map(lambda factor, update: factor * update, factors, updates)),
        )


def updates_applied(state: Any) -> Array:
    """How many updates the optimizer with this state has made, from which its learning rate follows; int32."""
    schedules = jax.tree.leaves(state, is_leaf=_is_schedule)
    return next(node.count for node in schedules if _is_schedule(node))


def _is_schedule(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)


def _add_decay(decays: dict[str, float]) -> optax.GradientTransformation:
    def add(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda decay, update, param: update + decay * param, decays, updates, params)

    return optax.stateless(add)
