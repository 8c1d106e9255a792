"""Adversarial distillation: a discriminator on the score network pulls the generator's samples towards real video.

The fake score's network reads a noised clip, and the heads of ``helios_jax.models.discriminator`` turn its hidden
states and its velocity into logits D, where high means "generated". Clips are noised and then cropped, which saves
memory:

    x_s = crop of (1 - s) x + s eps                                                                       (1)

With softplus(a) = log(1 + e^a), means over samples and logits, r for real clips and f for generated ones,

    generator      w_g mean softplus(D(f_s))                                  w_g = 0.05                   (2)
    discriminator  w_d (mean softplus(-D(f_s)) + mean softplus(D(r_s)))       w_d = 0.01                   (3)
                   + r1 mean (D(r_s) - D(r_s + e z))^2                        r1 = 100, e = 0.1            (4)
                   + r2 mean (D(f_s) - D(f_s + e z))^2                        r2 = 0                       (5)

(4) and (5) approximate the penalties on the gradient of D by finite differences (arXiv 2501.08316), optionally divided
by e. The gradient of (2) in the clean sample x is computed at once, so that no graph of the discriminator survives:

    d (2) / d x = (1 - s) times the gradient in x_s, zero outside of the crop                             (6)

In (2), s is that of the distribution matching gradient and eps is drawn anew. In (3), s and eps are those of the
critic's loss, for real and generated clips alike. Source: arXiv 2603.04379, except that (4) and (5) compare logits of
the same crop: the published training crops every clip independently (``Gan.crops``).
"""

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from helios_jax.config import TransformerConfig
from helios_jax.diffusion.flow import interpolate
from helios_jax.distillation.crops import crop, uncrop
from helios_jax.distillation.judge import Judge
from helios_jax.models.discriminator import DiscriminatorConfig
from helios_jax.typing import Array, Float, Key, Sequence
from helios_jax.user_input import finite_number, whole_number, yes_or_no

