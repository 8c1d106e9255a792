"""Several LoRA files at once, their scales, and removal bit for bit."""

import itertools
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import helios_jax as hx
from helios_jax.checkpoints.components import read_json
from helios_jax.checkpoints.lora_merge import check_lora, merge_lora_file
from helios_jax.checkpoints.lora_set import LoraSet
from helios_jax.config import TransformerConfig
from helios_jax.models.network import Network

DATA = pathlib.Path(__file__).parents[1] / "parity" / "data"
BASE = DATA / "transformer" / "published"
LORA = DATA / "lora"
LAYER = "blocks.1.attn1.to_k"
PARAMETER = "blocks.attn1.to_qkv.kernel"


def parameters(network: Network) -> dict[str, jax.Array]:
    return {".".join(map(str, path)): variable[...] for path, variable in nnx.to_flat_state(network.params)}


def assert_same_bits(found: Network, expected: Network) -> None:
    for (name, ours), theirs in zip(parameters(found).items(), parameters(expected).values(), strict=True):
        assert ours.dtype == theirs.dtype
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes(), name


@pytest.fixture(scope="module")
def base() -> Network:
    return Network.of(hx.load_diffusers(BASE, "transformer", dtype="bfloat16"))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, tuple[pathlib.Path, np.ndarray]]:
    """Three files that update the same layer, with the products of their factors in float64."""
    folder, rng, found = tmp_path_factory.mktemp("loras"), np.random.default_rng(0), {}
    for number, name in enumerate(("ash", "birch", "cedar")):
        a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((2 + number, 32), (32, 2 + number)))
        tensors = {f"{LAYER}.lora_A.weight": a, f"{LAYER}.lora_B.weight": b}
        if name == "cedar":  # and a layer of its own
            tensors["proj_out.diff_b"] = rng.standard_normal(64).astype(np.float32)
        save_file(tensors, folder / f"{name}.safetensors")
        found[name] = folder / f"{name}.safetensors", b.astype(np.float64) @ a
    return found


def test_the_sum_of_all_files_is_rounded_once(base, files):
    network, loras = base, LoraSet()
    scales = {"ash": 0.7, "birch": -1.3, "cedar": 0.2}
    for name, scale in scales.items():
        network, loras = loras.with_file(network, files[name][0], scale=scale)
    old = np.asarray(parameters(base)[PARAMETER], np.float64)[1, :, 32:64]
    exact = old + sum(scale * files[name][1] for name, scale in scales.items()).T
    found = np.asarray(parameters(network)[PARAMETER], np.float64)[1, :, 32:64]
    spacing = 2.0 ** (np.floor(np.log2(np.abs(exact))) - 7)
    assert (np.abs(found - exact) / spacing).max() <= 0.5001
    assert np.abs(found - old).max() > 1


def test_weights_do_not_depend_on_the_order(base, files):
    results = []
    for order in itertools.permutations(files):
        network, loras = base, LoraSet()
        for name in order:
            network, loras = loras.with_file(network, files[name][0], scale=0.3)
        assert list(loras.loras) == list(order)
        results.append(network)
    for network in results[1:]:
        assert_same_bits(network, results[0])


@pytest.mark.parametrize("order", [("ash", "birch", "cedar"), ("cedar", "ash", "birch"), ("birch", "cedar", "ash")])
def test_removal_restores_every_bit_in_any_order(base, files, order):
    network, loras = base, LoraSet()
    alone, alone_set = LoraSet().with_file(base, files[order[-1]][0], scale=1.7)
    for name in files:
        network, loras = loras.with_file(network, files[name][0], scale=1.7)
    assert {*map(len, (loras.originals, loras.merged))} == {2}
    for name in order[:-1]:
        network, loras = loras.without(network, name)
    assert_same_bits(network, alone)
    assert loras.originals.keys() == alone_set.originals.keys()
    network, loras = loras.without(network, order[-1])
    assert_same_bits(network, base)
    assert (loras.loras, loras.originals, loras.merged) == ({}, {}, {})


