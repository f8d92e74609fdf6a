"""A process of restort.kernels.precompile: reads jobs, one a line, compiles them, answers 'made' or the reason."""

from __future__ import annotations

import base64
import contextlib
import importlib
import os
import pickle
import sys
from types import SimpleNamespace
from typing import Any

from restort.kernels.precompile import Job


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print where they like; answers must stay alone
    for line in sys.stdin:
        try:
            compile_job(pickle.loads(base64.b64decode(line)))
            answer = "made"
        except Exception as error:
            answer = " ".join(f"failed: {type(error).__name__}: {error}".split())[:500]
        print(answer, file=answers, flush=True)


def compile_job(job: Job) -> Any:
    """Compile a kernel for the job's target by Triton's `warmup`; return Triton's compiled kernel."""
    set_target(job.capability)
    kernel: Any = importlib.import_module(job.module)
    for name in job.kernel.split("."):
        kernel = getattr(kernel, name)
    made = kernel.warmup(
        *(Address(*pointer) for pointer in job.pointers),
        *job.sizes,
        grid=(1,),
        **dict(job.constants),
        num_warps=job.warps,
        num_stages=job.stages,
    )
    if hasattr(made, "result"):
        made = made.result()
    _launcher(made)
    return made


class Address:
    """A tensor as far as Triton's compiler reads it: the type, and whether the address is a multiple of 16."""

    def __init__(self, dtype: str, aligned: bool) -> None:
        import torch

        self.dtype = getattr(torch, dtype)
        self._address = 0 if aligned else 4

    def data_ptr(self) -> int:
        return self._address

    def ptr_range(self) -> int:
        return 0


def set_target(capability: int) -> None:
    """Give Triton a driver that only knows its target."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    target = GPUTarget("cuda", capability, 32)
    stand_in: Any = SimpleNamespace(
        get_current_target=lambda: target,
        get_current_device=lambda: capability,  # Triton caches per device: targets must not mix
        get_current_stream=lambda device: 0,
    )
    driver.set_active(stand_in)


def _launcher(made: Any) -> None:
    """Compile the launcher in C that Triton before version 3.7 needs for every signature; it is kept on disk, too."""
    from triton.backends.nvidia import driver

    if hasattr(driver, "make_launcher"):
        with contextlib.suppress(Exception):  # no C compiler, no libcuda: the launch will tell
            driver.CudaLauncher(made.src, made.metadata)


if __name__ == "__main__":
    main()
