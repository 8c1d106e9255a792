"""The name families of LoRA files, dtypes, and files that cannot be used.

Every family is written from the same A, B and alpha, so all files must give the same updates.
"""

import json
import warnings

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from helios_jax.checkpoints.lora_files import read_lora

WAN = {
    "blocks.0.attn1.to_q": "blocks.0.self_attn.q",
    "blocks.11.attn1.to_out.0": "blocks.11.self_attn.o",
    "blocks.2.attn2.to_k": "blocks.2.cross_attn.k",
    "blocks.2.attn2.to_v": "blocks.2.cross_attn.v",
    "blocks.0.ffn.net.0.proj": "blocks.0.ffn.0",
    "blocks.0.ffn.net.2": "blocks.0.ffn.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
}
"""Published name of a layer -> Wan2.1's."""

RNG = np.random.default_rng(0)
FACTORS = {
    layer: (RNG.standard_normal((3, 8)).astype(np.float32), RNG.standard_normal((5, 3)).astype(np.float32))
    for layer in WAN
}
ALPHA = 6.0


def file_of(tmp_path, tensors, metadata=None, name="style.safetensors"):
    file = tmp_path / name
    save_file({key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}, file, metadata=metadata)
    return file


def family(rename, down, up, alpha=".alpha"):
    """The tensors of all layers under the names of one family."""
    tensors = {}
    for layer, (a, b) in FACTORS.items():
        name = rename(layer)
        tensors |= {f"{name}{down}": a, f"{name}{up}": b}
        if alpha:
            tensors[f"{name}{alpha}"] = np.float32(ALPHA)
    return tensors


def flat(layer):
    return layer.replace(".", "_")


