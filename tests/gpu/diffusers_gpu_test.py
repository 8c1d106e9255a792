"""The whole 14B network in bf16 against that of diffusers with the same weights and inputs, at every level."""

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helios_jax.checkpoints.components import find_component
from helios_jax.checkpoints.key_tables import published_entries
from helios_jax.config import HistoryConfig, TransformerConfig
from helios_jax.context import Tiers
from helios_jax.models import HeliosTransformer
from pallas_kernels import devices

pytestmark = pytest.mark.skipif(not devices.is_hopper(), reason="needs a Hopper GPU as the default device")

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture(scope="module")
def networks():
    """Ours with random weights, and diffusers' with the same."""
    sys.path.insert(0, BENCHMARKS)
    from inference import draws
    from peer_diffusers import empty_transformer

    from helios_jax.checkpoints.random import random_network

    network = random_network(HeliosTransformer, TransformerConfig.helios_14b(), "bfloat16", draws(0))
    peer = empty_transformer()
    targets = dict(peer.named_parameters())
    flat = dict(nnx.to_flat_state(network.params))
    for name, entry in published_entries(network.module, find_component("transformer").keys).items():
        part = entry.of(flat[entry.path][...])
        part = part.transpose(np.argsort(entry.layout.perm)) if entry.layout.perm else part
        part = jax.block_until_ready(jnp.copy(part.reshape(entry.shape)))
        target = targets.pop(name)
        assert str(target.dtype) == f"torch.{part.dtype}"
        target.data.copy_(torch.from_dlpack(part))
    assert not targets
    return network, peer


@pytest.mark.parametrize("size", [(12, 20), (24, 40), (48, 80)], ids=["level 0", "level 1", "level 2"])
def test_forward_in_bfloat16(networks, size):
    from peer_diffusers import inputs

    network, peer = networks
    arguments = inputs(*size)
    with torch.no_grad():
        (want,) = peer(**arguments)

    def channels_last(name):
        return jnp.from_dlpack(arguments[name].movedim(1, -1).contiguous())

    tiers = Tiers(**{tier: channels_last(f"latents_history_{tier}") for tier in ("long", "mid", "short")})
    text = jnp.from_dlpack(arguments["encoder_hidden_states"])

    @jax.jit
    def forward(network, latents, tiers, text):
        return network.module(latents, jnp.full((1,), 500.0), text, tiers, HistoryConfig())

    got = forward(network, channels_last("hidden_states"), tiers, text)
    got = np.asarray(got.astype(jnp.float32)).ravel()
    want = want.float().movedim(1, -1).cpu().numpy().ravel()
    cosine = float(got @ want / np.linalg.norm(got) / np.linalg.norm(want))
    print(f"cosine {cosine:.7f}")
    assert cosine >= 0.9999
    assert abs(np.linalg.norm(got) / np.linalg.norm(want) - 1) < 2e-3
