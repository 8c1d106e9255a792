"""The three networks of a checkpoint: their configuration, module and key table."""

import dataclasses
import importlib
from typing import Any, Literal, get_args

from flax import nnx

from helios_jax import config as configs
from helios_jax.checkpoints import key_tables
from helios_jax.typing import DType

ComponentName = Literal["transformer", "vae", "text_encoder"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component:
    """What is needed to build and to convert one network.

    Attributes:
        config: Its configuration class (``from_diffusers``, ``to_diffusers``).
        module: Module and class name of the network.
        keys: Its key table.
        weights: Stem of its published weight files.
    """

    config: type
    module: tuple[str, str]
    keys: key_tables.KeyTable
    weights: str

    def abstract(self, config: Any, dtype: DType) -> nnx.Module:
        """The network with shapes and dtypes but no arrays."""
        module, name = self.module
        network = getattr(importlib.import_module(module), name)
        return nnx.eval_shape(lambda: network(config, dtype=dtype, rngs=nnx.Rngs(0)))


COMPONENTS: dict[str, Component] = {
    "transformer": Component(
        config=configs.TransformerConfig,
        module=("helios_jax.models.transformer", "HeliosTransformer"),
        keys=key_tables.TRANSFORMER,
        weights="diffusion_pytorch_model",
    ),
    "vae": Component(
        config=configs.VaeConfig,
        module=("helios_jax.models.vae", "WanVae"),
        keys=key_tables.VAE,
        weights="diffusion_pytorch_model",
    ),
    "text_encoder": Component(
        config=configs.TextEncoderConfig,
        module=("helios_jax.models.text_encoder", "Umt5Encoder"),
        keys=key_tables.TEXT_ENCODER,
        weights="model",
    ),
}


def find_component(name: str) -> Component:
    """Looks a component up. Raises ValueError naming the known ones."""
    if name not in COMPONENTS:
        raise ValueError(f"unknown component {name!r}; expected one of {', '.join(get_args(ComponentName))}")
    return COMPONENTS[name]