def test_scales(base, files):
    file = files["ash"][0]
    network, loras = LoraSet().with_file(base, file, "style", 0.5)
    assert_same_bits(network, merge_lora_file(base, file, 0.5))
    for scale in (-2.0, 0.25):
        network, loras = loras.with_scale(network, "style", scale)
        assert loras.loras["style"].scale == scale
        assert_same_bits(network, merge_lora_file(base, file, scale))
    network, loras = loras.with_scale(network, "style", 0.0)
    assert_same_bits(network, base)
    network, loras = loras.with_scale(network, "style", 0.5)
    assert_same_bits(network, merge_lora_file(base, file, 0.5))


@pytest.mark.slow
def test_every_recorded_file_can_be_removed_again(base):
    network, loras = base, LoraSet()
    for name in ("kohya", "diffusers", "wan"):
        network, loras = loras.with_file(network, LORA / f"{name}.safetensors", scale=0.7)
    for name in ("diffusers", "kohya", "wan"):
        assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (network, base)), strict=True))
        network, loras = loras.without(network, name)
    assert_same_bits(network, base)


def test_old_networks_keep_their_weights(base, files):
    before = jax.tree.map(np.array, parameters(base))
    first, loras = LoraSet().with_file(base, files["ash"][0])
    merged = jax.tree.map(np.array, parameters(first))
    second, loras = loras.with_file(first, files["birch"][0])
    loras.without(second, "ash")
    jax.tree.map(np.testing.assert_array_equal, parameters(base), before)
    jax.tree.map(np.testing.assert_array_equal, parameters(first), merged)


def test_parked_parameters(base, files):
    parked = jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind("pinned_host")), base)
    network, loras = LoraSet().with_file(parked, files["ash"][0])
    assert_same_bits(network, merge_lora_file(base, files["ash"][0]))
    assert {array.sharding.memory_kind for array in parameters(network).values()} == {"pinned_host"}
    network, loras = loras.without(network, "ash")
    assert_same_bits(network, base)
    assert {array.sharding.memory_kind for array in parameters(network).values()} == {"pinned_host"}


def test_wrong_names_and_scales(base, files, tmp_path):
    file = files["ash"][0]
    network, loras = LoraSet().with_file(base, file)
    with pytest.raises(ValueError, match=r"a LoRA named 'ash' is loaded already .*give another name"):
        loras.with_file(network, file)
    with pytest.raises(ValueError, match="name=' '"):
        loras.with_file(network, file, " ")
    for scale in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"scale=.*must be a finite number"):
            loras.with_file(network, file, "other", scale)
        with pytest.raises(ValueError, match=r"scale=.*must be a finite number"):
            loras.with_scale(network, "ash", scale)
        with pytest.raises(ValueError, match=r"scale=.*must be a finite number"):
            merge_lora_file(network, tmp_path / "is not even looked for", scale)
    for call in (lambda: loras.without(network, "ahs"), lambda: loras.with_scale(network, "ahs", 1)):
        with pytest.raises(ValueError, match=r"no LoRA named 'ahs'; loaded: ash; did you mean ash\?"):
            call()
    with pytest.raises(ValueError, match="no LoRA named 'ash'; loaded: none"):
        LoraSet().without(base, "ash")
    with pytest.raises(ValueError, match="the transformer was replaced while LoRAs were loaded"):
        loras.without(base, "ash")


@pytest.mark.parametrize("scale", [3e38, 1e300, -1e38])
def test_overflow_is_an_error(base, files, scale):
    with pytest.raises(
        ValueError, match=rf"ash\.safetensors merged, weights would not be finite, or beyond.*\n.*{LAYER}"
    ):
        LoraSet().with_file(base, files["ash"][0], scale=scale)


def test_a_file_is_checked_against_the_configuration_alone(files, tmp_path):
    config = TransformerConfig.from_diffusers(read_json(BASE / "transformer" / "config.json"))
    check_lora(files["cedar"][0], config)
    save_file({"blocks.3.attn1.to_q.diff": np.ones((32, 32), np.float32)}, tmp_path / "deep.safetensors")
    with pytest.raises(ValueError, match="does not fit this transformer of 3 blocks"):
        check_lora(tmp_path / "deep.safetensors", config)
