"""Makes a plan of a pass (restort.backends.fused.plan) and its graph for TensorRT 8.6, without a GPU.

    python benchmarks/plan_make.py WEIGHTS OUT [--precision fp16] [--shape 1 720 1280] [--capability 90] [--plain]

Writes OUT.plan, OUT.onnx with the plan inside, and OUT.path.onnx, which names OUT.plan by its path here. --plain: no
kernel begins before the one before it has ended.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))


def main() -> None:
    from restort.backends.fused.plan import make_plan, read_plan
    from restort.models.checkpoint import load_weights

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("weights")
    parser.add_argument("out")
    parser.add_argument("--precision", choices=("fp16", "bf16"), default="fp16")
    parser.add_argument("--shape", type=int, nargs=3, default=(1, 720, 1280), metavar=("N", "H", "W"))
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--plain", action="store_true")
    args = parser.parse_args()
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
    main()
