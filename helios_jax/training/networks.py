"""The networks that a method trains, as one module."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from helios_jax.models.network import Network
from helios_jax.models.text_encoder import Umt5Encoder
from helios_jax.models.tokenization import encode_tokens
from helios_jax.models.transformer import HeliosTransformer
from helios_jax.models.vae import WanVae
from helios_jax.training.batch import PromptBatch
from helios_jax.typing import Array, Float


class Networks(nnx.Module):
    """Networks that are optimised, saved and restored together, for example "transformer/proj_out/kernel".

    Only the networks given become attributes, so that the parameter tree holds nothing that a method does not use.

    Args:
        transformer: The DiT.
        text_encoder: The encoder of batches that hold tokens; batches of embeddings need none.
        vae: The VAE.
    """

    transformer: HeliosTransformer
    text_encoder: Umt5Encoder
    vae: WanVae

    def __init__(
        self,
        *,
        transformer: HeliosTransformer | None = None,
        text_encoder: Umt5Encoder | None = None,
        vae: WanVae | None = None,
    ) -> None:
        for name, network in (("transformer", transformer), ("text_encoder", text_encoder), ("vae", vae)):
            if network is not None:
                setattr(self, name, network)

    def __getattr__(self, name: str) -> Any:
        # Reached only when there is no such attribute.
        if name in Networks.__annotations__:
            given = [other for other in Networks.__annotations__ if other in vars(self)]
            raise AttributeError(f"no {name} among the networks ({', '.join(given) or 'none given'}): pass {name}=...")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def text_embeds(self, text: PromptBatch) -> Float[Array, "B S E"]:
        """The text as the transformer takes it, zeros behind the last token, as in sampling.

        Tokens are encoded by ``text_encoder``, so that gradients reach it.

        Raises:
            ValueError: Neither embeddings nor tokens with their lengths are given.
            AttributeError: Tokens are given and there is no text encoder.
        """
        if text.embeds is not None:
            return jnp.asarray(text.embeds)
        if text.tokens is None or text.lengths is None:
            raise ValueError("the batch has no text: give embeds, or tokens together with their lengths")
        tokens, lengths = jnp.asarray(text.tokens), jnp.asarray(text.lengths)
        mask = jnp.arange(tokens.shape[1]) < lengths[:, None]
        return encode_tokens(Network.of(self.text_encoder), tokens, mask)
