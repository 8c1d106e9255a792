"""Solvers of the flow: Euler, UniPC and the few-step sampler of the distilled model.

A solver is split in two. ``coefficients`` runs on the host and turns a schedule into a float32 table
with one row of scalars per step, computed in float64. ``step`` runs on the device: one pure function
of (state, velocity, row) whose program depends neither on the step nor on how many there are. With
``a_k = 1 - sigma_k``, v the predicted velocity at step k and ``x`` the sample there:

**Euler.**   (1)  x <- x + (sigma_(k+1) - sigma_k) v

**DMD** (arXiv 2603.04379). Jump to the predicted end point, then return to the next noise level along the
path to this level's own start point; no fresh noise:

    (2)  m = x - sigma_k v,   x <- (1 - sigma_(k+1)) m + sigma_(k+1) x_start

The last step has sigma_(k+1) = 0 and returns m.

**UniPC** (arXiv 2302.04867, the data-prediction form). With b_k = max(sigma_k, 1e-8) and
lambda_k = ln a_k - ln b_k, the flow from step s to step t obeys

    (3)  x_t = (b_t/b_s) x_s + b_t INT_(lambda_s)^(lambda_t) e^l m(l) dl,    m_k = x_k - sigma_k v_k

Let h = lambda_t - lambda_s, phi = e^(-h) - 1 and B = phi ("bh2") or -h ("bh1"). Holding m at m_s, and
correcting it with differences D of earlier or later predictions, gives

    (4)  x_t = (b_t/b_s) x_s - a_t phi m_s - a_t B sum_i c_i D_i

Predictor (s = k, t = k+1): order 1 has no sum, order 2 has

    (5)  c = 1/2,   D = (m_(k-1) - m_k) / r,   r = (lambda_(k-1) - lambda_k) / h

Corrector (s = k-1, t = k, x_s the corrected sample y): it uses the order of the previous predictor and
always the new difference D_t = m_k - m_(k-1). Order 1 has c_t = 1/2. Order 2 adds
D_1 = (m_(k-2) - m_(k-1)) / r with r = (lambda_(k-2) - lambda_(k-1)) / h and solves

    (6)  c_1 + c_t = b_1,   r c_1 + c_t = b_2,
         b_1 = psi_2 / B,   b_2 = 2 psi_3 / B,   psi_2 = -phi/h - 1,   psi_3 = -psi_2/h - 1/2

m_k is not computed again after the correction. All of (4) is linear in the arrays, so every order, the
first step (no corrector) and the last are one form with different weights, zero where a term is absent:

    (7)  y' = c_x x + c_y y + c_0 m_k + c_1 m_(k-1) + c_2 m_(k-2)
    (8)  x' = p_y y' + p_0 m_k + p_1 m_(k-1)

Rounding follows diffusers 0.42.1 when velocities are narrower than fp32. UniPC and Euler round the scalar of
the velocity and the product with it (a 0-dimensional tensor takes the dtype of the other operand); Euler
also rounds the result. DMD rounds the end point, and from the second level on holds samples in the narrow dtype.
"""

import dataclasses
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.config import SchedulerConfig
from helios_jax.diffusion.flow import interpolate, predict_clean, round_to
from helios_jax.diffusion.pyramid import LevelSchedule
from helios_jax.typing import Array, DType, Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SolverState:
    """What a solver carries from step to step; shapes and dtypes never change, so it can be donated.

    Attributes:
        x: The current sample.
        memory: Further arrays of the sample's shape; their meaning is the solver's own.
    """

    # Any: jax also builds this class around abstract shapes and shardings.
    x: Any
    memory: tuple[Any, ...] = ()


@runtime_checkable
class Solver(Protocol):
    """Integrates the flow over one level."""

    def coefficients(self, schedule: LevelSchedule) -> Float[np.ndarray, "steps scalars"]:
        """The scalars of every step: float32, one row per step. Runs on the host."""
        ...

    def init(self, x_start: Float[Array, "*shape"]) -> SolverState:
        """The state before the first step of a level; shares no buffer with ``x_start``."""
        ...

    def step(self, state: SolverState, velocity: Float[Array, "*shape"], row: Float[Array, " scalars"]) -> SolverState:
        """The state after one step, from the velocity predicted at ``state.x``."""
        ...

    def finish(self, state: SolverState, dtype: DType) -> Float[Array, "*shape"]:
        """The sample after the last step, in the dtype the next level starts from.

        Args:
            state: The last state.
            dtype: Dtype of the velocities.
        """
        ...


