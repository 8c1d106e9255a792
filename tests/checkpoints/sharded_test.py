"""Loading and merging over eight (virtual) devices, in a process of its own."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.slow

DATA = pathlib.Path(__file__).parents[1] / "parity" / "data"

SCRIPT = """
    import json
    import jax
    import numpy as np
    from flax import nnx

    import helios_jax as hx
    from helios_jax.checkpoints.lora_merge import merge_lora_file
    from helios_jax.checkpoints.orbax import load_orbax, save_orbax
    from helios_jax.checkpoints.tensor_files import TensorFolder
    from helios_jax.models.network import Network
    from helios_jax.parallel import mesh as meshes

    DATA, TMP = {data!r}, {tmp!r}
    meshes.MIN_SHARDED_SIZE = 1024  # the checkpoints of the tests are small
    mesh = jax.make_mesh((2, 4), ("fsdp", "model"))
    folder = DATA + "/transformer/published"

    reads = []
    read = TensorFolder.read
    def watched(self, name, index=()):
        part = read(self, name, index)
        reads.append((name, part.size))
        return part
    TensorFolder.read = watched

    def parameters(module):
        return {{".".join(map(str, path)): array[...] for path, array in nnx.to_flat_state(nnx.state(module))}}

    single = parameters(hx.load_diffusers(folder, "transformer", dtype="bfloat16"))
    reads.clear()
    sharded = {{"diffusers": hx.load_diffusers(folder, "transformer", dtype="bfloat16", mesh=mesh)}}
    largest_read = dict(sorted(reads, key=lambda item: item[1]))
    save_orbax(sharded["diffusers"], TMP, "transformer")
    sharded["orbax"] = load_orbax(TMP, "transformer", dtype="bfloat16", mesh=mesh)
    one = Network.of(hx.load_diffusers(folder, "transformer"))
    all_ = Network.of(hx.load_diffusers(folder, "transformer", mesh=mesh))
    lora = DATA + "/lora/diffusers.safetensors"
    merged, sharded["lora"] = parameters(merge_lora_file(one, lora).module), merge_lora_file(all_, lora).module

    report = {{"devices": jax.device_count(), "largest_read": largest_read}}
    for name, module in sharded.items():
        arrays, expected = parameters(module), merged if name == "lora" else single
        wanted = {{key: meshes.parameter_sharding(array.shape, mesh) for key, array in arrays.items()}}
        report[name] = {{
            "wrong shardings": [key for key in arrays if arrays[key].sharding != wanted[key]],
            "specs": {{key: list(array.sharding.spec) for key, array in arrays.items()}},
            "part": {{key: array.addressable_shards[3].data.size / array.size for key, array in arrays.items()}},
            "error": max(
                float(np.abs(np.float32(arrays[key]) - np.float32(expected[key])).max()) for key in arrays
            ),
        }}
    print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    script = SCRIPT.format(data=str(DATA), tmp=str(tmp_path_factory.mktemp("sharded")))
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("source", ["diffusers", "orbax", "lora"])
def test_parameters_arrive_in_their_shardings(report, source):
    assert report["devices"] == 8
    assert report[source]["wrong shardings"] == []
    # The largest axis that eight divides: [L, in, out] of a feed-forward layer, [frames, rows, columns, in, out] of
    # a patch, [in, out] of the time projection; small ones are replicated.
    specs, everything = report[source]["specs"], ["fsdp", "model"]
    assert specs["blocks.ffn.proj_in.kernel"] == [None, None, everything]
    assert specs["blocks.ffn.proj_out.kernel"] == [None, everything, None]
    assert specs["patch_long.kernel"] == [None, None, None, None, everything]
    assert specs["condition_embedder.time_proj.kernel"] == [None, everything]
    assert specs["blocks.norm2.bias"] == []
    parts = report[source]["part"]
    assert parts["blocks.ffn.proj_in.kernel"] == parts["condition_embedder.time_proj.kernel"] == 1 / 8
    assert parts["blocks.norm2.bias"] == 1


@pytest.mark.parametrize("source", ["diffusers", "orbax"])
def test_sharded_values_equal_those_on_one_device(report, source):
    assert report[source]["error"] == 0


def test_sharded_merge_equals_that_on_one_device(report):
    """Products of rank six in fp32 differ in the order of summation at most."""
    assert report["lora"]["error"] <= 1e-6


def test_no_host_copy_is_larger_than_one_device_s_part_of_one_tensor(report):
    """Stacked parameters are read layer by layer, sharded ones one device's part at a time."""
    largest = report["largest_read"]
    assert largest["blocks.0.ffn.net.0.proj.weight"] == 48 * 32 // 8
    assert largest["patch_long.weight"] == 32 * 16 * 4 * 8 * 8 // 8
    assert largest["blocks.0.norm2.bias"] == 32
