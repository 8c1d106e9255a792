"""LoRA files against weights that diffusers fused (tests/parity/record_lora.py), and their errors."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import helios_jax as hx
from helios_jax.checkpoints import lora_merge
from helios_jax.checkpoints.key_tables import LINEAR
from helios_jax.checkpoints.lora_files import read_lora
from helios_jax.checkpoints.lora_merge import merge_lora_file
from helios_jax.models.network import Network

DATA = pathlib.Path(__file__).parents[1] / "parity" / "data"
BASE = DATA / "transformer" / "published"
LORA = DATA / "lora"
DEPTH = 3

WAN = {
    "patch_embedding": "patch_embedding",
    "patch_short": "patch_short",
    "patch_mid": "patch_mid",
    "patch_long": "patch_long",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
} | {
    f"blocks.{block}.{ours}": f"blocks.{block}.{theirs}"
    for block in range(DEPTH)
    for ours, theirs in {
        "attn1.to_q": "self_attn.q",
        "attn1.to_k": "self_attn.k",
        "attn1.to_v": "self_attn.v",
        "attn1.to_out.0": "self_attn.o",
        "attn2.to_q": "cross_attn.q",
        "attn2.to_k": "cross_attn.k",
        "attn2.to_v": "cross_attn.v",
        "attn2.to_out.0": "cross_attn.o",
        "ffn.net.0.proj": "ffn.0",
        "ffn.net.2": "ffn.2",
    }.items()
}


def network(dtype: str | None = None) -> Network:
    return Network.of(hx.load_diffusers(BASE, "transformer", dtype=dtype))


def parameters(network: Network) -> dict[str, jax.Array]:
    return {".".join(map(str, path)): variable[...] for path, variable in nnx.to_flat_state(network.params)}


def published(network: Network, folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The parameters under their published names and layouts (the export has tests of its own)."""
    hx.save_diffusers(network.module, folder, "transformer")
    return load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")


def alpha(layer: str) -> float:
    """The alpha that the recording script gives to a layer."""
    return 2.0 if layer.endswith("attn2.to_k") else 7.0 if layer == "patch_short" else 5.0


