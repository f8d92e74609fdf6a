"""A kernel launch as data: it can be run, captured, compiled ahead for another GPU, or written to an AOT package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Value = Any  # torch.Tensor


@dataclass(frozen=True)
class Launch:
    """One kernel over one grid.

    tensors     pointer arguments by name, in the kernel's order.
    sizes       int32 arguments by name, in the kernel's order, after the pointers.
    constants   tl.constexpr arguments in Triton, macros in CUDA C++.
    grid        up to three numbers of programs (blocks), which follow from the sizes.
    flops       floating-point operations of the products, a multiply-add being two, without halos and padding.
    moved       least number of bytes that are read from and written to memory.
    label       its place in the network, such as 'encoder_level1.0.ffn'.

    Kernels have no hidden scratch memory: every buffer is one of the tensors.
    """

    kernel: Any
    tensors: Mapping[str, Value]
    sizes: Mapping[str, int]
    constants: Mapping[str, Any]
    grid: tuple[int, ...]
    warps: int = 4
    stages: int = 1
    flops: int = 0
    moved: int = 0
    label: str = field(default="", compare=False)

    def __call__(self) -> None:
        self.kernel[self.grid](
            *self.tensors.values(),
            *self.sizes.values(),
            **self.constants,
            num_warps=self.warps,
            num_stages=self.stages,
        )

    @property
    def name(self) -> str:
        """The kernel's name."""
        kernel = getattr(self.kernel, "fn", self.kernel)
        return str(getattr(kernel, "__name__", kernel))

    def signature(self) -> dict[str, str]:
        """Return the types of its arguments as triton.compile takes them: '*fp16', 'i32', ..., 'constexpr'."""
        types = {name: "*" + TYPES[str(tensor.dtype)] for name, tensor in self.tensors.items()}
        types |= dict.fromkeys(self.sizes, "i32") | dict.fromkeys(self.constants, "constexpr")
        return types

    def variant(self) -> tuple[Any, ...]:
        """Return a key that is equal for two launches of one compiled kernel."""
        constants = tuple(sorted(self.constants.items()))
        return self.name, tuple(self.signature().items()), constants, self.warps, self.stages


TYPES = {
    "torch.float16": "fp16",
    "torch.bfloat16": "bf16",
    "torch.float32": "fp32",
    "torch.int32": "i32",
    "torch.uint8": "u8",
}


def check_windows(h: int, w: int) -> None:
    """Raise ValueError unless a picture's sides are multiples of 16, ELAN's largest window."""
    if h % 16 or w % 16:
        raise ValueError(f"{h} x {w} pixels are no multiple of 16")


def triton_launch(
    kernel: Any,
    tensors: Mapping[str, Value],
    sizes: Mapping[str, int],
    constants: Mapping[str, Any],
    grid: tuple[int, ...],
    *,
    flops: int = 0,
    moved: int = 0,
    label: str = "",
) -> Launch:
    """Return a launch of a Triton kernel; `constants` may have Triton's own options 'warps' and 'stages', too."""
    own = {name: value for name, value in constants.items() if name not in ("warps", "stages")}
    warps, stages = constants.get("warps", 4), constants.get("stages", 1)
    return Launch(kernel, tensors, sizes, own, grid, warps, stages, flops, moved, label)
