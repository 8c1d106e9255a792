"""Stage 3, the settings: a few-step generator is distilled from the model of stage 1 (arXiv 2603.04379).

    generator   the model of stage 2 with adapters; samples a chunk in a few steps of every level
    critic      the model of stage 1 with adapters: the fake score, which follows the generator's samples
    real score  the same model without its adapters: one network serves as both

At every step the critic is updated on a sample of the generator, and at every ``ratio``-th step, before that, the
generator on the difference of the two scores (``distiller``).
"""

import dataclasses
from typing import Any, Literal, get_args

import jax
from flax import nnx
from jax.sharding import Mesh

from helios_jax.checkpoints.hub import local_folder
from helios_jax.config import SchedulerConfig, TransformerConfig
from helios_jax.diffusion.pyramid import check_steps
from helios_jax.distillation.gan import Gan
from helios_jax.distillation.regularisers import Regularisers
from helios_jax.distillation.rewards import Reward
from helios_jax.models.discriminator import Discriminator
from helios_jax.models.network import Network
from helios_jax.models.tokenization import TextEncoder, Tokenizer
from helios_jax.models.vae import WanVae
from helios_jax.parallel.residence import Mode
from helios_jax.sampling.plan import LevelPlan, plan_chunk
from helios_jax.sampling.prompts import NEGATIVE_PROMPT
from helios_jax.training.experiment import Lora, Start
from helios_jax.training.injection import Injection
from helios_jax.training.methods.distill import ScoreSampling
from helios_jax.training.networks import Networks, modules
from helios_jax.training.optimizer import AdamW
from helios_jax.training.params import Rules
from helios_jax.training.sharding import state_shardings
from helios_jax.training.starts import load_part
from helios_jax.typing import Array, Float, Key
from helios_jax.user_input import finite_number, user_path, whole_number

