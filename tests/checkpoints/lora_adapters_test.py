"""LoRA files that stay separate: the same adapters as in training, next to kernels that do not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapters_test import adapted, base
from flax import nnx
from safetensors.numpy import save_file

import helios_jax as hx
from helios_jax.checkpoints.adapters import save_adapters
from helios_jax.checkpoints.lora_adapters import check_adapters, load_adapters
from helios_jax.checkpoints.lora_set import LoraSet
from helios_jax.models.lora import adapted_layers, add_lora, merge_lora
from helios_jax.models.network import Network

LAYER = "blocks.1.attn1.to_k"


def arrays(module) -> dict[str, jax.Array]:
    return {"/".join(map(str, path)): variable[...] for path, variable in nnx.to_flat_state(nnx.state(module))}


def factors(rng, rank: int, inside: int, outside: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.standard_normal((rank, inside)).astype(np.float32), rng.standard_normal((outside, rank)).astype(
        np.float32
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files with layers in common, of other ranks and scales; with the products in float64, [out, in]."""
    folder, rng, products = tmp_path_factory.mktemp("files"), np.random.default_rng(0), {}
    width = base().config.dim
    for name, rank, layers in (("ash", 2, (LAYER, "blocks.0.attn1.to_q")), ("birch", 3, (LAYER, "proj_out"))):
        tensors = {}
        for number, layer in enumerate(layers):
            outside = 64 if layer == "proj_out" else width
            a, b = factors(rng, rank, width, outside)
            alpha = rank * (0.5 + number)
            tensors |= {
                f"{layer}.lora_A.weight": a,
                f"{layer}.lora_B.weight": b,
                f"{layer}.alpha": np.array(alpha, np.float32),
            }
            products[name, layer] = alpha / rank * b.astype(np.float64) @ a
        save_file(tensors, folder / f"{name}.safetensors")
    return folder, products


@pytest.mark.parametrize("options", [{}, {"targets": ("blocks/attn1/.*", "patch_short"), "rank": 3, "alpha": 3}])
def test_saved_adapters_are_those_of_training_again(tmp_path, options):
    trained = adapted(**options)
    file = save_adapters(trained, tmp_path / "lora.safetensors")
    found = load_adapters(base(), file, dtype="float32")
    assert nnx.split(found)[0] == nnx.split(trained)[0]  # and with it the programs
    expected = arrays(trained)
    assert arrays(found).keys() == expected.keys()
    for path, array in arrays(found).items():
        np.testing.assert_array_equal(array, expected[path], err_msg=path)
        assert array.dtype == expected[path].dtype
    kernel = "blocks/attn1/to_qkv/kernel"
    assert arrays(found)[kernel] is arrays(base())[kernel]


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.5, -2.0)])
def test_files_with_layers_in_common_lie_side_by_side(files, scales):
    folder, products = files
    network, loras = Network.of(base()), LoraSet()
    for name, scale in zip(("birch", "ash"), scales, strict=True):
        network, loras = loras.with_file(network, folder / f"{name}.safetensors", scale=scale, merge=False)
    by_name = dict(zip(("birch", "ash"), scales, strict=True))
    found, before = arrays(merge_lora(network.module)), arrays(base())
    qkv, width = "blocks/attn1/to_qkv/kernel", base().config.dim
    change = np.asarray(found[qkv], np.float64) - np.asarray(before[qkv], np.float64)
    expected = np.zeros_like(change)
    for (name, layer), product in products.items():
        if layer == LAYER:
            expected[1, :, width : 2 * width] += by_name[name] * product.T
        elif layer != "proj_out":
            expected[0, :, :width] += by_name[name] * product.T
    np.testing.assert_allclose(change, expected, atol=2e-5)
    change = np.asarray(found["proj_out/kernel"], np.float64) - np.asarray(before["proj_out/kernel"], np.float64)
    np.testing.assert_allclose(change, by_name["birch"] * products["birch", "proj_out"].T, atol=2e-5)
    assert {path: layer.lora_a.shape[-1] for path, layer in adapted_layers(network.module).items()} == {
        "blocks/attn1/to_qkv": 5,
        "proj_out": 3,
    }


