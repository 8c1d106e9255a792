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
    """``map(work, items)``, in order, with a bounded number of results in progress or waiting.

    Args:
        work: The function; processes must be able to import it.
        items: Arguments, fetched when their turn comes.
        workers: Number of threads or processes.
        processes: Use processes, for work written in Python: threads would wait for each other.
        ahead: Maximum number of results in progress or waiting to be fetched; by default the number of workers, which
            keeps memory small. A larger number keeps the workers busy when results are fetched in bursts.
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
