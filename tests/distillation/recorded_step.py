"""The recorded step of stage 3 (tests/parity/record_distillation_step.py): its inputs, networks and results.

The recording script explains the names. ``generate`` rolls out the generator. ``network`` gives the trainable factors
by path, and ``published_factors`` turns them, or their gradients, into the recorded form.
"""

import functools
import math
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import helios_jax as hx
from helios_jax.checkpoints.key_tables import TRANSFORMER, Entry, published_entries
from helios_jax.config import HistoryConfig, SchedulerConfig, TransformerConfig
from helios_jax.context import History
from helios_jax.distillation.dmd import ScoreLevels
from helios_jax.distillation.rollout import RolloutDraws, lowest_trained, rollout
from helios_jax.models.lora import attach
from helios_jax.models.transformer import HeliosTransformer
from helios_jax.parallel.execution import Execution, Scanned
from helios_jax.sampling.plan import LevelPlan, plan_chunk
from helios_jax.training.params import Params, flatten, unflatten
from helios_jax.training.timesteps import training_shift_factor
from helios_jax.typing import Array, Float

PARITY = pathlib.Path(__file__).parents[1] / "parity"
DATA = PARITY / "data" / "distillation_step"

sys.path.insert(0, str(PARITY))
from named_draws import NamedDraws  # noqa: E402

DRAWS = NamedDraws(17)
EXITS = {"exits_000": (0, 0, 0), "exits_100": (1, 0, 0), "exits_010": (0, 1, 0), "exits_111": (1, 1, 1)}
EXITS["empty_130"] = (1, 3, 0)
FULL = "exits_111"

BATCH, RANK, FRAMES, SIZE, CHANNELS = 2, 2, 9, (16, 24), 4
LAYOUT = HistoryConfig()
SCHEDULER = SchedulerConfig(
    solver="dmd", use_dynamic_shifting=True, time_shift_type="linear", shift_after_upsampling=True
)
LEVELS = ScoreLevels(shift=training_shift_factor("linear", 8640))
TIMESTEPS = {"a": (815.0, 340.0), "b": (604.0, 152.0)}
CROP, CROP_STARTS = (8, 12), {"a": ((3, 7), (8, 0)), "b": ((5, 11), (0, 4))}
HOOKS, WIDTH, GROUPS = (1, 3), 12, 2
PATCHERS = ("patch_short", "patch_mid", "patch_long")

TOLERANCE = 1e-4
"""Relative error of every array."""
EXECUTION = Execution(layers=Scanned())

Recorded = Mapping[str, np.ndarray]


@functools.cache
def recorded(case: str) -> Recorded:
    """The arrays of a case."""
    return dict(np.load(DATA / f"{case}.npz"))


