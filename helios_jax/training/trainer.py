"""The trainer: one loop for every method.

    networks -> trained and frozen parameters -> state, fresh or of the newest checkpoint
    batch  -> step (jitted, its state donated) -> numbers, checkpoints, validation

A step is a pure function of (state, batch): the draws of sample i of step n follow from fold_in(fold_in(seed, n), i),
whatever the devices, processes and microbatches. A run that is stopped in any way and started again with the same
command goes on bit for bit as if it had not been.
"""

import contextlib
import dataclasses
import functools
import math
import pathlib
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from helios_jax.parallel.memory import compiler_options
from helios_jax.training.checkpoints import Checkpoints, check_settings, write_settings
from helios_jax.training.experiment import MAY_CHANGE, Experiment
from helios_jax.training.flops import peak_flops, training_flops
from helios_jax.training.metrics import JsonLines, MetricWriter, TensorBoard, Writers
from helios_jax.training.overrides import as_json
from helios_jax.training.params import Params, unflatten
from helios_jax.training.sharding import data_shard, microbatches, partition_specs, put_batch
from helios_jax.training.state import TrainState, abstract_state, initial_state, split_params
from helios_jax.typing import Array, Float, Int, Key, Path

PREEMPTED = 75
"""Exit code of a run that was told to stop (SIGTERM) and saved its state: start it again (EX_TEMPFAIL)."""

Metrics = dict[str, Float[Array, ""]]
Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def train(experiment: Experiment, workdir: Path) -> int:
    """Runs an experiment, or goes on with it.

    Args:
        experiment: What to do.
        workdir: Folder of the run: settings, checkpoints, metrics, validation and the product.

    Returns:
        0 when it is finished, ``PREEMPTED`` when it was told to stop.

    Raises:
        ValueError: Settings that cannot work, or that differ from those the run was begun with.
        FileNotFoundError: Weights or data are missing.
        FloatingPointError: Loss or gradient is not finite, with ``on_nan="stop"``.
        OSError: A checkpoint could not be written.
    """
    workdir = pathlib.Path(workdir).resolve()
    if experiment.validation is not None and jax.process_count() > 1:
        raise ValueError("validation runs in one process: switch it off with --config.validation=none")
    settings = as_json(experiment)
    check_settings(workdir, settings, may_change=MAY_CHANGE)

    # Devices and data.
    mesh = experiment.mesh.build()
    data = experiment.data.batches(experiment.batch_size, data_shard(mesh), experiment.seed)

    # Networks, and what is trained of them.
    networks = experiment.initial_networks(mesh)
    validate, every = None, 0
    if experiment.validation is not None:
        every = experiment.validation.every
        validate = experiment.validation.prepare(experiment.product, networks, mesh)
    graph, trainable, frozen = split_params(networks, experiment.trainable, mesh)
    del networks
    report(f"{_count(trainable)} parameters are trained and {_count(frozen)} are frozen, on {dict(mesh.shape)}")

    # State.
    optimizer = experiment.optimizer.build(trainable, experiment.steps)
    folder, policy = workdir / "checkpoints", {"keep": experiment.keep_checkpoints, "keep_every": experiment.keep_every}
    with Checkpoints(folder, **policy) as checkpoints, _preemption() as preempted:
        if checkpoints.steps:
            abstract = abstract_state(trainable, frozen, optimizer, experiment.ema, mesh)
            del trainable
            state = checkpoints.restore(abstract, data)
            report(f"going on from step {int(state.step)} of {experiment.steps}")
        else:
            state = initial_state(trainable, frozen, optimizer, experiment.ema, mesh)
            del trainable
        del frozen
        if (first := int(state.step)) >= experiment.steps:
            report(f"{workdir} has all of its {experiment.steps} steps")

        # Loop.
        write_settings(workdir, settings)
        step = compiled_step(experiment, graph, optimizer, state, mesh)
        with Log(experiment, workdir) as log:
            for done in range(first + 1, experiment.steps + 1):
                batch = put_batch(next(data), experiment.batch_size, mesh)
                log.measure(graph, batch, state)
                state, metrics = step(state, batch)
                log.add(done, metrics)
                stop = preempted(done)
                if stop or done % experiment.checkpoint_every == 0 or done == experiment.steps:
                    log.flush()
                    checkpoints.save(state, data, step=done, wait=stop)
                if stop:
                    report(f"told to stop: saved after step {done}; the same command goes on from there")
                    return PREEMPTED
                if validate is not None and done % every == 0:
                    with log.pause():
                        files = validate(unflatten(graph, state.averaged_params), workdir / "validation" / str(done))
                    report(f"step {done}: wrote {', '.join(str(file) for file in files)}")
        checkpoints.wait()
    export(experiment, graph, state, workdir / "product" / str(int(state.step)))
    return 0


