"""Lowered kernels on disk: the same code for every process and mesh, found again, replaced when damaged."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from hopper_compiler import compile_for_hopper

from pallas_kernels import lowering
from pallas_kernels.adaln import hopper


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A cache folder, as on a GPU."""
    monkeypatch.setattr(lowering, "_cache_folder", lambda: tmp_path / "kernels")
    monkeypatch.setattr(lowering, "_surroundings", lambda: ("here and now",))
    lowering._from_disk.cache_clear()
    yield tmp_path / "kernels"
    lowering._from_disk.cache_clear()


@pytest.fixture
def norm():
    """A newly decorated kernel, and a list that grows each time it is traced."""
    traces = []

    def traced(*args, **kwargs):
        traces.append(kwargs)
        return hopper.residual_norm.__wrapped__(*args, **kwargs)

    return lowering.lowered_once("num_history", "norm_history", "eps")(traced), traces


def lowered(norm, tokens=8):
    """The code of a program that calls the kernel twice, as a process that has not seen it lowers it."""
    lowering._from_disk.cache_clear()
    x, row = jax.ShapeDtypeStruct((1, tokens, 1024), jnp.bfloat16), jax.ShapeDtypeStruct((1, 1, 1024), jnp.float32)

    def program(x, row):
        options = {"num_history": 0, "norm_history": True, "eps": 1e-6, "gate": None}
        _, y = norm(x, x, scale=row, shift=row, **options)
        return norm(y, x, scale=row, shift=row, **options)

    return jax.jit(program).trace(x, row).lower(lowering_platforms=("cuda",)).as_text()


def test_equal_calls_are_lowered_once_and_never_again(folder, norm):
    call, traces = norm
    first = lowered(call)
    assert first.count("stablehlo.custom_call @mosaic_gpu_v2") == 1
    assert len(traces) == len(list(folder.iterdir())) == 1
    assert lowered(call) == first
    assert len(traces) == 1


def test_other_shapes_and_other_surroundings_have_files_of_their_own(folder, norm, monkeypatch):
    call, traces = norm
    first = lowered(call)
    assert lowered(call, tokens=16) != first
    monkeypatch.setattr(lowering, "_surroundings", lambda: ("elsewhere",))
    assert lowered(call) == first
    assert len(traces) == len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("damage", [lambda code: code[: len(code) // 2], lambda code: b"", lambda code: b"?" * 1000])
def test_a_damaged_file_is_replaced(folder, norm, damage):
    call, traces = norm
    first = lowered(call)
    (file,) = folder.iterdir()
    code = file.read_bytes()
    file.write_bytes(damage(code))
    assert lowered(call) == first
    assert len(traces) == 2
    assert list(folder.iterdir()) == [file]
    assert file.read_bytes() == code


def test_a_folder_that_cannot_be_written_costs_time_only(folder, norm):
    call, traces = norm
    folder.write_text("a file where the folder should be")
    assert "mosaic_gpu_v2" in lowered(call)
    assert len(traces) == 1


def test_a_batch_of_calls_is_one_kernel_with_an_axis_more(folder, norm):
    call, _ = norm
    options = {"num_history": 0, "norm_history": True, "eps": 1e-6, "gate": None}
    x, row = jax.ShapeDtypeStruct((3, 1, 8, 1024), jnp.bfloat16), jax.ShapeDtypeStruct((1, 1, 1024), jnp.float32)

    def program(x, row):
        return jax.vmap(lambda x: call(x, x, scale=row, shift=row, **options))(x)

    text = jax.jit(program).trace(x, row).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("stablehlo.custom_call @mosaic_gpu_v2") == 1
    assert "tensor<3x1x8x1024xbf16>" in text


def test_without_a_cache_nothing_is_written(norm):
    call, traces = norm
    assert lowering._cache_folder() is None
    assert lowered(call) == lowered(call)
    assert len(traces) == 1


MESH_PROGRAM = """
import pathlib, sys
import jax
import jax.numpy as jnp
from jax.extend import backend
from jax.sharding import AxisType, PartitionSpec
from pallas_kernels import lowering
from pallas_kernels.adaln.hopper import residual_norm

folder = pathlib.Path(sys.argv[1]) / "kernels"
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.default_backend = lambda: "gpu"

def layers(x, row):
    def layer(x, _):
        stream, normed = residual_norm(x, x, None, row, row, num_history=0, norm_history=True, eps=1e-6)
        return stream + normed, None
    return jax.lax.scan(layer, x, None, length=2)[0]

def files(function, batch):
    lowering._from_disk.cache_clear()
    x = jax.ShapeDtypeStruct((batch, 8, 1024), "bfloat16")
    row = jax.ShapeDtypeStruct((1, 1, 1024), "float32")
    text = jax.jit(function).trace(x, row).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @mosaic_gpu_v2") == 1, text
    return {file.name: file.read_bytes() for file in folder.iterdir()} if folder.exists() else {}

def forget():
    for file in folder.iterdir():
        file.unlink()

def mesh(devices, kind=AxisType.Auto):
    return jax.make_mesh((devices,), ("data",), axis_types=(kind,), devices=jax.devices()[:devices])

alone = files(layers, 1)
assert len(alone) == 1
split, everywhere = PartitionSpec("data"), PartitionSpec()
for check_vma in (True, False):
    for hold in (False, True):
        forget()
        options = {"in_specs": (split, everywhere), "out_specs": split, "check_vma": check_vma}
        if hold:
            with jax.set_mesh(mesh(4)):
                assert files(jax.shard_map(layers, **options), 4) == alone, (check_vma, hold)
        else:
            assert files(jax.shard_map(layers, mesh=mesh(4), **options), 4) == alone, (check_vma, hold)
for kind in (AxisType.Auto, AxisType.Explicit):
    forget()
    with jax.set_mesh(mesh(1, kind)):
        assert files(layers, 1) == alone, kind
forget()
with jax.set_mesh(mesh(4)):
    assert lowering._cache_folder() is None
    assert files(layers, 4) == {}
"""


def test_meshes_share_the_code(tmp_path):
    """The bytes of a file are the same without a mesh, on a mesh of one device, and inside shard_map on four.

    The program scans, so the results must have the type of the operands: different on every device. On a mesh over
    which the compiler divides the work, nothing is kept.
    """
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu", "PATH": ""}
    command = [sys.executable, "-c", MESH_PROGRAM, str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]


PROGRAM = r"""
import pathlib, re, tempfile
from jax.extend import backend
from pallas_kernels import lowering
from pallas_kernels.linear.hopper import linear_hopper

folder = pathlib.Path(tempfile.mkdtemp())
lowering._cache_folder = lambda: folder
backend.get_default_device = lambda: topology.devices[0]

def layers(x, kernels, biases):
    return jax.lax.scan(lambda x, layer: (linear_hopper(x, *layer, activation="gelu"), None), x, (kernels, biases))[0]

operands = array(2944, 5120), array(3, 5120, 5120), array(3, 5120)
text = jax.jit(layers).lower(*operands).compile().as_text()
assert len(list(folder.iterdir())) == 1
# The slice of the stack is part of the call.
assert len(re.findall(r"fusion\(.*kind=kCustom.*calls=%dynamic-slice-fusion", text)) == 1, text
"""


def test_code_from_disk_compiles_to_the_same_kernel():
    report = compile_for_hopper(PROGRAM)
    assert report["kernels"] == 1
    assert report["spilled"] == 0
