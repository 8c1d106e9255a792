"""Trees that take turns on the device: values, copies, deletion, and errors, in both modes."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from helios_jax.parallel import host_memory
from helios_jax.parallel.host_memory import fetched, is_on_host, on_device, on_host
from helios_jax.parallel.residence import Held, Residence

SIZE = 1000
MODES = ("resident", "scheduled")


def array(seed: int, *shape: int) -> jax.Array:
    return jax.device_put(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@functools.partial(jax.jit, donate_argnames="state")
def update(weights, state, x):
    """A step of an optimizer with momentum."""
    gradient = jax.grad(lambda w: jnp.square(x @ w - 1).mean())(state["w"] + weights["w"])
    momentum = 0.9 * state["m"] + gradient
    return {"w": state["w"] - 0.1 * momentum, "m": momentum}


def alternate(residence: Residence) -> dict[str, np.ndarray]:
    """Four updates of two players that share no arrays."""
    for number, player in enumerate(("generator", "critic")):
        residence.hold(f"{player} weights", {"w": array(number, 20, 30)}, master=True)
        residence.hold(f"{player} state", {"w": array(9 + number, 20, 30), "m": array(5, 20, 30)})
    for step in range(4):
        player, other = ("generator", "critic") if step % 2 else ("critic", "generator")
        residence.prefetch(f"{other} weights")
        new = update(residence.use(f"{player} weights"), residence.use(f"{player} state"), array(step, 8, 20))
        residence.park(f"{player} weights")
        residence.park(f"{player} state", new)
    return {
        f"{player} {key}": np.asarray(value)
        for player in ("generator", "critic")
        for key, value in residence.use(f"{player} state").items()
    }


def test_both_modes_give_the_same_bits_with_the_same_programs():
    update.clear_cache()
    resident = alternate(Residence("resident"))
    compiled = update._cache_size()
    scheduled = alternate(Residence("scheduled"))
    assert update._cache_size() == compiled == 1
    assert resident.keys() == scheduled.keys()
    for name, expected in resident.items():
        np.testing.assert_array_equal(scheduled[name], expected, err_msg=name)
    by_hand = {"w": np.asarray(array(10, 20, 30)), "m": np.asarray(array(5, 20, 30))}
    for step in (0, 2):
        x, w = np.asarray(array(step, 8, 20), np.float64), by_hand["w"] + np.asarray(array(1, 20, 30))
        gradient = 2 * x.T @ (x @ w - 1) / (8 * 30)
        by_hand["m"] = 0.9 * by_hand["m"] + gradient
        by_hand["w"] = by_hand["w"] - 0.1 * by_hand["m"]
    np.testing.assert_allclose(scheduled["critic w"], by_hand["w"], atol=1e-5)


def live(kind: str) -> int:
    """Bytes of all arrays that exist in one kind of memory."""
    arrays = [leaf for leaf in jax.live_arrays() if leaf.sharding.memory_kind == kind]
    return sum({leaf.unsafe_buffer_pointer(): leaf.nbytes for leaf in arrays}.values())


def test_only_what_is_in_use_is_on_the_device():
    device, host = live("device"), live("pinned_host")

    def seen() -> tuple[int, int]:
        return live("device") - device, live("pinned_host") - host

    residence, size = Residence("scheduled"), 4 * SIZE
    for name, master in (("master", True), ("state", False)):
        tree = array(0, SIZE)
        residence.hold(name, tree, master=master)
        assert tree.is_deleted()
    assert seen() == (0, 2 * size)
    residence.prefetch("master")
    assert seen() == (size, 2 * size)  # a master keeps its copy in host memory
    assert residence.use("master") is residence.use("master")
    assert seen() == (size, 2 * size)
    state = residence.use("state")
    assert seen() == (2 * size, size)
    assert residence.report() == {"master": Held(device=size, host=size), "state": Held(device=size, host=0)}
    assert residence.metrics() == {"device_bytes": 2 * size, "parked_bytes": size}
    residence.park("state", state + 1)
    assert state.is_deleted()
    residence.park("master")
    assert seen() == (0, 2 * size)
    assert residence.describe().splitlines()[-1] == "together: 0 B on the device, 8 kB in host memory"
    np.testing.assert_array_equal(residence.use("state"), np.asarray(array(0, SIZE)) + 1)
    residence.park("state")  # unchanged
    np.testing.assert_array_equal(residence.use("state"), np.asarray(array(0, SIZE)) + 1)
    residence.drop("state")
    residence.drop("master")
    assert seen() == (0, 0)
    assert residence.names == ()


def test_a_resident_tree_stays_where_it_is():
    residence = Residence()
    tree = array(0, SIZE)
    residence.hold("state", tree)
    residence.park("state")
    assert residence.use("state").unsafe_buffer_pointer() == tree.unsafe_buffer_pointer()
    new = jax.jit(lambda x: 2 * x)(tree)
    residence.park("state", new)
    assert tree.is_deleted()
    assert residence.use("state").unsafe_buffer_pointer() == new.unsafe_buffer_pointer()
    assert residence.report() == {"state": Held(device=4 * SIZE, host=0)}


@pytest.mark.parametrize("mode", MODES)
def test_an_array_that_a_program_returns_unchanged_survives(mode):
    residence = Residence(mode)
    residence.hold("state", {"a": array(0, 3), "b": array(1, 3)})
    state = residence.use("state")
    residence.park("state", {"a": state["a"], "b": state["b"] + 1})
    found = residence.use("state")
    np.testing.assert_array_equal(found["a"], np.asarray(array(0, 3)))
    np.testing.assert_array_equal(found["b"], np.asarray(array(1, 3)) + 1)


@pytest.mark.parametrize("mode", MODES)
def test_errors(mode):
    residence = Residence(mode)
    residence.hold("state", {"w": array(0, 3)})
    residence.hold("weights", {"w": array(1, 3)}, master=True)
    for call in (residence.use, residence.prefetch, residence.park, residence.drop):
        with pytest.raises(ValueError, match=r"nothing is held as 'stat'; names are state, weights; did you mean stat"):
            call("stat")
    with pytest.raises(ValueError, match="'state' is held already"):
        residence.hold("state", {"w": array(0, 3)})
    with pytest.raises(ValueError, match=r"'other': \['w'\] is not an array of JAX"):
        residence.hold("other", {"w": np.zeros(3)})
    with pytest.raises(ValueError, match="'other' shares arrays with 'weights'"):
        residence.hold("other", residence.use("weights"))
    with pytest.raises(ValueError, match="'weights' is a master"):
        residence.park("weights", {"w": array(1, 3)})
    with pytest.raises(ValueError, match=r"\['w'\] was float32\[3\], now float32\[4\]"):
        residence.park("state", {"w": array(1, 4)})
    with pytest.raises(ValueError, match=r"\['w'\] was float32\[3\], now not there"):
        residence.park("state", {"v": array(1, 3)})
    donated = residence.use("state")
    new = jax.jit(lambda tree: jax.tree.map(jnp.sin, tree), donate_argnums=0)(donated)
    for call in (residence.use, residence.prefetch, residence.park):
        with pytest.raises(RuntimeError, match="arrays of 'state' were donated to a program"):
            call("state")
    with pytest.raises(ValueError, match=r"\['w'\] was deleted or donated"):
        residence.park("state", donated)
    residence.park("state", new)
    np.testing.assert_allclose(residence.use("state")["w"], np.sin(np.asarray(array(0, 3))), rtol=1e-6)


def test_an_unknown_mode_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="mode='host' must be one of 'resident', 'scheduled'"):
        Residence("host")


def test_host_memory_is_checked_before_anything_moves(monkeypatch):
    residence = Residence("scheduled")
    residence.hold("first", array(0, SIZE))
    tree = array(0, SIZE)
    monkeypatch.setattr(host_memory, "_available", lambda: 3999)
    with pytest.raises(MemoryError, match=r"parking 'second' takes 4 kB .* and 3\.999 kB of the host's memory"):
        residence.hold("second", tree)
    monkeypatch.setattr(host_memory, "_available", lambda: None)
    monkeypatch.setattr(host_memory, "_pool_limit", lambda platforms: 7999)
    with pytest.raises(MemoryError, match=r"8 kB with what is parked already.*XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB=1 "):
        residence.hold("second", tree)
    assert not tree.is_deleted()
    assert residence.names == ("first",)


def test_memory_that_was_parked_before_is_still_in_the_pool(monkeypatch):
    residence = Residence("scheduled")
    residence.hold("first", array(0, SIZE))
    residence.use("first")
    monkeypatch.setattr(host_memory, "_available", lambda: 3999)
    residence.park("first")
    assert residence.report()["first"].host == 4 * SIZE
    with pytest.raises(MemoryError, match=r"parking 'second' takes 4 kB .* and 3\.999 kB of the host's memory"):
        residence.hold("second", array(0, SIZE))


def test_the_pool_of_gpus_has_the_size_that_the_environment_sets(monkeypatch):
    monkeypatch.delenv(host_memory.LIMIT_VARIABLE, raising=False)
    assert host_memory._pool_limit({"cpu"}) is None
    assert host_memory._pool_limit({"gpu"}) == 64 * 2**30
    monkeypatch.setenv(host_memory.LIMIT_VARIABLE, "120")
    assert host_memory._pool_limit({"gpu"}) == 120 * 2**30
    monkeypatch.setenv(host_memory.LIMIT_VARIABLE, "much")
    with pytest.raises(ValueError, match="='much' must be a whole number of GiB"):
        host_memory._pool_limit({"gpu"})


def test_shardings_are_kept():
    mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")[:1]), ("fsdp",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    residence = Residence("scheduled")
    residence.hold("state", jax.device_put(array(0, 8, 3), sharding))
    assert residence.use("state").sharding == sharding
    # The same place with its axes written out, which would be another program.
    longer = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp", None))
    residence.park("state", jax.device_put(array(1, 8, 3), longer))
    assert residence.use("state").sharding.spec == sharding.spec
    np.testing.assert_array_equal(residence.use("state"), array(1, 8, 3))


def test_fetched_arrays_are_deleted_and_others_are_not():
    here = {"w": array(0, 5)}
    with fetched(here) as tree:
        assert tree["w"] is here["w"]
    assert not here["w"].is_deleted()
    parked = on_host(here)
    assert is_on_host(parked)
    assert not is_on_host(here)
    with fetched(parked) as tree:
        assert tree["w"].sharding == here["w"].sharding
        result = jax.jit(lambda tree: tree["w"] + 1)(tree)
    assert tree["w"].is_deleted()
    np.testing.assert_array_equal(result, np.asarray(here["w"]) + 1)
    np.testing.assert_array_equal(on_device(parked)["w"], here["w"])
    assert host_memory.bytes_on_host(parked) == host_memory.total_bytes(here) == 20
    assert host_memory.bytes_by_device(here) == {jax.devices("cpu")[0]: 20}


def test_parked_arrays_are_copied_to_the_device_a_few_at_a_time(monkeypatch):
    """Two arrays of 4000 bytes fit, so every third call waits for those before it."""
    parked = {str(number): on_host(array(number, SIZE)) for number in range(7)}
    waits, seen = [], []
    monkeypatch.setattr(host_memory, "MOST_COPIES", 8 * SIZE)
    monkeypatch.setattr(jax, "block_until_ready", lambda results: waits.append(len(seen)))

    def program(one):
        assert not is_on_host(one)
        seen.append(one)
        return one.sum()

    sums = host_memory.compute_each(program, parked | {"here": array(9, SIZE)})
    assert waits == [2, 4, 6]
    for name, value in sums.items():
        expected = array(9 if name == "here" else int(name), SIZE).sum()
        assert float(value) == float(expected)
