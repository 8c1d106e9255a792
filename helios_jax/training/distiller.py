"""Stage 3: distribution matching distillation on the pyramid (arXiv 2603.04379; DMD2, arXiv 2405.14867).

Step g = 0, 1, ... of a run with two windows A and B of every clip:

    if g mod ratio == 0:    x = walk in A;  cotangent of x from the scores;  pull back;  update the generator
    always:                 x = walk in B, with the new generator;  update the critic

The host decides exits, routes and levels from (seed, g) and dispatches programs in this order. Each is small: one call
of a network, one comparison of scores, one update. The generator's moving average is also updated at the other steps
while it only copies (``Ema.start``).
"""

import dataclasses
import functools
import gc
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from helios_jax.context import History
from helios_jax.diffusion.pyramid import pyramid_levels
from helios_jax.distillation.pull_back import compile_exit_vjp, pull_back
from helios_jax.distillation.rollout import RolloutDraws, draw_exits
from helios_jax.distillation.walk import Route, walk
from helios_jax.models.lora import strip_lora
from helios_jax.parallel.memory import compiler_options
from helios_jax.parallel.residence import Residence
from helios_jax.training.batch import LatentBatch, LatentPair
from helios_jax.training.descent import sample_keys
from helios_jax.training.distill_extras import Extras
from helios_jax.training.distill_sections import Section, joined, own_context, remember
from helios_jax.training.distill_settings import DistillSettings
from helios_jax.training.distill_updates import ScoreNetwork, add_gan_gradient, flow_gradient
from helios_jax.training.experiment import Experiment
from helios_jax.training.injection import Contexts
from helios_jax.training.log import report
from helios_jax.training.methods import fold
from helios_jax.training.methods.distill import (
    Condition,
    ExitCall,
    Prepared,
    Scene,
    WalkCall,
    make_scene,
)
from helios_jax.training.metrics import Metrics
from helios_jax.training.networks import Networks, modules
from helios_jax.training.params import Params, count_text, flatten, unflatten
from helios_jax.training.state import Items, Restore, TrainState, split_params, start_state, state_items
from helios_jax.training.updates import Player, Updater
from helios_jax.typing import Array, Float, Int, Key

GENERATOR, CRITIC = PLAYERS = "generator", "critic"
"""The players."""

_FROZEN, _TRAINABLE, _AVERAGE, _MOMENTS, _COUNTS = (
    {name: f"{name}/{part}" for name in PLAYERS} for part in ("frozen", "trainable", "average", "moments", "counts")
)
"""Names in the residence: the frozen parameters next to a player, and the player in four parts."""

_TEXT = "text_encoder"
"""Name of a text encoder among networks. It is not trained."""

