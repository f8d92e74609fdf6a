"""Normalisation and expansion at the latent level of the official Restormer: Triton's kernel and the one for Hopper.

    python benchmarks/expand_variants.py [--compile] [--output expand_variants.json]

Everything is compiled first, by processes and threads, without the GPU (--compile: no more than that). Then for each
number of pixels and rows: microseconds of a launch in a CUDA graph of 20, the median of five (launches one by one would
be held up by the launching), TFLOP/s, relative L2 against PyTorch in float32 (TF32 off), and whether a second run gives
the same bits. The file is written after each line.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from steps import milliseconds
from stream_kernels import error
from variants import Table, compile_ahead, run_twice

from restort.kernels.machine import planning_for
from restort.kernels.norm_expand import kernel, wide
from restort.kernels.norm_expand.reference import norm_expand

CHANNELS = 384
PIXELS = (14400, 3174, 1024)  # of pictures of 720x1280, 368x552 and 256x256
ROWS = (2048, 1152)
HALF = torch.float16
VARIANTS: dict[str, dict[str, int] | None] = {  # None: Triton's
    "triton": None,
    "default": {},
    "no turns": {"TURNS": 0},
    "3 parts": {"PARTS": 3},
    "128 columns": {"COLUMNS": 128, "PARTS": 4, "DEPTH": 2},
}


class Case:
    def __init__(self, pixels: int, rows: int, device: str) -> None:
        torch.manual_seed(0)
        self.pixels, self.rows = pixels, rows
        self.x = (torch.randn(pixels, CHANNELS, device=device) + 0.5).to(HALF)
        self.w = (torch.randn(rows, CHANNELS, device=device) * CHANNELS**-0.5).to(HALF)
        self.affine = torch.stack([self.w.float().sum(1), torch.randn(rows, device=device)])
        self.y = torch.empty(pixels, rows, dtype=HALF, device=device)

    def launch(self, variant: dict[str, int] | None) -> Any:
        if variant is None:
            return kernel.launch(self.x, self.w, self.affine, self.y)
        packed = wide.pack(self.w, variant.get("COLUMNS", 0))
        return wide.launch(self.x, packed, self.affine, self.y, **variant)


def compile_all() -> None:
    with planning_for(90):
        launches = [
            Case(pixels, rows, "meta").launch(variant)
            for pixels in PIXELS
            for rows in ROWS
            for variant in VARIANTS.values()
        ]
        compile_ahead(launches, 90)


def measure(path: Path | None) -> None:
    table = Table(path, device=torch.cuda.get_device_name())
    for pixels in PIXELS:
        for rows in ROWS:
            case = Case(pixels, rows, "cuda")
            expected = norm_expand(case.x.float(), case.w.float(), case.affine)
            for name, variant in VARIANTS.items():
                record: dict[str, Any] = {"pixels": pixels, "rows": rows, "variant": name}
                try:
                    one = case.launch(variant)
                    (seen,), same = run_twice(one, [case.y])
                    us = 1e3 * milliseconds(one)
                    record |= {
                        "us": round(us, 2),
                        "tflop_s": round(one.flops / us / 1e6, 1),
                        "error": float(f"{error(seen, expected):.3g}"),
                        "same_bits": same,
                    }
                except Exception as trouble:
                    record["trouble"] = f"{type(trouble).__name__}: {trouble}"[:300]
                table.add(record)


def main() -> None:
    parser = argparse.ArgumentParser(description="the latent level's expansion, by Triton and for Hopper")
    parser.add_argument("--compile", action="store_true", help="only compile")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    compile_all()
    if not options.compile:
        with torch.no_grad():
            measure(options.output)


if __name__ == "__main__":
    main()