def _rounded_product(scalar: Float[Array, ""], velocity: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """scalar * velocity with the scalar and the product rounded to the dtype of ``velocity``; fp32."""
    return round_to(round_to(scalar, velocity.dtype) * velocity.astype(jnp.float32), velocity.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Euler:
    """The Euler method, equation (1)."""

    def coefficients(self, schedule: LevelSchedule) -> Float[np.ndarray, "steps scalars"]:
        """Rows of (sigma_(k+1) - sigma_k)."""
        return np.diff(schedule.sigmas)[:, None].astype(np.float32)

    def init(self, x_start: Float[Array, "*shape"]) -> SolverState:
        """Keeps the sample in fp32."""
        return SolverState(x=jnp.array(x_start, jnp.float32))

    def step(self, state: SolverState, velocity: Float[Array, "*shape"], row: Float[Array, " scalars"]) -> SolverState:
        """The step of equation (1)."""
        (delta,) = row
        return SolverState(x=round_to(state.x + _rounded_product(delta, velocity), velocity.dtype))

    def finish(self, state: SolverState, dtype: DType) -> Float[Array, "*shape"]:
        """The sample in ``dtype``."""
        return state.x.astype(dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dmd:
    """The few-step sampler of the distilled model, equation (2). Memory: the level's start point."""

    def coefficients(self, schedule: LevelSchedule) -> Float[np.ndarray, "steps scalars"]:
        """Rows of (sigma_k, sigma_(k+1))."""
        return np.stack([schedule.sigmas[:-1], schedule.sigmas[1:]], axis=1).astype(np.float32)

    def init(self, x_start: Float[Array, "*shape"]) -> SolverState:
        """Keeps the dtype of ``x_start``: fp32 on the first level, the velocity's on later ones."""
        return SolverState(x=jnp.array(x_start), memory=(jnp.array(x_start),))

    def step(self, state: SolverState, velocity: Float[Array, "*shape"], row: Float[Array, " scalars"]) -> SolverState:
        """The step of equation (2)."""
        sigma, sigma_next = row
        (x_start,) = state.memory
        x, v, start = (array.astype(jnp.float32) for array in (state.x, velocity, x_start))
        end = round_to(predict_clean(x, v, sigma), velocity.dtype)
        x = round_to(interpolate(start, end, sigma_next), x_start.dtype)
        return SolverState(x=x.astype(x_start.dtype), memory=state.memory)

    def finish(self, state: SolverState, dtype: DType) -> Float[Array, "*shape"]:
        """The predicted end point in ``dtype``, in which it is exact."""
        return state.x.astype(dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniPC:
    """UniPC of order 1 or 2, equations (3) to (8). Memory: y, m_(k-1), m_(k-2).

    Attributes:
        order: Highest order of the predictor.
        variant: "bh1" or "bh2", the choice of B in (4).
        lower_order_final: The last step has order 1.
        disable_corrector: Steps after which the corrector is skipped.
    """

    order: int = 2
    variant: Literal["bh1", "bh2"] = "bh2"
    lower_order_final: bool = True
    disable_corrector: tuple[int, ...] = ()

    def coefficients(self, schedule: LevelSchedule) -> Float[np.ndarray, "steps scalars"]:
        """Rows of (sigma_k, c_x, c_y, c_0, c_1, c_2, p_y, p_0, p_1)."""
        sigmas = schedule.sigmas
        a, b = 1 - sigmas, np.maximum(sigmas, 1e-8)
        lam = np.log(a) - np.log(b)

        def base(s: int, t: int) -> tuple[float, float, float, float]:
            """The weights of x_s and m_s in (4), B and h."""
            h = lam[t] - lam[s]
            phi = np.expm1(-h)
            return b[t] / b[s], -a[t] * phi, phi if self.variant == "bh2" else -h, h

        rows = []
        order = 1  # of the latest predictor
        steps = len(schedule.timesteps)
        for k in range(steps):
            if k == 0 or k - 1 in self.disable_corrector:
                corrector = (1.0, 0.0, 0.0, 0.0, 0.0)
            else:
                carry, hold, big_b, h = base(k - 1, k)
                c_t, older = 0.5, 0.0
                if order == 2:
                    r = (lam[k - 2] - lam[k - 1]) / h
                    psi_2 = -np.expm1(-h) / h - 1
                    psi_3 = -psi_2 / h - 0.5
                    b_1, b_2 = psi_2 / big_b, 2 * psi_3 / big_b
                    c_1 = (b_1 - b_2) / (1 - r)
                    c_t, older = b_1 - c_1, -a[k] * big_b * c_1 / r
                newer = -a[k] * big_b * c_t
                corrector = (0.0, carry, newer, hold - newer - older, older)

            order = min(self.order, k + 1, steps - k if self.lower_order_final else self.order)
            carry, hold, big_b, h = base(k, k + 1)
            older = 0.0
            if order == 2:
                r = (lam[k - 1] - lam[k]) / h
                older = -a[k + 1] * big_b * 0.5 / r
            rows.append((sigmas[k], *corrector, carry, hold - older, older))
        return np.array(rows, np.float32)

    def init(self, x_start: Float[Array, "*shape"]) -> SolverState:
        """Keeps everything in fp32; a level starts without earlier predictions."""
        x = jnp.array(x_start, jnp.float32)
        return SolverState(x=x, memory=tuple(jnp.zeros_like(x) for _ in range(3)))

    def step(self, state: SolverState, velocity: Float[Array, "*shape"], row: Float[Array, " scalars"]) -> SolverState:
        """The step of equations (7) and (8)."""
        sigma, c_x, c_y, c_0, c_1, c_2, p_y, p_0, p_1 = row
        y, m_1, m_2 = state.memory
        m_0 = state.x - _rounded_product(sigma, velocity)
        y = c_x * state.x + c_y * y + c_0 * m_0 + c_1 * m_1 + c_2 * m_2
        return SolverState(x=p_y * y + p_0 * m_0 + p_1 * m_1, memory=(y, m_0, m_1))

    def finish(self, state: SolverState, dtype: DType) -> Float[Array, "*shape"]:
        """The sample in fp32, for any ``dtype``."""
        return state.x


def make_solver(config: SchedulerConfig) -> Solver:
    """The solver that ``config`` names."""
    if config.solver == "euler":
        return Euler()
    if config.solver == "dmd":
        return Dmd()
    return UniPC(
        order=config.solver_order,
        variant=config.solver_type,
        lower_order_final=config.lower_order_final,
        disable_corrector=config.disable_corrector,
    )
