"""Placement of batches and parameters. Runs on several devices are in trainer_processes_test.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from helios_jax.training.batch import LatentBatch, PromptBatch, VideoBatch
from helios_jax.training.sharding import MeshShape, data_shard, microbatches, partition_specs, put_batch


class Device:
    def __init__(self, process_index):
        self.process_index = process_index


class FakeMesh:
    """What ``data_shard`` reads of a mesh; ``processes`` has the process of every device [data, fsdp, context]."""

    def __init__(self, processes):
        self.devices = np.vectorize(Device, otypes=[object])(np.array(processes))
        self.shape = dict(zip(("data", "fsdp", "context"), self.devices.shape, strict=True))


@pytest.mark.parametrize(
    ("processes", "shards"),
    [
        ([[[0], [0]], [[1], [1]]], [(0, 2), (1, 2)]),  # each process has half of the batch
        ([[[0], [1], [2], [3]]], [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ([[[0, 1]]], [(0, 1), (0, 1)]),  # two processes share every sample
        ([[[0, 0], [1, 1]]], [(0, 2), (1, 2)]),
    ],
)
def test_processes_load_what_their_devices_hold(processes, shards, monkeypatch):
    found = []
    for index in range(len(shards)):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        found.append(data_shard.__wrapped__(FakeMesh(processes)))
    assert found == shards


def test_scattered_shares_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    with pytest.raises(ValueError, match=r"holds parts \[0, 2\] of 4"):
        data_shard.__wrapped__(FakeMesh([[[0], [1], [0], [1]]]))


def test_one_axis_takes_the_devices_that_are_left():
    mesh = MeshShape(data=-1, fsdp=1).build()
    assert dict(mesh.shape) == {"data": jax.device_count(), "fsdp": 1, "context": 1}
    with pytest.raises(ValueError, match="their product must be that number"):
        MeshShape(data=jax.device_count() + 1).build()
    with pytest.raises(ValueError, match=r"mesh.fsdp=0 must be at least 1"):
        MeshShape(fsdp=0)
    with pytest.raises(ValueError, match=r"mesh.data=-1, mesh.fsdp=-1 and mesh.context=1: only one may be -1"):
        MeshShape(data=-1)


def test_batches_must_divide_over_the_mesh():
    devices = np.array(jax.devices()[:1] * 1).reshape(1, 1, 1)
    mesh = Mesh(devices, ("data", "fsdp", "context"), axis_types=(AxisType.Auto,) * 3)
    placed = put_batch({"x": np.arange(6.0).reshape(3, 2)}, 3, mesh)
    np.testing.assert_array_equal(placed["x"], np.arange(6.0).reshape(3, 2))


def test_microbatches_take_every_so_manieth_sample():
    mesh = MeshShape().build()
    keys = jax.random.split(jax.random.key(0), 6)
    arrays = jnp.arange(6), keys
    split, split_keys = jax.jit(lambda *arrays: microbatches(arrays, partition_specs(arrays), 3, mesh))(*arrays)
    np.testing.assert_array_equal(split, [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(jax.random.key_data(split_keys)[1], jax.random.key_data(keys)[jnp.array([1, 4])])


def test_batches_say_which_of_their_arrays_are_clips():
    """Rows of clips are split over context, by the batch's own statement and not by the number of axes."""
    samples, clips = PartitionSpec(("data", "fsdp")), PartitionSpec(("data", "fsdp"), None, "context")
    clip, flat = np.zeros((2, 1, 4, 4, 3), np.float32), np.zeros((2, 5, 7), np.float32)
    latents = LatentBatch(target=clip, history=clip, anchor=clip, text=PromptBatch(embeds=flat))
    keys = jax.random.split(jax.random.key(0), 2)
    assert partition_specs((latents, keys)) == [clips, clips, clips, samples, samples]
    assert partition_specs(VideoBatch(frames=clip.astype(np.uint8))) == [clips]
    assert partition_specs({"x": clip}) == [samples]
    assert len(jax.tree.leaves((latents, keys))) == 5
