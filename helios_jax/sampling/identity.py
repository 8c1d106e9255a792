"""Which model a video was sampled with, so that it is continued with the same one.

Weights are compared by a sample of about a thousand values of every parameter: reading them all would take seconds, and
training or a LoRA changes values everywhere.
"""

import dataclasses
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.config import PipelineConfig, SchedulerConfig, TransformerConfig, VaeConfig
from helios_jax.models.network import Network, count_in_words
from helios_jax.models.transformer import HeliosTransformer
from helios_jax.models.vae import WanVae
from helios_jax.parallel.mesh import readable
from helios_jax.sampling.report import kind_of, parameters_of
from helios_jax.typing import Array

_VALUES = 1024
"""Values that are read of each parameter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """A model.

    Attributes:
        name: For messages, such as "Helios Distilled, 14.3B parameters".
        dtypes: Compute dtypes of transformer and VAE.
        configuration: Digest of the configurations of pipeline, scheduler, transformer and VAE.
        weights: Digest of a sample of the transformer's weights, LoRA included.
    """

    name: str
    dtypes: tuple[str, str]
    configuration: str
    weights: str

    def require_configuration(
        self, config: PipelineConfig, scheduler: SchedulerConfig, transformer: TransformerConfig, vae: VaeConfig
    ) -> None:
        """Raises ValueError unless these are the configurations of this model."""
        if self.configuration != configuration_of(config, scheduler, transformer, vae):
            raise ValueError(
                f"the video was made with another model: {self.name}, and this one is Helios {kind_of(config)} with "
                "another configuration; load the checkpoint that it was made with"
            )

    def require_dtypes(self, dtypes: tuple[str, str]) -> None:
        """Raises ValueError unless these are the dtypes of transformer and VAE."""
        for name, made, given in zip(("dtype", "vae_dtype"), self.dtypes, dtypes, strict=True):
            if made != given:
                raise ValueError(f"the video was made with {name}={made!r}, and the model is loaded with {given!r}")

    def require(self, other: "ModelIdentity") -> None:
        """Raises ValueError unless ``other``, of the same configuration, continues videos of this model bit for bit."""
        self.require_dtypes(other.dtypes)
        if self.weights != other.weights:
            raise ValueError(
                f"the video was made with other weights of {self.name}: load the checkpoint, and the LoRA files, that "
                "it was made with"
            )


def identity_of(
    config: PipelineConfig, scheduler: SchedulerConfig, transformer: Network[HeliosTransformer], vae: Network[WanVae]
) -> ModelIdentity:
    """The identity of a loaded model; waits for the device."""
    return ModelIdentity(
        name=f"Helios {kind_of(config)}, {count_in_words(parameters_of(transformer))} parameters",
        dtypes=(jnp.dtype(transformer.dtype).name, jnp.dtype(vae.dtype).name),
        configuration=configuration_of(config, scheduler, transformer.config, vae.config),
        weights=_weights(transformer.params),
    )


def configuration_of(
    config: PipelineConfig, scheduler: SchedulerConfig, transformer: TransformerConfig, vae: VaeConfig
) -> str:
    """Digest of the configurations of a model."""
    fields = [dataclasses.asdict(each) for each in (config, scheduler, transformer, vae)]
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _weights(params: Any) -> str:
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    digest = hashlib.sha256()
    for path, values in zip(paths, jax.device_get(readable(_sample(jax.tree.leaves(params)))), strict=True):
        digest.update(f"{path} {values.dtype} ".encode() + np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]


@jax.jit
def _sample(leaves: list[Array]) -> list[Array]:
    """Values at equal distances along every axis."""
    found = []
    for leaf in leaves:
        each = max(1, round(_VALUES ** (1 / max(1, leaf.ndim))))
        found.append(leaf[tuple(slice(None, None, max(1, size // each)) for size in leaf.shape)])
    return found
