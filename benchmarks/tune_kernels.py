"""Which way to cut up a kernel is fastest on this GPU? Variants of every op, each checked and timed.

    python benchmarks/tune_kernels.py [--ops gdfn mdta_gram ...] [--size 720x1280 368x552 ...] [--list] [--compile]
                                      [--only WORDS] [--dtype float16] [--after-write] [--output FILE]

The registry of ops is tuning/registry.py: an op names its places in the official networks, the forms of its kernel
(triton, sm80, sm90) with the constants to try, and how to make its arguments. Everything is compiled first, in
processes and threads, without a GPU; `--compile` ends there and reports variants that do not compile, that spill
registers, or whose shared memory exceeds an SM's. Then every variant is run twice (same bits?), compared with the op's
reference in float32 (relative L2), and repeated in a CUDA graph.

Records: {op, picture, place, form, variant, us, roofline_us, tflops, gb_per_s, relative_l2, same_bits, grid, ...}; us
is one launch in a graph of 20, for depthwise_gram also with the attention matrix that adds up its partial sums
(us_with_attention_matrix). `--after-write` adds us_after_write: single launches right after their input has been
written, as in a network, where that decides what the L2 holds; about 3 us of each are the events.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import (
    RESULTS,
    Record,
    Records,
    common_arguments,
    compile_ahead,
    cuda_events,
    graph_ms,
    matching,
    median,
    relative_l2,
    rounded,
    run_cases,
    run_twice,
)
from tuning.problem import Problem
from tuning.registry import OPS, Case, cases
from workloads import TENSOR_CORES, bytes_per_s, size

SM_SHARED_KIB = 228  # of an SM of compute capability 9.0; a block takes 1 KiB more than it asks for
BUSY_CYCLES = 1_500_000  # about 1 ms: longer than it takes to queue one launch and its events


class Tuner:
    """Problems as they are asked for, one at a time, with their references."""

    def __init__(self, dtype: str, device: str, after_write: bool = False) -> None:
        import torch

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.dtype, self.device, self.after_write = getattr(torch, dtype), device, after_write
        self._at: tuple[str, str, str] | None = None
        self._problem: Problem | None = None
        self._expected: list[Any] | None = None

    def problem(self, case: Case) -> Problem:
        at = case.op, case.picture, case.place
        if self._problem is None or at != self._at:
            self._problem = self._expected = None  # their memory is wanted
            made = OPS[case.op].problem(case.place, *size(case.picture), self.dtype, self.device)
            self._at, self._problem = at, made
        return self._problem

    def launch(self, case: Case) -> Any:
        return self.problem(case).launch(case.form, case.constants)

    def measure(self, case: Case, limit: float) -> Record:
        import torch

        problem = self.problem(case)
        if self._expected is None and problem.expected is not None:
            self._expected = problem.expected()
        one = problem.launch(case.form, case.constants)
        seen, same = run_twice(one, problem.outputs(one))
        us, device = 1e3 * graph_ms(one), torch.cuda.get_device_name()
        found: Record = {
            "us": round(us, 2),
            "roofline_us": round(1e6 * max(one.moved / bytes_per_s(device), one.flops / TENSOR_CORES), 2),
            "tflops": round(one.flops / us / 1e6, 1),
            "gb_per_s": round(one.moved / us / 1e3),
            "same_bits": same,
            "grid": list(one.grid),
            "device": device,
        }
        if self._expected is not None:
            pairs = zip(problem.compared(seen), self._expected, strict=True)
            found["relative_l2"] = rounded(max(relative_l2(a, b) for a, b in pairs), 3)
        if problem.after is not None:
            launches = [one, *problem.after(one)]
            found["us_with_attention_matrix"] = round(
                1e3 * graph_ms(lambda: [each() for each in launches]), 2
            )
        if self.after_write:
            source = next(iter(one.tensors.values()))
            found["us_after_write"] = round(1e3 * after_write_ms(source, one), 2)
        return found


def after_write_ms(source: Any, launch: Callable[[], None], repeats: int = 20) -> float:
    """Milliseconds of single launches, each right after `source` has been written; the GPU is busy while they queue."""
    import torch

    copy, times = source.clone(), []
    for _ in range(repeats + 3):
        torch.cuda._sleep(BUSY_CYCLES)
        source.copy_(copy)
        times.append(cuda_events(launch))
    return median(times[3:])


def compile_all(wanted: list[Case], dtype: str, capability: int, report: bool) -> list[Case]:
    """Compile for every case, without a GPU; return those whose launch can be made."""
    from restort.kernels.gpu_target import planning_for

    launches: dict[Case, Any] = {}
    with planning_for(capability):
        tuner = Tuner(dtype, "meta")
        for case in wanted:
            try:
                launches[case] = tuner.launch(case)
            except Exception as error:
                print(f"{case}: {type(error).__name__}: {error}", file=sys.stderr)
    compile_ahead(list(launches.values()), capability)
    if report:
        for case, one in launches.items():
            defect = defect_of(one, capability)
            if defect:
                print(f"{case}: {defect}")
    return list(launches)


def defect_of(one: Any, capability: int) -> str | None:
    """Why a kernel in CUDA C++ cannot run well: it does not compile, spills, or wants too much shared memory."""
    from restort.backends.fused.kernel_sweep import resources
    from restort.errors import RestortError

    if hasattr(one.kernel, "cache_key") or not hasattr(one.kernel, "compile"):
        return None
    try:
        registers, spilled = resources(one.kernel.compile(one.constants, capability))
    except RestortError as error:
        return f"does not compile: {error}"
    kib = (one.constants.get("SHARED", 0) / 1024 + 1) * one.constants.get("BLOCKS", 1)
    if spilled or kib > SM_SHARED_KIB:
        return f"{registers} registers, {spilled} bytes spilled, {kib:.0f} KiB of shared memory an SM"
    return None


def describe(record: Record) -> str:
    same = "" if record["same_bits"] else "  TWO RUNS DIFFER"
    return (
        f"{record['us']:9.2f} us  roofline {record['roofline_us']:8.2f}  {record['tflops']:6.1f} TFLOP/s "
        f"{record['gb_per_s']:5.0f} GB/s  error {record.get('relative_l2', 0):.1e}{same}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common_arguments(parser, RESULTS / "speed" / "kernel_variants.json")
    parser.add_argument("--ops", nargs="+", choices=list(OPS), default=list(OPS))
    parser.add_argument("--size", type=size, nargs="+", metavar="HxW", help="sizes of the picture")
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16")
    parser.add_argument("--after-write", action="store_true", help="also time launches right after a write")
    parser.add_argument(
        "--compile", action="store_true", help="only compile, and report what cannot run well"
    )
    parser.add_argument("--capability", type=int, default=90, help="of --compile (default: 90)")
    args = parser.parse_args()
    wanted = matching(cases(args.ops, args.size), args.only)
    if args.list:
        print("\n".join(map(str, wanted)))
        return 0
    capability = args.capability
    if not args.compile:
        import torch

        major, minor = torch.cuda.get_device_capability()
        capability = 10 * major + minor
        wanted = [case for case in wanted if case.form != "sm90" or capability == 90]
    wanted = compile_all(wanted, args.dtype, capability, args.compile)
    if args.compile:
        return 0
    import torch

    tuner, records = Tuner(args.dtype, "cuda", args.after_write), Records(Path(args.output))
    with torch.no_grad():
        again = matching(wanted, args.again) if args.again else ()
        return min(1, run_cases(wanted, records, tuner.measure, describe, seconds=args.seconds, again=again))


if __name__ == "__main__":
    sys.exit(main())
