"""A call of a kernel as data: it can be run, captured, compiled ahead for another GPU, or baked into an engine."""

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
    constants   tl.constexpr arguments.
    grid        up to three numbers of programs, which follow from the sizes.
    flops       multiply-adds of the products counted twice; what a roofline counts, without halos and padding.
    moved       bytes that have to be read from and written to memory at least.
    label       where in the network it stands, such as 'encoder_level1.0.ffn'.

    No scratch is hidden: what a kernel keeps in memory is one of its tensors.
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
        """The types of its arguments as triton.compile wants them: '*fp16', 'i32' ...; constants are 'constexpr'."""
        types = {name: "*" + TYPES[str(tensor.dtype)] for name, tensor in self.tensors.items()}
        types |= dict.fromkeys(self.sizes, "i32") | dict.fromkeys(self.constants, "constexpr")
        return types

    def variant(self) -> tuple[Any, ...]:
        """Equal for two launches that run the same compiled kernel."""
        constants = tuple(sorted(self.constants.items()))
        return self.name, tuple(self.signature().items()), constants, self.warps, self.stages


TYPES = {
    "torch.float16": "fp16",
    "torch.bfloat16": "bf16",
    "torch.float32": "fp32",
    "torch.int32": "i32",
    "torch.uint8": "u8",
}
