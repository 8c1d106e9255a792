"""One training step of stages 1 and 2 against PyTorch (tests/parity/record_training_step.py).

Same weights, batch and draws give the same loss and the same gradient of every LoRA factor. The gradients are taken
through kernels W + A B that are merged outside of the network, so that they test the method and nothing else.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import helios_jax as hx
from helios_jax.checkpoints.key_tables import TRANSFORMER, Entry, published_entries
from helios_jax.parallel.execution import Execution, Scanned
from helios_jax.training.batch import LatentBatch, PromptBatch
from helios_jax.training.corruption import CorruptionDraws, SaturationDraws
from helios_jax.training.injection import DropDraws, InjectionDraws
from helios_jax.training.methods.base import Base, BaseDraws
from helios_jax.training.methods.pyramid import Pyramid, PyramidDraws
from helios_jax.training.networks import Networks

PARITY = pathlib.Path(__file__).parents[1] / "parity"
DATA = PARITY / "data" / "training_step"

sys.path.insert(0, str(PARITY))
from named_draws import NamedDraws  # noqa: E402

BATCH, CHUNK, PAST = 4, (9, 16, 24, 4), (19, 16, 24, 4)
DRAWS = NamedDraws(11)
STEP = {name: jnp.asarray(value) for name, value in np.load(DATA / "step.npz").items()}

Factors = dict[str, dict[str, jax.Array]]
"""Published layer name -> A [rank, in] and B [out, rank]."""


def normal(name: str, *shape: int) -> jax.Array:
    return jnp.asarray(DRAWS.normal(name, (BATCH, *shape)))


def batch() -> LatentBatch:
    return LatentBatch(
        target=normal("target", *CHUNK),
        history=normal("history", *PAST),
        anchor=normal("anchor", 1, *PAST[1:]),
        text=PromptBatch(embeds=normal("text", 5, 24)),
    )


def context_draws() -> InjectionDraws:
    def group(name: str) -> dict[str, jax.Array]:
        return {key.removeprefix(f"{name}/"): value for key, value in STEP.items() if key.startswith(f"{name}/")}

    return InjectionDraws(
        drop=DropDraws(**group("drop")),
        corruption=CorruptionDraws(**group("corruption"), noise=normal("corruption/noise", 20, *PAST[1:])),
        saturation=SaturationDraws(**group("saturation")),
    )


def lora_factors() -> Factors:
    factors: Factors = {}
    for name in STEP:
        if name.startswith("base/grad/"):
            layer, factor = name.removeprefix("base/grad/").rsplit(".", 1)
            shape = STEP[name].shape
            values = np.float32(shape[1] ** -0.5) * DRAWS.normal(f"{layer}.{factor}", shape)
            factors.setdefault(layer, {})[factor] = jnp.asarray(values)
    return factors


def merge(state: nnx.State, entries: dict[str, Entry], factors: Factors) -> nnx.State:
    """W + B A for every layer, differentiable in the factors."""
    flat = dict(nnx.to_flat_state(state))
    for layer, factor in factors.items():
        entry = entries[f"{layer}.weight"]
        product = jnp.matmul(factor["lora_B"], factor["lora_A"], precision="highest")
        place = (() if entry.layer is None else (entry.layer,)) + (..., entry.columns or slice(None))
        array = flat[entry.path][...]
        flat[entry.path] = flat[entry.path].replace(array.at[place].add(entry.layout.to_ours(product)))
    return nnx.from_flat_state(list(flat.items()))


def loss_and_gradients(method, draws) -> tuple[float, Factors]:
    transformer = hx.load_diffusers(DATA, "transformer", dtype="float32")
    entries = published_entries(transformer, TRANSFORMER)
    graph, state = nnx.split(transformer)

    def loss(factors: Factors) -> jax.Array:
        networks = Networks(transformer=nnx.merge(graph, merge(state, entries, factors)))
        return method.loss_from_draws(networks, batch(), draws, Execution(layers=Scanned()))[0]

    return jax.jit(jax.value_and_grad(loss))(lora_factors())


@pytest.mark.parametrize("stage", ["base", pytest.param("pyramid", marks=pytest.mark.slow)])
def test_loss_and_lora_gradients_match_pytorch(stage):
    noise, u = normal("noise", *CHUNK), STEP[f"{stage}/u"]
    if stage == "base":
        draws = BaseDraws(noise=noise, u=u, context=context_draws(), input=None)
        loss, gradients = loss_and_gradients(Base(), draws)
    else:
        draws = PyramidDraws(noise=noise, u=u, context=context_draws(), input=())
        loss, gradients = loss_and_gradients(Pyramid(ratios=(1, 2, 1)), draws)

    assert loss == pytest.approx(float(STEP[f"{stage}/loss"]), rel=1e-5)
    assert sum(map(len, gradients.values())) == 52
    worst = 0.0
    for layer, factors in gradients.items():
        for factor, gradient in factors.items():
            recorded = STEP[f"{stage}/grad/{layer}.{factor}"]
            worst = max(worst, float(jnp.linalg.norm(gradient - recorded) / jnp.linalg.norm(recorded)))
    assert worst <= 1e-4
