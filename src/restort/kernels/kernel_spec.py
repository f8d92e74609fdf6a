"""The description of a kernel in CUDA C++: the facts that an op's sm80.py or sm90.py states about its .cu file."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restort.kernels.gpu_target import shared_memory_limit
from restort.kernels.launch import Launch
from restort.kernels.nvrtc import CudaKernel

Tensor = Any


@dataclass(frozen=True)
class KernelSpec:
    """A kernel in CUDA C++, and how it is launched.

    name        its entry point.
    module      `__file__` of the op's module; the source is the .cu file of that name.
    headers     files of kernels/include that precede the source, after ptx.cuh.
    only_sm90   it uses instructions that only compute capability 9.0 has (wgmma, cp.async.bulk); otherwise it needs 8.0
                or higher.
    overlaps    it has griddepcontrol.wait, so a launch may begin before the one before it has ended: the macro OVERLAP.
    """

    name: str
    module: str
    headers: tuple[str, ...] = ()
    only_sm90: bool = False
    overlaps: bool = False

    @functools.cached_property
    def kernel(self) -> CudaKernel:
        """The kernel that launches share, and with it what has been compiled of it."""
        return CudaKernel(self.name, Path(self.module).with_suffix(".cu"), self.headers)

    def fits(self, shared: int, capability: int) -> bool:
        """Return whether a GPU of this compute capability can run blocks with so many bytes of shared memory."""
        generation = capability == 90 if self.only_sm90 else capability >= 80
        return generation and shared <= shared_memory_limit(capability)

    def launch(
        self,
        tensors: Mapping[str, Tensor],
        sizes: Mapping[str, int],
        macros: Mapping[str, int],
        grid: tuple[int, ...],
        *,
        dtype: Any,
        shared: int,
        flops: int,
        moved: int,
        label: str,
    ) -> Launch:
        """Return a launch; `macros` has WARPS, BLOCKS (restort.kernels.nvrtc) and what the source is specialised for.

        `dtype` is the storage type, torch.float16 or torch.bfloat16; `shared` the dynamic shared memory of a block,
        which the source asserts to be what it uses. `flops`, `moved` and `label` are those of Launch.
        """
        constants = {"BF16": int("bfloat16" in str(dtype)), **({"OVERLAP": 0} if self.overlaps else {})}
        constants |= {**macros, "SHARED": shared}
        return Launch(
            self.kernel,
            tensors,
            sizes,
            constants,
            grid,
            warps=macros["WARPS"],
            flops=flops,
            moved=moved,
            label=label,
        )
