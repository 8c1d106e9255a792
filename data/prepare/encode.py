"""Clips to latents and text embeddings, on all devices of this host.

A clip of F frames gives floor(F / 33) chunks; the rest is dropped. Each chunk goes through the VAE's encoder on its
own, and a sample of the posterior is taken with noise from

    key(clip, chunk) = fold(fold(key(seed), hash of the clip's uid), chunk),                 (1)

so that a clip's latents depend neither on the other clips nor on how the work is divided. Chunks of successive
clips fill fixed batches, one program on every device; the host decodes the next clips and fetches the last batch
while the devices work.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import UInt32

from helios_jax.data.helios_latents.record import CHUNK_FRAMES, LatentRecord, Size
from helios_jax.data.helios_latents.writer import Failure
from helios_jax.data.prepare.clips import Clip
from helios_jax.data.prepare.file_clips import LeftOutError
from helios_jax.data.workers import ahead_of_time
from helios_jax.media.files import ClipError
from helios_jax.models.network import Network
from helios_jax.models.tokenization import TextEncoder, Tokenizer, clean_prompt, encode_tokens
from helios_jax.models.vae import WanVae, to_model_range
from helios_jax.sampling.conditioning import encode_posterior
from helios_jax.typing import Array, Bool, Float, Int, Key, Path, UInt8

_TEXT_BATCH = 8
"""Texts per device and call."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How clips are encoded.

    Attributes:
        min_frames: Shorter clips are skipped.
        max_frames: Frames beyond this number are dropped.
        max_text_tokens: Length that texts are cut to.
        seed: Seed of the posterior samples.
        batch: Chunks per device and call.
        readers: Threads that decode clips.
        processes: Use processes as readers, for clips that Python renders: its threads would wait for each other.
        text: Compute text embeddings.
        dtype: Compute dtype of the text encoder.
        vae_dtype: Compute dtype of the VAE; the published setting is "float32".
    """

    min_frames: int = 121
    max_frames: int = 501
    max_text_tokens: int = 512
    seed: int = 0
    batch: int = 1
    readers: int = 4
    processes: bool = False
    text: bool = True
    dtype: str = "bfloat16"
    vae_dtype: str = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ClipEncoder:
    """A VAE and a text encoder, copied to every local device.

    Attributes:
        vae: The VAE.
        text_encoder: The text encoder; ``None`` leaves the embeddings empty.
        options: See ``EncodeOptions``.
        mesh: The devices.
    """

    vae: Network[WanVae]
    text_encoder: TextEncoder | None
    options: EncodeOptions
    mesh: Mesh

    @classmethod
    def create(
        cls,
        vae: Network[WanVae],
        text_encoder: TextEncoder | None,
        options: EncodeOptions,
        devices: Sequence[jax.Device] | None = None,
    ) -> "ClipEncoder":
        """Copies the networks to the devices, by default all that this process can use."""
        local = list(devices or jax.local_devices())
        mesh = Mesh(np.array(local), ("data",), axis_types=(AxisType.Auto,))
        everywhere = NamedSharding(mesh, PartitionSpec())
        return cls(
            vae=jax.device_put(vae, everywhere),
            text_encoder=jax.device_put(text_encoder, everywhere),
            options=options,
            mesh=mesh,
        )

    @classmethod
    def load(cls, model: Path, options: EncodeOptions) -> "ClipEncoder":
        """Loads the VAE and, with ``options.text``, the text encoder of a checkpoint.

        Raises:
            FileNotFoundError: The checkpoint or a part of it is missing.
            ValueError: Something in it is not supported or does not fit.
        """
        from helios_jax.checkpoints.hub import local_folder
        from helios_jax.checkpoints.weights import load_weights

        folder = local_folder(model)

        def load(name: str, dtype: str) -> Any:
            return load_weights(folder, name, dtype=dtype)

        text_encoder = None
        if options.text:
            if not (folder / "text_encoder").is_dir():
                raise FileNotFoundError(f"{folder} has no text_encoder; without one, leave embeddings out (--no-text)")
            text_encoder = TextEncoder.create(load("text_encoder", options.dtype), Tokenizer.from_folder(folder))
        return cls.create(Network.of(load("vae", options.vae_dtype)), text_encoder, options)

    @property
    def chunk_pixels(self) -> int:
        """Pixel frames of a chunk."""
        return (CHUNK_FRAMES - 1) * self.vae.config.scale_factor_temporal + 1

    def __call__(self, clips: Sequence[Clip], size: Size) -> Iterator[LatentRecord | Failure]:
        """Encodes clips.

        Args:
            clips: The clips.
            size: Latent rows and columns of every clip.

        Yields:
            One record or failure for each clip, in order.
        """
        factor = self.vae.config.scale_factor_spatial
        pixels = (size[0] * factor, size[1] * factor)
        embeds = self._encode_texts([clip.caption for clip in clips])
        # The devices run ahead of the records by a batch; tee keeps the clips in between.
        ahead, current = itertools.tee(zip(clips, self._read(clips, pixels), strict=True))
        latents = self._encode(
            (clip.uid, number, chunk)
            for clip, frames in ahead
            if not isinstance(frames, ClipError)
            for number, chunk in enumerate(self._chunks(frames))
        )
        for (clip, frames), rows in zip(current, embeds, strict=True):
            if isinstance(frames, ClipError):
                yield Failure(uid=clip.uid, error=str(frames), by_rule=isinstance(frames, LeftOutError))
                continue
            chunks = np.stack([next(latents) for _ in self._chunks(frames)])
            yield LatentRecord(
                uid=clip.uid,
                caption=clip.caption,
                fps=clip.fps,
                height=pixels[0],
                width=pixels[1],
                latents=chunks,
                anchor=chunks[0, 0],
                embeds=rows,
            )

    def _read(
        self, clips: Sequence[Clip], pixels: tuple[int, int]
    ) -> Iterator[UInt8[np.ndarray, "F H W 3"] | ClipError]:
        """The frames of each clip, or the error if it cannot be read."""
        minimum = max(self.options.min_frames, self.chunk_pixels)
        read = functools.partial(_read_clip, pixels=pixels, minimum=minimum, maximum=self.options.max_frames)
        return ahead_of_time(read, clips, self.options.readers, processes=self.options.processes)

    def _chunks(self, frames: UInt8[np.ndarray, "F H W 3"]) -> UInt8[np.ndarray, "chunks F2 H W 3"]:
        count = len(frames) // self.chunk_pixels
        return frames[: count * self.chunk_pixels].reshape(count, self.chunk_pixels, *frames.shape[1:])

    def _encode(
        self, chunks: Iterable[tuple[str, int, UInt8[np.ndarray, "F H W 3"]]]
    ) -> Iterator[Float[np.ndarray, "T h w C"]]:
        """Latents of (uid, number, frames), in bfloat16."""
        key = jax.random.key(self.options.seed)
        total = self.options.batch * self.mesh.size

        def dispatch(batch: Sequence[tuple[str, int, UInt8[np.ndarray, "F H W 3"]]]) -> tuple[int, Array]:
            uids, numbers, frames = zip(*_padded(batch, total), strict=True)
            names = np.array([uid_hash(uid) for uid in uids], np.uint32)
            parts = self._split(np.stack(frames)), self._split(names), self._split(np.array(numbers, np.uint32))
            return len(batch), _encode_chunks(self.mesh, self.vae, key, *parts)

        for count, latents in one_behind(map(dispatch, itertools.batched(chunks, total))):
            yield from np.asarray(latents)[:count]

    def _encode_texts(self, texts: Sequence[str]) -> Iterator[Float[np.ndarray, "texts E"]]:
        """Embeddings of the texts' tokens, in bfloat16."""
        if self.text_encoder is None:
            yield from (np.zeros((0, 0), jnp.bfloat16) for _ in texts)
            return
        encoder, total = self.text_encoder, _TEXT_BATCH * self.mesh.size
        for batch in itertools.batched(texts, total):
            cleaned = [clean_prompt(text) for text in _padded(batch, total)]
            token_ids, mask = encoder.tokenizer(cleaned, self.options.max_text_tokens)
            parts = self._split(token_ids), self._split(mask)
            embeds = np.asarray(_encode_texts(self.mesh, encoder.encoder, *parts))
            # Copies: a view would keep the padded batch alive.
            yield from (row[: kept.sum()].copy() for row, kept in zip(embeds[: len(batch)], mask, strict=False))

    def _split(self, array: np.ndarray) -> Array:
        """Divides the first axis among the devices."""
        return jax.device_put(array, NamedSharding(self.mesh, PartitionSpec("data")))


