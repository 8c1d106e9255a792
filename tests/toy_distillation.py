"""A distillation of small networks with random weights, on windows that are drawn."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from helios_jax.config import TransformerConfig, VaeConfig
from helios_jax.distillation.dmd import dmd_gradient, dmd_loss, guide
from helios_jax.distillation.gan import Gan
from helios_jax.distillation.rollout import lowest_trained, rollout
from helios_jax.models.discriminator import DiscriminatorConfig
from helios_jax.models.network import ConfiguredModule, Network
from helios_jax.training.batch import LatentBatch, LatentPair, PromptBatch
from helios_jax.training.distiller import Distill, Distilling
from helios_jax.training.ema import Ema
from helios_jax.training.experiment import Experiment, Lora
from helios_jax.training.injection import Injection
from helios_jax.training.methods.distill import scores_of
from helios_jax.training.optimizer import AdamW
from helios_jax.training.params import flatten, unflatten
from helios_jax.training.sharding import MeshShape
from helios_jax.training.starts import Random

CONFIG = TransformerConfig(
    num_heads=2,
    head_dim=16,
    in_channels=4,
    out_channels=4,
    text_dim=12,
    freq_dim=16,
    ffn_dim=48,
    num_layers=2,
    rope_dim=(4, 6, 6),
)
START = Random(transformer=CONFIG, dtype="float32")
BATCH, SIZE = 2, 16
HEADS = DiscriminatorConfig(hooks=(0, 1), width=8, groups=2)
LORA = Lora(rank=2, targets=("transformer/blocks/.*", "transformer/condition_embedder/.*"))


class IdentityVae(ConfiguredModule):
    """A VAE whose pixels are its latents; those that are shown have three channels."""

    def __init__(self) -> None:
        self.config, self.dtype = VaeConfig(z_dim=4, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4), jnp.float32
        self.unused = nnx.Param(jnp.zeros(()))

    def decode(self, latents: Any) -> Any:
        return latents

    def decode_unclipped(self, latents: Any, slice_frames: int | None = None) -> Any:
        return latents[..., :3]

    def encode(self, frames: Any) -> Any:
        return frames, jnp.zeros_like(frames)


class WithoutText(Distill):
    """The negative prompt's embeddings and the VAE are given, so no checkpoint is needed."""

    def load_vae(self, mesh: Any, fallback: str) -> Any:
        return Network.of(IdentityVae()) if self.needs_vae else None

    def negative_embeds(self, score: Any, mesh: Any, fallback: str) -> Any:
        return jax.random.normal(jax.random.key(77), (1, 5, 12))


def window(seed: int, *, empty: bool = False) -> LatentBatch:
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal((BATCH, *shape)), jnp.float32)

    past = 0.0 if empty else 1.0
    return LatentBatch(
        target=draw(9, SIZE, SIZE, 4),
        history=past * draw(19, SIZE, SIZE, 4),
        anchor=past * draw(1, SIZE, SIZE, 4),
        text=PromptBatch(embeds=draw(5, 12)),
    )


PAIR = LatentPair(generator=window(1), critic=window(2))


