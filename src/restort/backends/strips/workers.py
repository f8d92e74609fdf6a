"""Threads that each compute a cell of their own, instead of all of them one cell together.

A small operation spread over threads waits for the slowest of them, thousands of times a second: where anything
else runs on the machine, that costs ten times the time (measured). Cells need no such meetings.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


class Workers:
    """A context manager; between enter and exit the thread that entered computes alone, too.

    With one thread everything runs in the caller.
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
            # PyTorch gives the last number set anywhere to threads to come; those that run keep theirs.
            setter = threading.Thread(target=torch.set_num_threads, args=(self._threads,))
            setter.start()
            setter.join()
        return self

    def __exit__(self, *trouble: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self._threads)

    def map(self, function: Callable[..., Result], items: Iterable[tuple[Any, ...]]) -> list[Result]:
        """[function(*item) for item in items], in that order."""
        if self._pool is None:
            return [function(*item) for item in items]

        def run(item: tuple[Any, ...]) -> Result:
            with torch.inference_mode():
                return function(*item)

        return list(self._pool.map(run, items))


def _alone(met: threading.Barrier) -> None:
    """Makes the operations of this thread use no other; waits until every thread has come here."""
    torch.get_num_threads()  # the first question in a thread sets its number to the last one given anywhere
    torch.set_num_threads(1)
    met.wait()
