"""Import and export of the published layout, on checkpoints that diffusers and transformers wrote."""

import json
import math
import pathlib
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import helios_jax as hx

DATA = pathlib.Path(__file__).parents[1] / "parity" / "data"
CHECKPOINTS = [
    *(("transformer", case) for case in ("published", "ragged", "amplify", "plain")),
    *(("vae", case) for case in ("wan", "other")),
    *(("text_encoder", case) for case in ("wide", "narrow")),
]
STEM = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


def raw_tensors(folder: pathlib.Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Every stored tensor as dtype, shape and bytes, read by the definition of the file format."""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        content = file.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        for name, info in json.loads(content[8:start]).items():
            if name != "__metadata__":
                low, high = info["data_offsets"]
                tensors[name] = (info["dtype"], info["shape"], content[start + low : start + high])
    return tensors


def edited(folder: pathlib.Path, target: pathlib.Path, edit) -> pathlib.Path:
    """A copy of a component with ``edit`` applied to its tensors."""
    shutil.copytree(folder, target)
    [file] = target.glob("*.safetensors")
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)
    return target


def with_config(folder: pathlib.Path, target: pathlib.Path, **changes) -> pathlib.Path:
    shutil.copytree(folder, target)
    config = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return target


def parameters(module: nnx.Module) -> dict[str, jax.Array]:
    return {".".join(map(str, path)): variable[...] for path, variable in nnx.to_flat_state(nnx.state(module))}


@pytest.mark.parametrize(("component", "case"), CHECKPOINTS)
def test_round_trip_is_byte_equal(tmp_path, component, case):
    published = DATA / component / case / component
    hx.save_diffusers(hx.load_diffusers(published, component), tmp_path, component)
    assert raw_tensors(tmp_path / component) == raw_tensors(published)
    assert sorted(file.name for file in (tmp_path / component).iterdir()) == [
        "config.json",
        f"{STEM[component]}.safetensors",
    ]


@pytest.mark.parametrize(("component", "case"), [("transformer", "published"), ("text_encoder", "wide")])
def test_sharded_export_is_complete(tmp_path, component, case):
    published = DATA / component / case / component
    hx.save_diffusers(hx.load_diffusers(published, component), tmp_path, component, shard_bytes=60_000)
    files = sorted((tmp_path / component).glob("*.safetensors"))
    assert len(files) > 3
    assert [file.name for file in files] == [
        f"{STEM[component]}-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))
    ]
    index = json.loads((tmp_path / component / f"{STEM[component]}.safetensors.index.json").read_text())
    expected = raw_tensors(published)
    assert index["weight_map"].keys() == expected.keys()
    assert index["metadata"]["total_size"] == sum(len(content) for _, _, content in expected.values())
    assert raw_tensors(tmp_path / component) == expected
    again = hx.load_diffusers(tmp_path, component)
    jax.tree.map(np.testing.assert_array_equal, parameters(again), parameters(hx.load_diffusers(published, component)))


def test_bfloat16_rounds_to_nearest_and_keeps_fp32_exceptions_exact():
    folder = DATA / "transformer" / "published" / "transformer"
    model = parameters(hx.load_diffusers(folder, "transformer", dtype="bfloat16"))
    stored = load_file(folder / "diffusion_pytorch_model.safetensors")
    # One parameter of each kind: stacked, fused, single, patch kernel.
    rounded = {
        "blocks.attn2.to_q.kernel": np.stack([stored[f"blocks.{i}.attn2.to_q.weight"].T for i in range(3)]),
        "blocks.attn1.to_qkv.kernel": np.stack(
            [np.concatenate([stored[f"blocks.{i}.attn1.to_{x}.weight"].T for x in "qkv"], axis=1) for i in range(3)]
        ),
        "proj_out.kernel": stored["proj_out.weight"].T,
        "patch_mid.kernel": stored["patch_mid.weight"].transpose(2, 3, 4, 1, 0),
    }
    for name, expected in rounded.items():
        assert model[name].dtype == jnp.bfloat16
        np.testing.assert_array_equal(model[name], expected.astype(ml_dtypes.bfloat16))
    exact = {
        "blocks.norm2.scale": np.stack([stored[f"blocks.{i}.norm2.weight"] for i in range(3)]),
        "blocks.scale_shift_table": np.concatenate([stored[f"blocks.{i}.scale_shift_table"] for i in range(3)]),
        "norm_out.scale_shift_table": stored["norm_out.scale_shift_table"][0],
        "condition_embedder.time_embedder.linear_2.kernel": stored[
            "condition_embedder.time_embedder.linear_2.weight"
        ].T,
    }
    for name, expected in exact.items():
        assert model[name].dtype == jnp.float32
        np.testing.assert_array_equal(model[name], expected)


def test_without_dtype_every_stored_dtype_is_kept(tmp_path):
    """A file that holds half of its weights in another precision comes back as it was."""

    def halve_feed_forward(tensors):
        for name in tensors:
            if ".ffn." in name or name.startswith("patch_"):
                tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)

    folder = edited(DATA / "transformer" / "published" / "transformer", tmp_path / "in", halve_feed_forward)
    model = hx.load_diffusers(folder, "transformer")
    assert model.dtype == jnp.bfloat16  # that of patch_long, the largest tensor
    kinds = {name: array.dtype for name, array in parameters(model).items()}
    assert kinds["blocks.ffn.proj_in.kernel"] == jnp.bfloat16
    assert kinds["blocks.attn1.to_qkv.kernel"] == jnp.float32
    hx.save_diffusers(model, tmp_path, "transformer")
    assert raw_tensors(tmp_path / "transformer") == raw_tensors(folder)


def test_old_and_redundant_names_are_accepted(tmp_path):
    def rename(tensors):
        tensors["scale_shift_table"] = tensors.pop("norm_out.scale_shift_table")
        tensors["blocks.0.attn2.norm_added_q.weight"] = np.ones(32, np.float32)

    published = DATA / "transformer" / "published" / "transformer"
    old = parameters(hx.load_diffusers(edited(published, tmp_path / "old", rename), "transformer"))
    jax.tree.map(np.testing.assert_array_equal, old, parameters(hx.load_diffusers(published, "transformer")))

    def duplicate(tensors):
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].copy()

    published = DATA / "text_encoder" / "wide" / "text_encoder"
    twice = parameters(hx.load_diffusers(edited(published, tmp_path / "twice", duplicate), "text_encoder"))
    jax.tree.map(np.testing.assert_array_equal, twice, parameters(hx.load_diffusers(published, "text_encoder")))


def test_every_missing_unexpected_and_misshapen_tensor_is_listed(tmp_path):
    def spoil(tensors):
        del tensors["blocks.1.attn1.to_q.weight"], tensors["proj_out.bias"]
        tensors["blocks.3.attn1.to_q.weight"] = np.zeros((32, 32), np.float32)
        tensors["gan_heads.weight"] = np.zeros(1, np.float32)
        tensors["blocks.0.ffn.net.2.bias"] = np.zeros(31, np.float32)

    folder = edited(DATA / "transformer" / "published" / "transformer", tmp_path / "spoilt", spoil)
    with pytest.raises(ValueError, match=r"do not fit its config\.json") as error:
        hx.load_diffusers(folder, "transformer")
    assert str(error.value).splitlines()[1:] == [
        "  2 missing: blocks.1.attn1.to_q.weight, proj_out.bias",
        "  2 unexpected: blocks.3.attn1.to_q.weight, gan_heads.weight",
        "  1 misshapen: blocks.0.ffn.net.2.bias is (31,), config.json asks for (32,)",
    ]


def test_a_long_list_is_cut_and_counted(tmp_path):
    folder = with_config(DATA / "transformer" / "published" / "transformer", tmp_path / "deeper", num_layers=4)
    with pytest.raises(ValueError, match=r"  27 missing: (blocks\.3\.[\w.]+, ){12}\.\.\.$"):
        hx.load_diffusers(folder, "transformer")


@pytest.mark.parametrize(
    ("component", "case", "change", "message"),
    [
        ("transformer", "published", {"added_kv_proj_dim": 64}, "added_kv_proj_dim=64; expected None"),
        ("vae", "wan", {"is_residual": True}, "is_residual=True; expected"),
        ("text_encoder", "wide", {"feed_forward_proj": "relu"}, "feed_forward_proj='relu'; expected"),
    ],
)
def test_unsupported_settings_are_refused(tmp_path, component, case, change, message):
    folder = with_config(DATA / component / case / component, tmp_path / "changed", **change)
    with pytest.raises(ValueError, match=message):
        hx.load_diffusers(folder, component)


def test_what_is_not_a_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"unknown component 'unet'; expected one of transformer, vae, text_encoder"):
        hx.load_diffusers(DATA / "vae" / "wan", "unet")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        hx.load_diffusers(tmp_path / "nowhere", "vae")
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        hx.load_diffusers(tmp_path, "vae")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        hx.load_diffusers(tmp_path, "vae")


def test_weights_are_never_overwritten(tmp_path):
    model = hx.load_diffusers(DATA / "vae" / "other", "vae")
    hx.save_diffusers(model, tmp_path, "vae")
    before = raw_tensors(tmp_path / "vae")
    with pytest.raises(FileExistsError, match="vae already holds weights"):
        hx.save_diffusers(model, tmp_path, "vae")
    assert raw_tensors(tmp_path / "vae") == before
    assert sum(math.prod(shape) for _, shape, _ in before.values()) == sum(a.size for a in parameters(model).values())
