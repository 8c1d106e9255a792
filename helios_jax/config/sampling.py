"""Configurations of sampling: schedule and solver, context, pipeline."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from helios_jax.config.fields import (
    Json,
    Range,
    SettingError,
    check_fields,
    publish,
    read_fields,
    require,
)

Solver = Literal["unipc", "euler", "dmd"]

Tokens = Annotated[int, Range(1, 10**9)]
"""Number of tokens."""

Shift = Annotated[float, Range(1e-3, 20.0)]
"""A mu of dynamic shifting."""

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

_DMD_KEYS = {
    "num_train_timesteps",
    "shift",
    "stages",
    "stage_range",
    "gamma",
    "use_dynamic_shifting",
    "time_shift_type",
}
"""Those of them that ``HeliosDMDScheduler`` knows."""


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
    num_train_timesteps: Annotated[int, Range(10, 10**6)] = 1000
    shift: Annotated[float, Range(1e-3, 1e3)] = 1.0
    num_levels: Annotated[int, Range(1, 6)] = 3
    level_range: tuple[Annotated[float, Range(0.0, 1.0)], ...] = (0.0, 1 / 3, 2 / 3, 1.0)
    gamma: Annotated[float, Range(1e-6, 1 / 3 + 1e-9)] = 1 / 3
    solver_order: Literal[1, 2] = 2
    solver_type: Literal["bh1", "bh2"] = "bh2"
    lower_order_final: bool = True
    disable_corrector: tuple[Annotated[int, Range(0, 10**6)], ...] = ()
    use_dynamic_shifting: bool = False
    time_shift_type: Literal["exponential", "linear"] = "exponential"
    base_seq_len: Tokens = 256
    max_seq_len: Tokens = 4096
    base_shift: Shift = 0.5
    max_shift: Shift = 1.15
    shift_after_upsampling: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        ends = self.level_range[:1] + self.level_range[-1:]
        ascending = all(low < high for low, high in itertools.pairwise(self.level_range))
        if len(self.level_range) != self.num_levels + 1 or ends != (0.0, 1.0) or not ascending:
            raise SettingError(
                "level_range",
                self.level_range,
                f"{self.num_levels + 1} ascending numbers from 0 to 1, for {self.num_levels} level(s)",
            )
        if self.use_dynamic_shifting and self.shift != 1.0:
            raise SettingError("shift", self.shift, "1.0, because the schedule is shifted dynamically")
        if self.max_seq_len <= self.base_seq_len:
            raise SettingError(
                "base_seq_len", self.base_seq_len, f"less than {self.max_seq_len}, the upper token count"
            )

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
            SettingError: The scheduler class or one of its settings is not supported.
        """
        require(json, "_class_name", "HeliosScheduler", "HeliosDMDScheduler")
        require(json, "prediction_type", "flow_prediction")
        require(json, "predict_x0", True)
        require(json, "thresholding", False)
        require(json, "use_flow_sigmas", True)
        require(json, "solver_p", None)
        for variant in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"):
            require(json, variant, False, None)
        keys, defaults = dict(_SCHEDULER_KEYS), {}
        if json.get("_class_name") == "HeliosDMDScheduler":
            require(json, "scheduler_type", "dmd")
            defaults = {"solver": "dmd", "time_shift_type": "linear"}
        else:
            keys["scheduler_type"] = "solver"
        if json.get("solver_type") in ("midpoint", "heun", "logrho"):  # diffusers maps these to bh2
            json = {**json, "solver_type": "bh2"}
        return read_fields(cls, json, keys, **defaults)

    def to_diffusers(self) -> dict[str, Any]:
        """Writes ``scheduler/scheduler_config.json``."""
        published = publish(self, _SCHEDULER_KEYS)
        if not self.shift_after_upsampling:  # our own field, unknown to diffusers
            del published["shift_after_upsampling"]
        common = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        if self.solver == "dmd":
            # diffusers complains about keys that the class does not know, so their defaults are left out.
            defaults = publish(SchedulerConfig(), _SCHEDULER_KEYS)
            known = {key: value for key, value in published.items() if key in _DMD_KEYS or value != defaults[key]}
            return {"_class_name": "HeliosDMDScheduler", **common, **known}
        return {
            "_class_name": "HeliosScheduler",
            "scheduler_type": self.solver,
            "predict_x0": True,
            "thresholding": False,
            **common,
            **published,
        }


