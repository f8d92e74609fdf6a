"""A cluster run from an input folder to an output folder."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from restort.cluster.driver import Driver, Totals
from restort.cluster.index import Index
from restort.cluster.ray_workers import RayWorkers, connect
from restort.cluster.shards import Setup
from restort.errors import RestortError, UsageError
from restort.imaging.folder import stream
from restort.imaging.formats import READ_LIST
from restort.inference.attempts import Attempts
from restort.inference.batch import FileResult, Options
from restort.inference.manifest import CLUSTER_LOCK, FOLDER, Leftovers, absorb
from restort.utils import interrupt
from restort.utils.files import check_no_link
from restort.version import __version__


def run(
    source: Path,
    output: Path,
    model: str | Path,
    load: dict[str, Any],
    files: Options,
    *,
    address: str,
    workers: int | None,
    suffix: str | None,
    left_out: list[Path],
    seen: Callable[[FileResult], None],
    notify: Callable[[str], None],
) -> Totals:
    """Restore the folder `source` into `output` on the machines of a Ray cluster.

    address   'auto' (the cluster of this machine), 'local' (Ray for this run alone), or HOST[:PORT]
    workers   None for one a GPU, or one a machine without GPUs
    load      further arguments of restort.load
    seen      receives every result

    Raises UsageError for a wrong request, RestortError where the folder or the cluster cannot be used.
    """
    if not source.is_dir():
        raise UsageError(
            f"{source} is not a folder; `restort cluster run` takes one, `restort run` single files"
        )
    source, output = source.absolute(), output.absolute()
    jobs = stream(source, output, suffix=suffix, left_out=left_out)
    first = next(jobs, None)
    if first is None:
        raise UsageError(f"there is no picture in {source}; these are read: {READ_LIST}")
    lock = _only_driver(output)
    index = Index()
    try:
        absorb(output)
        index.add(output / FOLDER / "manifest.jsonl")
        attempts = Attempts(output / FOLDER, retry=files.retry, notify=notify)
        leftovers = Leftovers({Path(folder) for folder, _, _ in os.walk(output)})
        try:
            count, gpus, cpus = connect(address, workers)
            if load.get("threads") is None and not gpus:
                load = {**load, "threads": cpus}
            setup = Setup(output, model, load, files, __version__)
            lists = itertools.chain([first], jobs)
            with (
                contextlib.redirect_stdout(sys.stderr),  # Ray prints its errors; stdout is for results
                interrupt.handle_signals(),
                RayWorkers(setup, gpus, cpus) as pool,
            ):
                totals = Driver(pool, count, output, lists, index, attempts, seen, notify).run()
            if not totals.interrupted:
                leftovers.clean()
        finally:
            attempts.close()
        absorb(output)
    except (OSError, Timeout) as error:
        raise RestortError(
            f"cannot use the output folder {output}: {error}; choose one that can be written"
        ) from None
    finally:
        index.close()
        lock.release()
    return totals


def _only_driver(output: Path) -> FileLock:
    """Lock the output folder against other cluster runs."""
    folder = output / FOLDER
    try:
        check_no_link(folder, folder=True)
        folder.mkdir(parents=True, exist_ok=True)
        check_no_link(folder / CLUSTER_LOCK)
        lock = FileLock(folder / CLUSTER_LOCK, thread_local=False)
        lock.acquire(timeout=0)
    except Timeout:
        raise RestortError(
            f"another cluster run works in {output}; wait for it or choose another folder"
        ) from None
    except OSError as error:
        raise RestortError(
            f"cannot use the output folder {output}: {error.strerror}; choose one that can be written"
        ) from None
    return lock