def recorded_factors() -> dict[str, dict[str, np.ndarray]]:
    """Layer (published name) -> "A", "B" of the file that diffusers wrote."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in load_file(LORA / "diffusers.safetensors").items():
        layer, factor = re.fullmatch(r"transformer\.(.+)\.lora_([AB])\.weight", name).groups()
        layers.setdefault(layer, {})[factor] = tensor
    return layers


def write(file: pathlib.Path, **tensors: np.ndarray) -> pathlib.Path:
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, file)
    return file


@pytest.mark.parametrize("name", ["diffusers", "wan", "kohya"])
def test_merged_weights_match_diffusers(tmp_path, name):
    merged = published(merge_lora_file(network(), LORA / f"{name}.safetensors", 0.7), tmp_path)
    fused = dict(np.load(LORA / f"{name}.npz"))
    fused.pop("output", None)
    assert len(fused) >= 10
    for key, expected in fused.items():
        np.testing.assert_allclose(merged[key], expected, rtol=0, atol=1e-6, err_msg=key)


def test_output_of_the_merged_model_matches_diffusers():
    model = merge_lora_file(network("float32"), LORA / "diffusers.safetensors", 0.7)
    case = np.load(BASE / "case.npz")
    latents = jnp.asarray(np.moveaxis(case["hidden_states"], 1, -1))
    inputs = (latents, jnp.asarray(case["timestep"]), jnp.asarray(case["encoder_hidden_states"]))
    output = jax.jit(lambda network, *inputs: network.module(*inputs))(model, *inputs)
    expected = np.moveaxis(np.load(LORA / "diffusers.npz")["output"], 1, -1)
    assert np.abs(output - expected).max() / expected.std() <= 5e-5


@pytest.mark.parametrize(
    ("rename", "suffixes"),
    [
        (lambda layer: layer, ("lora_A.weight", "lora_B.weight")),
        (lambda layer: f"base_model.model.{layer}", ("lora_A.default.weight", "lora_B.default.weight")),
        (lambda layer: f"diffusion_model.{layer}", ("lora_A.my-style.weight", "lora_B.my-style.weight")),
        (lambda layer: f"diffusion_model.{WAN[layer]}", ("lora_A.weight", "lora_B.weight")),
        (lambda layer: WAN[layer], ("lora_down.weight", "lora_up.weight")),
        (lambda layer: f"lora_unet_{WAN[layer].replace('.', '_')}", ("lora_down.weight", "lora_up.weight")),
    ],
    ids=["bare", "peft", "diffusers-adapter", "wan", "wan-down-up", "kohya"],
)
def test_other_names_give_the_same_updates(tmp_path, rename, suffixes):
    tensors = {}
    for layer, factors in recorded_factors().items():
        tensors[f"{rename(layer)}.{suffixes[0]}"] = factors["A"]
        tensors[f"{rename(layer)}.{suffixes[1]}"] = factors["B"]
        tensors[f"{rename(layer)}.alpha"] = np.float32(alpha(layer)).reshape(())
    ours = read_lora(write(tmp_path / "renamed.safetensors", **tensors))
    expected = read_lora(LORA / "diffusers.safetensors")
    assert ours.keys() == expected.keys()
    for name in ours:
        assert ours[name].weight == expected[name].weight
        jax.tree.map(np.testing.assert_array_equal, ours[name].factors, expected[name].factors)


def test_alpha_over_rank_comes_from_the_header():
    deltas = read_lora(LORA / "diffusers.safetensors")
    weights = {name: deltas[f"{name}.weight"].weight for name in ("blocks.0.attn1.to_q", "blocks.1.attn1.to_q")}
    assert weights == {"blocks.0.attn1.to_q": 5 / 3, "blocks.1.attn1.to_q": 5 / 6}
    assert deltas["blocks.2.attn2.to_k.weight"].weight == 2 / 3
    assert deltas["patch_short.weight"].weight == 7 / 3
    assert deltas["patch_long.weight"].rank == 2


def test_alpha_comes_from_the_settings_beside_a_peft_file(tmp_path):
    tensors = {
        f"base_model.model.{layer}.lora_{factor}.weight": tensor
        for layer, factors in recorded_factors().items()
        for factor, tensor in factors.items()
    }
    file = write(tmp_path / "adapter_model.safetensors", **tensors)
    assert read_lora(tmp_path)["proj_out.weight"].weight == 1  # alpha = rank when nothing is said
    settings = {"lora_alpha": 12, "alpha_pattern": {"attn2.to_k": 2}, "use_dora": False}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    deltas = read_lora(file)
    assert deltas["proj_out.weight"].weight == 12 / 3
    assert deltas["blocks.0.attn2.to_k.weight"].weight == 2 / 3
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"use_rslora": True}))
    assert read_lora(tmp_path)["patch_long.weight"].weight == pytest.approx(12 / 2**0.5)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    with pytest.raises(ValueError, match="is a DoRA"):
        read_lora(tmp_path)


def test_dense_updates_of_every_kind_of_parameter(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {
        "diffusion_model.blocks.1.norm3.diff": ("blocks.1.norm2.weight", (32,)),
        "diffusion_model.blocks.1.norm3.diff_b": ("blocks.1.norm2.bias", (32,)),
        "diffusion_model.blocks.2.self_attn.norm_q.diff": ("blocks.2.attn1.norm_q.weight", (32,)),
        "diffusion_model.blocks.0.cross_attn.norm_k.diff": ("blocks.0.attn2.norm_k.weight", (32,)),
        "diffusion_model.blocks.0.cross_attn.o.diff_b": ("blocks.0.attn2.to_out.0.bias", (32,)),
        "diffusion_model.blocks.0.ffn.0.diff": ("blocks.0.ffn.net.0.proj.weight", (48, 32)),
        "diffusion_model.blocks.1.modulation.diff": ("blocks.1.scale_shift_table", (1, 6, 32)),
        "diffusion_model.head.modulation.diff": ("norm_out.scale_shift_table", (1, 2, 32)),
        "diffusion_model.head.head.diff_b": ("proj_out.bias", (64,)),
        "diffusion_model.patch_embedding.diff": ("patch_embedding.weight", (32, 16, 1, 2, 2)),
    }
    updates = {name: rng.standard_normal(shape).astype(np.float32) for name, (_, shape) in shapes.items()}
    file = write(tmp_path / "dense.safetensors", **updates)
    merged = published(merge_lora_file(network(), file, -0.5), tmp_path)
    expected = load_file(BASE / "transformer" / "diffusion_pytorch_model.safetensors")
    for name, update in updates.items():
        expected[shapes[name][0]] += np.float32(-0.5) * update
    for name in expected:
        np.testing.assert_allclose(merged[name], expected[name], rtol=0, atol=3e-7, err_msg=name)


def test_a_bias_of_b_is_scaled_like_its_product(tmp_path):
    """PEFT's ``lora_bias``: bias + alpha / rank * (bias of B)."""
    tensors = {
        "proj_out.lora_A.weight": np.zeros((4, 32), np.float32),
        "proj_out.lora_B.weight": np.zeros((64, 4), np.float32),
        "proj_out.lora_B.bias": np.ones(64, np.float32),
        "proj_out.alpha": np.float32([2.0]),
    }
    before, file = network(), write(tmp_path / "bias.safetensors", **tensors)
    after = merge_lora_file(before, file, 3.0)
    np.testing.assert_array_equal(parameters(after)["proj_out.bias"], parameters(before)["proj_out.bias"] + 1.5)