Frames = Annotated[int, Range(1, 10**4)]
"""Number of latent frames."""

AnyFrames = Annotated[int, Range(0, 10**4)]
"""Number of latent frames, possibly none."""


Positions = Literal["relative", "absolute"]
"""Whether frames are numbered from the oldest one in the context, as published, or from the start of the video."""

_HISTORY_KEYS = {name: name for name in ("sizes", "chunk_frames", "keep_first_frame", "positions")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HistoryConfig:
    """Geometry of the context (arXiv 2603.04379; inference conventions of diffusers 0.42.1).

    Attributes:
        sizes: Latent frames in the (long, mid, short) tiers, oldest first. The long and the mid tier may have none.
        chunk_frames: Latent frames generated per chunk.
        keep_first_frame: Put the anchor, the first frame of the video, in front of the short tier. Off: the
            short tier has one more recent frame instead.
        positions: Frame indices of the rotary embedding: "relative", the same for every chunk, as published, or
            "absolute", the numbers of the frames in the video.
    """

    sizes: tuple[AnyFrames, AnyFrames, Frames] = (16, 2, 1)
    chunk_frames: Frames = 9
    keep_first_frame: bool = True
    positions: Positions = "relative"

    def __post_init__(self) -> None:
        check_fields(self)

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
        """Frame indices of the (long, mid, short, current) streams with relative positions; equal for every chunk."""
        start = 1 if self.keep_first_frame else 0
        bounds = [start]
        for size in (*self.tier_sizes, self.chunk_frames):
            bounds.append(bounds[-1] + size)
        long, mid, short, current = (tuple(range(low, high)) for low, high in itertools.pairwise(bounds))
        return long, mid, (0, *short) if self.keep_first_frame else short, current

    def check_relative(self, name: str) -> None:
        """Raises ValueError for a layout with absolute positions; ``name`` is the setting that holds it."""
        if self.positions != "relative":
            raise ValueError(f"{name}.positions={self.positions!r}: stage 3 is trained with 'relative' positions only")

    @classmethod
    def from_json(cls, json: Json) -> "HistoryConfig":
        """Reads the entry ``history`` of ``model_index.json``. Raises SettingError on values that cannot be used."""
        if unknown := [key for key in json if key not in _HISTORY_KEYS]:
            raise SettingError(unknown[0], json[unknown[0]], f"no key but {', '.join(_HISTORY_KEYS)}")
        return read_fields(cls, json, _HISTORY_KEYS)

    def to_json(self) -> dict[str, Any]:
        """Inverse of ``from_json``."""
        return publish(self, _HISTORY_KEYS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """What ``model_index.json`` says about sampling.

    Attributes:
        is_distilled: Few-step model: guidance defaults to 1 and the first chunk may be amplified.
        is_cfg_zero_star: CFG-Zero* instead of plain guidance.
        is_pyramid: Pyramid pipeline (integer timesteps, levels) rather than single stage.
        history: Layout of the context that the model was trained with. Files have it only if it is not the published
            one, which diffusers takes for granted.
    """

    is_distilled: bool = False
    is_cfg_zero_star: bool = False
    is_pyramid: bool = True
    history: HistoryConfig = dataclasses.field(default_factory=HistoryConfig)

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def from_diffusers(cls, json: Json) -> "PipelineConfig":
        """Reads ``model_index.json``. Raises SettingError for a pipeline class that is not Helios."""
        name = json.get("_class_name")
        if name not in ("HeliosPipeline", "HeliosPyramidPipeline"):
            raise SettingError("_class_name", name, "'HeliosPipeline' or 'HeliosPyramidPipeline'")
        flags = {key: key for key in ("is_distilled", "is_cfg_zero_star")}
        history = json.get("history", {})
        if not isinstance(history, Mapping):
            raise SettingError("history", history, "an object with the layout of the context")
        others = {"is_pyramid": name == "HeliosPyramidPipeline", "history": HistoryConfig.from_json(history)}
        return read_fields(cls, json, flags, **others)

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
        if self.history != HistoryConfig():
            index["history"] = self.history.to_json()
        return index
