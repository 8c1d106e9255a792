"""Every random draw of sampling, by name.

A sampler asks a ``NoiseSource`` for named arrays instead of advancing a generator. A draw therefore depends only on
its purpose, not on the order of the draws, the batch or the device, and recorded draws can be replayed. Names, with
shapes channels-last (h, w: latent sides; B: batch):

    chunk{k}/initial                              [B,9,h,w,C]       noise that chunk k starts from, full size
    chunk{k}/block{l}                             [B,9,h_l,w_l,C]   white noise from which the block noise entering
                                                                    level l is computed
    anchor/posterior, anchor/noise                [B,1,h,w,C]       image or first frame
    anchor/sigma                                  []
    still/posterior, still/noise                  [B,9,h,w,C], [B,1,h,w,C]    I2V: the image as a still clip
    still/sigma                                   []
    piece{i}/posterior, piece{i}/noise            [B,9,h,w,C]       V2V: 33-frame piece i of the clip
    piece{i}/sigma                                [9]
"""

import dataclasses
import functools
import zlib
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.sampling.settings import MAX_SEED
from helios_jax.typing import AnyArray, Array, Float, Key
from helios_jax.user_input import whole_number


@runtime_checkable
class NoiseSource(Protocol):
    """A source of named random arrays."""

    def normal(self, name: str, shape: Sequence[int]) -> Float[AnyArray, "*shape"]:
        """Standard normal values, float32; the first axis of ``shape`` is the batch."""
        ...

    def uniform(self, name: str, shape: Sequence[int]) -> Float[AnyArray, "*shape"]:
        """Uniform values in [0, 1), float32; no batch axis."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyNoise:
    """Draws from one key, folded with the name of the draw and the index of the sample.

    A sample therefore gets the same noise in batches of any size, as long as it has the same index.

    Attributes:
        key: A typed PRNG key, such as ``jax.random.key(seed)``.
    """

    key: Key[Array, ""]

    @classmethod
    def from_seed(cls, seed: int) -> "KeyNoise":
        """The noise of a seed. Seeds below 2^32 give ``jax.random.key(seed)``, larger ones use all their 64 bits.

        Raises:
            ValueError: The seed is not a whole number from 0 to 2^64 - 1.
        """
        seed = whole_number(seed, "seed", at_least=0, at_most=MAX_SEED)
        # ``jax.random.key`` drops the upper half of a seed unless 64-bit types are enabled; the key itself has 64 bits.
        upper, lower = divmod(seed, 2**32)
        key = jax.random.key(np.uint32(lower))
        words = np.array(jax.random.key_data(key))
        words[::2] = upper
        return cls(key=jax.random.wrap_key_data(jnp.asarray(words), impl=jax.random.key_impl(key)))

    def normal(self, name: str, shape: Sequence[int]) -> Float[Array, "*shape"]:
        """Normal values from the key, the name and each sample's index."""
        return _normal(self.key, _fold(name), tuple(shape))

    def uniform(self, name: str, shape: Sequence[int]) -> Float[Array, "*shape"]:
        """Uniform values from the key and the name."""
        return _uniform(self.key, _fold(name), tuple(shape))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordedNoise:
    """Replays recorded draws.

    Attributes:
        draws: Name -> array.
    """

    draws: Mapping[str, AnyArray] = dataclasses.field(repr=False)

    def normal(self, name: str, shape: Sequence[int]) -> Float[AnyArray, "*shape"]:
        """The recorded array. Raises KeyError or ValueError when it is missing or has another shape."""
        if name not in self.draws:
            raise KeyError(f"no recorded draw {name!r}; recorded: {sorted(self.draws)}")
        draw = self.draws[name]
        if np.shape(draw) != tuple(shape):
            raise ValueError(f"recorded draw {name!r} has shape {np.shape(draw)}; {tuple(shape)} is needed")
        return np.asarray(draw, np.float32)

    uniform = normal


def _fold(name: str) -> np.uint32:
    return np.uint32(zlib.crc32(name.encode()))


@functools.partial(jax.jit, static_argnums=2)
def _normal(key: Key[Array, ""], fold: Array, shape: tuple[int, ...]) -> Float[Array, "*shape"]:
    stream = jax.random.fold_in(key, fold)
    samples = jax.vmap(lambda index: jax.random.fold_in(stream, index))(jnp.arange(shape[0]))
    return jax.vmap(lambda sample: jax.random.normal(sample, shape[1:], jnp.float32))(samples)


@functools.partial(jax.jit, static_argnums=2)
def _uniform(key: Key[Array, ""], fold: Array, shape: tuple[int, ...]) -> Float[Array, "*shape"]:
    return jax.random.uniform(jax.random.fold_in(key, fold), shape, jnp.float32)