def test_bfloat16_weights_are_rounded_once():
    base = network("bfloat16")
    merged = parameters(merge_lora_file(base, LORA / "diffusers.safetensors", 0.7))["blocks.attn2.to_q.kernel"]
    assert merged.dtype == jnp.bfloat16
    stored = np.asarray(parameters(base)["blocks.attn2.to_q.kernel"], np.float64)
    for block in range(DEPTH):
        factors = recorded_factors()[f"blocks.{block}.attn2.to_q"]
        delta = 5 / factors["A"].shape[0] * factors["B"].astype(np.float64) @ factors["A"]
        exact = stored[block] + 0.7 * delta.T
        spacing = 2.0 ** (np.floor(np.log2(np.abs(exact))) - 7)
        assert (np.abs(np.asarray(merged[block], np.float64) - exact) / spacing).max() <= 0.5001


def test_opposite_scale_undoes_a_merge_up_to_rounding():
    file = LORA / "diffusers.safetensors"
    for dtype, bound in (("float32", 2.0**-23), ("bfloat16", 2.0**-8)):
        base = network(dtype)
        merged = merge_lora_file(base, file, 0.7)
        back = merge_lora_file(merged, file, -0.7)
        moved = 0.0
        for name, start in parameters(base).items():
            there, end = parameters(merged)[name], parameters(back)[name]
            limit = bound if start.dtype == dtype else 2.0**-23
            # Half a spacing of the merged and of the restored value.
            allowed = 2 * limit * np.maximum(np.abs(np.float32(start)), np.abs(np.float32(there))) + 1e-7
            assert (np.abs(np.float32(end) - np.float32(start)) <= allowed).all(), name
            moved = max(moved, float(np.abs(np.float32(there) - np.float32(start)).max()))
        assert moved > 1


def test_the_given_network_stays_valid_unless_donated():
    base = network()
    before = jax.tree.map(np.array, parameters(base))
    merged = merge_lora_file(base, LORA / "wan.safetensors")
    jax.tree.map(np.testing.assert_array_equal, parameters(base), before)
    assert merged.graph == base.graph
    shared = {name for name, array in parameters(base).items() if parameters(merged)[name] is array}
    assert "blocks.norm2.scale" in shared
    assert "patch_long.kernel" in shared
    assert "blocks.attn1.to_qkv.kernel" not in shared
    donated = merge_lora_file(base, LORA / "wan.safetensors", donate=True)
    jax.tree.map(np.testing.assert_array_equal, parameters(donated), parameters(merged))
    assert {name for name, array in parameters(base).items() if not array.is_deleted()} == shared


def test_parked_parameters_come_back_to_host_memory():
    base = network("bfloat16")
    parked = jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind("pinned_host")), base)
    merged = merge_lora_file(parked, LORA / "wan.safetensors")
    assert {array.sharding.memory_kind for array in parameters(merged).values()} == {"pinned_host"}
    expected = parameters(merge_lora_file(base, LORA / "wan.safetensors"))
    for name, array in parameters(merged).items():
        np.testing.assert_array_equal(np.asarray(array), expected[name])


def test_one_layer_of_a_stack_is_updated_in_place():
    """The compiled update reuses the stack's memory and needs a few layers' worth more, not a stack's."""
    layers, features, out = 40, 64, 128
    stack = jax.ShapeDtypeStruct((layers, features, out), jnp.bfloat16)
    factors = (jax.ShapeDtypeStruct((out, 4), jnp.float32), jax.ShapeDtypeStruct((4, features), jnp.float32))
    analysis = lora_merge._add.lower(stack, 3, (factors,), (np.float32(1),), LINEAR).compile().memory_analysis()
    assert analysis.alias_size_in_bytes == layers * features * out * 2
    assert analysis.temp_size_in_bytes <= 4 * features * out * 4


def test_half_precision_factors_are_multiplied_in_fp32(tmp_path):
    factors = recorded_factors()["proj_out"]
    a, b = (factors[name].astype(ml_dtypes.bfloat16) for name in "AB")
    file = write(tmp_path / "half.safetensors", **{"proj_out.lora_A.weight": a, "proj_out.lora_B.weight": b})
    base = network()
    merged = parameters(merge_lora_file(base, file))["proj_out.kernel"]
    exact = parameters(base)["proj_out.kernel"] + (b.astype(np.float32) @ a.astype(np.float32)).T
    np.testing.assert_allclose(merged, exact, rtol=0, atol=5e-7)