_USE = {GENERATOR: 16, CRITIC: 17}
"""Uses of a sample's key, one for each window."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distill(DistillSettings):
    """Distribution matching distillation: a ``Procedure`` with the settings of ``DistillSettings``."""

    def check(self, experiment: Experiment) -> None:
        """Checks that the rest of an experiment fits.

        Raises:
            ValueError: A batch would be split into microbatches, the data has one window per sample, or there are no
                captions for the reward.
        """
        if experiment.accumulation != 1:
            raise ValueError(f"accumulation={experiment.accumulation}: distillation processes a batch as a whole, 1")
        if getattr(experiment.data, "windows", 2) != 2:
            raise ValueError("data.windows=1: distillation needs two windows of every clip, data.windows=2")
        if self.reward is not None and getattr(experiment.data, "captions", 1) == 0:
            raise ValueError(
                "data.captions=0: a reward reads captions; give the bytes of the longest, data.captions=256"
            )

    def start(self, experiment: Experiment, mesh: Mesh, restore: Restore | None) -> "Distilling":
        """See ``Procedure``. Raises ValueError as ``check`` does."""
        self.check(experiment)
        return Distilling(self, experiment, mesh, restore)


class Distilling:
    """A ``Distill`` in progress; see ``Running``."""

    def __init__(self, settings: Distill, experiment: Experiment, mesh: Mesh, restore: Restore | None) -> None:
        self._settings, self._experiment, self._mesh = settings, experiment, mesh
        self._residence, trained = Residence(settings.memory), {}
        parts = getattr(experiment.product, "parts", "")
        vae = settings.load_vae(mesh, parts)
        # Text encoders are small or absent and stay on the device. The generator is parked before the score network is
        # loaded.
        networks: Any = experiment.initial_networks(mesh)
        self._encoders = {GENERATOR: _encoder(networks)}
        networks = _without_encoder(networks)
        self._config = networks.transformer.config
        self._extras = Extras(settings, vae, self._config.in_channels)
        self._graph, trained[GENERATOR], frozen = split_params(networks, experiment.trainable, mesh)
        del networks
        gc.collect()  # modules are part of reference cycles, which would keep the arrays as loaded
        self._hold_frozen(GENERATOR, trained[GENERATOR], frozen)
        networks = settings.score_networks(mesh, jax.random.fold_in(jax.random.key(experiment.seed), 1))
        self._negative = settings.negative_embeds(networks, mesh, parts)
        self._encoders[CRITIC] = _encoder(networks)
        networks = _without_encoder(networks)
        real = flatten(strip_lora(Networks(transformer=networks.transformer)))[0]
        self._score_graph, trained[CRITIC], frozen = split_params(networks, settings.trained_by_critic, mesh)
        del networks
        gc.collect()  # modules are part of reference cycles, which would keep the arrays as loaded
        self._hold_frozen(CRITIC, trained[CRITIC], frozen)
        # The critic takes ``ratio`` steps per update of the generator, so their schedules have different lengths.
        lengths = {GENERATOR: -(-experiment.steps // settings.ratio), CRITIC: experiment.steps}
        optimizers = {GENERATOR: experiment.optimizer, CRITIC: settings.critic_optimizer}
        self._updaters = {
            name: Updater(
                optimizer=optimizers[name].build(trained[name], lengths[name]),
                learning_rates=optimizers[name].learning_rates(lengths[name]),
                ema=experiment.ema if name == GENERATOR else None,
            )
            for name in PLAYERS
        }
        state = start_state(self._updaters, trained, mesh, restore)
        self._shardings = jax.tree.map(lambda array: array.sharding, state.players)
        for name, player in state.players.items():
            for part, tree in _parts(name, player).items():
                self._residence.hold(part, tree)
        self._scorer = ScoreNetwork(
            settings=settings, graph=self._score_graph, real_graph=real, execution=experiment.execution
        )
        self._walk_call = WalkCall(graph=self._graph, layout=settings.context.layout)
        self._exit_call = ExitCall(graph=self._graph, layout=settings.context.layout, execution=experiment.execution)
        self._compile()

    def _hold_frozen(self, name: str, trained: Params, frozen: Params) -> None:
        counts = count_text(trained), count_text(frozen)
        report(f"{name}: {counts[0]} parameters are trained and {counts[1]} are frozen, on {dict(self._mesh.shape)}")
        self._residence.hold(_FROZEN[name], frozen, master=True)

    def _compile(self) -> None:
        """Creates the programs; each is compiled when it is first called."""
        options = compiler_options(self._experiment.remat)
        shardings = self._shardings
        self._exit_program = compile_exit_vjp(compiler_options=options)
        self._keys = jax.jit(
            lambda step, use: jax.vmap(lambda key: fold(key, use))(
                sample_keys(self._experiment.seed, step, self._experiment.batch_size)
            ),
            static_argnums=1,
        )
        self._scene = jax.jit(self._make_scene)
        self._embed = jax.jit(self._walk_call.embed)
        self._zeros = jax.jit(
            lambda params: jax.tree.map(jnp.zeros_like, params), out_shardings=shardings[GENERATOR].trainable
        )
        # Compiled without the options for gradients: the scores are not differentiated.
        self._compare = jax.jit(self._scorer.compare, static_argnames="level")
        self._adversarial = jax.jit(self._scorer.adversarial, static_argnames="level", compiler_options=options)
        self._apply = {
            name: jax.jit(
                functools.partial(self._updaters[name].apply, average=name == GENERATOR),
                donate_argnums=0,
                out_shardings=(shardings[name], None),
            )
            for name in PLAYERS
        }
        gradient = {
            "static_argnames": "level",
            "out_shardings": (shardings[CRITIC].trainable, None),
            "compiler_options": options,
        }
        self._flow_gradient = jax.jit(functools.partial(flow_gradient, self._scorer), **gradient)
        self._add_gan_gradient = jax.jit(
            functools.partial(add_gan_gradient, self._scorer), donate_argnums=0, **gradient
        )

    def step(self, batch: LatentPair, number: int) -> Metrics:
        """See ``Running``."""
        settings, step = self._settings, number - 1
        if settings.gan is not None:
            settings.gan.check(self._config, *batch.critic.target.shape[1:4])
        ema, metrics = self._experiment.ema, {}
        if self._averaged != _TRAINABLE[GENERATOR]:
            self._residence.park(self._averaged)  # a validation may have left it on the device
        if step % settings.ratio == 0:
            metrics |= _prefixed(GENERATOR, self._update_generator(batch.generator, step))
        elif ema is not None and step < ema.start:
            # The average is a copy of parameters that have not changed since: only its steps are counted.
            counts = self._residence.use(_COUNTS[GENERATOR])
            self._residence.keep(_COUNTS[GENERATOR], counts | {"ema_count": _one_more(counts["ema_count"])})
        metrics |= _prefixed(CRITIC, self._update_critic(batch, step))
        return metrics

    # In the two updates, a tree is asked for before the program that hides its copy, and parked after the last program
    # that reads it. On the device are at most
    #
    #     rollout     the generator's weights, the score network's, and the critic's parameters
    #     scores      the score network's weights, the parameters of both players
    #     pulling     the generator's weights and all of its state, the critic's parameters
    #     critic      the score network's weights and all of the critic's state
    #
    # together with gradients and activations: at 14B 73 GB. ``settle`` waits where both neighbours would not fit.

    def _update_generator(self, batch: LatentBatch, step: int) -> Metrics:
        residence, extras, level = self._residence, self._extras, self._score_level(GENERATOR, step)
        keys = self._keys(np.int32(step), _USE[GENERATOR])
        scene, sections = self._roll_out(GENERATOR, batch, keys, step, level)
        residence.park(_FROZEN[GENERATOR])
        scored = sections[-self._scored :]
        x = joined(scored)
        verdict = extras.verdict(x, batch.text)
        critic, frozen = residence.use(_TRAINABLE[CRITIC]), residence.use(_FROZEN[CRITIC])
        arguments = critic, frozen, extras.judged(x), scene, keys, np.int32(step)
        cotangent, metrics = extras.weigh(verdict, *self._compare(*arguments, level=level))
        gan = self._settings.gan
        if gan is not None and self._with_gan(step):
            adversarial = extras.weigh(verdict, *self._adversarial(*arguments, level=level))
            cotangent, metrics = _sum(cotangent, metrics, *adversarial, np.float32(gan.generator_weight))
        pulled, metrics = extras.add(cotangent, metrics, sections, self._scored, batch)
        del frozen, arguments
        residence.park(_FROZEN[CRITIC])
        residence.settle(pulled[0].x)
        weights, frozen = residence.use(_TRAINABLE[GENERATOR]), residence.use(_FROZEN[GENERATOR])
        residence.prefetch(_MOMENTS[GENERATOR])
        residence.prefetch(_AVERAGE[GENERATOR])
        gradients = self._zeros(weights)
        for section, cotangents in zip(scored, pulled, strict=True):
            tiers = section.history.tiers(self._settings.context.layout)
            gradients = pull_back(
                self._exit_call,
                weights,
                Condition(frozen=frozen, text=scene.generator_text, tiers=tiers),
                section.routes,
                section.visits,
                cotangents.x,
                gradients,
                inner=cotangents.inner,
                exit_program=self._exit_program,
            )
        player, applied = self._apply[GENERATOR](self._take(GENERATOR), gradients, metrics["loss"])
        self._put(GENERATOR, player)
        return metrics | applied

    def _update_critic(self, batch: LatentPair, step: int) -> Metrics:
        residence, level = self._residence, self._score_level(CRITIC, step)
        keys = self._keys(np.int32(step), _USE[CRITIC])
        scene, sections = self._roll_out(CRITIC, batch.critic, keys, step, level)
        residence.park(_TRAINABLE[GENERATOR])
        residence.park(_FROZEN[GENERATOR])
        x, gan = joined(sections[-self._scored :]), self._settings.gan
        residence.settle(x)
        critic, frozen = residence.use(_TRAINABLE[CRITIC]), residence.use(_FROZEN[CRITIC])
        arguments = critic, frozen, x, scene, keys
        gradients, metrics = self._flow_gradient(*arguments, level=level)
        residence.prefetch(_MOMENTS[CRITIC])
        if gan is not None and self._with_gan(step):
            real = (batch.generator if gan.reals == "generator" else batch.critic).target
            gradients, metrics = self._add_gan_gradient(gradients, metrics, *arguments, real, level=level)
        del critic, arguments
        player, applied = self._apply[CRITIC](self._take(CRITIC), gradients, metrics["loss"])
        self._put(CRITIC, player)
        return metrics | applied

    def _roll_out(
        self, name: str, batch: LatentBatch, keys: Key[Array, " B"], step: int, level: int | None
    ) -> tuple[Scene, list[Section]]:
        """A rollout of the generator in a window: one chunk with a real context, or several with their own."""
        scene = self._scene(
            self._encoders[GENERATOR].params, self._encoders[CRITIC].params, self._negative, batch, keys
        )
        own, sections = self._settings.own, []
        if own is None:
            return scene, [self._sample(name, scene, scene.contexts, scene.rollout, (step, 0), level)]
        count = np.random.default_rng([self._experiment.seed, _USE[name], step]).integers(
            own.sections[0], own.sections[1], endpoint=True
        )
        anchor_at = 1 if own.skip_first and count > 1 else 0
        history = jax.tree.map(jnp.zeros_like, scene.contexts.plain)
        for number in range(count):
            contexts, draws = self._own_context(history, keys, number)
            section = self._sample(name, scene, contexts, draws, (step, number), None)
            sections.append(section)
            history = remember(history, section.x, number in (0, anchor_at))
        return scene, sections

    def _sample(
        self,
        name: str,
        scene: Scene,
        contexts: Contexts,
        draws: RolloutDraws,
        place: tuple[int, int],
        level: int | None,
    ) -> Section:
        """Samples one chunk; ``place`` is (step, section)."""
        # The critic's moments must have left the device before the generator's weights are put there.
        self._residence.settle()
        weights, frozen = self._residence.use(_TRAINABLE[GENERATOR]), self._residence.use(_FROZEN[GENERATOR])
        history = contexts.saturated
        tiers = history.tiers(self._settings.context.layout)
        text, context = self._embed(weights, frozen, scene.generator_text, tiers)
        # Frozen weights are added here: a program that returned them would copy them.
        prepared = Prepared(frozen=frozen, text=text, context=context, tiers=tiers)
        routes, route_of = self._routes(name, contexts, place)
        x, visits, ends = walk(
            self._walk_call,
            weights,
            prepared,
            self._settings.scheduler,
            routes,
            route_of,
            draws,
            last_level=level,
            keep_ends=name == GENERATOR and self._extras.read_ends,
        )
        # The walk, which is still running, hides the copies of what judges its result.
        self._residence.settle()
        self._residence.prefetch(_FROZEN[CRITIC])
        self._residence.prefetch(_TRAINABLE[CRITIC])
        return Section(history=history, routes=routes, visits=visits, x=x, ends=ends)

    def _routes(
        self, name: str, contexts: Contexts, place: tuple[int, int]
    ) -> tuple[tuple[Route, ...], Int[Any, " B"]]:
        """The routes of a batch, and which one each sample takes."""
        settings, frames = self._settings, self._settings.context.layout.chunk_frames
        _, _, height, width, _ = contexts.plain.frames.shape
        kinds = [False]
        if settings.amplify_first_chunk:
            some, every = _counts(contexts.is_empty)
            kinds = [kind for kind, occurs in ((False, not every), (True, some)) if occurs]
        routes = []
        for amplify in kinds:
            plans = settings.plans(self._config, frames, (height, width), amplify=amplify)
            seed = exit_seed(self._experiment.seed, name, place, amplify)
            exits = tuple(len(plan.step_scalars) - 1 for plan in plans)
            routes.append(Route(plans=plans, exits=draw_exits(seed, plans) if settings.exits == "random" else exits))
        route_of = contexts.is_empty.astype(jnp.int32) if len(routes) == 2 else jnp.zeros_like(contexts.is_empty, int)
        return tuple(routes), route_of

    def _with_gan(self, step: int) -> bool:
        gan = self._settings.gan
        return gan is not None and step >= gan.start_step

    def _score_level(self, name: str, step: int) -> int | None:
        """The level on which samples are scored; ``None``: the last."""
        if self._settings.score_levels == "last":
            return None
        levels = len(pyramid_levels(self._settings.scheduler))
        return int(np.random.default_rng([self._experiment.seed, _USE[name], step, 1]).integers(levels))

    @property
    def _scored(self) -> int:
        return 1 if self._settings.own is None else self._settings.own.scored

    def _make_scene(
        self, generator: Params, score: Params, negative: Array, batch: LatentBatch, keys: Key[Array, " B"]
    ) -> Scene:
        texts = {GENERATOR: generator, CRITIC: score}
        encoders = {name: unflatten(self._encoders[name].graph, params) for name, params in texts.items()}
        context, scheduler = self._settings.context, self._settings.scheduler
        return make_scene(encoders[GENERATOR], encoders[CRITIC], negative, batch, keys, context, scheduler)

    def _own_context(self, history: History, keys: Key[Array, " B"], section: int) -> tuple[Contexts, RolloutDraws]:
        return own_context(self._settings, history, keys, np.int32(section))

    def _take(self, name: str) -> Player:
        """A player on the device; ``_put`` gives it back."""
        return _whole(name, self._residence.use)

    def _put(self, name: str, player: Player) -> None:
        """Takes a player's new arrays. Its parameters stay on the device: the next rollout reads them."""
        for part, tree in _parts(name, player).items():
            stays = part in (_TRAINABLE[name], _COUNTS[name])
            (self._residence.keep if stays else self._residence.park)(part, tree)

    def items(self) -> Items:
        """See ``Running``. Parked arrays are given where they are, in host memory."""
        players = {name: _whole(name, self._residence.peek) for name in PLAYERS}
        return state_items(TrainState(step=None, players=players))

    def frozen(self) -> Params:
        """See ``Running``. Parked arrays are given where they are, in host memory."""
        frozen = {name: self._residence.peek(_FROZEN[name]) | self._encoders[name].params for name in PLAYERS}
        return {f"{name}/{path}": array for name in PLAYERS for path, array in frozen[name].items()}

    def release(self) -> None:
        """See ``Running``."""
        for name in self._residence.names:
            if name not in (self._averaged, _FROZEN[GENERATOR]):
                self._residence.drop(name)

    def networks(self) -> nnx.Module:
        """See ``Running``: the generator. Everything else is parked, which leaves room for sampling."""
        for name in self._residence.names:
            if name not in (self._averaged, _FROZEN[GENERATOR]):
                self._residence.park(name)
        params = self._residence.use(self._averaged) | self._residence.use(_FROZEN[GENERATOR])
        encoder = self._encoders[GENERATOR]
        return Networks(**modules(unflatten(self._graph, params)), **modules(unflatten(encoder.graph, encoder.params)))

    @property
    def _averaged(self) -> str:
        """Name of the generator's parameters to sample with."""
        return (_TRAINABLE if self._experiment.ema is None else _AVERAGE)[GENERATOR]

    def flops(self, batch: Any) -> float | None:
        """See ``Running``: unknown, since steps differ in which networks they call and how often."""
        return None


