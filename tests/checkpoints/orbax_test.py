"""The Orbax layout: round trips, dtypes, interrupted saves, errors."""

import gc
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
from helios_jax.checkpoints import orbax
from helios_jax.checkpoints.digests import digest
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
        pytest.param("vae", "wan", "float32", marks=pytest.mark.slow),  # lists of modules: integers in parameter paths
        ("transformer", "amplify", "bfloat16"),  # two dtypes
        pytest.param("text_encoder", "wide", "float16", marks=pytest.mark.slow),
    ],
)
def test_round_trip_keeps_values_dtypes_and_structure(tmp_path, component, case, dtype):
    model = hx.load_diffusers(DATA / component / case, component, dtype=dtype)
    save_orbax(model, tmp_path, component)
    assert_same(load_orbax(tmp_path, component), model)
    assert_same(load_orbax(tmp_path / component, component, dtype=dtype), model)


@pytest.mark.slow
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


def data_file(folder: pathlib.Path) -> pathlib.Path:
    """The file that holds the values of the parameters."""
    return max(folder.rglob("ocdbt.process_0/d/*"), key=lambda file: file.stat().st_size)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_one_flipped_bit_is_noticed(vae_folder, tmp_path, place, dtype):
    shutil.copytree(vae_folder / "vae", tmp_path / "vae")
    content = bytearray(data_file(tmp_path).read_bytes())
    content[int(len(content) * place)] ^= 16
    data_file(tmp_path).write_bytes(content)
    with pytest.raises(ValueError, match=r"weights is damaged: what was read is not what was written.*\n.*1 changed: "):
        load_orbax(tmp_path, "vae", dtype=dtype)


def test_the_digests_are_those_of_the_stored_parameters(vae_folder, tmp_path):
    model = hx.load_diffusers(DATA / "vae" / "other", "vae")
    expected = {name: digest(np.asarray(array)) for name, array in parameters(model).items()}
    assert json.loads((vae_folder / "vae" / "digests.json").read_text()) == expected
    shutil.copytree(vae_folder / "vae", tmp_path / "vae")
    lost = sorted(expected)[0]
    (tmp_path / "vae" / "digests.json").write_text(
        json.dumps({name: text for name, text in expected.items() if name != lost})
    )
    with pytest.raises(ValueError, match=f"digests.json is damaged: the digest of {lost} is missing"):
        load_orbax(tmp_path, "vae")
    (tmp_path / "vae" / "digests.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"the digest of {lost} and \d+ others is missing"):
        load_orbax(tmp_path, "vae")
    # Folders of earlier versions have none.
    (tmp_path / "vae" / "digests.json").unlink()
    assert_same(load_orbax(tmp_path, "vae"), model)


@pytest.mark.slow
def test_parameters_that_are_cast_are_read_in_groups(tmp_path, monkeypatch):
    published = DATA / "transformer" / "published"
    save_orbax(hx.load_diffusers(published, "transformer"), tmp_path, "transformer")
    groups = []

    def read(weights, stored, shardings, original=orbax._read):
        groups.append(sum(array.dtype.itemsize * np.prod(array.shape) for array in stored.values()))
        return original(weights, stored, shardings)

    monkeypatch.setattr(orbax, "_read", read)
    monkeypatch.setattr(orbax, "_CAST_BYTES", 50_000)
    ours = load_orbax(tmp_path, "transformer", dtype="bfloat16")
    assert_same(ours, hx.load_diffusers(published, "transformer", dtype="bfloat16"))
    assert len(groups) > 3
    assert sum(groups) == sum(array.size * 4 for array in parameters(ours).values())


@pytest.mark.parametrize(
    "damage", ["no data", "no index", "half an index", "no manifest", "half a manifest", "no names"]
)
def test_damaged_folders_give_one_line(vae_folder, tmp_path, capfd, damage):
    shutil.copytree(vae_folder / "vae", tmp_path / "vae")
    state = tmp_path / "vae" / "weights" / "state"
    [index] = (state / "d").iterdir()
    match damage:
        case "no data":
            shutil.rmtree(data_file(tmp_path).parent)
        case "no index":
            shutil.rmtree(index.parent)
        case "half an index":
            index.write_bytes(index.read_bytes()[:3000])
        case "no manifest":
            (state / "manifest.ocdbt").unlink()
        case "half a manifest":
            (state / "manifest.ocdbt").write_bytes((state / "manifest.ocdbt").read_bytes()[:50])
        case "no names":
            (state / "_METADATA").write_text("{")
    with pytest.raises(ValueError, match=r"vae/weights is not a complete Orbax checkpoint .*; copy it again$") as error:
        load_orbax(tmp_path, "vae")
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)
    # Reads that Orbax has abandoned would print tracebacks when they are freed.
    del error
    gc.collect()
    assert capfd.readouterr().err == ""