A, B = np.zeros((2, 32), np.float32), np.zeros((32, 2), np.float32)
PAIR = {"blocks.0.attn1.to_q.lora_A.weight": A, "blocks.0.attn1.to_q.lora_B.weight": B}


@pytest.mark.parametrize(
    ("tensors", "lines"),
    [
        (
            PAIR | {"blocks.0.attn1.to_q.dora_scale": A, "blocks.0.attn1.to_q.lora_magnitude_vector": A},
            [
                "2 of DoRA, which cannot be merged as LoRA: blocks.0.attn1.to_q.dora_scale, "
                "blocks.0.attn1.to_q.lora_magnitude_vector"
            ],
        ),
        (
            PAIR | {"blocks.0.attn1.to_q.lora_C.weight": A, "something": B},
            ["2 with names that are not understood: blocks.0.attn1.to_q.lora_C.weight, something"],
        ),
        (
            PAIR | {"transformer.blocks.0.attn1.to_q.lora_A.weight": A},
            ["1 given twice: transformer.blocks.0.attn1.to_q.lora_A.weight"],
        ),
        (
            PAIR | {"blocks.0.self_attn.q.lora_A.weight": A, "blocks.0.self_attn.q.lora_B.weight": B},
            ["1 given twice: blocks.0.attn1.to_q.weight (blocks.0.attn1.to_q, blocks.0.self_attn.q)"],
        ),
        (
            {"x.lora_A.weight": A, "y.lora_up.weight": B, "z.alpha": np.float32([1.0])},
            [
                "3 incomplete or inconsistent: x (down given; A (lora_down) and B (lora_up) needed), "
                "y (up given; A (lora_down) and B (lora_up) needed), "
                "z (alpha given; A (lora_down) and B (lora_up) needed)"
            ],
        ),
        (
            {"x.lora_A.weight": A, "x.lora_B.weight": np.zeros((32, 3), np.float32)},
            ["1 incomplete or inconsistent: x (B (32, 3) and A (2, 32) do not have one rank)"],
        ),
        (
            PAIR | {"blocks.0.attn1.to_q.diff": np.zeros((32, 32), np.float32)},
            ["1 incomplete or inconsistent: blocks.0.attn1.to_q (its weight is updated twice)"],
        ),
    ],
    ids=["dora", "unknown", "twice", "twice-by-meaning", "halves", "ranks", "weight-twice"],
)
def test_unusable_files_are_explained(tmp_path, tensors, lines):
    file = write(tmp_path / "bad.safetensors", **tensors)
    with pytest.raises(ValueError, match="is not a usable LoRA file") as error:
        read_lora(file)
    assert [line.strip() for line in str(error.value).splitlines()[1:]] == lines


def test_files_of_other_models_are_explained(tmp_path):
    def pair(layer: str, features: int = 32, out: int = 32) -> dict[str, np.ndarray]:
        a, b = np.zeros((2, features), np.float32), np.zeros((out, 2), np.float32)
        return {f"diffusion_model.{layer}.lora_A.weight": a, f"diffusion_model.{layer}.lora_B.weight": b}

    file = write(
        tmp_path / "other.safetensors",
        **pair("blocks.0.cross_attn.k_ref"),
        **pair("blocks.3.self_attn.q"),
        **pair("blocks.1.self_attn.v"),
        **pair("blocks.0.ffn.0", features=64),
        **pair("text_embedding.0", features=48),
    )
    with pytest.raises(ValueError, match="does not fit this transformer of 3 blocks") as error:
        merge_lora_file(network(), file)
    missing, misshapen = (line.strip() for line in str(error.value).splitlines()[1:])
    assert missing == (
        "2 not in the transformer: blocks.0.cross_attn.k_ref.weight, blocks.3.self_attn.q (blocks.3.attn1.to_q.weight)"
    )
    assert misshapen == (
        "2 misshapen: blocks.0.ffn.0: the file updates (32, 64), blocks.0.ffn.net.0.proj.weight is (48, 32), "
        "text_embedding.0: the file updates (32, 48), condition_embedder.text_embedder.linear_1.weight is (32, 24)"
    )


def test_missing_and_ambiguous_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no LoRA file: .*nowhere\.safetensors does not exist"):
        read_lora(tmp_path / "nowhere.safetensors")
    with pytest.raises(FileNotFoundError, match="a folder that holds one"):
        read_lora(tmp_path)
    with pytest.raises(ValueError, match=r"holds several files, name one of them: diffusers\.safetensors, kohya"):
        read_lora(LORA)
