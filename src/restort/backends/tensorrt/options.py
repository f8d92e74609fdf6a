"""What an engine is built from and what a build returns; types only, so that every other module may import them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

Size: TypeAlias = tuple[int, int, int]
"""Batch, height and width of an input."""

Progress: TypeAlias = Callable[[str, float | None], object]
"""Receives the name of a build's phase and the share of the build that is done, 0 to 1, or None where unknown. An
exception that it raises ends the build."""

Notify: TypeAlias = Callable[[str], object]
"""Receives one line of text for the user."""

KERNELS = ("tensorrt", "fused")
"""Whose kernels an engine runs: those that TensorRT chooses, or RestoRT's own from an AOT package."""


@dataclass(frozen=True)
class Profile:
    """The sizes that an engine takes: smallest, the one it is optimised for, and largest.

    others      further single sizes, each with an optimization profile of its own; only with RestoRT's own kernels
    """

    min: Size
    opt: Size
    max: Size
    others: tuple[Size, ...] = ()

    @staticmethod
    def fixed(batch: int, height: int, width: int) -> Profile:
        """A profile of one size, for which the builder can specialise."""
        size = batch, height, width
        return Profile(size, size, size)

    @property
    def is_fixed(self) -> bool:
        return self.min == self.max and not self.others

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The sizes of an engine for single sizes; () for one that takes a range."""
        return (self.opt, *self.others) if self.min == self.max else ()

    def covers(self, size: Size) -> bool:
        within = all(low <= n <= high for low, n, high in zip(self.min, size, self.max, strict=True))
        return within or size in self.others

    def to_json(self) -> dict[str, list[Any]]:
        """The fields as lists; `others` only where there are some."""
        return {name: list(value) for name, value in asdict(self).items() if value}

    def __str__(self) -> str:
        if self.sizes:
            return ", ".join("x".join(map(str, size)) for size in self.sizes)
        return "..".join("x".join(map(str, size)) for size in (self.min, self.opt, self.max))


@dataclass(frozen=True)
class BuildOptions:
    """The engine to build.

    precision               'fp32', 'tf32', 'fp16', 'bf16' or 'mixed'; the graph must be of it. TF32 is on in 'fp16' and
                            'bf16' engines, where float32 products are of 16-bit values, which TF32 represents
                            exactly; it is off in 'fp32' and 'mixed'.
    compute_capabilities    GPUs to build for, as '8.6'. Only TensorRT-RTX has this; none of the GPUs need be present.
                            Empty for the GPU of this machine.
    level                   effort of the search, 0 to 5 (builder_optimization_level); None for the default, 3, or for
                            builder.WeakTyping's where the library is weakly typed.
    timing_cache            measurements of earlier builds, or None.
    kernels                 one of KERNELS.
    version_compatible      the engine also runs in newer versions of the library, through a small runtime inside of it.
    """

    profile: Profile
    precision: str = "fp32"
    compute_capabilities: tuple[str, ...] = ()
    level: int | None = None
    timing_cache: bytes | None = None
    kernels: str = "tensorrt"
    version_compatible: bool = False
    progress: Progress | None = None


@dataclass(frozen=True)
class Built:
    """A serialized engine (TensorRT's plan), the content of its sidecar, and the timing cache after this build."""

    plan: bytes
    report: dict[str, Any]
    timing_cache: bytes | None = None