Grid = Literal["sampled", "published"]
"""Noise levels and timesteps of the generator's steps.

"sampled"     those of sampling with the scheduler, whose timesteps are truncated
"published"   those of the published training: a level is shifted by its own number of tokens, and timesteps are not
              truncated
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnContexts:
    """The generator continues its own chunks, as in sampling, instead of real ones (self-forcing, arXiv 2506.08009).

    The first section of a rollout has no context. Scores see the last sections as one clip without context. Gradients
    do not pass through contexts.

    Attributes:
        sections: Least and largest number of chunks of a rollout, drawn for every step.
        scored: Chunks at the end of a rollout that are scored and trained.
        skip_first: The anchor is the first frame of the second chunk instead of the first, when there are several.
    """

    sections: tuple[int, int] = (1, 5)
    scored: int = 1
    skip_first: bool = False

    def __post_init__(self) -> None:
        low, high = self.sections
        whole_number(self.scored, "own.scored", at_least=1)
        whole_number(low, "own.sections", at_least=self.scored)
        whole_number(high, "own.sections", at_least=low)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoupled:
    """Guidance and matching at noise levels of their own; see ``distillation.scores.decoupled_cotangent``.

    Attributes:
        guided_high: Largest timestep of the guidance.
    """

    guided_high: float = 565.0

    def __post_init__(self) -> None:
        finite_number(self.guided_high, "decoupled.guided_high", at_least=21, at_most=999)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """Settings of ``distiller.Distill``.

    The generator has the experiment's start, adapters, optimizer and moving average.

    Attributes:
        score: The weights of the scores: the model of stage 1.
        critic_lora: The critic's adapters.
        critic_optimizer: The critic's optimizer.
        critic_trainable: Which parameters of the score networks the critic trains, like ``Experiment.trainable``.
        context: How contexts are computed from windows. Colour shifts are for the generator alone.
        scheduler: The generator's sampler.
        steps: The generator's steps on each level.
        amplify_first_chunk: Twice the steps for samples whose context is empty, as in sampling.
        grid: See ``Grid``.
        exits: "random": a level ends after any of its steps; "last": after the last one.
        ratio: Steps per update of the generator; the critic is updated at every step.
        guidance: Weight w on the difference between the real scores with the prompt and with the negative prompt.
        levels: Noise levels of the scores.
        negative_prompt: The negative prompt.
        text: Folder or hub id with the tokenizer (and, unless the scores train with one, the text encoder) for the
            negative prompt.
        tokens: Width to which the negative prompt is padded: that of the data.
        decoupled: Separate noise levels for guidance and matching; ``None``: one for both.
        score_levels: "last": samples are scored at full size; "random": on a random level.
        own: Contexts from the generator's own chunks; ``None``: real ones, as published.
        gan: A discriminator on the critic's network; ``None``: none.
        regularisers: Further terms of the generator's loss, and the weights of a reward's scores; none by default.
        reward: A judge of samples, which multiplies their losses as ``regularisers.rewards`` says; ``None``: none. It
            is a frozen dataclass, which an experiment file chooses, and reads captions: set ``data.captions``.
        vae: Folder or hub id with the VAE, for re-encoding, smoothness and rewards that read frames; empty: that of the
            product.
        memory: "resident": all networks and optimizer states stay on the device; "scheduled": those that the next
            programs do not need wait in pinned host memory. The numbers are the same, bit for bit.
    """

    score: Start
    critic_lora: Lora
    critic_optimizer: AdamW
    critic_trainable: Rules = ((".*/lora_[ab]", 1),)
    context: Injection = dataclasses.field(default_factory=Injection)
    scheduler: SchedulerConfig = dataclasses.field(default_factory=SchedulerConfig.distilled)
    steps: tuple[int, ...] = (2, 2, 2)
    amplify_first_chunk: bool = True
    grid: Grid = "sampled"
    exits: Literal["random", "last"] = "random"
    ratio: int = 5
    guidance: float = 3.0
    levels: ScoreSampling = dataclasses.field(default_factory=ScoreSampling)
    negative_prompt: str = NEGATIVE_PROMPT
    text: str = ""
    tokens: int = 512
    decoupled: Decoupled | None = None
    score_levels: Literal["last", "random"] = "last"
    own: OwnContexts | None = None
    gan: Gan | None = None
    regularisers: Regularisers = dataclasses.field(default_factory=Regularisers)
    reward: Reward | None = None
    vae: str = ""
    memory: Mode = "resident"

    def __post_init__(self) -> None:
        if self.scheduler.solver != "dmd":
            raise ValueError(
                f"method.scheduler.solver={self.scheduler.solver!r}: a few-step generator is sampled with 'dmd' "
                "(SchedulerConfig.distilled())"
            )
        check_steps(self.scheduler, self.steps)
        for name, choices in (
            ("grid", get_args(Grid)),
            ("exits", ("random", "last")),
            ("score_levels", ("last", "random")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"method.{name}={getattr(self, name)!r} must be one of {', '.join(choices)}")
        whole_number(self.ratio, "method.ratio", at_least=1)
        whole_number(self.tokens, "method.tokens", at_least=1)
        finite_number(self.guidance, "method.guidance", at_least=0)
        if self.own is not None and self.own.scored > 1 and self.gan is not None:
            raise ValueError(f"method.own.scored={self.own.scored}: the discriminator compares single chunks, scored=1")
        if self.own is not None and self.score_levels != "last":
            raise ValueError("method.own scores whole clips: it needs method.score_levels='last'")
        self.context.layout.check_relative("method.context.layout")
        self._check_extras()

    def _check_extras(self) -> None:
        chosen, reward = self.regularisers, self.reward
        if (reward is None) != (not chosen.rewards):
            raise ValueError(
                "method.reward and method.regularisers.rewards, the weights of its scores, are given together: "
                f"reward={reward!r}, rewards={chosen.rewards}"
            )
        if reward is not None:
            if not isinstance(reward, Reward) or not dataclasses.is_dataclass(reward):
                raise ValueError(f"method.reward={reward!r} must be a dataclass with names, reads and a call (Reward)")
            if unknown := [name for name, _ in chosen.rewards if name not in reward.names]:
                raise ValueError(
                    f"method.regularisers.rewards: no score {unknown[0]!r}; the reward gives {', '.join(reward.names)}"
                )
        if self.score_levels != "last" and (chosen.need_vae or chosen.have_loss or reward is not None):
            raise ValueError(
                f"method.score_levels={self.score_levels!r}: regularisers and rewards read whole samples, 'last'"
            )
        if chosen.consistency and not self.amplify_first_chunk and max(self.steps) == 1:
            raise ValueError(
                f"method.regularisers.consistency={chosen.consistency} compares the steps of a level, and "
                f"method.steps={self.steps} has one on each"
            )

    @property
    def needs_vae(self) -> bool:
        """Whether a regulariser or the reward needs the VAE."""
        return self.regularisers.need_vae or (self.reward is not None and self.reward.reads == "frames")

    def load_vae(self, mesh: Mesh, fallback: str) -> Network[WanVae] | None:
        """The VAE in bfloat16, or ``None`` if nothing needs it.

        Args:
            mesh: Where it is loaded.
            fallback: Used if ``vae`` is empty.

        Raises:
            ValueError: There is no folder to load it from.
        """
        if not self.needs_vae:
            return None
        if not (self.vae or fallback):
            raise ValueError("re-encoding, smoothness and rewards of frames need a VAE: set method.vae to its folder")
        folder = local_folder(user_path(self.vae or fallback, "method.vae"))
        return Network.of(load_part(folder, "vae", "bfloat16", mesh))

    def plans(
        self, config: TransformerConfig, frames: int, size: tuple[int, int], *, amplify: bool
    ) -> tuple[LevelPlan, ...]:
        """The steps of a chunk; ``size`` is its latent (height, width)."""
        published = self.grid == "published"
        scheduler = dataclasses.replace(self.scheduler, shift_after_upsampling=True) if published else self.scheduler
        return plan_chunk(
            scheduler,
            config,
            steps=self.steps,
            frames=frames,
            size=size,
            integer_timesteps=not published,
            amplify=amplify,
        )

    def score_networks(self, mesh: Mesh, key: Key[Array, ""]) -> Networks:
        """The score networks with the critic's adapters and, as "discriminator", the heads if there are any."""
        weights, adapters, heads = jax.random.split(key, 3)
        networks: Any = self.critic_lora.add(self.score.networks(mesh, weights), adapters)
        if self.gan is None:
            return networks
        model, sizes = networks.transformer, self.gan.heads

        def make(key: Key[Array, ""]) -> Discriminator:
            config = model.config
            return Discriminator(sizes, config.dim, config.velocity_channels, dtype=model.dtype, rngs=nnx.Rngs(key))

        graph, abstract = nnx.split(nnx.eval_shape(make, heads))
        made = jax.jit(lambda key: nnx.state(make(key)), out_shardings=state_shardings(abstract, mesh))(heads)
        return Networks(**modules(networks), discriminator=nnx.merge(graph, made))

    @property
    def trained_by_critic(self) -> Rules:
        """``critic_trainable``, and the discriminator."""
        heads: Rules = (("discriminator/.*", 1),)
        return self.critic_trainable if self.gan is None else heads + self.critic_trainable

    def negative_embeds(self, score: Networks, mesh: Mesh, fallback: str) -> Float[Array, "1 S E"]:
        """Embeddings of the negative prompt.

        Args:
            score: The score networks; their text encoder is used if they have one.
            mesh: Where another text encoder is loaded, which is dropped afterwards.
            fallback: Used if ``text`` is empty.
        """
        folder = local_folder(user_path(self.text or fallback, "method.text"))
        encoder = vars(score).get("text_encoder") or load_part(folder, "text_encoder", "bfloat16", mesh)
        return TextEncoder.create(encoder, Tokenizer.from_folder(folder))([self.negative_prompt], self.tokens)
