"""The Hopper kernels of a Restormer, as before and with what is new, and the whole network with either.

    python benchmarks/wide_variants.py [--compile] [--seconds 55] [--output wide_variants.json]

Everything is compiled first, by processes and threads, without the GPU (--compile: no more than that). Then, the most
important first: the median of 20 launches in microseconds, relative L2 against PyTorch in float32 (TF32 off), whether a
second run gives the same bits, and whether these are those of before. At the end whole passes as CUDA graphs, ways in
turn: the median of 15, and the error. The file is written after each line; after `--seconds` on the GPU no further
kernel is begun, only whole passes.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from gpu_workloads import weights_of
from steps import error_of, instance_of, timed
from stream_kernels import error, gram_wide_launch, inputs, median_ms, wide_launch

from restort.backends.fused.restormer import pack, plan
from restort.kernels import stream_ffn, stream_gram
from restort.kernels.machine import planning_for
from restort.kernels.precompile import default_processes, missing, note, precompile, precompile_cuda
from restort.kernels.stream_ffn import wide
from restort.kernels.stream_gram import wide as gram_wide

CASES = {  # channels, hidden, heads, height, width
    "decoder 1": (96, 256, 1, 720, 1280),
    "level 3": (192, 512, 4, 180, 320),
    "level 1": (48, 128, 1, 720, 1280),
    "level 2": (96, 256, 2, 360, 640),
}
SINCE = {"EARLY": 1, "SPREAD": 1, "FOLDED": 1}
FFN = {  # what differs from the default of before
    "before": {},
    "since": SINCE,
    "since, uniform": {**SINCE, "UNIFORM": 1},
    "since, gelu 3": {**SINCE, "GELU": 3},
    "since, uniform, gelu 3": {**SINCE, "UNIFORM": 1, "GELU": 3},
    "early, spread": {"EARLY": 1, "SPREAD": 1},
    "early, folded": {"EARLY": 1, "FOLDED": 1},
    "spread, folded": {"SPREAD": 1, "FOLDED": 1},
    "folded": {"FOLDED": 1},
    "folded, gelu 3": {"FOLDED": 1, "GELU": 3},
    "folded, uniform": {"FOLDED": 1, "UNIFORM": 1},
}
GRAM = {"before": {}, "uniform": {"UNIFORM": 1}}
ALL = list(FFN)
RUNS = [  # op, case, variants: the most important first
    ("ffn", "decoder 1", ALL),
    ("gram", "decoder 1", list(GRAM)),
    ("ffn", "level 3", ALL),
    ("ffn", "level 1", ALL),
    ("gram", "level 1", list(GRAM)),
    ("ffn", "level 2", ["before", "since", "since, uniform", "since, gelu 3", "spread, folded", "folded"]),
    ("gram", "level 2", list(GRAM)),
]
SIZES = ((720, 1280), (368, 552), (256, 256))
WAYS = ("before", "since")
HALF = torch.float16


def launch_of(op: str, name: str, case: dict[str, Any], out: Any, heads: int) -> Any:
    if op == "ffn":
        return wide_launch(case, out, {**wide.BEFORE[out.shape[-1]], **FFN[name]})
    return gram_wide_launch(case, out, heads, {**gram_wide.BEFORE[out.shape[-1]], **GRAM[name]})


def use(way: str) -> None:
    """Plans made from now on are so."""
    for module in (wide, gram_wide):
        module.HOW = module.BEFORE if way == "before" else module.SINCE


def compile_all(network: Any) -> None:
    started = time.time()
    jobs = []
    for op, level, names in RUNS:
        c, f, heads, _, _ = CASES[level]
        small = inputs(8, 16, c, f, HALF, "meta")
        jobs += [launch_of(op, name, small, small["x"], heads) for name in names]
    lacking = {}
    packed = pack(network, HALF).to("meta")
    with planning_for(90):
        for way in WAYS:
            use(way)
            for h, w in SIZES:
                launches = plan(packed, network.spec, 1, h, w, HALF, "meta").launches
                lacking.update(missing(launches, 90))
                jobs += [launch for launch in launches if launch.name.endswith("_wide")]
    with ThreadPoolExecutor(2) as pool:
        made = pool.submit(precompile, list(lacking.values()))
        pool.submit(precompile_cuda, jobs, 90).result()
        print(f"{made.result()} of {len(lacking)} Triton kernels; {default_processes()} processes;", end=" ")
    note(list(lacking))
    print(f"compiled in {time.time() - started:.1f} s", flush=True)


class Table:
    def __init__(self, path: Path | None) -> None:
        self.path, self.rows = path, list[dict[str, Any]]()

    def add(self, **row: Any) -> None:
        self.rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        if self.path is not None:
            record = {"device": torch.cuda.get_device_name(), "records": self.rows}
            self.path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def kernels(table: Table, until: float) -> None:
    for op, level, names in RUNS:
        if time.time() > until:
            return
        c, f, heads, h, w = CASES[level]
        case = inputs(h, w, c, f, HALF)
        full = {name: tensor.float() for name, tensor in case.items() if tensor is not None}
        if op == "ffn":
            needed = ("x", "v", "fold", "fold_b", "w", "affine", "dw", "out_w", "out_b")
            expected = [stream_ffn.stream_ffn(**{name: full.get(name) for name in needed})]
        else:
            v, sums = stream_gram.stream_gram(
                full["x"], full["qkv_w"], full["qkv_affine"], full["qkv_dw"], heads
            )
            expected = [v, sums]
        del full
        first: list[Any] = []
        for name in names:
            if time.time() > until:
                return
            row = {"op": op, "level": level, "size": f"{h}x{w}x{c}", "variant": name}
            try:
                out = torch.empty_like(case["x"])
                one = launch_of(op, name, case, out, heads)
                seen = []
                for _ in range(2):
                    results = [out] if op == "ffn" else [out, one.tensors["sums"]]
                    for result in results:
                        result.fill_(float("nan"))
                    one()
                    seen.append([result.clone() for result in results])
                wrong = [error(a if i == 0 else a.sum(0), expected[i]) for i, a in enumerate(seen[0])]
                same = all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
                first = first or seen[0]
                as_before = all(map(torch.equal, seen[0], first))
                us, wrong_most = round(1e3 * median_ms([one]), 2), float(f"{max(wrong):.3g}")
                table.add(**row, us=us, error=wrong_most, same_bits=same, as_before=as_before)
            except Exception as trouble:
                table.add(**row, trouble=f"{type(trouble).__name__}: {trouble}"[:300])
        del case, expected
        torch.cuda.empty_cache()


def whole(table: Table, network: Any) -> None:
    device = torch.device("cuda:0")
    for h, w in SIZES:
        made = {}
        for way in WAYS:
            use(way)
            made[way] = instance_of(network, "fp16", (1, h, w), device, None)
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(15):
            for way, instance in made.items():
                with instance.lock, instance.on_stream():
                    times[way].append(timed(instance.launch))
        for way, instance in made.items():
            outputs = []
            for _ in range(2):
                with instance.lock, instance.on_stream():
                    instance.launch()
                instance.finish()
                outputs.append(instance.output.clone())
            ms = sorted(times[way])[7]
            table.add(
                op="whole", size=f"{h}x{w}", variant=way, ms=round(ms, 4), same_bits=torch.equal(*outputs)
            )
        for way in WAYS:
            table.add(op="whole", size=f"{h}x{w}", variant=way, error=error_of(made[way], network, device))
        del made
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description="the Hopper kernels of a Restormer, before and since")
    parser.add_argument("--compile", action="store_true", help="only compile")
    parser.add_argument("--seconds", type=float, default=55)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    network = weights_of("restormer")
    compile_all(network)
    if options.compile:
        return
    table = Table(options.output)
    with torch.no_grad():
        kernels(table, time.time() + options.seconds)
        whole(table, network)


if __name__ == "__main__":
    main()