Crops = Literal["shared", "independent"]
Reals = Literal["critic", "generator"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorDraws:
    """Everything random about ``gan_cotangent``.

    Attributes:
        noise: eps of (1).
        corner: U(0,1) that determine row and column of the crop.
    """

    noise: Float[Array, "*B T H W C"]
    corner: Float[Array, "*B 2"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorDraws:
    """Everything random about ``gan_loss``, apart from the noise that it shares with the critic's loss.

    Attributes:
        corners: U(0,1) that determine rows and columns of the crops of f_s, r_s, r_s + e z and f_s + e z.
        real: z of (4); ``None`` without this penalty.
        fake: z of (5); ``None`` without this penalty.
    """

    corners: Float[Array, "*B 4 2"]
    real: Float[Array, "*B T H W C"] | None
    fake: Float[Array, "*B T H W C"] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gan:
    """Settings of adversarial distillation.

    Attributes:
        start_step: Step from which it is active.
        generator_weight: w_g of (2).
        discriminator_weight: w_d of (3).
        r1: Weight of (4); 0: none.
        r1_sigma: e of (4) and (5).
        r2: Weight of (5); 0: none.
        divide_by_sigma: Divide the differences in (4) and (5) by e before squaring.
        crop: Rows and columns of a crop as a share of the clip's; rounded down to whole patches.
        crops: "shared": one crop for all clips of a sample; "independent": each clip has its own, as published.
        separate: The losses (3) to (5) train the heads alone and not the fake score.
        reals: Whose window the real clips are from: "critic", the one that the context of the generated clips belongs
            to; "generator": the other one, as published, by which the discriminator can tell them apart.
        heads: The discriminator.
    """

    start_step: int = 1000
    generator_weight: float = 0.05
    discriminator_weight: float = 0.01
    r1: float = 100.0
    r1_sigma: float = 0.1
    r2: float = 0.0
    divide_by_sigma: bool = False
    crop: float = 0.5
    crops: Crops = "shared"
    separate: bool = False
    reals: Reals = "critic"
    heads: DiscriminatorConfig = dataclasses.field(default_factory=DiscriminatorConfig)

    def __post_init__(self) -> None:
        whole_number(self.start_step, "gan.start_step", at_least=0)
        for name in ("generator_weight", "discriminator_weight", "r1", "r2"):
            finite_number(getattr(self, name), f"gan.{name}", at_least=0)
        for name in ("r1_sigma", "crop"):
            if not finite_number(getattr(self, name), f"gan.{name}", at_least=0):
                raise ValueError(f"gan.{name} must be greater than 0")
        finite_number(self.crop, "gan.crop", at_most=1)
        for name in ("divide_by_sigma", "separate"):
            yes_or_no(getattr(self, name), f"gan.{name}")
        for name, choices in (("crops", get_args(Crops)), ("reals", get_args(Reals))):
            if getattr(self, name) not in choices:
                raise ValueError(f"gan.{name}={getattr(self, name)!r} must be one of {', '.join(map(repr, choices))}")

    @classmethod
    def published(cls) -> "Gan":
        """As released: crops are independent, and the real clips are from the generator's window."""
        return cls(crops="independent", reals="generator")

    def check(self, config: TransformerConfig, frames: int, height: int, width: int) -> None:
        """Checks the settings against the score network and its latents of frames x height x width.

        Raises:
            ValueError: A hook is beyond the last block, or a head cannot read crops of this size.
        """
        self.heads.check_hooks(config.num_layers)
        size = self.crop_size(height, width, config.patch_size)
        try:
            self.heads.check_size(frames, *size, config.patch_size)
        except ValueError as error:
            raise ValueError(f"gan.crop={self.crop} of {height} x {width} latents: {error}") from error

    def crop_size(self, height: int, width: int, patch: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of a crop.

        Args:
            height: Rows of the latents.
            width: Their columns.
            patch: Patch of the network: frames, rows, columns.
        """
        # Tolerance: 0.7 of 20 is 14, which floats would round down to 13.
        rows, columns = (
            step * int(self.crop * side / step + 1e-6) for side, step in zip((height, width), patch[1:], strict=True)
        )
        return rows, columns

    def draw_generator(self, key: Key[Array, ""], shape: Sequence[int]) -> GeneratorDraws:
        """The draws of one sample for ``gan_cotangent``; ``shape`` [T, H, W, C] is that of a clip."""
        noise, corner = jax.random.split(key)
        return GeneratorDraws(noise=jax.random.normal(noise, tuple(shape)), corner=jax.random.uniform(corner, (2,)))

    def draw_discriminator(self, key: Key[Array, ""], shape: Sequence[int]) -> DiscriminatorDraws:
        """The draws of one sample for ``gan_loss``; ``shape`` [T, H, W, C] is that of a clip."""
        corners, real, fake = jax.random.split(key, 3)
        drawn = jax.random.uniform(corners, (1 if self.crops == "shared" else 4, 2))
        return DiscriminatorDraws(
            corners=jnp.broadcast_to(drawn, (4, 2)),
            real=jax.random.normal(real, tuple(shape)) if self.r1 else None,
            fake=jax.random.normal(fake, tuple(shape)) if self.r2 else None,
        )


def generator_loss(fake: Float[Array, "B logits"]) -> Float[Array, ""]:
    """Equation (2) without its weight; falls as generated clips pass for real ones."""
    return jax.nn.softplus(fake.astype(jnp.float32)).mean()


def discriminator_loss(fake: Float[Array, "B logits"], real: Float[Array, "B logits"]) -> Float[Array, ""]:
    """Equation (3) without its weight; falls as logits of generated clips rise and those of real clips fall."""
    fake, real = fake.astype(jnp.float32), real.astype(jnp.float32)
    return jax.nn.softplus(-fake).mean() + jax.nn.softplus(real).mean()


def approximate_penalty(
    logits: Float[Array, "B logits"], perturbed: Float[Array, "B logits"], divisor: float = 1.0
) -> Float[Array, ""]:
    """Equations (4) and (5) without their weights.

    Args:
        logits: D of clips.
        perturbed: D of the same clips plus noise.
        divisor: Of the differences: 1, or the size e of the noise.
    """
    return jnp.square((logits.astype(jnp.float32) - perturbed.astype(jnp.float32)) / divisor).mean()


def gan_cotangent[P](
    judge: Judge[P],
    params: P,
    x: Float[Array, "B T H W C"],
    *,
    timestep: Float[Array, " B"],
    sigma: Float[Array, " B"],
    condition: Any,
    draws: GeneratorDraws,
    settings: Gan,
    patch: Sequence[int],
) -> tuple[Float[Array, "B T H W C"], dict[str, Float[Array, ""]]]:
    """The gradient of the weighted loss (2) with respect to the generator's sample, by (6), in fp32.

    Args:
        judge: The discriminator.
        params: Its parameters, which are constants here.
        x: The generator's sample.
        timestep: Timestep of each sample, that of the distribution matching gradient.
        sigma: s of (1), the noise level of ``timestep``.
        condition: For ``judge``.
        draws: From ``Gan.draw_generator``.
        settings: Weight and crops.
        patch: Patch of the judge's network: frames, rows, columns.

    Returns:
        The gradient, and metrics: the loss without its weight and the mean logit.
    """
    level, full = sigma[:, None, None, None, None], x.shape[2:4]
    noised = interpolate(draws.noise, jax.lax.stop_gradient(x).astype(jnp.float32), level)
    part = crop(noised, draws.corner, settings.crop_size(full[0], full[1], patch))

    def loss(part: Float[Array, "B T h w C"]) -> tuple[Float[Array, ""], tuple[Array, Array]]:
        logits = judge(params, part, timestep, condition)
        value = generator_loss(logits)
        return settings.generator_weight * value, (value, logits.mean())

    gradient, (value, mean) = jax.grad(loss, has_aux=True)(part)
    cotangent = (1 - level) * uncrop(gradient, draws.corner, full)
    return cotangent, {"gan/generator_loss": value, "gan/generator_logit": mean}


def gan_loss[P](
    judge: Judge[P],
    params: P,
    fake: Float[Array, "B T H W C"],
    real: Float[Array, "B T H W C"],
    *,
    noise: Float[Array, "B T H W C"],
    timestep: Float[Array, " B"],
    sigma: Float[Array, " B"],
    condition: Any,
    draws: DiscriminatorDraws,
    settings: Gan,
    patch: Sequence[int],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The discriminator's loss, the weighted sum of (3) to (5), differentiable with respect to ``params``.

    All clips are judged in one call, with the clips of a sample next to each other.

    Args:
        judge: The discriminator.
        params: Its parameters.
        fake: The generator's samples.
        real: Real clips.
        noise: eps of (1), that of the critic's loss.
        timestep: Timestep of each sample, that of the critic's loss.
        sigma: s of (1), the noise level of ``timestep``.
        condition: For ``judge``.
        draws: From ``Gan.draw_discriminator``.
        settings: Weights and crops.
        patch: Patch of the judge's network: frames, rows, columns.

    Returns:
        The loss, and metrics: its parts without their weights and the mean logits of generated and real clips.
    """
    level, size = sigma[:, None, None, None, None], settings.crop_size(fake.shape[2], fake.shape[3], patch)
    clips = {
        "fake": interpolate(noise, jax.lax.stop_gradient(fake).astype(jnp.float32), level),
        "real": interpolate(noise, real.astype(jnp.float32), level),
    }
    if settings.r1 and draws.real is not None:
        clips["real_twin"] = clips["real"] + settings.r1_sigma * draws.real
    if settings.r2 and draws.fake is not None:
        clips["fake_twin"] = clips["fake"] + settings.r1_sigma * draws.fake
    corners = dict(zip(("fake", "real", "real_twin", "fake_twin"), jnp.unstack(draws.corners, axis=1), strict=True))
    parts = jnp.stack([crop(clip, corners[name], size) for name, clip in clips.items()], axis=1)

    # Clips of a sample are adjacent in the batch, and therefore stay on the device that holds the sample.
    logits = judge(params, parts.reshape(-1, *parts.shape[2:]), jnp.repeat(timestep, len(clips)), condition)
    of = dict(zip(clips, jnp.unstack(logits.reshape(-1, len(clips), logits.shape[-1]), axis=1), strict=True))

    value = discriminator_loss(of["fake"], of["real"])
    total = settings.discriminator_weight * value
    metrics = {
        "gan/discriminator_loss": value,
        "gan/fake_logit": of["fake"].mean(),
        "gan/real_logit": of["real"].mean(),
    }
    divisor = settings.r1_sigma if settings.divide_by_sigma else 1.0
    for name, kind, weight in (("r1", "real", settings.r1), ("r2", "fake", settings.r2)):
        if f"{kind}_twin" in of:
            penalty = approximate_penalty(of[kind], of[f"{kind}_twin"], divisor)
            total, metrics[f"gan/{name}"] = total + weight * penalty, penalty
    return total, metrics
