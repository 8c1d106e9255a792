"""Configurations of sampling: schedule and solver, context, pipeline."""

import dataclasses
import itertools
from typing import Any, Literal

from helios_jax.config._json import Json, publish, rename, require

Solver = Literal["unipc", "euler", "dmd"]

_SCHEDULER_KEYS = {
    "num_train_timesteps": "num_train_timesteps",
    "shift": "shift",
    "stages": "num_levels",
    "stage_range": "level_range",
    "gamma": "gamma",
    "solver_order": "solver_order",
    "solver_type": "solver_type",
    "lower_order_final": "lower_order_final",
    "disable_corrector": "disable_corrector",
    "use_dynamic_shifting": "use_dynamic_shifting",
    "time_shift_type": "time_shift_type",
    "base_image_seq_len": "base_seq_len",
    "max_image_seq_len": "max_seq_len",
    "base_shift": "base_shift",
    "max_shift": "max_shift",
    "shift_after_upsampling": "shift_after_upsampling",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Noise schedule and solver (``HeliosScheduler`` and ``HeliosDMDScheduler`` of diffusers).

    Attributes:
        solver: "unipc", "euler" or "dmd".
        num_train_timesteps: Length of the global timestep table.
        shift: Static shift of the global table; must be 1 with dynamic shifting.
        num_levels: Pyramid levels (1: single stage).
        level_range: Fractions of the global table at which levels begin and end, ``num_levels + 1`` values.
        gamma: Correlation of the block noise added between levels.
        solver_order: Order of UniPC, 1 or 2.
        solver_type: UniPC's B(h): "bh1" or "bh2".
        lower_order_final: The last step of UniPC has order 1.
        disable_corrector: Steps after which UniPC's corrector is skipped.
        use_dynamic_shifting: Shift sigmas by a mu that depends on the token count.
        time_shift_type: "exponential" or "linear" dynamic shift.
        base_seq_len: Token count at which mu = ``base_shift``.
        max_seq_len: Token count at which mu = ``max_shift``.
        base_shift: See ``base_seq_len``.
        max_shift: See ``max_seq_len``.
        shift_after_upsampling: Compute a level's mu from its own token count, as the research code
            does; off: from the count before upsampling, as released inference does.
    """

    solver: Solver = "unipc"
    num_train_timesteps: int = 1000
    shift: float = 1.0
    num_levels: int = 3
    level_range: tuple[float, ...] = (0.0, 1 / 3, 2 / 3, 1.0)
    gamma: float = 1 / 3
    solver_order: int = 2
    solver_type: Literal["bh1", "bh2"] = "bh2"
    lower_order_final: bool = True
    disable_corrector: tuple[int, ...] = ()
    use_dynamic_shifting: bool = False
    time_shift_type: Literal["exponential", "linear"] = "exponential"
    base_seq_len: int = 256
    max_seq_len: int = 4096
    base_shift: float = 0.5
    max_shift: float = 1.15
    shift_after_upsampling: bool = False

    def __post_init__(self) -> None:
        if self.solver not in ("unipc", "euler", "dmd"):
            raise ValueError(f"solver {self.solver!r} must be 'unipc', 'euler' or 'dmd'")
        if len(self.level_range) != self.num_levels + 1:
            raise ValueError(f"level_range needs num_levels + 1 = {self.num_levels + 1} values, got {self.level_range}")
        if self.solver_type not in ("bh1", "bh2"):
            raise ValueError(f"solver_type {self.solver_type!r} must be 'bh1' or 'bh2'")
        if self.solver_order not in (1, 2):
            raise ValueError(f"solver_order {self.solver_order} must be 1 or 2")
        if self.use_dynamic_shifting and self.shift != 1.0:
            raise ValueError(f"dynamic shifting needs shift = 1.0, got {self.shift}")
        if self.time_shift_type not in ("exponential", "linear"):
            raise ValueError(f"time_shift_type {self.time_shift_type!r} must be 'exponential' or 'linear'")
        if not 0 < self.gamma <= 1 / 3 + 1e-9:
            raise ValueError(f"gamma {self.gamma} must lie in (0, 1/3]: beyond it the block noise has no covariance")

    @classmethod
    def base(cls) -> "SchedulerConfig":
        """Helios-Base: one stage, UniPC, exponential shift."""
        return cls(num_levels=1, level_range=(0.0, 1.0), use_dynamic_shifting=True)

    @classmethod
    def mid(cls) -> "SchedulerConfig":
        """Helios-Mid: three levels, UniPC, exponential shift."""
        return cls(use_dynamic_shifting=True)

    @classmethod
    def distilled(cls) -> "SchedulerConfig":
        """Helios-Distilled: three levels, DMD steps, linear shift."""
        return cls(solver="dmd", use_dynamic_shifting=True, time_shift_type="linear")

    @classmethod
    def from_diffusers(cls, json: Json) -> "SchedulerConfig":
        """Reads ``scheduler/scheduler_config.json``.

        Raises:
            ValueError: The scheduler class or one of its settings is not supported.
        """
        name = json.get("_class_name", "HeliosScheduler")
        defaults: dict[str, Any] = {}
        if name == "HeliosDMDScheduler":
            solver = "dmd"
            defaults["time_shift_type"] = "linear"
        elif name == "HeliosScheduler":
            solver = json.get("scheduler_type", "unipc")
        else:
            raise ValueError(
                f"unknown scheduler {name!r}; supported: 'HeliosScheduler' (UniPC, Euler), 'HeliosDMDScheduler'"
            )
        require(json, "prediction_type", ("flow_prediction",), "scheduler")
        require(json, "predict_x0", (True,), "scheduler")
        require(json, "thresholding", (False,), "scheduler")
        require(json, "use_flow_sigmas", (True,), "scheduler")
        require(json, "solver_p", (None,), "scheduler")
        values: dict[str, Any] = {**defaults, **rename(json, _SCHEDULER_KEYS), "solver": solver}
        if "level_range" in values:  # JSON files write its ends as 0 and 1
            values["level_range"] = tuple(map(float, values["level_range"]))
        if values.get("solver_type") in ("midpoint", "heun", "logrho"):  # diffusers maps these to bh2
            values["solver_type"] = "bh2"
        return cls(**values)

    def to_diffusers(self) -> dict[str, Any]:
        """Writes ``scheduler/scheduler_config.json``."""
        name = "HeliosDMDScheduler" if self.solver == "dmd" else "HeliosScheduler"
        published = publish(self, _SCHEDULER_KEYS)
        if not self.shift_after_upsampling:  # our own field, unknown to diffusers
            del published["shift_after_upsampling"]
        return {
            "_class_name": name,
            "scheduler_type": self.solver,
            "prediction_type": "flow_prediction",
            "predict_x0": True,
            "thresholding": False,
            "use_flow_sigmas": True,
            **published,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class HistoryConfig:
    """Geometry of the context (arXiv 2603.04379; inference conventions of diffusers 0.42.1).

    Attributes:
        sizes: Latent frames in the (long, mid, short) tiers, oldest first.
        chunk_frames: Latent frames generated per chunk.
        keep_first_frame: Put the anchor, the first frame of the video, in front of the short tier. Off: the
            short tier has one more recent frame instead.
    """

    sizes: tuple[int, int, int] = (16, 2, 1)
    chunk_frames: int = 9
    keep_first_frame: bool = True

    @property
    def tier_sizes(self) -> tuple[int, int, int]:
        """Frames read from the buffer by the (long, mid, short) tiers."""
        long, mid, short = self.sizes
        return long, mid, short if self.keep_first_frame else short + 1

    @property
    def buffer_frames(self) -> int:
        """Latent frames that the history buffer holds."""
        return sum(self.tier_sizes)

    @property
    def frame_indices(self) -> tuple[tuple[int, ...], ...]:
        """Relative frame indices of the (long, mid, short, current) streams; equal for every chunk."""
        start = 1 if self.keep_first_frame else 0
        bounds = [start]
        for size in (*self.tier_sizes, self.chunk_frames):
            bounds.append(bounds[-1] + size)
        long, mid, short, current = (tuple(range(low, high)) for low, high in itertools.pairwise(bounds))
        return long, mid, (0, *short) if self.keep_first_frame else short, current


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """What ``model_index.json`` says about sampling.

    Attributes:
        is_distilled: Few-step model: guidance defaults to 1 and the first chunk may be amplified.
        is_cfg_zero_star: CFG-Zero* instead of plain guidance.
        is_pyramid: Pyramid pipeline (integer timesteps, levels) rather than single stage.
    """

    is_distilled: bool = False
    is_cfg_zero_star: bool = False
    is_pyramid: bool = True

    @classmethod
    def from_diffusers(cls, json: Json) -> "PipelineConfig":
        """Reads ``model_index.json``. Raises ValueError for a pipeline class that is not Helios."""
        name = json.get("_class_name")
        if name not in ("HeliosPipeline", "HeliosPyramidPipeline"):
            raise ValueError(
                f"model_index.json names the pipeline {name!r}; expected 'HeliosPipeline' or 'HeliosPyramidPipeline'"
            )
        return cls(
            is_distilled=bool(json.get("is_distilled", False)),
            is_cfg_zero_star=bool(json.get("is_cfg_zero_star", False)),
            is_pyramid=name == "HeliosPyramidPipeline",
        )

    def to_diffusers(self, scheduler: SchedulerConfig) -> dict[str, Any]:
        """Writes ``model_index.json``."""
        index: dict[str, Any] = {
            "_class_name": "HeliosPyramidPipeline" if self.is_pyramid else "HeliosPipeline",
            "scheduler": ["diffusers", scheduler.to_diffusers()["_class_name"]],
            "text_encoder": ["transformers", "UMT5EncoderModel"],
            "tokenizer": ["transformers", "T5TokenizerFast"],
            "transformer": ["diffusers", "HeliosTransformer3DModel"],
            "vae": ["diffusers", "AutoencoderKLWan"],
        }
        if self.is_pyramid or self.is_cfg_zero_star or self.is_distilled:
            index |= {"is_cfg_zero_star": self.is_cfg_zero_star, "is_distilled": self.is_distilled}
        return index