def _read_clip(
    clip: Clip, *, pixels: tuple[int, int], minimum: int, maximum: int
) -> UInt8[np.ndarray, "F H W 3"] | ClipError:
    """The frames of a clip, or the error if it cannot be read."""
    try:
        if not clip.caption:
            raise ClipError("it has no caption")
        frames = clip.read(pixels, maximum)
    except ClipError as error:
        return error
    if len(frames) < minimum:
        return LeftOutError(f"it has {len(frames)} frames; at least {minimum} are needed")
    return frames


def uid_hash(uid: str) -> int:
    """The 32-bit hash of a clip's uid in (1), the same on every machine."""
    return int.from_bytes(hashlib.blake2b(uid.encode(), digest_size=4).digest(), "little")


@functools.partial(jax.jit, static_argnames="mesh")
def _encode_chunks(
    mesh: Mesh,
    vae: Network[WanVae],
    key: Key[Array, ""],
    frames: UInt8[Array, "B F H W 3"],
    names: UInt32[Array, " B"],
    numbers: UInt32[Array, " B"],
) -> Float[Array, "B T h w C"]:
    """Posterior samples of chunks, split over the mesh along the batch."""

    def encode(
        vae: Network[WanVae], frames: UInt8[Array, "F H W 3"], name: UInt32[Array, ""], number: UInt32[Array, ""]
    ) -> Float[Array, "T h w C"]:
        config = vae.config
        factor = config.scale_factor_spatial
        shape = (CHUNK_FRAMES, frames.shape[1] // factor, frames.shape[2] // factor, config.z_dim)
        noise = jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, name), number), shape)
        return encode_posterior(vae, to_model_range(frames)[None], noise[None])[0].astype(jnp.bfloat16)

    split, everywhere = PartitionSpec("data"), PartitionSpec()
    local = jax.vmap(encode, in_axes=(None, 0, 0, 0))
    return jax.shard_map(local, mesh=mesh, in_specs=(everywhere, split, split, split), out_specs=split)(
        vae, frames, names, numbers
    )


@functools.partial(jax.jit, static_argnames="mesh")
def _encode_texts(
    mesh: Mesh, encoder: Network, token_ids: Int[Array, "B S"], mask: Bool[Array, "B S"]
) -> Float[Array, "B S D"]:
    """Text embeddings, split over the mesh along the batch."""

    def encode(encoder: Network, token_ids: Int[Array, "B S"], mask: Bool[Array, "B S"]) -> Float[Array, "B S D"]:
        return encode_tokens(encoder, token_ids, mask).astype(jnp.bfloat16)

    split = PartitionSpec("data")
    return jax.shard_map(encode, mesh=mesh, in_specs=(PartitionSpec(), split, split), out_specs=split)(
        encoder, token_ids, mask
    )


def one_behind[T](items: Iterable[T]) -> Iterator[T]:
    """Yields each item after requesting the next one, so that devices have work while a result is fetched."""
    iterator = iter(items)
    for last in itertools.islice(iterator, 1):
        for item in iterator:
            yield last
            last = item
        yield last


def _padded[T](batch: Sequence[T], size: int) -> list[T]:
    """Pads a batch to ``size`` items by repeating the last one."""
    return [*batch, *itertools.repeat(batch[-1], size - len(batch))]
