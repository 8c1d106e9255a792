"""The discriminator on a mesh of eight devices; run in a process of its own with virtual devices."""

import json
import math
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def main() -> None:
    """Prints as JSON how the published heads are divided, and the errors of small ones against one device."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx
    from jax.sharding import NamedSharding, PartitionSpec

    from helios_jax.models.discriminator import Discriminator, DiscriminatorConfig
    from helios_jax.parallel import mesh as parameters
    from helios_jax.training.batch import SAMPLE_AXES
    from helios_jax.training.sharding import MeshShape, place, state_shardings

    mesh = MeshShape(data=2, fsdp=4).build()
    published = nnx.state(nnx.eval_shape(lambda: Discriminator(DiscriminatorConfig(), 5120, 16, rngs=nnx.Rngs(0))))
    local = jax.tree.map(
        lambda leaf, sharding: sharding.shard_shape(leaf.shape), published, state_shardings(published, mesh)
    )
    shapes = jax.tree.leaves(local, is_leaf=lambda node: isinstance(node, tuple))

    parameters.MIN_SHARDED_SIZE = 64  # the parameters of the small heads are far below the real limit
    config = DiscriminatorConfig(hooks=(0, 1), width=8, groups=2)
    graph, state = nnx.split(Discriminator(config, 12, 4, dtype="float32", rngs=nnx.Rngs(0)))
    generator = np.random.default_rng(0)
    velocity, hidden = (
        jnp.asarray(generator.standard_normal(s), jnp.float32) for s in ((8, 9, 8, 8, 4), (2, 8, 9, 4, 4, 12))
    )

    def loss(state, velocity, hidden):
        return jax.nn.softplus(nnx.merge(graph, state)(velocity, hidden)).mean()

    one = jax.jit(jax.grad(loss))(state, velocity, hidden)
    samples = [NamedSharding(mesh, PartitionSpec(SAMPLE_AXES)), NamedSharding(mesh, PartitionSpec(None, SAMPLE_AXES))]
    placed = place(state, mesh)
    inputs = (jax.device_put(array, sharding) for array, sharding in zip((velocity, hidden), samples, strict=True))
    many = jax.jit(jax.grad(loss), out_shardings=state_shardings(state, mesh))(placed, *inputs)
    errors = jax.tree.map(lambda a, b: float(np.abs(a - np.asarray(b)).max() / np.abs(a).max()), one, many)
    kernel = placed["hooks"]["convs"][0]["kernel"].get_value()
    print(
        json.dumps(
            {
                "per device": sum(map(math.prod, shapes)),
                "error": max(jax.tree.leaves(errors)),
                "kernel": [kernel.shape, kernel.addressable_shards[0].data.shape],
            }
        )
    )


@pytest.fixture(scope="module")
def report() -> dict:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_published_heads_are_divided_over_fsdp(report):
    """By the rule for all parameters: four devices hold a quarter each, and all of biases and norms."""
    assert 988_359_941 / 4 <= report["per device"] < 1.001 * 988_359_941 / 4


def test_gradients_are_those_of_one_device(report):
    assert report["error"] < 1e-4
    assert report["kernel"] == [[2, 3, 3, 3, 12, 8], [2, 3, 3, 3, 3, 8]]


if __name__ == "__main__":
    main()
