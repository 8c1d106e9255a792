"""Checkpoints of training that are damaged in every file: one clear line, or exactly what was written."""

import os
import pathlib
import random
import shutil
import sys

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "training"))

from toy_training import ToyIterator, ToyStart, toy_experiment

from helios_jax.training.checkpoints import Checkpoints
from helios_jax.training.descent import procedure_of
from helios_jax.training.finite import by_path

pytestmark = [
    pytest.mark.slow,
    # Where Orbax fails it leaves coroutines behind.
    pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*coroutine:pytest.PytestUnraisableExceptionWarning"),
]

FLIPS = 4


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with the checkpoints of steps 3 and 4, and the items of step 4."""
    experiment = toy_experiment(start=ToyStart(width=6))
    running = procedure_of(experiment).start(experiment, experiment.mesh.build(), None)
    folder, data = tmp_path_factory.mktemp("written"), ToyIterator(8, (0, 1), 0)
    with Checkpoints(folder) as checkpoints:
        for step in (3, 4):
            data.set_state({"position": step})
            checkpoints.save(running.items(), data, step=step)
    return folder, running.items()


def mutations(folder):
    """(name, change) of every mutation; ``change`` gets the folder of a copy."""
    draw = random.Random(0)
    for file in sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()):
        size = (folder / file).stat().st_size
        yield f"delete {file}", lambda copy, file=file: (copy / file).unlink()
        yield f"empty {file}", lambda copy, file=file: os.truncate(copy / file, 0)
        yield f"halve {file}", lambda copy, file=file, size=size: os.truncate(copy / file, size // 2)
        for _ in range(FLIPS if size else 0):
            place, bit = draw.randrange(size), 1 << draw.randrange(8)

            def flip(copy, file=file, place=place, bit=bit):
                content = bytearray((copy / file).read_bytes())
                content[place] ^= bit
                (copy / file).write_bytes(content)

            yield f"flip bit {bit} of byte {place} of {file}", flip


def test_damage_is_named_or_harmless(written, tmp_path, capfd):
    folder, items = written
    abstract = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding), items
    )
    refused = harmless = 0
    for name, change in mutations(folder / "4"):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        change(copy / "4")
        data = ToyIterator(8, (0, 1), 0)
        with Checkpoints(copy) as checkpoints:
            if checkpoints.steps == [3]:  # Orbax does not take it for a complete checkpoint.
                refused += 1
            else:
                try:
                    step, found = checkpoints.restore(abstract, data)
                except ValueError as error:
                    text = str(error)
                    assert text.startswith(f"{copy / '4'} is damaged"), f"{name}: {text}"
                    assert text.endswith("to resume from step 3"), f"{name}: {text}"
                    assert len(text.splitlines()) == 1, f"{name}: {text}"
                    assert len(text) < 500, f"{name}: {text}"
                    refused += 1
                else:
                    assert (step, data.position) == (4, 4), name
                    expected = by_path(items)
                    for path, array in by_path(found).items():
                        np.testing.assert_array_equal(array, expected[path], err_msg=f"{name}: {path}")
                    harmless += 1
        shutil.rmtree(copy)
    assert refused > 30
    assert refused + harmless > 80
    assert capfd.readouterr().err == ""