def compiled_step(
    experiment: Experiment, graph: nnx.GraphDef, optimizer: optax.GradientTransformation, state: TrainState, mesh: Mesh
) -> Step:
    """``make_step`` for states like this one, which it takes over."""
    shardings = jax.tree.map(lambda array: array.sharding, state)
    options = compiler_options(experiment.remat)
    step = make_step(experiment, graph, optimizer, mesh)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None), compiler_options=options)


def make_step(experiment: Experiment, graph: nnx.GraphDef, optimizer: optax.GradientTransformation, mesh: Mesh) -> Step:
    """The training step: gradients of all microbatches, one update.

    Where loss or gradient is not finite the update is left out, and the metric "skipped" is 1.
    """
    method, ema, count = experiment.method, experiment.ema, experiment.accumulation
    learning_rate = experiment.optimizer.learning_rates(experiment.steps)

    def loss(trainable: Params, frozen: Params, batch: Any, keys: Key[Array, " B"]) -> tuple[Array, Metrics]:
        value, metrics = method.loss(unflatten(graph, trainable | frozen), batch, keys, experiment.execution)
        return value, {"loss": value, **metrics}

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        gradient = functools.partial(jax.grad(loss, has_aux=True), state.trainable, state.frozen)
        keys = sample_keys(experiment.seed, state.step, experiment.batch_size)
        leaves, structure = jax.tree.flatten((batch, keys))
        pieces = microbatches(leaves, partition_specs((batch, keys)), count, mesh)

        def accumulate(sums: Any, piece: list[Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, gradient(*structure.unflatten(piece))), None

        first = structure.unflatten([leaf[0] for leaf in pieces])
        if count == 1:  # without a loop, whose body XLA would compile to slower code, on CPUs by far
            gradients, metrics = gradient(*first)
        else:
            zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient, *first))
            sums, _ = jax.lax.scan(accumulate, zeros, pieces)
            gradients, metrics = jax.tree.map(lambda total: total / count, sums)

        norm = optax.tree.norm(gradients)
        updates, kept = optimizer.update(gradients, state.optimizer, state.trainable)
        trainable: Any = optax.apply_updates(state.trainable, updates)
        average = {} if ema is None else ema.update(state.ema, trainable, state.step + 1)
        new = dataclasses.replace(state, trainable=trainable, optimizer=kept, ema=average)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), *(_without_frozen(s) for s in (new, state)))
        new = dataclasses.replace(new, step=state.step + 1, frozen=state.frozen)
        extra = {"gradient_norm": norm, "learning_rate": learning_rate(state.step), "skipped": 1.0 - finite}
        return new, metrics | extra

    return step


