"""The networks that train together, as one module."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from helios_jax.models.network import Network
from helios_jax.models.tokenization import encode_tokens
from helios_jax.training.batch import PromptBatch
from helios_jax.typing import Array, Float


class Networks(nnx.Module):
    """Networks that are optimised, saved and restored together.

    Each network is an attribute, and parameters have paths such as "transformer/proj_out/kernel". All names are
    allowed; methods and products here use "transformer", "text_encoder" (needed for batches of tokens) and "vae".

    Args:
        networks: The networks by name; only those that the method uses or trains.
    """

    def __init__(self, **networks: nnx.Module) -> None:
        for name, network in networks.items():
            setattr(self, name, network)

    def __getattr__(self, name: str) -> Any:
        # Called only for missing attributes. Flax and Python themselves look for names with a leading underscore.
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        given = ", ".join(modules(self)) or "none given"
        raise AttributeError(f"no {name} among the networks ({given}): pass {name}=...")

    def text_embeds(self, text: PromptBatch) -> Float[Array, "B S E"]:
        """The text embeddings for the transformer, with zeros after the last token, as in sampling.

        Tokens are encoded by ``text_encoder``, so gradients reach it.

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


def modules(networks: Networks) -> dict[str, nnx.Module]:
    """The networks by name."""
    return {name: network for name, network in vars(networks).items() if isinstance(network, nnx.Module)}
