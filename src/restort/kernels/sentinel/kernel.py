"""The kernel: programs stride over the array and look at the exponents."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from restort.kernels.launch import Launch

Tensor = Any

BLOCK = 1024
MOST = 512  # programs: a few for every multiprocessor
LIMIT = (1 << 31) - MOST * BLOCK  # elements; indices are 32 bits wide


def programs(count: int) -> int:
    """How many flags there are for an array of `count` elements."""
    return min(MOST, -(-count // BLOCK))


@triton.jit(do_not_specialize=["count"])
def non_finite_kernel(x, flags, count, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    found = tl.zeros((BLOCK,), tl.int32)
    for start in range(program * BLOCK, count, tl.num_programs(0) * BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        bits = tl.load(x + offsets, mask=offsets < count, other=0.0).to(tl.int32, bitcast=True)
        found |= ((bits & 0x7F800000) == 0x7F800000).to(tl.int32)
    tl.store(flags + program, tl.max(found, axis=0))


def launch(x: Tensor, flags: Tensor, label: str = "sentinel") -> Launch:
    """`flags` int32 (programs(x.numel()),), each 1 where that program saw NaN or infinity in x, float32, contiguous."""
    count = x.numel()
    if count > LIMIT:
        raise ValueError(f"{count} elements are more than 32-bit indices reach")
    return Launch(
        non_finite_kernel,
        {"x": x, "flags": flags},
        {"count": count},
        {"BLOCK": BLOCK},
        (programs(count),),
        moved=4 * count,
        label=label,
    )
