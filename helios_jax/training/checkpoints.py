"""Training checkpoints: everything that changes during a run, written in the background.

    <workdir>/checkpoints/<step>/<player>/   trainable, optimizer, ema, updates, ema_count
    <workdir>/checkpoints/<step>/progress/   the step, the position in the data, digests of all arrays

Frozen parameters are omitted: they equal the weights that training starts from (``run_folder``). A checkpoint gets its
name only when it is complete, so a killed run or a full disk leaves the earlier checkpoints intact. Restored arrays are
compared with their digests, which detects damage on disk; older checkpoints without digests are not compared.

A state of which a part is parked in pinned host memory (``parallel.residence``) is written before ``save`` returns, a
few GB at a time: host memory may have no room for another copy of all of it.

Checkpoints in the older layout without players (<step>/trainable, optimizer, ema and progress) can still be read.
"""

import contextlib
import gc
import hashlib
import json
import logging
import pathlib
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from helios_jax.checkpoints.digests import digests_of
from helios_jax.parallel.host_memory import MOST_COPIES, is_on_host, total_bytes
from helios_jax.training.finite import by_path, not_finite
from helios_jax.training.state import Items
from helios_jax.typing import Path


@runtime_checkable
class Resumable(Protocol):
    """An iterator over batches whose position can be saved and restored."""

    def __next__(self) -> Any:
        """The next batch."""
        ...

    def get_state(self) -> Any:
        """The iterator's position, in JSON types."""
        ...

    def set_state(self, state: Any) -> None:
        """Moves to a position saved by an iterator over the same data."""
        ...