def test_separate_and_merged_files_come_and_go_in_any_order(files):
    folder, _ = files
    plain = Network.of(hx.load_diffusers(base_folder(), "transformer", dtype="bfloat16"))
    merged, only_merged = LoraSet().with_file(plain, folder / "ash.safetensors")
    network, loras = LoraSet().with_file(plain, folder / "birch.safetensors", merge=False)
    factor = adapted_layers(network.module)["proj_out"].lora_a
    assert factor.dtype == jnp.bfloat16  # as the layer computes
    network, loras = loras.with_file(network, folder / "ash.safetensors")
    assert {name: lora.is_merged for name, lora in loras.loras.items()} == {"birch": False, "ash": True}
    for path, array in arrays(merged.module).items():
        np.testing.assert_array_equal(arrays(network.module)[path], array, err_msg=path)
    network, loras = loras.with_scale(network, "birch", 0.25)
    assert adapted_layers(network.module)["proj_out"].lora_scale == 0.25 * 1.5
    network, loras = loras.without(network, "ash")
    assert adapted_layers(network.module).keys() == {"blocks/attn1/to_qkv", "proj_out"}
    network, loras = loras.without(network, "birch")
    assert network.graph == plain.graph
    for path, array in arrays(plain.module).items():
        np.testing.assert_array_equal(arrays(network.module)[path], array, err_msg=path)
    assert (loras.loras, only_merged.loras.keys()) == ({}, {"ash"})


def base_folder():
    from adapters_test import DATA

    return DATA / "transformer" / "published"


def test_a_small_update_is_lost_in_a_merged_weight_and_not_in_adapters(tmp_path):
    """An update of 1/1024 of its weight moves nothing in bfloat16, whose steps are 1/256 to 1/128."""
    network = hx.load_diffusers(base_folder(), "transformer", dtype="bfloat16")
    kernel = np.asarray(network.proj_out.kernel[...], np.float32)
    tensors = {"proj_out.lora_A.weight": np.eye(len(kernel), dtype=np.float32)}
    tensors["proj_out.lora_B.weight"] = np.ascontiguousarray(kernel.T / 1024)
    save_file(tensors, tmp_path / "small.safetensors")
    merged, _ = LoraSet().with_file(Network.of(network), tmp_path / "small.safetensors")
    separate, _ = LoraSet().with_file(Network.of(network), tmp_path / "small.safetensors", merge=False)
    np.testing.assert_array_equal(merged.module.proj_out.kernel[...], network.proj_out.kernel[...])
    x = np.random.default_rng(0).standard_normal((64, len(kernel))).astype(jnp.bfloat16)
    layer = adapted_layers(separate.module)["proj_out"]
    added = layer.lora_scale * (np.float64(x) @ np.float64(layer.lora_a[...]) @ np.float64(layer.lora_b[...]))
    wanted = np.float64(x) @ kernel / 1024
    assert np.linalg.norm(added - wanted) < 3e-3 * np.linalg.norm(wanted)


def test_mistakes_are_named(files, tmp_path):
    folder, _ = files
    save_file({"proj_out.diff_b": np.zeros(64, np.float32)}, tmp_path / "dense.safetensors")
    for load in (
        lambda file: load_adapters(base(), file),
        lambda file: check_adapters(file, base().config),
        lambda file: LoraSet().with_file(Network.of(base()), file, merge=False),
    ):
        with pytest.raises(ValueError, match=r"only low-rank updates .*\n  1 updated by dense differences: proj_out"):
            load(tmp_path / "dense.safetensors")
    check_adapters(folder / "ash.safetensors", base().config)
    other = add_lora(base(), rank=1, targets=("proj_out",), key=jax.random.key(0))
    with pytest.raises(ValueError, match="the transformer has adapters already"):
        load_adapters(other, folder / "ash.safetensors")
    for merge in (True, False):
        with pytest.raises(ValueError, match="carries LoRA adapters"):
            LoraSet().with_file(Network.of(other), folder / "ash.safetensors", merge=merge)
