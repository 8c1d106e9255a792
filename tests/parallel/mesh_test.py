"""Sampling on meshes of four devices equals sampling on one; run in a process of its own with virtual devices."""

import json
import math
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

DATA = pathlib.Path(__file__).parents[1] / "parity" / "data" / "pipelines"
MESHES = {"flat": ((4,), ("fsdp",)), "square": ((2, 2), ("data", "fsdp"))}
NAMES = [
    (("fsdp", "model"), ["fsdp", "model"]),
    (("data", "fsdp"), ["fsdp"]),
    (("data", "fsdp", "context"), ["fsdp"]),
    (("data", "context"), None),
]
"""Axes of a mesh of eight devices, and those that shard [4096, 5120]."""

SHAPES = [
    ((40, 5120, 13824), [None, None, ["fsdp"]]),
    ((40, 13824, 5120), [None, ["fsdp"], None]),
    ((40, 5120), [None, ["fsdp"]]),
    ((4096, 5120), [None, ["fsdp"]]),
    ((4104, 513), [["fsdp"], None]),
    ((4096, 16, 9), [None, ["fsdp"], None]),
    ((65536,), [["fsdp"]]),
    ((65543,), []),
    ((40, 64), []),
]


def spec_of(sharding) -> list[list[str] | None]:
    """Mesh axes of each array axis."""
    return [None if part is None else [part] if isinstance(part, str) else list(part) for part in sharding.spec]


def report_shardings() -> dict:
    """Partition specs of some shapes on eight devices, and how much of the published transformer is replicated."""
    import jax
    from flax import nnx

    from helios_jax.config import TransformerConfig
    from helios_jax.models import HeliosTransformer
    from helios_jax.parallel.mesh import parameter_sharding

    mesh = jax.make_mesh((8,), ("fsdp",))
    sizes = {True: 0, False: 0}
    model = nnx.eval_shape(lambda: HeliosTransformer(TransformerConfig.helios_14b(), rngs=nnx.Rngs(0)))
    for leaf in jax.tree.leaves(nnx.state(model)):
        sizes[parameter_sharding(leaf.shape, mesh).is_fully_replicated] += math.prod(leaf.shape)
    return {
        "by name": [
            spec_of(parameter_sharding((4096, 5120), jax.make_mesh((4, 2, 1)[: len(names)], names)))
            for names, _ in NAMES
        ],
        "specs": [spec_of(parameter_sharding(shape, mesh)) for shape, _ in SHAPES],
        "replicated": sizes[True],
        "sharded": sizes[False],
    }


def report_video(folder: str, mesh_name: str | None, expected: dict, compiled: list[str]) -> dict:
    """Samples a video from text and one from an image; compares them with ``expected`` or fills it."""
    import jax
    import numpy as np

    import helios_jax as hx

    mesh = None if mesh_name is None else jax.make_mesh(*MESHES[mesh_name], devices=jax.devices()[:4])
    pipe = hx.HeliosPipeline.from_pretrained(folder, dtype="float32", vae_dtype="float32", mesh=mesh)
    leaves = jax.tree.leaves((pipe.transformer, pipe.vae, pipe.text_encoder))
    sharded = {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): spec_of(leaf.sharding)
        for path, leaf in jax.tree_util.tree_leaves_with_path(pipe.transformer.params)
        if not leaf.sharding.is_fully_replicated
    }
    image = np.linspace(0, 1, 64 * 64 * 3, dtype=np.float32).reshape(64, 64, 3)
    arguments = {"height": 64, "width": 64, "steps": (1, 1, 1), "max_text_tokens": 8, "progress": False}
    compiled.clear()
    errors = {}
    tasks = {"text": {"num_frames": 66}, "image": {"num_frames": 66, "image": image}}
    if mesh_name is not None:  # compiling for a mesh takes a while; each task once is enough
        del tasks["text" if mesh_name == "flat" else "image"]
    for task, start in tasks.items():
        out = pipe("a fox", **start, **arguments)
        reference = expected.setdefault(task, out)
        errors[task] = {
            "latents": float(np.linalg.norm(out.latents - reference.latents) / np.linalg.norm(reference.latents)),
            "pixels": int(np.abs(out.frames.astype(int) - reference.frames).max()),
        }
    step_programs = compiled.count("jit(denoise_step)")
    compiled.clear()
    pipe("a dog", seed=1, **next(iter(tasks.values())), **arguments)
    return {
        "errors": errors,
        "sharded": sharded,
        "bytes": sum(leaf.nbytes for leaf in leaves),
        "bytes_per_device": sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves),
        "step_programs": step_programs,
        "compiled_later": compiled[:],
    }


def main(folder: str) -> None:
    """Prints as JSON what the tests below check."""
    import jax

    from helios_jax.parallel import mesh

    compiled, expected = [], {}

    def listen(event: str, _: float, **facts: str) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(facts["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    report = {"shardings": report_shardings()}
    mesh.MIN_SHARDED_SIZE = 64  # the recorded parameters are far below the real limit
    for name in (None, *MESHES):
        report[name or "one"] = report_video(folder, name, expected, compiled)
    print(json.dumps(report))


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("distilled")
    for part in (DATA / "checkpoint").iterdir():
        (folder / part.name).symlink_to(part)
    shutil.copytree(DATA / "distilled", folder, dirs_exist_ok=True)
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_shapes_and_their_shardings(report):
    """Shards the largest axis that 8 divides, never the layer axis of a stack; small or odd arrays are replicated."""
    assert report["shardings"]["specs"] == [spec for _, spec in SHAPES]


def test_the_published_transformer_is_sharded_but_for_crumbs(report):
    sizes = report["shardings"]
    assert sizes["replicated"] + sizes["sharded"] == 14_312_427_584
    assert sizes["replicated"] < 1e-4 * sizes["sharded"]


def test_names_of_axes_say_what_shards_parameters(report):
    """The axes data and context hold replicas; every other axis shards."""
    assert report["shardings"]["by name"] == [[] if axes is None else [None, axes] for _, axes in NAMES]


@pytest.mark.parametrize("mesh", MESHES)
def test_video_equals_that_of_one_device(report, mesh):
    for errors in report[mesh]["errors"].values():
        assert errors["latents"] < 1e-4
        assert errors["pixels"] <= 1


@pytest.mark.parametrize("mesh", MESHES)
def test_parameters_are_sharded(report, mesh):
    found, axes = report[mesh], ["fsdp"]
    assert found["bytes"] == report["one"]["bytes"]
    # A quarter or a half, and what is too small or odd to be cut.
    assert found["bytes_per_device"] < {"flat": 0.3, "square": 0.55}[mesh] * found["bytes"]
    sharded = found["sharded"]
    assert sharded["blocks.ffn.proj_in.kernel"] == [None, None, axes]
    assert sharded["blocks.attn1.to_qkv.kernel"] == [None, None, axes]
    assert sharded["patch_embedding.kernel"] == [None, None, None, None, axes]
    assert sharded["proj_out.kernel"] == [None, axes]
    assert len(sharded) == 36
    assert report["one"]["sharded"] == {}


@pytest.mark.parametrize("where", ["one", *MESHES])
def test_one_step_program_per_level(report, where):
    assert report[where]["step_programs"] == 3
    assert report[where]["compiled_later"] == []


if __name__ == "__main__":
    main(sys.argv[1])
