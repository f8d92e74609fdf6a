"""Compile the kernels of a pass in several processes at once, before they are first run.

Triton compiles a kernel when it is first launched, one after the other, a second or more each. It keeps the result in a
folder under a key of source, types, constants and version, where a launch finds a kernel that another process compiled.
Each process here (restort.kernels.precompile_worker) calls Triton's own `warmup`, with a stand-in for the driver that
names the target. So Triton's own code makes the key, and no process but this one needs the GPU.

An empty file in that folder marks a kernel as compiled. A wrong mark costs time and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restort.kernels.launch import Launch

PROCESS_BYTES = 1 << 30  # memory that a process which compiles may take
LIMIT_S = 300.0  # for one kernel

_log = logging.getLogger("restort")


@dataclass(frozen=True)
class Job:
    """One Triton kernel with the types of its arguments: everything that decides the machine code."""

    module: str
    kernel: str
    pointers: tuple[tuple[str, bool], ...]  # PyTorch's name of the type, whether 16 divides the address
    sizes: tuple[int, ...]
    constants: tuple[tuple[str, Any], ...]
    warps: int
    stages: int
    capability: int

    def key(self, source: str) -> str:
        """Return a digest that identifies the job; `source` stands for the kernel's code."""
        import triton

        fields = repr((triton.__version__, source, self.pointers, self.constants, self.warps, self.stages))
        return hashlib.sha256(f"{fields} {self.capability}".encode()).hexdigest()[:32]


def job(launch: Launch, capability: int) -> Job | None:
    """Return what `launch` compiles for a compute capability (90 is 9.0); None for CUDA C++ and in the interpreter."""
    kernel = launch.kernel
    if not hasattr(kernel, "cache_key"):
        return None
    return Job(
        kernel.fn.__module__,
        kernel.fn.__qualname__,
        tuple((str(t.dtype).removeprefix("torch."), t.data_ptr() % 16 == 0) for t in launch.tensors.values()),
        tuple(launch.sizes.values()),
        tuple(launch.constants.items()),
        launch.warps,
        launch.stages,
        capability,
    )


def missing(launches: Sequence[Launch], capability: int) -> dict[str, Job]:
    """Return the Triton kernels that are not marked as compiled, by their keys."""
    found: dict[str, Job] = {}
    folder = cache_folder()
    for launch in launches:
        wanted = job(launch, capability)
        if wanted is not None:
            key = wanted.key(launch.kernel.cache_key)
            if key not in found and not (folder / f"restort-{key}").is_file():
                found[key] = wanted
    return found


def note(keys: Sequence[str]) -> None:
    """Mark kernels that have run, and so are in Triton's folder, as compiled."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for key in keys:
            (folder / f"restort-{key}").touch()
    except OSError:
        return


def cache_folder() -> Path:
    """Return the folder in which Triton keeps compiled kernels."""
    try:
        from triton import knobs

        return Path(knobs.cache.dir)
    except (ImportError, AttributeError, TypeError):  # Triton 3.3
        return Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")


def precompile_cuda(launches: Sequence[Launch], capability: int) -> None:
    """Compile the kernels in CUDA C++ (restort.kernels.nvrtc), several at a time, or find them on disk."""
    wanted: dict[Any, Launch] = {}
    for launch in launches:
        if hasattr(launch.kernel, "compile") and not hasattr(launch.kernel, "cache_key"):
            wanted[launch.name, tuple(sorted(launch.constants.items()))] = launch
    if len(wanted) > 1:
        with ThreadPoolExecutor(default_processes()) as pool:
            made = [pool.submit(one.kernel.compile, one.constants, capability) for one in wanted.values()]
        for future in made:
            if future.exception() is not None:
                _log.debug("a kernel was not compiled ahead: %s", future.exception())


def precompile(jobs: Sequence[Job], processes: int | None = None) -> int:
    """Compile jobs, several at a time; return how many succeeded. A launch reports the reason of a failure."""
    count = min(len(jobs), processes or default_processes())
    if count < 1 or not sys.executable:
        return 0
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for one in jobs:
        waiting.put(one)
    made: list[Job] = []
    threads = [threading.Thread(target=_serve, args=(waiting, made), daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(made)


def default_processes() -> int:
    """Return the number of compiling processes: one per CPU core, as far as the memory holds them."""
    from restort.utils.memory import available_memory

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, available_memory() // PROCESS_BYTES))


def _serve(waiting: queue.SimpleQueue[Job], made: list[Job]) -> None:
    """Feed one process until no job is waiting."""
    with subprocess.Popen(
        [sys.executable, "-m", "restort.kernels.precompile_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=_environment(),
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            while True:
                try:
                    one = waiting.get_nowait()
                except queue.Empty:
                    return
                timer = threading.Timer(LIMIT_S, process.kill)
                timer.start()
                try:
                    process.stdin.write(base64.b64encode(pickle.dumps(one)).decode() + "\n")
                    process.stdin.flush()
                    answer = process.stdout.readline().strip()
                finally:
                    timer.cancel()
                if answer == "made":
                    made.append(one)
                else:
                    _log.debug("%s was not compiled ahead: %s", one.kernel, answer or "its process ended")
                if not answer:
                    return
        except OSError:
            return
        finally:
            process.kill()


def _environment() -> dict[str, str]:
    """Return this process's environment with its module path, and without a GPU, whose memory nobody may take."""
    path = os.pathsep.join([*(p for p in sys.path if p), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