class Windows:
    """Window j of the data is a function of j."""

    def __init__(self) -> None:
        self.position = 0

    def __next__(self) -> LatentPair:
        first, self.position = 2 * self.position, self.position + 1
        return jax.tree.map(np.asarray, LatentPair(generator=window(first), critic=window(first + 1)))

    def get_state(self) -> dict[str, int]:
        return {"position": self.position}

    def set_state(self, state: dict[str, int]) -> None:
        self.position = state["position"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowData:
    """Its batches."""

    windows: int = 2

    def batches(self, batch_size: int, part: tuple[int, int], seed: int) -> Windows:
        return Windows()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParamsProduct:
    """The generator's parameters in one file."""

    def export(self, networks: Any, folder: pathlib.Path) -> None:
        np.savez(folder / "params.npz", **flatten(networks)[1])


class NoData:
    """Batches are passed to ``step`` directly."""

    windows = 2

    def batches(self, batch_size: int, part: tuple[int, int], seed: int) -> Any:
        raise NotImplementedError


class NoProduct:
    def export(self, networks: Any, folder: Any) -> None:
        raise NotImplementedError


def settings_of(**changes: Any) -> Distill:
    return WithoutText(
        score=START,
        critic_lora=LORA,
        critic_optimizer=AdamW(learning_rate=1e-3, clip_norm=0),
        context=Injection.published(),
        **changes,
    )


def experiment(changes: Mapping[str, Any] | None = None, **of_run: Any) -> Experiment:
    """A run with ``changes`` to the settings of the distillation and others to those of the run."""
    run: dict[str, Any] = {
        "start": START,
        "method": settings_of(**changes or {}),
        "data": NoData(),
        "product": NoProduct(),
        "optimizer": AdamW(learning_rate=1e-3, betas=(0.0, 0.999)),
        "steps": 12,
        "batch_size": BATCH,
        "lora": LORA,
        "trainable": ((".*/lora_[ab]", 1),),
        "ema": Ema(decay=0.5, start=3),
    }
    return Experiment(**run | of_run)


def running(restore: Any = None, **changes: Any) -> Distilling:
    """A distillation at its first step, or at the one that ``restore`` gives."""
    run: Any = experiment(changes)
    return run.method.start(run, MeshShape().build(), restore)


def perturb(run: Distilling) -> Any:
    """Moves the generator's adapters away from B = 0, where half of the gradient vanishes; returns them."""
    player = run._take("generator")
    weights = {
        path: array + 0.05 * jax.random.normal(jax.random.key(len(path)), array.shape)
        for path, array in player.trainable.items()
    }
    run._put("generator", dataclasses.replace(player, trainable=jax.tree.map(jnp.copy, weights)))
    return weights


def recorded_step(run: Distilling, pair: LatentPair = PAIR) -> tuple[dict[str, np.ndarray], float, Any]:
    """The gradient and the loss with which the first step updates the generator, and the step's metrics."""
    seen: dict[str, Any] = {}
    apply = run._apply["generator"]

    def record(player: Any, gradients: Any, loss: Any) -> Any:
        seen.update(gradients={path: np.asarray(array) for path, array in gradients.items()}, loss=float(loss))
        return apply(player, gradients, loss)

    run._apply["generator"] = record
    metrics = run.step(pair, 1)
    return seen["gradients"], seen["loss"], metrics


def oracle(run: Distilling, weights: Any, extra: Callable[[Any], Any] = lambda x: 0.0) -> tuple[Any, Any, Any]:
    """(loss, sample, gradient) of the first step's generator, by one differentiable rollout.

    Args:
        run: A distillation with one route, before its first step.
        weights: The generator's parameters, which it has too.
        extra: A further loss of the sample.
    """
    keys = run._keys(np.int32(0), 16)
    scene, (section,) = run._roll_out("generator", PAIR.generator, keys, 0, None)
    (route,) = section.routes
    scorer, frozen, critic = run._scorer, run._residence.use("critic/frozen"), run._take("critic").trainable
    of_generator = run._residence.use("generator/frozen")

    def loss(weights: Any) -> Any:
        def velocity(weights: Any, x: Any, timestep: Any, level: int) -> Any:
            model = unflatten(run._graph, weights | of_generator).transformer
            layout = run._settings.context.layout
            return model(x, timestep, scene.generator_text, scene.contexts.saturated.tiers(layout), layout)

        x = rollout(
            velocity,
            weights,
            run._settings.scheduler,
            route.plans,
            scene.rollout,
            jnp.array(route.exits),
            lowest_trained(route.exits),
        )
        fake = scorer.fake(critic, frozen).transformer
        real = unflatten(scorer.real_graph, frozen).transformer
        scores = scores_of(fake, real, scene, run._settings.context.layout, scorer.execution)
        at = run._settings.levels.draw(keys, x, fake, 0)
        ends = [at.end_point(score, x) for score in (scores.fake, scores.real, scores.negative)]
        return dmd_loss(x, dmd_gradient(x, ends[0], guide(ends[1], ends[2]))) + extra(x), x

    (value, x), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(weights)
    np.testing.assert_allclose(section.x, x, atol=2e-5)
    return value, x, gradient


def relative_error(found: dict[str, Any], want: dict[str, Any]) -> float:
    """Of a gradient, in the norm of all parameters together."""
    size = np.sqrt(sum(np.square(np.asarray(array)).sum() for array in want.values()))
    assert size > 0
    return float(np.sqrt(sum(np.square(found[path] - np.asarray(want[path])).sum() for path in want)) / size)


def short_run(steps: int, memory: str = "resident", **changes: Any) -> Experiment:
    """A whole run on windows, with a discriminator: every step updates both players and is saved."""
    method = {"ratio": 1, "gan": Gan(start_step=0, heads=HEADS, crop=1.0), "memory": memory}
    settings: dict[str, Any] = {"data": WindowData(), "product": ParamsProduct(), "checkpoint_every": 1, "log_every": 1}
    return experiment(method, steps=steps, **settings | changes)
