"""The depthwise kernels of the latent level on this GPU: Triton's, and those by tiles with other constants.

    python benchmarks/gate_variants.py [--compile] [--dtype float16] [--seconds 20] [--output gate_variants.json]

For the latent level of the official Restormer at three sizes of pictures. Everything is compiled first, by processes
and threads, without the GPU (--compile: no more than that). Then one line each: us in a CUDA graph of 20 (`us`; of the
Gram kernels also with the fold that adds up their partial sums, `us_with_fold`); the median of 20 launches by
themselves, each right after its input has been written anew, as in a network, where that decides what the L2 has
(`us_after_write`, with about 3 us between the events that a graph does not have; the GPU is kept busy while they are
queued); relative L2 against PyTorch in float32 (TF32 off); whether a second run gives the same bits. `bounds` is the
roofline's time. After `--seconds` on the GPU nothing more is begun; the file is written after each line.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from steps import milliseconds
from stream_kernels import error
from variants import Table, compile_ahead, run_twice

from restort.kernels.common import roofs
from restort.kernels.depthwise_gram import kernel as gram
from restort.kernels.depthwise_gram import tile as gram_tile
from restort.kernels.depthwise_gram.reference import depthwise3x3, depthwise_gram
from restort.kernels.fold import kernel as fold
from restort.kernels.gate_project import kernel as gate
from restort.kernels.gate_project import tile as gate_tile
from restort.kernels.machine import machine

CHANNELS, HIDDEN, HEADS = 384, 1024, 8
SIZES = ((90, 160), (46, 69), (32, 32))
TRITON = "triton"
GATE: dict[str, dict[str, int]] = {
    TRITON: {},
    "default": {},
    "forward": {"REVERSE": 0},
    "tall 8": {"TALL": 8, "BLOCKS": 4},
    "tall 6": {"TALL": 6, "BLOCKS": 5},
    "tall 4": {"TALL": 4, "BLOCKS": 6},
}
GRAM: dict[str, dict[str, int]] = {
    TRITON: {},
    "default": {},
    "forward": {"REVERSE": 0},
    "tall 8, 6 warps": {"TALL": 8, "WARPS": 6, "BLOCKS": 2},
    "tall 4, 3 warps": {"TALL": 4, "WARPS": 3, "BLOCKS": 4},
    "tall 4, 6 warps": {"TALL": 4, "WARPS": 6, "BLOCKS": 4},
}
BUSY = 1_500_000  # cycles, about 1 ms: longer than it takes to queue one launch and its events


class Case:
    """One size's inputs of both kernels, about unit activations."""

    def __init__(self, h: int, w: int, dtype: Any, device: Any) -> None:
        self.h, self.w, self.dtype, self.device = h, w, dtype, torch.device(device)
        torch.manual_seed(0)
        self.expanded, self.qkv = self.draw(1, h, w, 2 * HIDDEN), self.draw(1, h, w, 3 * CHANNELS)
        self.gate_dw, self.qkv_dw = self.draw(10, 2 * HIDDEN) / 3, self.draw(10, 3 * CHANNELS) / 3
        self.heat = torch.ones(HEADS, device=device)
        self.out_w = self.draw(CHANNELS, CHANNELS).float() / CHANNELS**0.5

    def draw(self, *shape: int) -> Any:
        return torch.randn(*shape, device=self.device).to(self.dtype)

    def gate(self, name: str) -> Any:
        y = torch.empty(1, self.h, self.w, HIDDEN, dtype=self.dtype, device=self.device)
        if name == TRITON:
            return gate.launch_gate(self.expanded, self.gate_dw.float(), y)
        capability, processors = machine(self.device)
        how = {"capability": capability, "processors": processors, **GATE[name]}
        return gate_tile.launch(self.expanded, self.gate_dw, y, **how)

    def gram(self, name: str) -> Any:
        capability, processors = machine(self.device)
        v = torch.empty(1, self.h, self.w, CHANNELS, dtype=self.dtype, device=self.device)
        if name == TRITON:
            splits = gram.splits(1, self.h, self.w, CHANNELS, HEADS, processors)
        else:
            how = {"capability": capability, "processors": processors, **GRAM[name]}
            splits = gram_tile.splits(1, self.h, self.w, CHANNELS, HEADS, **how)
        sums = torch.empty(gram.sums_shape(1, HEADS, CHANNELS, splits), device=self.device)
        if name == TRITON:
            return gram.launch(self.qkv, self.qkv_dw.float(), v, sums)
        return gram_tile.launch(self.qkv, self.qkv_dw, v, sums, **how)

    def folds(self, one: Any) -> list[Any]:
        """What follows a Gram kernel."""
        sums = one.tensors["sums"]
        total = torch.empty(1, *sums.shape[1:], device=self.device) if sums.shape[0] > fold.FEW else None
        out = torch.empty(1, CHANNELS, CHANNELS, dtype=self.dtype, device=self.device)
        return fold.launches(sums, total, self.heat, self.out_w, out, capability=machine(self.device)[0])

    def expected(self, op: str) -> list[Any]:
        if op == "gate":
            gates, values = depthwise3x3(self.expanded.float(), self.gate_dw.float()).chunk(2, -1)
            return [torch.nn.functional.gelu(gates) * values]
        v, sums = depthwise_gram(self.qkv.float(), self.qkv_dw.float(), HEADS)
        return [v, sums]


