"""The trainer: one loop for every procedure.

    settings -> procedure -> players' state, fresh or from the newest checkpoint
    batch -> procedure's step -> log, checkpoints, validation; at the end the product

A run that is stopped in any way and restarted with the same command continues bit for bit as if it had never stopped:
the draws of a step depend on the seed, the step and the sample alone, and a checkpoint holds the players' state and
the position in the data.
"""

import contextlib
import functools
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from helios_jax.checkpoints.digests import digests_of
from helios_jax.safe_files import claimed
from helios_jax.training.checkpoints import Checkpoints, Resumable
from helios_jax.training.descent import procedure_of
from helios_jax.training.experiment import MAY_CHANGE, Experiment, NeedsFiles
from helios_jax.training.finite import by_path, not_finite
from helios_jax.training.log import Log, report
from helios_jax.training.overrides import as_json
from helios_jax.training.params import flatten
from helios_jax.training.preemption import PREEMPTED, Sigterm, noted_sigterm
from helios_jax.training.procedure import Running
from helios_jax.training.run_folder import check_frozen, check_settings, write_frozen, write_settings
from helios_jax.training.sharding import check_batch, data_shard, put_batch
from helios_jax.typing import Path
from helios_jax.user_input import user_path


def train(experiment: Experiment, workdir: Path) -> int:
    """Runs an experiment, or resumes it.

    Args:
        experiment: The experiment to run.
        workdir: Folder of the run: settings, checkpoints, metrics, validation and the product.

    Returns:
        0 when it is finished, ``PREEMPTED`` when it stopped on SIGTERM.

    Raises:
        ValueError: The settings cannot work, or they or the weights differ from the ones that the run began with; or a
            checkpoint is damaged.
        FileNotFoundError: Weights or data are missing.
        FloatingPointError: Loss, gradient or update is not finite, with ``on_nan="stop"`` or ``max_skipped`` times in a
            row; or the weights are not, at the start or at the end.
        OSError: A checkpoint could not be written, or another process trains in ``workdir``.
    """
    workdir = user_path(workdir, "workdir").resolve()
    for folder in (workdir, *(workdir / name for name in ("checkpoints", "product", "validation"))):
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file; choose another folder or move it away")
    settings = as_json(experiment)
    check_settings(workdir, settings, may_change=MAY_CHANGE)
    mesh = experiment.mesh.build()
    check_batch(experiment.batch_size, experiment.accumulation, mesh)
    with noted_sigterm() as sigterm, _only_run(workdir):
        data = experiment.data.batches(experiment.batch_size, data_shard(mesh), experiment.seed)
        for part in (experiment.product, experiment.validation):
            if isinstance(part, NeedsFiles):
                part.check(experiment.start)
        return _Run(experiment, workdir, settings, mesh, data).run(sigterm)


