"""Configurations: one frozen dataclass per component, one constructor per published size.

Field names are ours; ``from_diffusers`` and ``to_diffusers`` translate the JSON files of the published folder layout
(diffusers 0.42.1). An unsupported setting that would change the result raises ``ValueError``; unknown keys without an
effect on inference are ignored.
"""

from helios_jax.config.defaults import SamplingDefaults
from helios_jax.config.sampling import HistoryConfig, PipelineConfig, SchedulerConfig
from helios_jax.config.text_encoder import TextEncoderConfig
from helios_jax.config.transformer import TransformerConfig, patch_tokens
from helios_jax.config.vae import VaeConfig

__all__ = [
    "HistoryConfig",
    "PipelineConfig",
    "SamplingDefaults",
    "SchedulerConfig",
    "TextEncoderConfig",
    "TransformerConfig",
    "VaeConfig",
    "patch_tokens",
]
