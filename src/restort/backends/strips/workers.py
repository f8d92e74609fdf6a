"""Threads that compute one cell each, instead of sharing every operation of a cell.

A small operation spread over threads waits for the slowest one, thousands of times a second. With other work on the
machine that takes ten times as long (measured). Separate cells never wait for each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


class Workers:
    """A pool of threads as a context manager. Inside it, PyTorch uses one thread in the calling thread, too.

    threads   with 1, `map` runs everything in the caller
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Workers:
        if self._threads > 1:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="restort-cells")
            met = threading.Barrier(self._threads)
            list(self._pool.map(lambda _: _alone(met), range(self._threads)))
            torch.set_num_threads(1)
            # PyTorch gives new threads the last number set anywhere; running threads keep theirs.
            setter = threading.Thread(target=torch.set_num_threads, args=(self._threads,))
            setter.start()
            setter.join()
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self._threads)

    def map(self, function: Callable[..., Result], items: Iterable[tuple[Any, ...]]) -> list[Result]:
        """Return [function(*item) for item in items]."""
        if self._pool is None:
            return [function(*item) for item in items]

        def run(item: tuple[Any, ...]) -> Result:
            with torch.inference_mode():
                return function(*item)

        return list(self._pool.map(run, items))


def _alone(met: threading.Barrier) -> None:
    """Limit PyTorch to this thread in this thread; wait until every thread of the pool has done so."""
    torch.get_num_threads()  # the first call in a thread sets its number to the last one set anywhere
    torch.set_num_threads(1)
    met.wait()
