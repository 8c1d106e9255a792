"""Diffusion: the flow, the pyramid of levels, solvers and guidance."""

from typing import TYPE_CHECKING

from helios_jax._lazy import lazy_exports

if TYPE_CHECKING:
    from helios_jax.diffusion import flow, guidance, pyramid, solvers
    from helios_jax.diffusion.guidance import CfgZeroStar, ClassifierFree, Guidance, make_guidance
    from helios_jax.diffusion.pyramid import (
        Level,
        LevelSchedule,
        check_steps,
        level_schedule,
        level_sizes,
        level_tokens,
        pyramid_levels,
        transition,
    )
    from helios_jax.diffusion.solvers import Dmd, Euler, Solver, SolverState, UniPC, make_solver

_EXPORTS = {
    "guidance": ("CfgZeroStar", "ClassifierFree", "Guidance", "make_guidance"),
    "pyramid": (
        "Level",
        "LevelSchedule",
        "check_steps",
        "level_schedule",
        "level_sizes",
        "level_tokens",
        "pyramid_levels",
        "transition",
    ),
    "solvers": ("Dmd", "Euler", "Solver", "SolverState", "UniPC", "make_solver"),
    "flow": (),
}

__all__ = [
    "CfgZeroStar",
    "ClassifierFree",
    "Dmd",
    "Euler",
    "Guidance",
    "Level",
    "LevelSchedule",
    "Solver",
    "SolverState",
    "UniPC",
    "check_steps",
    "flow",
    "guidance",
    "level_schedule",
    "level_sizes",
    "level_tokens",
    "make_guidance",
    "make_solver",
    "pyramid",
    "pyramid_levels",
    "solvers",
    "transition",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {name: f"{__name__}.{module}" for module, names in _EXPORTS.items() for name in (module, *names)},
)
