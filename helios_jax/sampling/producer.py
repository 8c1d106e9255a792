"""The device's side of a stream: what the chunks of a video are computed from, and the work of one chunk."""

import contextlib
import time
from collections.abc import Callable, Generator

from helios_jax.context import History
from helios_jax.models.network import Network
from helios_jax.models.vae import WanVae
from helios_jax.parallel.host_memory import fetched
from helios_jax.parallel.mesh import on_mesh_of, readable
from helios_jax.sampling.chunk import ChunkSampler, StepInfo, remember
from helios_jax.sampling.decoding import decode_and_check
from helios_jax.sampling.finite import CONTEXT, FRAMES, all_finite
from helios_jax.sampling.noise import NoiseSource
from helios_jax.sampling.pending import DeviceChunk, Moment
from helios_jax.sampling.plan import LevelPlan, plan_chunk
from helios_jax.sampling.projected_text import ProjectedText
from helios_jax.sampling.prompt_state import PromptState
from helios_jax.sampling.request import Request
from helios_jax.sampling.ropes import absolute_ropes, shared_ropes
from helios_jax.typing import Array


class ChunkProducer:
    """Dispatches the work of single chunks. From one to the next, it keeps only the position in the text.

    Args:
        request: The checked call.
        sampler: Samples a chunk.
        vae: Decodes it. It may be parked in host memory.
        text: Prompts.
        noise: Source of all draws.
        integer_timesteps: The network gets floor(t).
        slice_frames: Latent frames that the VAE decodes at a time; ``None``: the whole chunk.

    Attributes:
        text: Keys and values of the chunks' texts.
    """

    def __init__(
        self,
        *,
        request: Request,
        sampler: ChunkSampler,
        vae: Network[WanVae],
        text: PromptState,
        noise: NoiseSource,
        integer_timesteps: bool,
        slice_frames: int | None = None,
    ) -> None:
        self.text = ProjectedText(text, sampler.transformer)
        self.sampler = sampler
        self._request = request
        self._vae = vae
        self._noise = noise
        self._integer_timesteps = integer_timesteps
        self._slice_frames = slice_frames
        self._plans = self._plan(amplify=False)
        self._first_plans = self._plan(amplify=request.amplify_first_chunk)
        relative = sampler.history_config.positions == "relative"
        self._shared_ropes = shared_ropes(sampler, self._latent_size, self._plans) if relative else None

    def num_steps(self, chunks: range) -> int:
        """Steps of several chunks."""
        first, later = (sum(len(plan.step_scalars) for plan in plans) for plans in (self._first_plans, self._plans))
        return len(chunks) * later + (first - later if 0 in chunks else 0)

    @contextlib.contextmanager
    def on_device(self) -> Generator[None]:
        """Enters the mesh of the network and explains errors of memory."""
        with on_mesh_of(self.sampler.transformer.params), self._request.explained_errors():
            yield

    def produce(self, before: Moment, on_step: Callable[[StepInfo], None]) -> tuple[DeviceChunk, History]:
        """Dispatches a chunk, down to the copy of its frames to the host.

        Takes the text of the chunk from the timeline; the caller goes back in it if this raises. Nothing else changes,
        so the same chunk can then be produced again.

        Args:
            before: The stream before the chunk.
            on_step: Called after each step has been dispatched.

        Returns:
            The arrays of the chunk, and the history after it.
        """
        with self.on_device():
            return self._produce(before, on_step)

    def _produce(self, before: Moment, on_step: Callable[[StepInfo], None]) -> tuple[DeviceChunk, History]:
        started, index = time.perf_counter(), before.index
        latents, levels = self.sampler.sample(
            index,
            self._plans if index else self._first_plans,
            text=self.text.next(),
            ropes=self._ropes(index),
            history=before.history,
            noise=self._noise,
            on_step=on_step,
        )
        # A parked VAE is fetched only now: while the transformer runs, activations may have its memory.
        with fetched(self._vae) as vae:
            pixels, finite = decode_and_check(vae, latents, slice_frames=self._slice_frames)
        # Later chunks need no check of their context: it consists of checked latents.
        first = self._request.conditioned and index == 0
        context = [(CONTEXT, all_finite(before.history))] if first else []
        verdicts = [*self.text.verdicts, *context, *levels, (FRAMES, finite)]  # in the order of the computation
        pixels = readable(pixels)
        history = remember(before.history, latents, self._anchors(index))
        latents = readable(latents)
        # Start the copies now, so they follow the work without the host; ``device_get`` only waits for them.
        for array in (pixels, latents, *(finite for _, finite in verdicts)):
            array.copy_to_host_async()
        return DeviceChunk(pixels=pixels, latents=latents, verdicts=verdicts, started=started), history

    @property
    def _latent_size(self) -> tuple[int, int]:
        factor = self._vae.config.scale_factor_spatial
        return self._request.height // factor, self._request.width // factor

    def _plan(self, *, amplify: bool) -> tuple[LevelPlan, ...]:
        return plan_chunk(
            self.sampler.scheduler,
            self.sampler.transformer.config,
            steps=self._request.steps,
            frames=self.sampler.history_config.chunk_frames,
            size=self._latent_size,
            integer_timesteps=self._integer_timesteps,
            amplify=amplify,
        )

    def _ropes(self, index: int) -> tuple[Array, ...]:
        """Rotary tables of a chunk, one for each level."""
        if self._shared_ropes is not None:
            return self._shared_ropes
        return absolute_ropes(self.sampler, self._latent_size, self._plans, self._request.past_chunks + index)

    def _anchors(self, index: int) -> bool:
        """Whether the chunk's first frame becomes the anchor: chunk 0 of T2V, chunk 1 when it is to be skipped."""
        from_text = not self._request.conditioned
        return (index == 0 and from_text) or (index == 1 and self._request.skip_first_chunk)
