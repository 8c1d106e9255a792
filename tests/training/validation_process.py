"""A validation and an export as one process of a run (``validation_processes_test.py``):

    python validation_process.py PARTS FOLDER TRAINED,... [PROCESSES INDEX PORT]

PARTS is a checkpoint and TRAINED the networks in training. Arrays are sharded over all processes from 64 elements on.
"""

import pathlib
import sys

import jax
from flax import nnx

from helios_jax.config import PipelineConfig, SchedulerConfig
from helios_jax.models.lora import add_lora
from helios_jax.parallel import mesh as meshes
from helios_jax.training.products import Pipeline
from helios_jax.training.sharding import MeshShape
from helios_jax.training.starts import FromCheckpoint
from helios_jax.training.validation import Samples

if __name__ == "__main__":
    parts, folder, trained, *cluster = sys.argv[1:]
    if cluster:
        count, index, port = map(int, cluster)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", count, index, heartbeat_timeout_seconds=10)
    meshes.MIN_SHARDED_SIZE = 64
    mesh = MeshShape().build()
    samples = Samples(
        every=1,
        prompts=("a", "bc"),
        negative_prompt="d",
        num_frames=33,
        height=64,
        width=64,
        steps=(2, 1, 1),
        guidance_scale=2.0,
        max_text_tokens=8,
    )
    product = Pipeline(
        parts=parts,
        config=PipelineConfig(is_cfg_zero_star=True),
        scheduler=SchedulerConfig.mid(),
        dtype="float32",
        vae_dtype="float32",
    )
    start = FromCheckpoint(folder=parts, parts=tuple(trained.split(",")), dtype="float32")
    networks = start.networks(mesh, jax.random.key(0))
    networks = add_lora(networks, rank=2, targets=("transformer/blocks/attn1/.*",), key=jax.random.key(1))
    layer = networks.transformer.blocks.attn1.to_qkv
    layer.lora_b = nnx.Param(layer.lora_b[...] + 0.05)
    kernel = networks.transformer.blocks.attn1.to_qkv.kernel[...]
    print("sharded over", len(kernel.sharding.device_set), kernel.sharding.shard_shape(kernel.shape) != kernel.shape)
    validate = samples.prepare(product, networks, mesh)
    files = validate(networks, pathlib.Path(folder) / str(jax.process_index())).files
    print(*files, sep="\n")
    (pathlib.Path(folder) / "product").mkdir(exist_ok=True)
    product.export(networks, pathlib.Path(folder) / "product")