AB = (".lora_A.weight", ".lora_B.weight")
DOWN_UP = (".lora_down.weight", ".lora_up.weight")
DEFAULT = (".lora_A.default.weight", ".lora_B.default.weight")
FAMILIES = {
    "diffusers": (lambda x: f"transformer.{x}", *AB),
    "peft": (lambda x: f"base_model.model.{x}", *DEFAULT),
    "peft-of-a-wrapper": (lambda x: f"base_model.model.transformer.{x}", *AB),
    "diffusers-down-up": (lambda x: f"transformer.{x}", *DOWN_UP),
    "wan": (lambda x: WAN[x], *AB),
    "comfyui": (lambda x: f"diffusion_model.{WAN[x]}", *AB),
    "comfyui-down-up": (lambda x: f"diffusion_model.{WAN[x]}", *DOWN_UP),
    "comfyui-checkpoint": (lambda x: f"model.diffusion_model.{WAN[x]}", *DOWN_UP),
    "diffsynth": (lambda x: WAN[x], *DEFAULT),
    "diffsynth-pipe": (lambda x: f"pipe.dit.{WAN[x]}", *DEFAULT),
    "diffsynth-published": (lambda x: f"pipe.dit.{x}", *DEFAULT),
    "kohya": (lambda x: f"lora_unet_{flat(WAN[x])}", *DOWN_UP),
    "kohya-published": (lambda x: f"lora_unet_{flat(x)}", *DOWN_UP),
    "wan-fun": (lambda x: f"lora_unet__{flat(WAN[x])}", *DOWN_UP),
    "kohya-transformer": (lambda x: f"lora_transformer_{flat(x)}", *DOWN_UP),
    "lycoris": (lambda x: f"lycoris_{flat(WAN[x])}", *DOWN_UP),
    "bare-factors": (lambda x: f"diffusion_model.{WAN[x]}", ".lora_A", ".lora_B"),
    "adapter": (lambda x: f"diffusion_model.{WAN[x]}", ".lora_A.my-style.weight", ".lora_B.my-style.weight"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families_give_the_same_updates(tmp_path, name):
    deltas = read_lora(file_of(tmp_path, family(*FAMILIES[name])))
    assert deltas.keys() == {f"{layer}.weight" for layer in FACTORS}
    for layer, (a, b) in FACTORS.items():
        delta = deltas[f"{layer}.weight"]
        assert (delta.weight, delta.rank, delta.shape) == (ALPHA / 3, 3, (5, 8))
        np.testing.assert_array_equal(delta.factors[0], b)
        np.testing.assert_array_equal(delta.factors[1], a)


def test_processors_of_old_diffusers(tmp_path):
    a, b = FACTORS["blocks.0.attn1.to_q"]
    tensors = {
        "transformer.blocks.0.attn1.processor.to_q_lora.down.weight": a,
        "transformer.blocks.0.attn1.processor.to_q_lora.up.weight": b,
        "transformer.blocks.0.attn1.processor.to_out_lora.down.weight": a,
        "transformer.blocks.0.attn1.processor.to_out_lora.up.weight": b,
        "blocks.1.attn2.to_v.lora.down.weight": a,
        "blocks.1.attn2.to_v.lora.up.weight": b,
    }
    deltas = read_lora(file_of(tmp_path, tensors))
    assert {*deltas} == {"blocks.0.attn1.to_q.weight", "blocks.0.attn1.to_out.0.weight", "blocks.1.attn2.to_v.weight"}
    assert {delta.weight for delta in deltas.values()} == {1.0}


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("diffusion_model.blocks.7.diff_m", "blocks.7.scale_shift_table"),
        ("blocks.7.modulation.diff", "blocks.7.scale_shift_table"),
        ("lora_unet__blocks_7.diff_m", "blocks.7.scale_shift_table"),
        ("diffusion_model.head.diff_m", "norm_out.scale_shift_table"),
        ("diffusion_model.head.modulation.diff", "norm_out.scale_shift_table"),
        ("diffusion_model.patch_embedding.diff", "patch_embedding.weight"),
        ("diffusion_model.patch_embedding.diff_b", "patch_embedding.bias"),
        ("patch_short.diff", "patch_short.weight"),
        ("diffusion_model.head.head.diff_b", "proj_out.bias"),
        ("lora_unet_head_head.diff_b", "proj_out.bias"),
        ("diffusion_model.time_projection.1.diff_b", "condition_embedder.time_proj.bias"),
        ("diffusion_model.text_embedding.2.diff", "condition_embedder.text_embedder.linear_2.weight"),
        ("diffusion_model.blocks.0.norm3.diff", "blocks.0.norm2.weight"),
        ("lora_unet_blocks_0_norm3.w_norm", "blocks.0.norm2.weight"),
        ("lora_unet_blocks_0_norm3.b_norm", "blocks.0.norm2.bias"),
        ("diffusion_model.blocks.10.self_attn.norm_q.diff", "blocks.10.attn1.norm_q.weight"),
        ("lora_unet__blocks_10_cross_attn_norm_k.diff", "blocks.10.attn2.norm_k.weight"),
        ("diffusion_model.blocks.3.cross_attn.o.diff_b", "blocks.3.attn2.to_out.0.bias"),
        ("transformer.blocks.3.ffn.net.2.diff_b", "blocks.3.ffn.net.2.bias"),
    ],
)
def test_dense_updates(tmp_path, name, published):
    update = np.arange(6, dtype=np.float32).reshape(2, 3)
    deltas = read_lora(file_of(tmp_path, {name: update}))
    assert {*deltas} == {published}
    assert (deltas[published].weight, deltas[published].rank) == (1.0, None)
    np.testing.assert_array_equal(deltas[published].factors[0], update)


IMAGE = [
    "diffusion_model.blocks.0.cross_attn.k_img.lora_A.weight",
    "diffusion_model.blocks.0.cross_attn.k_img.lora_B.weight",
    "diffusion_model.blocks.0.cross_attn.v_img.diff_b",
    "diffusion_model.blocks.0.cross_attn.norm_k_img.diff",
    "diffusion_model.img_emb.proj.1.lora_A.weight",
    "diffusion_model.img_emb.proj.0.diff_b",
    "lora_unet__blocks_0_cross_attn_k_img.lora_down.weight",
    "lora_unet_blocks_0_cross_attn_v_img.alpha",
    "lora_unet__img_emb_proj_3.lora_up.weight",
    "transformer.blocks.0.attn2.add_k_proj.lora_A.weight",
    "transformer.blocks.0.attn2.add_v_proj.lora_B.weight",
    "transformer.condition_embedder.image_embedder.ff.net.0.proj.lora_A.weight",
]
TEXT = [
    "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha",
    "text_encoder.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight",
    "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q.lora_B.weight",
    "base_model.model.text_encoder.shared.lora_A.weight",
]