class _Run:
    """A run whose settings are checked and whose folder belongs to this process."""

    def __init__(
        self, experiment: Experiment, workdir: pathlib.Path, settings: Any, mesh: Mesh, data: Resumable
    ) -> None:
        self._experiment, self._workdir, self._settings = experiment, workdir, settings
        self._mesh, self._data = mesh, data

    def run(self, sigterm: Sigterm) -> int:
        """Trains and exports."""
        experiment = self._experiment
        policy = {"keep": experiment.keep_checkpoints, "keep_every": experiment.keep_every}
        with Checkpoints(self._workdir / "checkpoints", **policy) as checkpoints:
            first = checkpoints.steps[-1] if checkpoints.steps else 0
            folder = self._workdir / "product" / str(max(first, experiment.steps))
            if first < experiment.steps and _holds_files(folder):
                raise FileExistsError(
                    f"{folder} is there already, and the run is at step {first}: it would not be replaced. Move it away"
                )
            running = self._begin(checkpoints)
            if first:
                report(f"resuming from step {first} of {experiment.steps}")
            if first >= experiment.steps:
                report(f"all {experiment.steps} steps of {self._workdir} are done")
            elif self._stopped(sigterm) or self._train(running, checkpoints, first, sigterm):
                return PREEMPTED
            checkpoints.wait()
        # The product may need all of the memory, for merged weights and networks that were not trained.
        running.release()
        export(experiment, running.networks(), folder)
        return 0

    def _begin(self, checkpoints: Checkpoints) -> Running:
        """Loads networks and state; in a resumed run, compares them with those that it began with."""
        restore = functools.partial(checkpoints.restore, data=self._data) if checkpoints.steps else None
        running = procedure_of(self._experiment).start(self._experiment, self._mesh, restore)
        frozen = running.frozen()
        if bad := not_finite(frozen if restore else frozen | by_path(running.items())):
            raise FloatingPointError(f"the weights to start from are not finite: {bad}; training cannot repair them")
        found = digests_of(frozen)
        check_frozen(self._workdir, found)
        # Written only now, so that a run that cannot begin leaves no settings to compare with.
        write_frozen(self._workdir, found)
        write_settings(self._workdir, self._settings)
        return running

    def _train(self, running: Running, checkpoints: Checkpoints, first: int, sigterm: Sigterm) -> bool:
        """All steps after the first ones; returns whether a SIGTERM stopped them."""
        experiment, validation, validate = self._experiment, self._experiment.validation, None
        if validation is not None:
            validate = validation.prepare(experiment.product, running.networks(), self._mesh)
        if self._stopped(sigterm):
            return True
        with Log(experiment, self._workdir, checkpoints.skipped) as log:
            for done in range(first + 1, experiment.steps + 1):
                with log.waiting():
                    batch = put_batch(next(self._data), experiment.batch_size, self._mesh)
                if done == first + 1:
                    log.flops = running.flops(batch)
                log.add(done, running.step(batch, done))
                stop = sigterm.stops_after(done)
                if stop or done % experiment.checkpoint_every == 0 or done == experiment.steps:
                    # The log is flushed first: it raises if the run has to stop, before the bad state is saved.
                    log.flush()
                    checkpoints.save(running.items(), self._data, step=done, skipped=log.skipped, wait=stop)
                if stop:
                    report(f"stopping on SIGTERM: saved after step {done}; the same command resumes from there")
                    return True
                if validate is not None and validation is not None and done % validation.every == 0:
                    with log.pause():
                        found = validate(running.networks(), self._workdir / "validation" / str(done))
                        log.show(done, found)
                    report(f"step {done}: wrote {', '.join(str(file) for file in found.files)}")
        return False

    def _stopped(self, sigterm: Sigterm) -> bool:
        """Whether a SIGTERM came before the first step, when there is nothing to save."""
        if jax.process_count() > 1 or not sigterm.received:
            return False  # with several processes ``Sigterm.stops_after`` chooses a common step
        report("stopping on SIGTERM before the first step: nothing is lost; run the same command to start again")
        return True


def export(experiment: Experiment, networks: nnx.Module, folder: pathlib.Path) -> None:
    """Writes the product unless it exists; every process takes part, and the first one writes.

    Raises:
        FloatingPointError: A parameter is not finite.
        OSError: It cannot be written; what was written of it is removed.
    """
    from jax.experimental import multihost_utils

    if bad := not_finite(flatten(networks)[1]):
        raise FloatingPointError(f"{bad} is not finite, so no product is written to {folder}")
    # The first process decides: the others may not see its file system as it does.
    if multihost_utils.broadcast_one_to_all(np.int32(_holds_files(folder))):
        report(f"{folder} is there already and stays as it is; to write it again, move it away")
        return
    # Renamed when complete, so that a folder of this name always holds a whole product.
    partial, first = folder.with_name(f"{folder.name}.partial"), jax.process_index() == 0
    try:
        if first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        experiment.product.export(networks, partial)
        if first:
            partial.rename(folder)
    except OSError as error:
        raise OSError(
            f"the product could not be written to {folder} ({error}). The checkpoints are complete: the same command "
            "writes it again"
        ) from error
    finally:
        if first:
            shutil.rmtree(partial, ignore_errors=True)
    report(f"wrote {folder}")
    # The other processes must wait: the rest would take the end of a process for its failure.
    multihost_utils.sync_global_devices("export")


def _holds_files(folder: pathlib.Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


@contextlib.contextmanager
def _only_run(workdir: pathlib.Path) -> Iterator[None]:
    """Claims the folder of a run: a second process would remove the checkpoints that the first one is writing."""
    if jax.process_index() > 0:
        yield
        return
    new = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        with claimed(workdir / ".lock", f"{workdir} is being trained"):
            yield
    finally:
        # A run that could not begin leaves no folder.
        with contextlib.suppress(OSError):
            for folder in new:
                folder.rmdir()
