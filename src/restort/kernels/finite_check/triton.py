"""The kernel in Triton: programs stride over the array and check the exponents."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from restort.kernels.launch import Launch
from restort.utils.integers import cdiv

Tensor = Any

BLOCK = 1024
MAX_PROGRAMS = 512  # a few for every SM
LIMIT = (1 << 31) - MAX_PROGRAMS * BLOCK  # elements; indices have 32 bits


def programs(count: int) -> int:
    """Return the number of flags for an array of `count` elements."""
    return min(MAX_PROGRAMS, cdiv(count, BLOCK))


@triton.jit(do_not_specialize=["count"])
def finite_check_kernel(x, flags, count, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    found = tl.zeros((BLOCK,), tl.int32)
    for start in range(program * BLOCK, count, tl.num_programs(0) * BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        bits = tl.load(x + offsets, mask=offsets < count, other=0.0).to(tl.int32, bitcast=True)
        found |= ((bits & 0x7F800000) == 0x7F800000).to(tl.int32)
    tl.store(flags + program, tl.max(found, axis=0))


def launch(x: Tensor, flags: Tensor, label: str = "finite_check") -> Launch:
    """Return a launch: `flags`, int32 (programs(x.numel()),), are 1 where a program saw NaN or inf in float32 x."""
    count = x.numel()
    if count > LIMIT:
        raise ValueError(f"{count} elements are more than 32-bit indices reach")
    return Launch(
        finite_check_kernel,
        {"x": x, "flags": flags},
        {"count": count},
        {"BLOCK": BLOCK},
        (programs(count),),
        moved=4 * count,
        label=label,
    )