class Checkpoints:
    """The checkpoints of one run; a context manager.

    Args:
        folder: Their folder; created if needed, and removed on closing if it is empty.
        keep: How many of the newest checkpoints to keep.
        keep_every: Checkpoints of steps that are multiples of this are kept for good; 0: none.
    """

    def __init__(self, folder: Path, *, keep: int = 3, keep_every: int = 0) -> None:
        from orbax.checkpoint import v1 as ocp

        policies = ocp.training.preservation_policies
        every: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
        kept: list[Any] = [policies.LatestN(keep)]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        preservation: Any = policies.AnyPreservationPolicy(kept)
        self.folder = pathlib.Path(folder).resolve()
        self._failed = False
        self.skipped: dict[str, int] = {}
        """How many updates of each player had been skipped in a row when the restored checkpoint was written."""
        # Orbax logs the traceback of every background thread that fails; the error itself comes back from wait().
        logging.getLogger("absl").addFilter(_not_from_orbax)
        self._checkpointer = ocp.training.Checkpointer(
            str(self.folder),
            save_decision_policy=every,
            preservation_policy=preservation,
            cleanup_tmp_directories=True,
        )

    @property
    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def save(
        self,
        items: Mapping[str, Any],
        data: Resumable,
        *,
        step: int,
        skipped: Mapping[str, int] | None = None,
        wait: bool = False,
    ) -> None:
        """Starts writing a checkpoint after any earlier one is written; does nothing if the step already has one.

        Args:
            items: Pytrees by player, after ``step`` steps. Their arrays may be donated as soon as this returns.
            data: The iterator that yielded the batches of these steps.
            step: How many steps are done.
            skipped: How many updates of each player were skipped in a row up to this step; none by default.
            wait: Return only when the checkpoint is complete, as always if arrays are in pinned host memory.

        Raises:
            OSError: This checkpoint, or the one before it, could not be written.
            FloatingPointError: The items are not finite.
        """
        self.wait()
        if step not in self.steps:
            arrays = by_path(items)
            if bad := not_finite(arrays):
                raise FloatingPointError(f"{bad} is not finite after step {step}; this step is not saved")
            progress = {
                "step": step,
                "data": json.dumps(_of_all_processes(json.dumps(data.get_state()))),
                "skipped": json.dumps(dict(skipped or {})),
                "digests": json.dumps(digests_of(arrays)),
            }
            progress["digest"] = _digest(progress)
            parked = is_on_host(items)
            with self._explaining_failures(), _bounded_copies(items) if parked else contextlib.nullcontext():
                self._checkpointer.save_checkpointables_async(step, {**items, "progress": progress})
            # With bounded copies, Orbax still reads the arrays in the background.
            wait |= parked
        if wait:
            self.wait()

    def wait(self) -> None:
        """Waits until nothing is being written. Raises OSError if that failed."""
        with self._explaining_failures():
            self._checkpointer.wait()

    def restore(self, abstract: Items, data: Resumable) -> tuple[int, Items]:
        """Reads the newest checkpoint and sets ``data`` to its position.

        Args:
            abstract: The stored items of each player, as shapes, dtypes and shardings.
            data: An iterator over the same data.

        Returns:
            How many steps were done, and the stored items of each player.

        Raises:
            ValueError: The checkpoint is damaged, does not fit ``abstract``, or was written by another number of
                processes at different positions in the data.
        """
        step = self.steps[-1]
        folder = self.folder / str(step)
        read = self._restore_without_players if (folder / "trainable").exists() else self._restore_players
        instead = f"resume from step {self.steps[-2]}" if len(self.steps) > 1 else "begin again"
        remedy = f"Move that folder away to {instead}"
        failure, items, progress = "", {}, {}
        with quiet():
            try:
                items, progress = read(step, abstract)
            except Exception as error:  # Orbax and TensorStore raise many kinds for damaged files
                failure = _reason(error)
            if failure:
                # Orbax leaves pending tasks that print their errors when they are garbage-collected. They are collected
                # here, where the output is silenced.
                gc.collect()
        if failure:
            raise ValueError(f"{folder} is damaged or belongs to another run ({failure}). {remedy}")
        if problem := _damage(items, progress, step):
            raise ValueError(f"{folder} is damaged: {problem}. {remedy}")
        data.set_state(json.loads(_of_this_process(json.loads(progress["data"]))))
        self.skipped = json.loads(progress.get("skipped", "{}"))
        return int(progress["step"]), items

    def _restore_players(self, step: int, abstract: Items) -> tuple[Items, Any]:
        with _bounded_copies(abstract):
            stored = self._checkpointer.load_checkpointables(step, {**abstract, "progress": None})
        progress = stored.pop("progress")
        return dict(stored), progress

    def _restore_without_players(self, step: int, abstract: Items) -> tuple[Items, Any]:
        """Reads the older layout without players, whose items are the fields of the only player."""
        ((name, player),) = abstract.items()
        counts = ("updates", "ema_count")
        fields = {field: value for field, value in player.items() if field not in counts}
        stored = dict(self._checkpointer.load_checkpointables(step, {**fields, "progress": None}))
        progress = stored.pop("progress")
        # That layout has one count: every step updated the parameters and, if there were any, the averages.
        done = {"updates": progress["step"], "ema_count": progress["step"] if "ema" in fields else 0}
        counters = {count: jax.device_put(np.int32(done[count]), player[count].sharding) for count in counts}
        return {name: stored | counters}, progress

    def close(self) -> None:
        """Waits and closes."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()
            # Threads that were still writing when another one failed may have recreated files.
            if self._failed:
                self._remove_partial()
            # A run that could not begin leaves an empty folder.
            with contextlib.suppress(OSError):
                self.folder.rmdir()
            logging.getLogger("absl").removeFilter(_not_from_orbax)

    def _remove_partial(self) -> None:
        for partial in self.folder.glob("*.orbax-checkpoint-tmp"):
            shutil.rmtree(partial, ignore_errors=True)

    @contextlib.contextmanager
    def _explaining_failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # TensorStore reports a full disk as ValueError, among others
            self._failed = True
            self._remove_partial()
            last = f"that of step {self.steps[-1]} is complete" if self.steps else "there is none yet"
            free = shutil.disk_usage(self.folder).free / 2**30
            raise OSError(
                f"a checkpoint could not be written to {self.folder}, where {free:.1f} GiB are free; of the earlier "
                f"ones {last}. Make room and run the same command again ({_reason(error)})"
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _bounded_copies(items: Any) -> Any:
    """A context in which Orbax copies a part of a state at a time."""
    from orbax.checkpoint import v1 as ocp

    # Orbax refuses an array that takes all of what is allowed.
    most = max(MOST_COPIES, *(1 + total_bytes(leaf) for leaf in jax.tree.leaves(items)))
    return ocp.Context(
        memory_options=ocp.options.MemoryOptions(
            write_concurrent_bytes=most,
            read_concurrent_bytes=most,
            transfer_concurrent_bytes=most,
            deepcopy_host_arrays=False,
        )
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences output of Orbax, TensorStore and asyncio about errors that are raised anyway."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            # Coroutines that never ran because an earlier one failed.
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _damage(items: Items, progress: Mapping[str, Any], step: int) -> str:
    """Describes how the restored data differs from what was written; empty if it does not."""
    if "digests" not in progress:
        return ""
    if progress.get("digest") != _digest(progress) or int(progress["step"]) != step:
        return "its progress differs from what was written"
    arrays, written = by_path(items), json.loads(progress["digests"])
    found = digests_of(arrays)
    changed = [path for path in sorted(found.keys() | written.keys()) if found.get(path) != written.get(path)]
    if changed:
        return f"{changed[0]} differs from what was written" + (
            f", and so do {len(changed) - 1} others" if len(changed) > 1 else ""
        )
    if bad := not_finite(arrays):
        return f"{bad} is not finite"
    return ""


def _digest(progress: Mapping[str, Any]) -> str:
    """The digest of the other entries of ``progress``."""
    rest = {name: str(value) for name, value in sorted(progress.items()) if name != "digest"}
    return hashlib.blake2b(json.dumps(rest).encode(), digest_size=16).hexdigest()


def _reason(error: BaseException, length: int = 200) -> str:
    """The first line of the error that caused the others."""
    while (root := error.__cause__ or error.__context__) is not None:
        error = root
    line = (str(error).strip().splitlines() or [""])[0]
    line = line if " " in line else f"{type(error).__name__}: {line}"
    return line if len(line) <= length else f"{line[:length]}..."


def _of_all_processes(text: str) -> list[str]:
    """The texts of all processes, by process."""
    from jax.experimental import multihost_utils

    encoded = np.frombuffer(text.encode(), np.uint8)
    length = int(np.max(multihost_utils.process_allgather(np.int32(len(encoded)))))
    padded = np.pad(encoded, (0, length - len(encoded)), constant_values=ord(" "))
    rows = multihost_utils.process_allgather(padded).reshape(-1, length)
    return [bytes(row.astype(np.uint8)).decode().rstrip() for row in rows]


def _of_this_process(texts: Sequence[str]) -> str:
    """Inverse of ``_of_all_processes``; the number of processes may differ if all texts are equal."""
    if len(texts) == jax.process_count():
        return texts[jax.process_index()]
    if len(set(texts)) == 1:
        return texts[0]
    raise ValueError(
        f"the checkpoint holds the data positions of {len(texts)} processes, and they differ; it cannot be resumed "
        f"with {jax.process_count()}"
    )


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname
