"""Starts the stream of a checked call: encodes its prompts, its image or clip, and gives the parts to one another."""

import functools
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax.numpy as jnp

from helios_jax.config import PipelineConfig, SchedulerConfig
from helios_jax.context import History
from helios_jax.diffusion.guidance import make_guidance
from helios_jax.models.network import Network
from helios_jax.models.tokenization import TextEncoder
from helios_jax.models.transformer import HeliosTransformer
from helios_jax.models.vae import WanVae
from helios_jax.parallel.mesh import on_mesh_of
from helios_jax.sampling.chunk import ChunkSampler
from helios_jax.sampling.conditioning import Conditioner
from helios_jax.sampling.identity import identity_of
from helios_jax.sampling.inputs import SampleInputs
from helios_jax.sampling.noise import KeyNoise, NoiseSource
from helios_jax.sampling.producer import ChunkProducer
from helios_jax.sampling.prompt_state import PromptEncoder, PromptState
from helios_jax.sampling.request import Request, RequestDefaults
from helios_jax.sampling.settings import SampleSettings
from helios_jax.sampling.stream import Stream
from helios_jax.sampling.stream_state import Origin, StreamState


@runtime_checkable
class Parts(Protocol):
    """The part of a pipeline that streams are made of."""

    config: PipelineConfig
    scheduler: SchedulerConfig
    transformer: Network[HeliosTransformer]
    vae: Network[WanVae]
    text_encoder: TextEncoder | None


def start_stream(
    pipe: Parts,
    request: Request,
    inputs: SampleInputs,
    settings: SampleSettings,
    *,
    noise: NoiseSource | None,
    lookahead: int,
    **callbacks: Callable[..., None] | None,
) -> Stream:
    """The stream of a new video.

    Args:
        pipe: The networks.
        request: The checked call.
        inputs: Its prompts.
        settings: How to sample.
        noise: Source of all draws, instead of the seed.
        lookahead: See ``Stream``, as for ``callbacks``.
    """
    draws = KeyNoise.from_seed(settings.seed) if noise is None else noise
    # A stream keeps the networks that it started with, also when the pipeline gets others or is closed.
    transformer, vae = pipe.transformer, pipe.vae
    identify = functools.partial(identity_of, pipe.config, pipe.scheduler, transformer, vae)
    with on_mesh_of(transformer.params), request.explained_errors("preparing"):
        conditioner = Conditioner(
            vae=vae,
            history_config=request.history_config,
            noise=draws,
            batch=request.batch,
            image_sigmas=settings.image_sigmas,
            video_sigmas=settings.video_sigmas,
            slice_frames=settings.vae_slice_frames,
        )
        text = PromptState.start(_encoder(pipe, request, settings), inputs, guided=request.guided)
        return Stream(
            request=request,
            producer=_producer(pipe, request, settings, text, draws),
            start=0,
            history=conditioner.history_of(request),
            origin=Origin(settings=settings, seeded=noise is None, identify=functools.cache(identify)),
            lookahead=lookahead,
            **callbacks,
        )


def resume_stream(
    pipe: Parts,
    defaults: RequestDefaults,
    state: StreamState,
    settings: SampleSettings,
    *,
    noise: NoiseSource | None,
    lookahead: int,
    **callbacks: Callable[..., None] | None,
) -> Stream:
    """The stream that continues a video; see ``start_stream``.

    Raises:
        ValueError: The state belongs to another model, settings differ where they must not, or the video is finished.
    """
    request = resumed_request(defaults, state, settings)
    transformer = pipe.transformer
    with on_mesh_of(transformer.params), request.explained_errors("preparing"):
        state.model.require(identity_of(pipe.config, pipe.scheduler, transformer, pipe.vae))
        if noise is None and not state.seeded:
            raise ValueError("the draws of this video came from noise=, not from its seed: give the same noise again")
        text = PromptState.resumed(_encoder(pipe, request, settings), state.timeline, state.negative)
        draws = KeyNoise.from_seed(settings.seed) if noise is None else noise
        return Stream(
            request=request,
            producer=_producer(pipe, request, settings, text, draws),
            start=state.index,
            history=History(frames=jnp.asarray(state.frames), anchor=jnp.asarray(state.anchor)),
            origin=Origin(settings=settings, seeded=noise is None, identify=lambda: state.model),
            lookahead=lookahead,
            **callbacks,
        )


def resumed_request(defaults: RequestDefaults, state: StreamState, settings: SampleSettings) -> Request:
    """The request that continues a video, from the settings of a checkpoint alone.

    Raises:
        ValueError: Settings differ where they must not, the arrays do not fit the model, or the video is finished.
    """
    state.model.require_configuration(defaults.pipeline, defaults.scheduler, defaults.transformer, defaults.vae)
    state.check_settings(settings)
    request = defaults.resume(
        settings,
        batch=state.batch,
        conditioned=state.conditioned,
        past_chunks=state.past_chunks,
        index=state.index,
    )
    factor, history = defaults.vae.scale_factor_spatial, request.history_config
    size = request.height // factor, request.width // factor
    state.check_arrays((request.batch, history.buffer_frames, *size, defaults.vae.z_dim), defaults.transformer.text_dim)
    if request.guided != (state.negative is not None):
        raise ValueError("the state and the model differ in whether guidance is on; load the checkpoint of the video")
    return request


def _encoder(pipe: Parts, request: Request, settings: SampleSettings) -> PromptEncoder:
    return PromptEncoder(
        text_encoder=pipe.text_encoder,
        batch=request.batch,
        max_tokens=settings.max_text_tokens,
        width=pipe.transformer.config.text_dim,
        dtype=pipe.transformer.dtype,
    )


def _producer(
    pipe: Parts, request: Request, settings: SampleSettings, text: PromptState, noise: NoiseSource
) -> ChunkProducer:
    sampler = ChunkSampler(
        transformer=pipe.transformer,
        scheduler=pipe.scheduler,
        guidance=make_guidance(pipe.config) if request.guided else None,
        scale=request.guidance_scale,
        history_config=request.history_config,
    )
    return ChunkProducer(
        request=request,
        sampler=sampler,
        vae=pipe.vae,
        text=text,
        noise=noise,
        integer_timesteps=pipe.config.is_pyramid,
        slice_frames=settings.vae_slice_frames,
    )
