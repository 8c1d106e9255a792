"""The discriminator's heads of the recorded step: PyTorch's names and layouts of their parameters, and ours.

``<head>.convs.<n>.weight`` [out, in, frames, rows, columns] is our ``convs/<n>/kernel`` [frames, rows, columns, in,
out]; weights of norms are ``scale``, and ``linear`` is ``logit``. The hook heads are stacked along a leading axis.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import recorded_step as step
from flax import nnx

from helios_jax.models.discriminator import Discriminator, DiscriminatorConfig
from helios_jax.training.params import Params, flatten, unflatten

CONFIG = DiscriminatorConfig(hooks=step.HOOKS, width=step.WIDTH, groups=step.GROUPS)
DIM = 32
"""Model dimension of the score network."""


@functools.cache
def network() -> tuple[nnx.GraphDef[Discriminator], Params]:
    """Structure of the heads and their recorded parameters, by path."""
    graph, shapes = flatten(
        nnx.eval_shape(lambda: Discriminator(CONFIG, DIM, step.CHANNELS, dtype="float32", rngs=nnx.Rngs(0)))
    )
    params = {}
    for path, like in shapes.items():
        shape = like.shape[1:] if path.startswith("hooks/") else like.shape
        published = np.moveaxis(np.empty(shape), [-1, -2], [0, 1]).shape if path.endswith("kernel") else shape
        drawn = [_to_ours(step.head_parameter(name, published)) for name in _names(path)]
        params[path] = jnp.asarray(np.stack(drawn) if path.startswith("hooks/") else drawn[0])
    return graph, params


def discriminator(params: Params) -> Discriminator:
    """The heads with these parameters."""
    return unflatten(network()[0], params)


def published_parameters(params: Params) -> dict[str, np.ndarray]:
    """Parameters of the heads, or their gradients, with the names and layouts of the recorded ones."""
    published = {}
    for path, array in params.items():
        arrays = np.asarray(array) if path.startswith("hooks/") else np.asarray(array)[None]
        for name, value in zip(_names(path), arrays, strict=True):
            published[name] = np.moveaxis(value, [-1, -2], [0, 1]) if path.endswith("kernel") else value
    return published


def _names(path: str) -> list[str]:
    """The published names of a parameter, one per head that is stacked in it."""
    head, *layer, kind = path.split("/")
    rest = ".".join([*layer, "bias" if kind == "bias" else "weight"]).replace("logit", "linear")
    return [f"hooks.{n}.{rest}" for n in range(len(step.HOOKS))] if head == "hooks" else [f"{head}.{rest}"]


def _to_ours(value: np.ndarray) -> np.ndarray:
    """[out, in, ...] to [..., in, out]; vectors as they are."""
    return np.moveaxis(value, [0, 1], [-1, -2]) if value.ndim > 1 else value


def crop_corners(window: str) -> jax.Array:
    """Numbers in [0, 1) for which ``distillation.crops.crop`` cuts at the recorded places."""
    places = np.array(step.SIZE) - np.array(step.CROP) + 1
    return jnp.asarray((np.array(step.CROP_STARTS[window]) + 0.5) / places, jnp.float32)
