"""Records a teacher's trajectories for its few-step student: prompts to ``helios_ode``.

The teacher samples whole videos with the chunk loop of sampling (``ChunkSampler``): plain guidance, UniPC of order 2,
and on every level a grid that passes through the student's steps (``distillation.grids``). Each chunk sees the chunks
before it, as generated. Of every level the samples at the student's steps are kept, and the end point; the student is
trained to reach the latter from each of the former (arXiv 2603.04379).
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from helios_jax.config import HistoryConfig, SchedulerConfig
from helios_jax.context import History
from helios_jax.data.helios_latents.record import Size
from helios_jax.data.helios_latents.writer import Failure
from helios_jax.data.helios_ode.record import LevelPoints, Levels, OdeRecord
from helios_jax.data.prepare.ode_prompts import OdePrompt
from helios_jax.diffusion.guidance import ClassifierFree
from helios_jax.diffusion.pyramid import check_steps, level_sizes, transition
from helios_jax.diffusion.solvers import make_solver
from helios_jax.distillation.grids import MergedSchedule, merged_schedules
from helios_jax.models.network import Network
from helios_jax.models.tokenization import TextEncoder, Tokenizer, clean_prompt, encode_tokens, needed_keys
from helios_jax.models.transformer import HeliosTransformer
from helios_jax.sampling.chunk import ChunkSampler, StepInfo, project_text, remember, rope_table
from helios_jax.sampling.noise import KeyNoise
from helios_jax.sampling.plan import LevelPlan
from helios_jax.typing import Array, Float, Path
from helios_jax.user_input import finite_number, whole_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordOptions:
    """How trajectories are recorded.

    Attributes:
        chunks: Chunks of each video; 5 as published.
        guidance_scale: Guidance of the teacher; 1: none.
        teacher_steps: Steps of the teacher on each level.
        student_steps: Steps of the student on each level.
        amplify_first_chunk: The student takes twice as many steps in the first chunk.
        shift_after_upsampling: Compute the dynamic shift as the published training does, instead of as the student will
            be sampled (see ``distillation.grids``).
        max_text_tokens: Length that texts are padded or cut to.
        batch: Videos that are sampled at a time.
        text: Store text embeddings; off for students that train on tokens.
        dtype: Compute dtype.
    """

    chunks: int = 5
    guidance_scale: float = 5.0
    teacher_steps: tuple[int, ...] = (20, 20, 20)
    student_steps: tuple[int, ...] = (2, 2, 2)
    amplify_first_chunk: bool = True
    shift_after_upsampling: bool = False
    max_text_tokens: int = 512
    batch: int = 1
    text: bool = True
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        for name in ("chunks", "max_text_tokens", "batch"):
            whole_number(getattr(self, name), name, at_least=1)
        finite_number(self.guidance_scale, "guidance_scale", at_least=1)

    def student_scheduler(self, teacher: SchedulerConfig) -> SchedulerConfig:
        """The scheduler that the student will be sampled with, on the levels of the teacher.

        Raises:
            ValueError: The teacher is not a pyramid model, or the numbers of steps do not fit its levels.
        """
        if teacher.num_levels == 1:
            raise ValueError("trajectories are recorded from a pyramid model such as Helios-Mid; this has one level")
        scheduler = dataclasses.replace(
            SchedulerConfig.distilled(),
            num_levels=teacher.num_levels,
            level_range=teacher.level_range,
            gamma=teacher.gamma,
            shift_after_upsampling=self.shift_after_upsampling,
        )
        check_steps(scheduler, self.teacher_steps)
        check_steps(scheduler, self.student_steps)
        return scheduler


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeparateNoise:
    """A ``NoiseSource`` in which every video of a batch has a seed of its own, as if it were sampled alone.

    Attributes:
        seeds: One for each video.
    """

    seeds: tuple[int, ...]

    def normal(self, name: str, shape: Sequence[int]) -> Float[Array, "*shape"]:
        """The draw of each seed."""
        return jnp.concatenate([KeyNoise.from_seed(seed).normal(name, (1, *shape[1:])) for seed in self.seeds])

    def uniform(self, name: str, shape: Sequence[int]) -> Float[Array, "*shape"]:
        """Not available, since these draws have no axis for the batch; text-to-video has none."""
        raise NotImplementedError("a batch with several seeds has no uniform draws")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OdeRecorder:
    """A teacher that records its trajectories; an ``Encode`` of ``OdePrompt``.

    Attributes:
        transformer: Its network.
        text_encoder: Encodes the prompts.
        scheduler: Scheduler of the student, from ``RecordOptions.student_scheduler``.
        options: See ``RecordOptions``.
        layout: Layout of the context, the same for teacher and student.
    """

    transformer: Network[HeliosTransformer]
    text_encoder: TextEncoder
    scheduler: SchedulerConfig
    options: RecordOptions
    layout: HistoryConfig = dataclasses.field(default_factory=HistoryConfig)

    @classmethod
    def load(cls, model: Path, options: RecordOptions) -> "OdeRecorder":
        """Loads the transformer and the text encoder of a checkpoint; its VAE is not needed.

        Raises:
            FileNotFoundError: The checkpoint or a part of it is missing.
            ValueError: Something in it is not supported or does not fit.
        """
        from helios_jax.checkpoints.hub import local_folder
        from helios_jax.checkpoints.settings import read_settings
        from helios_jax.checkpoints.weights import load_weights

        settings = read_settings(model)
        scheduler, layout = options.student_scheduler(settings.scheduler), settings.config.history
        if layout.positions == "absolute":
            raise ValueError(f"{model} has absolute positions; few-step students are trained with relative ones only")
        folder = local_folder(model)
        transformer: Any = load_weights(folder, "transformer", dtype=options.dtype)
        encoder: Any = load_weights(folder, "text_encoder", dtype=options.dtype)
        return cls(
            transformer=Network.of(transformer),
            text_encoder=TextEncoder.create(encoder, Tokenizer.from_folder(folder)),
            scheduler=scheduler,
            options=options,
            layout=layout,
        )

    def __call__(self, prompts: Sequence[OdePrompt], size: Size) -> Iterator[OdeRecord | Failure]:
        """Samples a video for each prompt.

        Args:
            prompts: The prompts.
            size: Full latent rows and columns.

        Yields:
            One record or failure for each prompt, in order.
        """
        for batch in itertools.batched(prompts, self.options.batch):
            # Filled up by repetition, so that there is one program for all batches.
            padded = [*batch, *itertools.repeat(batch[-1], self.options.batch - len(batch))]
            for record in self._record(padded, size)[: len(batch)]:
                try:
                    record.check(size)
                    yield record
                except ValueError as error:
                    yield Failure(uid=record.uid, error=str(error))

    def _record(self, prompts: Sequence[OdePrompt], size: Size) -> list[OdeRecord]:
        options, layout = self.options, self.layout
        guided = options.guidance_scale > 1
        embeds, counts = self._encode([prompt.text for prompt in prompts])
        # Plain guidance, also for a teacher that is sampled with CFG-Zero*, whose first steps do not move.
        sampler = ChunkSampler(
            transformer=self.transformer,
            scheduler=self._teacher,
            guidance=ClassifierFree() if guided else None,
            scale=options.guidance_scale,
            history_config=layout,
        )
        both = embeds
        if guided:
            both = jnp.concatenate([embeds, self._encode([prompt.negative for prompt in prompts])[0]])
        text = project_text(self.transformer, both, needed_keys(both))
        schedules = [self._schedules(size, first=True), self._schedules(size, first=False)]
        plans = [self._plans(grids, size) for grids in schedules]
        ropes = tuple(rope_table(self.transformer, layout, size, plan.size) for plan in plans[0])
        channels = self.transformer.config.in_channels
        history = jax.device_put(History.empty(layout, len(prompts), *size, channels), sampler.placement)
        noise = SeparateNoise(seeds=tuple(prompt.seed for prompt in prompts))
        chunks = []
        for chunk in range(options.chunks):
            kept = _Kept(schedules[min(chunk, 1)])
            latents, _ = sampler.sample(
                chunk,
                plans[min(chunk, 1)],
                text=text,
                ropes=ropes,
                history=history,
                noise=noise,
                on_step=kept.on_step,
                on_level=kept.on_level,
            )
            history = remember(history, latents, chunk == 0)
            chunks.append(kept.samples)
        rows = np.asarray(embeds.astype(jnp.bfloat16))
        return [
            OdeRecord(
                uid=prompt.uid,
                caption=prompt.text,
                embeds=rows[number, : counts[number]] if options.text else np.zeros((0, 0), ml_dtypes.bfloat16),
                first=_levels(chunks[:1], schedules[0], number),
                later=_levels(chunks[1:], schedules[1], number, like=chunks[0]),
            )
            for number, prompt in enumerate(prompts)
        ]

    @property
    def _teacher(self) -> SchedulerConfig:
        return dataclasses.replace(self.scheduler, solver="unipc", solver_order=2)

    def _encode(self, texts: Sequence[str]) -> tuple[Float[Array, "B S E"], list[int]]:
        """Embeddings, and the number of tokens of each text."""
        ids, mask = self.text_encoder.tokenizer([clean_prompt(text) for text in texts], self.options.max_text_tokens)
        embeds = encode_tokens(self.text_encoder.encoder, jnp.asarray(ids), jnp.asarray(mask))
        return embeds.astype(self.transformer.dtype), mask.sum(1).tolist()

    def _schedules(self, size: Size, *, first: bool) -> tuple[MergedSchedule, ...]:
        factor = 2 if first and self.options.amplify_first_chunk else 1
        return merged_schedules(
            self.scheduler,
            self.transformer.config,
            student_steps=tuple(factor * steps for steps in self.options.student_steps),
            teacher_steps=self.options.teacher_steps,
            frames=self.layout.chunk_frames,
            size=size,
        )

    def _plans(self, schedules: Sequence[MergedSchedule], size: Size) -> tuple[LevelPlan, ...]:
        solver = make_solver(self._teacher)
        return tuple(
            LevelPlan(
                size=level_size,
                step_scalars=solver.coefficients(merged.schedule),
                timesteps=np.floor(merged.schedule.timesteps).astype(np.float32),
                transition=transition(self.scheduler, level) if level else None,
            )
            for level, (merged, level_size) in enumerate(
                zip(schedules, level_sizes(self.scheduler, *size), strict=True)
            )
        )


class _Kept:
    """Callbacks of sampling that keep the samples of one chunk at the student's steps, and the end points.

    Args:
        schedules: Grids of the levels.
    """

    def __init__(self, schedules: Sequence[MergedSchedule]) -> None:
        # The sample before step k is the one after step k - 1. The end point is the one after the last step.
        self._wanted = [{*merged.student.tolist(), len(merged.schedule.timesteps)} for merged in schedules]
        self.samples: list[list[np.ndarray]] = [[] for _ in schedules]

    def on_level(self, level: int, start: Float[Array, "B T H W C"]) -> None:
        """See ``ChunkSampler.sample``."""
        self._keep(level, 0, start)

    def on_step(self, info: StepInfo) -> None:
        """See ``ChunkSampler.sample``."""
        self._keep(info.level, info.step + 1, info.latents)

    def _keep(self, level: int, place: int, sample: Float[Array, "B T H W C"]) -> None:
        if place in self._wanted[level]:
            # Copied now: the next step reuses the buffer. bfloat16 is what is stored.
            self.samples[level].append(np.asarray(sample.astype(jnp.bfloat16)))


def _levels(
    chunks: Sequence[Sequence[Sequence[np.ndarray]]],
    schedules: Sequence[MergedSchedule],
    number: int,
    like: Sequence[Sequence[np.ndarray]] = (),
) -> Levels:
    """The points of one video in some chunks; without chunks, the shapes follow from the samples ``like``."""
    levels = []
    for level, merged in enumerate(schedules):
        if chunks:
            latents = np.stack([np.stack([sample[number] for sample in chunk[level]]) for chunk in chunks])
        else:
            latents = np.zeros((0, len(merged.student) + 1, *like[level][0].shape[1:]), ml_dtypes.bfloat16)
        levels.append(
            LevelPoints(
                latents=latents,
                timesteps=merged.timesteps.astype(np.float32),
                sigmas=merged.sigmas.astype(np.float32),
            )
        )
    return tuple(levels)