def under(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays of a group, by the rest of their names."""
    return {name.removeprefix(f"{prefix}/"): value for name, value in arrays.items() if name.startswith(f"{prefix}/")}


def error(actual: jax.Array | np.ndarray, expected: jax.Array | np.ndarray) -> float:
    """Norm of the difference over the norm of the expected array; of two arrays of zeros, 0."""
    difference = float(np.linalg.norm(np.asarray(actual) - np.asarray(expected)))
    return difference / float(np.linalg.norm(expected)) if difference else 0.0


def video(name: str, frames: int = FRAMES, size: tuple[int, int] = SIZE) -> jax.Array:
    """A named draw of latents."""
    return jnp.asarray(DRAWS.normal(name, (BATCH, frames, *size, CHANNELS)))


def text(name: str) -> jax.Array:
    """Embeddings: "text" or "negative"."""
    return jnp.asarray(DRAWS.normal(name, (BATCH, 5, 24)))


def history(window: str, case: str, *, saturated: bool) -> History:
    """The context of all networks, or the one with changed colours that the generator alone sees."""
    past, anchor = video(f"{window}/history", 19), video(f"{window}/anchor", 1)
    kept = jnp.arange(19) >= jnp.array([0, 10])[:, None]
    past = jnp.where(kept[:, :, None, None, None], past, 0)
    if case.startswith("empty"):
        past, anchor = jnp.zeros_like(past), jnp.zeros_like(anchor)
    if saturated:
        grey = past.mean(-1, keepdims=True)
        past = grey + jnp.array([0.6, 1.4])[:, None, None, None, None] * (past - grey)
    return History(frames=past, anchor=anchor)


def rollout_draws(window: str) -> RolloutDraws:
    """White noise of a rollout."""
    sizes = [tuple(side // 2 for side in SIZE), SIZE]
    blocks = tuple(video(f"{window}/block{level}", size=size) for level, size in enumerate(sizes, start=1))
    return RolloutDraws(initial=video(f"{window}/initial"), blocks=blocks)


def plans(case: str) -> tuple[LevelPlan, ...]:
    """The steps of all levels, those of 384x640 pixels."""
    return plan_chunk(
        SCHEDULER,
        TransformerConfig.helios_14b(),
        steps=(2, 2, 2),
        frames=FRAMES,
        size=(48, 80),
        integer_timesteps=False,
        amplify=case.startswith("empty"),
    )


def crop(x: jax.Array, window: str) -> jax.Array:
    """The part of each sample that the discriminator sees."""
    rows, columns = CROP
    places = zip(x, CROP_STARTS[window], strict=True)
    return jnp.stack([sample[:, i : i + rows, j : j + columns] for sample, (i, j) in places])


def head_parameter(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter of the discriminator's heads, named and laid out as in PyTorch."""
    value = DRAWS.normal(f"heads/{name}", shape)
    if name.endswith(".bias"):
        return np.float32(0.2) * value
    if ".norms." in name:
        return 1 + np.float32(0.2) * value
    return np.float32(math.prod(shape[1:]) ** -0.5) * value


@functools.cache
def network(player: str) -> tuple[nnx.GraphDef[HeliosTransformer], Params, Params]:
    """Structure, factors of the adapters and frozen parameters of "generator" or "critic", by path."""
    transformer = _load(player)
    extra = PATCHERS if player == "generator" else ()
    layers = {"/".join(map(str, path)): layer for path, layer in nnx.iter_modules(transformer)}
    for path, (a, b) in _factors(transformer, player, extra).items():
        attach(layers[path], jnp.asarray(a), jnp.asarray(b), 1.0)
    graph, params = flatten(transformer)
    trainable = {path: value for path, value in params.items() if "/lora_" in path}
    return graph, trainable, {path: value for path, value in params.items() if path not in trainable}


def velocity(
    player: str, trainable: Params, x: Array, timestep: Float[Array, " B"], text: Array, history: History
) -> Array:
    """A call of the generator's or the critic's network."""
    graph, _, frozen = network(player)
    transformer = unflatten(graph, {**frozen, **trainable})
    return transformer(x, timestep, text, history.tiers(LAYOUT), LAYOUT, EXECUTION)


@functools.cache
def rollout_program(lowest: int, amplified: bool):
    """Samples a chunk; as a function of adapters, noise, context and exits."""
    levels = plans("empty" if amplified else "full")

    @jax.jit
    def sample(trainable, draws, history, exits):
        def call(trainable, x, timestep, level):
            return velocity("generator", trainable, x, timestep, text("text"), history)

        return rollout(call, trainable, SCHEDULER, levels, draws, exits, lowest)

    return sample


def sample(case: str, window: str) -> jax.Array:
    """The generator's sample."""
    return _rollout(case, window)(network("generator")[1])


def generate(case: str, window: str) -> tuple[jax.Array, Callable[[jax.Array], tuple[Params]]]:
    """The generator's sample, and the function that turns its gradient into that of the adapters."""
    return jax.vjp(_rollout(case, window), network("generator")[1])


def _rollout(case: str, window: str) -> Callable[[Params], jax.Array]:
    """The sample as a function of the adapters."""
    exits = EXITS[case]
    program = rollout_program(lowest_trained(exits), case.startswith("empty"))
    draws, context = rollout_draws(window), history(window, case, saturated=True)
    return lambda trainable: program(trainable, draws, context, jnp.array(exits))


def published_factors(player: str, trainable: Params) -> dict[str, np.ndarray]:
    """Factors of adapters, or their gradients, with the names and shapes of the recorded ones."""
    published = {}
    for name, entry, path in _adapted(_entries(player), trainable):
        a_place, b_place = _places(entry)
        a = entry.layout.to_published(np.asarray(trainable[f"{path}/lora_a"])[a_place])
        b = np.asarray(trainable[f"{path}/lora_b"])[b_place].T
        published |= {f"{name}.lora_A": a, f"{name}.lora_B": b.reshape(*b.shape, *[1] * (a.ndim - 2))}
    return published


def assert_same_gradients(player: str, gradients: Params, recorded: Recorded, group: str) -> None:
    """Every factor has the recorded gradient."""
    actual, expected = published_factors(player, gradients), under(recorded, group)
    assert actual.keys() == expected.keys()
    errors = {name: error(actual[name], expected[name]) for name in expected}
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= TOLERANCE, (worst, errors[worst])


@functools.cache
def _entries(player: str) -> dict[str, Entry]:
    return published_entries(_load(player), TRANSFORMER)


def _load(player: str) -> HeliosTransformer:
    """The network without adapters."""
    folder = DATA / {"generator": "generator", "critic": "score"}[player]
    return hx.load_diffusers(folder, "transformer", dtype="float32")


def _adapted(entries: dict[str, Entry], trainable: Params) -> Iterator[tuple[str, Entry, str]]:
    """Published names of the adapted layers, their entries and our paths."""
    for name, entry in entries.items():
        *owner, parameter = map(str, entry.path)
        path = "/".join(owner)
        if parameter == "kernel" and f"{path}/lora_a" in trainable:
            yield name.removesuffix(".weight"), entry, path


def _places(entry: Entry) -> tuple[tuple, tuple]:
    """Where a published layer's A and B lie in our stacked and fused factors."""
    layer = () if entry.layer is None else (entry.layer,)
    if entry.columns is None:
        return layer, layer
    part = entry.columns.start // (entry.columns.stop - entry.columns.start)
    return (*layer, ..., part, slice(None)), (*layer, part)


def _factors(
    transformer: HeliosTransformer, player: str, extra: tuple[str, ...]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A and B of every linear layer and of ``extra``, by our paths."""
    factors: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    kernels = {"/".join(map(str, path)): value for path, value in nnx.to_flat_state(nnx.state(transformer, nnx.Param))}
    for name, entry in published_entries(transformer, TRANSFORMER).items():
        *owner, parameter = map(str, entry.path)
        name, path = name.removesuffix(".weight"), "/".join(owner)
        if parameter != "kernel" or (path.startswith("patch_") and name not in extra):
            continue
        if path not in factors:
            kernel = kernels[f"{path}/kernel"]
            lead = kernel.shape[: kernel.ndim - len(entry.shape)]
            fan_in, out = kernel.shape[len(lead) : -1], kernel.shape[-1]
            parts = () if entry.columns is None else (out // (entry.columns.stop - entry.columns.start),)
            b_shape = (*lead, *parts, RANK, out // math.prod(parts))
            factors[path] = np.zeros((*lead, *fan_in, *parts, RANK), np.float32), np.zeros(b_shape, np.float32)
        a_place, b_place = _places(entry)
        out, *fan_in = entry.shape
        factors[path][0][a_place] = entry.layout.to_ours(_factor(player, f"{name}.lora_A", (RANK, *fan_in)))
        pointwise = (out, RANK, *[1] * (len(fan_in) - 1))
        factors[path][1][b_place] = _factor(player, f"{name}.lora_B", pointwise).reshape(out, RANK).T
    return factors


def _factor(player: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    scale = (0.3 if name.endswith("lora_B") else 1) * shape[1] ** -0.5
    return np.float32(scale) * DRAWS.normal(f"{player}/{name}", shape)
