"""Makes a plan of a pass (restort.backends.fused.aot_compile) and its graph for TensorRT 8.6, without a GPU.

    python benchmarks/plan_make.py WEIGHTS OUT [--precision fp16] [--shape 1 720 1280] [--capability 90] [--plain]
    python benchmarks/plan_make.py --workloads [--only WORDS] [--processes 16] [--capability 90]

The first writes OUT.plan, OUT.onnx with the plan inside, and OUT.path.onnx, which names OUT.plan by its path here.
--plain: no kernel begins before the one before has ended. The second puts the plans of the workloads of tensorrt86.py,
with their random weights, into the cache folder (RESTORT_CACHE), several at once; what is there is not made again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("weights", nargs="?")
    parser.add_argument("out", nargs="?")
    parser.add_argument("--precision", choices=("fp16", "bf16"), default="fp16")
    parser.add_argument("--shape", type=int, nargs=3, default=(1, 720, 1280), metavar=("N", "H", "W"))
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--workloads", action="store_true", help="of tensorrt86.py, into the cache folder")
    parser.add_argument("--only", default="", help="workloads whose name holds one of these words")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 2)
    args = parser.parse_args()
    if args.workloads:
        return workloads(args)
    if args.out is None:
        parser.error("give WEIGHTS and OUT, or --workloads")
    one(args)
    return 0


def workloads(args: argparse.Namespace) -> int:
    """Plans of all workloads; the status is 1 where one cannot be made."""
    from gpu_workloads import TASKS

    named = [(f"{network}-{h}x{w}", network, h, w) for network, h, w in TASKS]
    wanted = [task for name, *task in named if any(word in name for word in args.only.split(","))]
    failed = 0
    start = time.perf_counter()
    each = max(1, args.processes // max(1, len(wanted)))
    with ProcessPoolExecutor(min(len(wanted), args.processes) or 1, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(provided, *task, args.precision, args.capability, each) for task in map(tuple, wanted)
        ]
        for task, job in zip(wanted, jobs):
            try:
                print(job.result(), flush=True)
            except Exception as error:
                failed += 1
                print(f"{task}: FAILED: {error}", flush=True)
    print(f"{len(wanted)} plans in {time.perf_counter() - start:.1f} s")
    return 1 if failed else 0


def provided(network: str, h: int, w: int, precision: str, capability: int, processes: int) -> str:
    """In a process of its own: a plan in the cache; a line about it."""
    from gpu_workloads import weights_of

    from restort.backends.fused.aot_cache import PlanCache, Wanted, opened

    start = time.perf_counter()
    wanted = Wanted(weights_of(network), precision, (1, h, w), capability)
    path = PlanCache().provide(wanted, lambda line: None, processes)
    made = opened(path)
    return (
        f"{path.name}: {path.stat().st_size / 2**20:.1f} MiB, {len(made.launches)} launches, "
        f"{made.memory / 2**20:.1f} MiB on the GPU, {time.perf_counter() - start:.1f} s"
    )


def one(args: argparse.Namespace) -> None:
    """The plan of WEIGHTS, and its graphs."""
    from restort.backends.fused.aot_compile import make_plan, read_plan
    from restort.weights.checkpoint import load_weights

    weights = load_weights(args.weights)
    n, h, w = args.shape
    data = make_plan(weights, args.precision, (n, h, w), args.capability, overlap=not args.plain)
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.with_name(out.name + ".plan")
    file.write_bytes(data)
    try:
        from restort.backends.tensorrt.plan_graph import plan_graph

        for ending, plan in ((".onnx", data), (".path.onnx", file)):
            graph = plan_graph(weights, plan)
            out.with_name(out.name + ending).write_bytes(graph.SerializeToString())
    except ImportError as error:
        print(f"no graph is made: {error}")
    made = read_plan(data)
    print(
        f"{file}: {len(data) / 2**20:.1f} MiB, {len(made.kernels)} kernels, {len(made.launches)} launches, "
        f"{made.memory / 2**20:.1f} MiB on the GPU"
    )


if __name__ == "__main__":
    sys.exit(main())
