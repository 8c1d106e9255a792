"""Distillation on a GPU: networks that wait in host memory change no number."""

import jax
import numpy as np
import pytest
from toy_distillation import HEADS, PAIR, running

from helios_jax.distillation.gan import Gan

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