@pytest.mark.parametrize("extra", [*IMAGE, *TEXT, "transformer_2.blocks.0.attn1.to_q.lora_A.weight"])
def test_each_tensor_without_a_place_is_skipped(tmp_path, extra):
    tensors = family(*FAMILIES["wan-fun"])
    with pytest.warns(UserWarning, match=r"style\.safetensors: skipped tensors that have no place.*, 1 of "):
        deltas = read_lora(file_of(tmp_path, {**tensors, extra: np.zeros((3, 8), np.float32)}))
    assert {*deltas} == {f"{layer}.weight" for layer in FACTORS}


def test_all_skipped_tensors_give_one_warning(tmp_path):
    extra = dict.fromkeys([*IMAGE, *TEXT], np.zeros((3, 8), np.float32))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_lora(file_of(tmp_path, family(*FAMILIES["comfyui"]) | extra))
    [warning] = caught
    assert f"{len(TEXT)} of a text encoder and {len(IMAGE)} of layers for image conditioning" in str(warning.message)
    assert warning.filename == __file__


def test_the_patch_embedding_of_image_to_video_models_is_skipped(tmp_path):
    extra = {
        "patch_embedding.lora_down.weight": np.zeros((2, 36, 1, 2, 2), np.float32),
        "patch_embedding.lora_up.weight": np.zeros((8, 2, 1, 1, 1), np.float32),
        "patch_embedding.alpha": np.float32(1),
        "patch_embedding.diff_b": np.ones(8, np.float32),
    }
    with pytest.warns(UserWarning, match="3 of layers for image conditioning"):
        deltas = read_lora(file_of(tmp_path, family(*FAMILIES["comfyui"]) | extra))
    assert "patch_embedding.weight" not in deltas
    np.testing.assert_array_equal(deltas["patch_embedding.bias"].factors[0], 1)


@pytest.mark.parametrize("names", [IMAGE, TEXT, IMAGE + TEXT], ids=["image", "text", "both"])
def test_nothing_but_skipped_tensors_is_an_error(tmp_path, names):
    file = file_of(tmp_path, dict.fromkeys(names, np.zeros((3, 8), np.float32)))
    with pytest.raises(ValueError, match=r"style\.safetensors updates nothing in this model"):
        read_lora(file)


@pytest.mark.parametrize(
    "dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.bfloat16, np.float16, float]
)
def test_dtypes(tmp_path, dtype):
    a, b = (np.round(2 * x).astype(dtype) for x in FACTORS["proj_out"])
    content = {"proj_out.lora_A.weight": a, "proj_out.lora_B.weight": b, "proj_out.alpha": np.asarray(6)}
    delta = read_lora(file_of(tmp_path, content))["proj_out.weight"]
    assert delta.weight == 2.0  # alpha is an int64 here, as musubi-tuner's converter writes it
    for found, expected in zip(delta.factors, (b, a), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found.astype(np.float32), expected.astype(np.float32))