def sample_keys(seed: int, step: Int[Array, ""] | int, batch_size: int) -> Key[Array, " {batch_size}"]:
    """The key of every sample of a global batch."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch_size))


def export(experiment: Experiment, graph: nnx.GraphDef, state: TrainState, folder: pathlib.Path) -> None:
    """Writes the product, of the moving averages if there are any, unless it is there. One process does it."""
    from jax.experimental import multihost_utils

    params = state.averaged_params
    if jax.process_count() > 1:
        params = {path: multihost_utils.process_allgather(array, tiled=True) for path, array in params.items()}
    if jax.process_index() == 0 and not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        experiment.product.export(unflatten(graph, params), partial)
        partial.rename(folder)
        report(f"wrote {folder}")
    multihost_utils.sync_global_devices("export")


class Log:
    """The numbers of a run: means over windows of steps, to files and as lines; a context manager.

    The numbers of a step are fetched when the next one has been dispatched, so that devices never wait for the log.
    """

    def __init__(self, experiment: Experiment, workdir: pathlib.Path) -> None:
        self._experiment = experiment
        self._writer: MetricWriter = Writers([])
        if jax.process_index() == 0:
            self._writer = Writers([JsonLines(workdir), TensorBoard(workdir)])
        self._pending: tuple[int, Metrics] | None = None
        self._window: list[dict[str, float]] = []
        self._clock: float | None = None  # starts when the first step, which compiles, is done
        self._timed = 0  # steps of the window on the clock
        self._flops: float | None = None
        self._measured = False

    def measure(self, graph: nnx.GraphDef, batch: Any, state: TrainState) -> None:
        """Notes how much arithmetic a sample takes; the first call counts."""
        if not self._measured:
            networks = unflatten(graph, state.params)
            self._flops = training_flops(self._experiment.method, networks, batch, state)
            self._measured = True

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the numbers of a step, which may still be under way."""
        self.flush()
        self._pending = step, metrics

    def flush(self) -> None:
        """Waits for the numbers taken last.

        Raises:
            FloatingPointError: They are not finite, and training is to stop then.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in metrics.items()}
        if values["skipped"]:
            problem = (
                f"loss {values['loss']:g} or gradient norm {values['gradient_norm']:g} is not finite at step {step}"
            )
            if self._experiment.on_nan == "stop":
                raise FloatingPointError(
                    f"{problem}; a lower learning rate or more warm-up may help, --config.on_nan=skip leaves such "
                    "updates out"
                )
            report(f"{problem}: update left out")
        self._window.append(values)
        self._timed += self._clock is not None
        if step % self._experiment.log_every == 0 or step == self._experiment.steps:
            self._write(step)
        if self._clock is None:
            self._clock = time.perf_counter()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside is not training: its time does not count."""
        self.flush()
        start = time.perf_counter()
        yield
        if self._clock is not None:
            self._clock += time.perf_counter() - start

    def _write(self, step: int) -> None:
        """Ends a window."""
        names = self._window[0].keys()
        finite = [values for values in self._window if not values["skipped"]]
        means = {name: sum(values[name] for values in finite) / max(1, len(finite)) for name in names}
        if not finite:
            means = dict.fromkeys(names, math.nan)
        means["skipped"] = float(len(self._window) - len(finite))
        means["memory_gib"] = _memory_gib()
        if self._clock is not None:
            now = time.perf_counter()
            means["samples_per_second"] = self._timed * self._experiment.batch_size / (now - self._clock)
            self._clock, self._timed = now, 0
            peak = peak_flops()
            if self._flops is not None and peak is not None:
                means["mfu"] = means["samples_per_second"] * self._flops / peak
        self._window = []
        self._writer.write(step, means)
        report(_line(step, self._experiment.steps, means))

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            if error is None:
                self.flush()
        finally:
            self._writer.close()


def report(line: str) -> None:
    """Prints a line, once for all processes."""
    if jax.process_index() == 0:
        print(line, flush=True)


def _line(step: int, steps: int, values: dict[str, float]) -> str:
    parts = [f"step {step}/{steps}", f"loss {values['loss']:.4f}", f"gradient {values['gradient_norm']:.3g}"]
    parts.append(f"lr {values['learning_rate']:.2e}")
    if "samples_per_second" in values:
        parts.append(f"{values['samples_per_second']:.3g} samples/s")
    if "mfu" in values:
        parts.append(f"MFU {100 * values['mfu']:.1f} %")
    if values["skipped"]:
        parts.append(f"{values['skipped']:.0f} skipped")
    return ", ".join([*parts, f"{values['memory_gib']:.2f} GiB"])


def _memory_gib() -> float:
    """Peak memory of the first device; of the process where devices do not tell (CPU)."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _count(params: Params) -> str:
    """Number of parameters, readable."""
    count = sum(array.size for array in params.values())
    return f"{count / 1e6:,.1f}M" if count >= 10**5 else f"{count:,}"


def _without_frozen(state: TrainState) -> TrainState:
    return dataclasses.replace(state, frozen={})


@contextlib.contextmanager
def _preemption() -> Iterator[Callable[[int], bool]]:
    """Gives a function of the step that says whether to stop: after a SIGTERM, at one step in all processes."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        yield multihost_utils.reached_preemption_sync_point
        return
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
        yield lambda _: bool(told)
    finally:
        signal.signal(signal.SIGTERM, before)