def exit_seed(seed: int, name: str, place: tuple[int, int], amplify: bool) -> tuple[int, ...]:
    """The seed of the exits of one route.

    Args:
        seed: Seed of the run.
        name: The player whose window it is.
        place: Step and section.
        amplify: Whether the route has twice the steps.
    """
    return (seed, _USE[name], *place, int(amplify))


def _parts(name: str, player: Player) -> dict[str, Any]:
    """A player by the names of its parts."""
    return {
        _TRAINABLE[name]: player.trainable,
        _AVERAGE[name]: player.ema,
        _MOMENTS[name]: player.optimizer,
        _COUNTS[name]: {"updates": player.updates, "ema_count": player.ema_count},
    }


def _whole(name: str, get: Callable[[str], Any]) -> Player:
    """Inverse of ``_parts``."""
    trainable, ema, optimizer = (get(names[name]) for names in (_TRAINABLE, _AVERAGE, _MOMENTS))
    return Player(trainable=trainable, ema=ema, optimizer=optimizer, **get(_COUNTS[name]))


@jax.jit
def _one_more(count: Int[Array, ""]) -> Int[Array, ""]:
    return count + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Encoder:
    """A text encoder alone, or nothing."""

    graph: nnx.GraphDef[Networks]
    params: Params


def _encoder(networks: Networks) -> _Encoder:
    graph, params = flatten(Networks(**{name: one for name, one in modules(networks).items() if name == _TEXT}))
    return _Encoder(graph=graph, params=params)


def _without_encoder(networks: Networks) -> Networks:
    return Networks(**{name: one for name, one in modules(networks).items() if name != _TEXT})


def _counts(is_empty: Array) -> tuple[bool, bool]:
    """Whether some and whether all contexts are empty; waits for the device."""
    some, every = _some_and_every(is_empty)
    return bool(some), bool(every)


@jax.jit
def _some_and_every(flags: Array) -> tuple[Array, Array]:
    return flags.any(), flags.all()


@jax.jit
def _sum(
    cotangent: Array, metrics: Metrics, adversarial: Array, of_gan: Metrics, weight: Float[Any, ""]
) -> tuple[Float[Array, "B T H W C"], Metrics]:
    """The gradient of the generator's whole loss, and its metrics."""
    loss = metrics["loss"] + weight * of_gan["gan/generator_loss"]
    return cotangent + adversarial, metrics | of_gan | {"dmd_loss": metrics["loss"], "loss": loss}


def _prefixed(player: str, metrics: Mapping[str, Any]) -> Metrics:
    return {f"{player}/{name}": value for name, value in metrics.items()}
