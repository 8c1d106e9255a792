"""The networks: transformer, VAE, text encoder."""

from typing import TYPE_CHECKING

from helios_jax._lazy import lazy_exports

if TYPE_CHECKING:
    from helios_jax.models.text_encoder import Umt5Encoder
    from helios_jax.models.transformer import HeliosTransformer
    from helios_jax.models.vae import WanVae

__all__ = ["HeliosTransformer", "Umt5Encoder", "WanVae"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "HeliosTransformer": "helios_jax.models.transformer",
        "Umt5Encoder": "helios_jax.models.text_encoder",
        "WanVae": "helios_jax.models.vae",
    },
)
