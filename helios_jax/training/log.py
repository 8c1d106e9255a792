"""The log of a run: means over windows of steps, written to files and printed as lines.

The name of a metric decides how it is treated. "<player>/skipped" is 1 at steps that skipped this player's update; the
other metrics "<player>/..." of such a step need not be finite and stay out of the means. Runs with one player have no
prefix: "skipped", "loss". A step may lack some metrics: a mean is over the steps of the window that have the metric.
Whether a step has "<name>?" is known only on the device: NaN means that it does not. The log writes it as "<name>".
"""

import contextlib
import math
import pathlib
import resource
import time
from collections.abc import Iterator, Mapping

import jax

from helios_jax.training.experiment import Experiment, Findings
from helios_jax.training.flops import peak_flops
from helios_jax.training.metrics import JsonLines, Metrics, MetricWriter, Writers
from helios_jax.training.tensorboard import TensorBoard

SKIPPED = "skipped"

OPTIONAL = "?"
"""Last character of a metric that a step may lack; see the module's docstring."""


class Log:
    """The log of one run; a context manager.

    Args:
        experiment: The experiment.
        workdir: Folder of the run.
        skipped: How many updates of each player were skipped in a row before this log begins.
    """

    def __init__(self, experiment: Experiment, workdir: pathlib.Path, skipped: Mapping[str, int] | None = None) -> None:
        self._experiment = experiment
        self._writer: MetricWriter = Writers([])
        if jax.process_index() == 0:
            self._writer = Writers([JsonLines(workdir), TensorBoard(workdir)])
        self._pending: tuple[int, Metrics, float] | None = None
        self._window: list[dict[str, float]] = []
        self._clock: float | None = None  # starts when the first step, which compiles, is done
        self._timed = 0  # steps of the window on the clock
        self._wait = 0.0  # seconds that the next step waited for its data
        self._waited = 0.0  # sum over the window
        self.skipped: dict[str, int] = dict(skipped or {})
        """How many updates of each player were skipped in a row, up to the last step that was flushed."""
        self.flops: float | None = None
        """Operations of a step per sample, for the utilisation of the hardware."""

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step, which may still be running.

        They are fetched when the next step has been dispatched, so that devices never wait for the log: a fetch blocks
        the host until the step is done, and meanwhile the devices would have nothing queued.
        """
        self.flush()
        self._pending, self._wait = (step, metrics, self._wait), 0.0

    def flush(self) -> None:
        """Waits for the metrics that were added last.

        Raises:
            FloatingPointError: They are not finite, and ``on_nan`` is "stop" or too many updates in a row were skipped.
        """
        if self._pending is None:
            return
        (step, metrics, wait), self._pending = self._pending, None
        self._waited += wait
        values = {name: float(value) for name, value in metrics.items()}
        skipped = skipped_players(values)
        for player in _players(values):
            self.skipped[player] = self.skipped.get(player, 0) + 1 if player in skipped else 0
            if player in skipped:
                self._warn(step, player, values)
        self._window.append(values)
        self._timed += self._clock is not None
        if step % self._experiment.log_every == 0 or step == self._experiment.steps:
            self._write(step)
        if self._clock is None:
            self._clock = time.perf_counter()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Stops the clock during work that is not training."""
        self.flush()
        start = time.perf_counter()
        yield
        if self._clock is not None:
            self._clock += time.perf_counter() - start

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Measures how long the next step waits for its data."""
        start = time.perf_counter()
        yield
        self._wait += time.perf_counter() - start

    def show(self, step: int, found: Findings) -> None:
        """Passes the images, videos and scalars of a validation to the metric writers, scalars as "validation/..."."""
        self._writer.show(step, found.files)
        if found.values:
            self._writer.write(step, {f"validation/{name}": value for name, value in found.values.items()})

    def _warn(self, step: int, player: str, values: Mapping[str, float]) -> None:
        """Reports a skipped update; raises FloatingPointError if the run must stop."""
        names = {"loss": "loss", "gradient_norm": "gradient norm", "update_norm": "norm of the update"}
        found = {text: values[player + name] for name, text in names.items() if player + name in values}
        bad = ", ".join(f"{text} {value:g}" for text, value in found.items() if not math.isfinite(value))
        problem = f"{_label(player)}{bad}: not finite at step {step}"
        advice = "a lower learning rate or more warm-up may help"
        if self._experiment.on_nan == "stop":
            raise FloatingPointError(f"{problem}; {advice}, --config.on_nan=skip skips such updates")
        # A run that is shorter than the limit would end without a single update.
        limit = min(self._experiment.max_skipped, self._experiment.steps)
        if self.skipped[player] >= limit:
            raise FloatingPointError(
                f"{problem}; {self.skipped[player]} updates in a row were skipped (max_skipped={limit}), so the run "
                f"stops: {advice}; the checkpoints were written before that"
            )
        report(f"{problem}: update left out")

    def _write(self, step: int) -> None:
        """Writes the means of a window and starts the next one."""
        means = window_means(self._window)
        means["memory_gib"] = _memory_gib()
        means["data_seconds"] = self._waited / len(self._window)
        means["skipped_in_a_row"] = max(self.skipped.values(), default=0)
        if self._clock is not None:
            now = time.perf_counter()
            means["samples_per_second"] = self._timed * self._experiment.batch_size / (now - self._clock)
            means["seconds_per_step"] = (now - self._clock) / max(1, self._timed)
            self._clock, self._timed = now, 0
            peak = peak_flops()
            if self.flops is not None and peak is not None:
                means["mfu"] = means["samples_per_second"] * self.flops / peak
        self._window, self._waited = [], 0.0
        self._writer.write(step, means)
        report(_line(step, self._experiment.steps, means))

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            # After an error the pending metrics may be those of the step that failed: fetching them would raise again.
            if error is None:
                self.flush()
        finally:
            self._writer.close()


def report(line: str) -> None:
    """Prints a line, once for all processes."""
    if jax.process_index() == 0:
        print(line, flush=True)


def window_means(window: list[dict[str, float]]) -> dict[str, float]:
    """The metrics of several steps as one record: counts of skipped updates, means of everything else.

    A mean is over the steps that have the metric and did not skip the player's update; NaN if every one did.
    """
    kept: dict[str, list[float]] = {}
    for values in window:
        skipped = tuple(skipped_players(values))
        prefixes = _players(values)
        for name, value in values.items():
            if name.endswith(OPTIONAL) and math.isnan(value):
                continue
            numbers = kept.setdefault(name.removesuffix(OPTIONAL), [])
            if _is_count(name) or _player_of(name, prefixes) not in skipped:
                numbers.append(value)
    return {name: _mean(values) if not _is_count(name) else sum(values) for name, values in kept.items()}


def skipped_players(values: Mapping[str, float]) -> list[str]:
    """Prefixes ("critic/", or "" if there is one player) of the players whose update a step skipped."""
    return [player for player in _players(values) if values[player + SKIPPED]]


def _players(values: Mapping[str, float]) -> list[str]:
    """The prefixes of the players that a step updated."""
    return [name.removesuffix(SKIPPED) for name in values if _is_count(name)]


def _player_of(name: str, players: list[str]) -> str | None:
    """The player that a metric belongs to; metric names may contain slashes themselves, such as "level0/mse"."""
    return max((player for player in players if name.startswith(player)), key=len, default=None)


def _is_count(name: str) -> bool:
    return name == SKIPPED or name.endswith(f"/{SKIPPED}")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _label(player: str) -> str:
    return f"{player.removesuffix('/')} " if player else ""


def _line(step: int, steps: int, values: dict[str, float]) -> str:
    parts = [f"step {step}/{steps}"]
    for player in _players(values):
        loss, norm, rate = (values[player + name] for name in ("loss", "gradient_norm", "learning_rate"))
        parts += [f"{_label(player)}loss {loss:.4f}", f"gradient {norm:.3g}", f"lr {rate:.2e}"]
    if "samples_per_second" in values:
        parts.append(f"{values['samples_per_second']:.3g} samples/s")
    if "mfu" in values:
        parts.append(f"MFU {100 * values['mfu']:.1f} %")
    if skipped := sum(values[player + SKIPPED] for player in _players(values)):
        parts.append(f"{skipped:.0f} skipped")
    return ", ".join([*parts, f"{values['memory_gib']:.2f} GiB"])


def _memory_gib() -> float:
    """Peak memory of the first device, or of the process if the device does not report it (CPU)."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
