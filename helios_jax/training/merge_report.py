"""How much of a trained network merging its adapters loses, measured when it is exported.

    loss of an update      |cast(W + c A B) - W - c A B| / |c A B|              for each layer               (1)
    gap of the outputs     |v(merged) - v(separate)| / |v(separate)|            on random inputs             (2)

with Frobenius norms, and v the velocity that the network predicts. Next to (2) stands what the adapters do at all,
|v(separate) - v(without)| / |v(separate)|: a gap of the same size means that merging has lost what was trained.

All velocities are computed in fp32, so that they differ by their weights only. The three networks run block by block,
next to each other, and the merged weights of one block exist at a time.
"""

import collections
import dataclasses
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from helios_jax.checkpoints.components import find_component
from helios_jax.config import HistoryConfig, TransformerConfig
from helios_jax.context import History
from helios_jax.models.blocks import Block, BlockLayer, Conditions
from helios_jax.models.lora import adaptable_layers, adapted_layers, adapter_kernel, attach, strip_lora
from helios_jax.models.network import ConfiguredModule, Network
from helios_jax.models.transformer import HeliosTransformer, Tokens
from helios_jax.parallel.host_memory import delete
from helios_jax.parallel.mesh import on_mesh_of, readable, replicated_like
from helios_jax.training.released import Released
from helios_jax.typing import Array, Float

_TIMESTEPS = (950.0, 600.0, 250.0)
"""Noise levels of the random inputs, one sample each."""

_SIZE = 16
"""Latent rows and columns of the inputs."""

_TOKENS = 32
"""Length of their random text."""

SEPARATE, MERGED, WITHOUT = "separate", "merged", "without"

_Stream = tuple[Array, Tokens, Array]
"""The stream between two blocks, what all blocks read, and the embedded text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateLoss:
    """What rounding leaves of the updates of one kind of layer.

    Attributes:
        worst: The largest loss by equation (1) among the layers of this kind.
        mean: Their mean.
        unmoved: Share of the updated weights that did not move at all.
    """

    worst: float
    mean: float
    unmoved: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeReport:
    """Merged against separate adapters.

    Attributes:
        dtype: Precision of the merged weights.
        gap: Relative difference of their velocities, equation (2).
        effect: Relative difference of the velocities with and without adapters.
        updates: Losses by kind of layer.
    """

    dtype: str
    gap: float
    effect: float
    updates: dict[str, UpdateLoss]

    def __str__(self) -> str:
        worst = max(self.updates, key=lambda kind: self.updates[kind].worst)
        lost = sum(loss.mean for loss in self.updates.values()) / len(self.updates)
        return (
            f"adapters merged in {self.dtype}: rounding changes the velocity by {_percent(self.gap)}, the adapters "
            f"themselves by {_percent(self.effect)}; error of the merged updates {_percent(lost)} on average, up to "
            f"{_percent(self.updates[worst].worst)} in {worst}"
        )

    def to_json(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return dataclasses.asdict(self)


def measure(network: HeliosTransformer, released: Released) -> MergeReport:
    """Compares a transformer with adapters with its release.

    Every process that shares the arrays calls this.

    Args:
        network: The transformer.
        released: Its release.

    Returns:
        The report; layers whose adapters are still zero are left out of it.
    """
    with on_mesh_of(nnx.state(network)):
        updates = _losses(released)
        velocities = _velocities(network, released)
    reference = velocities[SEPARATE]
    kernel = next(path for path in released.dtypes if path[-1] == "kernel")
    return MergeReport(
        dtype=str(released.dtypes[kernel]),
        gap=_relative(velocities[MERGED], reference),
        effect=_relative(velocities[WITHOUT], reference),
        updates=updates,
    )


def _losses(released: Released) -> dict[str, UpdateLoss]:
    """Equation (1) for all adapters."""
    found: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
    for kind, owner in released.adapted.items():
        path = (*kind.split("/"), "kernel")
        layers = range(owner.kernel.shape[0]) if kind.startswith("blocks/") else [None]
        for layer in layers:
            merged, before = released.parameter(path, layer), jnp.asarray(released.unmerged(path, layer))
            error, size, unmoved = readable(_loss(merged, before, adapter_kernel(owner, layer)))
            if float(size) > 0:
                found[kind].append((float(error) / float(size), float(unmoved)))
    return {
        kind: UpdateLoss(
            worst=max(loss for loss, _ in losses),
            mean=sum(loss for loss, _ in losses) / len(losses),
            unmoved=sum(unmoved for _, unmoved in losses) / len(losses),
        )
        for kind, losses in found.items()
    }


@jax.jit
def _loss(
    merged: Float[Array, "*shape"], before: Float[Array, "*shape"], update: Float[Array, "*shape"]
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Norms of the error and of the update, and the share of updated weights that stayed."""
    # The difference of two nearby numbers is exact, so this order loses nothing.
    error = (merged.astype(jnp.float32) - before.astype(jnp.float32)) - update
    updated = update != 0
    stayed = updated & (merged == before.astype(merged.dtype))
    return jnp.linalg.norm(error.ravel()), jnp.linalg.norm(update.ravel()), stayed.sum() / jnp.maximum(updated.sum(), 1)


