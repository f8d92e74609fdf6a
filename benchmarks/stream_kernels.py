"""The streamed Restormer kernels on this GPU: right or not, and the time of each way to cut them up.

    python benchmarks/stream_kernels.py [--quick] [--size 720x1280 368x552 ...] [--output stream_kernels.json]

For each level of the official network that the kernels take: relative L2 error against the PyTorch reference in float32
(TF32 off), median of 20 launches by CUDA events, GB/s of the least traffic, TFLOP/s, and the share of the floor (the
larger of least traffic at the memory's rate and products at 700 TFLOP/s).
All variants are compiled first, in threads (a second each).
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from restort.kernels import stream_ffn, stream_gram
from restort.kernels.common import roofs
from restort.kernels.stream_ffn import wide
from restort.kernels.stream_gram import wide as gram_wide

LEVELS = (  # name, channels, hidden, heads, divisor of the picture's size
    ("level 1", 48, 128, 1, 1),
    ("decoder 1", 96, 256, 1, 1),
    ("level 2", 96, 256, 2, 2),
    ("level 3", 192, 512, 4, 4),
)
FFN = [
    {},
    {"BLOCKS": 3},
    {"WARPS": 8, "TALL": 16, "BLOCKS": 1},
    {"GELU": 0},
    {"PACKED": 0, "GELU": 0},
]
WIDE = [  # of restort.kernels.stream_ffn.wide, on compute capability 9.0
    {},
    {"AHEAD": 1},
    {"WARPS": 8, "TALL": 16, "BLOCKS": 1},
    {"WARPS": 8, "TALL": 16, "BLOCKS": 1, "AHEAD": 1},
    {"TALL": 12, "BLOCKS": 2},  # more channels would not fit the registers
    {"GELU": 0},
]
GRAM = [
    {},
    {"WGMMA": 1},
    {"WARPS": 8, "TALL": 16, "BLOCKS": 1},
    {"WARPS": 8, "TALL": 16, "BLOCKS": 1, "WGMMA": 1},
    {"PART_K": 48},
    {"CHUNK": 32},
    {"PACKED": 0},
]
GRAM_WIDE = [  # of restort.kernels.stream_gram.wide, on compute capability 9.0; some for these channels only
    ((48, 96, 192), {}),
    ((48, 96), {"AHEAD": 1}),
    ((96,), {"WARPS": 8, "TALL": 16, "BLOCKS": 1}),
    ((96,), {"WARPS": 8, "TALL": 16, "BLOCKS": 1, "AHEAD": 1}),
    ((96,), {"WARPS": 12, "TALL": 16, "BLOCKS": 1}),
    ((192,), {"WARPS": 8}),
    ((192,), {"WARPS": 8, "AHEAD": 1}),
    ((48,), {"BLOCKS": 2}),
    ((48,), {"BLOCKS": 4}),
    ((48,), {"TALL": 12}),
    ((48,), {"TALL": 16, "BLOCKS": 2}),
    ((48, 96, 192), {"GRAM": 1}),
    ((48, 96, 192), {"GRAM": 4}),
]


def sizes(text: str) -> tuple[int, int]:
    height, width = text.split("x")
    return int(height), int(width)


def inputs(h: int, w: int, c: int, f: int, dtype: Any) -> dict[str, Any]:
    """About unit activations, on the GPU."""
    torch.manual_seed(0)

    def draw(*shape: int, scale: float = 1.0, kind: Any = dtype) -> Any:
        return (torch.randn(*shape, device="cuda") * scale).to(kind)

    wide = torch.float32
    return {
        "x": draw(1, h, w, c),
        "v": draw(1, h, w, c),
        "fold": draw(1, c, c, scale=c**-0.5),
        "fold_b": None,  # the official networks have no biases
        "w": draw(2 * f, c, scale=c**-0.5),
        "affine": draw(2, 2 * f, kind=wide),
        "dw": draw(10, 2 * f, scale=0.33),
        "out_w": draw(f, c, scale=f**-0.5),
        "out_b": None,
        "qkv_w": draw(3 * c, c, scale=c**-0.5),
        "qkv_affine": draw(2, 3 * c, kind=wide),
        "qkv_dw": draw(10, 3 * c, scale=0.33),
    }


def chosen(variants: list[dict[str, int]], channels: int) -> list[dict[str, int]]:
    """Those that can be had for so many channels."""
    return [
        one
        for one in variants
        if channels % one.get("CHUNK", 16) == 0
        and (channels <= 96 or not {"WARPS", "BLOCKS"} & one.keys())
        and (channels <= 48 or one.get("TALL") != 12)
    ]


def error(a: Any, b: Any) -> float:
    return float((a.float() - b).norm() / b.norm())


def median_ms(launches: list[Any], reps: int = 20) -> float:
    for _ in range(3):
        for launch in launches:
            launch()
    times = []
    for _ in range(reps):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for launch in launches:
            launch()
        end.record()
        times.append((start, end))
    torch.cuda.synchronize()
    return sorted(a.elapsed_time(b) for a, b in times)[reps // 2]


def ffn_launch(case: dict[str, Any], out: Any, variant: dict[str, int]) -> Any:
    names = ("x", "v", "fold", "fold_b", "w", "affine", "out_w", "out_b")
    return stream_ffn.launch(**{name: case[name] for name in names}, dw16=case["dw"], out=out, **variant)


def wide_launch(case: dict[str, Any], out: Any, variant: dict[str, int]) -> Any:
    weights = wide.pack(case["w"], case["affine"], case["dw"], case["out_w"])
    names = ("x", "v", "fold", "fold_b", "out_b")
    return wide.launch(**{name: case[name] for name in names}, weights=weights, out=out, **variant)


def gram_launch(case: dict[str, Any], v: Any, heads: int, variant: dict[str, int]) -> Any:
    n, h, w, c = case["x"].shape
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    splits = stream_gram.splits(n, h, w, c, processors, **variant)
    ch = c // heads
    sums = torch.empty(splits, n, heads, ch * (ch + 2), device="cuda")
    return stream_gram.launch(
        case["x"], case["qkv_w"], case["qkv_affine"], case["qkv_dw"], v, sums, **variant
    )


def gram_wide_launch(case: dict[str, Any], v: Any, heads: int, variant: dict[str, int]) -> Any:
    n, h, w, c = case["x"].shape
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    splits = gram_wide.splits(n, h, w, c, processors, **variant)
    ch = c // heads
    sums = torch.empty(splits, n, heads, ch * (ch + 2), device="cuda")
    weights = gram_wide.pack(case["qkv_w"], case["qkv_affine"], case["qkv_dw"])
    return gram_wide.launch(case["x"], weights, v, sums, **variant)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", nargs="+", type=sizes, default=[(720, 1280), (368, 552), (256, 256)])
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16"])
    parser.add_argument("--quick", action="store_true", help="the default variants only")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    dtype = getattr(torch, options.dtype)
    device = torch.cuda.get_device_name()
    bandwidth, rate = roofs(device)
    capability = torch.cuda.get_device_capability()
    capability = capability[0] * 10 + capability[1]
    ffn, gram = (FFN[:1], GRAM[:1]) if options.quick else (FFN, GRAM)
    broad = [] if capability != wide.CAPABILITY else WIDE[:1] if options.quick else WIDE
    gram_broad = [] if capability != gram_wide.CAPABILITY else GRAM_WIDE[:1] if options.quick else GRAM_WIDE
    records: list[dict[str, Any]] = []

    started = time.time()
    small = {c: inputs(8, 16, c, f, dtype) for _, c, f, _, _ in LEVELS}
    launches = [
        ffn_launch(small[c], small[c]["x"], variant) for _, c, _, _, _ in LEVELS for variant in chosen(ffn, c)
    ]
    launches += [
        wide_launch(small[c], small[c]["x"], variant)
        for _, c, _, _, _ in LEVELS
        for variant in chosen(broad, c)
    ]
    launches += [
        gram_launch(small[c], small[c]["x"], heads, variant)
        for _, c, _, heads, _ in LEVELS
        for variant in gram
    ]
    launches += [
        gram_wide_launch(small[c], small[c]["x"], heads, variant)
        for _, c, _, heads, _ in LEVELS
        for channels, variant in gram_broad
        if c in channels
    ]
    wanted = {(one.kernel, tuple(one.constants.items())) for one in launches}

    def compile_one(job: Any) -> str | None:
        try:
            job[0].compile(dict(job[1]), capability)
        except Exception as error:
            return f"{job[0].__name__} {dict(job[1])}: {error}"
        return None

    with ThreadPoolExecutor(16) as pool:
        for trouble in pool.map(compile_one, wanted):
            if trouble:
                print("does not compile:", trouble, flush=True)
    print(f"{device}; {len(wanted)} kernels compiled in {time.time() - started:.1f} s", flush=True)

    def tell(
        op: str, level: str, shape: tuple[int, ...], variant: Any, wrong: float | None, ms: float, one: Any
    ) -> None:
        floor = 1e3 * max(one.moved / bandwidth, one.flops / rate)
        record = {
            "op": op, "level": level, "shape": shape, "variant": variant, "error": wrong, "ms": ms,
            "gb_s": one.moved / ms / 1e6, "tflop_s": one.flops / ms / 1e9, "floor_ms": floor,
        }  # fmt: skip
        records.append(record)
        right = "" if wrong is None else f"error {wrong:.1e}"
        print(
            f"{op:9} {level:9} {'x'.join(map(str, shape)):12} {ms:8.3f} ms  {record['gb_s']:6.0f} GB/s "
            f"{record['tflop_s']:5.0f} TFLOP/s  floor {floor:.3f} ({floor / ms:4.0%})  {right}  {variant}",
            flush=True,
        )

    def attempt(*arguments: Any) -> None:
        op, level, shape, variant, one, result, expected = arguments
        try:
            one()
            torch.cuda.synchronize()
            tell(op, level, shape, variant, max(map(error, result(), expected)), median_ms([one]), one)
        except Exception as trouble:
            print(f"{op:9} {level:9} {variant}: {trouble}", flush=True)

    for height, width in options.size:
        for level, c, f, heads, divisor in LEVELS:
            h, w = height // divisor, width // divisor
            shape = (h, w, c)
            case = inputs(h, w, c, f, dtype)
            float32 = {name: tensor.float() for name, tensor in case.items() if tensor is not None}
            names = ("x", "v", "fold", "fold_b", "w", "affine", "dw", "out_w", "out_b")
            expected = stream_ffn.stream_ffn(**{name: float32.get(name) for name in names})
            out = torch.empty_like(case["x"])
            for variant in chosen(ffn, c):
                one = ffn_launch(case, out, variant)
                attempt("ffn", level, shape, variant or "default", one, lambda out=out: (out,), (expected,))
            for variant in chosen(broad, c):
                one = wide_launch(case, out.fill_(float("nan")), variant)
                attempt("wide", level, shape, variant or "default", one, lambda out=out: (out,), (expected,))
            del expected
            wanted_v, wanted_sums = stream_gram.stream_gram(
                float32["x"], float32["qkv_w"], float32["qkv_affine"], float32["qkv_dw"], heads
            )
            for variant in chosen(gram, c):
                one = gram_launch(case, out, heads, variant)
                sums = one.tensors["sums"]
                attempt(
                    "gram", level, shape, variant or "default", one,
                    lambda sums=sums, out=out: (sums.sum(0), out),
                    (wanted_sums, wanted_v),
                )  # fmt: skip
            for channels, variant in gram_broad:
                if c not in channels:
                    continue
                one = gram_wide_launch(case, out.fill_(float("nan")), heads, variant)
                sums = one.tensors["sums"]
                attempt(
                    "gram wide", level, shape, variant or "default", one,
                    lambda sums=sums, out=out: (sums.sum(0), out),
                    (wanted_sums, wanted_v),
                )  # fmt: skip
            del wanted_v, wanted_sums, float32
            del case, out
            torch.cuda.empty_cache()
    if options.output:
        options.output.write_text(json.dumps({"device": device, "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
