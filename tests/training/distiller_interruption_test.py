"""A distillation that is cut off between two of its programs, and one whose gradient is not finite.

Runs of this file share their compiled programs, which are functions of the settings alone.
"""

import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_distillation import WindowData, Windows, short_run

from helios_jax.distillation import pull_back, walk
from helios_jax.training.batch import LatentPair
from helios_jax.training.distiller import PLAYERS, Distilling
from helios_jax.training.trainer import train

pytestmark = pytest.mark.slow

PROGRAMS = (
    "_keys",
    "_scene",
    "_embed",
    "_zeros",
    "_compare",
    "_adversarial",
    "_flow_gradient",
    "_add_gan_gradient",
    "_exit_program",
)
STEPS, CUT = 3, 2


class Watch:
    """Counts the programs that a step calls; can cut a run off before one of them, or spoil a gradient."""

    def __init__(self) -> None:
        self._shared: dict[str, Any] = {}
        self.step, self.calls = 0, 0
        self.cut_before: int | None = None
        """Number of the program in step ``CUT`` before which the run is cut off."""
        self.spoil: tuple[str, int] | None = None
        """Player and step whose gradient has one entry that is not a number."""
        self.states: dict[int, Any] = {}
        """The state after each step."""

    def attach(self, run: Any) -> None:
        """Gives a run the programs that the first one compiled."""
        for name in ("_walk_call", "_exit_call"):
            setattr(run, name, self._shared.setdefault(name, getattr(run, name)))
        for name in PROGRAMS:
            setattr(run, name, self.watched(self._shared.setdefault(name, getattr(run, name))))
        apply = self._shared.setdefault("_apply", run._apply)
        run._apply = {name: self.watched(self._spoiled(name, apply[name])) for name in PLAYERS}

    def watched(self, program: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.step == CUT and self.calls == self.cut_before:
                raise RuntimeError("power cut")
            self.calls += 1
            return program(*args, **kwargs)

        return call

    def _spoiled(self, name: str, apply: Any) -> Any:
        def call(player: Any, gradients: Any, loss: Any) -> Any:
            if self.spoil == (name, self.step):
                path = min(gradients)
                array = gradients[path]
                gradients = gradients | {path: array.at[(0,) * array.ndim].set(jnp.nan)}
            return apply(player, gradients, loss)

        return call


@pytest.fixture(scope="module")
def watch():
    """All runs of this module are watched."""
    watch, compiled, step = Watch(), Distilling._compile, Distilling.step

    def compile_once(run: Any) -> None:
        compiled(run)
        watch.attach(run)

    def watched_step(run: Any, batch: Any, number: int) -> Any:
        watch.step, watch.calls = number, 0
        metrics = step(run, batch, number)
        watch.states[number] = jax.tree.map(np.array, run.items())
        return metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Distilling, "_compile", compile_once)
        patch.setattr(Distilling, "step", watched_step)
        for module, name in ((walk, "_advance"), (walk, "_visit"), (pull_back, "lower")):
            patch.setattr(module, name, watch.watched(getattr(module, name)))
        patch.setattr("helios_jax.training.trainer.as_json", lambda experiment: {"run": "toy"})
        yield watch


def run(workdir: pathlib.Path, **changes: Any) -> int:
    return train(short_run(STEPS, **changes), workdir)


def saved(workdir: pathlib.Path) -> int:
    """Step of the newest checkpoint."""
    return max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def undisturbed(watch, tmp_path_factory):
    """The states of a run that nothing disturbs, and the number of programs in the step that others are cut off in."""
    counts: dict[int, int] = {}

    class Counts(Windows):
        def __next__(self) -> LatentPair:
            counts[watch.step] = watch.calls
            return super().__next__()

    class Counted(WindowData):
        def batches(self, batch_size: int, part: tuple[int, int], seed: int) -> Windows:
            return Counts()

    assert run(tmp_path_factory.mktemp("whole"), data=Counted()) == 0
    return dict(watch.states), counts[CUT]


def test_a_run_that_is_cut_off_between_two_programs_resumes_bit_for_bit(watch, undisturbed, tmp_path):
    """The same run is cut off again and again, each time five programs later in the step, and then finishes."""
    states, count = undisturbed
    assert count > 20
    for number in range(0, count, 5):
        watch.cut_before = number
        with pytest.raises(RuntimeError, match="power cut"):
            run(tmp_path)
        assert saved(tmp_path) == CUT - 1
    watch.cut_before = None
    watch.states.clear()
    assert run(tmp_path) == 0
    assert list(watch.states) == [2, 3]
    for step, state in watch.states.items():
        jax.tree.map(np.testing.assert_array_equal, state, states[step])


def run_in_process(workdir: pathlib.Path, *kill: str | int) -> int:
    """Distils in a process with parked networks, until it kills itself or to its end; returns the newest checkpoint."""
    script = pathlib.Path(__file__).with_name("killed_distillation.py")
    environment = os.environ | {"PYTHONPATH": str(script.parents[2]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(script), str(workdir), "scheduled", *map(str, kill)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == (-signal.SIGKILL if kill else 0), done.stderr
    return saved(workdir)


def test_a_process_that_is_killed_again_and_again_resumes_bit_for_bit(undisturbed, tmp_path):
    """Before the second update of the generator, before that of the critic, and in the checkpoint after them."""
    assert run_in_process(tmp_path, "_zeros", 1) == 1
    assert run_in_process(tmp_path, "_add_gan_gradient", 0) == 1
    assert run_in_process(tmp_path, "checkpoint", 2) == 1
    assert run_in_process(tmp_path) == STEPS
    states, _ = undisturbed
    found = dict(np.load(tmp_path / "product" / str(STEPS) / "params.npz"))
    expected = states[STEPS]["generator"]["ema"]
    assert expected.keys() <= found.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


@pytest.mark.parametrize("player", PLAYERS)
def test_a_gradient_that_is_not_finite_stops_the_run_before_it_is_saved(watch, undisturbed, tmp_path, player):
    """The message names player and step. The checkpoint before it is the undisturbed one, and the run can go on."""
    states, _ = undisturbed
    watch.spoil = player, 3
    problem = rf"^{player} gradient norm nan, norm of the update nan: not finite at step 3; a lower learning rate"
    with pytest.raises(FloatingPointError, match=problem):
        run(tmp_path, on_nan="stop")
    assert saved(tmp_path) == 2
    watch.spoil = None
    watch.states.clear()
    assert run(tmp_path, on_nan="stop") == 0
    assert list(watch.states) == [3]
    jax.tree.map(np.testing.assert_array_equal, watch.states[3], states[3])