def _velocities(network: HeliosTransformer, released: Released) -> dict[str, Float[Array, "B T H W C"]]:
    """The velocities of the three networks."""
    plain = strip_lora(network)
    graphs = {SEPARATE: _fp32(network), MERGED: _fp32(plain), WITHOUT: _fp32(plain)}
    states = {SEPARATE: nnx.state(network), MERGED: _merged_outside_blocks(plain, released), WITHOUT: nnx.state(plain)}
    networks = {name: Network(graph=graphs[name], params=states[name]) for name in graphs}
    # By way of the host, since every process draws the same inputs on its own device.
    leaves, structure = jax.tree.flatten(_inputs(network.config))
    inputs = structure.unflatten(jax.device_put(jax.device_get(leaves), replicated_like(nnx.state(network))))
    streams: dict[str, _Stream] = {name: _begin(one, inputs) for name, one in networks.items()}
    blocks = {name: nnx.split(one.module.blocks) for name, one in networks.items()}
    for layer in range(network.config.num_layers):
        for name, (graph, stacks) in blocks.items():
            own = operator.itemgetter(layer)
            state = _merged_block(stacks, released, layer) if name == MERGED else jax.tree.map(own, stacks)
            x, tokens, text = streams[name]
            streams[name] = _run_block(graph, state, x, tokens, text), tokens, text
            # Now, and not when the garbage collector finds the state: the copies of one block are enough.
            delete(state)
    return {name: readable(_end(networks[name], x, tokens)) for name, (x, tokens, _) in streams.items()}


def _fp32(network: ConfiguredModule) -> nnx.GraphDef[Any]:
    """The structure of a transformer that computes in fp32, with the adapters of ``network``."""
    abstract = find_component("transformer").abstract(network.config, jnp.float32)
    layers = adaptable_layers(abstract)
    for path, layer in adapted_layers(network).items():
        attach(layers[path], layer.lora_a[...], layer.lora_b[...], layer.lora_scale)
    return nnx.split(abstract)[0]


def _merged_outside_blocks(plain: HeliosTransformer, released: Released) -> nnx.State:
    """All parameters as released, except those of the blocks, which nobody reads."""
    flat = nnx.to_flat_state(nnx.state(plain))
    return nnx.from_flat_state(
        [(path, one if path[0] == "blocks" else one.replace(released.parameter(path))) for path, one in flat]
    )


def _merged_block(stacks: nnx.State, released: Released, layer: int) -> nnx.State:
    """The parameters of one block as released."""
    flat = nnx.to_flat_state(stacks)
    return nnx.from_flat_state(
        [(path, one.replace(released.parameter(("blocks", *path), layer))) for path, one in flat]
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Inputs:
    latents: Float[Array, "B T H W C"]
    timestep: Float[Array, " B"]
    text: Float[Array, "B S E"]
    history: History | None


def _inputs(config: TransformerConfig) -> _Inputs:
    """Random latents, text and history at several noise levels."""
    keys = jax.random.split(jax.random.key(0), 4)
    batch, layout = len(_TIMESTEPS), HistoryConfig()
    shape = (batch, layout.chunk_frames, _SIZE, _SIZE, config.in_channels)
    history = None
    if config.has_multi_term_memory_patch:
        empty = History.empty(layout, batch, _SIZE, _SIZE, config.in_channels)
        history = History(
            frames=jax.random.normal(keys[0], empty.frames.shape),
            anchor=jax.random.normal(keys[1], empty.anchor.shape),
        )
    return _Inputs(
        latents=jax.random.normal(keys[2], shape),
        timestep=jnp.asarray(_TIMESTEPS),
        text=jax.random.normal(keys[3], (batch, _TOKENS, config.text_dim)),
        history=history,
    )


@jax.jit
def _begin(network: Network[HeliosTransformer], inputs: _Inputs) -> _Stream:
    """The stream before the first block, what all blocks read, and the embedded text."""
    module, layout = network.module, None if inputs.history is None else HistoryConfig()
    context = None if inputs.history is None else module.context(inputs.history.tiers(HistoryConfig()))
    frames = inputs.latents.shape[1] // module.config.patch_size[0]
    rope = module.rope(layout, (_SIZE, _SIZE), (_SIZE, _SIZE), frames)
    tokens = module.embed(inputs.latents, inputs.timestep, context=context, rope=rope)
    return tokens.x, tokens, module.condition_embedder.text(inputs.text)


@functools.partial(jax.jit, static_argnums=0)
def _run_block(
    graph: nnx.GraphDef[Block],
    state: nnx.State,
    x: Float[Array, "B S D"],
    tokens: Tokens,
    text: Float[Array, "B S2 D"],
) -> Float[Array, "B S D"]:
    layer = _layer(graph, tokens)
    constants = Conditions(modulation=tokens.modulation, rope=tokens.rope, text=text)
    return layer.total(layer(layer.settled(x), (state, None), constants))


@jax.jit
def _end(network: Network[HeliosTransformer], x: Float[Array, "B S D"], tokens: Tokens) -> Float[Array, "B T H W C"]:
    module = network.module
    layer = _layer(nnx.split(module.blocks)[0], tokens)
    return module.velocity(layer.settled(layer.last_tokens(x)), tokens)


def _layer(graph: nnx.GraphDef[Block], tokens: Tokens) -> BlockLayer:
    return BlockLayer(graph=graph, num_history=tokens.num_history, num_tokens=tokens.num_history + tokens.num_current)


def _relative(found: Float[Array, "..."], reference: Float[Array, "..."]) -> float:
    return float(jnp.linalg.norm((found - reference).ravel()) / jnp.linalg.norm(reference.ravel()))


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
