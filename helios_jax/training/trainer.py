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
import signal
from collections.abc import Callable, Iterator

import jax
from flax import nnx

from helios_jax.training.checkpoints import Checkpoints, check_settings, write_settings
from helios_jax.training.descent import procedure_of
from helios_jax.training.experiment import MAY_CHANGE, Experiment
from helios_jax.training.log import Log, report
from helios_jax.training.overrides import as_json
from helios_jax.training.params import flatten, unflatten
from helios_jax.training.sharding import data_shard, put_batch
from helios_jax.typing import Path

PREEMPTED = 75
"""Exit code of a run that saved its state and stopped on SIGTERM: start it again (EX_TEMPFAIL)."""


def train(experiment: Experiment, workdir: Path) -> int:
    """Runs an experiment, or resumes it.

    Args:
        experiment: The experiment to run.
        workdir: Folder of the run: settings, checkpoints, metrics, validation and the product.

    Returns:
        0 when it is finished, ``PREEMPTED`` when it stopped on SIGTERM.

    Raises:
        ValueError: The settings cannot work, or differ from the ones that the run began with.
        FileNotFoundError: Weights or data are missing.
        FloatingPointError: Loss or gradient is not finite, with ``on_nan="stop"``.
        OSError: A checkpoint could not be written.
    """
    workdir = pathlib.Path(workdir).resolve()
    settings = as_json(experiment)
    check_settings(workdir, settings, may_change=MAY_CHANGE)

    # Devices and data.
    mesh = experiment.mesh.build()
    data = experiment.data.batches(experiment.batch_size, data_shard(mesh), experiment.seed)

    policy = {"keep": experiment.keep_checkpoints, "keep_every": experiment.keep_every}
    with Checkpoints(workdir / "checkpoints", **policy) as checkpoints:
        # Networks and state.
        restore, first = None, 0
        if checkpoints.steps:
            restore, first = functools.partial(checkpoints.restore, data=data), checkpoints.steps[-1]
        running = procedure_of(experiment).start(experiment, mesh, restore)
        validate, every = None, 0
        if experiment.validation is not None:
            every = experiment.validation.every
            validate = experiment.validation.prepare(experiment.product, running.networks(), mesh)
        if restore is not None:
            report(f"resuming from step {first} of {experiment.steps}")
        if first >= experiment.steps:
            report(f"all {experiment.steps} steps of {workdir} are done")

        # The settings are written only now: a run that could not begin must not fix them.
        write_settings(workdir, settings)

        with _preemption() as preempted, Log(experiment, workdir) as log:
            for done in range(first + 1, experiment.steps + 1):
                batch = put_batch(next(data), experiment.batch_size, mesh)
                if done == first + 1:
                    log.flops = running.flops(batch)
                log.add(done, running.step(batch, done))
                stop = preempted(done)
                if stop or done % experiment.checkpoint_every == 0 or done == experiment.steps:
                    # The log first: with on_nan="stop" it raises here, before values that are not finite are saved.
                    log.flush()
                    checkpoints.save(running.items(), data, step=done, wait=stop)
                if stop:
                    report(f"stopping on SIGTERM: saved after step {done}; the same command resumes from there")
                    return PREEMPTED
                if validate is not None and done % every == 0:
                    with log.pause():
                        files = validate(running.networks(), workdir / "validation" / str(done))
                    report(f"step {done}: wrote {', '.join(str(file) for file in files)}")
        checkpoints.wait()
    export(experiment, running.networks(), workdir / "product" / str(max(first, experiment.steps)))
    return 0


def export(experiment: Experiment, networks: nnx.Module, folder: pathlib.Path) -> None:
    """Writes the product unless it exists; only the first process writes."""
    from jax.experimental import multihost_utils

    graph, params = flatten(networks)
    # Gathering is collective: every process takes part, although only the first one writes.
    if jax.process_count() > 1:
        params = {path: multihost_utils.process_allgather(array, tiled=True) for path, array in params.items()}
    if jax.process_index() == 0 and not folder.exists():
        # Renamed when complete, so that a folder of this name always holds a whole product.
        partial = folder.with_name(f"{folder.name}.partial")
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        experiment.product.export(unflatten(graph, params), partial)
        partial.rename(folder)
        report(f"wrote {folder}")
    # The other processes must wait: the rest would take the end of a process for its failure.
    multihost_utils.sync_global_devices("export")


@contextlib.contextmanager
def _preemption() -> Iterator[Callable[[int], bool]]:
    """Yields a function of the step that says whether to stop: after a SIGTERM, at the same step in all processes.

    The handler only notes the signal; the running step is finished and saved. A handler that saves could catch the
    state half replaced, and at different steps in different processes.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        # JAX's coordinator handles the signal, and agrees with all processes on a step that none has passed.
        yield multihost_utils.reached_preemption_sync_point
        return
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield lambda _: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)