def results(one: Any) -> list[Any]:
    return [one.tensors[name] for name in ("y", "v", "sums") if name in one.tensors]


def runs() -> Iterator[tuple[str, str]]:
    yield from (("gate", name) for name in GATE)
    yield from (("gram", name) for name in GRAM)


def compile_all(dtype: Any, capability: int) -> None:
    jobs = []
    for size in SIZES:
        case = Case(*size, dtype, "meta")
        for op, name in runs():
            one = getattr(case, op)(name)
            jobs += [one] if op == "gate" else [one, *case.folds(one)]
    compile_ahead(jobs, capability)


def us(launches: list[Any]) -> float:
    def run() -> None:
        for launch in launches:
            launch()

    return round(1e3 * milliseconds(run), 2)


def us_after(before: Any, launch: Any, reps: int = 20) -> float:
    """Of the launch alone, each time after `before`."""
    times = []
    for _ in range(reps + 3):
        torch.cuda._sleep(BUSY)
        before()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        launch()
        end.record()
        times.append((start, end))
    torch.cuda.synchronize()
    return round(1e3 * sorted(a.elapsed_time(b) for a, b in times[3:])[reps // 2], 2)


def measured(
    case: Case, op: str, name: str, expected: list[Any], roofline: tuple[float, float]
) -> dict[str, Any]:
    one = getattr(case, op)(name)
    source = one.tensors["expanded" if op == "gate" else "qkv"]
    copy = source.clone()
    seen, same = run_twice(one, results(one))
    wrong = [error(a.sum(0) if i else a, expected[i]) for i, a in enumerate(seen)]
    row = {
        "us": us([one]),
        "us_after_write": us_after(lambda: source.copy_(copy), one),
        "bounds": round(1e6 * max(one.moved / roofline[0], one.flops / roofline[1]), 2),
        "error": float(f"{max(wrong):.3g}"),
        "same_bits": same,
        "blocks": one.grid[0],
        "constants": {
            key: one.constants[key] for key in ("CHANNELS", "TALL", "WARPS", "BLOCKS") if key in one.constants
        },
    }
    if op == "gram":
        row["us_with_fold"] = us([one, *case.folds(one)])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description="the depthwise kernels of the latent level")
    parser.add_argument("--compile", action="store_true", help="only compile, for compute capability 9.0")
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    dtype = getattr(torch, options.dtype)
    compile_all(dtype, 90 if options.compile else machine(torch.device("cuda"))[0])
    if options.compile:
        return
    device, until = torch.cuda.get_device_name(), time.time() + options.seconds
    table = Table(options.output, device=device, dtype=options.dtype)
    for h, w in SIZES:
        case = Case(h, w, dtype, "cuda")
        expected = {op: case.expected(op) for op in ("gate", "gram")}
        for op, name in runs():
            if time.time() > until:
                return
            row = {"op": op, "size": f"{h}x{w}", "variant": name}
            try:
                row |= measured(case, op, name, expected[op], roofs(device))
            except Exception as trouble:
                row["trouble"] = f"{type(trouble).__name__}: {trouble}"[:300]
            table.add(row)


if __name__ == "__main__":
    main()
