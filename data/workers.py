"""Work done ahead of time, by threads or by processes."""

import collections
import concurrent.futures
import itertools
import multiprocessing
from collections.abc import Callable, Iterable, Iterator


def ahead_of_time[S, T](
    work: Callable[[S], T],
    items: Iterable[S],
    workers: int,
    *,
    processes: bool = False,
    ahead: int | None = None,
) -> Iterator[T]:
    """``map(work, items)``, in order, with a bounded number of results worked on or waiting.

    Args:
        work: What is done; for processes a function that they can import.
        items: Arguments, fetched when their turn comes.
        workers: Threads, or processes.
        processes: Use processes, for work written in Python: threads would wait for each other.
        ahead: Most results that are worked on or wait to be fetched; as many as there are workers by default, which
            keeps memory small. More keep the workers busy when results are fetched in bursts.
    """
    iterator = iter(items)
    with _pool(workers, processes) as pool:
        first = itertools.islice(iterator, workers if ahead is None else ahead)
        futures = collections.deque(pool.submit(work, item) for item in first)
        while futures:
            result = futures.popleft().result()
            futures.extend(pool.submit(work, item) for item in itertools.islice(iterator, 1))
            yield result


def _pool(workers: int, processes: bool) -> concurrent.futures.Executor:
    if processes:
        # New processes: a forked copy of this one would lack the threads that JAX and grain rely on.
        return concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("forkserver"))
    return concurrent.futures.ThreadPoolExecutor(workers)
