"""helios_jax: Helios, a real-time long-video diffusion transformer, in JAX and Flax.

The public names are imported on first use, so that ``import helios_jax`` costs nothing.
"""

from typing import TYPE_CHECKING

from helios_jax._lazy import lazy_exports
from helios_jax.version import __version__ as __version__

if TYPE_CHECKING:
    from helios_jax import checkpoints, config, context, diffusion, models, parallel, sampling
    from helios_jax.checkpoints.diffusers import load_diffusers, save_diffusers
    from helios_jax.compilation import use_compilation_caches
    from helios_jax.media.saving import save_video
    from helios_jax.sampling.noise import KeyNoise, NoiseSource, RecordedNoise
    from helios_jax.sampling.output import SampleOutput
    from helios_jax.sampling.pipeline import HeliosPipeline
    from helios_jax.sampling.prompts import NEGATIVE_PROMPT, PromptSchedule
    from helios_jax.sampling.settings import SampleSettings
    from helios_jax.sampling.stream_state import StreamState


__all__ = [
    "NEGATIVE_PROMPT",
    "HeliosPipeline",
    "KeyNoise",
    "NoiseSource",
    "PromptSchedule",
    "RecordedNoise",
    "SampleOutput",
    "SampleSettings",
    "StreamState",
    "checkpoints",
    "config",
    "context",
    "diffusion",
    "load_diffusers",
    "models",
    "parallel",
    "sampling",
    "save_diffusers",
    "save_video",
    "use_compilation_caches",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "NEGATIVE_PROMPT": "helios_jax.sampling.prompts",
        "HeliosPipeline": "helios_jax.sampling.pipeline",
        "KeyNoise": "helios_jax.sampling.noise",
        "NoiseSource": "helios_jax.sampling.noise",
        "PromptSchedule": "helios_jax.sampling.prompts",
        "RecordedNoise": "helios_jax.sampling.noise",
        "SampleOutput": "helios_jax.sampling.output",
        "SampleSettings": "helios_jax.sampling.settings",
        "StreamState": "helios_jax.sampling.stream_state",
        "load_diffusers": "helios_jax.checkpoints.diffusers",
        "save_diffusers": "helios_jax.checkpoints.diffusers",
        "save_video": "helios_jax.media.saving",
        "use_compilation_caches": "helios_jax.compilation",
        **{
            name: f"helios_jax.{name}"
            for name in ("checkpoints", "config", "context", "diffusion", "models", "parallel", "sampling")
        },
    },
)
