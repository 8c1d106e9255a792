"""Distillation on a GPU: networks that wait in host memory change no number, and are saved a part at a time."""

import os
import pathlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_distillation import HEADS, PAIR, running

from helios_jax.distillation.gan import Gan
from helios_jax.parallel.host_memory import on_host
from helios_jax.training import checkpoints

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU as the default device")


def test_scheduled_memory_changes_no_number():
    """After five updates of the critic and two of the generator, with a discriminator from the start."""
    runs = [
        running(memory=memory, gan=Gan(start_step=0, heads=HEADS, crop=1.0)) for memory in ("resident", "scheduled")
    ]
    for number in range(1, 7):
        for run in runs:
            run.step(PAIR, number)
    jax.tree.map(np.testing.assert_array_equal, runs[0].items(), runs[1].items())
    assert runs[1]._residence.report()["generator/frozen"].device == 0


class Peak:
    """The most resident memory of this process inside a ``with`` block, beyond that at its start, in bytes."""

    def __enter__(self) -> "Peak":
        self._start, self.bytes, self._done = resident_bytes(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(2e-3):
            self.bytes = max(self.bytes, resident_bytes() - self._start)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def resident_bytes() -> int:
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class NoData:
    def __next__(self) -> int:
        raise NotImplementedError

    def get_state(self) -> int:
        return 0

    def set_state(self, state: int) -> None:
        pass


def test_a_parked_state_is_saved_and_restored_without_a_copy_of_all_of_it(tmp_path, monkeypatch):
    """4 GiB, of which at most 512 MiB are copied at a time; Orbax and TensorStore may hold a few such parts."""
    part = 256 * 2**20
    monkeypatch.setattr(checkpoints, "MOST_COPIES", 2 * part)
    arrays = {str(number): jnp.full((part // 4,), number, jnp.float32) for number in range(16)}
    state = {"one": {"trainable": on_host(arrays)}}
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), arrays)
    jax.tree.map(lambda leaf: leaf.delete(), arrays)
    with checkpoints.Checkpoints(tmp_path) as saved:
        with Peak() as peak:
            saved.save(state, NoData(), step=1)
        assert peak.bytes < 8 * part
        jax.tree.map(lambda leaf: leaf.delete(), state)
        with Peak() as peak:
            _, found = saved.restore({"one": {"trainable": abstract}}, NoData())
        assert peak.bytes < 8 * part
    for number, array in found["one"]["trainable"].items():
        assert float(array.min()) == float(array.max()) == float(number)
