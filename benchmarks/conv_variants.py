"""A Restormer's 3x3 convolutions on this GPU: Triton's and the ways to cut those in CUDA C++, each right or not, timed.

    python benchmarks/conv_variants.py [--compile] [--size 720x1280 368x552] [--only output] [--output FILE]

Everything is compiled first, by processes and threads, without the GPU (--compile: no more than that, and what does not
compile, fit or spills is told). For each convolution of the official network: microseconds by CUDA graphs of 20 (single
launches come 35 to 55 us apart at the smaller pictures), relative L2 against PyTorch in float32 (TF32 off), whether a
second run gives the same bits, and the floor (the larger of least traffic at the memory's rate and products at 700
TFLOP/s; what fits into the L2 stays there from one launch to the next).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from steps import milliseconds
from stream_kernels import error, sizes
from variants import Table, compile_ahead, run_twice

from restort.backends.fused.restormer_weights import step, up
from restort.errors import RestortError
from restort.kernels.aot import resources
from restort.kernels.common import roofs
from restort.kernels.conv3x3 import first, first_tile, kernel, reference, tile
from restort.kernels.conv3x3.kernel import DOWN, LAST, UP
from restort.kernels.machine import planning_for

FIRST = 3
HALF = torch.float16
RING = {"TAPS": 1, "SLOTS": 4, "BLOCKS": 2}
LARGE, SMALL = {**RING, "PARTS": 2}, {**RING, "PARTS": 1}
UPS = [  # where the default has 192 columns by DEFER 1, except for few pixels
    {},
    {**SMALL, "COLUMNS": 192, "DEFER": 1},
    {**SMALL, "COLUMNS": 96, "BLOCKS": 3, "SLOTS": 3, "DEFER": 0},
    {**LARGE, "COLUMNS": 96, "DEFER": 1},
    {**LARGE, "COLUMNS": 96, "DEFER": 0},
    {**SMALL, "COLUMNS": 48, "TAPS": 3, "SLOTS": 3, "DEFER": 0},
]
DOWNS = [
    {},
    {**LARGE, "DEFER": 1},
    {**SMALL, "BLOCKS": 3, "DEFER": 0},
    {**LARGE, "TAPS": 3, "SLOTS": 2, "DEFER": 0},
]
# Mode, divisor, channels, rows, variants:
CASES: dict[str, tuple[int, int, int, int, list[dict[str, int]]]] = {
    "output": (LAST, 1, 96, 3, [{}, {"TALL": 12, "BLOCKS": 4}]),
    "down1_2": (DOWN, 1, 48, 24, [{}, {"BLOCKS": 4}, {"TAPS": 3, "SLOTS": 3}]),
    "up2_1": (UP, 2, 96, 192, UPS),
    "down2_3": (DOWN, 2, 96, 48, DOWNS),
    "patch_embed": (FIRST, 1, 3, 48, [{}, {"warps": 4, "blocks": 4}]),
    "down3_4": (DOWN, 4, 192, 96, [*DOWNS[:3], {**SMALL, "COLUMNS": 48, "DEFER": 0}]),
    "up3_2": (UP, 4, 192, 384, UPS),
    "up4_3": (UP, 8, 384, 768, UPS),
}


class Case:
    """One convolution's arrays, about unit activations."""

    def __init__(self, name: str, height: int, width: int, device: str) -> None:
        self.name = name
        self.mode, divisor, self.channels, self.rows, self.variants = CASES[name]
        c, rows, h, w = self.channels, self.rows, height // divisor, width // divisor
        self.shape = h, w, c, rows
        torch.manual_seed(0)

        def draw(*shape: int, scale: float = 1.0, dtype: Any = HALF) -> Any:
            return (torch.randn(*shape, device=device) * scale).to(dtype)

        self.extra: Any = None
        if self.mode == FIRST:
            self.x = torch.rand(1, c, h, w, device=device)
            self.w = torch.zeros(rows, 32, device=device)
            self.w[:, : 9 * c] = draw(rows, 9 * c, scale=(9 * c) ** -0.5)
            self.y = draw(1, h, w, rows)
            return
        self.x = draw(1, h, w, c)
        self.w = draw(rows, 3, up(3 * c, step(c)), scale=(9 * c) ** -0.5)
        self.bias = torch.zeros(rows, device=device)
        if self.mode == LAST:
            self.extra = torch.rand(1, rows, h, w, device=device)
            self.y = draw(1, rows, h, w, dtype=torch.float32)
        elif self.mode == DOWN:
            self.y = draw(1, h // 2, w // 2, 4 * rows)
        else:
            if name == "up2_1":
                self.extra = draw(1, 2 * h, 2 * w, rows // 4)
            self.y = draw(1, 2 * h, 2 * w, rows // (2 if self.extra is not None else 4))

    def plain(self) -> Any:
        if self.mode == FIRST:
            return first.launch(self.x, self.w, self.y)
        where = {"step": step(self.channels), "extra": self.extra}
        return kernel.launch(self.mode, self.x, self.w, self.bias, self.y, **where)

    def tiled(self, variant: dict[str, int]) -> Any:
        if self.mode == FIRST:
            return first_tile.launch(self.x, first_tile.pack(self.w, self.channels, HALF), self.y, **variant)
        _, h, w, c = self.x.shape
        how = {**tile.cut(self.mode, c, self.rows, 1, h, w), **variant}
        blob = tile.pack(self.mode, self.w, c, how)
        return tile.launch(self.mode, self.x, blob, self.bias, self.y, extra=self.extra, **variant)

    def expected(self) -> Any:
        if self.mode == FIRST:
            return reference.first(self.x, self.w, torch.float32)
        x, w = self.x.float(), self.w.float()
        if self.mode == DOWN:
            return reference.down(x, w, self.bias)
        if self.mode == LAST:
            return reference.last(x, w, self.bias, self.extra)
        return reference.up(x, w, self.bias, None if self.extra is None else self.extra.float())


def compile_all(names: list[str], pictures: list[tuple[int, int]], check: bool) -> None:
    plain, jobs = [], []
    with planning_for(90):
        for height, width in pictures:
            for name in names:
                case = Case(name, height, width, "meta")
                plain.append(case.plain())
                jobs += [case.tiled(variant) for variant in case.variants]
        compile_ahead([*plain, *jobs], 90)
    for one in {one.variant(): one for one in jobs}.values() if check else ():
        try:
            registers, spilled = resources(one.kernel.compile(one.constants, 90))
        except RestortError as trouble:
            print(trouble)
            continue
        each, blocks = one.constants["SHARED"] + 1024, one.constants["BLOCKS"]
        if spilled or each > 228 * 1024 or each * blocks > 228 * 1024:
            print(one.constants, "registers", registers, "spilled", spilled, "shared", each * blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description="a Restormer's 3x3 convolutions")
    parser.add_argument("--compile", action="store_true", help="only compile")
    parser.add_argument("--size", type=sizes, nargs="+", default=[(720, 1280), (368, 552), (256, 256)])
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    compile_all(options.only, options.size, options.compile)
    if options.compile:
        return
    device = torch.cuda.get_device_name()
    bandwidth, rate = roofs(device)
    table = Table(options.output, device=device)
    for height, width in options.size:
        for name in options.only:
            case = Case(name, height, width, "cuda")
            expected = case.expected()
            for variant in [None, *case.variants]:
                row: dict[str, Any] = {"op": name, "picture": f"{height}x{width}", "shape": case.shape}
                row["variant"] = "triton" if variant is None else variant or "default"
                try:
                    one = case.plain() if variant is None else case.tiled(variant)
                    (seen,), same = run_twice(one, [case.y])
                    wrong = error(seen, expected)
                    us = round(1e3 * milliseconds(one), 2)
                    floor = round(1e6 * max(one.moved / bandwidth, one.flops / rate), 2)
                    row |= {"us": us, "floor_us": floor, "error": float(f"{wrong:.3g}"), "same_bits": same}
                except Exception as trouble:
                    row["trouble"] = f"{type(trouble).__name__}: {trouble}"[:300]
                table.add(row)
            del case, expected
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