GOOD = {"proj_out.lora_A.weight": np.ones((2, 8), np.float32), "proj_out.lora_B.weight": np.ones((5, 2), np.float32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"proj_out.lora_A.weight": np.float32([[1, np.nan]])}, "1 of 2 values of tensor 'proj_out.lora_A.weight' are"),
        ({"proj_out.lora_B.weight": np.full((5, 2), np.inf, np.float16)}, "10 of 10 values of tensor 'proj_out.lora_B"),
        ({"proj_out.alpha": np.float32(np.nan)}, "1 of 1 values of tensor 'proj_out.alpha' are not finite"),
        ({"proj_out.alpha": np.ones(2, np.float32)}, "proj_out (alpha has shape (2,), not one value)"),
        (
            {"proj_out.lora_A.weight": np.ones((2, 8), np.int8)},
            "'proj_out.lora_A.weight' has dtype I8; one of F64",
        ),
        ({"proj_out.lora_A.weight": np.ones((0, 8), np.float32)}, "rank 0 or no values"),
        (dict(zip(GOOD, (np.ones((0, 8), np.float32), np.ones((5, 0), np.float32)), strict=True)), "have rank 0"),
        ({"proj_out.lora_A.weight": np.ones((3, 8), np.float32)}, "B (5, 2) and A (3, 8) do not have one rank"),
        ({"proj_out.lora_B.weight": np.ones((2, 5), np.float32)}, "B (2, 5) and A (2, 8) do not have one rank"),
        ({"proj_out.lora_B.weight": np.ones((5, 2, 3), np.float32)}, "do not have one rank"),
        ({"proj_out.lora_B.weight": np.ones(10, np.float32)}, "B (10,) and A (2, 8) are not matrices"),
        ({"proj_out.lora_A.weight": np.float32(3)}, "are not matrices"),
        ({"proj_out.lora_B.weight": None}, "proj_out (down given; A (lora_down) and B (lora_up) needed)"),
        ({"proj_out.lora_mid.weight": np.ones((2, 2))}, "1 of Tucker-decomposed LoRA, which cannot be merged as LoRA"),
        ({"proj_out.hada_w1_a": np.ones((2, 2))}, "1 of LoHa, which cannot be merged as LoRA: proj_out.hada_w1_a"),
        ({"proj_out.lokr_w2_b": np.ones((2, 2))}, "1 of LoKr, which cannot"),
        ({"proj_out.dora_scale": np.ones((2, 2))}, "1 of DoRA, which cannot"),
        ({"base_model.model.proj_out.lora_magnitude_vector.default.weight": np.ones(2)}, "1 of DoRA, which cannot"),
        ({"proj_out.oft_blocks": np.ones(2)}, "1 of OFT, which cannot"),
        ({"proj_out.set_weight": np.ones(2)}, "1 of replaced weights, which cannot"),
        ({"proj_out.weight": np.ones(2)}, "1 with names that are not understood: proj_out.weight"),
        ({"": np.ones(2)}, "1 with names that are not understood"),
        ({"proj_out.lora_A.other.weight": np.ones((2, 8))}, "1 given twice: proj_out.lora_A."),
    ],
)
def test_files_that_cannot_be_used(tmp_path, change, message):
    tensors = {name: tensor for name, tensor in {**GOOD, **change}.items() if tensor is not None}
    with pytest.raises(ValueError, match=r"style\.safetensors") as error:
        read_lora(file_of(tmp_path, tensors))
    assert message in str(error.value)
    assert str(error.value).count("\n") <= 3


def test_files_that_are_no_files(tmp_path):
    good = file_of(tmp_path, GOOD).read_bytes()
    file = tmp_path / "broken.safetensors"
    for content in (b"", b"PK\x03\x04 not a LoRA", good[:-1], good[:9], b"\xff" * 64, good + b"x"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.safetensors .* is not a complete safetensors file"):
            read_lora(file)
    with pytest.raises(ValueError, match=r"empty\.safetensors holds no tensors"):
        read_lora(file_of(tmp_path, {}, name="empty.safetensors"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is not valid JSON: an object is needed"),
        ('{"lora_alpha": "8"}', "lora_alpha='8' must be a finite number"),
        ('{"lora_alpha": NaN}', "must be a finite number"),
        ('{"alpha_pattern": [1]}', "a mapping from layers to numbers is needed"),
        ('{"alpha_pattern": {"(": 1}}', "not a regular expression"),
        ('{"alpha_pattern": {"proj_out": null}}', "alpha_pattern['proj_out']=None must be a finite number"),
        ('{"peft_type": "LOKR"}', "the adapter is a LOKR, which cannot be merged"),
        ('{"use_dora": true}', "the adapter is a DoRA, which cannot be merged"),
    ],
)
def test_settings_that_cannot_be_used(tmp_path, settings, message):
    with pytest.raises(ValueError, match=r"style\.safetensors") as error:
        read_lora(file_of(tmp_path, GOOD, {"lora_adapter_metadata": settings}))
    assert message in str(error.value)
    (tmp_path / "style.safetensors").unlink()
    (tmp_path / "adapter_config.json").write_text(settings)
    with pytest.raises(ValueError, match=r"adapter_config\.json") as error:
        read_lora(file_of(tmp_path, GOOD))
    assert message in str(error.value)


def test_settings_without_an_alpha_mean_the_rank(tmp_path):
    settings = json.dumps({"lora_alpha": None, "alpha_pattern": None, "peft_type": "LORA"})
    assert read_lora(file_of(tmp_path, GOOD, {"lora_adapter_metadata": settings}))["proj_out.weight"].weight == 1.0
