"""The Orbax layout: round trips, dtypes, interrupted saves, errors."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from flax import nnx

import helios_jax as hx
from helios_jax.checkpoints.orbax import has_orbax_weights, load_orbax, save_orbax, stored_parameters

DATA = pathlib.Path(__file__).parents[1] / "parity" / "data"


def parameters(module: nnx.Module) -> dict[str, jax.Array]:
    return {".".join(map(str, path)): variable[...] for path, variable in nnx.to_flat_state(nnx.state(module))}


def assert_same(ours: nnx.Module, theirs: nnx.Module) -> None:
    assert nnx.split(ours)[0] == nnx.split(theirs)[0]
    ours, theirs = parameters(ours), parameters(theirs)
    assert {name: array.dtype for name, array in ours.items()} == {name: a.dtype for name, a in theirs.items()}
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("orbax")
    save_orbax(hx.load_diffusers(DATA / "vae" / "other", "vae"), folder, "vae")
    return folder


@pytest.mark.parametrize(
    ("component", "case", "dtype"),
    [
        ("vae", "wan", "float32"),  # lists of modules: integers in parameter paths
        ("transformer", "amplify", "bfloat16"),  # two dtypes
        ("text_encoder", "wide", "float16"),
    ],
)
def test_round_trip_keeps_values_dtypes_and_structure(tmp_path, component, case, dtype):
    model = hx.load_diffusers(DATA / component / case, component, dtype=dtype)
    save_orbax(model, tmp_path, component)
    assert_same(load_orbax(tmp_path, component), model)
    assert_same(load_orbax(tmp_path / component, component, dtype=dtype), model)


def test_dtype_means_what_it_means_for_the_published_layout(tmp_path):
    published = DATA / "transformer" / "published"
    save_orbax(hx.load_diffusers(published, "transformer"), tmp_path, "transformer")
    for dtype in ("bfloat16", "float32", None):
        ours = load_orbax(tmp_path, "transformer", dtype=dtype)
        assert_same(ours, hx.load_diffusers(published, "transformer", dtype=dtype))


def test_relative_folders_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = hx.load_diffusers(DATA / "vae" / "other", "vae")
    save_orbax(model, "here", "vae")
    assert_same(load_orbax("here", "vae"), model)


def test_headers_tell_shapes_and_dtypes(vae_folder):
    model = hx.load_diffusers(DATA / "vae" / "other", "vae")
    headers = {name: (info.shape, info.dtype) for name, info in stored_parameters(vae_folder / "vae").items()}
    assert headers == {name: (array.shape, array.dtype) for name, array in parameters(model).items()}


def test_weights_are_never_overwritten(vae_folder, tmp_path):
    model = hx.load_diffusers(DATA / "vae" / "wan", "vae")
    for save in (save_orbax, hx.save_diffusers):
        with pytest.raises(FileExistsError, match="vae already holds weights"):
            save(model, vae_folder, "vae")
    hx.save_diffusers(model, tmp_path, "vae")
    with pytest.raises(FileExistsError, match="vae already holds weights"):
        save_orbax(model, tmp_path, "vae")


@pytest.mark.slow
def test_interrupted_save_does_not_load_and_can_be_repeated(tmp_path):
    """The process dies after all weights are written, before the final rename."""
    code = f"""
        import os
        import helios_jax as hx
        from helios_jax.checkpoints.orbax import save_orbax

        for name in ("rename", "replace"):
            def dying(source, target, *args, move=getattr(os, name), **kwargs):
                if str(target).endswith("weights"):
                    os._exit(9)
                return move(source, target, *args, **kwargs)
            setattr(os, name, dying)
        save_orbax(hx.load_diffusers({str(DATA / "vae" / "other")!r}, "vae"), {str(tmp_path)!r}, "vae")
    """
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    died = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True)
    assert died.returncode == 9, died.stderr.decode()
    assert list((tmp_path / "vae").iterdir())
    assert not has_orbax_weights(tmp_path / "vae")
    with pytest.raises(FileNotFoundError, match="holds no complete weights/ folder in Orbax's format"):
        load_orbax(tmp_path, "vae")
    model = hx.load_diffusers(DATA / "vae" / "other", "vae")
    save_orbax(model, tmp_path, "vae")
    assert_same(load_orbax(tmp_path, "vae"), model)


def test_parameters_that_do_not_fit_are_listed(vae_folder, tmp_path):
    shutil.copytree(vae_folder / "vae", tmp_path / "vae")
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    config["base_dim"] *= 2
    config["num_res_blocks"] += 1
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"do not fit the config\.json next to them") as error:
        load_orbax(tmp_path, "vae")
    kinds = [line.split(":")[0].split()[1] for line in str(error.value).splitlines()[1:]]
    assert "missing" in kinds
    assert "misshapen" in kinds
    assert "encoder.conv_in.bias is (" in str(error.value)


def test_missing_and_damaged_parts_are_named(vae_folder, tmp_path):
    with pytest.raises(ValueError, match="unknown component 'unet'"):
        load_orbax(vae_folder, "unet")
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_orbax(tmp_path / "nowhere", "vae")
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load_orbax(tmp_path, "vae")
    shutil.copytree(vae_folder / "vae", tmp_path / "vae")
    shutil.rmtree(tmp_path / "vae" / "weights" / "state")
    with pytest.raises(ValueError, match="is not a complete Orbax checkpoint"):
        load_orbax(tmp_path, "vae")
